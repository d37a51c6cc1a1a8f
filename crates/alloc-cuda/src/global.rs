//! The process's pools, one of each kind a device, and private ones.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use alloc_core::{AllocError, Device, DeviceAllocator, DeviceKind, Stream, registry};
use alloc_pool::{Pool, PoolConfig};

use crate::provider::{DeviceOptions, DeviceProvider, PinnedMethod, PinnedProvider};

/// A pool of device memory.
pub type DevicePool = Pool<DeviceProvider>;

/// A pool of page-locked host memory.
pub type PinnedPool = Pool<PinnedProvider>;

/// The process's pool of a device's memory, made on first use. Settings come from the environment
/// ([`PoolConfig::from_env`]); a program that wants others [installs](registry::install) its own first.
///
/// # Errors
/// [`ProviderErrorKind::Unavailable`](alloc_core::ProviderErrorKind::Unavailable) without CUDA, a driver or such a
/// device; else what the driver reports. The next call tries again.
///
/// ```
/// use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
///
/// if alloc_cuda::is_available() {
///     let pool = alloc_cuda::global(0)?;
///     let block = pool.allocate(Layout::bytes(1 << 20)?, Stream::DEFAULT)?;
///     // SAFETY: nothing uses the block.
///     unsafe { pool.release(block, Stream::DEFAULT, StreamSet::EMPTY) }?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn global(ordinal: u16) -> Result<&'static dyn DeviceAllocator, AllocError> {
    let device = Device::cuda(ordinal);
    if let Some(pool) = registry::get(device) {
        return Ok(pool);
    }
    Ok(registry::get_or_try_init(device, || -> Result<Box<dyn DeviceAllocator>, AllocError> {
        let provider = DeviceProvider::new(ordinal, &DeviceOptions::default())?;
        Ok(Box::new(Pool::new(provider, environment(device)?)?))
    })?)
}

/// The process's pool of host memory that is page-locked through a device, as [`global`] is of its own memory.
///
/// # Errors
/// As [`global`].
pub fn pinned(ordinal: u16) -> Result<&'static dyn DeviceAllocator, AllocError> {
    let device = Device::cuda_pinned(ordinal);
    if let Some(pool) = registry::get(device) {
        return Ok(pool);
    }
    Ok(registry::get_or_try_init(device, || -> Result<Box<dyn DeviceAllocator>, AllocError> {
        let provider = PinnedProvider::new(ordinal, PinnedMethod::default())?;
        Ok(Box::new(Pool::new(provider, environment(device)?)?))
    })?)
}

fn environment(_device: Device) -> Result<PoolConfig, AllocError> {
    PoolConfig::from_env().map_err(|error| alloc_pool::PoolError::Config(error).into())
}

/// A private pool of a device's memory. Streams of this crate tell it when they go.
///
/// # Errors
/// As [`DeviceProvider::new`] and [`Pool::new`].
pub fn device_pool(ordinal: u16, options: &DeviceOptions, config: PoolConfig) -> Result<Arc<DevicePool>, AllocError> {
    let pool = Arc::new(Pool::new(DeviceProvider::new(ordinal, options)?, config)?);
    tell_of_retired_streams(&pool);
    Ok(pool)
}

/// A private pool of host memory that is page-locked through a device. Streams of this crate tell it when they go.
///
/// # Errors
/// As [`PinnedProvider::new`] and [`Pool::new`].
pub fn pinned_pool(ordinal: u16, method: PinnedMethod, config: PoolConfig) -> Result<Arc<PinnedPool>, AllocError> {
    let pool = Arc::new(Pool::new(PinnedProvider::new(ordinal, method)?, config)?);
    tell_of_retired_streams(&pool);
    Ok(pool)
}

static PRIVATE: Mutex<Vec<Weak<dyn DeviceAllocator>>> = Mutex::new(Vec::new());

/// Tells a private allocator of streams that are about to be destroyed, as the process's own are told anyway.
///
/// Wrapped allocators forward it, so it is enough to name the outermost.
pub fn tell_of_retired_streams<A: DeviceAllocator + 'static>(allocator: &Arc<A>) {
    let weak: Weak<A> = Arc::downgrade(allocator);
    let mut known = PRIVATE.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|allocator| allocator.strong_count() > 0);
    known.push(weak);
}

/// Tells every allocator of CUDA memory that `stream` is about to be destroyed.
pub(crate) fn retire(stream: Stream) {
    for allocator in registry::all() {
        if matches!(allocator.device().kind(), DeviceKind::CUDA | DeviceKind::CUDA_PINNED) {
            allocator.retire_stream(stream);
        }
    }
    let known: Vec<_> = {
        let known = PRIVATE.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(Weak::upgrade).collect()
    };
    for allocator in known {
        allocator.retire_stream(stream);
    }
}
