//! Streams of the crate `cudarc`, and our buffers as its slices.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, RangeBounds};
use std::sync::Arc;

use alloc_core::{Device, ProviderError};
use buffer::{Buffer, BufferError};
use bytemuck::Pod;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

use crate::driver::Context;
use crate::driver::stream::Target;
use crate::ending;
use crate::stream::CudaStream;

impl CudaStream {
    /// A stream of `cudarc`, kept alive. Work that `cudarc` submits to it and allocations for
    /// [`CudaStream::stream`] are in one order.
    ///
    /// # Errors
    /// As [`CudaStream::new`].
    pub fn from_cudarc(stream: Arc<cudarc::driver::CudaStream>) -> Result<Self, ProviderError> {
        let (ordinal, handle) = (ordinal_of(&stream), stream.cu_stream() as u64);
        // SAFETY: the counted reference keeps the stream alive.
        unsafe { Self::from_raw_kept(ordinal, handle, Box::new(stream)) }
    }
}

fn ordinal_of(stream: &cudarc::driver::CudaStream) -> u16 {
    u16::try_from(stream.context().ordinal()).unwrap_or(u16::MAX)
}

/// A [`Buffer`] as a device slice of `cudarc`, without copying.
///
/// Kernels and libraries take it as they take any `CudaSlice`: by reference, or through a view. `cudarc`'s own stream
/// that the slice is made for is ordered after the buffer's work so far; what `cudarc` submits is declared to the
/// buffer. The memory stays the buffer's: dropping this drops the buffer, and [`CudarcSlice::into_buffer`] hands it
/// back. The stream lives at least as long as this. Who makes several slices for it does well to have a
/// [`CudaStream::from_cudarc`] of it meanwhile, lest the stream is retired with each of them.
///
/// ```no_run
/// use alloc_cuda::{CudaStream, CudarcSlice};
/// use buffer::Buffer;
/// use cudarc::driver::{CudaContext, DeviceSlice};
///
/// let theirs = CudaContext::new(0)?.new_stream()?;
/// let stream = CudaStream::from_cudarc(theirs.clone())?;
/// let buffer = Buffer::zeroed_on(alloc_cuda::global(0)?, 4096, stream.stream())?;
/// let slice = CudarcSlice::<f32>::new(buffer, &theirs)?;
/// assert_eq!(slice.len(), 1024);
/// let host: Vec<f32> = theirs.clone_dtoh(&*slice)?;
/// let buffer = slice.into_buffer();
/// # let _ = (host, buffer);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CudarcSlice<T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    buffer: ManuallyDrop<Buffer>,
    /// The slice's stream, which the buffer names when it is dropped; goes after it.
    stream: ManuallyDrop<CudaStream>,
}

/// A buffer that can't be a slice. It is in the error, unharmed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudarcError {
    /// The buffer is not memory of the stream's device.
    #[error("the buffer is on {found}, the stream on {expected}")]
    WrongDevice {
        /// The stream's device.
        expected: Device,
        /// The buffer's.
        found: Device,
        /// The buffer.
        buffer: Box<Buffer>,
    },
    /// The buffer's address is no multiple of the element's alignment, or elements have no size.
    #[error("{address:#x} can't hold elements of {size} bytes aligned to {align}")]
    Layout {
        /// The buffer's address.
        address: u64,
        /// An element's size in bytes.
        size: usize,
        /// Its alignment in bytes.
        align: usize,
        /// The buffer.
        buffer: Box<Buffer>,
    },
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] ProviderError),
    /// The buffer's work could not be ordered before the slice's.
    #[error("{source}")]
    Order {
        /// Why.
        source: Box<BufferError>,
        /// The buffer.
        buffer: Box<Buffer>,
    },
}

