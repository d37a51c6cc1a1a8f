//! The synthetic workloads: one block again and again, a churning set of blocks, the same on several threads.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet};
use thiserror::Error;

/// A workload that an allocator could not carry.
#[derive(Debug, Error)]
pub enum WorkloadError {
    /// An allocation failed.
    #[error(transparent)]
    Allocate(#[from] AllocError),
    /// A release was refused.
    #[error(transparent)]
    Release(#[from] ReleaseError),
}

/// Random numbers, the same on every machine (xorshift64*, Vigna 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed, which may not be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next_u64() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// A number from `low` to `high` whose logarithm is distributed evenly.
    pub fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let unit = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let (from, to) = ((low as f64).log2(), (high as f64).log2());
        ((from + (to - from) * unit).exp2() as u64).clamp(low, high)
    }
}

/// Releases a block of a workload.
///
/// # Errors
/// The refusal.
#[inline]
pub fn release<A: DeviceAllocator + ?Sized>(allocator: &A, block: Block, stream: Stream) -> Result<(), ReleaseError> {
    // SAFETY: workloads release each of their blocks once, and submit no work.
    unsafe { allocator.release(block, stream, StreamSet::EMPTY) }
}

/// Allocates and releases one block, `units` times.
///
/// # Errors
/// What the allocator reports.
#[inline]
pub fn pairs<A: DeviceAllocator + ?Sized>(allocator: &A, layout: Layout, units: u64) -> Result<(), WorkloadError> {
    for _ in 0..units {
        let block = allocator.allocate(std::hint::black_box(layout), Stream::DEFAULT)?;
        release(allocator, std::hint::black_box(block), Stream::DEFAULT)?;
    }
    Ok(())
}

/// A set of living blocks, one of which is released and replaced in each step. Sizes and order are drawn beforehand,
/// so that all allocators get the same.
#[derive(Clone, Debug)]
pub struct Churn {
    /// The sizes of the blocks at the beginning, in bytes.
    pub initial: Vec<u64>,
    /// In each step: which block is replaced, and the size of the new one in bytes.
    pub steps: Vec<(u32, u64)>,
}

impl Churn {
    /// `live` blocks from `low` to `high` bytes and `steps` steps.
    pub fn new(seed: u64, live: u32, steps: usize, low: u64, high: u64) -> Self {
        let mut random = Random::new(seed);
        let initial = (0..live).map(|_| random.log_uniform(low, high)).collect();
        let steps = (0..steps).map(|_| (random.below(live), random.log_uniform(low, high))).collect();
        Self { initial, steps }
    }

    /// 2,000 living blocks of 512 B to 16 MiB.
    pub fn large() -> Self {
        Self::new(1, 2000, 100_000, 512, 16 << 20)
    }

    /// What one thread does: 200 living blocks of 512 B to 1 MiB.
    pub fn for_thread(number: u64) -> Self {
        Self::new(number + 1, 200, 50_000, 512, 1 << 20)
    }

    /// Bytes that may live at one time, for limits.
    pub fn most_bytes(&self) -> u64 {
        let largest = self.initial.iter().chain(self.steps.iter().map(|step| &step.1)).max().copied().unwrap_or(0);
        largest.saturating_mul(self.initial.len() as u64)
    }
}

/// A churn in progress on an allocator. Its blocks are released when it is dropped.
#[derive(Debug)]
pub struct Churning<'a, A: DeviceAllocator + ?Sized> {
    allocator: &'a A,
    stream: Stream,
    blocks: Vec<Block>,
    layouts: Vec<(u32, Layout)>,
    next: usize,
}

impl<'a, A: DeviceAllocator + ?Sized> Churning<'a, A> {
    /// Allocates the blocks that live at the beginning.
    ///
    /// # Errors
    /// What the allocator reports.
    pub fn start(allocator: &'a A, stream: Stream, churn: &Churn) -> Result<Self, WorkloadError> {
        let layouts = churn.steps.iter().map(|&(at, bytes)| Ok((at, Layout::bytes(bytes)?)));
        let layouts = layouts.collect::<Result<_, AllocError>>()?;
        let mut churning =
            Self { allocator, stream, blocks: Vec::with_capacity(churn.initial.len()), layouts, next: 0 };
        for &bytes in &churn.initial {
            let layout = Layout::bytes(bytes).map_err(AllocError::from)?;
            churning.blocks.push(allocator.allocate(layout, stream)?);
        }
        Ok(churning)
    }

    /// Does `units` steps, starting over when the sequence is at its end.
    ///
    /// # Errors
    /// What the allocator reports.
    #[inline]
    pub fn steps(&mut self, units: u64) -> Result<(), WorkloadError> {
        for _ in 0..units {
            let (at, layout) = self.layouts[self.next];
            self.next = if self.next + 1 == self.layouts.len() { 0 } else { self.next + 1 };
            let block = &mut self.blocks[at as usize];
            // If one of the two fails the workload is at its end: a block that is lost then does no harm.
            release(self.allocator, *block, self.stream)?;
            *block = self.allocator.allocate(layout, self.stream)?;
        }
        Ok(())
    }
}

impl<A: DeviceAllocator + ?Sized> Drop for Churning<'_, A> {
    fn drop(&mut self) {
        for &block in &self.blocks {
            // After a failure one block is stale; a refusal has nobody left to be told.
            let _ = release(self.allocator, block, self.stream);
        }
    }
}

