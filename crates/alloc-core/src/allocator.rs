//! The trait that every allocator implements, and handles to one.

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

use crate::{
    AllocError, Block, Device, Layout, ReleaseError, Statistics, Stream, StreamSet, Transfer, forward_allocator,
};

/// Hands out device memory in stream order.
///
/// ```
/// use alloc_core::{Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, StreamSet};
///
/// fn use_memory(allocator: &dyn DeviceAllocator) -> Result<(), Box<dyn std::error::Error>> {
///     let block = allocator.allocate(Layout::array::<f32>(1000)?, Stream::DEFAULT)?;
///     // ... submit work to the stream that uses `block.address()` ...
///     assert_eq!(allocator.statistics().requested.current, 4000);
///     // SAFETY: all work on the block was submitted to its stream, and none follows.
///     unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY)? };
///     Ok(())
/// }
/// use_memory(&SimulatedAllocator::new(Device::cuda(0), 1 << 30))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Streams
/// A block is born on the stream that it was allocated for: work submitted there after [`allocate`] returns may use
/// it. Work on another stream may use it once that stream was made to wait for the first, and such a stream must be
/// named in `uses` at release. Streams named to an allocator are living streams of its device, or the default one.
///
/// # Safety
/// Safe code makes references to a block's memory and has it copied, so it must be there. An implementation promises:
///
/// - From the `Ok` of [`allocate`] on, the memory from the block's address on is valid for reads and writes of
///   `layout.size()` bytes, which the block gives as its size, by work of the device. It stays so until the block is
///   [released](DeviceAllocator::release) or the allocator is dropped; moving the allocator does not count. The address
///   is a multiple of `layout.align()`.
/// - The memory is disjoint from that of every other living block and from all else that the program owns. Work of its
///   former owners is complete, or comes before all work that is submitted to `stream` from now on.
/// - If the [device](DeviceAllocator::device) is [host-accessible](Device::is_host_accessible), the same holds for the
///   processor once it has waited for `stream`; the address is one with exposed provenance.
/// - [`device`](DeviceAllocator::device) is always the same, and [`transfer`](DeviceAllocator::transfer) copies and
///   fills all memory of that device, in the order of the streams that [`allocate`] knows.
///
/// Nothing is promised of the addresses of a [simulated](Device::is_simulated) device.
///
/// [`allocate`]: DeviceAllocator::allocate
pub unsafe trait DeviceAllocator: Debug + Send + Sync {
    /// The device whose memory this allocator hands out.
    fn device(&self) -> Device;

    /// A block of at least `layout.size()` bytes, aligned to `layout.align()`, that work submitted to `stream` after
    /// this returns may use at once. Its contents are undefined.
    ///
    /// Zero bytes give a valid block of length zero whose address is unique among living blocks.
    ///
    /// # Errors
    /// [`AllocError`] with the figures; nothing was allocated.
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError>;

    /// Takes a block back in stream order: returns without waiting, and work submitted to `stream` later may be
    /// given the memory at once. Other streams get it only once the work of `stream` and of all `uses` that was
    /// submitted before this call is known to be complete, or is waited for.
    ///
    /// # Errors
    /// [`ReleaseError`]: a foreign block or one released before is recognised and refused; the books stay as they
    /// were.
    ///
    /// # Safety
    /// Every use of the block was submitted to `stream`, or to the stream it was allocated on, or to one of `uses`,
    /// before this call, and none follows. Whoever made copies of the block releases it once.
    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError>;

    /// The figures so far.
    fn statistics(&self) -> Statistics;

    /// Gives physical memory back until at most `keep` bytes are reserved, as far as blocks in use allow; returns
    /// the bytes given back. May wait for work that still uses released memory.
    fn trim(&self, keep: u64) -> u64;

    /// The counterpart of [`trim`](DeviceAllocator::trim): makes physical memory now, in place of when it is first needed, until at least
    /// `bytes` are reserved; returns how many are. The memory is free, for blocks of every size and stream. `stream` is one that the
    /// program works on: what is free already, and others used last, may be waited for there.
    ///
    /// An allocator that keeps no memory beyond blocks in use makes none.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`] if there is not so much, or the allocator may not have it. What could be made stays, as free
    /// memory.
    fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        let _ = (bytes, stream);
        Ok(self.statistics().reserved.current)
    }

    /// What copies and fills this allocator's memory.
    fn transfer(&self) -> &dyn Transfer;

    /// Says that `stream` is about to be destroyed: no further call will name it, but for releases of blocks that outlive it.
    /// What was cached for it is handed on to others, and once this has returned the backend is not asked about it any more. The
    /// default does nothing, which suits allocators that keep nothing by stream.
    fn retire_stream(&self, stream: Stream) {
        let _ = stream;
    }
}

/// Keeps an allocator within reach: one that lives as long as the process, at no cost, or a private one by a counted
/// reference.
///
/// Copies of the `Global` form touch no shared memory, so threads that make buffers from a process-wide allocator
/// never meet at a reference count. A private allocator goes into an `Arc` first. A handle is an allocator itself, so
/// adaptors wrap it like any other.
///
/// ```
/// use std::sync::Arc;
/// use alloc_core::adaptor::Limited;
/// use alloc_core::{AllocatorHandle, Device, DeviceAllocator, SimulatedAllocator};
///
/// let private = Arc::new(SimulatedAllocator::new(Device::CPU, 1 << 30));
/// let handle = AllocatorHandle::from(private);
/// let limited = AllocatorHandle::from(Arc::new(Limited::new(handle.clone(), 1 << 20)));
/// assert_eq!(limited.device(), handle.device());
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "an allocator lives as long as the process, or is counted")]
pub enum AllocatorHandle {
    /// Lives as long as the process.
    Global(&'static dyn DeviceAllocator),
    /// Lives as long as its handles.
    Shared(Arc<dyn DeviceAllocator>),
}

impl Deref for AllocatorHandle {
    type Target = dyn DeviceAllocator;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Global(allocator) => *allocator,
            Self::Shared(allocator) => &**allocator,
        }
    }
}

impl From<&'static dyn DeviceAllocator> for AllocatorHandle {
    fn from(allocator: &'static dyn DeviceAllocator) -> Self {
        Self::Global(allocator)
    }
}

impl<A: DeviceAllocator> From<&'static A> for AllocatorHandle {
    fn from(allocator: &'static A) -> Self {
        Self::Global(allocator)
    }
}

impl From<Arc<dyn DeviceAllocator>> for AllocatorHandle {
    fn from(allocator: Arc<dyn DeviceAllocator>) -> Self {
        Self::Shared(allocator)
    }
}

impl<A: DeviceAllocator + 'static> From<Arc<A>> for AllocatorHandle {
    fn from(allocator: Arc<A>) -> Self {
        Self::Shared(allocator)
    }
}

macro_rules! forward_from_pointer {
    ($([$($generics:tt)*] $pointer:ty),+ $(,)?) => {$(
        // SAFETY: all is answered by the allocator behind the pointer, which keeps the promises.
        unsafe impl<$($generics)*> DeviceAllocator for $pointer {
            forward_allocator!(self => **self);
        }
    )+};
}

forward_from_pointer!(
    [A: DeviceAllocator + ?Sized] &A,
    [A: DeviceAllocator + ?Sized] Box<A>,
    [A: DeviceAllocator + ?Sized] Arc<A>,
    [] AllocatorHandle,
);
