//! Free memory that passes from one stream to another: the stream that used it is asked whether it is idle or, if it
//! always was of late, waited for without being asked.
//!
//! To ask a stream can take several times as long as an event on it and a wait for that together, where the answer is read
//! from the device. But to wait holds up whoever waits if there is work after all. So only where asking is dear, and only
//! such streams are waited for as were idle many times in a row, and they are asked again now and then. Events and waits
//! keep streams busy themselves, for some microseconds, which asking has to allow for.

use std::time::{Duration, Instant};

use alloc_core::{MemoryProvider, Stream};

use crate::placement::heap::{Ask, SHARED_SET, SHARED_TAG, Sharers, Tag, TagSet, each_of, own_set};
use crate::pool::Inner;
use crate::streams::Tags;

/// A stream that was idle so many times in a row is waited for so many times before it is asked again.
const TRUSTED_AFTER: u8 = 16;

/// For so long a stream is asked again that may be busy with nothing but events and waits of ours: they take a few
/// microseconds, and moving pages instead takes ten times as long.
const PATIENCE: Duration = Duration::from_micros(5);

/// What is known of a stream from the times when others wanted memory that it had used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossings {
    /// How often in a row it was idle when asked.
    idle: u8,
    /// How often it was waited for since it was last asked.
    waits: u8,
    /// It was given events or waits since it was last asked, so that it may be busy with nothing else.
    has_ours: bool,
}

impl Crossings {
    pub(crate) const NONE: Self = Self { idle: 0, waits: 0, has_ours: false };

    fn note_answer(&mut self, is_idle: bool) {
        let idle = if is_idle { TRUSTED_AFTER.min(self.idle + 1) } else { 0 };
        *self = Self { idle, ..Self::NONE };
    }

    /// Whether to wait for the stream in place of asking it.
    const fn is_trusted(&self) -> bool {
        self.idle == TRUSTED_AFTER && self.waits < TRUSTED_AFTER
    }
}

/// What became of a request for memory that another stream used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    /// All that the stream released is free for everyone.
    Complete,
    /// Whoever wants it comes after the stream.
    Ordered,
    Busy,
}

/// What became of requests for memory that several streams used, by tag. That of those that share one stands for those of them that
/// were in the way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) complete: TagSet,
    pub(crate) ordered: TagSet,
    busy: TagSet,
    /// Which of those that share a tag is busy, as far as one was asked by name.
    busy_sharer: Option<Stream>,
}

impl<P: MemoryProvider> Inner<P> {
    /// Whether all these releases can be waited for, by the marks behind them or by one that can be made. Streams that have no mark
    /// had come past all of them when they were last asked, so they may well be idle, and are asked first.
    pub(crate) fn pass_unmarked(
        &self,
        table: &mut Tags<P::Event>,
        arena: u32,
        (releases, sharers): (&[(Tag, u64)], Option<&Sharers>),
        waiter: Option<(Tag, Stream)>,
    ) -> Option<Found> {
        let mut passed = Found::default();
        for &(tag, stamp) in releases {
            if table.marks.pending(arena) & 1 << tag == 0 {
                self.find_out(table, tag, sharers, waiter, &mut passed);
            }
            let is_passed = (passed.complete | passed.ordered) & 1 << tag != 0;
            if !is_passed && !table.marks.has_mark(arena, (tag, stamp)) {
                self.stream_to_mark(table, tag)?;
            }
        }
        Some(passed)
    }

    /// Free memory of the arena that other streams used, if those are done with it, or idle, or trusted and waited for; else the
    /// streams that are known to be busy. What of it lies side by side is joined if nothing fits otherwise.
    pub(crate) fn take_from_others(&self, arena: u32, stream: Stream, ask: Ask) -> Result<u32, TagSet> {
        let owner = self.arena(arena).ok_or(0_u64)?;
        if owner.lock().heap.seen() & !own_set(ask.tag) == 0 {
            return Err(0);
        }
        let mut busy = {
            let mut table = self.lock_tags();
            self.pass_marks(&mut table, arena);
            table.marks.pending(arena) & !own_set(ask.tag)
        };
        // Of those that share a tag a few are passed over if they are busy, and then all of them.
        let mut passed_over: Option<Sharers> = None;
        loop {
            let mut state = owner.lock();
            let best = state.heap.users_of_best(ask).filter(|users| users & (busy | SHARED_SET) == 0);
            let (users, named) = match best {
                Some(users) => (users, None),
                None => match state.heap.best_place(ask, busy, passed_over.as_ref()) {
                    Some(place) => (place.users, state.heap.sharers_in(place, ask).map(|sharers| (place, sharers))),
                    None => return Err(if passed_over.is_none() { busy } else { busy | SHARED_SET }),
                },
            };
            let now = state.heap.now();
            drop(state);
            let sharers = named.as_ref().map(|(_, sharers)| sharers);
            let found = self.pass_all(users, sharers, (ask.tag != SHARED_TAG).then_some((ask.tag, stream)));
            let mut state = owner.lock();
            match &named {
                Some((place, sharers)) => state.heap.note_complete_in(*place, ask, (found.complete, sharers), now),
                None => state.heap.note_complete(found.complete, now),
            }
            if found.ordered != 0 {
                state.heap.note_ordered(ask.tag, found.ordered, now);
            }
            match found.busy_sharer {
                Some(sharer) => passed_over.get_or_insert(Sharers::NONE).add(sharer),
                None => busy |= found.busy,
            }
            // Others may have memory that is less of a fit.
            if found.busy != 0 {
                continue;
            }
            if let Some(node) = state.heap.allocate_leaving_room(ask) {
                return Ok(node);
            }
            state.heap.join_own(ask.tag);
            let found = state.heap.allocate_leaving_room(ask).or_else(|| state.heap.allocate_window(ask));
            return found.ok_or(if passed_over.is_none() { busy } else { busy | SHARED_SET });
        }
    }

