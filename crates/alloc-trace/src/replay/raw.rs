//! The calls that Rust can't check, in one place: releasing a block, and writing to it by its address.

use alloc_core::{Block, DeviceAllocator, ReleaseError, Stream, StreamSet, TransferError};

/// Releases a block that the replay got from this allocator. Callers in this crate call it once for each block.
#[inline]
pub(super) fn release<A: DeviceAllocator + ?Sized>(
    allocator: &A,
    block: Block,
    stream: Stream,
) -> Result<(), ReleaseError> {
    // SAFETY: a replay releases each block that it allocated once, since every block of a trace has one release at
    // most. It submits no work that uses the block, but for a touch by the processor, which is over, and what a
    // hook submits to the stream that the block was born on.
    unsafe { allocator.release(block, stream, StreamSet::EMPTY) }
}

/// What is done with a block once it is allocated.
pub(super) trait TouchBlock: Sync {
    fn touch(&self, block: Block, stream: Stream) -> Result<(), TransferError>;
}

pub(super) struct DontTouch;

impl TouchBlock for DontTouch {
    #[inline]
    fn touch(&self, _: Block, _: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}

/// Writes to every page. Chosen only for allocators whose device the processor can reach.
pub(super) struct TouchPages;

const PAGE: usize = 4096;

impl TouchBlock for TouchPages {
    fn touch(&self, block: Block, _: Stream) -> Result<(), TransferError> {
        // A block that the host can reach lies in its address space, so that neither conversion cuts anything off.
        let first = std::ptr::with_exposed_provenance_mut::<u8>(block.address().get() as usize);
        let bytes = block.size() as usize;
        for offset in (0..bytes).step_by(PAGE).chain(bytes.checked_sub(1)) {
            // SAFETY: the block is host memory of `bytes` bytes that was just handed to this replay, which nobody
            // else uses, and `offset` is less than `bytes`.
            unsafe { first.add(offset).write_volatile(offset as u8 | 1) };
        }
        Ok(())
    }
}

pub(super) struct TouchWith<'a>(pub(super) &'a (dyn Fn(Block, Stream) -> Result<(), TransferError> + Send + Sync));

impl TouchBlock for TouchWith<'_> {
    fn touch(&self, block: Block, stream: Stream) -> Result<(), TransferError> {
        (self.0)(block, stream)
    }
}
