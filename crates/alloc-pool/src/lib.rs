//! A pooling, stream-ordered allocator over any [`MemoryProvider`](alloc_core::MemoryProvider).
//!
//! Three layers, from hot to cold: *thread caches* of small blocks, *arenas* (one, and more where threads meet)
//! that place the blocks of all streams by best fit, and *pages* that move to where they are needed before new ones are created.
//!
//! [`Pool`] is the allocator, [`PoolConfig`] what can be set. The backends are crates of their own: `alloc-cpu` has host
//! memory, `alloc-cuda` that of GPUs. Here one that only keeps books stands for them:
//!
//! ```
//! use alloc_core::conformance::SimulatedProvider;
//! use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
//! use alloc_pool::{Pool, PoolConfig};
//!
//! let pool = Pool::new(SimulatedProvider::mapped(8 << 30), PoolConfig::default())?;
//! for _ in 0..100 {
//!     let block = pool.allocate(Layout::bytes(3 << 20)?, Stream::DEFAULT)?;
//!     // SAFETY: nothing uses the block.
//!     unsafe { pool.release(block, Stream::DEFAULT, StreamSet::EMPTY)? };
//! }
//! assert_eq!(pool.statistics().misses, 1); // the first; the others have its memory again without a call
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adjust;
mod allocate;
mod arena;
mod arenas;
mod asymmetric;
mod bias;
mod cache;
mod caches;
mod config;
mod crossing;
mod driver;
mod grow;
mod id;
mod ledger;
mod local;
mod marks;
mod miss;
#[cfg(loom)]
#[doc(hidden)]
pub mod models;
mod notes;
mod owners;
mod pages;
mod park;
mod placement;
mod pool;
mod primitive;
mod release;
mod remote;
mod retired;
mod returns;
mod sharers;
mod snapshot;
mod standby;
mod statistics;
mod streams;

pub use config::{ConfigError, PoolConfig, parse_bytes};
pub use pages::Breakdown;
pub use pool::{Pool, PoolError};
