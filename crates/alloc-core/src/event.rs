//! What an allocator tells those who listen. Only rare things: nothing on the path of a warm allocation.

use std::fmt::Debug;

use crate::{Device, OutOfMemory, ProviderError, ReleaseError, Stream};

/// Something rare that happened in an allocator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AllocatorEvent<'a> {
    /// Physical memory was taken from the device.
    Grew {
        /// Bytes taken.
        bytes: u64,
        /// Bytes reserved now.
        reserved: u64,
    },
    /// Free pages were mapped at another address to serve a request.
    Moved {
        /// Bytes moved.
        bytes: u64,
    },
    /// Physical memory was given back to the device.
    Shrank {
        /// Bytes given back.
        bytes: u64,
        /// Bytes reserved now.
        reserved: u64,
    },
    /// A stream was made to wait for another, so that memory could cross.
    Waited {
        /// The stream that waits.
        stream: Stream,
    },
    /// A request failed for want of memory.
    OutOfMemory(&'a OutOfMemory),
    /// A release was refused.
    RejectedRelease(&'a ReleaseError),
    /// Memory was given up, since the completion of its work can't be established.
    Leaked {
        /// Bytes given up.
        bytes: u64,
        /// Why.
        cause: &'a ProviderError,
    },
    /// The backend serves a wish in another way than asked (ordinary pages instead of huge ones, say).
    Fallback {
        /// What was wished for.
        wish: &'static str,
        /// What is done instead.
        instead: &'static str,
    },
    /// An allocator that knows its blocks was dropped, or was to report at the end of a program, while some were still in
    /// use.
    BlocksLeft {
        /// Number of blocks.
        count: u64,
        /// Bytes that were asked for in these blocks.
        bytes: u64,
    },
}

/// Listens to an allocator. Called without any lock held; it may allocate and release.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use alloc_core::{AllocatorEvent, Device, EventHook};
///
/// #[derive(Debug, Default)]
/// struct CountGrowth(AtomicU64);
///
/// impl EventHook for CountGrowth {
///     fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
///         if let AllocatorEvent::Grew { bytes, .. } = event {
///             self.0.fetch_add(*bytes, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait EventHook: Debug + Send + Sync {
    /// Something happened in an allocator of `device`.
    fn on_event(&self, device: Device, event: &AllocatorEvent<'_>);
}
