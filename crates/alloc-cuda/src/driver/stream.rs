//! Streams: which handle a call gets, whether it needs a current context, and the calls themselves.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use alloc_core::{ProviderError, Stream};

use super::calls;
use super::context::{Context, Current};
use super::error::{STREAM_CAPTURE_IMPLICIT, ready};
use super::thread::thread_number;

/// The legacy default stream, which waits for every blocking stream of its context and is waited for by them.
pub(crate) const LEGACY: u64 = 1;
/// The default stream of the calling thread.
pub(crate) const PER_THREAD: u64 = 2;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

/// A question is dear if it takes so long. The driver reads the answer from the device, at least once there was work in the
/// context: on hosts with an H200 and driver 580.159.04 that took 1.3 to 1.5 us, on others and for an unused context 0.15 to
/// 0.3. An event and a wait for it took 0.25 to 0.55.
const DEAR: Duration = Duration::from_nanos(700);
/// The highest count of dear questions over others.
const MOST_DEAR: u8 = 16;

/// A stream as the calling thread must name it to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target(u64);

impl Target {
    /// The handle under which the calling thread reaches `stream`.
    ///
    /// The per-thread default stream of another thread can't be named from here. The legacy stream stands in for it:
    /// it waits for that stream, and that stream waits for it, so an event recorded or awaited there orders at least
    /// as much.
    pub(crate) fn of(stream: Stream) -> Self {
        match stream.handle() {
            PER_THREAD if stream.identity() != thread_number() => Self(LEGACY),
            handle => Self(handle),
        }
    }

    /// What stands in for the default streams of other threads.
    pub(crate) const LEGACY: Self = Self(LEGACY);

    pub(crate) fn handle(self) -> u64 {
        self.0
    }

    /// Default streams belong to the context that is current; all others know theirs.
    pub(crate) fn is_default(self) -> bool {
        self.0 <= PER_THREAD
    }
}

/// How many more of the latest questions were dear than were not, after one more.
fn count_question(dear: u8, took: Duration) -> u8 {
    if took >= DEAR { MOST_DEAR.min(dear + 1) } else { dear.saturating_sub(1) }
}

impl Context {
    /// Makes the context current where `stream` needs that.
    pub(crate) fn enter_for(&self, stream: Target) -> Result<Option<Current>, ProviderError> {
        stream.is_default().then(|| self.enter()).transpose()
    }

    /// A new stream that does not wait for the legacy default stream. A lower number is a higher priority.
    pub(crate) fn stream_create(&self, priority: i32) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut stream = 0;
        // SAFETY: the context is current; the out parameter is a local.
        self.check("cuStreamCreateWithPriority", unsafe {
            calls::cuStreamCreateWithPriority(&raw mut stream, NON_BLOCKING, priority)
        })?;
        Ok(stream)
    }

    /// # Safety
    /// The stream came from [`Context::stream_create`] and is destroyed once.
    pub(crate) unsafe fn stream_destroy(&self, stream: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise. Work on the stream goes on to its end.
        self.check("cuStreamDestroy", unsafe { calls::cuStreamDestroy_v2(stream) })
    }

    /// The context that a stream belongs to.
    ///
    /// # Safety
    /// The stream lives and is not a default stream.
    pub(crate) unsafe fn stream_context(&self, stream: u64) -> Result<u64, ProviderError> {
        let mut context = 0;
        // SAFETY: the caller's promise; the out parameter is a local.
        self.check("cuStreamGetCtx", unsafe { calls::cuStreamGetCtx(stream, &raw mut context) })?;
        Ok(context)
    }

    /// The device that a stream belongs to, by the driver's number.
    ///
    /// # Safety
    /// The stream lives and is not a default stream.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "streams of `cust` come with the feature"))]
    pub(crate) unsafe fn stream_device(&self, stream: u64) -> Result<i32, ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        let context = unsafe { self.stream_context(stream) }?;
        if context == self.handle() {
            return Ok(self.device());
        }
        let _current = Current::ensure(self.name(), context)?;
        let mut device = 0;
        // SAFETY: the out parameter is a local.
        self.check("cuCtxGetDevice", unsafe { calls::cuCtxGetDevice(&raw mut device) })?;
        Ok(device)
    }

    /// Whether all work of a stream is complete.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn stream_is_idle(&self, stream: Target) -> Result<bool, ProviderError> {
        // A capture anywhere in the process forbids the question to threads that have not relaxed.
        let _guards = (self.enter_for(stream)?, self.relax()?);
        let start = Instant::now();
        // SAFETY: the caller's promise.
        let code = unsafe { calls::cuStreamQuery(stream.handle()) };
        self.note_question(start.elapsed());
        ready(self.name(), "cuStreamQuery", code)
    }

    fn note_question(&self, took: Duration) {
        // Counts of other threads may be lost.
        let before = self.dear_questions.load(Ordering::Relaxed);
        let now = count_question(before, took);
        if now != before {
            self.dear_questions.store(now, Ordering::Relaxed);
        }
    }

    /// Whether most of the latest questions whether a stream is idle took longer than an event and a wait for it do.
    pub(crate) fn is_idle_dear(&self) -> bool {
        self.dear_questions.load(Ordering::Relaxed) > MOST_DEAR / 2
    }

    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn stream_synchronize(&self, stream: Target) -> Result<(), ProviderError> {
        // As above.
        let _guards = (self.enter_for(stream)?, self.relax()?);
        // SAFETY: the caller's promise.
        self.check("cuStreamSynchronize", unsafe { calls::cuStreamSynchronize(stream.handle()) })
    }

    /// Whether work submitted to the stream is captured instead of run.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn stream_is_capturing(&self, stream: Target) -> Result<bool, ProviderError> {
        let _current = self.enter_for(stream)?;
        let mut status = 0;
        // SAFETY: the caller's promise; the out parameter is a local.
        match unsafe { calls::cuStreamIsCapturing(stream.handle(), &raw mut status) } {
            // The legacy stream may not be used while a stream that it waits for captures.
            STREAM_CAPTURE_IMPLICIT => Ok(true),
            code => self.check("cuStreamIsCapturing", code).map(|()| status != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_dear_once_most_are_and_no_more_once_most_are_not() {
        let mut dear = 0;
        let mut ask = |times: u8, took| {
            (0..times).for_each(|_| dear = count_question(dear, took));
            dear > MOST_DEAR / 2
        };
        let short = DEAR / 4;
        assert!(!ask(200, short));
        assert!(!ask(MOST_DEAR / 2, DEAR));
        assert!(ask(1, DEAR));
        // One that took longer for another reason changes nothing, nor does a single short one.
        assert!(ask(200, DEAR) && ask(1, short) && ask(1, DEAR * 1000));
        assert!(!ask(MOST_DEAR, short));
    }
}
