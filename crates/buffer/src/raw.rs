//! All `unsafe` of this crate, behind types whose private fields carry the proofs.
//!
//! Three facts are kept here. An [`OwnedBlock`] is released once, since releasing consumes it and nothing copies it.
//! A [`Span`] is memory that stays valid for its lifetime, since each is made from a reference of that lifetime or by
//! a caller who promises it. And a copy, a fill or a host view is asked for only by `copy`, `host` and `borrowed`,
//! which have ordered it after all declared work that conflicts with it (module `ledger`), and which hold the
//! destination exclusively.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::ptr;

use alloc_core::{
    Address, AllocError, AllocatorHandle, Block, Device, DeviceAllocator, Layout, OutOfMemory, Place, ReleaseError,
    Stream, StreamSet, Transfer, TransferError,
};
use bytemuck::{AnyBitPattern, NoUninit, Pod};

use crate::external::{External, ExternalOwner};
use crate::{BorrowedBuffer, BorrowedBufferMut, Buffer, BufferError, BufferParts, KeptAllocator, TypedBuffer};

/// A block that is released once: neither `Copy` nor `Clone`, and consumed by its release.
#[derive(Debug)]
pub(crate) struct OwnedBlock(Block);

impl OwnedBlock {
    pub(crate) fn allocate(
        allocator: &dyn DeviceAllocator,
        layout: Layout,
        stream: Stream,
    ) -> Result<Self, AllocError> {
        allocator.allocate(layout, stream).map(Self)
    }

    pub(crate) const fn block(&self) -> &Block {
        &self.0
    }

    pub(crate) fn into_block(self) -> Block {
        self.0
    }

    /// Gives the block back to `allocator`, the one that it came from, which its `Buffer` has kept beside it.
    pub(crate) fn release(
        self,
        allocator: &dyn DeviceAllocator,
        stream: Stream,
        uses: &StreamSet,
    ) -> Result<(), ReleaseError> {
        // SAFETY: `self` is the only owner of the block and ends here, so it is released once. The buffer's ledger
        // has put each stream with work of ours on the block, and each declared one, in `uses`; borrowed spans of it
        // have ended, so no use follows.
        unsafe { allocator.release(self.0, stream, uses) }
    }
}

/// What vouches for a span's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backing<'a> {
    /// A buffer, which keeps the books of what is in flight and of what is initialised.
    Buffer { buffer: &'a Buffer, offset: u64 },
    /// The caller of a constructor. Always initialised, and nothing of ours is in flight between two calls.
    External { transfer: Option<&'a dyn Transfer> },
}

/// Memory that is valid for reads of all of its bytes for `'a`; and for writes, by nobody else, where a
/// [`BorrowedBufferMut`] holds the span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    place: Place,
    len: u64,
    backing: Backing<'a>,
}

impl<'a> Span<'a> {
    pub(crate) fn of_buffer(buffer: &'a Buffer) -> Self {
        let place = Place { device: buffer.device(), address: buffer.address() };
        Self { place, len: buffer.len(), backing: Backing::Buffer { buffer, offset: 0 } }
    }

    pub(crate) fn of_host<T: NoUninit>(slice: &'a [T]) -> Self {
        Self::of_host_address(slice.as_ptr().expose_provenance(), size_of_val(slice))
    }

    pub(crate) fn of_host_mut<T: Pod>(slice: &'a mut [T]) -> Self {
        Self::of_host_address(slice.as_mut_ptr().expose_provenance(), size_of_val(slice))
    }

    fn of_host_address(address: usize, bytes: usize) -> Self {
        Self {
            place: Place { device: Device::CPU, address: Address::new(address as u64) },
            len: bytes as u64,
            backing: Backing::External { transfer: None },
        }
    }

    pub(crate) fn with_transfer(self, transfer: &'a dyn Transfer) -> Self {
        match self.backing {
            Backing::Buffer { .. } => self,
            Backing::External { .. } => Self { backing: Backing::External { transfer: Some(transfer) }, ..self },
        }
    }

