//! The way back: a released block goes to the thread's cache, to its arena, or is parked.

use std::hint::cold_path;
use std::sync::Arc;

use alloc_core::{Address, Block, BlockId, MemoryProvider, ReleaseError, Stream, StreamSet};

use crate::arena::{Addresses, Arena, ArenaState};
use crate::cache::{self, Batch, CacheHome, CachedBlock};
use crate::id::{Name, large_generation, next_slot_generation, next_small_name, slab_and_slot};
use crate::ledger::SlabEntry;
use crate::local;
use crate::owners;
use crate::pages::Patience;
use crate::park::Parked;
use crate::placement::heap::{Kind, SHARED_TAG, Tag};
use crate::placement::units::{CLASSES, SMALL_MAX, UNIT_SHIFT, class_bytes, class_of, class_slots, class_stride};
use crate::pool::Inner;
use crate::primitive::Ordering;
use crate::streams::Seat;

impl<P: MemoryProvider> Inner<P> {
    /// Releases a block that no other stream uses: a small one to the thread's cache, a large one to its arena. `false`,
    /// with nothing done, if it can't be: then [`Inner::release`] finds out why.
    #[inline(always)]
    pub(crate) fn release_quickly(&self, block: Block, stream: Stream) -> bool {
        match Name::of(block.id()) {
            Name::Small { slot, generation, slack } => self.release_cached(block, (slot, generation, slack), stream),
            Name::Large { .. } => self.release_uncached(block.address().get(), block.size(), block.id(), stream),
        }
    }

    /// The place in the cache is found by the block's size, and what the slab says is compared only. Were it found by the
    /// slab's entry, the next allocation would wait for the block's name, the entry and the place, one after the other, as a
    /// processor keeps a load behind a store that it has seen it depend on until it knows where that goes.
    #[inline(always)]
    fn release_cached(&self, block: Block, (number, generation, slack): (u32, u32, u32), stream: Stream) -> bool {
        let size = block.size();
        if size > SMALL_MAX {
            cold_path();
            return false;
        }
        let class = class_of(size);
        let (slab, slot) = slab_and_slot(number);
        let Some(entry) = self.ledger.get(slab) else { return false };
        let Some(mut kept) = cache::take(self.cache_key(stream)) else { return false };
        let cache = &mut kept.cache;
        let sort = cache.sort(class);
        let address = block.address().get();
        let next = CachedBlock { address, name: next_small_name(block.id().to_bits()) };
        if let Some(room) = cache.room(class)
            && room.fits(size + u64::from(slack))
            && entry.is_of(sort)
            && entry.base() + room.offset(slot) == address
            && entry.end(owners::me(), slot, generation, next.generation())
        {
            room.fill(next);
            cache.counters.count_release(class, u64::from(slack));
            local::put(kept);
            return true;
        }
        cold_path();
        local::put(kept);
        false
    }

    /// A large block, without the arena's lock if it is the one on standby there.
    #[inline(always)]
    fn release_uncached(&self, address: u64, size: u64, id: BlockId, stream: Stream) -> bool {
        let Name::Large { arena, .. } = Name::of(id) else { return false };
        let Some(owner) = self.arena(arena) else { return false };
        let released = owner.standby.give_back(address, size, id.to_bits(), stream, owners::me())
            || owner.release_placed(address, size, id, stream);
        if released {
            self.keep_to_threshold();
        }
        released
    }

    /// Takes a block back that the thread's cache does not keep.
    pub(crate) fn release(
        this: &Arc<Self>,
        block: Block,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        match Name::of(block.id()) {
            Name::Small { slot, generation, slack } => {
                Self::release_small(this, block, (slot, generation, slack), stream, uses)
            }
            Name::Large { arena, node, generation } => this.release_large(block, arena, node, generation, stream, uses),
        }
    }

    #[cold]
    fn release_small(
        this: &Arc<Self>,
        block: Block,
        (number, generation, slack): (u32, u32, u32),
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let (slab, slot) = slab_and_slot(number);
        let Some(entry) = this.ledger.get(slab) else { return Err(this.foreign(block)) };
        let facts = entry.facts();
        let bytes = class_bytes(facts.class);
        let address = facts.base + u64::from(slot) * class_stride(facts.class);
        let as_named = address == block.address().get() && bytes.checked_sub(u64::from(slack)) == Some(block.size());
        if !as_named || slot >= class_slots(facts.class) {
            return Err(this.misnamed(block, entry, slot, generation));
        }
        if !entry.bias.is_shared() && !owners::me().is_some_and(|me| entry.bias.is_of(me)) {
            this.revoke_slab(entry, facts.arena);
        }
        if !entry.end(owners::me(), slot, generation, next_slot_generation(generation)) {
            return Err(this.stale(block));
        }
        let cached = CachedBlock::new(address, number, next_slot_generation(generation));
        let slack = u64::from(slack);
        let mut own = this.count_cached_release(facts.class, slack, stream);
        // A thread that only releases what others allocate needs a cache as well, lest each block costs a lock.
        if own.is_none() && uses.is_empty() && Self::join_known(this, stream, facts.tag) {
            own = this.count_cached_release(facts.class, slack, stream);
        }
        if own.is_none() {
            this.count_uncached(|counters| counters.count_release(facts.class, slack));
        }
        if own == Some(facts.tag) && facts.tag != SHARED_TAG && uses.is_empty() {
            this.make_room(stream, (facts.class, facts.tag), cached);
            return Ok(());
        }
        let parked = this.park(block, Parked::Slot(cached), bytes, facts.tag, stream, uses);
        this.tell_deferred();
        parked
    }

