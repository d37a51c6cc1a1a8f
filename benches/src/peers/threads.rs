//! Several threads, each on its own stream with 200 living blocks, one of which is replaced in each operation.

use alloc_core::{DeviceAllocator, Stream};

use super::lanes::{BATCH, measure};
use super::plan;
use super::schedule::{Measured, Schedule};
use crate::workload::{Churning, WorkloadError};

/// Runs it on as many threads as there are streams.
///
/// # Errors
/// What the allocator reports to any of the threads.
pub fn run<A: DeviceAllocator>(
    allocator: &A,
    streams: &[Stream],
    schedule: Schedule,
) -> Result<Measured, WorkloadError> {
    measure(
        schedule,
        streams.len() as u32,
        |number| Churning::start(allocator, streams[number as usize], &plan::of_thread(number)),
        |churning, lane, stop| {
            while !stop.is_set() {
                churning.steps(BATCH)?;
                lane.add(BATCH);
            }
            Ok(())
        },
    )
}
