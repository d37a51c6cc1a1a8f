//! Events, used again instead of being made anew.

use std::sync::PoisonError;

use alloc_core::{ProviderError, Stream};

use super::calls;
use super::context::{Context, Current};
use super::error::{INVALID_HANDLE, error, ready};
use super::stream::Target;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

/// Spare events kept by a context; more are destroyed.
const MAX_SPARE: usize = 4096;

/// A point in a stream's work. Gives its driver event back for reuse when dropped.
#[derive(Debug)]
pub struct Event {
    handle: u64,
    context: &'static Context,
    /// Made in the device's primary context, so that it can be used again.
    reusable: bool,
}

impl Event {
    /// Marks the point that `stream` has been submitted up to.
    ///
    /// The stream may belong to another device or context than `context`: the event is made in the stream's own then.
    ///
    /// # Safety
    /// The stream lives, and it is not being captured.
    pub(crate) unsafe fn record(context: &'static Context, stream: Stream) -> Result<Self, ProviderError> {
        let target = Target::of(stream);
        let event = Self::obtain(context)?;
        let current = context.enter_for(target)?;
        // SAFETY: the event is ours and the stream lives, says the caller.
        let code = unsafe { calls::cuEventRecord(event.handle, target.handle()) };
        drop(current);
        if code == INVALID_HANDLE && !target.is_default() {
            drop(event);
            // SAFETY: the caller's promise.
            return unsafe { Self::record_elsewhere(context, target) };
        }
        context.check("cuEventRecord", code)?;
        Ok(event)
    }

    /// As [`Event::record`] for a stream of another context.
    #[cold]
    unsafe fn record_elsewhere(context: &'static Context, target: Target) -> Result<Self, ProviderError> {
        // SAFETY: the caller says that the stream lives, and it is not a default stream.
        let elsewhere = unsafe { context.stream_context(target.handle()) }?;
        if elsewhere == context.handle() {
            return Err(error(context.name(), "cuEventRecord", INVALID_HANDLE));
        }
        let _current = Current::ensure(context.name(), elsewhere)?;
        let event = Self { handle: create(context)?, context, reusable: false };
        // SAFETY: event and stream are of the same context.
        context.check("cuEventRecord", unsafe { calls::cuEventRecord(event.handle, target.handle()) })?;
        Ok(event)
    }

    fn obtain(context: &'static Context) -> Result<Self, ProviderError> {
        let spare = context.spare_events.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let handle = match spare {
            Some(handle) => handle,
            None => {
                let _current = context.enter_relaxed()?;
                create(context)?
            }
        };
        Ok(Self { handle, context, reusable: true })
    }

    /// Whether all work before the event is complete.
    pub(crate) fn is_complete(&self) -> Result<bool, ProviderError> {
        // A capture anywhere in the process forbids queries of any event to threads that have not relaxed.
        let _relaxed = self.context.relax()?;
        // SAFETY: the event lives.
        ready(self.context.name(), "cuEventQuery", unsafe { calls::cuEventQuery(self.handle) })
    }

    /// Blocks the calling thread until the event is complete.
    pub(crate) fn synchronize(&self) -> Result<(), ProviderError> {
        let _relaxed = self.context.relax()?;
        // SAFETY: the event lives.
        self.context.check("cuEventSynchronize", unsafe { calls::cuEventSynchronize(self.handle) })
    }

    /// Makes work submitted to `stream` from now on wait for the event. The stream may be of any device; a default
    /// stream is that of `context`.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn make_wait(&self, context: &Context, stream: Stream) -> Result<(), ProviderError> {
        let target = Target::of(stream);
        let _current = context.enter_for(target)?;
        // SAFETY: the event lives, and the stream does, says the caller.
        context.check("cuStreamWaitEvent", unsafe { calls::cuStreamWaitEvent(target.handle(), self.handle, 0) })
    }
}

fn create(context: &Context) -> Result<u64, ProviderError> {
    let mut handle = 0;
    // SAFETY: callers have a context current; the out parameter is a local.
    context.check("cuEventCreate", unsafe { calls::cuEventCreate(&raw mut handle, DISABLE_TIMING) })?;
    Ok(handle)
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.reusable {
            let mut spare = self.context.spare_events.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < MAX_SPARE {
                spare.push(self.handle);
                return;
            }
        }
        // SAFETY: the event is ours and this is the last that knows it. The driver keeps what a stream still waits
        // for. A failure leaves nothing to be done.
        let _ = unsafe { calls::cuEventDestroy_v2(self.handle) };
    }
}
