//! Borrowed memory: slices of a buffer, and external memory whose lifetime the compiler checks.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Bound, Range, RangeBounds};

use alloc_core::{Address, Device, Stream, Transfer};
use bytemuck::{AnyBitPattern, NoUninit, Pod, PodCastError};

use crate::copy::{copy, copy_exact, fill};
use crate::ledger::Intent;
use crate::order::When;
use crate::raw::{self, Span};
use crate::{BufferError, Memory};

/// Memory borrowed to read: a slice of a buffer, or external memory that outlives `'a`. The compiler checks that it
/// does.
///
/// # Example
/// ```
/// use buffer::BorrowedBuffer;
/// let numbers = [1_u16, 2, 3];
/// let borrowed = BorrowedBuffer::from_slice(&numbers);
/// assert_eq!(borrowed.len(), 6);
/// assert_eq!(borrowed.slice(2..)?.as_slice::<u16>()?, [2, 3]);
/// # Ok::<(), buffer::BufferError>(())
/// ```
///
/// It can't outlive what it borrows from:
/// ```compile_fail
/// use buffer::BorrowedBuffer;
/// let borrowed = {
///     let numbers = vec![1_u16, 2, 3];
///     BorrowedBuffer::from_slice(&numbers)
/// };
/// println!("{}", borrowed.len());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BorrowedBuffer<'a> {
    span: Span<'a>,
}

/// Memory borrowed exclusively, to read and write.
///
/// Copies and fills of borrowed parts of a [`Buffer`](crate::Buffer) may be ordered by a stream, as the buffer keeps
/// the books. Those of external memory are always finished when they return, since its borrow may end then.
///
/// # Example
/// ```
/// use buffer::BorrowedBufferMut;
/// let mut numbers = [0_u16; 4];
/// let mut borrowed = BorrowedBufferMut::from_slice(&mut numbers);
/// let (mut left, mut right) = borrowed.split_at_mut(4)?;
/// left.fill(1)?;
/// assert_eq!(right.copy_from(&[7_u16])?, 2);
/// assert_eq!(numbers, [0x0101, 0x0101, 7, 0]);
/// # Ok::<(), buffer::BufferError>(())
/// ```
#[derive(Debug)]
pub struct BorrowedBufferMut<'a> {
    span: Span<'a>,
    exclusive: PhantomData<&'a mut [u8]>,
}

/// The range within `len` that is meant.
pub(crate) fn resolve(range: impl RangeBounds<u64>, len: u64) -> Result<Range<u64>, BufferError> {
    let start = match range.start_bound() {
        Bound::Included(start) => Some(*start),
        Bound::Excluded(before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.checked_add(1),
        Bound::Excluded(end) => Some(*end),
        Bound::Unbounded => Some(len),
    };
    match (start, end) {
        (Some(start), Some(end)) if start <= end && end <= len => Ok(start..end),
        (start, end) => {
            Err(BufferError::OutOfBounds { start: start.unwrap_or(u64::MAX), end: end.unwrap_or(u64::MAX), len })
        }
    }
}

/// The part of a span in a range.
fn part<'a>(span: &Span<'a>, range: impl RangeBounds<u64>) -> Result<Span<'a>, BufferError> {
    let range = resolve(range, span.len())?;
    let (start, end) = (range.start, range.end);
    span.part(range).ok_or(BufferError::OutOfBounds { start, end, len: span.len() })
}

fn cast_error<T>(error: PodCastError, span: &Span<'_>) -> BufferError {
    match error {
        PodCastError::TargetAlignmentGreaterAndInputNotAligned | PodCastError::AlignmentMismatch => {
            BufferError::Misaligned { address: span.place().address, align: align_of::<T>() as u64 }
        }
        PodCastError::SizeMismatch | PodCastError::OutputSliceWouldHaveSlop => {
            BufferError::PartialElement { bytes: span.len(), element: size_of::<T>() as u64 }
        }
    }
}

impl<'a> BorrowedBuffer<'a> {
    pub(crate) const fn from_span(span: Span<'a>) -> Self {
        Self { span }
    }

