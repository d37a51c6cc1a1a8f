//! The shadow map: which blocks are alive, kept apart from the allocator under test.

use std::collections::{BTreeMap, HashMap};

use crate::{Block, BlockId};

use super::Breach;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Blocks of at least one byte, by address.
    sized: BTreeMap<u64, Block>,
    /// Blocks of no bytes: their addresses are unique, and may lie anywhere.
    empty: BTreeMap<u64, Block>,
    ids: HashMap<BlockId, Block>,
    bytes: u64,
}

impl Ledger {
    /// Bytes of the living blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn insert(&mut self, block: Block) -> Result<(), Breach> {
        let start = block.address().get();
        let Some(end) = start.checked_add(block.size()) else { return Err(Breach::Wraps { block }) };
        if let Some(other) = self.sized.get(&start).or_else(|| self.empty.get(&start)) {
            return Err(Breach::SharedAddress { block, other: *other });
        }
        if let Some(other) = self.ids.get(&block.id()) {
            return Err(Breach::SharedId { block, other: *other });
        }
        if block.size() == 0 {
            self.empty.insert(start, block);
        } else {
            // Living blocks don't overlap each other, so that the last one that starts before the end decides.
            if let Some((other_start, other)) = self.sized.range(..end).next_back()
                && other_start + other.size() > start
            {
                return Err(Breach::Overlap { block, other: *other });
            }
            self.sized.insert(start, block);
        }
        self.ids.insert(block.id(), block);
        self.bytes += block.size();
        Ok(())
    }

    pub(super) fn remove(&mut self, block: &Block) {
        let map = if block.size() == 0 { &mut self.empty } else { &mut self.sized };
        if map.remove(&block.address().get()).is_some() {
            self.ids.remove(&block.id());
            self.bytes -= block.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn block(address: u64, size: u64) -> Block {
        Block::from_parts(Address::new(address), size, BlockId::from_bits(address.wrapping_mul(1000) + size))
    }

    #[test]
    fn overlaps_are_found_from_every_side() {
        let mut ledger = Ledger::default();
        ledger.insert(block(100, 50)).unwrap();
        ledger.insert(block(200, 50)).unwrap();
        for (address, size) in [(90, 11), (149, 1), (120, 10), (90, 200), (150, 51), (249, 10), (10, 1000)] {
            assert!(matches!(ledger.insert(block(address, size)), Err(Breach::Overlap { .. })), "{address}, {size}");
        }
        assert!(matches!(ledger.insert(block(100, 1)), Err(Breach::SharedAddress { .. })));
        assert!(matches!(ledger.insert(block(u64::MAX - 1, 3)), Err(Breach::Wraps { .. })));
        let copied_id = Block::from_parts(Address::new(400), 1, block(100, 50).id());
        assert!(matches!(ledger.insert(copied_id), Err(Breach::SharedId { .. })));
        ledger.insert(block(150, 50)).unwrap();
        assert_eq!(ledger.bytes(), 150);
        ledger.remove(&block(150, 50));
        ledger.insert(block(160, 10)).unwrap();
        assert_eq!(ledger.bytes(), 110);
    }

    #[test]
    fn empty_blocks_lie_anywhere_but_have_their_own_address() {
        let mut ledger = Ledger::default();
        ledger.insert(block(100, 50)).unwrap();
        ledger.insert(block(120, 0)).unwrap();
        assert!(matches!(ledger.insert(block(120, 0)), Err(Breach::SharedAddress { .. })));
        assert!(matches!(ledger.insert(block(100, 0)), Err(Breach::SharedAddress { .. })));
        ledger.remove(&block(120, 0));
        ledger.insert(block(120, 0)).unwrap();
    }
}
