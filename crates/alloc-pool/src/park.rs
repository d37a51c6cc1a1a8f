//! Released blocks that wait for work on other streams than their own.

mod record;
mod together;

use std::sync::{PoisonError, TryLockError};

use alloc_core::{AllocatorEvent, Block, Gauge, MemoryProvider, ProviderError, ReleaseError, Stream, StreamSet};

use crate::cache::{Batch, CachedBlock};
use crate::placement::heap::{SHARED_TAG, Tag};
use crate::pool::Inner;
use crate::retired::End;
use crate::streams::Tags;

use self::record::{Answers, Record};
use self::together::Together;

pub(crate) use self::record::Clock;

/// What is parked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parked {
    /// A used node of an arena, whose block has been released.
    Node { arena: u32, node: u32 },
    /// A slot whose generation has moved on.
    Slot(CachedBlock),
}

/// What a parked block waits for.
#[derive(Debug)]
enum Wait<E> {
    Event(Record<E>),
    Retired(Stream),
    /// The end of the stream's capture, and then what it has been submitted by that time.
    Captured(Stream),
    /// What a stream has been submitted whose event could not be recorded.
    Unknown(Stream),
}

#[derive(Debug)]
struct Entry<E> {
    parked: Vec<Parked>,
    bytes: u64,
    waits: Vec<Wait<E>>,
}

/// The parked blocks of a pool, the oldest first.
#[derive(Debug)]
pub(crate) struct ParkList<E> {
    entries: Vec<Entry<E>>,
    /// Those of which no event was recorded yet.
    together: Vec<Together>,
    /// Whether there was something to wait for when blocks were parked last.
    is_device_behind: bool,
    /// Those of which it can't be known when their work is complete. They are asked about once more when the pool goes.
    lost: Vec<Entry<E>>,
    pub(crate) bytes: Gauge,
    pub(crate) leaked: u64,
}

impl<E> ParkList<E> {
    pub(crate) fn new() -> Self {
        let (entries, together, lost) = (Vec::new(), Vec::new(), Vec::new());
        Self { entries, together, is_device_behind: false, lost, bytes: Gauge::default(), leaked: 0 }
    }
}

impl<E> ParkList<E> {
    /// Visits what is parked, but for what somebody is looking through at the moment.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Parked)) {
        let waiting = self.entries.iter().chain(&self.lost).map(|entry| &entry.parked);
        let parked = waiting.chain(self.together.iter().map(Together::parked)).flatten();
        parked.for_each(|&parked| visit(parked));
    }
}

/// Whether to ask for the state of work or to wait for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Ask,
    Wait,
}

/// How many blocks may wait before they are looked through at the next release.
const LOOK_THROUGH_EVERY: usize = 64;

impl<P: MemoryProvider> Inner<P> {
    /// Takes a released block whose home is the stream of tag `home`: back at once if no other stream's work can touch
    /// it, else when that is complete.
    pub(crate) fn park(
        &self,
        block: Block,
        parked: Parked,
        bytes: u64,
        home: Tag,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let streams = || std::iter::once(stream).chain(uses.iter().filter(|&other| other != stream));
        if let Parked::Node { arena, node } = parked
            && self.release_shared((arena, node), bytes, home, streams())
        {
            return Ok(());
        }
        let is_home = |other: &Stream| home != SHARED_TAG && self.known_tag(*other) == Some(home);
        let others: Vec<Stream> = streams().filter(|other| !is_home(other)).collect();
        if others.is_empty() {
            self.unpark(vec![parked]);
            return Ok(());
        }
        if matches!(parked, Parked::Slot(_)) && self.park_together(&others, parked, bytes) {
            return Ok(());
        }
        let waits = match self.waits_on(others) {
            Ok(waits) => waits,
            Err((waits, error)) => {
                self.leak(Entry { parked: vec![parked], bytes, waits }, &error);
                return Err(ReleaseError::Leaked { block, source: error });
            }
        };
        if waits.is_empty() {
            self.unpark(vec![parked]);
            return Ok(());
        }
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.bytes.add(bytes);
        list.is_device_behind = true;
        list.entries.push(Entry { parked: vec![parked], bytes, waits });
        let crowded = list.entries.len().is_multiple_of(LOOK_THROUGH_EVERY);
        drop(list);
        if crowded {
            self.poll_listed();
        }
        Ok(())
    }

    fn wait_on(&self, stream: Stream) -> Result<Option<Wait<P::Event>>, ProviderError> {
        let mut tags = self.lock_tags();
        match tags.retired.end_of(stream) {
            Some(End::Over) => Ok(None),
            Some(_) => Ok(Some(Wait::Retired(stream))),
            None if self.driver.provider().is_capturing(stream)? => Ok(Some(Wait::Captured(stream))),
            None => Ok(self.record_timed(&tags, stream)?.map(Wait::Event)),
        }
    }

    fn record_timed(&self, tags: &Tags<P::Event>, stream: Stream) -> Result<Option<Record<P::Event>>, ProviderError> {
        let is_tagged = tags.living_tag(stream).is_some();
        self.park_clock.time((stream, is_tagged), || self.driver.record(stream))
    }

    fn leak(&self, entry: Entry<P::Event>, cause: &ProviderError) {
        let bytes = entry.bytes;
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.leaked += bytes;
        list.lost.push(entry);
        drop(list);
        self.tell(&AllocatorEvent::Leaked { bytes, cause });
    }

    /// Gives back the parked blocks whose work is complete; whether there were any.
    pub(crate) fn poll_parked(&self) -> bool {
        self.settle_parked(Manner::Ask) | self.pass_all_marks()
    }

