//! Points that streams have come past, or will: an event for each, recorded when several streams had used what was
//! released, or when one wanted what another released last.
//!
//! Whether a stream is idle says nothing of one that always has work. An event says whether all that was released before it
//! is done with, and it is what another stream waits for that wants such memory sooner. One for each release would cost a
//! call each time; these are recorded where one is needed anyway.

use std::collections::VecDeque;

use alloc_core::{Gauge, MemoryProvider, ProviderError, Stream};

use crate::placement::heap::{SHARED_TAG, Sharers, TAGS, Tag, TagSet, each_of};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Inner;
use crate::streams::Tags;

/// A moment of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The latest release.
    pub(crate) stamp: u64,
    /// The bytes of all large blocks so far.
    pub(crate) allocated: u64,
}

/// What a stream was submitted before its arena's moment comes before the event.
#[derive(Debug)]
struct Mark<E> {
    moment: Moment,
    event: E,
}

/// A large block that was released while streams other than its own used it.
#[derive(Clone, Copy, Debug)]
struct Parked {
    arena: u32,
    node: u32,
    /// Those other streams.
    users: TagSet,
    stamp: u64,
    bytes: u64,
}

/// A stream's marks, the oldest first.
#[derive(Debug)]
struct Queue<E> {
    marks: VecDeque<Mark<E>>,
    /// How many were not passed when they were last asked.
    left: usize,
}

impl<E> Queue<E> {
    const fn new() -> Self {
        // As if none was passed: the first is asked first.
        Self { marks: VecDeque::new(), left: usize::MAX }
    }

    /// How many of the marks were passed. A device mostly lags by about as much as before, so those are asked first that the
    /// boundary lay between then, others further and further away, and then by halves.
    fn passed(&self, is_passed: impl Fn(&E) -> bool) -> usize {
        let (mut passed, mut not) = (0, self.marks.len());
        let (mut at, mut stride) = (not.saturating_sub(self.left.saturating_add(1)), 1);
        let (mut any_passed, mut any_not) = (false, false);
        while passed < not {
            let asked = at.clamp(passed, not - 1);
            if is_passed(&self.marks[asked].event) {
                (passed, any_passed) = (asked + 1, true);
            } else {
                (not, any_not) = (asked, true);
            }
            at = match (any_passed, any_not) {
                (true, true) => passed + (not - passed) / 2,
                (true, false) => asked.saturating_add(stride),
                _ => asked.saturating_sub(stride),
            };
            stride *= 2;
        }
        passed
    }
}

/// The marks of one arena.
#[derive(Debug)]
struct ArenaMarks<E> {
    /// By tag.
    queues: Vec<Queue<E>>,
    /// The tags of which there are any.
    pending: TagSet,
}

/// The marks of a pool.
#[derive(Debug)]
pub(crate) struct Marks<E> {
    arenas: Vec<ArenaMarks<E>>,
    parked: Vec<Parked>,
    /// How many such blocks there were.
    releases: u64,
    /// How many are parked that were not when bytes were counted last.
    uncounted: usize,
    /// Bytes that their own streams may not have yet.
    pub(crate) bytes: Gauge,
}

/// Of more marks of one stream than this the oldest but one goes: what has to be waited for is mostly of late.
const MOST: usize = 128;
/// Every how many releases of blocks that several streams used these are asked.
const LOOK_THROUGH_EVERY: u64 = 32;
/// To count all of them takes time for each. It is done when there is one more for so many, so that the peak is a little too high
/// where many wait, and exact where few do.
const PARKED_PER_COUNT: usize = 16;

impl<E> Marks<E> {
    pub(crate) fn new() -> Self {
        Self { arenas: Vec::new(), parked: Vec::new(), releases: 0, uncounted: 0, bytes: Gauge::default() }
    }

    /// The tags of which the arena has marks that are not known to be passed.
    pub(crate) fn pending(&self, arena: u32) -> TagSet {
        self.arenas.get(arena as usize).map_or(0, |arena| arena.pending)
    }

