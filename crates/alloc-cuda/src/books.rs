//! Which blocks of the driver's own allocators are in use.

use std::collections::BTreeSet;
use std::sync::Arc;

use alloc_core::{Address, AllocError, Block, BlockId, Device, ProviderError, ReleaseError, Statistics, Stream};

use crate::driver::Event;

/// What the driver aligns to at least.
pub(crate) const DRIVER_ALIGN: u64 = 256;

/// Blocks of no bytes get addresses from here on, where no device memory can be.
const EMPTY_BLOCKS: u64 = 1 << 63;

#[derive(Debug, Default)]
pub(crate) struct Books {
    slots: Vec<Slot>,
    free: Vec<u32>,
    empty_blocks: BTreeSet<u64>,
    pub(crate) statistics: Statistics,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    living: Option<Living>,
}

#[derive(Clone, Debug)]
pub(crate) struct Living {
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// What the driver gave: where it starts, and how much it is.
    pub(crate) base: u64,
    pub(crate) held: u64,
    pub(crate) birth: Birth,
}

/// Where a block may be in use without having been declared.
#[derive(Clone, Debug)]
pub(crate) enum Birth {
    Stream(Stream),
    /// The point that the stream had come to. It may be gone by now.
    Past(Arc<Event>),
    /// The stream may be gone, and why its work can't be known.
    Lost(ProviderError),
}

impl Birth {
    pub(crate) fn of(point: Result<Event, ProviderError>) -> Self {
        point.map_or_else(Self::Lost, |event| Self::Past(Arc::new(event)))
    }
}

impl Books {
    pub(crate) fn enter(&mut self, living: Living) -> Block {
        self.statistics.requested.add(living.size);
        self.statistics.in_use.add(living.held);
        let (address, size) = (living.address, living.size);
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 1, living: None });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.living = Some(living);
        let id = BlockId::from_bits(u64::from(slot.generation) << 32 | u64::from(index));
        Block::from_parts(Address::new(address), size, id)
    }

    pub(crate) fn leave(&mut self, device: Device, block: Block) -> Result<Living, ReleaseError> {
        let (generation, index) = ((block.id().to_bits() >> 32) as u32, block.id().to_bits() as u32);
        let Some(slot) = self.slots.get_mut(index as usize).filter(|slot| generation <= slot.generation) else {
            return Err(ReleaseError::Foreign { device, block });
        };
        if generation == 0 {
            return Err(ReleaseError::Foreign { device, block });
        }
        if generation < slot.generation {
            return Err(ReleaseError::Stale { device, block });
        }
        let matches = |living: &Living| living.address == block.address().get() && living.size == block.size();
        match slot.living.take_if(|living| matches(living)) {
            Some(living) => {
                slot.generation += 1;
                // A slot whose generations are used up is never used again, so no id comes twice.
                if slot.generation < u32::MAX {
                    self.free.push(index);
                }
                self.empty_blocks.remove(&living.address);
                self.statistics.requested.sub(living.size);
                self.statistics.in_use.sub(living.held);
                Ok(living)
            }
            None => Err(ReleaseError::Foreign { device, block }),
        }
    }

    /// A block of no bytes, at an address that no other living block has.
    pub(crate) fn enter_empty(&mut self, device: Device, align: u64, birth: Stream) -> Result<Block, AllocError> {
        let mut address = EMPTY_BLOCKS;
        while self.empty_blocks.contains(&address) {
            address = address.checked_add(align).ok_or(AllocError::TooLarge { device, requested: 0, maximum: 0 })?;
        }
        self.empty_blocks.insert(address);
        Ok(self.enter(Living { address, size: 0, base: address, held: 0, birth: Birth::Stream(birth) }))
    }

    /// Number of blocks in use.
    pub(crate) fn living(&self) -> usize {
        self.slots.iter().filter(|slot| slot.living.is_some()).count()
    }

    pub(crate) fn any_born_on(&self, stream: Stream) -> bool {
        self.slots.iter().filter_map(|slot| slot.living.as_ref()).any(|living| living.is_born_on(stream))
    }

    /// Says what has become of a stream that blocks were born on.
    pub(crate) fn replace_birth(&mut self, stream: Stream, birth: &Birth) {
        for living in self.slots.iter_mut().filter_map(|slot| slot.living.as_mut()) {
            if living.is_born_on(stream) {
                living.birth = birth.clone();
            }
        }
    }
}

impl Living {
    fn is_born_on(&self, stream: Stream) -> bool {
        matches!(self.birth, Birth::Stream(birth) if birth == stream)
    }
}
