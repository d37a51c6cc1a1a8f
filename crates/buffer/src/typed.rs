//! A buffer of elements.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use alloc_core::{Address, AllocatorHandle, Device, Layout, LayoutError, Stream};
use bytemuck::Pod;

use crate::borrowed::resolve;
use crate::{BorrowedBuffer, BorrowedBufferMut, Buffer, BufferError, Memory, Relocation};

/// A [`Buffer`] of whole, aligned elements of plain data, whose lengths and ranges count elements.
///
/// # Example
/// ```
/// use buffer::TypedBuffer;
///
/// let host = alloc_cpu::global()?;
///
/// let mut numbers = TypedBuffer::<f32>::zeroed(host, 4)?;
/// numbers.as_slice_mut()?[1] = 2.5;
/// assert_eq!((numbers.len(), numbers.to_vec()?), (4, vec![0.0, 2.5, 0.0, 0.0]));
/// # Ok::<(), buffer::BufferError>(())
/// ```
pub struct TypedBuffer<T> {
    buffer: Buffer,
    /// How many elements.
    len: u64,
    element: PhantomData<T>,
}

impl<T: Pod> TypedBuffer<T> {
    /// `len` elements with undefined contents on the default stream.
    ///
    /// # Errors
    /// [`BufferError::Alloc`], also where the bytes overflow.
    pub fn new(allocator: impl Into<AllocatorHandle>, len: u64) -> Result<Self, BufferError> {
        Self::new_on(allocator, len, Stream::DEFAULT)
    }

    /// `len` elements with undefined contents on `stream`.
    ///
    /// # Errors
    /// As [`TypedBuffer::new`].
    pub fn new_on(allocator: impl Into<AllocatorHandle>, len: u64, stream: Stream) -> Result<Self, BufferError> {
        let buffer = Buffer::with_layout(allocator, Layout::array::<T>(len)?, stream)?;
        Ok(Self { buffer, len, element: PhantomData })
    }

    /// `len` elements of zero bits on the default stream.
    ///
    /// # Errors
    /// As [`TypedBuffer::new`]; [`BufferError::Transfer`].
    pub fn zeroed(allocator: impl Into<AllocatorHandle>, len: u64) -> Result<Self, BufferError> {
        Self::zeroed_on(allocator, len, Stream::DEFAULT)
    }

    /// `len` elements of zero bits on `stream`, in its order.
    ///
    /// # Errors
    /// As [`TypedBuffer::zeroed`].
    pub fn zeroed_on(allocator: impl Into<AllocatorHandle>, len: u64, stream: Stream) -> Result<Self, BufferError> {
        let mut typed = Self::new_on(allocator, len, stream)?;
        typed.buffer.zero_on(stream)?;
        Ok(typed)
    }

    /// A copy of host data on any device, on the default stream.
    ///
    /// # Errors
    /// As [`Buffer::from_slice`].
    pub fn from_slice(allocator: impl Into<AllocatorHandle>, data: &[T]) -> Result<Self, BufferError> {
        Self::from_slice_on(allocator, data, Stream::DEFAULT)
    }

    /// A copy of host data on any device, on `stream`, in its order.
    ///
    /// # Errors
    /// As [`Buffer::from_slice_on`].
    pub fn from_slice_on(
        allocator: impl Into<AllocatorHandle>,
        data: &[T],
        stream: Stream,
    ) -> Result<Self, BufferError> {
        let buffer = Buffer::from_slice_on(allocator, data, stream)?;
        Ok(Self { buffer, len: data.len() as u64, element: PhantomData })
    }

    /// The number of elements.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no elements.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device whose memory this is.
    pub fn device(&self) -> Device {
        self.buffer.device()
    }

    /// Where the first element is.
    pub fn address(&self) -> Address {
        self.buffer.address()
    }

    /// The stream that the buffer belongs to: it is released there.
    pub const fn stream(&self) -> Stream {
        self.buffer.stream()
    }

    /// How many whole elements from the start on are known to be initialised.
    pub fn initialised(&self) -> u64 {
        self.buffer.initialised().checked_div(size_of::<T>() as u64).unwrap_or(self.len)
    }

    /// The bytes.
    pub const fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The bytes, with their elements' type forgotten.
    pub fn into_buffer(self) -> Buffer {
        self.buffer
    }

