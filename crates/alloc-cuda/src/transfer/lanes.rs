//! Work of a device in the order of another device's stream.

use std::sync::{Mutex, PoisonError};

use alloc_core::{ProviderError, Stream};

use crate::driver::stream::{PER_THREAD, Target};
use crate::driver::{Context, Event};

/// Idle lanes kept; more are destroyed.
const MAX_SPARE: usize = 16;

/// Streams of a device for work that others order.
#[derive(Debug)]
pub(super) struct Lanes {
    context: &'static Context,
    spare: Mutex<Vec<u64>>,
}

impl Lanes {
    pub(super) fn new(context: &'static Context) -> Self {
        Self { context, spare: Mutex::default() }
    }

    /// Submits work in the order of `stream`, which if it is a default stream is one of the device `home`.
    ///
    /// Mapped memory is open to its own device and those that were let in. Work of a stream of any other device goes
    /// to a stream of this one, which starts after the other and which the other then waits for.
    ///
    /// # Safety
    /// The stream lives.
    pub(super) unsafe fn in_order(
        &self,
        home: &'static Context,
        stream: Stream,
        work: impl FnOnce(Stream) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let target = Target::of(stream);
        let context = if target.is_default() {
            home.handle()
        } else {
            // A stream that has no such context, as those of green contexts, is taken for the device's that was asked.
            // SAFETY: the caller says that the stream lives, and it is no default stream.
            unsafe { self.context.stream_context(target.handle()) }.unwrap_or(home.handle())
        };
        if context == self.context.handle() {
            return work(stream);
        }
        self.on_lane(home, stream, work)
    }

    /// As [`Lanes::in_order`], for work that other threads help to submit: to them the default stream of the calling thread has
    /// no name, and the legacy one, which would stand in for it, may not be used while any blocking stream is captured.
    ///
    /// # Safety
    /// The stream lives.
    pub(super) unsafe fn in_order_of_threads(
        &self,
        home: &'static Context,
        stream: Stream,
        work: impl FnOnce(Stream) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        if Target::of(stream).handle() == PER_THREAD {
            return self.on_lane(home, stream, work);
        }
        // SAFETY: the caller's promise.
        unsafe { self.in_order(home, stream, work) }
    }

    fn on_lane(
        &self,
        home: &'static Context,
        stream: Stream,
        work: impl FnOnce(Stream) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let lane = self.take()?;
        let outcome = self.between(home, stream, Stream::from_raw(lane), work);
        self.put_back(lane);
        outcome
    }

    fn between(
        &self,
        home: &'static Context,
        stream: Stream,
        lane: Stream,
        work: impl FnOnce(Stream) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        // SAFETY: the stream lives, says the caller of `in_order`; the lane is this one's.
        unsafe { Event::record(home, stream)?.make_wait(self.context, lane) }?;
        // Work that fails may be under way in part.
        let outcome = work(lane);
        // SAFETY: as above.
        let ordered = unsafe { Event::record(self.context, lane).and_then(|event| event.make_wait(home, stream)) };
        if ordered.is_err() {
            // SAFETY: as above. Nobody would wait for the work: it is over when this returns, or the context is broken.
            unsafe { self.context.stream_synchronize(Target::of(lane)) }?;
        }
        outcome.and(ordered)
    }

    /// A stream without work, so that nobody waits for somebody else's.
    fn take(&self) -> Result<u64, ProviderError> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = spare.iter().position(|lane| self.is_idle(*lane));
        match idle {
            Some(index) => Ok(spare.swap_remove(index)),
            None => {
                drop(spare);
                self.context.stream_create(0)
            }
        }
    }

    fn is_idle(&self, lane: u64) -> bool {
        let lane = Target::of(Stream::from_raw(lane));
        // SAFETY: lanes live until they are destroyed below.
        unsafe {
            !self.context.stream_is_capturing(lane).unwrap_or(true) && self.context.stream_is_idle(lane) == Ok(true)
        }
    }

    fn put_back(&self, lane: u64) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as above. One that captures can't be destroyed.
        let captures = unsafe { self.context.stream_is_capturing(Target::of(Stream::from_raw(lane))) };
        if spare.len() < MAX_SPARE || captures != Ok(false) {
            spare.push(lane);
            return;
        }
        drop(spare);
        // SAFETY: the lane is this one's and nobody knows it any more; its work goes on to its end. A failure leaves
        // nothing to be done.
        let _ = unsafe { self.context.stream_destroy(lane) };
    }
}
