//! Blocks by pointer: allocated, found, shared between streams, and freed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{
    AllocError, Block, Device, DeviceAllocator, DeviceKind, Layout, LayoutError, ReleaseError, Stream, StreamSet,
    forward_allocator,
};
use rustc_hash::FxHashMap;

use crate::failure::Failure;
use crate::heaps::{self, HEAPS, Heap, POOLS};
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
pub(crate) fn stream(device: Device, handle: u64) -> Stream {
    stream_of(heaps::owner_of(device), handle)
}

/// The same of a stream of the device whose memory the owner hands out.
#[inline]
fn stream_of(owner: Owner, handle: u64) -> Stream {
    if heaps::is_of_host(owner) { Stream::from_raw(handle) } else { alloc_cuda::stream_named(handle) }
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
    heap.live.asked_elsewhere(block.size());
    note(heap, allocator, owner, block, stream)
}

#[inline(always)]
fn take(heap: &Heap, allocator: &dyn DeviceAllocator, layout: Layout, stream: Stream) -> Result<Block, Failure> {
    allocator.allocate(layout, stream).map_err(|error| refused(heap, error))
}

#[cold]
#[inline(never)]
fn refused(heap: &Heap, error: AllocError) -> Failure {
    heap.count_failure(&error);
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
    /// The number of the heap of the device that the memory is of.
    pub(crate) owner: Option<Owner>,
    pub(crate) size: Option<u64>,
    pub(crate) last_use: LastUse,
}

/// The stream that a block was used on last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum LastUse {
    /// That of the allocation.
    #[default]
    Own,
    /// The one that has this handle at present.
    On(u64),
    /// That of the allocation if it had this handle, whoever has it now, and whichever thread's default stream it is.
    #[cfg(feature = "cuda")]
    AllocatedOn(u64),
}

