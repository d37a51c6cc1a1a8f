//! CUDA memory behind the allocator contract of `alloc-core`.
//!
//! - [`DeviceProvider`] and [`PinnedProvider`] supply device memory and page-locked host memory to the pooling engine
//!   of `alloc-pool`; [`global`] and [`pinned`] are the process's pools of them.
//! - [`AsyncAllocator`] is the driver's own pool (`cuMemAllocAsync`) behind the same trait.
//! - [`CudaStream`] owns or borrows a stream; [`CudaTransfer`] copies and fills; [`CapturedGraph`] is captured work
//!   with the buffers it uses.
//!
//! # Without CUDA
//! Without its feature `cuda` the crate compiles anywhere with the same API, and everything that needs a device
//! returns an error of the kind [`Unavailable`](alloc_core::ProviderErrorKind::Unavailable). With it, neither a
//! toolkit nor a driver is needed to build a program or to start it: the crate `cuda-link` finds the driver at run
//! time. [`is_available`] tells.
//!
//! # Current devices
//! No call changes the current context of the calling thread.
//!
//! ```
//! match alloc_cuda::device_count() {
//!     Ok(count) => println!("{count} devices"),
//!     Err(error) => println!("no CUDA here: {error}"),
//! }
//! ```

mod async_allocator;
mod device;
mod driver;
mod global;
mod graph;
mod kernel;
mod provider;
mod stream;
mod transfer;

pub use async_allocator::AsyncAllocator;
pub use device::{DeviceInfo, device_count, device_info, driver_version, is_available};
pub use driver::Event;
pub use global::{DevicePool, PinnedPool, device_pool, global, pinned, pinned_pool, tell_of_retired_streams};
pub use graph::{CaptureError, CapturedGraph, Recorder};
pub use kernel::{Argument, Kernel, Module};
pub use provider::{DeviceOptions, DeviceProvider, Physical, PinnedMemory, PinnedMethod, PinnedProvider};
pub use stream::CudaStream;
pub use transfer::CudaTransfer;
