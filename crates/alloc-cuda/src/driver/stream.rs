//! Streams: which handle a call gets, whether it needs a current context, and the calls themselves.

use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{ProviderError, Stream};

use super::calls;
use super::context::{Context, Current};
use super::error::{STREAM_CAPTURE_IMPLICIT, ready};

/// The legacy default stream, which waits for every blocking stream of its context and is waited for by them.
pub(crate) const LEGACY: u64 = 1;
/// The default stream of the calling thread.
pub(crate) const PER_THREAD: u64 = 2;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

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

    pub(crate) fn handle(self) -> u64 {
        self.0
    }

    /// Default streams belong to the context that is current; all others know theirs.
    pub(crate) fn is_default(self) -> bool {
        self.0 <= PER_THREAD
    }
}

/// A number of the calling thread that no other thread of the process gets.
pub(crate) fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.try_with(|number| *number).unwrap_or(0)
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

    /// Whether all work of a stream is complete.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn stream_is_idle(&self, stream: Target) -> Result<bool, ProviderError> {
        // A capture anywhere in the process forbids the question to threads that have not relaxed.
        let _guards = (self.enter_for(stream)?, self.relax()?);
        // SAFETY: the caller's promise.
        ready(self.name(), "cuStreamQuery", unsafe { calls::cuStreamQuery(stream.handle()) })
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
