//! An allocator over memory that does not exist.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    Address, AddressRange, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, OutOfMemory, Place,
    ReleaseError, Statistics, Stream, StreamSet, Transfer, TransferError,
};

/// Keeps the books of a device that need not be there: hands out addresses with no memory behind them.
///
/// Run the allocations of a program over it to learn whether they fit a device that you don't have, and test code
/// that calls allocators. Its device is the [simulated](Device::simulated) one of the one that it is made for, so that
/// nobody takes its addresses for memory. It places blocks first fit in units of 256 bytes and looks through all holes to do so: it
/// is exact, not fast. Stale and foreign blocks are refused. Nothing copies or fills its memory.
///
/// ```
/// use alloc_core::{AllocError, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, StreamSet};
///
/// let device = SimulatedAllocator::new(Device::cuda(0), 1 << 30);
/// let block = device.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// assert_eq!(device.statistics().in_use.current, 1024);
/// let too_much = device.allocate(Layout::bytes(1 << 30)?, Stream::DEFAULT);
/// assert_eq!(device.device(), Device::cuda(0).simulated());
/// assert!(matches!(too_much, Err(AllocError::OutOfMemory(figures)) if figures.in_use == 1024));
/// // SAFETY: nothing uses the block, and it is released once.
/// unsafe { device.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Debug)]
pub struct SimulatedAllocator {
    device: Device,
    capacity: u64,
    books: Mutex<Books>,
}

const UNIT: u64 = 256;
/// Not zero, so that an address never looks like a null pointer.
const BASE: u64 = 1 << 40;

#[derive(Debug)]
struct Books {
    holes: BTreeMap<u64, u64>,
    living: HashMap<u64, Living>,
    next_id: u64,
    next_empty: u64,
    statistics: Statistics,
}

#[derive(Debug)]
struct Living {
    block: Block,
    footprint: u64,
}

impl SimulatedAllocator {
    /// An allocator that stands for `device`, with `capacity` bytes, rounded down to 256. The addresses start at 2^40.
    pub fn new(device: Device, capacity: u64) -> Self {
        Self::in_range(device, AddressRange { start: Address::new(BASE), bytes: capacity })
    }

    /// An allocator that stands for `device` and hands out the addresses of `range`, with its start rounded up and its
    /// end rounded down to 256. Blocks of zero bytes take theirs from beyond it.
    pub fn in_range(device: Device, range: AddressRange) -> Self {
        let end = range.start.get().saturating_add(range.bytes).min(i64::MAX as u64) / UNIT * UNIT;
        let start = range.start.get().checked_next_multiple_of(UNIT).unwrap_or(end).min(end);
        let capacity = end - start;
        let books = Books {
            holes: if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(start, capacity)]) },
            living: HashMap::new(),
            next_id: 0,
            next_empty: end,
            statistics: Statistics::default(),
        };
        Self { device: device.simulated(), capacity, books: Mutex::new(books) }
    }

    /// All bytes of the simulated device.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Blocks of zero bytes take their addresses from beyond the capacity, so they cost nothing.
    fn place_empty(&mut self, align: u64) -> Option<u64> {
        let at = self.next_empty.checked_next_multiple_of(align)?;
        self.next_empty = at.checked_add(UNIT)?;
        Some(at)
    }

    fn place(&mut self, footprint: u64, align: u64) -> Option<u64> {
        let (start, bytes, at) = self.holes.iter().find_map(|(&start, &bytes)| {
            let at = start.checked_next_multiple_of(align)?;
            (at.checked_add(footprint)? <= start + bytes).then_some((start, bytes, at))
        })?;
        self.holes.remove(&start);
        if at > start {
            self.holes.insert(start, at - start);
        }
        let rest = start + bytes - (at + footprint);
        if rest > 0 {
            self.holes.insert(at + footprint, rest);
        }
        Some(at)
    }

    fn free(&mut self, mut start: u64, mut bytes: u64) {
        if let Some(after) = self.holes.remove(&(start + bytes)) {
            bytes += after;
        }
        if let Some((&before, &length)) = self.holes.range(..start).next_back()
            && before + length == start
        {
            start = before;
            bytes += length;
        }
        self.holes.insert(start, bytes);
    }
}

