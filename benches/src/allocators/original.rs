//! A model of the list-scanning pool that this project comes from, as the baseline.
//!
//! The inference engine's device allocator keeps a list of small blocks (up to 1 MiB) and one of large blocks. A
//! small request takes the first idle block that is large enough; a large one takes the smallest idle block that is
//! large enough with less than 1 MiB to spare. Otherwise the device is asked for a new block, which joins the list.
//! A release looks the pointer up in the lists and marks the block idle. When more than 1 GiB of small blocks is
//! idle, all idle small blocks are given back; large ones never are. If the device has no memory, the request fails.
//!
//! The engine has no lock; the contract here asks for one, so there is one around the lists. Its cost, some 10 ns,
//! is part of what is measured.

use std::alloc::{GlobalAlloc, Layout as HeapLayout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{
    Address, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, ReleaseError, Statistics, Stream, StreamSet,
    Transfer,
};
use alloc_cpu::HostTransfer;

use super::heap::out_of_memory;

/// The original pool; the system's heap stands for the device.
#[derive(Debug)]
pub struct OriginalPool {
    lists: Mutex<Lists>,
    transfer: HostTransfer,
}

#[derive(Debug, Default)]
struct Lists {
    small: Vec<Segment>,
    large: Vec<Segment>,
    idle_small_bytes: u64,
    statistics: Statistics,
}

/// Memory from the device: one block, busy or idle.
#[derive(Debug)]
struct Segment {
    address: u64,
    bytes: u64,
    align: u64,
    busy: bool,
}

const SMALL: u64 = 1 << 20;
const SPARE: u64 = 1 << 20;
const MOST_IDLE_SMALL: u64 = 1 << 30;

impl OriginalPool {
    /// An empty pool.
    pub fn new() -> Self {
        Self { lists: Mutex::default(), transfer: HostTransfer::shared() }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for OriginalPool {
    fn default() -> Self {
        Self::new()
    }
}

impl Segment {
    fn create(layout: Layout) -> Option<Self> {
        let heap_layout = HeapLayout::from_size_align(layout.size().max(1) as usize, layout.align() as usize).ok()?;
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { System.alloc(heap_layout) };
        (!memory.is_null()).then(|| Self {
            address: memory.expose_provenance() as u64,
            bytes: layout.size(),
            align: layout.align(),
            busy: true,
        })
    }

    fn destroy(self) {
        let memory = std::ptr::with_exposed_provenance_mut(self.address as usize);
        let (bytes, align) = (self.bytes.max(1) as usize, self.align as usize);
        // SAFETY: address, size and alignment are those of the allocation in `create`, and the segment, which is
        // consumed here, owns the memory.
        unsafe { System.dealloc(memory, HeapLayout::from_size_align_unchecked(bytes, align)) };
    }

    fn serves(&self, layout: Layout) -> bool {
        !self.busy && self.bytes >= layout.size() && self.address & (layout.align() - 1) == 0
    }
}

impl Lists {
    fn find(&mut self, layout: Layout) -> Option<u64> {
        if layout.size() <= SMALL {
            let found = self.small.iter_mut().find(|segment| segment.serves(layout))?;
            found.busy = true;
            self.idle_small_bytes -= found.bytes;
            return Some(found.address);
        }
        let mut best: Option<&mut Segment> = None;
        for segment in &mut self.large {
            let fits = segment.serves(layout) && segment.bytes - layout.size() < SPARE;
            if fits && best.as_ref().is_none_or(|best| segment.bytes < best.bytes) {
                best = Some(segment);
            }
        }
        let found = best?;
        found.busy = true;
        Some(found.address)
    }

    fn create(&mut self, layout: Layout) -> Result<u64, AllocError> {
        let segment = Segment::create(layout).ok_or_else(|| out_of_memory(layout.size()))?;
        let address = segment.address;
        self.statistics.misses += 1;
        self.statistics.provider_calls.create += 1;
        self.statistics.reserved.add(segment.bytes);
        if layout.size() <= SMALL {
            self.small.push(segment)
        } else {
            self.large.push(segment)
        }
        Ok(address)
    }

    fn give_back_idle_small(&mut self) {
        for segment in self.small.extract_if(.., |segment| !segment.busy) {
            self.statistics.provider_calls.release += 1;
            self.statistics.reserved.sub(segment.bytes);
            segment.destroy();
        }
        self.idle_small_bytes = 0;
    }

    fn release(&mut self, address: u64) -> bool {
        if self.idle_small_bytes > MOST_IDLE_SMALL {
            self.give_back_idle_small();
        }
        if let Some(segment) = self.small.iter_mut().find(|segment| segment.address == address) {
            segment.busy = false;
            self.idle_small_bytes += segment.bytes;
            return true;
        }
        if let Some(segment) = self.large.iter_mut().find(|segment| segment.address == address) {
            segment.busy = false;
            return true;
        }
        false
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        self.small.drain(..).chain(self.large.drain(..)).for_each(Segment::destroy);
    }
}

// SAFETY: a block is a segment of the system's heap that is large enough, aligned and no other block's: it is busy until the
// release. Host work is done when it returns.
unsafe impl DeviceAllocator for OriginalPool {
    fn device(&self) -> Device {
        Device::CPU
    }

    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        let mut lists = self.lists();
        let address = match lists.find(layout) {
            Some(address) => address,
            None => lists.create(layout)?,
        };
        Ok(Block::from_parts(Address::new(address), layout.size(), BlockId::from_bits(0)))
    }

    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        if self.lists().release(block.address().get()) {
            Ok(())
        } else {
            Err(ReleaseError::Foreign { device: Device::CPU, block })
        }
    }

    fn statistics(&self) -> Statistics {
        self.lists().statistics
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocate(pool: &OriginalPool, bytes: u64) -> Block {
        pool.allocate(Layout::bytes(bytes).unwrap(), Stream::DEFAULT).unwrap()
    }

    fn release(pool: &OriginalPool, block: Block) {
        // SAFETY: nothing uses the block.
        unsafe { pool.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
    }

    #[test]
    fn small_requests_take_the_first_idle_block_that_is_large_enough() {
        let pool = OriginalPool::new();
        let blocks = [SMALL, 500, 4000].map(|bytes| allocate(&pool, bytes));
        blocks.iter().for_each(|&block| release(&pool, block));
        let first = allocate(&pool, 400);
        assert_eq!(first.address(), blocks[0].address(), "first fit, however much is wasted");
        assert_eq!(allocate(&pool, 600).address(), blocks[2].address());
        assert_eq!(pool.statistics().provider_calls.create, 3);
    }

    #[test]
    fn large_requests_take_the_best_fit_with_less_than_a_mebibyte_to_spare() {
        let pool = OriginalPool::new();
        let blocks = [4 * SMALL, 3 * SMALL + 10, 3 * SMALL + 5].map(|bytes| allocate(&pool, bytes));
        blocks.iter().for_each(|&block| release(&pool, block));
        assert_eq!(allocate(&pool, 3 * SMALL).address(), blocks[2].address());
        assert_eq!(allocate(&pool, 3 * SMALL + 1).address(), blocks[1].address());
        allocate(&pool, 3 * SMALL).size();
        assert_eq!(pool.statistics().provider_calls.create, 4, "a whole mebibyte to spare is too much");
    }

    #[test]
    fn idle_small_blocks_are_given_back_past_a_gibibyte_and_large_ones_never() {
        let pool = OriginalPool::new();
        let large = allocate(&pool, 2 * SMALL);
        let blocks: Vec<Block> = (0..1026).map(|_| allocate(&pool, SMALL)).collect();
        release(&pool, large);
        for &block in &blocks[..1025] {
            release(&pool, block);
        }
        assert_eq!(pool.statistics().provider_calls.release, 0, "looked at when the next release begins");
        release(&pool, blocks[1025]);
        assert_eq!(pool.statistics().provider_calls.release, 1025);
        assert_eq!(pool.statistics().reserved.current, 3 * SMALL);
    }

    #[test]
    fn what_is_not_in_the_lists_is_refused() {
        let pool = OriginalPool::new();
        let foreign = Block::from_parts(Address::new(64), 10, BlockId::from_bits(0));
        // SAFETY: nothing uses the block, which does not exist.
        let refused = unsafe { pool.release(foreign, Stream::DEFAULT, StreamSet::EMPTY) };
        assert!(matches!(refused, Err(ReleaseError::Foreign { block, .. }) if block == foreign));
    }

    #[test]
    fn without_memory_the_request_fails_at_once() {
        let pool = OriginalPool::new();
        let error = pool.allocate(Layout::bytes(1 << 60).unwrap(), Stream::DEFAULT).unwrap_err();
        assert!(error.is_out_of_memory());
        assert_eq!(pool.statistics().provider_calls.create, 0);
    }
}
