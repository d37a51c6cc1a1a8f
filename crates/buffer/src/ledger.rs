//! What is known of the work that may still use a buffer: which streams, and whether they write.
//!
//! The ledger is why the safe functions need no promise about streams from their callers. Before work is submitted
//! to a stream, that stream is made to wait for all work of other streams that conflicts with it; before the host
//! looks at the memory, that work is waited for; and at release all other streams are named to the allocator.

use alloc_core::{Stream, StreamSet};

/// What new work is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
}

/// What work of a stream may still be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    /// Nothing that later work is not ordered after already. Still named at release.
    Past,
    /// Finishing what used the memory before this buffer had it.
    Birth,
    Read,
    Write,
}

impl Access {
    fn conflicts_with(self, intent: Intent) -> bool {
        match self {
            Self::Past => false,
            Self::Birth | Self::Write => true,
            Self::Read => intent == Intent::Write,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            // A birth must be waited for by readers too, as a write must.
            (Self::Birth, Self::Read) | (Self::Read, Self::Birth) => Self::Write,
            _ => self.max(other),
        }
    }
}

impl From<Intent> for Access {
    fn from(intent: Intent) -> Self {
        match intent {
            Intent::Read => Self::Read,
            Intent::Write => Self::Write,
        }
    }
}

/// One stream's part.
#[derive(Clone, Copy, Debug)]
struct Use {
    access: Access,
    /// The clock when work was last declared.
    stamp: u64,
    /// This stream comes after all writes stamped up to here.
    after_writes: u64,
}

impl Use {
    const NONE: Self = Self { access: Access::Past, stamp: 0, after_writes: 0 };
}

/// Streams that conflict with an intent, and the time of which that is true.
#[derive(Debug)]
pub(crate) struct Conflicts {
    pub(crate) streams: StreamSet,
    pub(crate) as_of: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    clock: u64,
    own: Use,
    foreign: Vec<(Stream, Use)>,
    /// A copy through a backend with other streams was not seen to finish.
    unfinished: bool,
}

impl Ledger {
    /// The ledger of memory that work on its own stream may use at once, and nobody else yet.
    pub(crate) const fn born() -> Self {
        let own = Use { access: Access::Birth, stamp: 1, after_writes: 0 };
        Self { clock: 1, own, foreign: Vec::new(), unfinished: false }
    }

    /// The ledger of memory of which only the streams are known.
    pub(crate) fn unknown(own: Stream, uses: &StreamSet) -> Self {
        let mut ledger = Self::born();
        ledger.declare(own, own, Intent::Write);
        for stream in uses.iter() {
            ledger.declare(stream, own, Intent::Write);
        }
        ledger
    }

    /// The clock, if work of this intent on `stream` has nothing to come after.
    pub(crate) fn is_clear_on(&self, stream: Stream, own: Stream, intent: Intent) -> Option<u64> {
        let is_clear = |other: Stream, entry: &Use| other == stream || !entry.access.conflicts_with(intent);
        let are_clear = is_clear(own, &self.own) && self.foreign.iter().all(|(other, entry)| is_clear(*other, entry));
        are_clear.then_some(self.clock)
    }

    /// The streams other than `stream` that work of this intent on `stream` must come after.
    pub(crate) fn conflicts_on(&self, stream: Stream, own: Stream, intent: Intent) -> Conflicts {
        let after_writes = self.entry(stream, own).map_or(0, |entry| entry.after_writes);
        self.conflicts(own, intent, |other, entry| {
            let is_after = entry.access != Access::Read && entry.stamp <= after_writes;
            other != stream && !is_after
        })
    }

    /// All streams that the host must wait for before it does what it intends.
    pub(crate) fn conflicts_on_host(&self, own: Stream, intent: Intent) -> Conflicts {
        self.conflicts(own, intent, |_, _| true)
    }

    /// All streams with declared work, for those who must see it finished rather than ordered.
    pub(crate) fn in_flight(&self, own: Stream) -> StreamSet {
        self.conflicts(own, Intent::Write, |_, entry| entry.access != Access::Birth).streams
    }

    fn conflicts(&self, own: Stream, intent: Intent, counts: impl Fn(Stream, &Use) -> bool) -> Conflicts {
        let all = std::iter::once((own, self.own)).chain(self.foreign.iter().copied());
        let streams = all
            .filter(|(stream, entry)| entry.access.conflicts_with(intent) && counts(*stream, entry))
            .map(|(stream, _)| stream)
            .collect();
        Conflicts { streams, as_of: self.clock }
    }

