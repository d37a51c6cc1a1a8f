//! A replay on the calling thread.

use std::time::Instant;

use alloc_core::{Address, Block, BlockId, DeviceAllocator, Stream};

use super::plan::{Call, Failure, Plan};
use super::raw::{TouchBlock, release};
use super::report::PassReport;
use crate::{ReplayError, Trace};

pub(super) fn run<A: DeviceAllocator + ?Sized>(
    trace: &Trace,
    passes: u32,
    allocator: &A,
    streams: &[Stream],
    touch: &impl TouchBlock,
    mut on_pass: impl FnMut(&PassReport),
) -> Result<(), ReplayError> {
    let plan = Plan::new(trace)?;
    let nothing = Block::from_parts(Address::new(0), 0, BlockId::from_bits(0));
    let mut slots = vec![nothing; plan.slots];
    for pass in 1..=passes {
        let before = allocator.statistics();
        let start = Instant::now();
        let outcome = run_pass(&plan.calls, streams, &mut slots, allocator, touch);
        let elapsed = start.elapsed();
        if let Err((at, failure)) = outcome {
            let done = match failure {
                Failure::Allocate(_) => at,
                Failure::Release(_) | Failure::Touch(_) => at + 1,
            };
            let living = release_living(&plan.calls[..done], streams, &slots, allocator);
            let (call, operation) = (plan.calls[at], at.min(trace.operations().len()) as u32);
            return Err(failure.into_error(pass, operation, call, streams[call.stream()], living));
        }
        on_pass(&PassReport {
            pass,
            threads: 1,
            operations: plan.calls.len() as u64,
            allocations: trace.blocks().len() as u64,
            elapsed,
            peak_live: plan.peak_live,
            before,
            after: allocator.statistics(),
        });
    }
    Ok(())
}

/// The timed part: nothing here but the walk and the calls.
#[inline(never)]
fn run_pass<A: DeviceAllocator + ?Sized>(
    calls: &[Call],
    streams: &[Stream],
    slots: &mut [Block],
    allocator: &A,
    touch: &impl TouchBlock,
) -> Result<(), (usize, Failure)> {
    for (index, call) in calls.iter().enumerate() {
        let stream = streams[call.stream()];
        let slot = &mut slots[call.slot as usize];
        if call.is_release() {
            release(allocator, *slot, stream).map_err(|error| (index, Failure::Release(error)))?;
        } else {
            *slot = allocator.allocate(call.layout, stream).map_err(|error| (index, Failure::Allocate(error)))?;
            touch.touch(*slot, stream).map_err(|error| (index, Failure::Touch(error)))?;
        }
    }
    Ok(())
}

/// Releases what lives after these calls; returns how many blocks that were.
fn release_living<A: DeviceAllocator + ?Sized>(
    done: &[Call],
    streams: &[Stream],
    slots: &[Block],
    allocator: &A,
) -> u64 {
    let mut living = vec![None; slots.len()];
    for call in done {
        living[call.slot as usize] = (!call.is_release()).then_some(streams[call.stream()]);
    }
    let living = slots.iter().zip(living).filter_map(|(&block, stream)| stream.map(|stream| (block, stream)));
    let mut count = 0;
    for (block, stream) in living {
        count += 1;
        // The failure that ended the replay is the one to report; a block that is refused now is the allocator's.
        let _ = release(allocator, block, stream);
    }
    count
}
