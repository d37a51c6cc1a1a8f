//! Collections whose elements live in an allocator's memory.

use std::alloc::Layout as PlainLayout;
use std::ptr::{NonNull, with_exposed_provenance_mut};

use alloc_core::{Address, AllocatorHandle, Block, BlockId, Device, DeviceAllocator, Layout, Stream, StreamSet};
use allocator_api2::alloc::{AllocError, Allocator};
use thiserror::Error;

/// Puts `Vec`, `Box` and whatever else takes an [`allocator_api2`] allocator into the memory of a
/// [`DeviceAllocator`], if the processor reaches that.
///
/// Clones allocate from the same allocator. In front of each piece of memory stand 32 bytes that say which block it
/// lies in, so pieces are best large. Memory is taken on the stream that is [chosen](HostAlloc::on_stream), whose work
/// is waited for, as memory may come back while a device still uses it; it is given back on the same stream.
///
/// ```
/// use alloc_cpu::{HostAlloc, SystemAllocator};
/// use allocator_api2::{boxed::Box, vec::Vec};
///
/// let allocator = SystemAllocator::new();
/// let host = HostAlloc::borrowed(&allocator)?;
/// let mut squares = Vec::new_in(host.clone());
/// squares.extend((0..1000u64).map(|n| n * n));
/// let answer = Box::new_in(42, host);
/// assert_eq!((squares[30], *answer), (900, 42));
/// # Ok::<(), alloc_cpu::NotHostAccessible>(())
/// ```
#[derive(Clone, Debug)]
pub struct HostAlloc<'a> {
    source: Source<'a>,
    stream: Stream,
}

#[derive(Clone, Debug)]
enum Source<'a> {
    Borrowed(&'a dyn DeviceAllocator),
    Kept(AllocatorHandle),
}

/// The processor can't reach this device's memory, so no collection can live there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("memory of {device} can't be reached by the processor")]
#[non_exhaustive]
pub struct NotHostAccessible {
    /// The device.
    pub device: Device,
}

impl<'a> HostAlloc<'a> {
    /// Collections in the memory of an allocator that outlives them.
    ///
    /// # Errors
    /// [`NotHostAccessible`].
    pub fn borrowed(allocator: &'a dyn DeviceAllocator) -> Result<Self, NotHostAccessible> {
        check(allocator.device())?;
        Ok(Self { source: Source::Borrowed(allocator), stream: Stream::DEFAULT })
    }

    /// Allocates and releases on `stream` instead of the default one.
    #[must_use]
    pub fn on_stream(mut self, stream: Stream) -> Self {
        self.stream = stream;
        self
    }

    fn allocator(&self) -> &dyn DeviceAllocator {
        match &self.source {
            Source::Borrowed(allocator) => *allocator,
            Source::Kept(handle) => &**handle,
        }
    }
}

impl HostAlloc<'static> {
    /// Collections that keep their allocator alive, or use one that lives as long as the process.
    ///
    /// # Errors
    /// [`NotHostAccessible`].
    pub fn new(allocator: impl Into<AllocatorHandle>) -> Result<Self, NotHostAccessible> {
        let handle = allocator.into();
        check(handle.device())?;
        Ok(Self { source: Source::Kept(handle), stream: Stream::DEFAULT })
    }
}

fn check(device: Device) -> Result<(), NotHostAccessible> {
    if device.is_host_accessible() { Ok(()) } else { Err(NotHostAccessible { device }) }
}

/// What stands in front of a piece of memory: the block around it, by its parts.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    address: u64,
    size: u64,
    id: u64,
    /// Address of the memory itself: what lies between it and the block's end is its capacity.
    payload: u64,
}

const HEADER: u64 = size_of::<Header>() as u64;
const HEADER_ALIGN: u64 = align_of::<Header>() as u64;

/// Pools hand out whole units of this many bytes, so larger blocks are asked for in units, and growth within one is
/// free.
const UNIT: u64 = 512;

impl Header {
    fn block(&self) -> Block {
        Block::from_parts(Address::new(self.address), self.size, BlockId::from_bits(self.id))
    }

    /// How many bytes the memory has from its start to the block's end.
    fn capacity(&self) -> usize {
        (self.address + self.size - self.payload) as usize
    }

    /// # Safety
    /// `payload` came from [`HostAlloc::obtain`] and has not been given back.
    unsafe fn of(payload: NonNull<u8>) -> Self {
        // SAFETY: `obtain` has written a header just before the payload, which is aligned for it.
        unsafe { payload.cast::<Self>().sub(1).read() }
    }
}

