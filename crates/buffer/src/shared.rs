//! Counted handles to one buffer.

use std::fmt;
use std::ops::{Deref, RangeBounds};
use std::sync::{Arc, Weak};

use alloc_core::{Address, Device};
use bytemuck::AnyBitPattern;

use crate::{BorrowedBuffer, Buffer, BufferError};

/// A counted handle to one buffer, whose memory goes back when the last handle and the last [`SharedSlice`] are gone.
///
/// All that a `&Buffer` can do is there by dereference. To write, be the only handle: [`SharedBuffer::get_mut`].
///
/// # Example
/// ```
/// use buffer::{Buffer, SharedBuffer};
///
/// let host = alloc_cpu::global()?;
///
/// let weights = SharedBuffer::from(Buffer::from_slice(host, &[1_u8, 2, 3, 4])?);
/// let bias = weights.shared_slice(2..)?;
/// let weak = weights.downgrade();
/// drop(weights);
/// assert_eq!(bias.as_bytes()?, [3, 4]); // the slice keeps the buffer alive
/// drop(bias);
/// assert!(weak.upgrade().is_none());
/// # Ok::<(), buffer::BufferError>(())
/// ```
#[derive(Clone)]
pub struct SharedBuffer(Arc<Buffer>);

/// A handle that does not keep its buffer's memory alive.
///
/// ```
/// use buffer::{Buffer, SharedBuffer};
///
/// let shared = SharedBuffer::from(Buffer::zeroed(alloc_cpu::global()?, 64)?);
/// let weak = shared.downgrade();
/// assert!(weak.upgrade().is_some_and(|again| again.is_same(&shared)));
/// drop(shared);
/// assert!(weak.upgrade().is_none());
/// # Ok::<(), buffer::BufferError>(())
/// ```
#[derive(Clone, Default)]
pub struct WeakBuffer(Weak<Buffer>);

/// Part of a shared buffer, which it keeps alive. Cloning and slicing cost one reference count.
///
/// # Example
/// ```
/// # use buffer::{Buffer, SharedBuffer};
/// # let host = alloc_cpu::global()?;
/// let text = SharedBuffer::from(Buffer::from_slice(host, b"pages that move")?);
/// let words = text.shared_slice(6..)?;
/// assert_eq!(words.shared_slice(5..)?.as_bytes()?, b"move");
/// # Ok::<(), buffer::BufferError>(())
/// ```
#[derive(Clone)]
pub struct SharedSlice {
    parent: SharedBuffer,
    offset: u64,
    len: u64,
}

impl SharedBuffer {
    /// The first handle to a buffer.
    pub fn new(buffer: Buffer) -> Self {
        Self(Arc::new(buffer))
    }

    /// A handle that does not keep the memory alive.
    pub fn downgrade(&self) -> WeakBuffer {
        WeakBuffer(Arc::downgrade(&self.0))
    }

    /// How many handles and slices keep the memory alive at this moment.
    pub fn strong_count(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether both are handles to the same buffer.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The buffer to write to, if this is the only handle, no slice is left, and no weak handle either.
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, SharedBuffer};
    /// # let host = alloc_cpu::global()?;
    /// let mut shared = SharedBuffer::from(Buffer::new(host, 4)?);
    /// let other = shared.clone();
    /// assert!(shared.get_mut().is_none());
    /// drop(other);
    /// shared.get_mut().expect("the only handle").fill(7)?;
    /// assert_eq!(shared.as_bytes()?, [7; 4]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn get_mut(&mut self) -> Option<&mut Buffer> {
        Arc::get_mut(&mut self.0)
    }

    /// The buffer itself, if this is the only handle and no slice is left.
    ///
    /// # Errors
    /// The handle, if it is not.
    pub fn try_unwrap(self) -> Result<Buffer, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }

    /// The buffer itself if this is the last handle. Of handles that race, exactly one gets it.
    pub fn into_inner(self) -> Option<Buffer> {
        Arc::into_inner(self.0)
    }

    /// The bytes in `range`, in a slice that keeps the buffer alive.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn shared_slice(&self, range: impl RangeBounds<u64>) -> Result<SharedSlice, BufferError> {
        SharedSlice { parent: self.clone(), offset: 0, len: self.len() }.shared_slice(range)
    }
}

impl Deref for SharedBuffer {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        &self.0
    }
}

impl From<Buffer> for SharedBuffer {
    fn from(buffer: Buffer) -> Self {
        Self::new(buffer)
    }
}

impl WeakBuffer {
    /// A handle to no buffer at all.
    pub const fn new() -> Self {
        Self(Weak::new())
    }

    /// A handle that keeps the memory alive, if it still is.
    pub fn upgrade(&self) -> Option<SharedBuffer> {
        self.0.upgrade().map(SharedBuffer)
    }
}

impl SharedSlice {
    /// The buffer that this is a part of.
    pub const fn parent(&self) -> &SharedBuffer {
        &self.parent
    }

    /// Where the slice starts within its buffer, in bytes.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The length in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device whose memory this is.
    pub fn device(&self) -> Device {
        self.parent.device()
    }

    /// Where the slice starts, in the address space of its device.
    pub fn address(&self) -> Address {
        self.as_borrowed().address()
    }

    /// The bytes, borrowed.
    pub fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        let whole = self.parent.as_borrowed();
        // The range was within the buffer when the slice was made, and a buffer with a slice can't be resized.
        whole.slice(self.offset..self.offset + self.len).unwrap_or(whole)
    }

    /// The bytes in `range` of this slice.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn shared_slice(&self, range: impl RangeBounds<u64>) -> Result<Self, BufferError> {
        let part = crate::borrowed::resolve(range, self.len)?;
        Ok(Self { parent: self.parent.clone(), offset: self.offset + part.start, len: part.end - part.start })
    }

    /// All bytes, for the host to read, once all work that writes them is done.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_bytes`].
    pub fn as_bytes(&self) -> Result<&[u8], BufferError> {
        self.as_borrowed().as_bytes()
    }

    /// All bytes as elements, for the host to read.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::as_slice`].
    pub fn as_slice<T: AnyBitPattern>(&self) -> Result<&[T], BufferError> {
        self.as_borrowed().as_slice()
    }

    /// A copy of the elements on the host, from any device.
    ///
    /// # Errors
    /// As [`BorrowedBuffer::to_vec`].
    pub fn to_vec<T: AnyBitPattern>(&self) -> Result<Vec<T>, BufferError> {
        self.as_borrowed().to_vec()
    }
}

impl fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedBuffer").field(&self.0).finish()
    }
}

impl fmt::Debug for WeakBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeakBuffer").field(&self.0.upgrade()).finish()
    }
}

impl fmt::Debug for SharedSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSlice")
            .field("parent", &self.parent)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}
