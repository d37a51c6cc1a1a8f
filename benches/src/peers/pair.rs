//! One block of one size, allocated and released again and again.

use std::hint::black_box;

use alloc_core::{AllocError, DeviceAllocator, Layout, Stream};

use super::schedule::{Measured, Schedule};
use crate::workload::{WorkloadError, release};

/// Runs it with blocks of so many bytes.
///
/// # Errors
/// What the allocator reports.
pub fn run<A: DeviceAllocator>(
    allocator: &A,
    stream: Stream,
    bytes: u64,
    schedule: Schedule,
) -> Result<Measured, WorkloadError> {
    schedule.measure(|units| {
        for _ in 0..units {
            // As a program has it: the size comes from somewhere, and the block goes from hand to hand in registers.
            let layout = Layout::bytes(black_box(bytes)).map_err(AllocError::from)?;
            let block = allocator.allocate(layout, stream)?;
            release(allocator, block, stream)?;
        }
        Ok(())
    })
}
