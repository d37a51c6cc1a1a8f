//! The way back: a released block goes to the thread's cache, to its arena, or is parked.

use std::sync::Arc;

use alloc_core::{Block, MemoryProvider, ReleaseError, Stream, StreamSet};

use crate::arena::Addresses;
use crate::cache::{self, Batch, CacheHome, CachedBlock};
use crate::id::{Name, large_generation, next_slot_generation, slab_and_slot};
use crate::ledger::SlabEntry;
use crate::park::Parked;
use crate::placement::heap::{Kind, SHARED_TAG, Tag};
use crate::placement::units::{UNIT_SHIFT, class_slots, class_stride, class_units};
use crate::pool::Inner;
use crate::streams::Seat;

/// What became of a block that was offered to a thread's cache.
enum Offer {
    Kept,
    /// The cache has enough; these have to go back instead.
    Full(Batch),
    /// The block is not of the cache's stream.
    Elsewhere,
}

impl<P: MemoryProvider> Inner<P> {
    #[inline]
    pub(crate) fn release(
        this: &Arc<Self>,
        block: Block,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        match Name::of(block.id()) {
            Name::Small { slot, generation, slack } => this.release_small(block, slot, generation, slack, stream, uses),
            Name::Large { arena, node, generation } => this.release_large(block, arena, node, generation, stream, uses),
        }
    }

    #[inline]
    fn release_small(
        &self,
        block: Block,
        number: u32,
        generation: u32,
        slack: u32,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let (slab, slot) = slab_and_slot(number);
        let Some(entry) = self.ledger.get(slab) else { return Err(self.foreign(block)) };
        let facts = entry.facts();
        let bytes = u64::from(class_units(facts.class)) << UNIT_SHIFT;
        let address = facts.base + (u64::from(slot * class_stride(facts.class)) << UNIT_SHIFT);
        if address != block.address().get()
            || block.size() + u64::from(slack) != bytes
            || slot >= class_slots(facts.class)
        {
            return Err(self.misnamed(block, entry, slot, generation));
        }
        if !entry.generations.retire(slot, generation) {
            return Err(self.stale(block));
        }
        let cached = CachedBlock { address, slot: number, generation: next_slot_generation(generation) };
        let offer = cache::with(self.key, self.epoch(), stream, |cache| {
            if cache.seat.tag != facts.tag || facts.tag == SHARED_TAG || !uses.is_empty() {
                return Offer::Elsewhere;
            }
            cache.counters.count_release(block.size(), bytes);
            if cache.push(facts.class, cached) {
                return Offer::Kept;
            }
            let mut batch = Batch::new();
            cache.take_half(facts.class, &mut batch);
            if !cache.push(facts.class, cached) {
                batch.push(cached);
            }
            Offer::Full(batch)
        });
        match offer {
            Some(Offer::Kept) => Ok(()),
            Some(Offer::Full(mut batch)) => {
                self.give_to_slabs(&mut batch);
                Ok(())
            }
            Some(Offer::Elsewhere) | None => self.release_small_elsewhere(block, cached, facts.tag, stream, uses),
        }
    }

    /// A small block of another stream than it is released on, or one that other streams use.
    #[cold]
    fn release_small_elsewhere(
        &self,
        block: Block,
        cached: CachedBlock,
        home: Tag,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let facts_bytes =
            self.ledger.get(slab_and_slot(cached.slot).0).map_or(0, |entry| class_units(entry.facts().class));
        let bytes = u64::from(facts_bytes) << UNIT_SHIFT;
        let counted = cache::with(self.key, self.epoch(), stream, |cache| {
            cache.counters.count_release(block.size(), bytes);
        });
        if counted.is_none() {
            self.count_uncached(|counters| counters.count_release(block.size(), bytes));
        }
        let parked = self.park(block, Parked::Slot(cached), bytes, home, stream, uses);
        self.tell_deferred();
        parked
    }

    #[inline]
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
        let tag = cache::with(self.key, self.epoch(), stream, |cache| cache.seat.tag);
        let mut state = owner.lock();
        let Some(found) = state.heap.node(node) else {
            drop(state);
            return Err(self.foreign(block));
        };
        let same_life = found.kind == Kind::Used && large_generation(found.generation) == generation;
        let (start, units, requested, home) = (found.start, found.units, found.requested, found.tag);
        if !same_life || state.addresses.of(start) != block.address() || requested != block.size() {
            let is_stale = !same_life && self.owns_address(&state.addresses, state.heap.capacity(), block);
            drop(state);
            return Err(if is_stale { self.stale(block) } else { self.foreign(block) });
        }
        let bytes = u64::from(units) << UNIT_SHIFT;
        state.requested.sub(requested);
        state.in_use.sub(bytes);
        if uses.is_empty() && home != SHARED_TAG && tag == Some(home) {
            state.heap.release(node);
            drop(state);
            self.keep_to_threshold();
            return Ok(());
        }
        state.heap.retire(node);
        drop(state);
        let parked = self.park(block, Parked::Node { arena, node }, bytes, home, stream, uses);
        self.tell_deferred();
        parked
    }

    /// Gives free memory back to the device if more is reserved than the threshold allows.
    #[inline]
    fn keep_to_threshold(&self) {
        if let Some(threshold) = self.config.release_threshold {
            self.give_back_past(threshold);
        }
    }

    #[cold]
    fn give_back_past(&self, threshold: u64) {
        let mut pages = self.lock_pages();
        if pages.reserved.current > threshold {
            self.give_back(&mut pages, threshold);
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
        self.arenas.iter().map_while(|arena| arena.get()).any(|arena| {
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

impl<P: MemoryProvider> CacheHome for Inner<P> {
    fn take_back(&self, batch: &mut Batch) {
        self.give_to_slabs(batch);
    }

    fn forget(&self, seat: Seat, counters: &Arc<cache::CacheCounters>) {
        self.leave_seat(seat.arena);
        self.caches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retire(counters);
    }
}
