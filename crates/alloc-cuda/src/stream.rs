//! Streams: owned, kept alive for somebody, or borrowed by their handle.

use std::any::Any;
use std::fmt;

use alloc_core::{Device, ProviderError, Stream};

use crate::driver::stream::{LEGACY, PER_THREAD, Target};
use crate::driver::{Context, Event};
use crate::{ending, global, names};

/// A CUDA stream, as the allocators know it.
///
/// A stream that is owned or kept alive tells every pool when it goes: caches are handed on, and nothing names the
/// stream afterwards. A stream that is only borrowed can't; call [`CudaStream::retire`] before it is destroyed. One that is
/// dropped while it is captured ends some time after the capture.
///
/// ```
/// use alloc_cuda::CudaStream;
///
/// if alloc_cuda::is_available() {
///     let stream = CudaStream::new(0)?;
///     let block_goes_to = stream.stream(); // for `DeviceAllocator::allocate` and `Buffer`
///     assert_eq!(block_goes_to.handle(), stream.handle());
///     stream.synchronize()?;
/// }
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
pub struct CudaStream {
    context: &'static Context,
    stream: Stream,
    ownership: Ownership,
}

enum Ownership {
    Owned,
    Kept(Box<dyn Any + Send + Sync>),
    Borrowed,
}

impl CudaStream {
    /// A new stream of the device `ordinal`, which does not wait for the legacy default stream.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`](alloc_core::ProviderErrorKind::Unavailable) without CUDA, a driver or such
    /// a device; else what the driver reports.
    pub fn new(ordinal: u16) -> Result<Self, ProviderError> {
        Self::with_priority(ordinal, 0)
    }

    /// As [`CudaStream::new`]; work on streams with a lower number goes first.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    pub fn with_priority(ordinal: u16, priority: i32) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        ending::end_overdue();
        let handle = context.stream_create(priority)?;
        // The driver hands out the handle of a destroyed stream again; this tells the two apart.
        let stream = Stream::with_identity(handle, names::next_identity());
        Ok(Self { context, stream, ownership: Ownership::Owned })
    }

    /// The legacy default stream of a device: the one that handle 0 means, and that all blocking streams wait for.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    pub fn legacy_default(ordinal: u16) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        Ok(Self { context, stream: Stream::from_raw(LEGACY), ownership: Ownership::Borrowed })
    }

    /// The calling thread's default stream of a device. Other threads may name it to an allocator; work submitted to
    /// it by them goes to the legacy default stream, which orders no less.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    pub fn per_thread_default(ordinal: u16) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        Ok(Self { context, stream: names::stream_named(PER_THREAD), ownership: Ownership::Borrowed })
    }

    /// A stream of somebody else by its `CUstream` (or `cudaStream_t`), as PyTorch (`stream.cuda_stream`), CuPy
    /// (`stream.ptr`) or C give it. One of [`CudaStream::new`] retires what is borrowed of it when it goes.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    ///
    /// # Safety
    /// The handle is a living stream of the device `ordinal`. Before it is destroyed, [`CudaStream::retire`] is called
    /// on this, or on another of the same handle; allocations and releases on it come before that.
    pub unsafe fn from_raw(ordinal: u16, handle: u64) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        ending::end_overdue();
        Ok(Self { context, stream: names::stream_named(handle), ownership: Ownership::Borrowed })
    }

    /// As [`CudaStream::from_raw`], keeping `owner` alive as long as this lives; retired before the last owner of this stream
    /// goes.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    ///
    /// # Safety
    /// The handle is a stream of the device `ordinal` that lives at least as long as `owner`. If others share the
    /// owner and use allocators with the same handle, they do so through a `CudaStream` of their own.
    pub unsafe fn from_raw_kept(
        ordinal: u16,
        handle: u64,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, ProviderError> {
        // SAFETY: the stream lives, says the caller, and dropping this retires it.
        let stream = unsafe { Self::from_raw(ordinal, handle) }?;
        ending::keep(stream.stream);
        Ok(Self { context: stream.context, stream: stream.stream, ownership: Ownership::Kept(owner) })
    }

    /// A stream of the crate `cust`, kept alive.
    ///
    /// # Errors
    /// As [`CudaStream::new`], and [`ProviderErrorKind::InvalidArgument`](alloc_core::ProviderErrorKind::InvalidArgument) if the
    /// stream is another device's.
    #[cfg(feature = "cuda")]
    pub fn from_cust(ordinal: u16, stream: cust::stream::Stream) -> Result<Self, ProviderError> {
        let (context, handle) = (Context::open(ordinal)?, stream.as_inner() as u64);
        // SAFETY: the stream is alive, and `cust` makes no default ones.
        if unsafe { context.stream_device(handle) }? != context.device() {
            let kind = alloc_core::ProviderErrorKind::InvalidArgument;
            return Err(ProviderError::new(context.name(), "cuStreamGetCtx", kind, "the stream is another device's"));
        }
        // SAFETY: the stream is alive, of that device, and moves into this.
        unsafe { Self::from_raw_kept(ordinal, handle, Box::new(stream)) }
    }

    /// The stream as allocators, buffers and transfers take it.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The driver's handle (`CUstream`), for kernel launches.
    pub fn handle(&self) -> u64 {
        self.stream.handle()
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.context.name()
    }

    pub(crate) fn context(&self) -> &'static Context {
        self.context
    }

    pub(crate) fn target(&self) -> Target {
        Target::of(self.stream)
    }

    /// Waits until all work submitted so far is done.
    ///
    /// # Errors
    /// What the driver reports, failures of earlier work included.
    pub fn synchronize(&self) -> Result<(), ProviderError> {
        // SAFETY: the stream lives as long as this.
        unsafe { self.context.stream_synchronize(self.target()) }
    }

    /// Whether all work submitted so far is done.
    ///
    /// # Errors
    /// What the driver reports, failures of earlier work included.
    pub fn is_idle(&self) -> Result<bool, ProviderError> {
        // SAFETY: the stream lives as long as this.
        unsafe { self.context.stream_is_idle(self.target()) }
    }

    /// Whether work is captured into a graph at present instead of run.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn is_capturing(&self) -> Result<bool, ProviderError> {
        // SAFETY: the stream lives as long as this.
        unsafe { self.context.stream_is_capturing(self.target()) }
    }

    /// Makes work submitted to this stream from now on start after all work submitted to `earlier` so far. The two
    /// may be of different devices.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn wait_for(&self, earlier: &Self) -> Result<(), ProviderError> {
        // SAFETY: both streams live.
        let event = unsafe { Event::record(earlier.context, earlier.stream) }?;
        // SAFETY: as above.
        unsafe { event.make_wait(self.context, self.stream) }
    }

    /// Tells every pool that the stream is about to be destroyed. Streams that are owned or kept alive do it by
    /// themselves.
    pub fn retire(&self) {
        global::retire(self.stream);
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.ownership, Ownership::Borrowed) {
            Ownership::Owned => ending::end_owned(self.context, self.stream),
            Ownership::Kept(owner) => ending::end_kept(self.context, self.stream, owner),
            Ownership::Borrowed => {}
        }
    }
}

impl fmt::Debug for CudaStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ownership = match self.ownership {
            Ownership::Owned => "owned",
            Ownership::Kept(_) => "kept alive",
            Ownership::Borrowed => "borrowed",
        };
        f.debug_struct("CudaStream")
            .field("device", &self.device())
            .field("stream", &self.stream)
            .field("ownership", &ownership)
            .finish()
    }
}