    pub(crate) const fn place(&self) -> Place {
        self.place
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) const fn backing(&self) -> Backing<'a> {
        self.backing
    }

    /// The part of the span in `range`, if it lies within.
    pub(crate) fn part(&self, range: Range<u64>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        if range.end > self.len {
            return None;
        }
        let address = self.place.address.checked_add(range.start)?;
        let backing = match self.backing {
            Backing::Buffer { buffer, offset } => Backing::Buffer { buffer, offset: offset.checked_add(range.start)? },
            external @ Backing::External { .. } => external,
        };
        Some(Self { place: Place { address, ..self.place }, len, backing })
    }

    /// The span's bytes to the processor. The caller has waited for all work that writes them.
    pub(crate) fn host_bytes(&self) -> Result<&'a [MaybeUninit<u8>], BufferError> {
        let (address, len) = self.host_range()?;
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: the span is valid for `len` bytes for `'a` on a device whose addresses the processor may
        // dereference; `MaybeUninit<u8>` needs neither alignment nor initialised bytes; nothing writes to them during
        // `'a`, since that takes exclusive access to the span or to its buffer.
        Ok(unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(address), len) })
    }

    /// The span's bytes to the processor, to write. The caller holds the span exclusively for `'a`, has waited for
    /// all work on it, and hands on no way to make an initialised byte uninitialised.
    pub(crate) fn host_bytes_mut(&mut self) -> Result<&'a mut [MaybeUninit<u8>], BufferError> {
        let (address, len) = self.host_range()?;
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as for `host_bytes`, and the caller's exclusive hold on the span excludes every other reference.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(address), len) })
    }

    /// An error unless the processor can follow the span's addresses. Makes no reference yet.
    pub(crate) fn require_host(&self) -> Result<(), BufferError> {
        self.host_range().map(drop)
    }

    fn host_range(&self) -> Result<(usize, usize), BufferError> {
        let Place { device, address } = self.place;
        if !device.is_host_accessible() {
            return Err(BufferError::NotHostAccessible { device });
        }
        match (usize::try_from(address.get()), isize::try_from(self.len)) {
            (Ok(address), Ok(len)) => Ok((address, len.unsigned_abs())),
            _ => Err(BufferError::TooLargeForHost { bytes: self.len }),
        }
    }
}

/// The address of a span to the processor, if it can follow it.
pub(crate) fn host_pointer(span: &Span<'_>) -> Option<*mut u8> {
    span.host_range().ok().map(|(address, _)| ptr::with_exposed_provenance_mut(address))
}

/// The bytes, which the caller has found to be initialised.
pub(crate) fn assume_init(bytes: &[MaybeUninit<u8>]) -> &[u8] {
    // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and the caller has seen in the buffer's extent, or knows of
    // external memory, that each byte is initialised.
    unsafe { bytes.assume_init_ref() }
}

/// The same to write.
pub(crate) fn assume_init_mut(bytes: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    // SAFETY: as for `assume_init`.
    unsafe { bytes.assume_init_mut() }
}

/// Submits a copy of the whole of `from` to `to`, which the caller holds exclusively and has seen to be as long.
pub(crate) fn submit_copy(
    transfer: &dyn Transfer,
    from: &Span<'_>,
    to: &Span<'_>,
    stream: Stream,
) -> Result<(), TransferError> {
    debug_assert_eq!(from.len, to.len);
    // SAFETY: both spans are valid for their length. They stay so until the stream has come past the copy: a buffer
    // declares the stream for its release, or is leaked if the copy isn't seen to finish; places of the host are read
    // or written when this returns; for other external memory the caller waits before its borrow ends. They don't
    // overlap, since `to` is held exclusively. `stream` was ordered after all conflicting work.
    unsafe { transfer.copy(from.place, to.place, from.len, stream) }
}

/// Submits a fill of `to`, which the caller holds exclusively.
pub(crate) fn submit_fill(
    transfer: &dyn Transfer,
    to: &Span<'_>,
    value: u8,
    stream: Stream,
) -> Result<(), TransferError> {
    // SAFETY: the span is valid, stays so and is free of conflicting work as explained in `submit_copy`; external
    // memory is waited for by the caller before its borrow ends.
    unsafe { transfer.fill(to.place, to.len, value, stream) }
}

