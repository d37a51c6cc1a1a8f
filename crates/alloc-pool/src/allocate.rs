//! The way of an allocation: thread cache, slab or heap of the arena, and on a miss the pages.

use std::hint::cold_path;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use alloc_core::{AllocError, Layout, MemoryProvider, ProviderError, ProviderErrorKind, Stream};

use crate::arena::{Addresses, Arena, ArenaState, SLAB_ARENA, ZERO_RANGE};
use crate::cache::{self, Batch, CacheCounters, CacheHome, CacheKey, CachedBlock, Fresh};
use crate::id::{MAX_NODES, Name, Parts, slab_and_slot, slot_number};
use crate::ledger::SlabFacts;
use crate::local;
use crate::miss::Purpose;
use crate::owners;
use crate::placement::heap::{Ask, NIL, SHARED_TAG, Tag};
use crate::placement::slab::EmptySlab;
use crate::placement::units::{
    SMALL_MAX, UNIT, UNIT_SHIFT, class_bytes, class_of, class_slots, class_stride, class_units, units_of,
};
use crate::pool::Inner;
use crate::streams::Seat;

/// How many times what a thread may keep may wait for being handed over at an arena.
const RETURNED_PER_CACHE: u64 = 4;

/// Why a slab could not be added at once.
enum SlabMiss {
    /// No slab with a free slot, and no free memory for one: a miss of this many units.
    NeedsMemory(Ask),
    /// No more slabs can be named.
    Exhausted,
}

/// What is known of a batch that was filled.
struct Filled {
    /// The class of its blocks: that wanted, or the one that serves in its place.
    class: usize,
    /// Another thread was in the way.
    waited: bool,
    /// There was never as much memory in slabs.
    grew: bool,
}

impl<P: MemoryProvider> Inner<P> {
    /// A block from the thread's cache or, if it is large, from the arena: its address and id. `None`, with nothing
    /// done, for all that is not so simple.
    #[inline(always)]
    pub(crate) fn allocate_quickly(&self, layout: Layout, stream: Stream) -> Option<(u64, u64)> {
        if layout.size() > SMALL_MAX {
            return self.allocate_uncached(layout, stream).map(|(address, id)| (address.get(), id));
        }
        self.allocate_cached(layout, stream)
    }

    #[inline(always)]
    fn allocate_cached(&self, layout: Layout, stream: Stream) -> Option<(u64, u64)> {
        if layout.align() > UNIT {
            cold_path();
            return None;
        }
        let size = layout.size();
        let class = class_of(size);
        let mut kept = cache::take(self.cache_key(stream))?;
        let Some((block, bytes)) = kept.cache.pop(class) else {
            cold_path();
            local::put(kept);
            return None;
        };
        kept.cache.counters.count_allocation(class, bytes - size);
        local::put(kept);
        Some((block.address, block.name | (bytes - size)))
    }

    /// A large block, without the arena's lock if just that is on standby there.
    #[inline(always)]
    fn allocate_uncached(&self, layout: Layout, stream: Stream) -> Option<Parts> {
        if layout.align() > UNIT {
            return None;
        }
        let seat = cache::with(self.cache_key(stream), |cache| {
            cache.crowding.visit();
            cache.seat
        })?;
        let (owner, size) = (self.arena(seat.arena)?, layout.size());
        match owner.standby.take(size, seat.tag, stream, owners::me()) {
            Some(parts) => Some(parts),
            None => self.allocate_placed(owner, size, seat.tag, stream),
        }
    }

    /// A block that is not to be had so simply: its address and id, or else the error in its place.
    #[cold]
    #[inline(never)]
    pub(crate) fn allocate(
        this: &Arc<Self>,
        layout: Layout,
        stream: Stream,
        error: &mut Option<AllocError>,
    ) -> Option<Parts> {
        let parts = if is_small(layout) {
            Self::allocate_small(this, class_of(layout.size()), layout.size(), stream)
        } else {
            Self::allocate_large(this, layout, stream)
        };
        parts.map_err(|failure| *error = Some(failure)).ok()
    }

