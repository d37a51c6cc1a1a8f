//! Events in the order in which they were recorded: of two on one stream the first is over first, so that a few answers
//! say of many events whether they are over. To ask takes microseconds while the device is busy.

use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::Stream;

/// An event, and two numbers of a clock that were drawn before and after it was recorded. One that was recorded while
/// another thread did the same is not known to come before or after that one's.
#[derive(Debug)]
pub(super) struct Record<E> {
    pub(super) stream: Stream,
    pub(super) event: E,
    /// The stream is one that the pool has a tag for. Of one that it has not, another may have had the name before.
    is_tagged: bool,
    before: u64,
    after: u64,
}

/// Numbers records.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// What `record` recorded on the stream, which `is_tagged` or not.
    pub(super) fn time<E, F>(
        &self,
        (stream, is_tagged): (Stream, bool),
        record: impl FnOnce() -> Result<Option<E>, F>,
    ) -> Result<Option<Record<E>>, F> {
        // Whoever draws a larger number before recording than another after it comes after that one's event.
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        let event = record()?;
        let after = self.0.fetch_add(1, Ordering::AcqRel);
        Ok(event.map(|event| Record { stream, event, is_tagged, before, after }))
    }
}

/// What answers about some of a stream's events say of its others.
#[derive(Debug)]
struct Progress {
    stream: Stream,
    is_tagged: bool,
    /// The start of the latest one that is over, and the end of the first that is not.
    over: Option<u64>,
    not_over: Option<u64>,
}

/// The same of all streams that were asked about.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<Progress>);

impl Answers {
    /// Asks as few of the events as will do, which are listed roughly in order. Where one can't be asked, nothing is said of
    /// it and those after it.
    pub(super) fn ask<'a, E: 'a>(
        records: impl IntoIterator<Item = &'a Record<E>>,
        is_over: impl Fn(&E) -> Option<bool>,
    ) -> Self {
        let mut streams: Vec<Vec<&Record<E>>> = Vec::new();
        for record in records {
            let is_same = |other: &Record<E>| (other.stream, other.is_tagged) == (record.stream, record.is_tagged);
            match streams.iter_mut().find(|listed| is_same(listed[0])) {
                Some(listed) => listed.push(record),
                None => streams.push(vec![record]),
            }
        }
        let about = |listed: Vec<&Record<E>>| {
            let Record { stream, is_tagged, .. } = *listed[0];
            let mut progress = Progress { stream, is_tagged, over: None, not_over: None };
            // The first, as it may well be that none is over; then halves.
            let (mut from, mut to, mut at) = (0, if is_tagged { listed.len() } else { 1 }, 0);
            while from < to {
                match is_over(&listed[at].event) {
                    Some(true) => {
                        progress.over = progress.over.max(Some(listed[at].before));
                        from = at + 1;
                    }
                    Some(false) => {
                        let earlier = progress.not_over.unwrap_or(u64::MAX);
                        progress.not_over = Some(listed[at].after.min(earlier));
                        to = at;
                    }
                    None => to = at,
                }
                at = from + to.saturating_sub(from) / 2;
            }
            progress
        };
        Self(streams.into_iter().map(about).collect())
    }

    /// Whether the event is over, as far as that is known.
    pub(super) fn about<E>(&self, record: &Record<E>) -> Option<bool> {
        let of_same = |of: &&Progress| (of.stream, of.is_tagged) == (record.stream, record.is_tagged);
        let progress = self.0.iter().find(of_same)?;
        if progress.over.is_some_and(|over| (record.after < over && record.is_tagged) || record.before == over) {
            return Some(true);
        }
        let not_over = progress.not_over.is_some_and(|not| record.before > not || record.after == not);
        not_over.then_some(false)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    const STREAM: Stream = Stream::from_raw(7);

    fn records(count: u64) -> Vec<Record<u64>> {
        let clock = Clock::default();
        let record = |number| clock.time((STREAM, true), || Ok::<_, ()>(Some(number))).ok().flatten();
        (1..=count).filter_map(record).collect()
    }

    #[test]
    fn few_answers_tell_of_all() {
        for over in [0, 1, 2, 50, 99, 100] {
            let (records, asked) = (records(100), Cell::new(0));
            let answers = Answers::ask(&records, |event| {
                asked.set(asked.get() + 1);
                Some(*event <= over)
            });
            for record in &records {
                assert_eq!(answers.about(record), Some(record.event <= over), "{} of {over}", record.event);
            }
            assert!(asked.get() <= if over == 0 { 1 } else { 8 }, "{over}: {}", asked.get());
        }
    }

    #[test]
    fn of_a_stream_without_a_tag_none_is_said_to_be_over() {
        // Another stream may have had the name when the first two were recorded, and the second is not over.
        let clock = Clock::default();
        let record = |number| clock.time((STREAM, false), || Ok::<_, ()>(Some(number))).ok().flatten();
        let records: Vec<_> = (1..=3).filter_map(record).collect();
        let answers = Answers::ask(&records, |event| Some(*event != 2));
        assert_eq!(records.iter().map(|record| answers.about(record)).collect::<Vec<_>>(), [Some(true), None, None]);
        let answers = Answers::ask(records.iter().rev(), |_| Some(true));
        assert_eq!(answers.about(&records[0]), None, "though it was recorded before one that is over");
        let answers = Answers::ask(&records, |_| Some(false));
        assert!(records.iter().all(|record| answers.about(record) == Some(false)), "the rest can wait");
    }

    #[test]
    fn nothing_is_said_of_an_event_that_can_t_be_asked_and_those_after_it() {
        let records = records(8);
        let answers = Answers::ask(&records, |event| (*event < 5).then_some(true));
        let said: Vec<_> = records.iter().map(|record| answers.about(record)).collect();
        assert_eq!(said, [[Some(true); 4], [None; 4]].concat());
    }

    #[test]
    fn nothing_is_said_of_what_was_recorded_at_the_same_time_or_elsewhere() {
        let clock = Clock::default();
        // One begins before the other and ends after it.
        let inner = Cell::new(None);
        let outer = clock.time((STREAM, true), || {
            inner.set(clock.time((STREAM, true), || Ok::<_, ()>(Some(2)))?);
            Ok::<_, ()>(Some(1))
        });
        let (outer, inner) = (outer.unwrap().unwrap(), inner.take().unwrap());
        let elsewhere = clock.time((Stream::from_raw(8), true), || Ok::<_, ()>(Some(3))).unwrap().unwrap();
        for is_over in [false, true] {
            for (asked, other) in [(&outer, &inner), (&inner, &outer)] {
                let answers = Answers::ask([asked], |_| Some(is_over));
                assert_eq!((answers.about(asked), answers.about(other)), (Some(is_over), None));
                assert_eq!(answers.about(&elsewhere), None);
            }
        }
    }
}