    /// Adds work whose order is the caller's business.
    pub(crate) fn declare(&mut self, stream: Stream, own: Stream, intent: Intent) {
        self.clock += 1;
        let clock = self.clock;
        let entry = self.entry_mut(stream, own);
        entry.access = entry.access.and(intent.into());
        entry.stamp = clock;
    }

    /// Adds work that comes after all the work that conflicted with it as of `as_of`.
    pub(crate) fn declare_ordered(&mut self, stream: Stream, own: Stream, intent: Intent, as_of: u64) {
        self.declare(stream, own, intent);
        let entry = self.entry_mut(stream, own);
        entry.after_writes = entry.after_writes.max(as_of);
        if intent == Intent::Write {
            let others = self.foreign.iter_mut().filter(|(other, _)| *other != stream).map(|(_, entry)| entry);
            let own = (stream != own).then_some(&mut self.own);
            for entry in others.chain(own).filter(|entry| entry.stamp <= as_of) {
                entry.access = Access::Past;
            }
        }
    }

    /// Says that the host has waited for all that conflicted with `intent` as of `as_of`, and for all work on
    /// `stream`, if one is named.
    pub(crate) fn finish(&mut self, stream: Option<Stream>, own: Stream, intent: Intent, as_of: u64) {
        let is_done = |other: Stream, entry: &Use| {
            // What a writer waited for includes all that was past by then; of a reader that can't be said.
            let waited_for = intent == Intent::Write || entry.access.conflicts_with(intent);
            entry.stamp <= as_of && (waited_for || Some(other) == stream)
        };
        self.foreign.retain(|(other, entry)| !is_done(*other, entry));
        if is_done(own, &self.own) {
            self.own.access = Access::Past;
        }
    }

    /// The streams to name at release: all but the buffer's own.
    pub(crate) fn uses(&self) -> StreamSet {
        self.foreign.iter().map(|(stream, _)| *stream).collect()
    }

    /// Whether no stream but the buffer's own has to be named at release.
    pub(crate) const fn is_alone(&self) -> bool {
        self.foreign.is_empty()
    }

    /// Makes `stream` the own one, which comes after all that was declared on any.
    pub(crate) fn hand_over(&mut self, own: Stream, stream: Stream) {
        if own == stream {
            return;
        }
        self.clock += 1;
        self.foreign.retain(|(other, _)| *other != stream);
        for (_, entry) in &mut self.foreign {
            entry.access = Access::Past;
        }
        self.foreign.push((own, Use { access: Access::Past, stamp: self.clock, after_writes: 0 }));
        // What the old streams do is now ordered before this one, so that waiting for this one waits for all.
        self.own = Use { access: Access::Write, stamp: self.clock, after_writes: self.clock };
    }

    /// Says that work is under way of which no stream of this ledger knows.
    pub(crate) fn set_unfinished(&mut self) {
        self.unfinished = true;
    }

    pub(crate) const fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    fn entry(&self, stream: Stream, own: Stream) -> Option<&Use> {
        if stream == own {
            return Some(&self.own);
        }
        self.foreign.iter().find(|(other, _)| *other == stream).map(|(_, entry)| entry)
    }