    pub(crate) const fn span(&self) -> &Span<'a> {
        &self.span
    }

    /// The bytes of plain data.
    pub fn from_slice<T: NoUninit>(data: &'a [T]) -> Self {
        Self::from_span(Span::of_host(data))
    }

    /// The same memory with a backend that copies it, where the other side of a copy has none. No effect on part of
    /// a buffer, whose allocator has one.
    #[must_use]
    pub fn with_transfer(self, transfer: &'a dyn Transfer) -> Self {
        Self::from_span(self.span.with_transfer(transfer))
    }

    /// The device whose memory this is.
    pub const fn device(&self) -> Device {
        self.span.place().device
    }

    /// Where the memory starts.
    pub const fn address(&self) -> Address {
        self.span.place().address
    }

    /// The length in bytes.
    pub const fn len(&self) -> u64 {
        self.span.len()
    }

    /// Whether the length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes from the start on are known to be initialised.
    pub fn initialised(&self) -> u64 {
        self.span.initialised()
    }

    /// The same memory, borrowed for less long.
    pub const fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        *self
    }

    /// The bytes in `range`.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<Self, BufferError> {
        part(&self.span, range).map(Self::from_span)
    }

    /// All bytes, for the host to read, once all work that writes them is done.
    ///
    /// # Errors
    /// [`BufferError::NotHostAccessible`], [`BufferError::Uninitialised`] unless all bytes are known to be
    /// initialised, and what waiting reports.
    pub fn as_bytes(&self) -> Result<&'a [u8], BufferError> {
        self.span.require_host()?;
        self.span.require_initialised()?;
        // No reference is made before the writers are done.
        self.span.settle(Intent::Read)?;
        Ok(raw::assume_init(self.span.host_bytes()?))
    }

    /// All bytes as elements, for the host to read.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_bytes`]; [`BufferError::Misaligned`], [`BufferError::PartialElement`].
    pub fn as_slice<T: AnyBitPattern>(&self) -> Result<&'a [T], BufferError> {
        match self.as_bytes()? {
            // No bytes are as aligned as anyone likes.
            [] => Ok(&[]),
            bytes => bytemuck::try_cast_slice(bytes).map_err(|error| cast_error::<T>(error, &self.span)),
        }
    }

    /// All bytes, initialised or not, once all work that writes them is done.
    ///
    /// # Errors
    /// [`BufferError::NotHostAccessible`], and what waiting reports.
    pub fn as_uninit(&self) -> Result<&'a [MaybeUninit<u8>], BufferError> {
        self.span.require_host()?;
        self.span.settle(Intent::Read)?;
        self.span.host_bytes()
    }

    /// Copies into host data as many bytes as the shorter one has, and returns their count; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::Uninitialised`] if bytes to be copied were never written; [`BufferError::Transfer`].
    pub fn copy_to_slice<T: Pod>(&self, destination: &mut [T]) -> Result<u64, BufferError> {
        copy(&self.span, &Span::of_host_mut(destination), When::Finished)
    }

    /// Copies into host data of the same length; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::LengthMismatch`], and as [`BorrowedBuffer::copy_to_slice`].
    pub fn copy_to_slice_exact<T: Pod>(&self, destination: &mut [T]) -> Result<(), BufferError> {
        copy_exact(&self.span, &Span::of_host_mut(destination), When::Finished)
    }

    /// A copy of the elements on the host, from any device.
    ///
    /// # Errors
    /// [`BufferError::PartialElement`] if the bytes are no whole number of elements, [`BufferError::Alloc`] if the host
    /// has no memory for them, and as [`BorrowedBuffer::copy_to_slice`].
    pub fn to_vec<T: AnyBitPattern>(&self) -> Result<Vec<T>, BufferError> {
        let (bytes, element) = (self.len(), size_of::<T>() as u64);
        let count = match bytes.checked_rem(element) {
            Some(0) => bytes / element,
            _ => return Err(BufferError::PartialElement { bytes, element }),
        };
        if isize::try_from(bytes).is_err() {
            return Err(BufferError::TooLargeForHost { bytes });
        }
        raw::collect(count as usize, |vector| copy_exact(&self.span, vector, When::Finished))
    }
}

impl<'a> BorrowedBufferMut<'a> {
    pub(crate) const fn from_span(span: Span<'a>) -> Self {
        Self { span, exclusive: PhantomData }
    }

    /// The bytes of plain data, to write as well.
    pub fn from_slice<T: Pod>(data: &'a mut [T]) -> Self {
        Self::from_span(Span::of_host_mut(data))
    }

    /// The same memory with a backend that copies and fills it, where the other side of a copy has none. No effect
    /// on part of a buffer, whose allocator has one.
    #[must_use]
    pub fn with_transfer(self, transfer: &'a dyn Transfer) -> Self {
        Self::from_span(self.span.with_transfer(transfer))
    }

    /// The device whose memory this is.
    pub const fn device(&self) -> Device {
        self.span.place().device
    }

    /// Where the memory starts.
    pub const fn address(&self) -> Address {
        self.span.place().address
    }

    /// The length in bytes.
    pub const fn len(&self) -> u64 {
        self.span.len()
    }

    /// Whether the length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes from the start on are known to be initialised.
    pub fn initialised(&self) -> u64 {
        self.span.initialised()
    }

