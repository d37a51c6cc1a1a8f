//! What can go wrong with a buffer, with the figures that a caller needs to act on it.

use alloc_core::{Address, AllocError, Device, LayoutError, TransferError};
use thiserror::Error;

/// An operation on a buffer that failed. The buffers are as they were, except where a variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The memory could not be allocated.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// A copy, a fill or a wait failed. What it was about to write may have been written in part.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A strict copy between memories of different lengths.
    #[error("{destination_bytes} bytes can't be filled exactly from {source_bytes}")]
    LengthMismatch {
        /// Length of the destination in bytes.
        destination_bytes: u64,
        /// Length of the source in bytes.
        source_bytes: u64,
    },
    /// A range that reaches past the end, or ends before it starts.
    #[error("range {start}..{end} does not lie in the {len} there are")]
    OutOfBounds {
        /// First index asked for.
        start: u64,
        /// End of the range asked for, exclusive.
        end: u64,
        /// What there is: bytes, or elements where the range counted elements.
        len: u64,
    },
    /// The processor can't dereference addresses of this device.
    #[error("memory of {device} is not accessible from the host")]
    NotHostAccessible {
        /// The device of the memory.
        device: Device,
    },
    /// A read of bytes that nothing is known to have written.
    #[error("bytes {start}..{end} are read, but only {initialised} bytes from {start} on were ever written")]
    Uninitialised {
        /// First byte asked for.
        start: u64,
        /// End of the bytes asked for, exclusive.
        end: u64,
        /// How many bytes from `start` on are known to be written.
        initialised: u64,
    },
    /// An address that is not aligned for the type of its elements.
    #[error("address {address:?} is not aligned to {align} bytes")]
    Misaligned {
        /// The address.
        address: Address,
        /// The alignment that the type needs, in bytes.
        align: u64,
    },
    /// A length that is no whole number of elements.
    #[error("{bytes} bytes are no whole number of elements of {element} bytes")]
    PartialElement {
        /// The length in bytes.
        bytes: u64,
        /// The size of an element in bytes.
        element: u64,
    },
    /// Memory of one device where that of another was called for.
    #[error("memory of {found} where {expected} was expected")]
    DeviceMismatch {
        /// The device that was called for.
        expected: Device,
        /// The device that was given.
        found: Device,
    },
    /// More bytes than the host's address space can hold.
    #[error("{bytes} bytes exceed the host's address space")]
    TooLargeForHost {
        /// The length in bytes.
        bytes: u64,
    },
    /// Borrowed memory of a device that came without anything that copies or fills it.
    #[error("nothing at hand fills memory of {device}")]
    NoTransfer {
        /// The device of the memory.
        device: Device,
    },
    /// An earlier copy through another backend could not be waited for, so it is unknown whether the memory is
    /// still in use. When the buffer is dropped, its memory is leaked and that is reported.
    #[error("an earlier copy of memory of {device} was never seen to finish")]
    Unfinished {
        /// The device of the memory.
        device: Device,
    },
}

impl From<LayoutError> for BufferError {
    fn from(error: LayoutError) -> Self {
        Self::Alloc(error.into())
    }
}
