//! A pooling, stream-ordered allocator over any [`MemoryProvider`](alloc_core::MemoryProvider).
//!
//! Three layers, from hot to cold: *thread caches* of small blocks, *arenas* (one, and more where threads meet)
//! that place the blocks of all streams by best fit, and *pages* that move to where they are needed before new ones are created.
//! `docs/architecture.md` follows a block through them.

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
