//! How many bytes a block has, and how they are aligned.

use thiserror::Error;

/// Size and alignment of a block, in bytes. Unlike `std::alloc::Layout` it is 64 bits wide everywhere and knows
/// no upper limit but the device's.
///
/// ```
/// use alloc_core::Layout;
/// let layout = Layout::new(1000, 4096)?;
/// assert_eq!((layout.size(), layout.align()), (1000, 4096));
/// assert!(Layout::new(1000, 3).is_err());
/// # Ok::<(), alloc_core::LayoutError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    size: u64,
    align: u64,
}

/// A layout that no allocator could satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The alignment is zero or not a power of two.
    #[error("alignment {align} is not a power of two")]
    Alignment {
        /// What was asked for, in bytes.
        align: u64,
    },
    /// The size, or the size rounded up to the alignment, exceeds 2^63 - 1 bytes or overflows.
    #[error("{size} bytes aligned to {align} overflow")]
    Overflow {
        /// What was asked for, in bytes (saturated where a product overflowed).
        size: u64,
        /// The alignment, in bytes.
        align: u64,
    },
}

impl Layout {
    /// The alignment that [`Layout::bytes`] asks for: what CUDA's own allocators promise at least.
    pub const DEFAULT_ALIGN: u64 = 256;

    /// A layout of `size` bytes aligned to `align` bytes.
    ///
    /// # Errors
    /// [`LayoutError::Alignment`] if `align` is not a power of two, [`LayoutError::Overflow`] if `size` rounded up
    /// to it does not fit in 63 bits.
    pub const fn new(size: u64, align: u64) -> Result<Self, LayoutError> {
        if !align.is_power_of_two() {
            return Err(LayoutError::Alignment { align });
        }
        match size.checked_add(align - 1) {
            Some(end) if end <= i64::MAX as u64 => Ok(Self { size, align }),
            _ => Err(LayoutError::Overflow { size, align }),
        }
    }

    /// `size` bytes with the default alignment.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub const fn bytes(size: u64) -> Result<Self, LayoutError> {
        Self::new(size, Self::DEFAULT_ALIGN)
    }

    /// `count` elements of `T`, aligned to the default or to `T`, whichever is more.
    ///
    /// # Errors
    /// [`LayoutError::Overflow`] if the product overflows, and as [`Layout::new`].
    pub const fn array<T>(count: u64) -> Result<Self, LayoutError> {
        let align =
            if align_of::<T>() as u64 > Self::DEFAULT_ALIGN { align_of::<T>() as u64 } else { Self::DEFAULT_ALIGN };
        match (size_of::<T>() as u64).checked_mul(count) {
            Some(size) => Self::new(size, align),
            None => Err(LayoutError::Overflow { size: u64::MAX, align }),
        }
    }

    /// The size in bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The alignment in bytes, a power of two.
    pub const fn align(self) -> u64 {
        self.align
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_errors_and_never_wrap() {
        assert!(Layout::bytes(0).is_ok());
        assert!(matches!(Layout::bytes(u64::MAX), Err(LayoutError::Overflow { size: u64::MAX, .. })));
        assert!(matches!(Layout::new(1, 0), Err(LayoutError::Alignment { align: 0 })));
        assert!(matches!(Layout::array::<u64>(u64::MAX / 4), Err(LayoutError::Overflow { .. })));
        assert!(Layout::new(i64::MAX as u64 - 255, 256).is_ok());
        assert!(Layout::new(i64::MAX as u64 - 254, 256).is_err());
    }
}
