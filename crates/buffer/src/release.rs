//! How memory goes back when its buffer is dropped: once, in stream order, and never by a panic.

use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use alloc_core::{AllocatorHandle, DeviceAllocator, Stream, StreamSet};

use crate::ledger::Ledger;
use crate::raw::OwnedBlock;

/// What a release needs to know of its buffer.
#[derive(Debug)]
pub(crate) struct Releasing<'a> {
    pub(crate) allocator: &'a AllocatorHandle,
    pub(crate) stream: Stream,
    pub(crate) ledger: &'a Ledger,
}

/// Holds an allocator for a block that nobody releases at present. Dropped, it keeps the allocator alive for good: one
/// that goes takes all of its memory with it, also what work of streams that it was not told of still uses.
#[derive(Debug)]
pub struct KeptAllocator(ManuallyDrop<AllocatorHandle>);

impl KeptAllocator {
    pub(crate) fn into_inner(self) -> AllocatorHandle {
        ManuallyDrop::into_inner(self.0)
    }
}

impl From<AllocatorHandle> for KeptAllocator {
    fn from(allocator: AllocatorHandle) -> Self {
        Self(ManuallyDrop::new(allocator))
    }
}

impl Deref for KeptAllocator {
    type Target = AllocatorHandle;

    fn deref(&self) -> &AllocatorHandle {
        &self.0
    }
}

/// Gives a block back to its allocator, which is told of all streams that used it.
pub(crate) fn release_block(block: OwnedBlock, releasing: &Releasing<'_>) {
    let Releasing { allocator: handle, stream, ledger } = releasing;
    let (allocator, bytes): (&dyn DeviceAllocator, _) = (&***handle, block.block().size());
    let keep = || drop(KeptAllocator::from((*handle).clone()));
    if ledger.is_unfinished() {
        keep();
        return report_leak(allocator, bytes, &"a copy of it was never seen to finish");
    }
    let outcome = without_panic(allocator, bytes, || {
        let released = if ledger.is_alone() {
            block.release(allocator, *stream, StreamSet::EMPTY)
        } else {
            block.release(allocator, *stream, &ledger.uses())
        };
        if let Err(error) = released {
            tracing::error!(device = %allocator.device(), bytes, %error, "a block could not be released");
        }
    });
    if outcome.is_err() {
        // It may not have got as far as to note the streams.
        keep();
    }
}

/// A release that panicked, and was reported.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Runs what lets memory go. A panic of the allocator or of a deleter is reported and goes no further: a drop that
/// panics while another panic unwinds would end the process.
pub(crate) fn without_panic(
    allocator: &dyn DeviceAllocator,
    bytes: u64,
    release: impl FnOnce(),
) -> Result<(), Panicked> {
    catch_unwind(AssertUnwindSafe(release)).map_err(|payload| {
        // Dropping the payload runs foreign code that could panic in its turn.
        mem::forget(payload);
        tracing::error!(device = %allocator.device(), bytes, "the release of a buffer's memory panicked");
        Panicked
    })
}

/// Reports memory that is kept for ever, since its use can't be known to be over.
pub(crate) fn report_leak(allocator: &dyn DeviceAllocator, bytes: u64, cause: &dyn std::fmt::Display) {
    tracing::error!(device = %allocator.device(), bytes, %cause, "a buffer's memory is leaked");
}