    /// The same but for memory that is free for streams that wait.
    pub(crate) fn poll_listed(&self) {
        self.settle_parked(Manner::Ask);
    }

    /// Waits for the work of all parked blocks and gives them back; whether there were any.
    pub(crate) fn wait_for_parked(&self) -> bool {
        self.settle_parked(Manner::Wait) | self.wait_for_marks()
    }

    /// Waits for the work of the blocks of which nothing could be known; those that still can't be waited for.
    pub(crate) fn wait_for_lost(&self) -> Vec<Parked> {
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = std::mem::take(&mut list.lost);
        drop(list);
        let still =
            |mut entry: Entry<P::Event>| match self.outstanding(&mut entry.waits, Manner::Wait, &Answers::default()) {
                Ok(()) if entry.waits.is_empty() => None,
                _ => Some(entry.parked),
            };
        lost.into_iter().filter_map(still).flatten().collect()
    }

    fn is_over(&self, wait: &mut Wait<P::Event>, manner: Manner) -> Result<bool, ProviderError> {
        if let Wait::Captured(stream) | Wait::Retired(stream) | Wait::Unknown(stream) = *wait {
            let mut tags = self.lock_tags();
            if let Some(end) = tags.retired.end_of(stream) {
                if manner == Manner::Ask {
                    return self.settle_end(end);
                }
                drop(tags);
                return self.wait_for(stream).map(|()| true);
            }
            // A retired stream that is forgotten has come to its end; one that is known by name is a new one after it.
            if matches!(wait, Wait::Retired(_)) && tags.living_tag(stream).is_none() {
                return Ok(true);
            }
            if self.driver.provider().is_capturing(stream)? {
                return Ok(false);
            }
            match self.record_timed(&tags, stream)? {
                Some(record) => *wait = Wait::Event(record),
                None => return Ok(true),
            }
        }
        match (wait, manner) {
            (Wait::Event(record), Manner::Ask) => self.driver.is_complete(&record.event),
            (Wait::Event(record), Manner::Wait) => self.driver.synchronize(&record.event).map(|()| true),
            _ => Ok(false),
        }
    }

    fn settle_parked(&self, manner: Manner) -> bool {
        // Even if nothing may be asked now.
        let were_complete = self.record_together();
        // Whoever waits comes after another who does: else it would find nothing parked, and give up for want of memory.
        let settling = self.settling.try_lock();
        let (settling, is_second) = match settling {
            Ok(settling) => (settling, false),
            Err(TryLockError::Poisoned(settling)) => (settling.into_inner(), false),
            Err(TryLockError::WouldBlock) if manner == Manner::Ask => return were_complete,
            Err(TryLockError::WouldBlock) => (self.settling.lock().unwrap_or_else(PoisonError::into_inner), true),
        };
        let empty = self.parked.lock().unwrap_or_else(PoisonError::into_inner).entries.is_empty();
        if empty || !self.may_ask() {
            return were_complete || is_second;
        }
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = std::mem::take(&mut list.entries);
        drop(list);
        let (mut waiting, mut ready, mut bytes, mut lost) = (Vec::new(), Vec::new(), 0, Vec::new());
        let answers = match manner {
            Manner::Ask => self.ask_few(&entries),
            Manner::Wait => Answers::default(),
        };
        for mut entry in entries {
            match self.outstanding(&mut entry.waits, manner, &answers) {
                Ok(()) if entry.waits.is_empty() => {
                    bytes += entry.bytes;
                    ready.push(entry.parked);
                }
                Ok(()) => waiting.push(entry),
                Err(error) => lost.push((entry, error)),
            }
        }
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.bytes.sub(bytes + lost.iter().map(|(entry, _)| entry.bytes).sum::<u64>());
        waiting.append(&mut list.entries);
        list.entries = waiting;
        drop(list);
        let any = were_complete || is_second || !ready.is_empty();
        for parked in ready {
            self.unpark(parked);
        }
        // Hooks are told, which may use the pool.
        drop(settling);
        for (entry, error) in lost {
            self.leak(entry, &error);
        }
        any
    }

    /// What some of the events say of all that are waited for.
    fn ask_few(&self, entries: &[Entry<P::Event>]) -> Answers {
        let next = entries.iter().filter_map(|entry| match entry.waits.last() {
            Some(Wait::Event(record)) => Some(record),
            _ => None,
        });
        Answers::ask(next, |event| self.driver.is_complete(event).ok())
    }

    /// Drops the waits that are over.
    fn outstanding(
        &self,
        waits: &mut Vec<Wait<P::Event>>,
        manner: Manner,
        answers: &Answers,
    ) -> Result<(), ProviderError> {
        while let Some(wait) = waits.last_mut() {
            let known = if let Wait::Event(record) = wait { answers.about(record) } else { None };
            let is_over = match known {
                Some(is_over) => is_over,
                None => self.is_over(wait, manner)?,
            };
            if !is_over {
                return Ok(());
            }
            if let Some(Wait::Event(record)) = waits.pop() {
                self.driver.provider().recycle(record.event);
            }
        }
        Ok(())
    }

    fn unpark(&self, parked: Vec<Parked>) {
        let mut batch = Batch::new();
        for parked in parked {
            match parked {
                Parked::Node { arena, node } => {
                    if let Some(arena) = self.arena(arena) {
                        arena.lock().heap.release(node);
                    }
                }
                Parked::Slot(block) => {
                    batch.push(block);
                    if batch.is_full() {
                        self.give_to_slabs(&mut batch);
                    }
                }
            }
        }
        self.give_to_slabs(&mut batch);
    }
}