    /// The same memory, to read.
    pub const fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        BorrowedBuffer::from_span(self.span)
    }

    /// The same memory, borrowed for less long.
    pub const fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        BorrowedBufferMut::from_span(self.span)
    }

    /// The bytes in `range`, to read.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<BorrowedBuffer<'_>, BufferError> {
        self.as_borrowed().slice(range)
    }

    /// The bytes in `range`.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn slice_mut(&mut self, range: impl RangeBounds<u64>) -> Result<BorrowedBufferMut<'_>, BufferError> {
        self.as_borrowed_mut().into_slice(range)
    }

    /// The bytes in `range`, for the whole lifetime.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn into_slice(self, range: impl RangeBounds<u64>) -> Result<Self, BufferError> {
        part(&self.span, range).map(Self::from_span)
    }

    /// The bytes before `middle` and those from there on, which may be written at the same time, by two threads for
    /// instance.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn split_at_mut(&mut self, middle: u64) -> Result<(BorrowedBufferMut<'_>, BorrowedBufferMut<'_>), BufferError> {
        let (left, right) = (part(&self.span, ..middle)?, part(&self.span, middle..)?);
        Ok((BorrowedBufferMut::from_span(left), BorrowedBufferMut::from_span(right)))
    }

    /// All bytes, for the host to read, once all work that writes them is done.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_bytes`].
    pub fn as_bytes(&self) -> Result<&[u8], BufferError> {
        self.as_borrowed().as_bytes()
    }

    /// All bytes, for the host to read and write, once all work on them is done.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_bytes`].
    pub fn as_bytes_mut(&mut self) -> Result<&mut [u8], BufferError> {
        self.as_borrowed_mut().into_bytes_mut()
    }

    pub(crate) fn into_bytes_mut(mut self) -> Result<&'a mut [u8], BufferError> {
        self.span.require_initialised()?;
        Ok(raw::assume_init_mut(self.settled_bytes_mut()?))
    }

    /// The bytes, none of which anything is known to have written.
    pub(crate) fn into_uninit_mut(mut self) -> Result<&'a mut [MaybeUninit<u8>], BufferError> {
        self.settled_bytes_mut()
    }

    fn settled_bytes_mut(&mut self) -> Result<&'a mut [MaybeUninit<u8>], BufferError> {
        self.span.require_host()?;
        self.span.settle(Intent::Write)?;
        self.span.host_bytes_mut()
    }

    /// All bytes as elements, for the host to read.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_slice`].
    pub fn as_slice<T: AnyBitPattern>(&self) -> Result<&[T], BufferError> {
        self.as_borrowed().as_slice()
    }

    /// All bytes as elements, for the host to read and write.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_slice`].
    pub fn as_slice_mut<T: Pod>(&mut self) -> Result<&mut [T], BufferError> {
        self.as_borrowed_mut().into_slice_of()
    }

    pub(crate) fn into_slice_of<T: Pod>(self) -> Result<&'a mut [T], BufferError> {
        let span = self.span;
        match self.into_bytes_mut()? {
            [] => Ok(&mut []),
            bytes => bytemuck::try_cast_slice_mut(bytes).map_err(|error| cast_error::<T>(error, &span)),
        }
    }

    /// Copies as many bytes as the shorter one has, and returns their count; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::Transfer`]; [`BufferError::Uninitialised`] if this is external memory, which must stay
    /// initialised, and bytes to be copied were never written.
    pub fn copy_from(&mut self, source: &(impl Memory + ?Sized)) -> Result<u64, BufferError> {
        copy(source.as_borrowed().span(), &self.span, When::Finished)
    }

    /// Copies from memory of the same length; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::LengthMismatch`], and as [`BorrowedBufferMut::copy_from`].
    pub fn copy_from_exact(&mut self, source: &(impl Memory + ?Sized)) -> Result<(), BufferError> {
        copy_exact(source.as_borrowed().span(), &self.span, When::Finished)
    }

    /// Copies as many bytes as the shorter one has in the order of `stream`, and returns their count. See
    /// [`Buffer::copy_from_on`](crate::Buffer::copy_from_on).
    ///
    /// # Errors
    /// As [`BorrowedBufferMut::copy_from`].
    pub fn copy_from_on(&mut self, source: &(impl Memory + ?Sized), stream: Stream) -> Result<u64, BufferError> {
        copy(source.as_borrowed().span(), &self.span, When::On(stream))
    }

    /// Copies from memory of the same length in the order of `stream`.
    ///
    /// # Errors
    /// As [`BorrowedBufferMut::copy_from_exact`].
    pub fn copy_from_exact_on(&mut self, source: &(impl Memory + ?Sized), stream: Stream) -> Result<(), BufferError> {
        copy_exact(source.as_borrowed().span(), &self.span, When::On(stream))
    }

    /// Sets all bytes to `value`; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::Transfer`], [`BufferError::NoTransfer`].
    pub fn fill(&mut self, value: u8) -> Result<(), BufferError> {
        fill(&self.span, value, When::Finished)
    }

    /// Sets all bytes to `value` in the order of `stream`.
    ///
    /// # Errors
    /// As [`BorrowedBufferMut::fill`].
    pub fn fill_on(&mut self, value: u8, stream: Stream) -> Result<(), BufferError> {
        fill(&self.span, value, When::On(stream))
    }
}

impl<'a, T: NoUninit> From<&'a [T]> for BorrowedBuffer<'a> {
    fn from(data: &'a [T]) -> Self {
        Self::from_slice(data)
    }
}

impl<'a, T: Pod> From<&'a mut [T]> for BorrowedBufferMut<'a> {
    fn from(data: &'a mut [T]) -> Self {
        Self::from_slice(data)
    }
}