    /// Finds out of each of the streams whether what it released may go to another, until one is busy.
    fn pass_all(&self, users: TagSet, sharers: Option<&Sharers>, waiter: Option<(Tag, Stream)>) -> Found {
        let mut found = Found::default();
        let mut table = self.lock_tags();
        for tag in each_of(users) {
            self.find_out(&mut table, tag, sharers, waiter, &mut found);
            if found.busy != 0 {
                break;
            }
        }
        drop(table);
        if found.ordered != 0 {
            self.tell_deferred();
        }
        found
    }

    /// Adds what becomes of a request for memory of one more stream, or of those of the `sharers`.
    fn find_out(
        &self,
        table: &mut Tags<P::Event>,
        tag: Tag,
        sharers: Option<&Sharers>,
        waiter: Option<(Tag, Stream)>,
        found: &mut Found,
    ) {
        let named = sharers.filter(|sharers| tag == SHARED_TAG && sharers.are_named());
        let passage = if let Some(sharers) = named {
            found.busy_sharer = self.busy_one_of(table, sharers);
            if found.busy_sharer.is_none() { Passage::Complete } else { Passage::Busy }
        } else {
            self.pass(table, tag, waiter)
        };
        match passage {
            Passage::Complete => found.complete |= 1 << tag,
            Passage::Ordered => found.ordered |= 1 << tag,
            Passage::Busy => found.busy |= 1 << tag,
        }
    }

    /// Finds out whether what a stream released may go to another, or makes that wait for it.
    fn pass(&self, table: &mut Tags<P::Event>, tag: Tag, waiter: Option<(Tag, Stream)>) -> Passage {
        let index = usize::from(tag);
        let waiter = waiter.filter(|_| self.driver.provider().is_idle_dear() && table.crossings[index].is_trusted());
        let Some(((to, waiter), stream)) = waiter.zip(table.only_stream_of(tag)) else {
            return if self.is_idle_after_ours(table, tag) { Passage::Complete } else { Passage::Busy };
        };
        if self.driver.provider().is_capturing(stream).unwrap_or(true) {
            return Passage::Busy;
        }
        let event = match self.driver.record(stream) {
            Ok(Some(event)) => event,
            Ok(None) => return Passage::Complete,
            Err(_) => return Passage::Busy,
        };
        let waited = self.make_wait(waiter, &event);
        self.driver.provider().recycle(event);
        table.crossings[index].waits += 1;
        table.crossings[index].has_ours = true;
        table.crossings[usize::from(to)].has_ours = true;
        if waited.is_ok() { Passage::Ordered } else { Passage::Busy }
    }

    /// Whether a tag's streams are idle. If they may be busy with nothing but what they were given here, they are asked
    /// until that must be over.
    pub(crate) fn is_idle_after_ours(&self, table: &mut Tags<P::Event>, tag: Tag) -> bool {
        let start = table.crossings[usize::from(tag)].has_ours.then(Instant::now);
        let is_idle = loop {
            if self.is_tag_idle(table, tag) {
                break true;
            }
            if start.is_none_or(|start| start.elapsed() >= PATIENCE) {
                break false;
            }
            std::hint::spin_loop();
            table.look_for_captures();
        };
        table.crossings[usize::from(tag)].note_answer(is_idle);
        is_idle
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn after(answers: impl IntoIterator<Item = bool>) -> Crossings {
        let mut crossings = Crossings::NONE;
        answers.into_iter().for_each(|is_idle| crossings.note_answer(is_idle));
        crossings
    }

    fn idle(times: u8) -> impl Iterator<Item = bool> {
        std::iter::repeat_n(true, usize::from(times))
    }

    #[test]
    fn trust_takes_many_idle_answers_in_a_row() {
        assert!(!after(idle(TRUSTED_AFTER - 1)).is_trusted());
        assert!(after(idle(TRUSTED_AFTER)).is_trusted());
        assert!(!after(idle(200).chain([false]).chain(idle(TRUSTED_AFTER - 1))).is_trusted());
    }

    #[test]
    fn a_trusted_stream_is_asked_again_later() {
        let mut crossings = after(idle(TRUSTED_AFTER));
        crossings.waits = TRUSTED_AFTER;
        assert!(!crossings.is_trusted());
        crossings.note_answer(true);
        assert!(crossings.is_trusted());
    }
}