/// Copies by the processor between two spans that it can reach, the second held exclusively by the caller, who has
/// waited for all conflicting work and has seen that the lengths agree.
pub(crate) fn copy_on_host(from: &Span<'_>, to: &mut Span<'_>) -> Result<(), BufferError> {
    let source = from.host_bytes()?;
    to.host_bytes_mut()?.copy_from_slice(source);
    Ok(())
}

/// The bytes of a source that holds initialised ones, in a new vector. `copy` fills all of the memory it is given,
/// or fails.
pub(crate) fn collect<T: AnyBitPattern>(
    count: usize,
    copy: impl FnOnce(&mut Span<'_>) -> Result<(), BufferError>,
) -> Result<Vec<T>, BufferError> {
    let bytes = count.saturating_mul(size_of::<T>());
    let mut elements = Vec::<T>::new();
    // A device may have more memory than the host.
    elements.try_reserve_exact(count).map_err(|_| AllocError::from(OutOfMemory::new(Device::CPU, bytes as u64)))?;
    let spare = elements.spare_capacity_mut();
    let mut span = Span::of_host_address(spare.as_mut_ptr().expose_provenance(), bytes);
    copy(&mut span)?;
    // SAFETY: the capacity is at least `count`, and the copy has initialised that many elements; every pattern of
    // bits is a `T`.
    unsafe { elements.set_len(count) };
    Ok(elements)
}

/// The memory of a vector and what frees it.
pub(crate) fn dismantle<T: Pod + Send>(elements: Vec<T>) -> (Address, u64, ExternalOwner) {
    let mut elements = ManuallyDrop::new(elements);
    let (address, len, capacity) = (elements.as_mut_ptr().expose_provenance(), elements.len(), elements.capacity());
    let owner = ExternalOwner::deleter(move || {
        // SAFETY: these are the parts of the vector, which is otherwise forgotten; the deleter runs once, after all
        // uses of the memory; every pattern of bits that was written is a `T`.
        drop(unsafe { Vec::<T>::from_raw_parts(ptr::with_exposed_provenance_mut(address), len, capacity) });
    });
    (Address::new(address as u64), (len * size_of::<T>()) as u64, owner)
}

impl Buffer {
    /// A buffer from parts that [`Buffer::into_raw_parts`] gave, or that another owner of a block gave up.
    ///
    /// # Safety
    /// The block came from this allocator, is living, holds at least `len` bytes, and no one else releases it. All
    /// work that uses it was submitted to `stream` or to one of `uses`. The first `initialised` bytes are
    /// initialised.
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let parts = Buffer::from_slice(host, &[1_u8, 2, 3])?.into_raw_parts().expect("a block");
    /// // SAFETY: the parts are unchanged, and used once.
    /// let buffer = unsafe { Buffer::from_raw_parts(parts) };
    /// assert_eq!(buffer.as_bytes()?, [1, 2, 3]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub unsafe fn from_raw_parts(parts: BufferParts) -> Self {
        let BufferParts { allocator, block, len, align, stream, uses, initialised } = parts;
        let len = len.min(block.size());
        Self::from_block(allocator.into_inner(), OwnedBlock(block), len, align, stream, &uses, initialised.min(len))
    }

    /// A buffer over `len` bytes at `address` that somebody else owns, who is kept alive by `owner` and let go once
    /// when the buffer is dropped. The memory is on the device of `allocator`, which copies it, and which a
    /// [`Buffer::resize`] past `len` moves it to.
    ///
    /// The bytes count as uninitialised; say otherwise with [`Buffer::assume_init`].
    ///
    /// # Safety
    /// The memory is of `allocator`'s device, valid for reads and writes of `len` bytes, and used by nobody else,
    /// until `owner` is let go. Work that is submitted to `stream` from now on may use it.
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, ExternalOwner};
    /// # use alloc_core::{Address, Stream};
    /// # let host = alloc_cpu::global()?;
    /// let memory: &'static mut [u8] = vec![7; 64].leak();
    /// let (address, len) = (Address::new(memory.as_mut_ptr().expose_provenance() as u64), memory.len() as u64);
    /// let owner = ExternalOwner::deleter(|| println!("given back"));
    /// // SAFETY: leaked memory stays valid, nothing else refers to it, and all of it is initialised.
    /// let buffer = unsafe {
    ///     let mut buffer = Buffer::external(host, address, len, Stream::DEFAULT, owner);
    ///     buffer.assume_init(len);
    ///     buffer
    /// };
    /// assert_eq!(buffer.as_bytes()?, [7; 64]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub unsafe fn external(
        allocator: impl Into<AllocatorHandle>,
        address: Address,
        len: u64,
        stream: Stream,
        owner: ExternalOwner,
    ) -> Self {
        let external = External::new(address, len, owner);
        Self::from_external(allocator.into(), external, Layout::DEFAULT_ALIGN, stream)
    }

    /// Says that the first `len` bytes are initialised, by a kernel for instance, so that the host may read them.
    /// More than [`Buffer::len`] counts as that.
    ///
    /// # Safety
    /// The bytes are initialised, or will be by work that is declared (see [`Buffer::use_on`]) and that a host view
    /// therefore waits for.
    pub unsafe fn assume_init(&mut self, len: u64) {
        let len = len.min(self.len());
        self.state_mut().extent.insert(0, len);
    }
}

