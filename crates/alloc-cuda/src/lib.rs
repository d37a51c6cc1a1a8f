//! CUDA memory behind the allocator contract of `alloc-core`.
//!
//! - [`DeviceProvider`] and [`PinnedProvider`] supply device memory and page-locked host memory to the pooling engine
//!   of `alloc-pool`; [`global`] and [`pinned`] are the process's pools of them.
//! - [`AsyncAllocator`] is the driver's own pool (`cuMemAllocAsync`) behind the same trait, and [`DirectAllocator`]
//!   its plain `cuMemAlloc`.
//! - [`CudaStream`] owns or borrows a stream; [`CudaTransfer`] copies and fills; [`CapturedGraph`] is captured work
//!   with the buffers it uses; [`PrivatePool`] is a pool for the memory of graphs that others capture.
//! - [`ShareableMemory`] is memory that several processes use, handed over by file descriptor.
//!
//! # Without CUDA
//! Without its feature `cuda` the crate compiles anywhere with the same API, and everything that needs a device
//! returns an error of the kind [`Unavailable`](alloc_core::ProviderErrorKind::Unavailable). With it, neither a
//! toolkit nor a driver is needed to build a program or to start it: the crate `cuda-link` finds the driver at run
//! time. [`is_available`] tells.
//!
//! To build with the feature in a workspace of your own, without a toolkit, give the build script of `cust_raw` what it
//! wants (it stops with "Could not find a cuda installation"): any folder with a `lib64` in it, itself empty if need be. In
//! `.cargo/config.toml`, or in the environment:
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = { value = "no-toolkit", relative = true } # `no-toolkit/lib64` is beside `.cargo`
//! ```
//!
//! On a machine with a toolkit there is nothing to be done.
//!
//! `ALLOC_CUDA_DRIVER` in the environment names a library to load in the driver's place.
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
mod books;
#[cfg(feature = "cudarc")]
mod cudarc;
mod device;
mod direct_allocator;
mod driver;
mod ending;
mod global;
mod graph;
mod kernel;
mod names;
mod private_pool;
mod provider;
mod put_off;
#[cfg(unix)]
mod share;
mod stream;
mod transfer;

#[cfg(feature = "cudarc")]
pub use crate::cudarc::{CudarcError, CudarcSlice};
pub use async_allocator::AsyncAllocator;
pub use device::{DeviceInfo, can_access_peer, device_count, device_info, driver_version, is_available, synchronize};
pub use direct_allocator::DirectAllocator;
pub use driver::Event;
pub use global::{DevicePool, PinnedPool, device_pool, global, pinned, pinned_pool, tell_of_retired_streams};
pub use graph::{CaptureError, CapturedGraph, Recorder};
pub use kernel::{Argument, Kernel, Module};
pub use names::{retire_stream, stream_named};
pub use private_pool::PrivatePool;
pub use provider::{DeviceOptions, DeviceProvider, Physical, PinnedMemory, PinnedMethod, PinnedProvider};
pub use put_off::give_back_put_off;
#[cfg(unix)]
pub use share::{ShareError, ShareableMemory};
pub use stream::CudaStream;
pub use transfer::CudaTransfer;
