//! What all threads may ask of a slab without a lock: where it is, whose it is, and the generation of each slot.
//!
//! A slot's generation moves on when its block is released, in one step, so of several releases of one block exactly one
//! succeeds, and the id of a released block never again names a living one. The step is a compare-and-swap, or a plain
//! load and store of the one thread that the slab is biased to.

use std::hint::cold_path;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::bias::{Alone, Bias, Owner};
use crate::id::MAX_SLABS;
use crate::placement::heap::Tag;
use crate::primitive::{AtomicU32, AtomicU64, Ordering};

/// Slots of the largest slab.
pub(crate) const SLOTS: usize = 64;

/// The generations of one slab's slots.
#[derive(Debug)]
pub(crate) struct Generations([AtomicU32; SLOTS]);

impl Generations {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }

    /// The generation that the slot's next block is handed out with.
    #[inline]
    pub(crate) fn of(&self, slot: u32) -> u32 {
        self.0[slot as usize & (SLOTS - 1)].load(Ordering::Relaxed)
    }

    /// Ends the life of the block that was handed out with `generation`. `false` if it had ended before.
    #[inline(always)]
    fn replace(&self, slot: u32, generation: u32, next: u32) -> bool {
        // Release and acquire: the thread that reuses the slot comes after everything that the releasing one did.
        self.0[slot as usize & (SLOTS - 1)]
            .compare_exchange(generation, next, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The same for a thread that alone may change generations.
    #[inline(always)]
    fn replace_alone(&self, slot: u32, generation: u32, next: u32, _alone: Alone<'_>) -> bool {
        let of_slot = &self.0[slot as usize & (SLOTS - 1)];
        let is_this = of_slot.load(Ordering::Relaxed) == generation;
        if is_this {
            of_slot.store(next, Ordering::Relaxed);
        }
        is_this
    }
}

/// One slab, as all threads see it. Base, class, arena and place change only while no block of the slab lives.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct SlabEntry {
    /// Address of slot 0; 0 for an entry that is no slab now.
    base: AtomicU64,
    /// Class, tag and arena, from the low bits up: 16, 16 and 32.
    owner: AtomicU64,
    /// The slab's index in its arena.
    place: AtomicU32,
    /// Who changes generations without a compare-and-swap.
    pub(crate) bias: Bias,
    pub(crate) generations: Generations,
}

/// Class and tag of blocks, in one number: a slab's are compared with it at once. That is also what keeps a compiler from
/// taking the slab's class for the one compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sort(u32);

impl Sort {
    /// No block is of it.
    pub(crate) const NONE: Self = Self(u32::MAX);

    /// The tag, with no class yet.
    pub(crate) const fn of(tag: Tag) -> Self {
        Self((tag as u32) << 16)
    }

    /// The tag with this class.
    #[inline(always)]
    pub(crate) const fn and(self, class: usize) -> Self {
        Self(self.0 | class as u32)
    }
}

/// Where a slab is and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabFacts {
    pub(crate) base: u64,
    pub(crate) class: usize,
    /// The stream whose blocks these are.
    pub(crate) tag: Tag,
    pub(crate) arena: u32,
}

impl SlabEntry {
    pub(crate) fn new() -> Self {
        Self {
            base: AtomicU64::new(0),
            owner: AtomicU64::new(0),
            place: AtomicU32::new(0),
            bias: Bias::new(),
            generations: Generations::new(),
        }
    }

    #[inline(always)]
    pub(crate) fn facts(&self) -> SlabFacts {
        let owner = self.owner.load(Ordering::Relaxed);
        SlabFacts {
            base: self.base.load(Ordering::Relaxed),
            class: usize::from(owner as u16),
            tag: (owner >> 16) as Tag,
            arena: (owner >> 32) as u32,
        }
    }

    /// Address of slot 0.
    #[inline(always)]
    pub(crate) fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Whether the slab's blocks are of this class and tag.
    #[inline(always)]
    pub(crate) fn is_of(&self, sort: Sort) -> bool {
        self.owner.load(Ordering::Relaxed) as u32 == sort.0
    }

    /// The slab's index in its arena; meaningful only under the arena's lock.
    pub(crate) fn place(&self) -> u32 {
        self.place.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, facts: SlabFacts, place: u32) {
        self.base.store(facts.base, Ordering::Relaxed);
        let owner = u64::from(facts.arena) << 32 | u64::from(Sort::of(facts.tag).and(facts.class).0);
        self.owner.store(owner, Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
    }

    /// Ends the life of the block of this `generation`, whose slot's next one is given. `false` if it had ended before,
    /// or if the slab is another thread's own.
    #[inline(always)]
    pub(crate) fn end(&self, me: Option<&Owner>, slot: u32, generation: u32, next: u32) -> bool {
        if let Some(me) = me
            && let Some(alone) = self.bias.enter(me)
        {
            return self.generations.replace_alone(slot, generation, next, alone);
        }
        self.bias.is_shared() && self.generations.replace(slot, generation, next)
    }

    pub(crate) fn clear(&self) {
        self.base.store(0, Ordering::Relaxed);
    }
}

/// log2 of the entries in the first chunk: few for loom, which keeps account of each.
const FIRST_SHIFT: u32 = if cfg!(loom) { 2 } else { 8 };
/// Each chunk is as large as all before it together, so 17 hold 2^24 entries: as many as ids can name nodes of an
/// arena, and more than they can name slabs.
pub(crate) const CHUNKS: usize = 17;

/// The entries of all slabs of a pool. They never move and are never freed while the pool lives.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The first chunk, made with the pool: whoever looks up one of its entries need not ask whether it exists.
    first: Box<[SlabEntry]>,
    /// The others, and an empty place for the first.
    chunks: [OnceLock<Box<[SlabEntry]>>; CHUNKS],
    free: Mutex<FreeEntries>,
}

