//! The process's pools, one of each kind a device, and private ones.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use alloc_core::{AllocError, Device, DeviceAllocator, DeviceKind, MemoryProvider, Stream, registry};
use alloc_pool::{Pool, PoolConfig};

use crate::names;
use crate::provider::{DeviceOptions, DeviceProvider, PinnedMethod, PinnedProvider};

/// A pool of device memory.
pub type DevicePool = Pool<DeviceProvider>;

/// A pool of page-locked host memory.
pub type PinnedPool = Pool<PinnedProvider>;

/// The process's pool of a device's memory, made on first use. Settings come from the environment
/// ([`PoolConfig::from_env`]); a program that wants others [installs](registry::install) its own first.
///
/// The first copy between two devices [opens](DeviceProvider::open_to) these pools of both to each other where the devices
/// reach each other, so that copies go directly. Until then no device pays for access that nobody uses.
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
        let pool: &'static DevicePool = Box::leak(Box::new(Pool::new(provider, environment(device)?)?));
        peers().add(pool.provider());
        Ok(Box::new(pool))
    })?)
}

/// The process's pools that are opened to each other when they have to be.
#[derive(Debug)]
struct Peers {
    providers: Vec<&'static DeviceProvider>,
    /// The devices between which something was copied, the lower ordinal first.
    pairs: BTreeSet<(u16, u16)>,
}

static PEERS: Mutex<Peers> = Mutex::new(Peers { providers: Vec::new(), pairs: BTreeSet::new() });

fn peers() -> MutexGuard<'static, Peers> {
    PEERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    fn add(&mut self, provider: &'static DeviceProvider) {
        self.providers.push(provider);
        let ordinal = provider.device().ordinal();
        for &(one, other) in &self.pairs {
            if one == ordinal {
                open(provider, other);
            } else if other == ordinal {
                open(provider, one);
            }
        }
    }

    fn open_between(&mut self, one: u16, other: u16) {
        if !self.pairs.insert((one.min(other), one.max(other))) {
            return;
        }
        for provider in &self.providers {
            match provider.device().ordinal() {
                ordinal if ordinal == one => open(provider, other),
                ordinal if ordinal == other => open(provider, one),
                _ => {}
            }
        }
    }
}

/// Opens the process's pools of two devices to each other, if that was not tried before. To be called before a copy between
/// them.
pub(crate) fn open_between(one: u16, other: u16) {
    /// A bit for each pair that was tried, so that a copy asks nobody.
    static TRIED: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let tried = TRIED.get(usize::from(one)).filter(|_| other < 64);
    if tried.is_some_and(|tried| tried.load(Ordering::Acquire) >> other & 1 != 0) {
        return;
    }
    let mut peers = peers();
    peers.open_between(one, other);
    if let Some(tried) = tried {
        tried.fetch_or(1 << other, Ordering::Release);
    }
}

/// Without access, copies take the way over the host.
fn open(provider: &DeviceProvider, peer: u16) {
    if let Err(error) = provider.open_to(peer) {
        tracing::debug!(device = %provider.device(), peer, %error, "memory stays closed to a peer");
    }
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
/// ```
/// use alloc_core::AllocError;
/// use alloc_cuda::{DeviceOptions, device_pool};
/// use alloc_pool::PoolConfig;
///
/// if alloc_cuda::is_available() {
///     let config = PoolConfig { limit: Some(1 << 30), ..PoolConfig::default() };
///     let pool = device_pool(0, &DeviceOptions::default().headroom(64 << 20), config)?;
///     assert_eq!(pool.limit(), Some(1 << 30));
/// }
/// # Ok::<(), AllocError>(())
/// ```
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
    names::end(stream);
}
