//! Random allocations and releases: what [`RandomAllocations`] has drawn, in passes.

use std::time::{Duration, Instant};

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, Stream};

use super::plan::RandomAllocations;
use crate::workload::{WorkloadError, release};

/// Does it once. Returns how long it took.
///
/// # Errors
/// What the allocator reports; all that lived was released.
pub fn pass<A: DeviceAllocator>(
    allocator: &A,
    stream: Stream,
    plan: &RandomAllocations,
) -> Result<Duration, WorkloadError> {
    let steps = plan.steps.iter().map(|step| match step.bytes {
        0 => Ok((step.slot, None)),
        bytes => Ok((step.slot, Some(Layout::bytes(u64::from(bytes))?))),
    });
    let steps: Vec<(u32, Option<Layout>)> = steps.collect::<Result<_, AllocError>>()?;
    let mut slots: Vec<Option<Block>> = vec![None; plan.slots as usize];
    let start = Instant::now();
    let outcome = walk(allocator, stream, &steps, &mut slots);
    let elapsed = start.elapsed();
    for block in slots.into_iter().flatten() {
        release(allocator, block, stream)?;
    }
    outcome.map(|()| elapsed)
}

#[inline(never)]
fn walk<A: DeviceAllocator>(
    allocator: &A,
    stream: Stream,
    steps: &[(u32, Option<Layout>)],
    slots: &mut [Option<Block>],
) -> Result<(), WorkloadError> {
    for &(slot, layout) in steps {
        let slot = &mut slots[slot as usize];
        match layout {
            Some(layout) => *slot = Some(allocator.allocate(layout, stream)?),
            None => {
                if let Some(block) = slot.take() {
                    release(allocator, block, stream)?;
                }
            }
        }
    }
    Ok(())
}
