//! A whole buffer as seen from the host, copied and filled.

use std::mem::MaybeUninit;

use alloc_core::Stream;
use bytemuck::{AnyBitPattern, NoUninit, Pod};

use crate::raw::{self, Span};
use crate::{Buffer, BufferError, Memory};

/// Host views. Each waits for the work that conflicts with it before it returns, and borrows the buffer, so that no
/// conflicting work can be submitted while it lives.
impl Buffer {
    /// The address to the processor, or `None` where it can't follow it. Whoever reads or writes through it waits for
    /// work in flight first: [`Buffer::synchronize`].
    pub fn as_ptr(&self) -> Option<*const u8> {
        raw::host_pointer(&Span::of_buffer(self)).map(<*mut u8>::cast_const)
    }

    /// The address to the processor, to write, or `None` where it can't follow it. Bytes written so are declared by
    /// [`Buffer::assume_init`].
    pub fn as_mut_ptr(&mut self) -> Option<*mut u8> {
        raw::host_pointer(&Span::of_buffer(self))
    }

    /// All bytes, for the host to read, once all work that writes them is done.
    ///
    /// # Errors
    /// [`BufferError::NotHostAccessible`], [`BufferError::Uninitialised`] unless all bytes are known to be
    /// initialised, and what waiting reports.
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, BufferError};
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::new(host, 4)?;
    /// assert!(matches!(buffer.as_bytes(), Err(BufferError::Uninitialised { end: 4, initialised: 0, .. })));
    /// buffer.fill(1)?;
    /// assert_eq!(buffer.as_bytes()?, [1; 4]);
    /// # Ok::<(), BufferError>(())
    /// ```
    pub fn as_bytes(&self) -> Result<&[u8], BufferError> {
        self.as_borrowed().as_bytes()
    }

    /// All bytes, for the host to read and write, once all work on them is done.
    ///
    /// # Errors
    /// As [`Buffer::as_bytes`].
    pub fn as_bytes_mut(&mut self) -> Result<&mut [u8], BufferError> {
        self.as_borrowed_mut().into_bytes_mut()
    }

    /// All bytes as elements, for the host to read.
    ///
    /// # Errors
    /// As [`Buffer::as_bytes`]; [`BufferError::Misaligned`], [`BufferError::PartialElement`].
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, BufferError};
    /// # let host = alloc_cpu::global()?;
    /// let buffer = Buffer::zeroed(host, 6)?;
    /// assert_eq!(buffer.as_slice::<u16>()?, [0; 3]);
    /// assert_eq!(buffer.as_slice::<u32>(), Err(BufferError::PartialElement { bytes: 6, element: 4 }));
    /// # Ok::<(), BufferError>(())
    /// ```
    pub fn as_slice<T: AnyBitPattern>(&self) -> Result<&[T], BufferError> {
        self.as_borrowed().as_slice()
    }

    /// All bytes as elements, for the host to read and write.
    ///
    /// # Errors
    /// As [`Buffer::as_slice`].
    pub fn as_slice_mut<T: Pod>(&mut self) -> Result<&mut [T], BufferError> {
        self.as_borrowed_mut().into_slice_of()
    }

    /// All bytes, initialised or not, once all work that writes them is done.
    ///
    /// # Errors
    /// [`BufferError::NotHostAccessible`], and what waiting reports.
    pub fn as_uninit(&self) -> Result<&[MaybeUninit<u8>], BufferError> {
        self.as_borrowed().as_uninit()
    }

    /// The bytes past [`Buffer::initialised`], for the host to write, once all work on them is done. Declare what was
    /// written with [`Buffer::assume_init`].
    ///
    /// # Errors
    /// [`BufferError::NotHostAccessible`], and what waiting reports.
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::new(host, 3)?;
    /// for (index, byte) in buffer.uninit_mut()?.iter_mut().enumerate() {
    ///     byte.write(index as u8);
    /// }
    /// // SAFETY: all three bytes were written.
    /// unsafe { buffer.assume_init(3) };
    /// assert_eq!(buffer.as_bytes()?, [0, 1, 2]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn uninit_mut(&mut self) -> Result<&mut [MaybeUninit<u8>], BufferError> {
        let initialised = self.initialised();
        // Tried first: a call that fails leaves the buffer as it was. The second time there is nothing left to wait for.
        self.slice_mut(initialised..)?.into_uninit_mut()?;
        self.state_mut().extent.truncate(initialised);
        self.slice_mut(initialised..)?.into_uninit_mut()
    }

    /// A copy of the elements on the host, from any device.
    ///
    /// # Errors
    /// [`BufferError::PartialElement`] if the bytes are no whole number of elements, [`BufferError::Alloc`] if the host
    /// has no memory for them, and as [`Buffer::copy_to_slice`].
    pub fn to_vec<T: AnyBitPattern>(&self) -> Result<Vec<T>, BufferError> {
        self.as_borrowed().to_vec()
    }
}

