//! What can go wrong, with the figures that a caller needs to act on it.

use std::borrow::Cow;
use std::fmt;

use thiserror::Error;

use crate::{Block, Device, LayoutError};

/// An allocation that failed. Nothing was allocated and nothing was lost.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The layout itself is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The request is larger than the allocator could ever serve, however much memory were free.
    #[error("{requested} bytes asked of {device}, which can address at most {maximum} in one block")]
    TooLarge {
        /// The device asked.
        device: Device,
        /// Bytes asked for.
        requested: u64,
        /// The largest block that the allocator can serve, in bytes.
        maximum: u64,
    },
    /// There was no memory left after everything that could be given back had been.
    #[error(transparent)]
    OutOfMemory(Box<OutOfMemory>),
    /// A limit that the program set itself would have been passed.
    #[error("limit of {limit} bytes on {device} reached: {requested} asked for, {in_use} in use")]
    LimitReached {
        /// The device asked.
        device: Device,
        /// Bytes asked for.
        requested: u64,
        /// Bytes counted against the limit.
        in_use: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The backend failed for another reason than memory.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl AllocError {
    /// Whether freeing memory and asking again may help.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory(_) | Self::LimitReached { .. } => true,
            Self::Provider(error) => error.kind == ProviderErrorKind::OutOfMemory,
            _ => false,
        }
    }
}

/// The state of an allocator at the moment it ran out of memory. All figures in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "out of memory on {device}: {requested} bytes requested; {in_use} in use, {reserved} reserved, largest free \
     block {largest_free}, {parked} parked, limit {}, device free {} of {}",
    Figure(*limit, "none"), Figure(*device_free, "unknown"), Figure(*device_total, "unknown")
)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// The device asked.
    pub device: Device,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes in blocks that are handed out.
    pub in_use: u64,
    /// Bytes of physical memory held from the device.
    pub reserved: u64,
    /// The largest block that could still be served.
    pub largest_free: u64,
    /// Bytes released but still used by work on some stream.
    pub parked: u64,
    /// The limit set by the program, if any.
    pub limit: Option<u64>,
    /// What the device says is free, if it can say.
    pub device_free: Option<u64>,
    /// What the device has in all, if it can say.
    pub device_total: Option<u64>,
}

impl OutOfMemory {
    /// No memory for `requested` bytes. All other figures are zero or unknown until they are set.
    ///
    /// ```
    /// use alloc_core::{AllocError, Device, OutOfMemory};
    ///
    /// let mut figures = OutOfMemory::new(Device::CPU, 4096);
    /// figures.limit = Some(1024);
    /// assert!(AllocError::from(figures).is_out_of_memory());
    /// ```
    pub const fn new(device: Device, requested: u64) -> Self {
        Self {
            device,
            requested,
            in_use: 0,
            reserved: 0,
            largest_free: 0,
            parked: 0,
            limit: None,
            device_free: None,
            device_total: None,
        }
    }
}

/// A figure that there may be, and what is said if there is none.
struct Figure(Option<u64>, &'static str);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(figure) => write!(f, "{figure}"),
            None => f.write_str(self.1),
        }
    }
}

impl From<OutOfMemory> for AllocError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(Box::new(error))
    }
}

/// A call to the backend that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{call} failed on {device}: {name} ({code}), {kind:?}")]
#[non_exhaustive]
pub struct ProviderError {
    /// The device it was made on.
    pub device: Device,
    /// The call, by the backend's own name.
    pub call: &'static str,
    /// The backend's result code (errno on a host, `CUresult` on CUDA), kept as it came; 0 if there is none.
    pub code: i64,
    /// The backend's name for the code.
    pub name: Cow<'static, str>,
    /// What it means to an allocator.
    pub kind: ProviderErrorKind,
}

impl ProviderError {
    /// A call that failed, for a reason without a code.
    ///
    /// ```
    /// use alloc_core::{Device, ProviderError, ProviderErrorKind};
    ///
    /// let error = ProviderError::new(Device::CPU, "mmap", ProviderErrorKind::OutOfMemory, "ENOMEM").with_code(12);
    /// assert_eq!(error.to_string(), "mmap failed on cpu:0: ENOMEM (12), OutOfMemory");
    /// ```
    pub fn new(
        device: Device,
        call: &'static str,
        kind: ProviderErrorKind,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { device, call, code: 0, name: name.into(), kind }
    }

    /// The same failure with the backend's result code.
    #[must_use]
    pub fn with_code(self, code: i64) -> Self {
        Self { code, ..self }
    }
}

/// What a backend's failure means to an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProviderErrorKind {
    /// Memory, address space or handles ran out: giving some back may help.
    OutOfMemory,
    /// The arguments were wrong: a defect of the caller.
    InvalidArgument,
    /// The context is broken for good; nothing can be known about work in flight.
    Poisoned,
    /// There is no such device, driver or backend here.
    Unavailable,
    /// The device or backend can't do this.
    Unsupported,
    /// Anything else.
    Other,
}

/// A release that was refused. The allocator's books are as they were.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The block is not from this allocator, or its parts were altered.
    #[error("{block:?} does not belong to this allocator on {device}")]
    Foreign {
        /// The allocator's device.
        device: Device,
        /// The block as it was given.
        block: Block,
    },
    /// The block was released before.
    #[error("{block:?} was released before on {device}")]
    Stale {
        /// The allocator's device.
        device: Device,
        /// The block as it was given.
        block: Block,
    },
    /// The backend failed, and whether work still uses the block can't be established: the memory is leaked and
    /// will not be reused.
    #[error("{block:?} leaked, since its use can't be known: {source}")]
    Leaked {
        /// The block as it was given.
        block: Block,
        /// The failure.
        source: ProviderError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_as_numbers_and_words() {
        let error = OutOfMemory { parked: 8, limit: Some(50), ..OutOfMemory::new(Device::CPU, 100) };
        let text = AllocError::from(error).to_string();
        assert!(text.ends_with("8 parked, limit 50, device free unknown of unknown"), "{text}");
    }
}
