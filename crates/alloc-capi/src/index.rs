//! From an address to the block that starts there, in constant time and without a lock.
//!
//! A table of three levels over 57 bits of address space, in units of 512 bytes: what pools place their blocks in. Its
//! leaves are zeroed memory that the system supplies page by page as it is touched: a block costs 32 bytes, and up to
//! one page where no other block is near. Leaves stay for the life of the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{Address, Block, BlockId, Stream};

const UNIT_SHIFT: u32 = 9;
const LEVEL_BITS: u32 = 16;
const LEVEL: usize = 1 << LEVEL_BITS;

/// Words of an entry: id, size, handle of the stream, and the rest in one.
const WORDS: usize = 4;
const ID: usize = 0;
const SIZE: usize = 1;
const STREAM: usize = 2;
const META: usize = 3;

/// A block starts here.
const LIVING: u64 = 1;
/// A block started here once.
const SEEN: u64 = 2;
/// Other streams were recorded for the block.
const SHARED: u64 = 4;
const OWNER_SHIFT: u32 = 16;
const IDENTITY_SHIFT: u32 = 32;

/// Who handed a block out: a number that [`crate::memory`] gives meaning to.
pub(crate) type Owner = u16;

/// What the index knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) block: Block,
    pub(crate) owner: Owner,
    /// The stream that it was allocated for.
    pub(crate) stream: Stream,
    /// Whether other streams were recorded.
    pub(crate) shared: bool,
}

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    Unknown,
    Freed,
}

type Leaf = Box<[AtomicU64]>;
type Level<T> = Box<[OnceLock<T>]>;

/// The table.
pub(crate) struct Index {
    root: OnceLock<Level<Level<Leaf>>>,
}

/// The index of this process: addresses of hosts and devices are in one space.
pub(crate) static INDEX: Index = Index { root: OnceLock::new() };

fn empty<T>() -> Level<T> {
    (0..LEVEL).map(|_| OnceLock::new()).collect()
}

/// The places of an address in root, middle and leaf; `None` if no block of a pool can start there.
fn places(address: u64) -> Option<[usize; 3]> {
    if !address.is_multiple_of(1 << UNIT_SHIFT) || address >> (UNIT_SHIFT + 3 * LEVEL_BITS) != 0 {
        return None;
    }
    let unit = (address >> UNIT_SHIFT) as usize;
    Some([unit >> (2 * LEVEL_BITS), (unit >> LEVEL_BITS) % LEVEL, unit % LEVEL])
}

impl Index {
    fn words(&self, address: u64) -> Option<&[AtomicU64]> {
        let [root, middle, unit] = places(address)?;
        self.root.get()?[root].get()?[middle].get()?.get(unit * WORDS..(unit + 1) * WORDS)
    }

    /// Notes a block. `false`, with nothing done, for an address that the table can't hold.
    pub(crate) fn insert(&self, block: Block, owner: Owner, stream: Stream) -> bool {
        let Some([root, middle, unit]) = places(block.address().get()) else { return false };
        let leaf = self.root.get_or_init(empty)[root].get_or_init(empty)[middle]
            .get_or_init(|| bytemuck::zeroed_slice_box(LEVEL * WORDS));
        let Some(words) = leaf.get(unit * WORDS..(unit + 1) * WORDS) else { return false };
        // Nobody else writes here: the address is this block's, and the entry of the one before was taken.
        words[ID].store(block.id().to_bits(), Ordering::Relaxed);
        words[SIZE].store(block.size(), Ordering::Relaxed);
        words[STREAM].store(stream.handle(), Ordering::Relaxed);
        let identity = stream.identity() << IDENTITY_SHIFT;
        words[META].store(LIVING | SEEN | u64::from(owner) << OWNER_SHIFT | identity, Ordering::Release);
        true
    }

    fn read(address: u64, words: &[AtomicU64], meta: u64) -> Entry {
        let [id, size, handle] = [ID, SIZE, STREAM].map(|word| words[word].load(Ordering::Relaxed));
        Entry {
            block: Block::from_parts(Address::new(address), size, BlockId::from_bits(id)),
            owner: (meta >> OWNER_SHIFT) as Owner,
            stream: Stream::with_identity(handle, meta >> IDENTITY_SHIFT),
            shared: meta & SHARED != 0,
        }
    }

    /// What starts at an address.
    pub(crate) fn find(&self, address: u64) -> Result<Entry, Absent> {
        let words = self.words(address).ok_or(Absent::Unknown)?;
        let meta = words[META].load(Ordering::Acquire);
        if meta & LIVING == 0 {
            return Err(if meta & SEEN == 0 { Absent::Unknown } else { Absent::Freed });
        }
        Ok(Self::read(address, words, meta))
    }