// SAFETY: the device is simulated, whatever device the caller named.
unsafe impl DeviceAllocator for SimulatedAllocator {
    fn device(&self) -> Device {
        self.device
    }

    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        if layout.size() > self.capacity {
            return Err(AllocError::TooLarge { device: self.device, requested: layout.size(), maximum: self.capacity });
        }
        let mut books = self.books();
        let footprint = layout.size().next_multiple_of(UNIT);
        let align = layout.align().max(UNIT);
        let placed = if footprint == 0 { books.place_empty(align) } else { books.place(footprint, align) };
        let Some(address) = placed else {
            books.statistics.misses += 1;
            return Err(OutOfMemory {
                device: self.device,
                requested: layout.size(),
                in_use: books.statistics.in_use.current,
                reserved: self.capacity,
                largest_free: books.holes.values().copied().max().unwrap_or(0),
                parked: 0,
                limit: None,
                device_free: Some(books.holes.values().sum()),
                device_total: Some(self.capacity),
            }
            .into());
        };
        let id = books.next_id;
        books.next_id += 1;
        let block = Block::from_parts(Address::new(address), layout.size(), BlockId::from_bits(id));
        books.living.insert(id, Living { block, footprint });
        books.statistics.requested.add(layout.size());
        books.statistics.in_use.add(footprint);
        Ok(block)
    }

    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        let mut books = self.books();
        let id = block.id().to_bits();
        let known = books.living.get(&id).map(|living| living.block == block);
        if known != Some(true) {
            books.statistics.rejected_releases += 1;
            let device = self.device;
            let stale = known.is_none() && id < books.next_id;
            return Err(if stale {
                ReleaseError::Stale { device, block }
            } else {
                ReleaseError::Foreign { device, block }
            });
        }
        if let Some(Living { footprint, .. }) = books.living.remove(&id) {
            if footprint > 0 {
                books.free(block.address().get(), footprint);
            }
            books.statistics.requested.sub(block.size());
            books.statistics.in_use.sub(footprint);
        }
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        let books = self.books();
        Statistics {
            reserved: crate::Gauge { current: self.capacity, peak: self.capacity, total: self.capacity, count: 1 },
            largest_free: books.holes.values().copied().max().unwrap_or(0),
            ..books.statistics
        }
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &NoTransfer
    }
}

/// Refuses: there is nothing to copy.
#[derive(Debug)]
struct NoTransfer;

// SAFETY: it copies nothing, and says so; no work is ever in flight, so none is waited for; it shares no stream.
unsafe impl Transfer for NoTransfer {
    fn can_copy(&self, _from: Device, _to: Device) -> bool {
        false
    }

    unsafe fn copy(&self, from: Place, to: Place, _bytes: u64, _stream: Stream) -> Result<(), TransferError> {
        Err(TransferError::Unsupported { from: from.device, to: to.device })
    }

    unsafe fn fill(&self, to: Place, _bytes: u64, _value: u8, _stream: Stream) -> Result<(), TransferError> {
        Err(TransferError::Unsupported { from: to.device, to: to.device })
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::CPU.simulated();

    fn release(allocator: &SimulatedAllocator, block: Block) -> Result<(), ReleaseError> {
        // SAFETY: no memory is behind the block, so nothing uses it.
        unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
    }

    #[test]
    fn holes_close_and_the_whole_capacity_comes_back() {
        let allocator = SimulatedAllocator::new(Device::CPU, 4096);
        let layout = Layout::bytes(1024).unwrap();
        let blocks: Vec<Block> = (0..4).map(|_| allocator.allocate(layout, Stream::DEFAULT).unwrap()).collect();
        assert!(allocator.allocate(Layout::bytes(1).unwrap(), Stream::DEFAULT).is_err());
        let empty = allocator.allocate(Layout::bytes(0).unwrap(), Stream::DEFAULT).unwrap();
        for i in [1, 3, 0, 2] {
            release(&allocator, blocks[i]).unwrap();
        }
        assert_eq!(allocator.statistics().largest_free, 4096);
        let all = allocator.allocate(Layout::bytes(4096).unwrap(), Stream::DEFAULT).unwrap();
        assert_ne!(all.address(), empty.address());
        release(&allocator, empty).unwrap();
        release(&allocator, all).unwrap();
        assert_eq!(allocator.statistics().requested.current, 0);
    }

    #[test]
    fn alignment_leaves_its_gap_free() {
        let allocator = SimulatedAllocator::new(Device::CPU, 1 << 20);
        let first = allocator.allocate(Layout::bytes(1).unwrap(), Stream::DEFAULT).unwrap();
        let aligned = allocator.allocate(Layout::new(1, 1 << 16).unwrap(), Stream::DEFAULT).unwrap();
        let gap = allocator.allocate(Layout::bytes(1).unwrap(), Stream::DEFAULT).unwrap();
        assert!(aligned.address().is_aligned_to(1 << 16));
        assert!(first.address() < gap.address() && gap.address() < aligned.address());
    }

    #[test]
    fn stale_and_foreign_blocks_are_refused_with_their_data() {
        let allocator = SimulatedAllocator::new(Device::CPU, 4096);
        let block = allocator.allocate(Layout::bytes(8).unwrap(), Stream::DEFAULT).unwrap();
        let altered = Block::from_parts(block.address(), 9, block.id());
        assert_eq!(release(&allocator, altered), Err(ReleaseError::Foreign { device: CPU, block: altered }));
        release(&allocator, block).unwrap();
        assert_eq!(release(&allocator, block), Err(ReleaseError::Stale { device: CPU, block }));
        let foreign = Block::from_parts(block.address(), 8, BlockId::from_bits(77));
        assert_eq!(release(&allocator, foreign), Err(ReleaseError::Foreign { device: CPU, block: foreign }));
        assert_eq!(allocator.statistics().rejected_releases, 3);
    }
}
