//! Random allocations and releases: what [`RandomAllocations`] has drawn, in passes of limited time.

use std::time::{Duration, Instant};

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, Stream};

use super::plan::RandomAllocations;
use crate::workload::{WorkloadError, release};

/// A pass that takes longer is ended.
pub const LIMIT: Duration = Duration::from_secs(3);

/// Steps between two looks at the clock.
const BATCH: usize = 1024;

/// How far a pass came, and in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Allocations and releases.
    pub ops: u64,
    /// The time of those.
    pub elapsed: Duration,
    /// False if the limit of time ended it.
    pub complete: bool,
}

/// Does it once, unless it takes longer than `limit`.
///
/// # Errors
/// What the allocator reports; all that lived was released.
pub fn pass<A: DeviceAllocator>(
    allocator: &A,
    stream: Stream,
    plan: &RandomAllocations,
    limit: Duration,
) -> Result<Pass, WorkloadError> {
    let steps = plan.steps.iter().map(|step| match step.bytes {
        0 => Ok((step.slot, None)),
        bytes => Ok((step.slot, Some(Layout::bytes(u64::from(bytes))?))),
    });
    let steps: Vec<(u32, Option<Layout>)> = steps.collect::<Result<_, AllocError>>()?;
    let mut slots: Vec<Option<Block>> = vec![None; plan.slots as usize];
    let start = Instant::now();
    let (mut ops, mut outcome, mut elapsed) = (0, Ok(()), Duration::ZERO);
    for batch in steps.chunks(BATCH) {
        outcome = walk(allocator, stream, batch, &mut slots);
        ops += batch.len() as u64;
        elapsed = start.elapsed();
        if outcome.is_err() || elapsed > limit {
            break;
        }
    }
    for block in slots.into_iter().flatten() {
        release(allocator, block, stream)?;
    }
    outcome.map(|()| Pass { ops, elapsed, complete: ops == steps.len() as u64 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocators::OriginalPool;

    #[test]
    fn a_pass_ends_at_its_limit() {
        let (pool, plan) = (OriginalPool::new(), RandomAllocations::new(1, 2_000));
        let whole = pass(&pool, Stream::DEFAULT, &plan, LIMIT).unwrap();
        assert_eq!((whole.ops, whole.complete), (4_000, true));
        let cut = pass(&pool, Stream::DEFAULT, &plan, Duration::ZERO).unwrap();
        assert_eq!((cut.ops, cut.complete), (BATCH as u64, false));
    }
}