    /// Takes the block at an address out, if `accept` likes it. Of several calls for one block exactly one gets it.
    pub(crate) fn take<E: From<Absent>>(
        &self,
        address: u64,
        accept: impl Fn(&Entry) -> Result<(), E>,
    ) -> Result<Entry, E> {
        let words = self.words(address).ok_or(Absent::Unknown)?;
        let mut meta = words[META].load(Ordering::Acquire);
        loop {
            if meta & LIVING == 0 {
                return Err(if meta & SEEN == 0 { Absent::Unknown } else { Absent::Freed }.into());
            }
            accept(&Self::read(address, words, meta))?;
            match words[META].compare_exchange_weak(meta, SEEN, Ordering::AcqRel, Ordering::Acquire) {
                // The entry is ours alone until the block goes back to its allocator: what it holds now is the block's.
                Ok(_) => return Ok(Self::read(address, words, meta)),
                Err(now) => meta = now,
            }
        }
    }

    /// Notes that other streams use the block; `false` if there is none.
    pub(crate) fn mark_shared(&self, address: u64) -> bool {
        let Some(words) = self.words(address) else { return false };
        let mark = |meta: u64| (meta & LIVING != 0).then_some(meta | SHARED);
        words[META].fetch_update(Ordering::AcqRel, Ordering::Acquire, mark).is_ok()
    }

    /// Visits every living block, in the order of addresses. Blocks that come and go meanwhile may be missed.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Entry)) {
        let Some(root) = self.root.get() else { return };
        for (high, middle) in root.iter().enumerate().filter_map(|(place, level)| Some((place, level.get()?))) {
            for (low, leaf) in middle.iter().enumerate().filter_map(|(place, leaf)| Some((place, leaf.get()?))) {
                for (unit, words) in leaf.chunks_exact(WORDS).enumerate() {
                    let meta = words[META].load(Ordering::Acquire);
                    if meta & LIVING != 0 {
                        let number = (high << (2 * LEVEL_BITS) | low << LEVEL_BITS | unit) as u64;
                        visit(Self::read(number << UNIT_SHIFT, words, meta));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: u64, id: u64) -> Block {
        Block::from_parts(Address::new(address), 700, BlockId::from_bits(id))
    }

    fn accept(_: &Entry) -> Result<(), Absent> {
        Ok(())
    }

    #[test]
    fn a_block_is_found_until_it_is_taken_once() {
        let index = Index { root: OnceLock::new() };
        let (address, stream) = (0x7f12_3456_7a00, Stream::with_identity(9, 77));
        assert_eq!(index.find(address), Err(Absent::Unknown));
        assert!(index.insert(block(address, 0), 300, stream));
        let entry = index.find(address).unwrap();
        assert_eq!((entry.block, entry.owner, entry.stream), (block(address, 0), 300, stream));
        assert!(!entry.shared && index.mark_shared(address) && index.find(address).unwrap().shared);
        assert_eq!(index.find(address + 512), Err(Absent::Unknown), "inside a block nothing starts");
        assert_eq!(index.find(address + 1), Err(Absent::Unknown));
        assert!(index.take(address, |_| Err(Absent::Unknown)).is_err(), "what is not accepted stays");
        assert_eq!(index.take(address, accept).unwrap().block, block(address, 0));
        assert_eq!(index.take(address, accept), Err(Absent::Freed));
        assert_eq!(index.find(address), Err(Absent::Freed));
        assert!(!index.mark_shared(address));
    }

    #[test]
    fn addresses_beyond_the_table_are_refused() {
        let index = Index { root: OnceLock::new() };
        assert!(!index.insert(block(1 << 57, 1), 0, Stream::DEFAULT));
        assert!(!index.insert(block(513, 1), 0, Stream::DEFAULT));
        assert!(index.insert(block((1 << 57) - 512, 1), 0, Stream::DEFAULT));
        assert_eq!(index.find(u64::MAX), Err(Absent::Unknown));
    }

    #[test]
    fn of_many_takers_one_gets_the_block() {
        let index = Index { root: OnceLock::new() };
        for round in 0..200 {
            assert!(index.insert(block(4096, round), 1, Stream::DEFAULT));
            let takers = || index.take(4096, accept).is_ok();
            let got = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(takers)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).filter(|got| *got).count()
            });
            assert_eq!(got, 1);
        }
    }

    #[test]
    fn all_living_blocks_are_visited_in_order() {
        let index = Index { root: OnceLock::new() };
        for address in [0x7f00_0000_0000, 0x1000, 0x200_0000] {
            assert!(index.insert(block(address, address), 0, Stream::DEFAULT));
        }
        let mut seen = Vec::new();
        index.for_each(|entry| seen.push(entry.block.address().get()));
        assert_eq!(seen, [0x1000, 0x200_0000, 0x7f00_0000_0000]);
    }
}
