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
    let layout = Layout::bytes(bytes).map_err(AllocError::from)?;
    schedule.measure(|units| {
        for _ in 0..units {
            let block = allocator.allocate(black_box(layout), stream)?;
            release(allocator, black_box(block), stream)?;
        }
        Ok(())
    })
}
