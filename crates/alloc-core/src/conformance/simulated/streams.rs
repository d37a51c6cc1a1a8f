//! Streams as queues of work that a test completes, with the partial order that events give them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::Stream;

use super::books::Extent;

/// Whether work changes what it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// By stream, the number of the last work that something comes after: a vector clock.
type Clock = BTreeMap<Stream, u64>;

/// A point in the work of a stream of a [`SimulatedProvider`](super::SimulatedProvider).
#[derive(Debug)]
pub struct SimulatedEvent {
    stream: Stream,
    after: Clock,
    captured: bool,
    _alive: Arc<()>,
}

impl SimulatedEvent {
    /// The stream it was recorded on.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn is_captured(&self) -> bool {
        self.captured
    }
}

/// Something submitted to a stream that touches memory.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) extents: Vec<Extent>,
    access: Access,
    number: u64,
    after: Clock,
}

#[derive(Debug, Default)]
struct Queue {
    submitted: u64,
    completed: u64,
    pending: VecDeque<Work>,
    /// What work submitted from now on comes after.
    after: Clock,
    capturing: bool,
    graph: Vec<Work>,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    queues: BTreeMap<Stream, Queue>,
    captured: BTreeSet<Stream>,
    events: Arc<()>,
}

impl Streams {
    pub(super) fn live_events(&self) -> usize {
        Arc::strong_count(&self.events) - 1
    }

    /// Queues work. The earlier work that it conflicts with, by stream, if nothing orders the two.
    pub(super) fn submit(
        &mut self,
        stream: Stream,
        address: u64,
        bytes: u64,
        extents: Vec<Extent>,
        access: Access,
    ) -> Option<Stream> {
        let queue = self.queues.entry(stream).or_default();
        let after = queue.after.clone();
        let conflict = self.conflict(stream, &after, &extents, access);
        let queue = self.queues.entry(stream).or_default();
        if queue.capturing {
            queue.graph.push(Work { address, bytes, extents, access, number: 0, after });
        } else {
            queue.submitted += 1;
            queue.pending.push_back(Work { address, bytes, extents, access, number: queue.submitted, after });
        }
        conflict
    }

    fn conflict(&self, stream: Stream, after: &Clock, extents: &[Extent], access: Access) -> Option<Stream> {
        let clashes = |work: &Work| {
            (access == Access::Write || work.access == Access::Write)
                && work.extents.iter().any(|theirs| extents.iter().any(|ours| ours.overlaps(theirs)))
        };
        self.queues.iter().filter(|(other, _)| **other != stream).find_map(|(other, queue)| {
            let ordered = after.get(other).copied().unwrap_or(0);
            let pending = queue.pending.iter().filter(|work| work.number > ordered);
            pending.chain(&queue.graph).any(clashes).then_some(*other)
        })
    }

    /// Work that is not complete, captured work included, with its stream.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = (Stream, &Work)> {
        self.queues
            .iter()
            .flat_map(|(stream, queue)| queue.pending.iter().chain(&queue.graph).map(move |work| (*stream, work)))
    }

    fn is_done(&self, clock: &Clock) -> bool {
        clock.iter().all(|(stream, number)| self.queues.get(stream).is_none_or(|queue| queue.completed >= *number))
    }

    /// An event after all that was submitted to `stream`, or `None` if that is complete.
    pub(super) fn record(&mut self, stream: Stream) -> Option<SimulatedEvent> {
        let queue = self.queues.entry(stream).or_default();
        let (captured, mut after) = (queue.capturing, queue.after.clone());
        after.insert(stream, queue.submitted);
        let idle = self.is_done(&after) && !captured;
        (!idle).then(|| SimulatedEvent { stream, after, captured, _alive: Arc::clone(&self.events) })
    }

    pub(super) fn is_complete(&self, event: &SimulatedEvent) -> bool {
        self.is_done(&event.after)
    }

    pub(super) fn make_wait(&mut self, stream: Stream, event: &SimulatedEvent) {
        let queue = self.queues.entry(stream).or_default();
        for (other, number) in event.after.iter().filter(|(other, _)| **other != stream) {
            let last = queue.after.entry(*other).or_default();
            *last = (*last).max(*number);
        }
    }

    /// Completes what the event stands for, and what that waits for.
    pub(super) fn synchronize(&mut self, event: &SimulatedEvent) {
        self.complete_clock(event.after.clone());
    }

    pub(super) fn complete_next(&mut self, stream: Stream) -> bool {
        let Some(first) = self.queues.get(&stream).and_then(|queue| queue.pending.front()) else { return false };
        if !self.is_done(&first.after) {
            return false;
        }
        self.pop(stream);
        true
    }

    pub(super) fn complete_all(&mut self, stream: Stream) {
        let Some(queue) = self.queues.get(&stream) else { return };
        let mut clock = queue.after.clone();
        clock.insert(stream, queue.submitted);
        self.complete_clock(clock);
    }

    pub(super) fn complete_everything(&mut self) {
        for queue in self.queues.values_mut() {
            queue.completed = queue.submitted;
            queue.pending.clear();
        }
    }

    /// Clocks are transitive: what the work of a clock waits for is in later entries of the same clock, or in clocks
    /// of work that is earlier still, so the worklist ends.
    fn complete_clock(&mut self, clock: Clock) {
        let mut todo: Vec<(Stream, u64)> = clock.into_iter().collect();
        while let Some((stream, number)) = todo.pop() {
            while let Some(work) = self.pop_up_to(stream, number) {
                todo.extend(work.after);
            }
        }
    }

    fn pop_up_to(&mut self, stream: Stream, number: u64) -> Option<Work> {
        let first = self.queues.get(&stream)?.pending.front()?.number;
        if first <= number { self.pop(stream) } else { None }
    }

    fn pop(&mut self, stream: Stream) -> Option<Work> {
        let queue = self.queues.get_mut(&stream)?;
        let work = queue.pending.pop_front()?;
        queue.completed = work.number;
        Some(work)
    }

    pub(super) fn pending(&self, stream: Stream) -> usize {
        self.queues.get(&stream).map_or(0, |queue| queue.pending.len())
    }

    pub(super) fn set_capturing(&mut self, stream: Stream, capturing: bool) {
        self.queues.entry(stream).or_default().capturing = capturing;
        if capturing {
            self.captured.insert(stream);
        } else {
            self.captured.remove(&stream);
        }
    }

    pub(super) fn is_capturing(&self, stream: Stream) -> bool {
        self.queues.get(&stream).is_some_and(|queue| queue.capturing)
    }

    pub(super) fn captured_stream(&self) -> Option<Stream> {
        self.captured.first().copied()
    }

    pub(super) fn drop_graph(&mut self, stream: Stream) {
        if let Some(queue) = self.queues.get_mut(&stream) {
            queue.graph.clear();
        }
    }
}