/// Copies. The path is chosen from the two devices; see [`BufferError::Transfer`] for when there is none.
impl Buffer {
    /// Copies from any other memory as many bytes as the shorter one has, and returns their count; done when this
    /// returns.
    ///
    /// Bytes that were never written may be copied, and are then unwritten in the destination too.
    ///
    /// # Errors
    /// [`BufferError::Transfer`] if nothing at hand copies between the two devices, or the copy failed.
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::zeroed(host, 4)?;
    /// assert_eq!(buffer.copy_from(&[1_u8, 2])?, 2);
    /// assert_eq!(buffer.copy_from(&Buffer::from_slice(host, &[5_u8; 100])?.slice(..3)?)?, 3);
    /// assert_eq!(buffer.as_bytes()?, [5, 5, 5, 0]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn copy_from(&mut self, source: &(impl Memory + ?Sized)) -> Result<u64, BufferError> {
        self.as_borrowed_mut().copy_from(source)
    }

    /// Copies from memory of the same length; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::LengthMismatch`], and as [`Buffer::copy_from`].
    ///
    /// # Example
    /// ```
    /// # use buffer::{Buffer, BufferError};
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::new(host, 4)?;
    /// let error = BufferError::LengthMismatch { destination_bytes: 4, source_bytes: 2 };
    /// assert_eq!(buffer.copy_from_exact(&[1_u8, 2]), Err(error));
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn copy_from_exact(&mut self, source: &(impl Memory + ?Sized)) -> Result<(), BufferError> {
        self.as_borrowed_mut().copy_from_exact(source)
    }

    /// Copies as many bytes as the shorter one has in the order of `stream`, and returns their count.
    ///
    /// `stream` is one of the backend that copies, and is made to wait for work on both memories that it could
    /// conflict with. Both buffers know of the copy afterwards: either may be dropped, resized, copied again on another
    /// stream or looked at by the host while it is under way. Memory that could not know (borrowed external memory of
    /// a device, a buffer of another backend) makes the call wait until the copy is done. Data of the host has been
    /// read when this returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_from`].
    ///
    /// # Example
    /// ```
    /// # use alloc_core::Stream;
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let source = Buffer::from_slice(host, &[3_u8; 1000])?;
    /// let mut destination = Buffer::new(host, 1000)?;
    /// destination.copy_from_on(&source, Stream::from_raw(4))?;
    /// drop(source); // the copy need not be done
    /// assert_eq!(destination.as_bytes()?, [3; 1000]); // waits for it
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn copy_from_on(&mut self, source: &(impl Memory + ?Sized), stream: Stream) -> Result<u64, BufferError> {
        self.as_borrowed_mut().copy_from_on(source, stream)
    }

    /// Copies from memory of the same length in the order of `stream`; see [`Buffer::copy_from_on`].
    ///
    /// # Errors
    /// As [`Buffer::copy_from_exact`].
    pub fn copy_from_exact_on(&mut self, source: &(impl Memory + ?Sized), stream: Stream) -> Result<(), BufferError> {
        self.as_borrowed_mut().copy_from_exact_on(source, stream)
    }

    /// Copies from data of the host as many bytes as the shorter one has, and returns their count; done when this
    /// returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_from`].
    pub fn copy_from_slice<T: NoUninit>(&mut self, source: &[T]) -> Result<u64, BufferError> {
        self.copy_from(source)
    }

    /// Copies from data of the host of the same length; done when this returns.
    ///
    /// # Errors
    /// As [`Buffer::copy_from_exact`].
    pub fn copy_from_slice_exact<T: NoUninit>(&mut self, source: &[T]) -> Result<(), BufferError> {
        self.copy_from_exact(source)
    }

    /// Copies into data of the host as many bytes as the shorter one has, and returns their count; done when this
    /// returns.
    ///
    /// # Errors
    /// [`BufferError::Uninitialised`] if bytes to be copied were never written, and as [`Buffer::copy_from`].
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut words = [0_u16; 8];
    /// let count = Buffer::from_slice(host, &[1_u16, 2])?.copy_to_slice(&mut words)?;
    /// assert_eq!((count, &words[..3]), (4, &[1, 2, 0][..]));
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn copy_to_slice<T: Pod>(&self, destination: &mut [T]) -> Result<u64, BufferError> {
        self.as_borrowed().copy_to_slice(destination)
    }

    /// Copies into data of the host of the same length; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::LengthMismatch`], and as [`Buffer::copy_to_slice`].
    pub fn copy_to_slice_exact<T: Pod>(&self, destination: &mut [T]) -> Result<(), BufferError> {
        self.as_borrowed().copy_to_slice_exact(destination)
    }
}

/// Fills.
impl Buffer {
    /// Sets all bytes to `value`; done when this returns.
    ///
    /// # Errors
    /// [`BufferError::Transfer`].
    ///
    /// # Example
    /// ```
    /// # use buffer::Buffer;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = Buffer::new(host, 2)?;
    /// buffer.fill(0xff)?;
    /// assert_eq!(buffer.as_slice::<u16>()?, [u16::MAX]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn fill(&mut self, value: u8) -> Result<(), BufferError> {
        self.as_borrowed_mut().fill(value)
    }

    /// Sets all bytes to `value` in the order of `stream`.
    ///
    /// # Errors
    /// As [`Buffer::fill`].
    pub fn fill_on(&mut self, value: u8, stream: Stream) -> Result<(), BufferError> {
        self.as_borrowed_mut().fill_on(value, stream)
    }

    /// Sets all bytes to zero; done when this returns.
    ///
    /// # Errors
    /// As [`Buffer::fill`].
    pub fn zero(&mut self) -> Result<(), BufferError> {
        self.fill(0)
    }

    /// Sets all bytes to zero in the order of `stream`.
    ///
    /// # Errors
    /// As [`Buffer::fill`].
    pub fn zero_on(&mut self, stream: Stream) -> Result<(), BufferError> {
        self.fill_on(0, stream)
    }
}
