//! Streams that have ended. Blocks outlive their streams, and a late release must not ask a stream that is gone, so the point up
//! to which each had been submitted is kept under its name.
//!
//! Whoever asks a stream, or records on it, does so under the lock of the tags: who ends one has that lock as well, so nobody is
//! in the midst of that when a stream's end has returned and it may be destroyed.

use std::collections::VecDeque;
use std::sync::Arc;

use alloc_core::{MemoryProvider, ProviderError, ProviderErrorKind, Stream};
use rustc_hash::FxHashMap;

use crate::notes::Note;
use crate::placement::heap::SHARED_TAG;
use crate::pool::Inner;
use crate::streams::Tags;

/// How many retired streams are remembered. To remember all for ever would be a leak.
const REMEMBERED: usize = 1 << 16;
/// How many retired streams are asked, when another one is retired, whether their work is complete by now.
const ASKED: usize = 8;

/// Up to where a stream that has ended works.
#[derive(Debug)]
pub(crate) enum End<E> {
    /// All its work is complete.
    Over,
    /// Its work is complete when this is. Shared with whoever waits for it, which is not done under a lock: what is waited for
    /// may itself wait for a thread that needs the lock.
    At(Arc<E>),
    /// It was being captured, or the event could not be recorded.
    Unknown,
}

/// The ends of a pool's streams, by name.
#[derive(Debug)]
pub(crate) struct Retired<E> {
    /// With the number of the retirement, as a name may come back and end again.
    ends: FxHashMap<Stream, (u64, End<E>)>,
    /// Oldest first.
    names: VecDeque<(Stream, u64)>,
    /// Those whose work was not complete when last asked.
    pending: VecDeque<Stream>,
    number: u64,
}

impl<E> Retired<E> {
    pub(crate) fn new() -> Self {
        Self { ends: FxHashMap::default(), names: VecDeque::new(), pending: VecDeque::new(), number: 0 }
    }

    #[inline]
    pub(crate) fn contains(&self, stream: Stream) -> bool {
        !self.ends.is_empty() && self.ends.contains_key(&stream)
    }

    pub(crate) fn end_of(&mut self, stream: Stream) -> Option<&mut End<E>> {
        self.ends.get_mut(&stream).map(|(_, end)| end)
    }

    /// Notes that the stream has ended.
    fn add(&mut self, stream: Stream, end: End<E>) {
        self.number += 1;
        if matches!(end, End::At(_)) {
            self.pending.push_back(stream);
        }
        self.names.push_back((stream, self.number));
        self.ends.insert(stream, (self.number, end));
    }

    /// The name is a living stream's again.
    pub(crate) fn remove(&mut self, stream: Stream) -> Option<End<E>> {
        self.ends.remove(&stream).map(|(_, end)| end)
    }