#[derive(Debug, Default)]
struct FreeEntries {
    made: u32,
    free: Vec<u32>,
}

/// Which chunk holds the entry of this index, and where.
#[inline]
pub(crate) fn chunk_of(index: u32) -> (usize, usize) {
    let high = index >> FIRST_SHIFT;
    if high == 0 {
        return (0, index as usize);
    }
    let log = 31 - high.leading_zeros();
    (log as usize + 1, (index - (1 << (log + FIRST_SHIFT))) as usize)
}

/// How many entries a chunk has.
pub(crate) fn chunk_len(chunk: usize) -> usize {
    1 << (FIRST_SHIFT as usize + chunk.saturating_sub(1))
}

fn make_chunk(chunk: usize) -> Box<[SlabEntry]> {
    (0..chunk_len(chunk)).map(|_| SlabEntry::new()).collect()
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { first: make_chunk(0), chunks: std::array::from_fn(|_| OnceLock::new()), free: Mutex::default() }
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> Option<&SlabEntry> {
        let entry = self.first.get(index as usize);
        if entry.is_some() {
            return entry;
        }
        cold_path();
        self.get_past_first(index)
    }

    fn get_past_first(&self, index: u32) -> Option<&SlabEntry> {
        let (chunk, offset) = chunk_of(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// An entry that is not in use. `None` if there are too many slabs.
    pub(crate) fn claim(&self) -> Option<(u32, &SlabEntry)> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.free.pop() {
            Some(index) => index,
            None if free.made < MAX_SLABS => {
                free.made += 1;
                // Room for all to be given back, so that this needs no heap later.
                let made = free.made as usize;
                free.free.reserve(made);
                free.made - 1
            }
            None => return None,
        };
        let (chunk, _) = chunk_of(index);
        if chunk > 0 {
            self.chunks.get(chunk)?.get_or_init(|| make_chunk(chunk));
        }
        self.get(index).map(|entry| (index, entry))
    }

    /// Has no more entries made.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn exhaust(&self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).made = MAX_SLABS;
    }

    /// Gives an entry back. Its generations stay, so that old ids stay stale.
    pub(crate) fn give_back(&self, index: u32) {
        if let Some(entry) = self.get(index) {
            entry.clear();
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).free.push(index);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn chunks_tile_the_index_space() {
        let mut expected = (0, 0);
        for index in 0..100_000 {
            let (chunk, offset) = chunk_of(index);
            if offset == 0 && index > 0 {
                assert_eq!(expected.1, chunk_len(expected.0));
                expected = (expected.0 + 1, 0);
            }
            assert_eq!((chunk, offset), expected);
            expected.1 += 1;
        }
        assert!(chunk_of(MAX_SLABS - 1).0 < CHUNKS && chunk_of(crate::id::MAX_NODES - 1).0 < CHUNKS);
    }

    #[test]
    fn a_generation_ends_once() {
        let ledger = Ledger::new();
        let (index, entry) = ledger.claim().unwrap();
        let generation = entry.generations.of(3);
        let end = |entry: &SlabEntry, me| entry.end(me, 3, generation, generation + 1);
        assert!(end(entry, None));
        assert!(!end(entry, None));
        ledger.give_back(index);
        let (again, entry) = ledger.claim().unwrap();
        assert_eq!(again, index);
        assert!(!end(entry, None), "old ids stay stale when the entry is reused");
    }

    #[test]
    fn a_slab_with_an_owner_is_changed_by_him_alone() {
        let ledger = Ledger::new();
        let (_, entry) = ledger.claim().unwrap();
        let (owner, other) = (Owner::new(1), Owner::new(2));
        entry.bias.give(&owner);
        entry.bias.give(&other);
        assert!(!entry.end(Some(&other), 3, 0, 1) && !entry.end(None, 3, 0, 1));
        assert!(entry.end(Some(&owner), 3, 0, 1) && !entry.end(Some(&owner), 3, 0, 1));
        assert!(entry.bias.revoke_alone(|_| Some(&owner)));
        assert!(entry.end(None, 3, 1, 2) && entry.end(Some(&owner), 3, 2, 3) && entry.end(Some(&other), 3, 3, 4));
    }
}