impl<T: Pod> TypedBuffer<T> {
    /// Says that the first `len` elements are initialised, by a kernel for instance, so that the host may read them.
    /// More than [`TypedBuffer::len`] counts as that.
    ///
    /// # Safety
    /// As [`Buffer::assume_init`].
    ///
    /// # Example
    /// ```
    /// # use alloc_core::{Address, Stream};
    /// # use buffer::TypedBuffer;
    /// # fn launch(at: Address, _: Stream) {
    /// #     let at = std::ptr::with_exposed_provenance_mut::<u32>(at.get() as usize);
    /// #     // SAFETY: the buffer has room for eight.
    /// #     unsafe { at.write_bytes(0, 8) }
    /// # }
    /// # let host = alloc_cpu::global()?;
    /// let mut output = TypedBuffer::<u32>::new(host, 8)?;
    /// launch(output.address(), output.stream());
    /// output.buffer().use_on(output.stream());
    /// // SAFETY: the kernel writes all elements, and was declared.
    /// unsafe { output.assume_init(8) };
    /// assert_eq!(output.as_slice()?, [0; 8]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub unsafe fn assume_init(&mut self, len: u64) {
        let bytes = len.saturating_mul(size_of::<T>() as u64);
        // SAFETY: the caller's promise.
        unsafe { self.buffer_mut().assume_init(bytes) };
    }
}

impl KeptAllocator {
    /// The handle, which is then dropped like any other.
    ///
    /// # Safety
    /// The block that the allocator was kept for has been released, or no work uses it any more.
    pub unsafe fn into_handle(self) -> AllocatorHandle {
        self.into_inner()
    }
}

impl<'a> BorrowedBuffer<'a> {
    /// `len` bytes at `address` of a device's memory. `transfer` copies them where the other side of a copy can't;
    /// host memory needs none.
    ///
    /// # Safety
    /// The memory is valid for reads of `len` initialised bytes and nothing writes to it during `'a`. If a copy from
    /// it fails to be waited for, which is then reported as an error, it stays valid until that copy is over.
    pub unsafe fn from_raw_parts(
        device: Device,
        address: Address,
        len: u64,
        transfer: Option<&'a dyn Transfer>,
    ) -> Self {
        Self::from_span(Span { place: Place { device, address }, len, backing: Backing::External { transfer } })
    }
}

impl<'a> BorrowedBufferMut<'a> {
    /// `len` bytes at `address` of a device's memory. `transfer` copies and fills them where the other side of a copy
    /// can't; host memory needs none.
    ///
    /// # Safety
    /// The memory is valid for reads and writes of `len` initialised bytes, and nothing else uses it during `'a`. If
    /// a copy or a fill fails to be waited for, which is then reported as an error, it stays valid until that is
    /// over.
    pub unsafe fn from_raw_parts(
        device: Device,
        address: Address,
        len: u64,
        transfer: Option<&'a dyn Transfer>,
    ) -> Self {
        Self::from_span(Span { place: Place { device, address }, len, backing: Backing::External { transfer } })
    }
}