impl Claim {
    /// The heap that the block goes back to without more ado: it is a device's own, no other stream was recorded, and all that is
    /// said is so at first sight.
    #[inline(always)]
    fn simply(&self, entry: &Entry) -> Option<&'static Heap> {
        let is_so = self.owner.is_none_or(|named| named == entry.owner)
            && self.size.is_none_or(|named| named == entry.block.size())
            && self.other_stream(entry).is_none()
            && !entry.shared;
        heaps::by_owner(entry.owner).filter(|_| is_so)
    }

    /// The stream of the last use, if it is another than the block's.
    #[inline(always)]
    fn other_stream(&self, entry: &Entry) -> Option<Stream> {
        let named = match self.last_use {
            LastUse::Own => return None,
            LastUse::On(handle) => stream_of(entry.owner, handle),
            #[cfg(feature = "cuda")]
            LastUse::AllocatedOn(handle) if handle == entry.stream.handle() => return None,
            #[cfg(feature = "cuda")]
            LastUse::AllocatedOn(handle) => stream_of(entry.owner, handle),
        };
        (named != entry.stream).then_some(named)
    }

    /// What is said that is not so.
    fn check(&self, entry: &Entry) -> Result<(), Failure> {
        let (address, size) = (entry.block.address().get(), entry.block.size());
        if let Some(named) = self.owner.filter(|named| *named != entry.owner).and_then(heaps::device_numbered)
            && let Some(device) = device_of(entry.owner).filter(|device| *device != named)
        {
            return Err(Failure::WrongDevice { address, device, named });
        }
        match self.size.filter(|named| *named != size) {
            Some(named) => Err(Failure::WrongSize { address, size, named }),
            None if heaps::is_lent(entry.owner) => Err(Failure::Lent { address }),
            None => Ok(()),
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
    if owner < POOLS {
        return heaps::by_owner(owner % HEAPS).map(|heap| heap.device);
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
    if let Some((entry, heap)) = INDEX.take_if(address, |entry| claim.simply(entry)) {
        heap.live.sub(entry.block.size());
        // SAFETY: the caller's promise; the block is the heap's, was taken out of the index, once, and no other stream was recorded.
        return unsafe { heap.allocator().release(entry.block, entry.stream, StreamSet::EMPTY) }.map_err(Failure::from);
    }
    // SAFETY: the caller's promise.
    unsafe { free_with_care(address, claim) }
}

/// Frees a block of any kind, or says what is wrong. Those come here that several streams used, that are freed on another stream than their
/// own, that are of private pools, or that found no place in the index's front.
///
/// # Safety
/// As [`free`].
#[cold]
#[inline(never)]
unsafe fn free_with_care(address: u64, claim: Claim) -> Result<(), Failure> {
    let entry =
        INDEX.take(address, |entry| claim.check(entry).map_err(Refusal::Failure)).map_err(|refusal| match refusal {
            Refusal::Absent(why) => absent(address, why),
            Refusal::Failure(failure) => failure,
        })?;
    let last = claim.other_stream(&entry).unwrap_or(entry.stream);
    let recorded = take_recorded(&entry);
    let streams = recorded.as_ref().unwrap_or(StreamSet::EMPTY);
    if let Some(heap) = heaps::by_owner(entry.owner) {
        heap.live.sub(entry.block.size());
        // SAFETY: the caller's promise; the block is the heap's and was taken out of the index, once.
        return Ok(unsafe { heap.allocator().release(entry.block, last, streams) }?);
    }
    #[cfg(feature = "cuda")]
    // SAFETY: as above, of the private pool.
    return unsafe { crate::torch::release(&entry, last, streams) };
    #[cfg(not(feature = "cuda"))]
    Err(Failure::UnknownPointer { address })
}

/// The streams that were recorded for a block that was taken out of the index.
fn take_recorded(entry: &Entry) -> Option<StreamSet> {
    if entry.shared { uses().as_mut()?.remove(&entry.block.address().get()) } else { None }
}

/// Notes that work on `handle` uses the block, so that freeing it waits for that work.
pub(crate) fn record(address: u64, handle: u64) -> Result<(), Failure> {
    let entry = find(address)?;
    let device = device_of(entry.owner).ok_or(Failure::UnknownPointer { address })?;
    let other = stream(device, handle);
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

/// Makes work on `handle` from now on come after all that the block's own stream was given so far, and freeing the block wait for
/// that work.
pub(crate) fn hand_to(address: u64, handle: u64) -> Result<(), Failure> {
    let entry = find(address)?;
    let unknown = Failure::UnknownPointer { address };
    let heap = device_of(entry.owner).and_then(heaps::by_device).ok_or(unknown)?;
    let to = stream(heap.device, handle);
    if to != entry.stream {
        heap.transfer().order_after(to, entry.stream)?;
    }
    record(address, handle)
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
    alloc_cuda::retire_stream(stream(device, handle));
    Ok(())
}

/// A heap for those who keep their blocks and give them back by themselves, as buffers do: what they hold is counted and found as all
/// else is, streams can be recorded for it, and nobody else can free it by pointer.
// SAFETY: all is answered by the allocator within, to which each block goes back once.
unsafe impl DeviceAllocator for Heap {
    fn device(&self) -> Device {
        self.device
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let layout = Layout::new(layout.size(), layout.align().max(ALIGN))?;
        let block = self.allocator().allocate(layout, stream).inspect_err(|error| self.count_failure(error))?;
        self.live.add(block.size());
        if !INDEX.insert(block, heaps::lent(self.owner), stream) {
            // Only an allocator of the program's own has such addresses; the block is as good, and unknown.
            self.live.sub(block.size());
        }
        Ok(block)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let is_it = |entry: &Entry| if entry.block == block { Ok(()) } else { Err(Absent::Unknown) };
        // What is not there, as it was given back before, the allocator refuses.
        let taken = INDEX.take(block.address().get(), is_it).inspect(|_| self.live.sub(block.size()));
        let Some(mut all) = taken.ok().as_ref().and_then(take_recorded) else {
            // SAFETY: the caller's promise; no other stream was recorded.
            return unsafe { self.allocator().release(block, stream, uses) };
        };
        for stream in uses.iter() {
            all.insert(stream);
        }
        // SAFETY: as above, with the streams that were recorded.
        unsafe { self.allocator().release(block, stream, &all) }
    }

    forward_allocator!(self => self.allocator(); statistics, trim, grow_to, transfer, retire_stream);
}