    /// The bytes of all large blocks of the arena when the oldest mark was made that is not known to be passed.
    pub(crate) fn oldest(&self, arena: u32) -> Option<u64> {
        let marks = self.arenas.get(arena as usize).filter(|marks| marks.pending != 0)?;
        each_of(marks.pending)
            .filter_map(|tag| Some(marks.queues[usize::from(tag)].marks.front()?.moment.allocated))
            .min()
    }

    /// Whether there is a mark behind that release, and those before it, of that stream.
    pub(crate) fn has_mark(&self, arena: u32, (tag, stamp): (Tag, u64)) -> bool {
        self.queue(arena, tag).and_then(VecDeque::back).is_some_and(|mark| mark.moment.stamp >= stamp)
    }

    fn queue(&self, arena: u32, tag: Tag) -> Option<&VecDeque<Mark<E>>> {
        Some(&self.arenas.get(arena as usize)?.queues.get(usize::from(tag))?.marks)
    }

    /// Adds a stream's latest mark; the event of one that goes for it.
    fn add(&mut self, arena: u32, tag: Tag, mark: Mark<E>) -> Option<E> {
        while self.arenas.len() <= arena as usize {
            self.arenas.push(ArenaMarks { queues: (0..TAGS).map(|_| Queue::new()).collect(), pending: 0 });
        }
        let marks = &mut self.arenas[arena as usize];
        marks.pending |= 1 << tag;
        let queue = &mut marks.queues[usize::from(tag)].marks;
        let replaced = if queue.len() >= MOST { queue.remove(1) } else { None };
        queue.push_back(mark);
        replaced.map(|mark| mark.event)
    }

    /// Takes all marks out, by arena and tag.
    fn take_all(&mut self) -> Vec<(u32, Tag, VecDeque<Mark<E>>)> {
        let mut taken = Vec::new();
        for (arena, marks) in self.arenas.iter_mut().enumerate() {
            for tag in each_of(std::mem::take(&mut marks.pending)) {
                taken.push((arena as u32, tag, std::mem::take(&mut marks.queues[usize::from(tag)].marks)));
            }
        }
        taken
    }

    /// Puts marks back before those that were added since.
    fn put_back(&mut self, arena: u32, tag: Tag, mut queue: VecDeque<Mark<E>>) {
        if let Some(marks) = self.arenas.get_mut(arena as usize).filter(|_| !queue.is_empty()) {
            let added = &mut marks.queues[usize::from(tag)].marks;
            queue.append(added);
            *added = queue;
            marks.pending |= 1 << tag;
        }
    }