    /// Forgets the oldest of too many, but for those of which more may have to be known.
    fn forget(&mut self, is_needed: impl Fn(Stream) -> bool) {
        while self.names.len() > REMEMBERED
            && let Some((stream, number)) = self.names.pop_front()
        {
            match self.ends.get(&stream) {
                // One that ended again since has a later entry.
                Some((latest, _)) if *latest != number => {}
                Some((_, End::Over)) if !is_needed(stream) => drop(self.ends.remove(&stream)),
                Some(_) => {
                    self.names.push_back((stream, number));
                    break;
                }
                None => {}
            }
        }
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// Says goodbye to a stream: its tag, and so its memory, goes to the next stream that comes. One that allocated nothing may
    /// have used the blocks of others, which come back later.
    pub(crate) fn retire(&self, stream: Stream) {
        // What is to be waited for by its name is not put off until that is gone.
        let _ = self.record_together();
        let mut tags = self.lock_tags();
        let tag = tags.living_tag(stream);
        if tag.is_none() && tags.retired.contains(stream) {
            return;
        }
        // Now or never: it may be destroyed when this returns.
        let found = self.find_end(stream).or_else(|_| self.find_end(stream));
        // Of a stream that this pool never saw, and can't ask, there is nothing to know: it may be another device's.
        let is_ours = tag.is_some() || found.is_ok();
        let end = found.unwrap_or_else(|error| {
            let what = "the point up to which a retired stream had come is unknown";
            self.defer(Note::DoneWithout { what, error });
            End::Unknown
        });
        let (is_known, is_over) = (!matches!(end, End::Unknown), matches!(end, End::Over));
        if is_ours {
            tags.retired.add(stream, end);
            tags.leave(stream, is_known);
        }
        if is_over {
            tags.leave_shared(stream);
        }
        // One that is captured is not among the living any more, whose captures forbid to ask.
        self.forget_retired(&mut tags, is_known);
        drop(tags);
        self.tell_deferred();
        if tag.is_some() {
            self.next_epoch();
        }
    }

    fn find_end(&self, stream: Stream) -> Result<End<P::Event>, ProviderError> {
        if self.driver.provider().is_capturing(stream)? {
            // An event would be one of the capture's, which can neither be asked nor waited for when that is over.
            return Ok(End::Unknown);
        }
        Ok(self.driver.record(stream)?.map_or(End::Over, |event| End::At(Arc::new(event))))
    }

    /// Gives back the events of retired streams whose work is complete by now, if they `may_be_asked`, and forgets the oldest of too
    /// many.
    fn forget_retired(&self, tags: &mut Tags<P::Event>, may_be_asked: bool) {
        let pending = if may_be_asked { ASKED.min(tags.retired.pending.len()) } else { 0 };
        let asked = if pending > 0 && self.may_ask_in(tags) { pending } else { 0 };
        for _ in 0..asked {
            let Some(stream) = tags.retired.pending.pop_front() else { break };
            match tags.retired.end_of(stream).map(|end| self.settle_end(end)) {
                Some(Ok(true)) => tags.leave_shared(stream),
                Some(_) => tags.retired.pending.push_back(stream),
                None => {}
            }
        }
        let Tags { retired, orphans, streams, .. } = tags;
        retired.forget(|stream| orphans.iter().any(|&orphan| streams[usize::from(orphan)] == stream));
    }

    /// Whether the work of a retired stream is complete, as far as that can be known; the event of one that is is given back.
    pub(crate) fn settle_end(&self, end: &mut End<P::Event>) -> Result<bool, ProviderError> {
        match end {
            End::Over => Ok(true),
            End::Unknown => Ok(false),
            End::At(event) if self.driver.is_complete(event)? => {
                self.end_is_over(end);
                Ok(true)
            }
            End::At(_) => Ok(false),
        }
    }

    fn end_is_over(&self, end: &mut End<P::Event>) {
        if let End::At(event) = std::mem::replace(end, End::Over) {
            self.give_back_shared(event);
        }
    }

    /// Gives an event back, unless somebody waits for it, who does so then.
    pub(crate) fn give_back_shared(&self, event: Arc<P::Event>) {
        Arc::into_inner(event).into_iter().for_each(|event| self.driver.provider().recycle(event));
    }

    /// Makes `after` wait for a stream that has ended. If events may be asked, not for what is complete.
    pub(crate) fn order_after_end(
        &self,
        end: &mut End<P::Event>,
        after: Stream,
        may_ask: bool,
    ) -> Result<(), ProviderError> {
        match end {
            End::Over => Ok(()),
            End::Unknown => Err(self.unknown("wait for a stream")),
            End::At(event) if !may_ask || !self.driver.is_complete(event)? => self.make_wait(after, event),
            End::At(_) => Ok(()),
        }
    }

    /// Blocks until all work submitted to the stream so far is complete.
    pub(crate) fn wait_for(&self, stream: Stream) -> Result<(), ProviderError> {
        let mut tags = self.lock_tags();
        match tags.retired.end_of(stream) {
            Some(End::Over) => Ok(()),
            Some(End::Unknown) => Err(self.unknown("synchronize")),
            Some(End::At(event)) => {
                let event = Arc::clone(event);
                drop(tags);
                let result = self.driver.synchronize(&event);
                if result.is_ok()
                    && let Some(end) = self.lock_tags().retired.end_of(stream)
                    && matches!(end, End::At(own) if Arc::ptr_eq(own, &event))
                {
                    self.end_is_over(end);
                }
                self.give_back_shared(event);
                result
            }
            None => {
                let event = self.driver.record(stream)?;
                drop(tags);
                let Some(event) = event else { return Ok(()) };
                let result = self.driver.synchronize(&event);
                self.driver.provider().recycle(event);
                result
            }
        }
    }

    pub(crate) fn unknown(&self, call: &'static str) -> ProviderError {
        let name = "it is not known when the work of a stream that has ended is complete";
        ProviderError::new(self.device, call, ProviderErrorKind::Unsupported, name)
    }
}

impl<E> Tags<E> {
    /// The stream has ended. Its tag goes to the next one that comes, or to nobody if it is not known when its work is over.
    fn leave(&mut self, stream: Stream, is_known: bool) {
        let Some(tag) = self.take_tag(stream) else { return };
        if !is_known {
            self.lost |= 1 << tag;
        } else if tag != SHARED_TAG {
            self.orphans.push(tag);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::error::Error;

    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{DeviceAllocator, Layout, StreamSet};

    use super::*;
    use crate::placement::heap::TAGS;
    use crate::{Pool, PoolConfig};

    /// Streams of which more than half share a tag of the pool; each has released a block with work on it that is not over.
    fn crowd(provider: &SimulatedProvider, pool: &Pool<SimulatedProvider>) -> Result<Vec<Stream>, Box<dyn Error>> {
        let streams: Vec<_> = (1..=2 * TAGS as u64).map(Stream::from_raw).collect();
        for &stream in &streams {
            let block = pool.allocate(Layout::bytes(1 << 20)?, stream)?;
            provider.submit(stream, block.address(), block.size());
            Inner::release(&pool.inner, block, stream, StreamSet::EMPTY)?;
        }
        Ok(streams)
    }

    #[test]
    fn streams_that_share_a_tag_are_forgotten_there_when_they_are_over() {
        let provider = SimulatedProvider::new(SimulatedConfig::default());
        let pool = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
        let streams = crowd(&provider, &pool).unwrap();
        let shared = || pool.inner.lock_tags().streams_of(SHARED_TAG).len();
        assert_eq!(shared(), TAGS + 1);
        // Some are over when they end, the others when others have ended.
        streams.iter().step_by(2).for_each(|&stream| provider.complete_all(stream));
        streams.iter().for_each(|&stream| pool.retire_stream(stream));
        assert!(shared() > 0);
        provider.complete_everything();
        for number in 0..TAGS as u64 {
            pool.retire_stream(Stream::with_identity(1, 1 + number));
        }
        assert_eq!(shared(), 0);
        provider.assert_clean();
    }

    #[test]
    fn whoever_asks_all_that_share_a_tag_forgets_those_that_are_over() {
        let provider = SimulatedProvider::new(SimulatedConfig::default());
        let pool = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
        let streams = crowd(&provider, &pool).unwrap();
        // Every other one ends, and one of these is busy, for which no other waits.
        let (ended, busy) = (TAGS / 2, streams[2 * TAGS - 1]);
        streams.iter().skip(TAGS + 1).step_by(2).for_each(|&stream| pool.retire_stream(stream));
        streams.iter().filter(|&&stream| stream != busy).for_each(|&stream| provider.complete_all(stream));
        let ask = || {
            let mut tags = pool.inner.lock_tags();
            let is_idle = pool.inner.is_tag_idle(&mut tags, SHARED_TAG);
            (is_idle, tags.streams_of(SHARED_TAG).to_vec())
        };
        assert_eq!((ask().0, ask().1.first()), (false, Some(&busy)));
        provider.complete_everything();
        let (is_idle, left) = ask();
        assert!(is_idle && left.len() == TAGS + 1 - ended, "{left:?}");
        assert!(!left.iter().any(|&left| pool.inner.lock_tags().retired.contains(left)), "{left:?}");
        provider.assert_clean();
    }
}
