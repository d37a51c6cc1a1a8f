//! Why a buffer could not become a tensor, or a tensor a buffer.

use alloc_core::Device;
use buffer::{Buffer, BufferError};
use thiserror::Error;

/// What does not fit.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DlpackError {
    /// The device is none that DLPack has a name for, or a simulated one.
    #[error("DLPack has no name for {device}")]
    Device {
        /// The device.
        device: Device,
    },
    /// A tensor of another device than the allocator's.
    #[error("a tensor of DLPack's device {kind}:{ordinal} is not in the memory of {device}")]
    OtherDevice {
        /// The allocator's device.
        device: Device,
        /// DLPack's number for the kind of the tensor's device.
        kind: u32,
        /// Its number among its kind.
        ordinal: i32,
    },
    /// The shape has negative lengths, or more elements than can be counted.
    #[error("a shape of {shape:?} makes no sense")]
    Shape {
        /// The shape.
        shape: Vec<i64>,
    },
    /// The tensor is larger than what the buffer has written to.
    #[error("a tensor of {wanted} bytes does not fit the {initialised} bytes of the buffer that are initialised")]
    TooLarge {
        /// Bytes of the tensor.
        wanted: u64,
        /// Bytes at the start of the buffer that were written.
        initialised: u64,
    },
    /// The tensor's elements do not follow one another row by row.
    #[error("the tensor is not contiguous")]
    NotContiguous,
    /// The tensor's elements are smaller than a byte and take one each, of which the type of the elements says nothing.
    #[error("the tensor's elements of {bits} bits are padded to bytes")]
    Padded {
        /// Bits of an element.
        bits: u8,
    },
    /// The tensor may not be written to, as the owner of a buffer could.
    #[error("the tensor is read-only")]
    ReadOnly,
    /// The descriptor is against the rules of DLPack.
    #[error("{0}")]
    Invalid(String),
    /// Work on the buffer could not be waited for.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

/// A buffer that could not be exported, and why.
#[derive(Debug, Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct Refused {
    /// What does not fit.
    pub error: DlpackError,
    /// The buffer, as it was.
    pub buffer: Box<Buffer>,
}