    /// From now on all threads may release blocks of the slab.
    #[cold]
    #[inline(never)]
    fn revoke_slab(&self, entry: &SlabEntry, arena: u32) {
        if owners::revoke(&entry.bias)
            && let Some(owner) = self.arena(arena)
        {
            owner.slabs_revoked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the release with the thread's cache for the stream, if it has one; its tag.
    fn count_cached_release(&self, class: usize, slack: u64, stream: Stream) -> Option<Tag> {
        cache::with(self.cache_key(stream), |cache| {
            cache.counters.count_release(class, slack);
            cache.seat.tag
        })
    }

    /// Gives cached blocks of a class back to the arenas and keeps this one instead. If the cache is full of others,
    /// half of all of them go.
    #[cold]
    #[inline(never)]
    fn make_room(&self, stream: Stream, (class, tag): (usize, Tag), block: CachedBlock) {
        let key = self.cache_key(stream);
        let mut batch = Batch::new();
        let kept = cache::with(key, |cache| {
            let only_releases = cache.make_room(class, &mut batch);
            (only_releases, cache.push(class, block))
        });
        if kept.is_some_and(|(only_releases, _)| only_releases) {
            self.hand_over(class, tag, &mut batch);
        }
        let mut freed = false;
        if kept.is_none_or(|(_, kept)| !kept) {
            if batch.is_full() {
                // As many as a batch holds, of a thread that only releases, and nobody to hand them over to.
                freed |= self.give_to_slabs(&mut batch);
            }
            batch.push(block);
        }
        freed |= self.give_to_slabs(&mut batch);
        if cache::with(key, |cache| cache.is_full()) == Some(true) {
            for class in 0..CLASSES {
                let only_releases = cache::with(key, |cache| cache.shed(class, &mut batch));
                if only_releases == Some(true) {
                    self.hand_over(class, tag, &mut batch);
                }
                freed |= self.give_to_slabs(&mut batch);
            }
        }
        if freed {
            self.keep_to_threshold();
        }
    }

    fn release_large(
        &self,
        block: Block,
        arena: u32,
        node: u32,
        generation: u32,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let Some(owner) = self.arena(arena) else { return Err(self.foreign(block)) };
        let (mut state, met) = owner.lock_or_wait();
        if met || owner.remote.is_on() {
            owner.prepare(&mut state);
        }
        let Some(found) = state.heap.node(node) else {
            drop(state);
            return Err(self.foreign(block));
        };
        let same_life = found.kind == Kind::Used && large_generation(found.generation) == generation;
        let (start, units, requested) = (found.start, found.units, found.requested());
        let (tag, home) = (found.tag, found.home);
        if !same_life || state.addresses.of(start) != block.address() || requested != block.size() {
            let is_stale = !same_life && self.owns_address(&state.addresses, state.heap.capacity(), block);
            drop(state);
            return Err(if is_stale { self.stale(block) } else { self.foreign(block) });
        }
        if owner.remote.is_on() && !owner.remote.end(node, generation) {
            drop(state);
            return Err(self.stale(block));
        }
        let bytes = u64::from(units) << UNIT_SHIFT;
        state.large.count_release(bytes, bytes - requested);
        if uses.is_empty() && home == stream {
            state.heap.release_to_rest(node);
            drop(state);
            self.keep_to_threshold();
            return Ok(());
        }
        state.heap.retire(node);
        drop(state);
        let parked = self.park(block, Parked::Node { arena, node }, bytes, tag, stream, uses);
        self.tell_deferred();
        self.keep_to_threshold();
        parked
    }

    /// Gives free memory back to the device if more is reserved than the threshold allows.
    #[inline]
    pub(crate) fn keep_to_threshold(&self) {
        if let Some(threshold) = self.config.release_threshold {
            self.give_back_past(threshold);
        }
    }

    #[cold]
    fn give_back_past(&self, threshold: u64) {
        let mut pages = self.lock_pages();
        if pages.reserved.current > threshold {
            self.give_back(&mut pages, threshold, Patience::Leave);
            self.defer_notes(&mut pages);
        }
        drop(pages);
        self.tell_deferred();
    }

    #[cold]
    fn misnamed(&self, block: Block, entry: &SlabEntry, slot: u32, generation: u32) -> ReleaseError {
        // The slab may have gone since, and another may have its entry: then the generation has moved on.
        let ended = entry.generations.of(slot) != generation;
        if ended && self.owns(block) { self.stale(block) } else { self.foreign(block) }
    }

    /// Whether the block's address is one that this pool may have handed out.
    fn owns(&self, block: Block) -> bool {
        self.arenas.iter().any(|arena| {
            let state = arena.lock();
            self.owns_address(&state.addresses, state.heap.capacity(), block)
        })
    }

    fn owns_address(&self, addresses: &Addresses, capacity: u64, block: Block) -> bool {
        let address = block.address().get();
        match addresses {
            Addresses::Range { base } => {
                let end = base + (capacity << UNIT_SHIFT) + crate::arena::ZERO_RANGE;
                (*base..end).contains(&address)
            }
            Addresses::Segments { granules, .. } => {
                granules.iter().any(|&granule| granule != 0 && (granule..granule + self.granularity).contains(&address))
            }
        }
    }

    #[cold]
    fn foreign(&self, block: Block) -> ReleaseError {
        ReleaseError::Foreign { device: self.device, block }
    }

    #[cold]
    fn stale(&self, block: Block) -> ReleaseError {
        ReleaseError::Stale { device: self.device, block }
    }
}

impl Arena {
    /// A large block that the heap takes back. `false`, with nothing done, if it can't be. One function without calls
    /// and with all arguments in registers, for the same reason as [`Inner::allocate_placed`].
    #[inline(never)]
    fn release_placed(&self, address: u64, size: u64, id: BlockId, stream: Stream) -> bool {
        let Name::Large { node, generation, .. } = Name::of(id) else { return false };
        if self.remote.is_on() {
            let block = Block::from_parts(Address::new(address), size, id);
            return self.remote.release(block, (node, generation), stream);
        }
        let (mut state, met) = self.lock_or_wait();
        if met {
            self.prepare(&mut state);
        }
        let Some(found) = state.heap.node(node) else { return false };
        let (bytes, requested) = (u64::from(found.units) << UNIT_SHIFT, found.requested());
        let is_this = found.kind == Kind::Used
            && large_generation(found.generation) == generation
            && found.home == stream
            && requested == size
            && state.addresses.of(found.start).get() == address;
        // Another thread may have had releases without the lock begin just now.
        if !is_this || self.remote.is_on() {
            return false;
        }
        state.large.count_release(bytes, bytes - requested);
        if state.heap.release_to_rest(node) {
            self.offer(&mut state);
        }
        true
    }

    /// What a release does that met another thread at the lock, or may meet one without.
    #[cold]
    fn prepare(&self, state: &mut ArenaState) {
        if self.remote.is_on() {
            self.settle(state);
        } else {
            self.note_meeting(state);
        }
    }
}

impl<P: MemoryProvider> CacheHome for Inner<P> {
    fn take_back(&self, batch: &mut Batch) {
        self.give_to_slabs(batch);
    }

    fn forget(&self, seat: Seat, counters: &Arc<cache::CacheCounters>) {
        self.leave_seat(seat.arena);
        self.caches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retire(counters);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{DeviceAllocator, Layout};

    use super::*;
    use crate::{Pool, PoolConfig};

    #[test]
    fn a_thread_that_only_releases_hands_over_what_is_too_many_bytes() {
        let config = PoolConfig { thread_cache: 1 << 20, ..PoolConfig::default() };
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), config).unwrap();
        let take = |class| pool.allocate(Layout::bytes(class_bytes(class)).unwrap(), Stream::DEFAULT).unwrap();
        // Of each of the larger classes fewer blocks than fill a bin, together more bytes than are kept.
        let blocks: Vec<Block> = (CLASSES - 8..CLASSES).flat_map(|class| [(); 2].map(|()| take(class))).collect();
        assert!(blocks.iter().map(Block::size).sum::<u64>() <= 1 << 20);
        let more: Vec<Block> = (CLASSES - 16..CLASSES - 8).flat_map(|class| [(); 4].map(|()| take(class))).collect();
        let returned = || pool.inner.arena(crate::arena::SLAB_ARENA).unwrap().lock().returns.bytes();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for block in blocks.into_iter().chain(more) {
                    if !pool.inner.release_quickly(block, Stream::DEFAULT) {
                        Inner::release(&pool.inner, block, Stream::DEFAULT, StreamSet::EMPTY).unwrap();
                    }
                }
                assert!(returned() > 0, "all classes wait at the arena, though no bin was full");
            });
        });
        assert_eq!(pool.statistics().in_use.current, 0);
    }
}
