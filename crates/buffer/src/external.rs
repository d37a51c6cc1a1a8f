//! Memory that somebody else owns.

use std::any::Any;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::sync::{Mutex, PoisonError};

use alloc_core::{Address, AllocatorHandle, Device, DeviceAllocator, DeviceKind, Layout, Stream, StreamSet};
use bytemuck::Pod;

use crate::raw;
use crate::release::{Releasing, report_leak, without_panic};
use crate::{Buffer, BufferError};

/// What keeps the memory of an external [`Buffer`] alive, and how it is let go when the buffer is dropped: exactly
/// once, and a panic then goes no further than a report.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use buffer::ExternalOwner;
/// let tensor = Arc::new(vec![0_u8; 16]);
/// let owner = ExternalOwner::keep(Arc::clone(&tensor));
/// assert_eq!(Arc::strong_count(&tensor), 2);
/// drop(owner);
/// assert_eq!(Arc::strong_count(&tensor), 1);
/// ```
pub struct ExternalOwner(Mutex<Release>);

type OrderedDeleter = dyn FnOnce(Stream, &StreamSet) + Send;

enum Release {
    Keep(Box<dyn Any + Send>),
    Finished(Box<dyn FnOnce() + Send>),
    Ordered(Box<OrderedDeleter>),
    /// Has run, or has been given up for good.
    Done,
}

impl ExternalOwner {
    /// Keeps `owner` (an `Arc`, a foreign handle) until all declared work on the buffer is done, then drops it.
    /// The drop of the buffer waits for that work. Work on the buffer's own stream is not known undeclared either: see
    /// [`Buffer::use_on`].
    pub fn keep(owner: impl Send + 'static) -> Self {
        Self(Mutex::new(Release::Keep(Box::new(owner))))
    }

    /// Calls `deleter` once all declared work on the buffer is done, as [`ExternalOwner::keep`]. The drop of the buffer
    /// waits for that work.
    pub fn deleter(deleter: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(Release::Finished(Box::new(deleter))))
    }

    /// Calls `deleter` at once with the buffer's stream and the other streams that have work on the memory, like
    /// `cudaFreeAsync`: the deleter does not end the memory before all of them have come past this point.
    pub fn ordered_deleter(deleter: impl FnOnce(Stream, &StreamSet) + Send + 'static) -> Self {
        Self(Mutex::new(Release::Ordered(Box::new(deleter))))
    }

    fn take(&mut self) -> Release {
        mem::replace(self.0.get_mut().unwrap_or_else(PoisonError::into_inner), Release::Done)
    }
}

impl Drop for ExternalOwner {
    fn drop(&mut self) {
        // Reached only without a buffer, when no work is known of. One that was never handed to a buffer still lets
        // its memory go.
        match self.take() {
            Release::Keep(owner) => drop(owner),
            Release::Finished(deleter) => deleter(),
            Release::Ordered(deleter) => deleter(Stream::DEFAULT, StreamSet::EMPTY),
            Release::Done => {}
        }
    }
}

impl fmt::Debug for ExternalOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalOwner").finish_non_exhaustive()
    }
}

/// A piece of external memory and its owner.
#[derive(Debug)]
pub(crate) struct External {
    address: Address,
    len: u64,
    owner: ExternalOwner,
}

impl External {
    pub(crate) const fn new(address: Address, len: u64, owner: ExternalOwner) -> Self {
        Self { address, len, owner }
    }

    pub(crate) const fn address(&self) -> Address {
        self.address
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn release(mut self, releasing: &Releasing<'_>) {
        let Releasing { allocator, stream, ledger } = releasing;
        let (allocator, bytes): (&dyn DeviceAllocator, _) = (&***allocator, self.len);
        // Whatever goes wrong before the work is known to be done, the memory must stay.
        let release = ManuallyDrop::new(self.owner.take());
        if ledger.is_unfinished() {
            return report_leak(allocator, bytes, &"a copy of it was never seen to finish");
        }
        // After a panic the owner is let go or leaked, as far as it got: there is nothing more to do.
        let _ = without_panic(allocator, bytes, || {
            if !matches!(*release, Release::Ordered(_)) {
                for used in ledger.in_flight(*stream).iter() {
                    if let Err(error) = allocator.transfer().synchronize(used) {
                        return report_leak(allocator, bytes, &error);
                    }
                }
            }
            match ManuallyDrop::into_inner(release) {
                Release::Keep(owner) => drop(owner),
                Release::Finished(deleter) => deleter(),
                Release::Ordered(deleter) => deleter(*stream, &ledger.uses()),
                Release::Done => {}
            }
        });
    }
}

impl Buffer {
    /// A buffer over the elements of a vector, which is dropped with the buffer; nothing is copied. `allocator` must
    /// be one of host memory: it copies and fills, and is where a [`Buffer::resize`] past the end moves the bytes to.
    ///
    /// # Errors
    /// [`BufferError::DeviceMismatch`] if the allocator's memory is not the host's.
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::from_vec(host, vec![1_u16, 2, 3])?;
    /// buffer.as_slice_mut::<u16>()?[0] = 9;
    /// assert!(buffer.is_external());
    /// assert_eq!(buffer.as_slice::<u16>()?, [9, 2, 3]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn from_vec<T: Pod + Send>(
        allocator: impl Into<AllocatorHandle>,
        elements: Vec<T>,
    ) -> Result<Self, BufferError> {
        let allocator = allocator.into();
        let device = allocator.device();
        if device.kind() != DeviceKind::CPU {
            return Err(BufferError::DeviceMismatch { expected: Device::CPU, found: device });
        }
        let (address, len, owner) = raw::dismantle(elements);
        let external = External::new(address, len, owner);
        let align = Layout::DEFAULT_ALIGN.max(align_of::<T>() as u64);
        let mut buffer = Self::from_external(allocator, external, align, Stream::DEFAULT);
        buffer.state_mut().extent.insert(0, len);
        Ok(buffer)
    }
}
