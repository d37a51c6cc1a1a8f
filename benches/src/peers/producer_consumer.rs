//! One thread allocates and another releases.
//!
//! The two threads of a pair work on one stream. The producer allocates 64 blocks of 512 B to 1 MiB and hands them over
//! in one batch through a ring of 8 batches; the consumer releases them in the order of their allocation. An operation
//! is an allocation on one thread and the release on the other, counted by the consumer.
//!
//! What that is compared with is one thread that allocates the same sizes in the same batches and releases them itself:
//! through the same ring, so that as many blocks live as with two threads, or batch by batch.

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, Stream};

use super::lanes::{Lane, Stop, measure};
use super::plan;
use super::ring::{BATCH, Ring};
use super::schedule::{Measured, Schedule};
use crate::workload::{WorkloadError, release};

/// Which threads allocate and release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two threads for each stream: one allocates, the other releases.
    TwoThreads,
    /// One thread for each stream that does both; it releases the oldest batch once the ring is full.
    OneThreadThroughTheRing,
    /// One thread for each stream that does both; it releases a batch as soon as it is complete.
    OneThreadBatchByBatch,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::TwoThreads, Self::OneThreadThroughTheRing, Self::OneThreadBatchByBatch];

    /// How many threads work on a stream.
    pub fn threads(self) -> u32 {
        if self == Self::TwoThreads { 2 } else { 1 }
    }
}

/// Runs it on so many streams.
///
/// # Errors
/// What the allocator reports to any of the threads.
pub fn run<A: DeviceAllocator>(
    allocator: &A,
    streams: &[Stream],
    kind: Kind,
    schedule: Schedule,
) -> Result<Measured, WorkloadError> {
    let rings: Vec<Ring<Block>> = streams.iter().map(|_| Ring::default()).collect();
    let measured = measure(
        schedule,
        kind.threads() * streams.len() as u32,
        |number| {
            let pair = number / kind.threads();
            let (ring, stream) = (&rings[pair as usize], streams[pair as usize]);
            let side = Side { allocator, stream, ring, batch: Vec::with_capacity(BATCH) };
            match (kind, number % 2) {
                (Kind::TwoThreads, 1) => Ok((side, None)),
                _ => Ok((side, Some(Sizes::of(plan::of_producer(pair))?))),
            }
        },
        |(side, sizes), lane, stop| match (kind, sizes) {
            (Kind::TwoThreads, Some(sizes)) => side.produce(sizes, stop),
            (_, None) => side.consume(lane, stop),
            (Kind::OneThreadThroughTheRing, Some(sizes)) => side.go_round(sizes, lane, stop),
            (Kind::OneThreadBatchByBatch, Some(sizes)) => {
                while !stop.is_set() {
                    side.fill(sizes)?;
                    side.drain()?;
                    lane.add(BATCH as u64);
                }
                Ok(())
            }
        },
    );
    for (ring, &stream) in rings.iter().zip(streams) {
        let mut rest = Side { allocator, stream, ring, batch: Vec::new() };
        while ring.try_pop(&mut rest.batch) {
            rest.drain()?;
        }
    }
    measured
}

/// Sizes that are allocated one after the other, again and again.
#[derive(Debug)]
pub(super) struct Sizes {
    layouts: Vec<Layout>,
    next: usize,
}

impl Sizes {
    pub(super) fn of(sizes: Vec<u64>) -> Result<Self, WorkloadError> {
        let layouts = sizes.into_iter().map(Layout::bytes).collect::<Result<_, _>>().map_err(AllocError::from)?;
        Ok(Self { layouts, next: 0 })
    }

    #[inline]
    pub(super) fn next(&mut self) -> Layout {
        let layout = self.layouts[self.next];
        self.next = if self.next + 1 == self.layouts.len() { 0 } else { self.next + 1 };
        layout
    }
}

/// What a thread works with. The blocks of an incomplete batch are released when it is dropped.
struct Side<'a, A: DeviceAllocator> {
    allocator: &'a A,
    stream: Stream,
    ring: &'a Ring<Block>,
    batch: Vec<Block>,
}

impl<A: DeviceAllocator> Side<'_, A> {
    fn produce(&mut self, sizes: &mut Sizes, stop: &Stop) -> Result<(), WorkloadError> {
        while !stop.is_set() {
            self.fill(sizes)?;
            if !self.ring.push(&mut self.batch, stop) {
                break;
            }
        }
        Ok(())
    }

    fn consume(&mut self, lane: &Lane, stop: &Stop) -> Result<(), WorkloadError> {
        while !stop.is_set() && self.ring.pop(&mut self.batch, stop) {
            self.drain()?;
            lane.add(BATCH as u64);
        }
        Ok(())
    }

    fn go_round(&mut self, sizes: &mut Sizes, lane: &Lane, stop: &Stop) -> Result<(), WorkloadError> {
        let (allocator, stream, ring) = (self.allocator, self.stream, self.ring);
        let mut oldest = Side { allocator, stream, ring, batch: Vec::with_capacity(BATCH) };
        while !stop.is_set() {
            self.fill(sizes)?;
            if self.ring.try_push(&mut self.batch) {
                continue;
            }
            self.ring.try_pop(&mut oldest.batch);
            oldest.drain()?;
            lane.add(BATCH as u64);
            self.ring.try_push(&mut self.batch);
        }
        Ok(())
    }

    #[inline]
    fn fill(&mut self, sizes: &mut Sizes) -> Result<(), WorkloadError> {
        while self.batch.len() < BATCH {
            self.batch.push(self.allocator.allocate(sizes.next(), self.stream)?);
        }
        Ok(())
    }

    #[inline]
    fn drain(&mut self) -> Result<(), WorkloadError> {
        for &block in &self.batch {
            release(self.allocator, block, self.stream)?;
        }
        self.batch.clear();
        Ok(())
    }
}

impl<A: DeviceAllocator> Drop for Side<'_, A> {
    fn drop(&mut self) {
        // After a failure some are stale; a refusal has nobody left to be told.
        for &block in &self.batch {
            let _ = release(self.allocator, block, self.stream);
        }
    }
}
