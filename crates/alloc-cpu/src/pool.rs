//! Pools of host memory: the one of the process, and private ones.

use std::sync::Arc;

use alloc_core::registry::{self, InitError};
use alloc_core::{AllocError, Device, DeviceAllocator, EventHook, ProviderError};
use alloc_pool::{ConfigError, Pool, PoolConfig, PoolError};
use thiserror::Error;

use crate::{HostOptions, HostProvider};

/// A pool of host memory.
pub type HostPool = Pool<HostProvider>;

/// The allocator of host memory that the whole process shares: a [`HostPool`], made at the first call and never
/// twice, unless the program has [installed](registry::install) another before that.
///
/// Its settings are the defaults with what the environment says on top: see [`HostOptions::from_env`] and
/// [`PoolConfig::from_env`]. It lives as long as the process, so an
/// [`AllocatorHandle`](alloc_core::AllocatorHandle) of it counts no references.
///
/// ```
/// use alloc_core::{AllocatorHandle, Layout, Stream, StreamSet};
///
/// let allocator = alloc_cpu::global()?;
/// let block = allocator.allocate(Layout::bytes(1 << 20)?, Stream::DEFAULT)?;
/// // SAFETY: nothing uses the block.
/// unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY)? };
/// let handle = AllocatorHandle::from(allocator);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the system reports, or the environment variable that can't be read; the next call tries again.
pub fn global() -> Result<&'static dyn DeviceAllocator, AllocError> {
    if let Some(allocator) = registry::get(Device::CPU) {
        return Ok(allocator);
    }
    let make = || -> Result<Box<dyn DeviceAllocator>, HostPoolError> {
        let options = HostOptions::from_env()?;
        let config = PoolConfig::from_env()?;
        Ok(Box::new(pool().options(options).config(config).build()?))
    };
    registry::get_or_try_init(Device::CPU, || make().map_err(AllocError::from)).map_err(InitError::into)
}

/// A private pool of host memory, to be set up and [built](HostPoolBuilder::build).
///
/// ```
/// use alloc_cpu::{HostOptions, HugePages, Populate};
/// use alloc_pool::PoolConfig;
///
/// let pool = alloc_cpu::pool()
///     .options(HostOptions::new().huge_pages(HugePages::Transparent).populate(Populate::OnCreate))
///     .config(PoolConfig { limit: Some(256 << 20), ..PoolConfig::default() })
///     .build()?;
/// println!("{:?}", pool.provider().page_backing());
/// # Ok::<(), alloc_cpu::HostPoolError>(())
/// ```
pub fn pool() -> HostPoolBuilder {
    HostPoolBuilder::default()
}

/// Settings of a private pool of host memory.
#[derive(Clone, Debug, Default)]
#[must_use = "a pool is made by `build`"]
pub struct HostPoolBuilder {
    options: HostOptions,
    config: PoolConfig,
}

impl HostPoolBuilder {
    /// What memory the pool takes.
    pub fn options(mut self, options: HostOptions) -> Self {
        self.options = options;
        self
    }

    /// How the pool behaves.
    pub fn config(mut self, config: PoolConfig) -> Self {
        self.config = config;
        self
    }

    /// Who is told of rare things, in the pool and in its memory.
    pub fn event_hook(mut self, hook: Arc<dyn EventHook>) -> Self {
        self.options = self.options.event_hook(Arc::clone(&hook));
        self.config.hook = Some(hook);
        self
    }

    /// Makes the pool. It takes no memory before the first allocation.
    ///
    /// # Errors
    /// [`HostPoolError`].
    pub fn build(self) -> Result<HostPool, HostPoolError> {
        Ok(Pool::new(HostProvider::new(self.options)?, self.config)?)
    }
}

/// A pool of host memory that could not be made.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum HostPoolError {
    /// The system refused.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A setting makes no sense.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl From<ConfigError> for HostPoolError {
    fn from(error: ConfigError) -> Self {
        Self::Pool(error.into())
    }
}

impl From<HostPoolError> for AllocError {
    fn from(error: HostPoolError) -> Self {
        match error {
            HostPoolError::Provider(error) => error.into(),
            HostPoolError::Pool(error) => error.into(),
        }
    }
}
