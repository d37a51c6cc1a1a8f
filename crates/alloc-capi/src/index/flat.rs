//! The table that mirrors the address space, for blocks that find no place in front, and for where blocks were.
//!
//! Three levels over 57 bits of address space, in units of 512 bytes: what pools place their blocks in. Its leaves are
//! zeroed memory that the system supplies page by page as it is touched: a block here costs 32 bytes, and up to one page
//! where no other block is near. Where blocks were is a bit a unit, 8 KiB for each 32 MiB of addresses that had any. Leaves
//! stay for the life of the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{Address, Block, BlockId, Stream};

use super::{Absent, Entry, Owner, UNIT_SHIFT};

const LEVEL_BITS: u32 = 16;
const LEVEL: usize = 1 << LEVEL_BITS;
/// How many units there are.
pub(super) const UNITS: u64 = 1 << (3 * LEVEL_BITS);

/// Words of an entry: id, size, handle of the stream, and the rest in one.
const WORDS: usize = 4;
const ID: usize = 0;
const SIZE: usize = 1;
const STREAM: usize = 2;
const META: usize = 3;

/// A block starts here.
const LIVING: u64 = 1;
/// Other streams were recorded for the block.
const SHARED: u64 = 2;
const OWNER_SHIFT: u32 = 16;
const IDENTITY_SHIFT: u32 = 32;

type Words = Box<[AtomicU64]>;
type Level<T> = Box<[OnceLock<T>]>;

/// 32 MiB of address space.
#[derive(Debug)]
struct Leaf {
    entries: OnceLock<Words>,
    /// A bit for each unit where a block once started.
    seen: Words,
}

/// The table.
pub(super) struct Flat {
    root: OnceLock<Level<Level<Box<Leaf>>>>,
}

fn empty<T>() -> Level<T> {
    (0..LEVEL).map(|_| OnceLock::new()).collect()
}

/// The places of a unit in root, middle and leaf.
fn places(unit: u64) -> [usize; 3] {
    [2 * LEVEL_BITS, LEVEL_BITS, 0].map(|shift| (unit >> shift) as usize % LEVEL)
}

impl Flat {
    pub(super) const fn new() -> Self {
        Self { root: OnceLock::new() }
    }

    fn leaf(&self, unit: u64) -> Option<&Leaf> {
        let [root, middle, _] = places(unit);
        Some(self.root.get()?[root].get()?[middle].get()?)
    }

    fn make_leaf(&self, unit: u64) -> &Leaf {
        let [root, middle, _] = places(unit);
        let new = || Box::new(Leaf { entries: OnceLock::new(), seen: bytemuck::zeroed_slice_box(LEVEL / 64) });
        self.root.get_or_init(empty)[root].get_or_init(empty)[middle].get_or_init(new)
    }

    fn words_in(leaf: &Leaf, unit: u64) -> Option<&[AtomicU64]> {
        let place = unit as usize % LEVEL;
        leaf.entries.get()?.get(place * WORDS..(place + 1) * WORDS)
    }

    /// Remembers that a block started there.
    pub(super) fn remember(&self, unit: u64) {
        self.make_leaf(unit).remember(unit);
    }

    /// Notes a block.
    #[cold]
    pub(super) fn insert(&self, unit: u64, entry: &Entry) -> bool {
        let leaf = self.make_leaf(unit);
        leaf.entries.get_or_init(|| bytemuck::zeroed_slice_box(LEVEL * WORDS));
        leaf.remember(unit);
        let Some(words) = Self::words_in(leaf, unit) else { return false };
        words[ID].store(entry.block.id().to_bits(), Ordering::Relaxed);
        words[SIZE].store(entry.block.size(), Ordering::Relaxed);
        words[STREAM].store(entry.stream.handle(), Ordering::Relaxed);
        let identity = entry.stream.identity() << IDENTITY_SHIFT;
        words[META].store(LIVING | u64::from(entry.owner) << OWNER_SHIFT | identity, Ordering::Release);
        true
    }

    fn read(unit: u64, words: &[AtomicU64], meta: u64) -> Entry {
        let [id, size, handle] = [ID, SIZE, STREAM].map(|word| words[word].load(Ordering::Relaxed));
        Entry {
            block: Block::from_parts(Address::new(unit << UNIT_SHIFT), size, BlockId::from_bits(id)),
            owner: (meta >> OWNER_SHIFT) as Owner,
            stream: Stream::with_identity(handle, meta >> IDENTITY_SHIFT),
            shared: meta & SHARED != 0,
        }
    }

    /// The words of a living block and what they say, or else why there is none.
    fn living(&self, unit: u64) -> Result<(&[AtomicU64], u64), Absent> {
        let leaf = self.leaf(unit).ok_or(Absent::Unknown)?;
        if let Some(words) = Self::words_in(leaf, unit) {
            let meta = words[META].load(Ordering::Acquire);
            if meta & LIVING != 0 {
                return Ok((words, meta));
            }
        }
        Err(if leaf.has_seen(unit) { Absent::Freed } else { Absent::Unknown })
    }

    pub(super) fn find(&self, unit: u64) -> Result<Entry, Absent> {
        self.living(unit).map(|(words, meta)| Self::read(unit, words, meta))
    }

    /// Takes a block out, if `accept` likes it, or says what `accept` has against it; or else why there is none.
    #[cold]
    pub(super) fn take<E>(
        &self,
        unit: u64,
        accept: &impl Fn(&Entry) -> Result<(), E>,
    ) -> Result<Result<Entry, E>, Absent> {
        loop {
            let (words, meta) = self.living(unit)?;
            if let Err(refusal) = accept(&Self::read(unit, words, meta)) {
                return Ok(Err(refusal));
            }
            if words[META].compare_exchange_weak(meta, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // The entry is ours alone until the block goes back to its allocator: what it holds now is the block's.
                return Ok(Ok(Self::read(unit, words, meta)));
            }
        }
    }

    pub(super) fn mark_shared(&self, unit: u64) -> bool {
        let mark = |meta: u64| (meta & LIVING != 0).then_some(meta | SHARED);
        self.living(unit)
            .is_ok_and(|(words, _)| words[META].fetch_update(Ordering::AcqRel, Ordering::Acquire, mark).is_ok())
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(Entry)) {
        let Some(root) = self.root.get() else { return };
        for (high, middle) in root.iter().enumerate().filter_map(|(place, level)| Some((place, level.get()?))) {
            for (low, leaf) in middle.iter().enumerate().filter_map(|(place, leaf)| Some((place, leaf.get()?))) {
                let Some(entries) = leaf.entries.get() else { continue };
                for (place, words) in entries.chunks_exact(WORDS).enumerate() {
                    let meta = words[META].load(Ordering::Acquire);
                    if meta & LIVING != 0 {
                        visit(Self::read((high << (2 * LEVEL_BITS) | low << LEVEL_BITS | place) as u64, words, meta));
                    }
                }
            }
        }
    }
}

impl Leaf {
    fn bit(&self, unit: u64) -> Option<(&AtomicU64, u64)> {
        let place = unit as usize % LEVEL;
        Some((self.seen.get(place / 64)?, 1 << (place % 64)))
    }

    fn remember(&self, unit: u64) {
        if let Some((word, bit)) = self.bit(unit)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    fn has_seen(&self, unit: u64) -> bool {
        self.bit(unit).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }
}