    /// Takes the marks out that a stream has passed, as `is_passed` says of each event, which it does not say of one after it
    /// denied it of another; the last of them, and all events.
    fn take_passed(&mut self, arena: u32, tag: Tag, is_passed: impl Fn(&E) -> bool) -> (Option<u64>, Vec<E>) {
        let Some(marks) = self.arenas.get_mut(arena as usize) else { return (None, Vec::new()) };
        let queue = &mut marks.queues[usize::from(tag)];
        let passed = queue.passed(is_passed);
        queue.left = queue.marks.len() - passed;
        let last = passed.checked_sub(1).map(|index| queue.marks[index].moment.stamp);
        let events = queue.marks.drain(..passed).map(|mark| mark.event).collect();
        if queue.marks.is_empty() {
            marks.pending &= !(1 << tag);
        }
        (last, events)
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// The present moment of an arena.
    fn moment(&self, arena: u32) -> Moment {
        let state = self.arena(arena).map(|owner| owner.lock());
        state.map_or(Moment { stamp: 0, allocated: 0 }, |state| Moment {
            stamp: state.heap.now(),
            allocated: state.large.allocated().1,
        })
    }

    /// Finds out which marks of the arena were passed; whether any were.
    pub(crate) fn pass_marks(&self, table: &mut Tags<P::Event>, arena: u32) -> bool {
        let pending = table.marks.pending(arena);
        if pending == 0 || !self.may_ask_in(table) {
            return false;
        }
        let mut passed = Vec::new();
        for tag in each_of(pending) {
            let is_passed = |event: &P::Event| self.driver.is_complete(event).unwrap_or(false);
            let (last, events) = table.marks.take_passed(arena, tag, is_passed);
            events.into_iter().for_each(|event| self.driver.provider().recycle(event));
            passed.extend(last.map(|stamp| (tag, stamp)));
        }
        self.note_passed(table, arena, &passed);
        !passed.is_empty()
    }

    /// The same for all arenas.
    pub(crate) fn pass_all_marks(&self) -> bool {
        let mut table = self.lock_tags();
        let arenas = table.marks.arenas.len() as u32;
        (0..arenas).fold(false, |any, arena| any | self.pass_marks(&mut table, arena))
    }

    /// Waits until all marks are passed, but for those of which that can't be known; whether any were.
    pub(crate) fn wait_for_marks(&self) -> bool {
        let mut table = self.lock_tags();
        if !self.may_ask_in(&mut table) {
            return false;
        }
        let taken = table.marks.take_all();
        // Not under the lock: what is waited for may itself be waiting for a thread that needs it.
        drop(table);
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        for (arena, tag, queue) in taken {
            match queue.back().map(|mark| (mark.moment.stamp, self.driver.synchronize(&mark.event))) {
                Some((stamp, Ok(()))) => {
                    queue.into_iter().for_each(|mark| self.driver.provider().recycle(mark.event));
                    passed.push((arena, tag, stamp));
                }
                _ => failed.push((arena, tag, queue)),
            }
        }
        let mut table = self.lock_tags();
        failed.into_iter().for_each(|(arena, tag, queue)| table.marks.put_back(arena, tag, queue));
        for &(arena, tag, stamp) in &passed {
            self.note_passed(&mut table, arena, &[(tag, stamp)]);
        }
        !passed.is_empty()
    }

    fn note_passed(&self, table: &mut Tags<P::Event>, arena: u32, passed: &[(Tag, u64)]) {
        if let Some(owner) = self.arena(arena) {
            let mut state = owner.lock();
            for &(tag, stamp) in passed {
                state.heap.note_complete(1 << tag, stamp);
            }
        }
        if !passed.is_empty() {
            // All of them may be done with.
            table.marks.uncounted = table.marks.parked.len();
        }
    }

    /// Finds out how much of what several streams used is still to be waited for, and nobody's.
    pub(crate) fn count_parked(&self, table: &mut Tags<P::Event>) -> Gauge {
        let Marks { parked, bytes, uncounted, .. } = &mut table.marks;
        *uncounted = 0;
        parked.retain_mut(|block| {
            let owner = self.arena(block.arena);
            let units = owner.map_or(0, |owner| owner.lock().heap.parked_units(block.node, block.users, block.stamp));
            let left = block.bytes.min(u64::from(units) << UNIT_SHIFT);
            bytes.sub(block.bytes - left);
            block.bytes = left;
            left > 0
        });
        *bytes
    }

    fn mark(&self, table: &mut Tags<P::Event>, (arena, tag): (u32, Tag), moment: Moment, event: P::Event) {
        if let Some(owner) = self.arena(arena) {
            owner.lock().heap.note_mark(moment.stamp);
        }
        let replaced = table.marks.add(arena, tag, Mark { moment, event });
        replaced.into_iter().for_each(|event| self.driver.provider().recycle(event));
    }

    /// Makes free memory of a large block whose id has ended and which other streams than its home used: whoever comes
    /// after all of them may have it. `false`, with nothing done, if one of them can't be marked, or waited for by its tag.
    pub(crate) fn release_shared(
        &self,
        (arena, node): (u32, u32),
        bytes: u64,
        home: Tag,
        streams: impl Iterator<Item = Stream> + Clone,
    ) -> bool {
        if home == SHARED_TAG {
            return false;
        }
        let mut users = 0;
        let mut table = self.lock_tags();
        for stream in streams.clone() {
            let tag = match table.living_tag(stream) {
                Some(tag) => tag,
                None if table.retired.contains(stream) => return false,
                None => match self.tag_in(&mut table, stream) {
                    Ok(tag) => tag,
                    Err(_) => return false,
                },
            };
            if tag == home {
                continue;
            }
            if tag == SHARED_TAG || !matches!(self.driver.provider().is_capturing(stream), Ok(false)) {
                return false;
            }
            users |= 1 << tag;
        }
        let Some(owner) = self.arena(arena) else { return false };
        if users == 0 {
            owner.lock().heap.release(node);
            return true;
        }
        // The stamp comes before the events: what others release meanwhile is not taken to be behind them.
        let moment = {
            let mut state = owner.lock();
            Moment { stamp: state.heap.reserve_stamp(), allocated: state.large.allocated().1 }
        };
        let mut complete = 0;
        for stream in streams {
            let Some(tag) = table.living_tag(stream).filter(|tag| *tag != home) else { continue };
            match self.driver.record(stream) {
                Ok(Some(event)) => self.mark(&mut table, (arena, tag), moment, event),
                Ok(None) => complete |= 1 << tag,
                // The marks that were made say what is so, whatever becomes of the block.
                Err(_) => return false,
            }
        }
        let is_parked = {
            let heap = &mut owner.lock().heap;
            heap.release_shared(node, users | 1 << home, moment.stamp);
            heap.note_complete(complete, moment.stamp);
            heap.parked_units(node, users, moment.stamp) > 0
        };
        if is_parked {
            table.marks.uncounted += 1;
            if table.marks.uncounted.saturating_mul(PARKED_PER_COUNT) > table.marks.parked.len() {
                self.count_parked(&mut table);
            }
            table.marks.bytes.add(bytes);
            table.marks.parked.push(Parked { arena, node, users, stamp: moment.stamp, bytes });
        }
        table.marks.releases += 1;
        if table.marks.releases.is_multiple_of(LOOK_THROUGH_EVERY) {
            self.pass_marks(&mut table, arena);
        }
        true
    }

    /// The stream that an event for the tag can be recorded on.
    pub(crate) fn stream_to_mark(&self, table: &Tags<P::Event>, tag: Tag) -> Option<Stream> {
        let stream = table.only_stream_of(tag)?;
        matches!(self.driver.provider().is_capturing(stream), Ok(false)).then_some(stream)
    }

    /// Marks what other streams of which there are marks released after them: whoever wants it later need not wait for what they are
    /// submitted by then.
    pub(crate) fn mark_releases(&self, table: &mut Tags<P::Event>, arena: u32, own: Tag) {
        let Some(owner) = self.arena(arena) else { return };
        let unmarked = {
            let state = owner.lock();
            let is_unmarked = |tag: &Tag| {
                let latest = state.heap.latest_release(*tag);
                latest.is_some_and(|stamp| !table.marks.has_mark(arena, (*tag, stamp)))
            };
            each_of(table.marks.pending(arena) & !(1 << own)).filter(is_unmarked).fold(0, |set, tag| set | 1 << tag)
        };
        for tag in each_of(unmarked) {
            if let Some(stream) = self.stream_to_mark(table, tag) {
                let now = self.moment(arena);
                // What can't be marked is found out by whoever needs it.
                if let Ok(Some(event)) = self.driver.record(stream) {
                    self.mark(table, (arena, tag), now, event);
                }
            }
        }
    }

    /// Makes the stream of `tag` wait for what others were submitted before these releases of theirs in the arena; of those that share
    /// a tag for the `sharers`.
    pub(crate) fn order_after_releases(
        &self,
        table: &mut Tags<P::Event>,
        arena: u32,
        (releases, sharers): (&[(Tag, u64)], Option<&Sharers>),
        (tag, after): (Tag, Stream),
    ) -> Result<(), ProviderError> {
        for &(other, stamp) in releases {
            if let Some(sharers) = sharers.filter(|sharers| other == SHARED_TAG && sharers.are_named()) {
                // Which says nothing of what else is of that tag.
                self.order_after_sharers(table, sharers, after)?;
                continue;
            }
            let reached = self.wait_for_mark(table, (arena, other), stamp, after)?;
            if let Some(owner) = self.arena(arena).filter(|_| tag != SHARED_TAG) {
                owner.lock().heap.note_ordered(tag, 1 << other, reached);
            }
        }
        Ok(())
    }

    /// The stamp up to which `after` comes after the other stream then.
    fn wait_for_mark(
        &self,
        table: &mut Tags<P::Event>,
        (arena, tag): (u32, Tag),
        stamp: u64,
        after: Stream,
    ) -> Result<u64, ProviderError> {
        let marks = table.marks.queue(arena, tag);
        let first_behind = |marks: &VecDeque<Mark<_>>| marks.partition_point(|mark| mark.moment.stamp < stamp);
        if let Some(mark) = marks.and_then(|marks| marks.get(first_behind(marks))) {
            self.make_wait(after, &mark.event)?;
            return Ok(mark.moment.stamp);
        }
        let now = self.moment(arena);
        let Some(stream) = table.only_stream_of(tag) else {
            self.order_after_tag(table, tag, after)?;
            return Ok(now.stamp);
        };
        if let Some(event) = self.driver.record(stream)? {
            let waited = self.make_wait(after, &event);
            self.mark(table, (arena, tag), now, event);
            waited?;
        }
        Ok(now.stamp)
    }

    /// Gives all events back: the pool goes.
    pub(crate) fn forget_marks(&self) {
        let taken = self.lock_tags().marks.take_all();
        let marks = taken.into_iter().flat_map(|(.., queue)| queue);
        marks.for_each(|mark| self.driver.provider().recycle(mark.event));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn marks(count: u64) -> Marks<u64> {
        let mut marks = Marks::new();
        for number in 1..=count {
            let moment = Moment { stamp: 10 * number, allocated: 1000 * number };
            marks.add(0, 5, Mark { moment, event: number });
        }
        marks
    }

    #[test]
    fn of_many_marks_few_are_asked() {
        for (left, passed) in
            [0, 1, 2, 50, 99, 100, usize::MAX].into_iter().flat_map(|left| (0..=100).map(move |passed| (left, passed)))
        {
            let (mut marks, asked) = (marks(100), Cell::new(0));
            marks.arenas[0].queues[5].left = left;
            let ask = |event: &u64| {
                asked.set(asked.get() + 1);
                *event <= passed
            };
            let (last, events) = marks.take_passed(0, 5, ask);
            assert_eq!((last, events), ((passed > 0).then_some(10 * passed), (1..=passed).collect()));
            let most = match (100 - passed).abs_diff(left.min(100) as u64) {
                0 => 2,
                off => 4 + 2 * off.ilog2(),
            };
            assert!(asked.get() <= most, "{passed} after {left} were left: {}", asked.get());
            assert_eq!(marks.arenas[0].queues[5].left as u64, 100 - passed, "which the next questions begin with");
            assert_eq!(marks.pending(0), if passed == 100 { 0 } else { 1 << 5 });
            assert_eq!(marks.oldest(0), (passed < 100).then_some(1000 * (passed + 1)));
        }
    }

    #[test]
    fn of_too_many_the_oldest_and_the_latest_are_kept() {
        let mut marks = marks(MOST as u64);
        let moment = Moment { stamp: 9999, allocated: 0 };
        assert_eq!(marks.add(0, 5, Mark { moment, event: 9999 }), Some(2));
        assert_eq!((marks.oldest(0), marks.has_mark(0, (5, 9999))), (Some(1000), true));
        assert!(!marks.has_mark(0, (4, 9999)), "of the other stream there is none");
        assert!(!marks.has_mark(0, (5, 10_000)));
    }
}