impl<T: Pod> CudarcSlice<T> {
    /// The buffer's whole elements as a slice that belongs to `stream`. Bytes behind the last whole element stay
    /// untouched.
    ///
    /// # Errors
    /// [`CudarcError`], with the buffer in it, save where the driver itself failed at its start.
    ///
    /// # Panics
    /// `cudarc` panics if the driver can't make two events.
    pub fn new(buffer: Buffer, stream: &Arc<cudarc::driver::CudaStream>) -> Result<Self, CudarcError> {
        let context = Context::open(ordinal_of(stream))?;
        let buffer = Box::new(buffer);
        if buffer.device() != context.name() {
            let found = buffer.device();
            return Err(CudarcError::WrongDevice { expected: context.name(), found, buffer });
        }
        let (size, align, address) = (size_of::<T>(), align_of::<T>(), buffer.address().get());
        if size == 0 || !address.is_multiple_of(align as u64) {
            return Err(CudarcError::Layout { address, size, align, buffer });
        }
        let ours = CudaStream::from_cudarc(Arc::clone(stream))?;
        if let Err(source) = buffer.make_ready_on(ours.stream()) {
            return Err(CudarcError::Order { source: Box::new(source), buffer });
        }
        // `cudarc` makes its context current for the calling thread; the guard puts that right.
        let _current = context.enter()?;
        let elements = (buffer.len() / size as u64) as usize;
        // SAFETY: the buffer owns the memory as long as the slice, which never frees it; any bytes are a `T`.
        let slice = unsafe { stream.upgrade_device_ptr(address, elements) };
        buffer.use_on(ours.stream());
        Ok(Self {
            slice: ManuallyDrop::new(slice),
            buffer: ManuallyDrop::new(*buffer),
            stream: ManuallyDrop::new(ours),
        })
    }

    /// All elements, for kernels that write.
    ///
    /// The slice itself is lent only shared: exchanged for another it would free memory that is not `cudarc`'s.
    pub fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.as_view_mut()
    }

    /// Some elements, for kernels that write.
    ///
    /// # Panics
    /// If the range is out of bounds, as `cudarc`'s own does.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> CudaViewMut<'_, T> {
        self.slice.slice_mut(range)
    }

    /// All elements.
    pub fn as_view(&self) -> CudaView<'_, T> {
        self.slice.as_view()
    }

    /// The buffer again. What `cudarc` has submitted is declared to it.
    ///
    /// Waits for that if nobody else has a [`CudaStream::from_cudarc`] of the stream, so that the stream may end before
    /// the buffer does. Where it can't be waited for, as in a capture, the stream stays for the rest of the process.
    pub fn into_buffer(self) -> Buffer {
        let mut this = ManuallyDrop::new(self);
        this.part();
        // SAFETY: `this` is never dropped, and neither part of it is used again.
        let (buffer, stream) = unsafe { (ManuallyDrop::take(&mut this.buffer), ManuallyDrop::take(&mut this.stream)) };
        if ending::is_kept_by_one(stream.stream()) && !is_settled(&buffer, &stream) {
            std::mem::forget(stream);
        }
        buffer
    }
}

/// Waits until the buffer does not name the stream any more. Whether that is so.
fn is_settled(buffer: &Buffer, stream: &CudaStream) -> bool {
    let context = stream.context();
    let may_be_captured = |stream| {
        // SAFETY: the one stream lives, and who gave the other to the buffer says that it does.
        let is_captured = unsafe { context.stream_is_capturing(Target::of(stream)) };
        is_captured.unwrap_or(true)
    };
    ![stream.stream(), buffer.stream()].into_iter().any(may_be_captured) && buffer.synchronize().is_ok()
}

impl<T> CudarcSlice<T> {
    /// Takes the slice apart: its stream comes after all that other streams of `cudarc` do with it, and the buffer
    /// knows of that stream.
    fn part(&mut self) {
        let _current = self.stream.context().enter();
        // SAFETY: callers never use the slice again.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        slice.leak();
        self.buffer.use_on(self.stream.stream());
    }
}

impl<T> Deref for CudarcSlice<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> Drop for CudarcSlice<T> {
    fn drop(&mut self) {
        self.part();
        // SAFETY: neither is used again.
        unsafe {
            ManuallyDrop::drop(&mut self.buffer);
            ManuallyDrop::drop(&mut self.stream);
        }
    }
}

impl<T> fmt::Debug for CudarcSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudarcSlice").field("buffer", &*self.buffer).field("stream", &self.stream.stream()).finish()
    }
}
