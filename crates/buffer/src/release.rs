//! How memory goes back when its buffer is dropped: once, in stream order, and never by a panic.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use alloc_core::{DeviceAllocator, Stream, StreamSet};

use crate::ledger::Ledger;
use crate::raw::OwnedBlock;

/// What a release needs to know of its buffer.
#[derive(Debug)]
pub(crate) struct Releasing<'a> {
    pub(crate) allocator: &'a dyn DeviceAllocator,
    pub(crate) stream: Stream,
    pub(crate) ledger: &'a Ledger,
}

/// Gives a block back to its allocator, which is told of all streams that used it.
pub(crate) fn release_block(block: OwnedBlock, releasing: &Releasing<'_>) {
    let Releasing { allocator, stream, ledger } = releasing;
    let bytes = block.block().size();
    if ledger.is_unfinished() {
        return report_leak(*allocator, bytes, &"a copy of it was never seen to finish");
    }
    without_panic(*allocator, bytes, || {
        let released = if ledger.is_alone() {
            block.release(*allocator, *stream, StreamSet::EMPTY)
        } else {
            block.release(*allocator, *stream, &ledger.uses())
        };
        if let Err(error) = released {
            tracing::error!(device = %allocator.device(), bytes, %error, "a block could not be released");
        }
    });
}

/// Runs what lets memory go. A panic of the allocator or of a deleter is reported and goes no further: a drop that
/// panics while another panic unwinds would end the process.
pub(crate) fn without_panic(allocator: &dyn DeviceAllocator, bytes: u64, release: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(release)) {
        // Dropping the payload runs foreign code that could panic in its turn.
        mem::forget(payload);
        tracing::error!(device = %allocator.device(), bytes, "the release of a buffer's memory panicked");
    }
}

/// Reports memory that is kept for ever, since its use can't be known to be over.
pub(crate) fn report_leak(allocator: &dyn DeviceAllocator, bytes: u64, cause: &dyn std::fmt::Display) {
    tracing::error!(device = %allocator.device(), bytes, %cause, "a buffer's memory is leaked");
}
