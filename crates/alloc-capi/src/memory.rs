//! Blocks by pointer: allocated, found, shared between streams, and freed.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{AllocError, Block, Device, DeviceAllocator, DeviceKind, Layout, LayoutError, Stream, StreamSet};
use rustc_hash::FxHashMap;

use crate::failure::Failure;
use crate::heaps::{self, HEAPS, Heap};
use crate::index::{Absent, Entry, INDEX, Owner};

/// The alignment of all blocks, at least: the unit of the index.
pub(crate) const ALIGN: u64 = 512;

/// Other streams that use a block. Few blocks have any.
static USES: Mutex<Option<FxHashMap<u64, StreamSet>>> = Mutex::new(None);

fn uses() -> MutexGuard<'static, Option<FxHashMap<u64, StreamSet>>> {
    USES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream that a caller names by its handle.
#[inline]
pub(crate) fn stream(device: Device, handle: u64) -> Result<Stream, Failure> {
    /// `CU_STREAM_PER_THREAD`: the default stream of the calling thread.
    const PER_THREAD: u64 = 2;
    if handle == PER_THREAD && device.kind() != DeviceKind::CPU {
        return per_thread_default(device);
    }
    Ok(Stream::from_raw(handle))
}

#[cold]
#[inline(never)]
fn per_thread_default(device: Device) -> Result<Stream, Failure> {
    Ok(alloc_cuda::CudaStream::per_thread_default(device.ordinal())?.stream())
}

fn layout(size: u64, align: u64) -> Result<Layout, Failure> {
    let as_failure = |error: LayoutError| Failure::Alloc(error.into());
    let strict = align > ALIGN || !(align == 0 || align.is_power_of_two());
    Layout::new(size, if strict { align } else { ALIGN }).map_err(as_failure)
}

/// A block of the device's heap; its address. Inlined, as what every call of a program comes through: where much else runs in
/// between, a call costs what it touches of code and memory.
#[inline(always)]
pub(crate) fn allocate(heap: &Heap, size: u64, align: u64, stream: Stream) -> Result<u64, Failure> {
    let block = take(heap, heap.allocator(), layout(size, align)?, stream)?;
    note(heap, heap.allocator(), heap.owner, block, stream)
}

/// A block of an allocator that has a number of its own, counted with the heap's.
#[cfg(feature = "cuda")]
pub(crate) fn allocate_from(
    heap: &Heap,
    (owner, allocator): (Owner, &dyn DeviceAllocator),
    size: u64,
    stream: Stream,
) -> Result<u64, Failure> {
    let block = take(heap, allocator, layout(size, ALIGN)?, stream)?;
    note(heap, allocator, owner, block, stream)
}

#[inline(always)]
fn take(heap: &Heap, allocator: &dyn DeviceAllocator, layout: Layout, stream: Stream) -> Result<Block, Failure> {
    allocator.allocate(layout, stream).map_err(|error| refused(heap, error))
}

#[cold]
#[inline(never)]
fn refused(heap: &Heap, error: AllocError) -> Failure {
    if error.is_out_of_memory() {
        heap.live.fail();
    }
    error.into()
}

#[inline(always)]
fn note(
    heap: &Heap,
    allocator: &dyn DeviceAllocator,
    owner: Owner,
    block: Block,
    stream: Stream,
) -> Result<u64, Failure> {
    let address = block.address().get();
    // Before anybody can find the block, lest it is taken off before it is counted.
    heap.live.add(block.size());
    if INDEX.insert(block, owner, stream) { Ok(address) } else { Err(take_back(heap, allocator, block, stream)) }
}

/// Gives a block back whose address the index can't hold.
#[cold]
#[inline(never)]
fn take_back(heap: &Heap, allocator: &dyn DeviceAllocator, block: Block, stream: Stream) -> Failure {
    heap.live.sub(block.size());
    // SAFETY: nobody has seen the block.
    let released = unsafe { allocator.release(block, stream, StreamSet::EMPTY) };
    released.map_or_else(Failure::from, |()| Failure::UnknownPointer { address: block.address().get() })
}

/// What a caller says of a block that it frees.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claim {
    /// The heap of the device.
    pub(crate) heap: Option<Owner>,
    pub(crate) size: Option<u64>,
    /// The stream of the last use; that of the allocation if it is not named.
    pub(crate) stream: Option<u64>,
}

impl Claim {
    /// The block's heap, if it is one's of a device, no other stream used it, and all that is said is so.
    #[inline(always)]
    fn heap_of(&self, entry: &Entry) -> Option<&'static Heap> {
        let is_so = self.heap.is_none_or(|named| named == entry.owner)
            && self.size.is_none_or(|named| named == entry.block.size())
            && self.stream.is_none_or(|named| named == entry.stream.handle())
            && !entry.shared;
        heaps::by_owner(entry.owner).filter(|_| is_so)
    }

    /// The stream of the block's last use, or what is said that is not so.
    fn check(&self, entry: &Entry) -> Result<Stream, Failure> {
        let (address, size) = (entry.block.address().get(), entry.block.size());
        let device = device_of(entry.owner);
        if let Some((named, device)) = self.heap.and_then(heaps::device_of).zip(device)
            && device != named
        {
            return Err(Failure::WrongDevice { address, device, named });
        }
        if let Some(named) = self.size.filter(|named| *named != size) {
            return Err(Failure::WrongSize { address, size, named });
        }
        match self.stream.zip(device) {
            Some((handle, device)) if handle != entry.stream.handle() => stream(device, handle),
            _ => Ok(entry.stream),
        }
    }
}