/// Which streams the threads of a workload use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamChoice {
    /// Each its own.
    Own,
    /// All the default stream.
    Shared,
}

/// Churns on several threads, `units` steps on each; the time is that from a common start to the end of the last.
///
/// # Errors
/// What the allocator reports to any of the threads.
pub fn churn_on_threads<A: DeviceAllocator + ?Sized>(
    allocator: &A,
    threads: u32,
    streams: StreamChoice,
    units: u64,
) -> Result<Duration, WorkloadError> {
    let ready = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let started: Vec<_> = (1..=u64::from(threads))
            .map(|number| {
                let ready = &ready;
                scope.spawn(move || {
                    let stream = match streams {
                        StreamChoice::Own => Stream::from_raw(number),
                        StreamChoice::Shared => Stream::DEFAULT,
                    };
                    let warm = Churning::start(allocator, stream, &Churn::for_thread(number));
                    let warm = warm.and_then(|mut churning| churning.steps(units / 10).map(|()| churning));
                    // Even a thread that failed comes here, so that the others don't wait for ever.
                    ready.wait();
                    let start = Instant::now();
                    let done = warm.and_then(|mut churning| churning.steps(units).map(|()| churning));
                    let end = Instant::now();
                    // Nobody gives its blocks back while others are measured.
                    ready.wait();
                    done.map(|_| (start, end))
                })
            })
            .collect();
        let mut span: Option<(Instant, Instant)> = None;
        for thread in started {
            let (start, end) = match thread.join() {
                Ok(times) => times?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            span = Some(span.map_or((start, end), |(first, last)| (first.min(start), last.max(end))));
        }
        Ok(span.map_or(Duration::ZERO, |(first, last)| last - first))
    })
}

/// Units in which offsets are placed by the `offset-allocator` crate, in bytes.
const OFFSET_UNIT: u64 = 256;

/// The same churn through the `offset-allocator` crate, which places offsets and has no memory, streams or books.
pub struct OffsetChurning {
    allocator: offset_allocator::Allocator<u32>,
    blocks: Vec<offset_allocator::Allocation<u32>>,
    sizes: Vec<(u32, u32)>,
    next: usize,
}

impl std::fmt::Debug for OffsetChurning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OffsetChurning").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

impl OffsetChurning {
    /// Allocates the blocks that live at the beginning; `None` if they don't fit in 32 bits of units.
    pub fn start(churn: &Churn) -> Option<Self> {
        let units = |bytes: u64| u32::try_from(bytes.div_ceil(OFFSET_UNIT)).ok();
        let room = units(churn.most_bytes())?;
        let mut allocator = offset_allocator::Allocator::with_max_allocs(room, 4 * churn.initial.len() as u32);
        let blocks = churn.initial.iter().map(|&bytes| allocator.allocate(units(bytes)?)).collect::<Option<_>>()?;
        let sizes = churn.steps.iter().map(|&(at, bytes)| Some((at, units(bytes)?))).collect::<Option<_>>()?;
        Some(Self { allocator, blocks, sizes, next: 0 })
    }

    /// Does `units` steps; false if one of them did not fit.
    #[inline]
    pub fn steps(&mut self, units: u64) -> bool {
        for _ in 0..units {
            let (at, size) = self.sizes[self.next];
            self.next = if self.next + 1 == self.sizes.len() { 0 } else { self.next + 1 };
            let block = &mut self.blocks[at as usize];
            self.allocator.free(*block);
            match self.allocator.allocate(size) {
                Some(new) => *block = new,
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocators::{Heap, OriginalPool};

    #[test]
    fn sizes_are_within_their_bounds_and_even_in_their_logarithm() {
        let mut random = Random::new(7);
        let sizes: Vec<u64> = (0..10_000).map(|_| random.log_uniform(512, 16 << 20)).collect();
        assert!(sizes.iter().all(|size| (512..=16 << 20).contains(size)));
        // 15 doublings lie between the bounds; the lower five hold a third of the sizes.
        let low = sizes.iter().filter(|&&size| size < 16 << 10).count();
        assert!((3000..3700).contains(&low), "{low}");
    }

    #[test]
    fn workloads_leave_nothing_behind() {
        let pool = OriginalPool::new();
        let churn = Churn::new(3, 50, 100, 512, 4096);
        let mut churning = Churning::start(&pool, Stream::DEFAULT, &churn).unwrap();
        churning.steps(250).unwrap();
        drop(churning);
        pairs(&pool, Layout::bytes(512).unwrap(), 10).unwrap();
        let segments = pool.statistics().provider_calls.create;
        // All blocks are idle again: as many of the largest size fit as there are segments that large.
        let mut again = Churning::start(&pool, Stream::DEFAULT, &churn).unwrap();
        again.steps(250).unwrap();
        assert_eq!(pool.statistics().provider_calls.create, segments);
    }

    #[test]
    fn threads_do_all_their_steps() {
        let heap = Heap::new(std::alloc::System);
        for streams in [StreamChoice::Own, StreamChoice::Shared] {
            assert!(churn_on_threads(&heap, 2, streams, 500).unwrap() > Duration::ZERO);
        }
    }

    #[test]
    fn the_offset_allocator_carries_the_same_sequence() {
        let mut churning = OffsetChurning::start(&Churn::large()).unwrap();
        assert!(churning.steps(150_000));
    }
}