    fn entry_mut(&mut self, stream: Stream, own: Stream) -> &mut Use {
        if stream == own {
            return &mut self.own;
        }
        let index = match self.foreign.iter().position(|(other, _)| *other == stream) {
            Some(index) => index,
            None => {
                self.foreign.push((stream, Use::NONE));
                self.foreign.len() - 1
            }
        };
        &mut self.foreign[index].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Stream = Stream::from_raw(1);
    const A: Stream = Stream::from_raw(2);
    const B: Stream = Stream::from_raw(3);

    fn streams(set: &StreamSet) -> Vec<Stream> {
        set.iter().collect()
    }

    fn on_host(ledger: &Ledger, intent: Intent) -> Vec<Stream> {
        streams(&ledger.conflicts_on_host(OWN, intent).streams)
    }

    #[test]
    fn a_declared_read_does_not_hide_the_birth_from_other_readers() {
        let mut ledger = Ledger::born();
        ledger.declare(OWN, OWN, Intent::Read);
        assert_eq!(streams(&ledger.conflicts_on(A, OWN, Intent::Read).streams), [OWN]);
        assert_eq!(on_host(&ledger, Intent::Read), [OWN]);
    }

    #[test]
    fn what_is_clear_has_no_conflicts() {
        let mut ledger = Ledger::born();
        ledger.declare(A, OWN, Intent::Read);
        ledger.declare(B, OWN, Intent::Write);
        for stream in [OWN, A, B] {
            for intent in [Intent::Read, Intent::Write] {
                let conflicts = ledger.conflicts_on(stream, OWN, intent);
                let clear = ledger.is_clear_on(stream, OWN, intent);
                assert_eq!(clear.is_some(), conflicts.streams.is_empty(), "{stream:?} {intent:?}");
            }
        }
        let ordered = ledger.conflicts_on(A, OWN, Intent::Write);
        ledger.declare_ordered(A, OWN, Intent::Write, ordered.as_of);
        assert_eq!(ledger.is_clear_on(A, OWN, Intent::Write), Some(ledger.clock));
        assert_eq!(ledger.is_clear_on(B, OWN, Intent::Read), None);
    }

    #[test]
    fn the_birth_is_ordered_but_is_no_work_to_see_finished() {
        let ledger = Ledger::born();
        assert_eq!(on_host(&ledger, Intent::Read), [OWN]);
        assert!(ledger.in_flight(OWN).is_empty() && ledger.is_alone());
        assert!(ledger.conflicts_on(OWN, OWN, Intent::Write).streams.is_empty());
    }

    #[test]
    fn a_writer_supersedes_only_what_it_waited_for() {
        // Two halves of a buffer are written by two threads: neither has waited for the other.
        let mut ledger = Ledger::born();
        let first = ledger.conflicts_on(A, OWN, Intent::Write);
        let second = ledger.conflicts_on(B, OWN, Intent::Write);
        ledger.declare_ordered(B, OWN, Intent::Write, second.as_of);
        ledger.declare_ordered(A, OWN, Intent::Write, first.as_of);
        assert_eq!(on_host(&ledger, Intent::Read), [B, A]);
        assert_eq!(streams(&ledger.uses()), [B, A]);
        let third = ledger.conflicts_on(OWN, OWN, Intent::Write);
        ledger.declare_ordered(OWN, OWN, Intent::Write, third.as_of);
        assert_eq!(on_host(&ledger, Intent::Read), [OWN]);
        assert_eq!(streams(&ledger.uses()), [B, A], "still named at release");
    }

    #[test]
    fn what_was_declared_during_a_wait_is_not_finished_by_it() {
        let mut ledger = Ledger::born();
        ledger.declare(A, OWN, Intent::Write);
        let waited_for = ledger.conflicts_on_host(OWN, Intent::Write);
        ledger.declare(A, OWN, Intent::Read);
        ledger.finish(None, OWN, Intent::Write, waited_for.as_of);
        assert_eq!(on_host(&ledger, Intent::Write), [A]);
        ledger.finish(Some(A), OWN, Intent::Read, ledger.clock);
        assert!(on_host(&ledger, Intent::Write).is_empty() && ledger.is_alone());
    }

    #[test]
    fn a_finished_read_finishes_its_stream_and_the_writers_before_it() {
        let mut ledger = Ledger::born();
        ledger.declare(OWN, OWN, Intent::Write);
        ledger.declare(A, OWN, Intent::Read);
        ledger.declare(B, OWN, Intent::Read);
        ledger.finish(Some(A), OWN, Intent::Read, ledger.clock);
        assert_eq!(on_host(&ledger, Intent::Write), [B]);
    }

    #[test]
    fn a_hand_over_collects_all_work_on_the_new_stream() {
        let mut ledger = Ledger::born();
        ledger.declare(A, OWN, Intent::Write);
        ledger.declare(B, OWN, Intent::Read);
        ledger.hand_over(OWN, B);
        assert_eq!(streams(&ledger.conflicts_on_host(B, Intent::Write).streams), [B]);
        assert_eq!(streams(&ledger.uses()), [A, OWN]);
        ledger.hand_over(B, B);
        assert_eq!(streams(&ledger.uses()), [A, OWN]);
    }
}
