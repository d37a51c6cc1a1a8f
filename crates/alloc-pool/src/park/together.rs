//! Small blocks that the same streams used wait together, for events that are recorded when there are some of them: an
//! event for each would cost a call at each release, and to wait a little longer costs next to no memory.

use std::sync::PoisonError;

use alloc_core::{MemoryProvider, ProviderError, Stream};

use super::{Entry, ParkList, Parked, Wait};
use crate::pool::Inner;

/// Released blocks that these streams may still use.
#[derive(Debug)]
pub(super) struct Together {
    streams: Vec<Stream>,
    parked: Vec<Parked>,
    bytes: u64,
}

impl Together {
    pub(super) fn parked(&self) -> &Vec<Parked> {
        &self.parked
    }
}

/// Events are recorded for so many blocks, which are 1 MiB at most, or when so many different sets of streams are to be waited
/// for.
const BLOCKS: usize = 16;
const SETS: usize = 8;

impl<E> ParkList<E> {
    /// Adds a block that these streams may still use; whether it is time to record.
    fn add_together(&mut self, streams: &[Stream], parked: Parked, bytes: u64) -> bool {
        self.bytes.add(bytes);
        let index = match self.together.iter().position(|group| group.streams == streams) {
            Some(index) => index,
            None => {
                let parked = Vec::with_capacity(BLOCKS);
                self.together.push(Together { streams: streams.to_vec(), parked, bytes: 0 });
                self.together.len() - 1
            }
        };
        let group = &mut self.together[index];
        group.parked.push(parked);
        group.bytes += bytes;
        group.parked.len() >= BLOCKS || self.together.len() > SETS
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// Parks a block to wait for these streams together with others. `false`, with nothing done, if it should wait alone: if
    /// there was nothing to wait for of late, or if a stream's end may come before the event: what is captured meanwhile or ends
    /// is known by its tag.
    pub(super) fn park_together(&self, streams: &[Stream], parked: Parked, bytes: u64) -> bool {
        let is_behind = self.parked.lock().unwrap_or_else(PoisonError::into_inner).is_device_behind;
        let is_usual = |stream: &Stream| {
            self.lock_tags().living_tag(*stream).is_some()
                && matches!(self.driver.provider().is_capturing(*stream), Ok(false))
        };
        if !is_behind || !streams.iter().all(is_usual) {
            return false;
        }
        let is_time = {
            let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            list.add_together(streams, parked, bytes)
        };
        if is_time {
            self.poll_listed();
        }
        true
    }

    /// Records the events for all that waits together. Whoever destroys a stream has this done first, so it is done under the
    /// lock: nobody is in the midst of it then. Whether anything was complete already.
    pub(crate) fn record_together(&self) -> bool {
        let (mut complete, mut lost) = (Vec::new(), Vec::new());
        let mut list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        for Together { streams, parked, bytes } in std::mem::take(&mut list.together) {
            match self.waits_on(streams) {
                Ok(waits) if waits.is_empty() => {
                    list.is_device_behind = false;
                    list.bytes.sub(bytes);
                    complete.push(parked);
                }
                Ok(waits) => list.entries.push(Entry { parked, bytes, waits }),
                Err((waits, error)) => {
                    list.bytes.sub(bytes);
                    lost.push((Entry { parked, bytes, waits }, error));
                }
            }
        }
        drop(list);
        for (entry, error) in lost {
            self.leak(entry, &error);
        }
        let any = !complete.is_empty();
        complete.into_iter().for_each(|parked| self.unpark(parked));
        any
    }

    /// What has to be waited for now before these streams are done with a block; with the last error if something can't be.
    #[expect(clippy::type_complexity, reason = "the waits are kept either way")]
    pub(super) fn waits_on(
        &self,
        streams: impl IntoIterator<Item = Stream>,
    ) -> Result<Vec<Wait<P::Event>>, (Vec<Wait<P::Event>>, ProviderError)> {
        let (mut waits, mut failure) = (Vec::new(), None);
        for stream in streams {
            match self.wait_on(stream) {
                Ok(wait) => waits.extend(wait),
                Err(error) => {
                    waits.push(Wait::Unknown(stream));
                    failure = Some(error);
                }
            }
        }
        match failure {
            None => Ok(waits),
            Some(error) => Err((waits, error)),
        }
    }
}
