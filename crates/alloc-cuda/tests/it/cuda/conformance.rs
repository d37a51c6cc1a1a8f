//! The conformance suite over every allocator of this crate, on the fake driver or a real one.

use std::sync::{Arc, OnceLock};

use alloc_core::conformance::Options;
use alloc_core::{Addressing, DeviceAllocator, Stream};
use alloc_cuda::{AsyncAllocator, CudaStream, DeviceOptions, DirectAllocator, PinnedMethod, PrivatePool};
use alloc_pool::PoolConfig;

use super::harness::{Guarded, any_device};

const CAPACITY: u64 = 256 << 20;

/// Streams that live as long as the process.
fn streams() -> Vec<Stream> {
    static STREAMS: OnceLock<Vec<CudaStream>> = OnceLock::new();
    let streams = STREAMS.get_or_init(|| {
        let _device = any_device();
        (0..3).map(|_| CudaStream::new(0).unwrap()).collect()
    });
    streams.iter().map(CudaStream::stream).collect()
}

fn pooled() -> Options {
    Options { streams: streams(), capacity: Some(CAPACITY), ..Options::default() }
}

/// As many addresses as a pool of a card with 128 GiB or more has: there are multiples of a TiB among them.
fn config() -> PoolConfig {
    PoolConfig { limit: Some(CAPACITY), address_space: Some(2 << 40), ..PoolConfig::default() }
}

fn device(addressing: Addressing) -> Arc<dyn DeviceAllocator> {
    let guard = any_device();
    let options = DeviceOptions::default().addressing(addressing);
    Arc::new(Guarded::new(guard, alloc_cuda::device_pool(0, &options, config()).unwrap()))
}

fn pinned(method: PinnedMethod) -> Arc<dyn DeviceAllocator> {
    let guard = any_device();
    Arc::new(Guarded::new(guard, alloc_cuda::pinned_pool(0, method, config()).unwrap()))
}

alloc_core::conformance! { mapped_pool, || device(Addressing::Mapped), pooled() }
alloc_core::conformance! { segmented_pool, || device(Addressing::Segmented), pooled() }
alloc_core::conformance! { pinned_pool, || pinned(PinnedMethod::Registered), pooled() }
alloc_core::conformance! { driver_pinned_pool, || pinned(PinnedMethod::DriverAllocated), pooled() }
alloc_core::conformance! {
    private_pool,
    || {
        let guard = any_device();
        let source = alloc_cuda::device_pool(0, &DeviceOptions::default(), config()).unwrap();
        Guarded::new(guard, PrivatePool::new(0, source.into()).unwrap())
    },
    // Segments that were handed out small stay so: a graph may use them.
    Options { trims_to_zero: false, capacity: None, ..pooled() }
}
alloc_core::conformance! {
    async_allocator,
    || {
        let guard = any_device();
        Guarded::new(guard, AsyncAllocator::new(0).unwrap())
    },
    Options { streams: streams(), ..Options::default() }
}
alloc_core::conformance! {
    direct_allocator,
    || {
        let guard = any_device();
        Guarded::new(guard, DirectAllocator::new(0).unwrap())
    },
    Options { streams: streams(), ..Options::default() }
}
