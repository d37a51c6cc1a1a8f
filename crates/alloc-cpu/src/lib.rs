//! Host memory behind the allocator contract.
//!
//! - [`global`] and [`pool`]: the process's pool of host memory, and private ones.
//! - [`HostProvider`]: what pools are made of: physical pages that are mapped and moved as CUDA's virtual memory is.
//! - [`SystemAllocator`]: the system's aligned heap, the simplest allocator there is.
//! - [`HostTransfer`]: copies and fills, on several threads where blocks are large.
//! - `HostAlloc` (feature `allocator-api2`): vectors and boxes in the memory of any allocator that the processor
//!   reaches.
//!
//! ```
//! use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
//!
//! let pool = alloc_cpu::pool().build()?;
//! let block = pool.allocate(Layout::array::<f32>(1 << 20)?, Stream::DEFAULT)?;
//! let address = block.address().get() as usize;
//! let floats = std::ptr::with_exposed_provenance_mut::<f32>(address);
//! // SAFETY: the block is ours, aligned, and has room for as many floats.
//! unsafe { floats.write_bytes(0, 1 << 20) };
//! // SAFETY: the block is used no more.
//! unsafe { pool.release(block, Stream::DEFAULT, StreamSet::EMPTY)? };
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is for Linux.

#[cfg(not(target_os = "linux"))]
compile_error!("alloc-cpu needs Linux: its pages are files in memory");

mod backing;
mod capacity;
#[cfg(feature = "allocator-api2")]
mod collections;
mod offsets;
mod options;
mod pool;
mod provider;
mod store;
mod sys;
mod system;
mod transfer;
mod workers;

pub use backing::{FallbackReason, PageBacking, PageKind};
#[cfg(feature = "allocator-api2")]
pub use collections::{HostAlloc, NotHostAccessible};
pub use options::{HostOptions, HugePages, NumaPolicy, Populate};
pub use pool::{HostPool, HostPoolBuilder, HostPoolError, global, pool};
pub use provider::{HostPages, HostProvider};
pub use system::SystemAllocator;
pub use transfer::HostTransfer;
