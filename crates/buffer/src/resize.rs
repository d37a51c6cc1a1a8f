//! Changing a buffer's length and capacity, and saying when that moves it.

use std::mem;

use alloc_core::{Address, Layout, LayoutError};

use crate::{Buffer, BufferError};

/// Whether a buffer's memory is where it was. If not, addresses taken before point to memory that was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "addresses taken before are dangling if the buffer has moved"]
#[expect(clippy::exhaustive_enums, reason = "memory has moved or it has not")]
pub enum Relocation {
    /// The address is the same.
    InPlace,
    /// The contents were copied to other memory, and the old memory was released in stream order after that.
    Moved {
        /// The old address.
        from: Address,
        /// The new address.
        to: Address,
    },
}

impl Relocation {
    /// Whether the address has changed.
    pub const fn has_moved(self) -> bool {
        matches!(self, Self::Moved { .. })
    }
}

impl Buffer {
    /// Makes the length `len` bytes, in place if the capacity suffices, else in new memory of exactly that many bytes
    /// from the same allocator.
    ///
    /// The contents up to the smaller length are kept; further bytes are undefined. The copy of a move is ordered by
    /// the buffer's stream, and so is the release of the old memory. Nothing is rounded up beyond what the allocator
    /// does, so growing step by step moves each time: see [`Buffer::reserve`].
    ///
    /// # Errors
    /// [`BufferError::Alloc`], [`BufferError::Transfer`]; the buffer is then as it was.
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, Relocation};
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::from_slice(host, &[1_u8, 2, 3])?;
    /// assert_eq!(buffer.resize(2)?, Relocation::InPlace);
    /// let before = buffer.address();
    /// if let Relocation::Moved { from, to } = buffer.resize(1 << 16)? {
    ///     assert_eq!((from, to), (before, buffer.address()));
    /// }
    /// assert_eq!(buffer.slice(..2)?.as_bytes()?, [1, 2]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn resize(&mut self, len: u64) -> Result<Relocation, BufferError> {
        if len <= self.capacity() {
            self.set_len(len);
            return Ok(Relocation::InPlace);
        }
        self.move_to(len, len)
    }

    /// The same, with `value` in all bytes past the old length. On failure the length is the old one, though the
    /// memory may have moved.
    ///
    /// # Errors
    /// As [`Buffer::resize`].
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::from_slice(host, &[1_u8])?;
    /// let _ = buffer.resize_filled(3, 9)?;
    /// assert_eq!(buffer.as_bytes()?, [1, 9, 9]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn resize_filled(&mut self, len: u64, value: u8) -> Result<Relocation, BufferError> {
        let (old, stream) = (self.len(), self.stream());
        let relocation = self.resize(len)?;
        if len > old
            && let Err(error) = self.slice_mut(old..).and_then(|mut new| new.fill_on(value, stream))
        {
            self.set_len(old);
            return Err(error);
        }
        Ok(relocation)
    }

    /// Makes room for `additional` bytes past the length, so that a [`Buffer::resize`] up to there stays in place.
    /// Exactly that much: device memory is dear, and pools round up already.
    ///
    /// # Errors
    /// As [`Buffer::resize`].
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, Relocation};
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::new(host, 10)?;
    /// let _ = buffer.reserve(90)?;
    /// assert_eq!((buffer.len(), buffer.capacity()), (10, 100));
    /// assert_eq!(buffer.resize(100)?, Relocation::InPlace);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn reserve(&mut self, additional: u64) -> Result<Relocation, BufferError> {
        let overflow = LayoutError::Overflow { size: u64::MAX, align: self.align() };
        let capacity = self.len().checked_add(additional).ok_or(overflow)?;
        if capacity <= self.capacity() {
            return Ok(Relocation::InPlace);
        }
        self.move_to(self.len(), capacity)
    }

    /// Moves to memory of exactly the buffer's length, if it has more.
    ///
    /// # Errors
    /// As [`Buffer::resize`].
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::zeroed(host, 1 << 20)?;
    /// let _ = buffer.resize(1 << 10)?;
    /// assert!(buffer.shrink_to_fit()?.has_moved());
    /// assert_eq!(buffer.capacity(), 1 << 10);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn shrink_to_fit(&mut self) -> Result<Relocation, BufferError> {
        if self.len() == self.capacity() {
            return Ok(Relocation::InPlace);
        }
        self.move_to(self.len(), self.len())
    }

    /// Moves to new memory of `capacity` bytes, `len` of them in use.
    fn move_to(&mut self, len: u64, capacity: u64) -> Result<Relocation, BufferError> {
        let stream = self.stream();
        let layout = Layout::new(capacity, self.align())?;
        let mut moved = Self::with_layout(self.allocator().clone(), layout, stream)?;
        let kept = self.len().min(len);
        if kept > 0 {
            // What the host doesn't know to be written may have been, by a kernel: all of it moves.
            moved.slice_mut(..kept)?.copy_from_exact_on(&self.slice(..kept)?, stream)?;
        }
        let mut extent = self.state().extent.clone();
        extent.truncate(kept);
        moved.state_mut().extent = extent;
        moved.set_len(len);
        let relocation = Relocation::Moved { from: self.address(), to: moved.address() };
        // The old memory is released on its stream, which is where the copy is.
        drop(mem::replace(self, moved));
        Ok(relocation)
    }
}
