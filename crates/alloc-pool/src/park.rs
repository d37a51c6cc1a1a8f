//! Released blocks that wait for work on other streams than their own.

use std::sync::PoisonError;

use alloc_core::{AllocatorEvent, Block, Gauge, MemoryProvider, ProviderError, ReleaseError, Stream, StreamSet};

use crate::cache::{Batch, CachedBlock};
use crate::placement::heap::{SHARED_TAG, Tag};
use crate::pool::Inner;

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
    Event(E),
    Retired(Stream),
}

#[derive(Debug)]
struct Entry<E> {
    parked: Parked,
    bytes: u64,
    waits: Vec<Wait<E>>,
}

/// The parked blocks of a pool, the oldest first.
#[derive(Debug)]
pub(crate) struct ParkList<E> {
    entries: Vec<Entry<E>>,
    pub(crate) bytes: Gauge,
    pub(crate) leaked: u64,
}

impl<E> ParkList<E> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), bytes: Gauge::default(), leaked: 0 }
    }
}

/// How many blocks may wait before they are looked through at the next release.
const LOOK_THROUGH_EVERY: usize = 64;

impl<P: MemoryProvider> Inner<P> {
    /// Takes a released block whose home is the stream of tag `home`: back at once if no other stream's work can touch it, else
    /// when that is complete.
    pub(crate) fn park(
        &self,
        block: Block,
        parked: Parked,
        bytes: u64,
        home: Tag,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        let mut waits = Vec::new();
        let others = uses.iter().filter(|&other| other != stream);
        for other in std::iter::once(stream).chain(others) {
            if home != SHARED_TAG && self.known_tag(other) == Some(home) {
                continue;
            }
            match self.wait_on(other) {
                Ok(wait) => waits.extend(wait),
                Err(error) => {
                    self.leak(bytes, &error);
                    return Err(ReleaseError::Leaked { block, source: error });
                }
            }
        }
        if waits.is_empty() {
            self.unpark(parked);
            return Ok(());
        }
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.bytes.add(bytes);
        list.entries.push(Entry { parked, bytes, waits });
        let crowded = list.entries.len() % LOOK_THROUGH_EVERY == 0;
        drop(list);
        if crowded {
            self.poll_parked();
        }
        Ok(())
    }

    fn wait_on(&self, stream: Stream) -> Result<Option<Wait<P::Event>>, ProviderError> {
        match self.retired_is_idle(stream) {
            Some(Ok(true)) => Ok(None),
            Some(Ok(false)) => Ok(Some(Wait::Retired(stream))),
            Some(Err(error)) => Err(error),
            None => Ok(self.driver.record(stream)?.map(Wait::Event)),
        }
    }

    fn leak(&self, bytes: u64, cause: &ProviderError) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).leaked += bytes;
        self.tell(&AllocatorEvent::Leaked { bytes, cause });
    }

    /// Gives back the parked blocks whose work is complete; whether there were any.
    pub(crate) fn poll_parked(&self) -> bool {
        self.settle_parked(|wait| match wait {
            Wait::Event(event) => self.driver.is_complete(event),
            Wait::Retired(stream) => self.retired_is_idle(*stream).unwrap_or(Ok(true)),
        })
    }

    /// Waits for the work of all parked blocks and gives them back; whether there were any.
    pub(crate) fn wait_for_parked(&self) -> bool {
        self.settle_parked(|wait| match wait {
            Wait::Event(event) => self.driver.synchronize(event).map(|()| true),
            Wait::Retired(stream) => self.wait_for(*stream).map(|()| true),
        })
    }

    fn settle_parked(&self, is_over: impl Fn(&Wait<P::Event>) -> Result<bool, ProviderError>) -> bool {
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if list.entries.is_empty() {
            return false;
        }
        let entries = std::mem::take(&mut list.entries);
        drop(list);
        let (mut waiting, mut ready, mut bytes, mut lost) = (Vec::new(), Vec::new(), 0, Vec::new());
        for mut entry in entries {
            match self.outstanding(&mut entry.waits, &is_over) {
                Ok(()) if entry.waits.is_empty() => {
                    bytes += entry.bytes;
                    ready.push(entry.parked);
                }
                Ok(()) => waiting.push(entry),
                Err(error) => lost.push((entry.bytes, error)),
            }
        }
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.bytes.sub(bytes + lost.iter().map(|(bytes, _)| bytes).sum::<u64>());
        waiting.append(&mut list.entries);
        list.entries = waiting;
        drop(list);
        for (bytes, error) in &lost {
            self.leak(*bytes, error);
        }
        let any = !ready.is_empty();
        for parked in ready {
            self.unpark(parked);
        }
        any
    }

    /// Drops the waits that are over.
    fn outstanding(
        &self,
        waits: &mut Vec<Wait<P::Event>>,
        is_over: impl Fn(&Wait<P::Event>) -> Result<bool, ProviderError>,
    ) -> Result<(), ProviderError> {
        while let Some(wait) = waits.pop() {
            if !is_over(&wait)? {
                waits.push(wait);
                return Ok(());
            }
            if let Wait::Event(event) = wait {
                self.driver.provider().recycle(event);
            }
        }
        Ok(())
    }

    fn unpark(&self, parked: Parked) {
        match parked {
            Parked::Node { arena, node } => {
                if let Some(arena) = self.arena(arena) {
                    arena.lock().heap.release(node);
                }
            }
            Parked::Slot(block) => {
                let mut batch = Batch::new();
                batch.push(block);
                self.give_to_slabs(&mut batch);
            }
        }
    }
}
