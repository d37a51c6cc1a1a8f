//! What copies read from and write to.

use bytemuck::{NoUninit, Pod};

use crate::{BorrowedBuffer, BorrowedBufferMut, Buffer, SharedBuffer, SharedSlice, TypedBuffer};

/// Memory that can be read by a copy: every buffer and slice of this crate, and plain data of the host.
///
/// # Example
/// ```
/// use buffer::{Buffer, BufferError, Memory, SharedBuffer};
///
/// fn duplicate(source: &impl Memory) -> Result<Buffer, BufferError> {
///     let source = source.as_borrowed();
///     let mut copy = Buffer::new(alloc_cpu::global()?, source.len())?;
///     copy.copy_from_exact(&source)?;
///     Ok(copy)
/// }
///
/// let shared = SharedBuffer::from(duplicate(&vec![1_u8, 2, 3])?);
/// assert_eq!(duplicate(&shared.shared_slice(1..)?)?.as_bytes()?, [2, 3]);
/// # Ok::<(), BufferError>(())
/// ```
pub trait Memory {
    /// The memory, borrowed.
    fn as_borrowed(&self) -> BorrowedBuffer<'_>;
}

/// Memory that can be written by a copy or a fill.
///
/// # Example
/// ```
/// use buffer::{BufferError, Memory, MemoryMut};
///
/// fn overwrite(destination: &mut impl MemoryMut, source: &impl Memory) -> Result<u64, BufferError> {
///     destination.as_borrowed_mut().copy_from(source)
/// }
///
/// let mut words = [0_u16; 2];
/// assert_eq!(overwrite(&mut words, &[1_u8, 1, 2, 2])?, 4);
/// assert_eq!(words, [0x0101, 0x0202]);
/// # Ok::<(), BufferError>(())
/// ```
pub trait MemoryMut: Memory {
    /// The memory, borrowed exclusively.
    fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_>;
}

impl<M: Memory + ?Sized> Memory for &M {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        (**self).as_borrowed()
    }
}

impl<M: Memory + ?Sized> Memory for &mut M {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        (**self).as_borrowed()
    }
}

impl<M: MemoryMut + ?Sized> MemoryMut for &mut M {
    fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        (**self).as_borrowed_mut()
    }
}

macro_rules! memory {
    ($([$($generics:tt)*] $memory:ty),+ $(,)?) => {$(
        impl<$($generics)*> Memory for $memory {
            fn as_borrowed(&self) -> BorrowedBuffer<'_> {
                <$memory>::as_borrowed(self)
            }
        }
    )+};
}

macro_rules! memory_mut {
    ($([$($generics:tt)*] $memory:ty),+ $(,)?) => {$(
        impl<$($generics)*> MemoryMut for $memory {
            fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
                <$memory>::as_borrowed_mut(self)
            }
        }
    )+};
}

memory!(
    [] Buffer,
    [] SharedSlice,
    [] BorrowedBuffer<'_>,
    [] BorrowedBufferMut<'_>,
    [T: Pod] TypedBuffer<T>,
);

impl Memory for SharedBuffer {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        (**self).as_borrowed()
    }
}

memory_mut!([] Buffer, [] BorrowedBufferMut<'_>, [T: Pod] TypedBuffer<T>);

impl<T: NoUninit> Memory for [T] {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        BorrowedBuffer::from_slice(self)
    }
}

impl<T: Pod> MemoryMut for [T] {
    fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        BorrowedBufferMut::from_slice(self)
    }
}

impl<T: NoUninit, const N: usize> Memory for [T; N] {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        BorrowedBuffer::from_slice(self)
    }
}

impl<T: Pod, const N: usize> MemoryMut for [T; N] {
    fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        BorrowedBufferMut::from_slice(self)
    }
}

impl<T: NoUninit> Memory for Vec<T> {
    fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        BorrowedBuffer::from_slice(self)
    }
}

impl<T: Pod> MemoryMut for Vec<T> {
    fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        BorrowedBufferMut::from_slice(self)
    }
}
