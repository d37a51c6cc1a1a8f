//! Threads that allocate, and threads that release whatever they get.
//!
//! After the bench of Lever and Boreham ("malloc() performance in a multithreaded Linux environment", 2000), which is
//! part of mimalloc-bench as xmalloc-test: half of the threads allocate batches and put them into one queue, the other
//! half takes batches out and releases them. Here a batch is 64 blocks of 512 B to 1 MiB on the stream of its producer,
//! the queue is behind a lock, and there are four batches for each producer.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use alloc_core::{Block, DeviceAllocator, Stream};

use super::lanes::{Lane, Patience, Stop, measure};
use super::plan;
use super::producer_consumer::Sizes;
use super::ring::BATCH;
use super::schedule::{Measured, Schedule};
use crate::workload::{WorkloadError, release};

/// Batches for each producer.
const BATCHES_OF_A_PRODUCER: usize = 4;

/// Runs it with one producer and one consumer for each stream.
///
/// # Errors
/// What the allocator reports to any of the threads.
pub fn run<A: DeviceAllocator>(
    allocator: &A,
    streams: &[Stream],
    schedule: Schedule,
) -> Result<Measured, WorkloadError> {
    let queue = Queue::new(BATCHES_OF_A_PRODUCER * streams.len());
    let measured = measure(
        schedule,
        2 * streams.len() as u32,
        |number| match number % 2 {
            0 => {
                let sizes = Sizes::of(plan::of_xmalloc_producer(number / 2))?;
                Ok(Some((sizes, streams[number as usize / 2])))
            }
            _ => Ok(None),
        },
        |producer, lane, stop| match producer {
            Some((sizes, stream)) => produce(allocator, &queue, sizes, *stream, stop),
            None => consume(allocator, &queue, lane, stop),
        },
    );
    while let Some(mut batch) = queue.take(End::Full) {
        batch.release(allocator)?;
    }
    measured
}

fn produce<A: DeviceAllocator>(
    allocator: &A,
    queue: &Queue,
    sizes: &mut Sizes,
    stream: Stream,
    stop: &Stop,
) -> Result<(), WorkloadError> {
    while let Some(mut batch) = queue.wait_for(End::Empty, stop) {
        batch.stream = stream;
        while batch.blocks.len() < BATCH {
            match allocator.allocate(sizes.next(), stream) {
                Ok(block) => batch.blocks.push(block),
                Err(error) => {
                    batch.release(allocator)?;
                    return Err(error.into());
                }
            }
        }
        queue.put(End::Full, batch);
    }
    Ok(())
}

fn consume<A: DeviceAllocator>(allocator: &A, queue: &Queue, lane: &Lane, stop: &Stop) -> Result<(), WorkloadError> {
    while let Some(mut batch) = queue.wait_for(End::Full, stop) {
        batch.release(allocator)?;
        lane.add(BATCH as u64);
        queue.put(End::Empty, batch);
    }
    Ok(())
}

#[derive(Debug)]
struct Batch {
    stream: Stream,
    blocks: Vec<Block>,
}

impl Batch {
    fn release<A: DeviceAllocator>(&mut self, allocator: &A) -> Result<(), WorkloadError> {
        for &block in &self.blocks {
            release(allocator, block, self.stream)?;
        }
        self.blocks.clear();
        Ok(())
    }
}

/// Which of the two queues.
#[derive(Clone, Copy, Debug)]
enum End {
    Empty,
    Full,
}

/// Batches to be filled and batches to be released, each first in, first out.
#[derive(Debug)]
struct Queue {
    empty: Mutex<VecDeque<Batch>>,
    full: Mutex<VecDeque<Batch>>,
}

impl Queue {
    fn new(batches: usize) -> Self {
        let batch = || Batch { stream: Stream::DEFAULT, blocks: Vec::with_capacity(BATCH) };
        let empty = Mutex::new((0..batches).map(|_| batch()).collect());
        Self { empty, full: Mutex::new(VecDeque::with_capacity(batches)) }
    }

    fn end(&self, end: End) -> std::sync::MutexGuard<'_, VecDeque<Batch>> {
        let queue = match end {
            End::Empty => &self.empty,
            End::Full => &self.full,
        };
        queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, end: End, batch: Batch) {
        self.end(end).push_back(batch);
    }

    fn take(&self, end: End) -> Option<Batch> {
        self.end(end).pop_front()
    }

    /// Waits for a batch; `None` if it is time to stop.
    fn wait_for(&self, end: End, stop: &Stop) -> Option<Batch> {
        let mut patience = Patience::default();
        while !stop.is_set() {
            if let Some(batch) = self.take(end) {
                return Some(batch);
            }
            patience.wait();
        }
        None
    }
}