impl HostAlloc<'_> {
    /// Memory for a layout whose size is not zero, behind a header.
    fn obtain(&self, plain: PlainLayout) -> Option<NonNull<[u8]>> {
        let align = (plain.align() as u64).max(HEADER_ALIGN);
        // The payload begins at the first multiple of the alignment that leaves room for the header.
        let before = HEADER.checked_next_multiple_of(align)?;
        let exact = before.checked_add(plain.size() as u64)?;
        let bytes = if exact < UNIT { exact } else { exact.checked_next_multiple_of(UNIT)? };
        let layout = Layout::new(bytes, align).ok()?;
        let block = match self.allocator().allocate(layout, self.stream) {
            Ok(block) => block,
            Err(error) => {
                tracing::debug!(%error, "a collection could not grow");
                return None;
            }
        };
        let payload = block.address().checked_add(before)?.get();
        // Released memory may come back while work that was submitted to the stream still uses it.
        if let Err(error) = self.allocator().transfer().synchronize(self.stream) {
            tracing::debug!(%error, "a collection could not grow");
            // SAFETY: nobody has used the block, and it is released once.
            if let Err(error) = unsafe { self.allocator().release(block, self.stream, StreamSet::EMPTY) } {
                tracing::warn!(%error, "memory of a collection was not taken back");
            }
            return None;
        }
        let header = Header { address: block.address().get(), size: block.size(), id: block.id().to_bits(), payload };
        let memory = NonNull::new(with_exposed_provenance_mut::<u8>(payload as usize))?;
        // SAFETY: the block is new, the processor reaches it, and its alignment and `before` leave an aligned place
        // for the header between its start and the payload.
        unsafe { memory.cast::<Header>().sub(1).write(header) };
        Some(NonNull::slice_from_raw_parts(memory, header.capacity()))
    }

    /// # Safety
    /// `payload` came from [`HostAlloc::obtain`] of this allocator or a clone, and is given back once and used no
    /// more.
    unsafe fn give_back(&self, payload: NonNull<u8>) {
        // SAFETY: the caller's promises include this one's.
        let block = unsafe { Header::of(payload) }.block();
        // SAFETY: the caller gives the block up, and used it from the host, whose work is done.
        if let Err(error) = unsafe { self.allocator().release(block, self.stream, StreamSet::EMPTY) } {
            tracing::warn!(%error, "memory of a collection was not taken back");
        }
    }

    /// The same memory, if it is aligned and large enough for the new layout.
    ///
    /// # Safety
    /// `payload` came from [`HostAlloc::obtain`] and has not been given back.
    unsafe fn in_place(payload: NonNull<u8>, new: PlainLayout) -> Option<NonNull<[u8]>> {
        // SAFETY: the caller's promise.
        let capacity = unsafe { Header::of(payload) }.capacity();
        let fits = new.size() <= capacity && payload.addr().get().is_multiple_of(new.align());
        fits.then(|| NonNull::slice_from_raw_parts(payload, capacity))
    }

    /// # Safety
    /// What [`Allocator::grow`] and [`Allocator::shrink`] ask for, but for which of the sizes is larger.
    unsafe fn resize(&self, old: NonNull<u8>, from: PlainLayout, to: PlainLayout) -> Option<NonNull<[u8]>> {
        if from.size() == 0 {
            return self.allocate(to).ok();
        }
        if to.size() == 0 {
            // SAFETY: the caller hands over memory of this allocator, which is not empty.
            unsafe { self.give_back(old) };
            return Some(empty(to));
        }
        // SAFETY: the caller hands over memory of this allocator, which is not empty.
        if let Some(same) = unsafe { Self::in_place(old, to) } {
            return Some(same);
        }
        let new = self.obtain(to)?;
        // SAFETY: both are valid for the smaller of the sizes, and apart, since the old one still lives.
        unsafe { old.copy_to_nonoverlapping(new.cast(), from.size().min(to.size())) };
        // SAFETY: the caller hands over memory of this allocator, whose contents have been copied.
        unsafe { self.give_back(old) };
        Some(new)
    }
}

/// Memory of no bytes: an aligned address that nothing is behind.
fn empty(layout: PlainLayout) -> NonNull<[u8]> {
    let aligned = std::num::NonZeroUsize::new(layout.align()).unwrap_or(std::num::NonZeroUsize::MIN);
    NonNull::slice_from_raw_parts(NonNull::without_provenance(aligned), 0)
}

// SAFETY: memory stays valid until it is given back or its allocator is gone, which every clone keeps alive or borrows,
// wherever these are moved; and clones, having the same allocator, can give back what the others obtained.
unsafe impl Allocator for HostAlloc<'_> {
    fn allocate(&self, layout: PlainLayout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        self.obtain(layout).ok_or(AllocError)
    }

    unsafe fn deallocate(&self, memory: NonNull<u8>, layout: PlainLayout) {
        if layout.size() != 0 {
            // SAFETY: the caller hands over memory of this allocator; it is not empty, so `obtain` made it.
            unsafe { self.give_back(memory) };
        }
    }

    unsafe fn grow(&self, old: NonNull<u8>, from: PlainLayout, to: PlainLayout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promises are the same.
        unsafe { self.resize(old, from, to) }.ok_or(AllocError)
    }

    unsafe fn grow_zeroed(
        &self,
        old: NonNull<u8>,
        from: PlainLayout,
        to: PlainLayout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promises are the same.
        let new = unsafe { self.resize(old, from, to) }.ok_or(AllocError)?;
        // SAFETY: the memory is ours and `new.len()` bytes long, no less than either size.
        unsafe { new.cast::<u8>().add(from.size()).write_bytes(0, new.len() - from.size()) };
        Ok(new)
    }

    unsafe fn shrink(&self, old: NonNull<u8>, from: PlainLayout, to: PlainLayout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promises are the same.
        unsafe { self.resize(old, from, to) }.ok_or(AllocError)
    }
}
