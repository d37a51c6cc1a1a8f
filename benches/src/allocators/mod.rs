//! The allocators that are compared, each behind [`DeviceAllocator`].

mod heap;
mod null;
mod original;

use std::alloc::System;
use std::fmt;

use alloc_core::{DeviceAllocator, Stream};
use alloc_cpu::{HostOptions, HostProvider, SystemAllocator};
use alloc_pool::{Pool, PoolConfig};
use anyhow::Context;
use clap::ValueEnum;
use mimalloc::MiMalloc;

use crate::memory;

pub use heap::Heap;
pub use null::NullAllocator;
pub use original::OriginalPool;

/// An allocator by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Peer {
    /// This workspace's pool over host memory, in its default configuration
    Pool,
    /// The same after `Pool::grow_to`: it holds what will live at one time before that is asked for
    Grown,
    /// The system's heap, with nothing around it
    System,
    /// mimalloc, with nothing around it
    Mimalloc,
    /// jemalloc, with nothing around it
    #[cfg(feature = "jemalloc")]
    Jemalloc,
    /// A model of the list-scanning pool of the inference engine that this project comes from
    Original,
    /// `alloc_cpu::SystemAllocator`: the system's heap with checks and statistics
    CheckedSystem,
    /// No allocator at all, for the cost of the loop itself
    Null,
}

impl Peer {
    /// Those that are compared unless others are named.
    pub const DEFAULT: &'static [Self] = &[
        Self::Pool,
        Self::System,
        Self::Mimalloc,
        #[cfg(feature = "jemalloc")]
        Self::Jemalloc,
        Self::Original,
    ];

    /// Whether the allocator knows how much memory it holds, and counts its calls to the system.
    pub fn knows_reserved(self) -> bool {
        matches!(self, Self::Pool | Self::Grown | Self::Original)
    }

    /// Whether its blocks have memory behind them.
    pub fn has_memory(self) -> bool {
        self != Self::Null
    }

    /// Makes a fresh allocator and hands it to the visitor. `peak` is how many bytes will live at one time, and
    /// `touched` whether they are written to.
    ///
    /// # Errors
    /// What the allocator reports when it is made.
    pub fn visit<V: Visitor>(self, peak: u64, touched: bool, visitor: V) -> anyhow::Result<V::Output> {
        Ok(match self {
            Self::Pool => visitor.visit(host_pool(peak, touched)?),
            Self::Grown => {
                let pool = host_pool(peak, touched)?;
                pool.grow_to(peak, Stream::DEFAULT)?;
                visitor.visit(pool)
            }
            Self::System => visitor.visit(Heap::new(System)),
            Self::Mimalloc => visitor.visit(Heap::new(MiMalloc)),
            #[cfg(feature = "jemalloc")]
            Self::Jemalloc => visitor.visit(Heap::new(tikv_jemallocator::Jemalloc)),
            Self::Original => visitor.visit(OriginalPool::new()),
            Self::CheckedSystem => visitor.visit(SystemAllocator::new()),
            Self::Null => visitor.visit(NullAllocator::default()),
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Grown => "grown",
            Self::System => "system",
            Self::Mimalloc => "mimalloc",
            #[cfg(feature = "jemalloc")]
            Self::Jemalloc => "jemalloc",
            Self::Original => "original",
            Self::CheckedSystem => "checked-system",
            Self::Null => "null",
        })
    }
}

/// What is done with an allocator of whatever type.
pub trait Visitor {
    /// What comes of it.
    type Output;

    /// Does it.
    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) -> Self::Output;
}

/// The pool over host memory in its default configuration, with what the environment says on top.
///
/// Host memory is limited to what the machine has. Where that is less than `peak` and nothing will be `touched`, the
/// limit is raised, since pages that are never written to take none.
///
/// # Errors
/// What the configuration, the provider and the pool report.
pub fn host_pool(peak: u64, touched: bool) -> anyhow::Result<Pool<HostProvider>> {
    host_pool_with(peak, touched, PoolConfig::from_env().context("the pool's configuration")?)
}

/// The same in another configuration.
///
/// # Errors
/// What the provider and the pool report.
pub fn host_pool_with(peak: u64, touched: bool, config: PoolConfig) -> anyhow::Result<Pool<HostProvider>> {
    let mut options = HostOptions::new();
    if !touched && memory::total().is_some_and(|total| peak > total / 4 * 3) {
        options = options.capacity_bytes(peak.saturating_mul(2));
    }
    let provider = HostProvider::new(options).context("no host memory")?;
    Pool::new(provider, config).context("no pool")
}