/// An address that no block starts at, or a claim that is wrong.
enum Refusal {
    Absent(Absent),
    Failure(Failure),
}

impl From<Absent> for Refusal {
    fn from(absent: Absent) -> Self {
        Self::Absent(absent)
    }
}

fn absent(address: u64, absent: Absent) -> Failure {
    match absent {
        Absent::Unknown => Failure::UnknownPointer { address },
        Absent::Freed => Failure::DoubleFree { address },
    }
}

/// The device whose memory an owner hands out.
pub(crate) fn device_of(owner: Owner) -> Option<Device> {
    if owner < HEAPS {
        return heaps::by_owner(owner).map(|heap| heap.device);
    }
    #[cfg(feature = "cuda")]
    {
        crate::torch::device_of(owner)
    }
    #[cfg(not(feature = "cuda"))]
    {
        None
    }
}

/// Frees the block at an address.
///
/// # Safety
/// All uses of the block were submitted to its stream, the one named, or those recorded, and none follows.
#[inline(always)]
pub(crate) unsafe fn free(address: u64, claim: Claim) -> Result<(), Failure> {
    if let Some((entry, heap)) = INDEX.take_if(address, |entry| claim.heap_of(entry)) {
        heap.live.sub(entry.block.size());
        // SAFETY: the caller's promise; the block is the heap's and was taken out of the index, once.
        return unsafe { heap.allocator().release(entry.block, entry.stream, StreamSet::EMPTY) }.map_err(Failure::from);
    }
    // SAFETY: the caller's promise.
    unsafe { free_with_care(address, claim) }
}

/// Frees a block that several streams used, or that is of a private pool, or says what is wrong.
///
/// # Safety
/// As [`free`].
#[cold]
#[inline(never)]
unsafe fn free_with_care(address: u64, claim: Claim) -> Result<(), Failure> {
    let last = Cell::new(Stream::DEFAULT);
    // All that can fail comes before the block is taken out, so that it stays where it is then.
    let accept = |entry: &Entry| claim.check(entry).map(|stream| last.set(stream)).map_err(Refusal::Failure);
    let entry = INDEX.take(address, accept).map_err(|refusal| match refusal {
        Refusal::Absent(why) => absent(address, why),
        Refusal::Failure(failure) => failure,
    })?;
    let last = last.get();
    let recorded = if entry.shared { uses().as_mut().and_then(|uses| uses.remove(&address)) } else { None };
    let streams = recorded.as_ref().unwrap_or(StreamSet::EMPTY);
    if let Some(heap) = heaps::by_owner(entry.owner) {
        heap.live.sub(entry.block.size());
        // SAFETY: the caller's promise.
        return Ok(unsafe { heap.allocator().release(entry.block, last, streams) }?);
    }
    #[cfg(feature = "cuda")]
    // SAFETY: as above, of the private pool.
    return unsafe { crate::torch::release(&entry, last, streams) };
    #[cfg(not(feature = "cuda"))]
    Err(Failure::UnknownPointer { address })
}

/// Notes that work on `handle` uses the block, so that freeing it waits for that work.
pub(crate) fn record(address: u64, handle: u64) -> Result<(), Failure> {
    let entry = find(address)?;
    let device = device_of(entry.owner).ok_or(Failure::UnknownPointer { address })?;
    let other = stream(device, handle)?;
    if other == entry.stream {
        return Ok(());
    }
    let mut uses = uses();
    if !INDEX.mark_shared(address) {
        return Err(Failure::DoubleFree { address });
    }
    uses.get_or_insert_default().entry(address).or_default().insert(other);
    Ok(())
}

/// What starts at an address.
pub(crate) fn find(address: u64) -> Result<Entry, Failure> {
    INDEX.find(address).map_err(|why| absent(address, why))
}

/// Tells all allocators of a device that one of its streams is about to be destroyed.
pub(crate) fn retire(device: Device, handle: u64) -> Result<(), Failure> {
    if device.kind() == DeviceKind::CPU {
        heaps::heap(device)?.allocator().retire_stream(Stream::from_raw(handle));
        return Ok(());
    }
    let stream = stream(device, handle)?;
    for heap in heaps::all().filter(|heap| heap.device.kind() != DeviceKind::CPU) {
        heap.allocator().retire_stream(stream);
    }
    #[cfg(feature = "cuda")]
    crate::torch::retire(stream);
    Ok(())
}
