//! Adaptors: each wraps any [`DeviceAllocator`], adds one thing, and is a [`DeviceAllocator`] itself.
//!
//! | adaptor | what it adds |
//! |---|---|
//! | [`Limited`] | a limit on the bytes in use |
//! | [`RetryOnFailure`] | a callback that may free memory, after which the request is made again |
//! | [`Fallback`] | a second allocator for what the first has no memory for |
//! | [`Logging`] | a row of RMM's CSV log for every call |
//! | [`FaultInjection`] | failures on purpose, for tests |
//! | `Tracking` (feature `tracking`) | knows every living block: leaks, double and foreign releases |
//!
//! They nest. The order matters as it reads: a limit outside of a log refuses before a row is written, a log outside
//! of a limit has a row for the refusal. Release a block to the adaptor that handed it out, not to what is inside.
//! One of your own writes what it adds, and leaves the rest to [`forward_allocator!`](crate::forward_allocator).
//!
//! ```
//! use alloc_core::adaptor::{Limited, RetryOnFailure};
//! use alloc_core::{AllocError, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream};
//!
//! let device = SimulatedAllocator::new(Device::CPU, 1 << 30);
//! let allocator = RetryOnFailure::new(Limited::new(device, 1 << 20), |error: &AllocError, bytes: u64| {
//!     eprintln!("{bytes} bytes: {error}");
//!     false
//! });
//! let refused = allocator.allocate(Layout::bytes(2 << 20)?, Stream::DEFAULT);
//! assert!(matches!(refused, Err(AllocError::LimitReached { limit: 1_048_576, in_use: 0, .. })));
//! # Ok::<(), AllocError>(())
//! ```

mod fallback;
mod fault;
mod limited;
mod logging;
mod retry;
mod thread;
#[cfg(feature = "tracking")]
mod tracking;

pub use fallback::{Fallback, FallbackError};
pub use fault::{FaultInjection, Faults, InjectedError};
pub use limited::Limited;
pub use logging::{LogError, Logging};
pub use retry::{OnFailure, RetryOnFailure};
pub use thread::ThreadTag;
#[cfg(feature = "tracking")]
pub use tracking::{Leak, LeakReport, LeakSite, ReportAtEnd, Tracking};

#[cfg(doc)]
use crate::DeviceAllocator;

#[cfg(test)]
mod tests;