    /// All bytes, borrowed.
    pub fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        self.buffer.as_borrowed()
    }

    /// All bytes, borrowed exclusively.
    pub fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        self.buffer.as_borrowed_mut()
    }

    /// The elements in `range`, borrowed.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`], in elements.
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// let numbers = buffer::TypedBuffer::from_slice(host, &[1_u32, 2, 3])?;
    /// assert_eq!(numbers.slice(1..)?.as_slice::<u32>()?, [2, 3]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<BorrowedBuffer<'_>, BufferError> {
        self.buffer.slice(self.bytes(range)?)
    }

    /// The elements in `range`, borrowed exclusively.
    ///
    /// # Errors
    /// As [`TypedBuffer::slice`].
    pub fn slice_mut(&mut self, range: impl RangeBounds<u64>) -> Result<BorrowedBufferMut<'_>, BufferError> {
        let bytes = self.bytes(range)?;
        self.buffer.slice_mut(bytes)
    }

    fn bytes(&self, range: impl RangeBounds<u64>) -> Result<(Bound<u64>, Bound<u64>), BufferError> {
        let elements = resolve(range, self.len)?;
        // No more than the buffer's length, which has not overflowed.
        let size = size_of::<T>() as u64;
        Ok((Bound::Included(elements.start * size), Bound::Excluded(elements.end * size)))
    }

    /// All elements, for the host to read.
    ///
    /// # Errors
    /// As [`Buffer::as_bytes`].
    pub fn as_slice(&self) -> Result<&[T], BufferError> {
        self.buffer.as_slice()
    }

    /// All elements, for the host to read and write.
    ///
    /// # Errors
    /// As [`Buffer::as_bytes`].
    pub fn as_slice_mut(&mut self) -> Result<&mut [T], BufferError> {
        self.buffer.as_slice_mut()
    }

    /// A copy of the elements on the host, from any device.
    ///
    /// # Errors
    /// As [`Buffer::to_vec`].
    pub fn to_vec(&self) -> Result<Vec<T>, BufferError> {
        self.buffer.to_vec()
    }

    /// Copies whole elements, as many as both have room for, and returns their count; done when this returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_from`].
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// let mut numbers = buffer::TypedBuffer::<u32>::zeroed(host, 3)?;
    /// assert_eq!(numbers.copy_from(&[1_u8; 11])?, 2);
    /// assert_eq!(numbers.as_slice()?, [0x0101_0101, 0x0101_0101, 0]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn copy_from(&mut self, source: &(impl Memory + ?Sized)) -> Result<u64, BufferError> {
        let (source, count) = self.whole_elements(source)?;
        self.buffer.copy_from(&source)?;
        Ok(count)
    }

    /// Copies as many elements as there are here; done when this returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_from_exact`].
    pub fn copy_from_exact(&mut self, source: &(impl Memory + ?Sized)) -> Result<(), BufferError> {
        self.buffer.copy_from_exact(source)
    }

    /// Copies whole elements in the order of `stream`, as many as both have room for, and returns their count.
    ///
    /// # Errors
    /// As [`Buffer::copy_from_on`].
    pub fn copy_from_on(&mut self, source: &(impl Memory + ?Sized), stream: Stream) -> Result<u64, BufferError> {
        let (source, count) = self.whole_elements(source)?;
        self.buffer.copy_from_on(&source, stream)?;
        Ok(count)
    }

    fn whole_elements<'a>(&self, source: &'a (impl Memory + ?Sized)) -> Result<(BorrowedBuffer<'a>, u64), BufferError> {
        let source = source.as_borrowed();
        let size = size_of::<T>() as u64;
        let count = source.len().checked_div(size).unwrap_or(0).min(self.len);
        Ok((source.slice(..count * size)?, count))
    }

    /// Copies into data of the host as many elements as the shorter one has, and returns their count; done when this
    /// returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_to_slice`].
    pub fn copy_to_slice(&self, destination: &mut [T]) -> Result<u64, BufferError> {
        let bytes = self.buffer.copy_to_slice(destination)?;
        Ok(bytes.checked_div(size_of::<T>() as u64).unwrap_or(0))
    }

    /// Makes the length `len` elements; see [`Buffer::resize`].
    ///
    /// # Errors
    /// As [`Buffer::resize`], also where the bytes overflow.
    pub fn resize(&mut self, len: u64) -> Result<Relocation, BufferError> {
        let overflow = LayoutError::Overflow { size: u64::MAX, align: self.buffer.align() };
        let bytes = len.checked_mul(size_of::<T>() as u64).ok_or(overflow)?;
        let relocation = self.buffer.resize(bytes)?;
        self.len = len;
        Ok(relocation)
    }

    /// Makes room for `additional` elements past the length; see [`Buffer::reserve`].
    ///
    /// # Errors
    /// As [`TypedBuffer::resize`].
    pub fn reserve(&mut self, additional: u64) -> Result<Relocation, BufferError> {
        let overflow = LayoutError::Overflow { size: u64::MAX, align: self.buffer.align() };
        let bytes = additional.checked_mul(size_of::<T>() as u64).ok_or(overflow)?;
        self.buffer.reserve(bytes)
    }

    /// Moves to memory of exactly the buffer's length, if it has more.
    ///
    /// # Errors
    /// As [`Buffer::resize`].
    pub fn shrink_to_fit(&mut self) -> Result<Relocation, BufferError> {
        self.buffer.shrink_to_fit()
    }

    /// Gives the buffer to another stream; see [`Buffer::hand_over`].
    ///
    /// # Errors
    /// As [`Buffer::hand_over`].
    pub fn hand_over(&mut self, stream: Stream) -> Result<(), BufferError> {
        self.buffer.hand_over(stream)
    }

    /// The bytes, for this crate, which keeps their number.
    pub(crate) const fn buffer_mut(&mut self) -> &mut Buffer {
        &mut self.buffer
    }
}

impl<T: Pod> TryFrom<Buffer> for TypedBuffer<T> {
    type Error = NotElements;

    fn try_from(buffer: Buffer) -> Result<Self, NotElements> {
        let (bytes, element, align) = (buffer.len(), size_of::<T>() as u64, align_of::<T>() as u64);
        let error = if bytes.checked_rem(element) != Some(0) {
            BufferError::PartialElement { bytes, element }
        } else if !buffer.address().is_aligned_to(align) || buffer.align() < align {
            BufferError::Misaligned { address: buffer.address(), align }
        } else {
            return Ok(Self { buffer, len: bytes / element, element: PhantomData });
        };
        Err(NotElements { buffer, error })
    }
}

impl<T: Pod> From<TypedBuffer<T>> for Buffer {
    fn from(typed: TypedBuffer<T>) -> Self {
        typed.buffer
    }
}

/// A buffer that is not made of whole, aligned elements, given back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotElements {
    /// The buffer, as it was.
    pub buffer: Buffer,
    /// Why.
    #[source]
    pub error: BufferError,
}

impl<T> fmt::Debug for TypedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedBuffer")
            .field("element", &std::any::type_name::<T>())
            .field("len", &self.len)
            .field("buffer", &self.buffer)
            .finish()
    }
}
