//! Any Rust global allocator as a device allocator: nothing but the call, so that the peer is measured and not its
//! wrapper.

use std::alloc::{GlobalAlloc, Layout as HeapLayout};
use std::fmt;

use alloc_core::{
    Address, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, OutOfMemory, ReleaseError, Statistics,
    Stream, StreamSet, Transfer,
};
use alloc_cpu::HostTransfer;

/// A heap behind the contract of device allocators. It keeps no books at all: statistics are zero, and a stale or
/// foreign release is as undefined as with the heap itself.
pub struct Heap<G> {
    heap: G,
    transfer: HostTransfer,
}

impl<G: GlobalAlloc> Heap<G> {
    /// Over this heap.
    pub fn new(heap: G) -> Self {
        Self { heap, transfer: HostTransfer::shared() }
    }
}

impl<G> fmt::Debug for Heap<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("heap", &std::any::type_name::<G>()).finish_non_exhaustive()
    }
}

// SAFETY: a block is one allocation of the heap, of its size and alignment, until the release frees it; a heap is one by an
// unsafe trait too. Host work is done when it returns.
unsafe impl<G: GlobalAlloc + Send + Sync> DeviceAllocator for Heap<G> {
    fn device(&self) -> Device {
        Device::CPU
    }

    #[inline]
    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        // A heap's layout may not be of zero bytes.
        let (size, align) = (layout.size().max(1) as usize, layout.align() as usize);
        // SAFETY: a device layout has an alignment that is a power of two and a size that, rounded up to it, fits in
        // 63 bits, which is all that a heap's layout asks for on a machine of 64 bits.
        let heap_layout = unsafe { HeapLayout::from_size_align_unchecked(size, align) };
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { self.heap.alloc(heap_layout) };
        if memory.is_null() {
            return Err(out_of_memory(layout.size()));
        }
        // Release needs the alignment again, and nothing else: it is the id.
        let address = Address::new(memory.expose_provenance() as u64);
        Ok(Block::from_parts(address, layout.size(), BlockId::from_bits(layout.align())))
    }

    #[inline]
    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        let memory = std::ptr::with_exposed_provenance_mut(block.address().get() as usize);
        let (size, align) = (block.size().max(1) as usize, block.id().to_bits() as usize);
        // SAFETY: the block is one of this heap's, living, as the caller promises; so memory and layout are those of
        // its allocation.
        unsafe { self.heap.dealloc(memory, HeapLayout::from_size_align_unchecked(size, align)) };
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}

#[cold]
pub(super) fn out_of_memory(requested: u64) -> AllocError {
    OutOfMemory::new(Device::CPU, requested).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_zero_bytes_have_unique_addresses() {
        let heap = Heap::new(std::alloc::System);
        let layouts = [Layout::bytes(0), Layout::bytes(0), Layout::bytes(1000), Layout::new(5, 4096)];
        let blocks = layouts.map(|layout| heap.allocate(layout.unwrap(), Stream::DEFAULT).unwrap());
        assert_ne!(blocks[0].address(), blocks[1].address());
        assert!(blocks[2].address().is_aligned_to(256) && blocks[3].address().is_aligned_to(4096));
        for block in blocks {
            // SAFETY: nothing uses the block, and it is released once.
            unsafe { heap.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
        }
    }

    #[test]
    fn what_the_heap_cannot_give_is_an_error() {
        let heap = Heap::new(std::alloc::System);
        let layout = Layout::bytes(1 << 60).unwrap();
        assert!(matches!(
            heap.allocate(layout, Stream::DEFAULT),
            Err(AllocError::OutOfMemory(figures)) if figures.requested == 1 << 60
        ));
    }
}
