//! The table of living blocks: one slot each, found by index, with a generation that tells its blocks apart.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use alloc_core::{Address, Block, BlockId};

/// Chunk `k` has `FIRST << k` slots, so slots never move and the table has no limit below 2^32.
const FIRST: u64 = 1 << 10;
const CHUNKS: usize = 23;

/// All slots of one allocator.
#[derive(Debug)]
pub(crate) struct SlotTable {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// The generation that unused slots have: even, and another one for every allocator, so that the ids of one are
    /// hardly ever those of another.
    first_generation: u32,
}

/// What is known of one block. A generation is odd while a block lives in the slot and even while none does; it only
/// ever goes up.
#[derive(Debug)]
struct Slot {
    generation: AtomicU32,
    align_shift: AtomicU8,
    address: AtomicU64,
    size: AtomicU64,
}

/// A block that was taken out of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) slot: u32,
    pub(crate) align: u64,
    /// Whether the slot may be used again; its generations may be used up.
    pub(crate) reusable: bool,
}

/// Why a block was not taken out of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotThere {
    Foreign,
    Stale,
}

impl SlotTable {
    pub(crate) fn new(salt: u32) -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], first_generation: salt & !1 }
    }

    /// Makes sure that a slot exists; false if the heap has no memory for it.
    pub(crate) fn prepare(&self, slot: u32) -> bool {
        let (chunk, _) = locate(slot);
        let Some(cell) = self.chunks.get(chunk) else { return false };
        if cell.get().is_some() {
            return true;
        }
        let count = (FIRST << chunk) as usize;
        let mut slots = Vec::new();
        if slots.try_reserve_exact(count).is_err() {
            return false;
        }
        slots.resize_with(count, || Slot {
            generation: AtomicU32::new(self.first_generation),
            align_shift: AtomicU8::new(0),
            address: AtomicU64::new(0),
            size: AtomicU64::new(0),
        });
        // Another thread may have been first: then this chunk is dropped.
        let _ = cell.set(slots.into_boxed_slice());
        true
    }

    /// Enters a block into a prepared slot that the caller alone holds and that no block lives in.
    pub(crate) fn insert(&self, slot: u32, address: u64, size: u64, align: u64) -> Option<Block> {
        let entry = self.slot(slot)?;
        let generation = entry.generation.load(Ordering::Relaxed).wrapping_add(1);
        entry.address.store(address, Ordering::Relaxed);
        entry.size.store(size, Ordering::Relaxed);
        entry.align_shift.store(align.trailing_zeros() as u8, Ordering::Relaxed);
        // Released, so that a thread that sees this generation sees the block's parts.
        entry.generation.store(generation, Ordering::Release);
        let id = u64::from(slot) << 32 | u64::from(generation);
        Some(Block::from_parts(Address::new(address), size, BlockId::from_bits(id)))
    }

    /// Takes a block out. Of several threads that try, one succeeds.
    pub(crate) fn remove(&self, block: &Block) -> Result<Removed, NotThere> {
        let id = block.id().to_bits();
        let (slot, generation) = ((id >> 32) as u32, id as u32);
        let entry = self.slot(slot).ok_or(NotThere::Foreign)?;
        let current = entry.generation.load(Ordering::Acquire);
        if current != generation {
            return Err(self.judge(generation, current));
        }
        let parts = (entry.address.load(Ordering::Relaxed), entry.size.load(Ordering::Relaxed));
        let align = 1 << entry.align_shift.load(Ordering::Relaxed);
        if generation & 1 == 0 || parts != (block.address().get(), block.size()) {
            return Err(NotThere::Foreign);
        }
        let after = generation.wrapping_add(1);
        // The parts read above are this generation's: had the slot been given to another block meanwhile, its
        // generation would have gone up and the exchange would fail.
        match entry.generation.compare_exchange(generation, after, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(Removed { slot, align, reusable: after != self.first_generation }),
            Err(current) => Err(self.judge(generation, current)),
        }
    }

    /// A generation that the slot has had belongs to a block released before; any other was never given out.
    fn judge(&self, generation: u32, current: u32) -> NotThere {
        let age = |generation: u32| generation.wrapping_sub(self.first_generation);
        if generation & 1 == 1 && age(generation) < age(current) { NotThere::Stale } else { NotThere::Foreign }
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        let (chunk, index) = locate(slot);
        self.chunks.get(chunk)?.get()?.get(index)
    }
}

fn locate(slot: u32) -> (usize, usize) {
    let position = u64::from(slot) + FIRST;
    let chunk = position.ilog2() - FIRST.ilog2();
    (chunk as usize, (position - (FIRST << chunk)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_one_place() {
        assert_eq!((locate(0), locate(1023), locate(1024)), ((0, 0), (0, 1023), (1, 0)));
        assert_eq!((locate(3071), locate(3072)), ((1, 2047), (2, 0)));
        let (chunk, index) = locate(u32::MAX);
        assert!(chunk < CHUNKS && index < (FIRST << chunk) as usize);
    }

    #[test]
    fn a_block_is_removed_once_and_only_as_it_was() {
        let table = SlotTable::new(12_345);
        assert!(table.insert(5, 4096, 10, 256).is_none(), "the slot is not prepared");
        assert!(table.prepare(5));
        let block = table.insert(5, 4096, 10, 256).unwrap();
        for altered in [
            Block::from_parts(Address::new(4097), 10, block.id()),
            Block::from_parts(block.address(), 11, block.id()),
            Block::from_parts(block.address(), 10, BlockId::from_bits(block.id().to_bits() + 2)),
            Block::from_parts(block.address(), 10, BlockId::from_bits(block.id().to_bits() - 2)),
            Block::from_parts(block.address(), 10, BlockId::from_bits(block.id().to_bits() - 1)),
            Block::from_parts(block.address(), 10, BlockId::from_bits(9 << 40)),
        ] {
            assert_eq!(table.remove(&altered), Err(NotThere::Foreign), "{altered:?}");
        }
        assert_eq!(table.remove(&block), Ok(Removed { slot: 5, align: 256, reusable: true }));
        assert_eq!(table.remove(&block), Err(NotThere::Stale));
        let second = table.insert(5, 4096, 10, 256).unwrap();
        assert_ne!(second.id(), block.id());
        assert_eq!(table.remove(&block), Err(NotThere::Stale));
        assert!(table.remove(&second).is_ok());
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_retired() {
        let table = SlotTable::new(0);
        assert!(table.prepare(0));
        table.slot(0).unwrap().generation.store(u32::MAX - 1, Ordering::Relaxed);
        let last = table.insert(0, 64, 1, 1).unwrap();
        assert_eq!(table.remove(&last).map(|removed| removed.reusable), Ok(false));
    }
}
