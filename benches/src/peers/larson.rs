//! Arrays of blocks that go from thread to thread.
//!
//! After the bench of Larson and Krishnan ("Memory allocation for long-running server applications", 1998), which is
//! part of mimalloc-bench: a thread replaces random blocks of an array, hands the array to a new thread, and ends. So
//! most blocks are released by another thread than the one that allocated them, which may be gone by then. Here an
//! array has 1,000 blocks of 512 B to 1 MiB and a stream of its own, and a thread does 20,000 operations.

use std::thread;

use alloc_core::{DeviceAllocator, Stream};

use super::lanes::{BATCH, Lane, Stop, measure};
use super::plan;
use super::schedule::{Measured, Schedule};
use crate::workload::{Churning, WorkloadError};

/// Operations that a thread does before it hands its array on, a multiple of [`BATCH`] to the nearest.
const OPERATIONS_OF_A_THREAD: u64 = 20_000;

/// Runs it with as many arrays, each on a thread at a time, as there are streams.
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
        |number| Churning::start(allocator, streams[number as usize], &plan::of_array(number)),
        |array, lane, stop| {
            while !stop.is_set() {
                let done = thread::scope(|scope| scope.spawn(|| work_on(array, lane, stop)).join());
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        },
    )
}

fn work_on<A: DeviceAllocator>(array: &mut Churning<'_, A>, lane: &Lane, stop: &Stop) -> Result<(), WorkloadError> {
    for _ in 0..OPERATIONS_OF_A_THREAD.div_ceil(BATCH) {
        if stop.is_set() {
            break;
        }
        array.steps(BATCH)?;
        lane.add(BATCH);
    }
    Ok(())
}