    /// A small block that the thread's cache does not have: the cache is filled from the arena.
    #[cold]
    #[inline(never)]
    fn allocate_small(this: &Arc<Self>, class: usize, size: u64, stream: Stream) -> Result<Parts, AllocError> {
        let own = cache::with(this.cache_key(stream), |cache| {
            cache.crowding.visit();
            (cache.seat, cache.begin_refill(class))
        });
        let (seat, wanted, cached) = match own {
            Some((seat, refill)) => (seat, refill.max(1), true),
            None => {
                let (seat, installed) = Self::join(this, stream)?;
                (seat, 1, installed)
            }
        };
        let units = units_of(size).unwrap_or(u32::MAX).max(1);
        let slack = ((u64::from(units) << UNIT_SHIFT) - size) as u16;
        let alone = Ask { units, align: 1, slack, tag: seat.tag, home: stream };
        if seat.tag == SHARED_TAG && class > 0 {
            // A slab's memory is in order for one stream only.
            return this.place_large(seat.arena + SLAB_ARENA, stream, alone, size);
        }
        let mut batch = Batch::new();
        let class = match this.fill(seat, stream, class, wanted, size, &mut batch) {
            Ok(filled) => {
                if filled.waited {
                    this.note_crowding(stream);
                }
                if filled.grew {
                    // Peaks are of what was seen, and this may be one.
                    let _ = this.gather_statistics();
                }
                filled.class
            }
            // What is left may be enough for the block, though not for a slab.
            Err(error) if error.is_out_of_memory() => {
                return this.place_large(seat.arena, stream, alone, size).map_err(|_| error);
            }
            Err(error) => return Err(error),
        };
        let Some(first) = batch.pop() else { return Err(this.exhausted(size)) };
        let bytes = class_bytes(class);
        let kept = cached
            && cache::with(this.cache_key(stream), |cache| {
                cache.begin_refill(class);
                cache.counters.count_allocation(class, bytes - size);
                let refills = &cache.counters.refills;
                refills.store(refills.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                while let Some(block) = batch.pop() {
                    if !cache.push(class, block) {
                        batch.push(block);
                        break;
                    }
                }
                cache.publish();
            })
            .is_some();
        if !kept {
            this.count_uncached(|totals| totals.count_allocation(class, bytes - size));
        }
        this.give_to_slabs(&mut batch);
        small_parts(first, bytes, size).ok_or_else(|| this.exhausted(size))
    }

    /// Gives the thread a cache for the stream; its seat, and whether the cache could be had.
    pub(crate) fn join(this: &Arc<Self>, stream: Stream) -> Result<(Seat, bool), AllocError> {
        let key = this.cache_key(stream);
        let tag = this.tag_of(stream)?;
        Self::join_as(this, key, tag)
    }

    /// The same if the stream has that tag. A thread that only releases may come when the stream has just ended, and asking for
    /// its tag would make a new one of it.
    pub(crate) fn join_known(this: &Arc<Self>, stream: Stream, tag: Tag) -> bool {
        // Before the tag: if the stream ends after that was seen, the key is of an epoch that has ended as well.
        let key = this.cache_key(stream);
        this.known_tag(stream) == Some(tag) && Self::join_as(this, key, tag).is_ok()
    }

    fn join_as(this: &Arc<Self>, key: CacheKey, tag: Tag) -> Result<(Seat, bool), AllocError> {
        // The seat that the thread had is left before it looks for one: else it would be in its own way.
        cache::drain_others(this.number, key.epoch);
        let seat = Seat { tag, arena: this.take_seat()? };
        let counters = this.new_counters();
        let fresh = Fresh { seat, byte_bound: this.config.thread_cache, counters: Arc::clone(&counters) };
        let home: Weak<dyn CacheHome> = Arc::downgrade(this) as Weak<dyn CacheHome>;
        let installed = cache::install(this.number, key, home, fresh);
        if !installed {
            this.leave_seat(seat.arena);
            this.caches.lock().unwrap_or_else(PoisonError::into_inner).retire(&counters);
        }
        this.tell_deferred();
        Ok((seat, installed))
    }

    /// Fills the batch with up to `wanted` blocks of the class.
    fn fill(
        &self,
        seat: Seat,
        stream: Stream,
        class: usize,
        wanted: usize,
        size: u64,
        batch: &mut Batch,
    ) -> Result<Filled, AllocError> {
        let (arena, tag) = (seat.arena + SLAB_ARENA, seat.tag);
        let Some(owner) = self.arena(arena) else { return Err(self.exhausted(0)) };
        // What the error says is asked of all arenas, so none may be locked.
        let exhausted = |state| {
            drop(state);
            self.exhausted(size)
        };
        let (mut class, mut made) = (class, false);
        let (mut state, waited) = owner.lock_or_wait();
        if class == 0 && !self.has_zero_slot(&mut state, arena, tag) {
            class = 1;
        }
        // Twice as many as of a slab: whoever waits for another thread's blocks takes all that it may keep.
        state.returns.take(class, tag, 2 * wanted, batch);
        loop {
            while batch.blocks().len() < wanted.min(cache::BIN_BLOCKS)
                && let Some((slab, slot)) = state.slabs.take(class, tag)
            {
                if let Some(entry) = self.ledger.get(slab) {
                    let base = entry.facts().base;
                    let address = base + u64::from(slot) * class_stride(class);
                    let generation = entry.generations.of(slot);
                    batch.push(CachedBlock::new(address, slot_number(slab, slot), generation));
                }
            }
            if !batch.blocks().is_empty() {
                return Ok(Filled { class, waited, grew: made && state.note_most() });
            }
            made = true;
            match self.new_slab(&mut state, arena, tag, stream, class) {
                Ok(()) => {}
                Err(SlabMiss::Exhausted) => return Err(exhausted(state)),
                Err(SlabMiss::NeedsMemory(ask)) => {
                    drop(state);
                    let (_, node) = self.miss(arena, stream, (ask, None), size, Purpose::Slab)?;
                    state = owner.lock();
                    if !self.add_slab(&mut state, arena, tag, class, node) {
                        state.heap.release(node);
                        return Err(exhausted(state));
                    }
                }
            }
        }
    }

    fn new_slab(
        &self,
        state: &mut ArenaState,
        arena: u32,
        tag: Tag,
        stream: Stream,
        class: usize,
    ) -> Result<(), SlabMiss> {
        let among_several = state.heap.seen() & !(1 << tag) != 0;
        let units = class_units(class) * state.slabs.next_slots(class, tag, among_several);
        let ask = Ask { units, align: 1, slack: 0, tag, home: stream };
        let node = state.heap.allocate(ask).ok_or(SlabMiss::NeedsMemory(ask))?;
        if self.add_slab(state, arena, tag, class, node) {
            return Ok(());
        }
        state.heap.release(node);
        Err(SlabMiss::Exhausted)
    }

    fn add_slab(&self, state: &mut ArenaState, arena: u32, tag: Tag, class: usize, node: u32) -> bool {
        let Some((start, units)) = state.heap.node(node).map(|node| (node.start, node.units)) else { return false };
        let base = state.addresses.of(start).get();
        self.add_slab_at(state, arena, tag, (class, units / class_units(class)), (node, base))
    }

    fn add_slab_at(
        &self,
        state: &mut ArenaState,
        arena: u32,
        tag: Tag,
        (class, slots): (usize, u32),
        (node, base): (u32, u64),
    ) -> bool {
        let Some((ledger, entry)) = self.ledger.claim() else { return false };
        let place = state.slabs.add((class, slots), tag, node, ledger);
        entry.set(SlabFacts { base, class, tag, arena }, place);
        if let Some(me) = owners::me()
            && self.arena(arena).is_some_and(|owner| owner.may_own_slab(state))
        {
            // No block of the slab lives, so nobody can end the life of one.
            entry.bias.give(me);
        }
        true
    }

    /// Sees to it that there is a slab with a free slot of zero bytes, if addresses for one are left.
    fn has_zero_slot(&self, state: &mut ArenaState, arena: u32, tag: Tag) -> bool {
        if state.slabs.has(0, tag) {
            return true;
        }
        if state.zero_slabs == 0 {
            return false;
        }
        let Some(base) = self.zero_base(state) else { return false };
        let which = state.zero_slabs.trailing_zeros();
        let stride = ZERO_RANGE / 64;
        let zero = (0, class_slots(0));
        if !self.add_slab_at(state, arena, tag, zero, (NIL, base + u64::from(which) * stride)) {
            return false;
        }
        state.zero_slabs &= state.zero_slabs - 1;
        true
    }

    /// Gives released small blocks back to the slabs they are from, and empties the batch. Whether the memory of any slab is
    /// free now.
    pub(crate) fn give_to_slabs(&self, batch: &mut Batch) -> bool {
        let (mut index, mut any) = (0, false);
        let blocks = batch.blocks();
        while index < blocks.len() {
            let arena_of = |block: &CachedBlock| {
                let (slab, _) = slab_and_slot(block.slot());
                self.ledger.get(slab).map_or(u32::MAX, |entry| entry.facts().arena)
            };
            let arena = arena_of(&blocks[index]);
            let Some(owner) = self.arena(arena) else {
                index += 1;
                continue;
            };
            let mut state = owner.lock();
            while index < blocks.len() && arena_of(&blocks[index]) == arena {
                let (slab, slot) = slab_and_slot(blocks[index].slot());
                index += 1;
                let Some(entry) = self.ledger.get(slab) else { continue };
                if let Some(emptied) = state.slabs.give(entry.place(), slot) {
                    self.free_slab(&mut state, emptied);
                    any = true;
                }
            }
        }
        batch.clear();
        any
    }

    fn free_slab(&self, state: &mut ArenaState, emptied: EmptySlab) {
        if emptied.class == 0 {
            let base = self.ledger.get(emptied.ledger).map(|entry| entry.facts().base);
            if let (Some(base), Some(zero_base)) = (base, self.zero_base(state)) {
                state.zero_slabs |= 1 << ((base - zero_base) / (ZERO_RANGE / 64));
            }
        } else {
            state.heap.release(emptied.node);
        }
        self.ledger.give_back(emptied.ledger);
    }

    /// Keeps released small blocks of one class and stream for whoever allocates such, as far as there is room.
    pub(crate) fn hand_over(&self, class: usize, tag: Tag, batch: &mut Batch) {
        let first = batch.blocks().first().map(|block| slab_and_slot(block.slot()).0);
        let arena = first.and_then(|slab| self.ledger.get(slab)).and_then(|entry| self.arena(entry.facts().arena));
        if let Some(arena) = arena {
            arena.lock().returns.put(class, tag, self.config.thread_cache.saturating_mul(RETURNED_PER_CACHE), batch);
        }
    }

    /// Gives what waits to be handed over back to the slabs.
    pub(crate) fn empty_returns(&self) {
        for arena in self.arenas.iter() {
            let mut returned = Batch::new();
            while arena.lock().returns.empty_into(&mut returned) {
                self.give_to_slabs(&mut returned);
            }
        }
    }

    /// Makes free memory of the empty slabs that were kept.
    pub(crate) fn free_empty_slabs(&self) {
        self.empty_returns();
        for arena in self.arenas.iter() {
            let mut state = arena.lock();
            while let Some(emptied) = state.slabs.take_empty() {
                self.free_slab(&mut state, emptied);
            }
        }
    }

    /// A block that the arena has room for, as its address and id. `None`, with nothing done, for all that is not so
    /// simple. One function without calls, as each call costs what a third of the search does.
    #[inline(never)]
    fn allocate_placed(&self, owner: &Arena, size: u64, tag: Tag, stream: Stream) -> Option<Parts> {
        let ask = ask_for(size, 1, stream)?;
        let (mut state, waited) = owner.lock_or_wait();
        owner.settle_at_times(&mut state);
        let node = state.heap.allocate_leaving_room(Ask { tag, ..ask })?;
        let placed = self.name_large(owner, &mut state, node, size);
        drop(state);
        if waited {
            self.note_crowding(stream);
        }
        placed
    }

    /// A block that is too large for the caches, or too strictly aligned.
    fn allocate_large(this: &Arc<Self>, layout: Layout, stream: Stream) -> Result<Parts, AllocError> {
        let ask = this.large_ask(layout, stream)?;
        let seat = match cache::with(this.cache_key(stream), |cache| cache.seat) {
            Some(seat) => seat,
            None => Self::join(this, stream)?.0,
        };
        this.place_large(seat.arena, stream, Ask { tag: seat.tag, ..ask }, layout.size())
    }

    fn place_large(&self, arena: u32, stream: Stream, ask: Ask, size: u64) -> Result<Parts, AllocError> {
        let Some(owner) = self.arena(arena) else { return Err(self.exhausted(size)) };
        let mut state = owner.lock();
        let placed = match state.heap.allocate_leaving_room(ask) {
            Some(node) => self.name_large(owner, &mut state, node, size),
            None => match state.heap.allocate_or_find(ask) {
                Ok(node) => self.name_large(owner, &mut state, node, size),
                Err(found) => {
                    drop(state);
                    let (arena, node) = self.miss(arena, stream, (ask, found), size, Purpose::Block)?;
                    let Some(owner) = self.arena(arena) else { return Err(self.exhausted(size)) };
                    state = owner.lock();
                    self.name_large(owner, &mut state, node, size)
                }
            },
        };
        drop(state);
        placed.ok_or_else(|| self.exhausted(size))
    }

    /// The address and the id of a node's block, which is counted. `None`, and the node is free again, if there are
    /// more nodes than ids can name.
    #[inline(always)]
    fn name_large(&self, owner: &Arena, state: &mut ArenaState, node: u32, size: u64) -> Option<Parts> {
        let (start, units, generation) = state.heap.node(node).map(|node| (node.start, node.units, node.generation))?;
        let address = NonZeroU64::new(state.addresses.of(start).get()).filter(|_| node < MAX_NODES);
        if address.is_none() {
            state.heap.release(node);
        }
        let address = address?;
        let bytes = u64::from(units) << UNIT_SHIFT;
        state.large.count_allocation(bytes, bytes - size);
        owner.announce(state, node);
        Some((address, Name::Large { arena: owner.index, node, generation }.id().to_bits()))
    }

    /// What a large block needs of a heap.
    pub(crate) fn large_ask(&self, layout: Layout, stream: Stream) -> Result<Ask, AllocError> {
        let align = layout.align().max(UNIT);
        let maximum = self.arena_bytes;
        if !self.mapped && align > self.granularity {
            let name = format!("alignment {align} is more than the {} of segments", self.granularity);
            return Err(ProviderError::new(self.device, "allocate", ProviderErrorKind::Unsupported, name).into());
        }
        if layout.size().checked_add(align).is_none_or(|needed| needed > maximum) {
            return Err(AllocError::TooLarge { device: self.device, requested: layout.size(), maximum });
        }
        ask_for(layout.size(), align >> UNIT_SHIFT, stream).ok_or(AllocError::TooLarge {
            device: self.device,
            requested: layout.size(),
            maximum,
        })
    }

    /// Counts a meeting at the arena's lock, and moves the thread to another arena if there were too many.
    #[cold]
    fn note_crowding(&self, stream: Stream) {
        // One key for both looks, lest a flush between them leave a seat counted that nobody has.
        let key = self.cache_key(stream);
        let crowded = cache::with(key, |cache| cache.crowding.meet().then_some(cache.seat.arena));
        if let Some(Some(arena)) = crowded {
            let other = self.change_seat(arena);
            cache::with(key, |cache| match other {
                Some(other) => cache.seat.arena = other,
                None => cache.crowding.bear(),
            });
        }
    }

    /// Where the addresses of zero-byte blocks start: behind the heap's.
    fn zero_base(&self, state: &ArenaState) -> Option<u64> {
        let end = state.heap.capacity();
        let is_range = matches!(state.addresses, Addresses::Range { .. });
        is_range.then(|| state.addresses.of(0).get() + (end << UNIT_SHIFT))
    }

    pub(crate) fn count_uncached(&self, count: impl FnOnce(&CacheCounters)) {
        let totals = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        totals.count_uncached(count);
    }
}

/// What a block needs of a heap, `align` in units. `None` past what units can count.
#[inline(always)]
fn ask_for(size: u64, align: u64, stream: Stream) -> Option<Ask> {
    let units = units_of(size)?.max(1);
    let slack = ((u64::from(units) << UNIT_SHIFT) - size) as u16;
    Some(Ask { units, align, slack, tag: 0, home: stream })
}

/// Whether the block comes from a slab.
#[inline]
fn is_small(layout: Layout) -> bool {
    layout.size() <= SMALL_MAX && layout.align() <= UNIT
}

#[inline(always)]
fn small_parts(block: CachedBlock, bytes: u64, size: u64) -> Option<Parts> {
    Some((NonZeroU64::new(block.address)?, block.name | (bytes - size)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;

    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{DeviceAllocator, StreamSet};

    use super::*;
    use crate::{Pool, PoolConfig};

    #[test]
    fn when_no_more_slabs_can_be_named_small_blocks_are_placed_alone() {
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), PoolConfig::default()).unwrap();
        pool.inner.ledger.exhaust();
        for bytes in [0, 1, 700, 60_000] {
            let blocks = [(); 3].map(|()| pool.allocate(Layout::bytes(bytes).unwrap(), Stream::DEFAULT).unwrap());
            for block in blocks {
                Inner::release(&pool.inner, block, Stream::DEFAULT, StreamSet::EMPTY).unwrap();
            }
        }
        assert_eq!(pool.statistics().in_use.current, 0);
        pool.trim(0);
        assert_eq!(pool.statistics().reserved.current, 0);
    }

    #[test]
    fn threads_that_are_apart_stay_so_when_caches_are_emptied() {
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), PoolConfig::default()).unwrap();
        let seat_after_a_pair = || {
            let block = pool.allocate(Layout::bytes(3 << 20).unwrap(), Stream::DEFAULT).unwrap();
            Inner::release(&pool.inner, block, Stream::DEFAULT, StreamSet::EMPTY).unwrap();
            cache::with(pool.inner.cache_key(Stream::DEFAULT), |cache| cache.seat.arena)
        };
        let turn = Barrier::new(2);
        seat_after_a_pair();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                seat_after_a_pair();
                let moved = pool.inner.change_seat(0);
                cache::with(pool.inner.cache_key(Stream::DEFAULT), |cache| cache.seat.arena = moved.unwrap());
                turn.wait();
                turn.wait();
                let seat = seat_after_a_pair();
                turn.wait();
                seat
            });
            turn.wait();
            let were_apart = pool.inner.are_threads_apart();
            // As a stream ends.
            pool.inner.next_epoch();
            let own = seat_after_a_pair();
            turn.wait();
            turn.wait();
            let others = other.join().unwrap();
            assert!(were_apart && own.is_some() && own != others, "{own:?} {others:?}");
        });
    }
}
