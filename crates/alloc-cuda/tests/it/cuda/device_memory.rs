//! Device memory through the pool: calls pair up, and both kinds of addressing give everything back.

use alloc_core::{Addressing, DeviceAllocator, MemoryProvider, Place, ProviderErrorKind};
use alloc_cuda::{CudaStream, DeviceOptions, DeviceProvider};
use alloc_pool::PoolConfig;

use super::harness::{Alone, Living, alone, bytes, fake, release};

fn traffic(pool: &dyn DeviceAllocator, streams: &[CudaStream]) {
    let mut blocks = Vec::new();
    for round in 0..400_u64 {
        let stream = streams[round as usize % streams.len()].stream();
        let size = 1 << (9 + round % 15);
        blocks.push((pool.allocate(bytes(size + round), stream).unwrap(), stream));
        if round % 3 == 0 {
            let (block, stream) = blocks.swap_remove((round as usize * 7) % blocks.len());
            release(pool, block, stream);
        }
        if blocks.len() > 30 {
            let (block, stream) = blocks.swap_remove(0);
            release(pool, block, stream);
        }
    }
    for (block, stream) in blocks {
        release(pool, block, stream);
    }
}

/// Reservations, handles, mappings and allocations: other tests' pools live on.
fn books(driver: &Alone) -> [Option<u64>; 4] {
    [Living::Reservations, Living::Physical, Living::Mappings, Living::Allocations].map(|kind| driver.living(kind))
}

/// Asserts that the fake driver was called by both names as often.
fn assert_as_often(driver: &Alone, name: &str, other: &str) {
    driver.fake().inspect(|fake| assert_eq!(fake.calls(name), fake.calls(other), "{name} and {other}"));
}

#[test]
fn mapped_pages_pair_up() {
    let driver = alone();
    let used = || driver.fake().map(|fake| fake.used(0));
    let before = (books(&driver), used());
    let streams = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let options = DeviceOptions::default().addressing(Addressing::Mapped);
    let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
    traffic(&*pool, &streams);
    driver.fake().inspect(|fake| assert!(fake.calls("cuMemCreate") > 0));
    driver.assert_calls("cuMemAlloc_v2", 0);
    assert_as_often(&driver, "cuMemMap", "cuMemSetAccess");
    pool.trim(0);
    assert_eq!(pool.statistics().reserved.current, 0);
    assert_eq!(used(), before.1);
    drop(pool);
    assert_eq!(books(&driver), before.0);
    assert_as_often(&driver, "cuMemCreate", "cuMemRelease");
    assert_as_often(&driver, "cuMemMap", "cuMemUnmap");
    assert_as_often(&driver, "cuMemAddressReserve", "cuMemAddressFree");
}

#[test]
fn memory_that_was_made_beforehand_needs_no_driver_later() {
    let _driver = alone();
    let streams = [(); 2].map(|()| CudaStream::new(0).unwrap());
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let options = DeviceOptions::default().addressing(addressing);
        let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
        let held = pool.grow_to(96 << 20, streams[0].stream()).unwrap();
        let before = pool.statistics().provider_calls;
        assert!((96 << 20..98 << 20).contains(&held) && pool.statistics().in_use.peak == 0);
        // A segment holds one block of its size; pages hold any.
        let size = if addressing == Addressing::Mapped { 40 << 20 } else { 2 << 20 };
        let blocks: Vec<_> =
            streams.iter().map(|own| (pool.allocate(bytes(size), own.stream()).unwrap(), own.stream())).collect();
        assert_eq!(pool.statistics().provider_calls.memory(), before.memory(), "{addressing:?}");
        for (block, stream) in blocks {
            let place = Place { device: pool.device(), address: block.address() };
            // SAFETY: the block is as large, and its stream is waited for before the pool goes.
            unsafe { pool.transfer().fill(place, size, 7, stream) }.unwrap();
            pool.transfer().synchronize(stream).unwrap();
            release(&*pool, block, stream);
        }
        pool.set_limit(Some(held));
        assert!(pool.grow_to(held + 1, streams[0].stream()).unwrap_err().is_out_of_memory());
        assert_eq!(pool.trim(0), held);
        streams.iter().for_each(|stream| pool.retire_stream(stream.stream()));
    }
}

#[test]
fn the_headroom_is_left_to_the_driver() {
    let Some(fake) = fake() else { return };
    let (stream, used, headroom) = (CudaStream::new(0).unwrap(), fake.used(0), 100 << 20);
    let capacity = fake.set_capacity(0, used + (400 << 20));
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let options = DeviceOptions::default().addressing(addressing).headroom(headroom);
        let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
        let mut blocks = Vec::new();
        while let Ok(block) = pool.allocate(bytes(10 << 20), stream.stream()) {
            blocks.push(block);
        }
        // What other pools of the process hold idle, they have given back.
        let others = fake.used(0) - pool.statistics().reserved.current;
        assert!(others <= used);
        let left = used + (400 << 20) - headroom - others;
        assert_eq!(blocks.len() as u64, left / (10 << 20), "all of the device but the headroom");
        assert!(fake.calls("cuMemGetInfo_v2") < 40, "the device is seldom asked");
        assert!(pool.allocate(bytes(10 << 20), stream.stream()).unwrap_err().is_out_of_memory());
        let again = blocks.pop().unwrap();
        release(&*pool, again, stream.stream());
        blocks.push(pool.allocate(bytes(10 << 20), stream.stream()).unwrap());
        blocks.into_iter().for_each(|block| release(&*pool, block, stream.stream()));
        pool.trim(0);
        assert_eq!(pool.statistics().reserved.current, 0);
        fake.clear();
    }
    fake.set_capacity(0, capacity);
}

#[test]
fn segments_pair_up() {
    let driver = alone();
    let before = books(&driver);
    let streams = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let options = DeviceOptions::default().addressing(Addressing::Segmented);
    let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
    traffic(&*pool, &streams);
    driver.fake().inspect(|fake| assert!(fake.calls("cuMemAlloc_v2") > 0));
    driver.assert_calls("cuMemCreate", 0);
    drop(pool);
    assert_eq!(books(&driver), before);
    assert_as_often(&driver, "cuMemAlloc_v2", "cuMemFree_v2");
}

#[test]
fn a_device_without_virtual_memory_gets_segments() {
    let driver = alone();
    if driver.fake().is_none() {
        return;
    }
    let before = books(&driver);
    let provider = DeviceProvider::new(2, &DeviceOptions::default()).unwrap();
    assert_eq!(provider.addressing(), Addressing::Segmented);
    let forced = DeviceProvider::new(2, &DeviceOptions::default().addressing(Addressing::Mapped)).unwrap_err();
    assert_eq!((forced.kind, forced.device.ordinal()), (ProviderErrorKind::Unsupported, 2));
    let streams = [CudaStream::new(2).unwrap()];
    let pool = alloc_cuda::device_pool(2, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    traffic(&*pool, &streams);
    drop(pool);
    assert_eq!(books(&driver), before);
}

#[test]
fn pages_are_marked_for_rdma_where_the_device_can() {
    let Some(_fake) = fake() else { return };
    assert!(DeviceProvider::new(0, &DeviceOptions::default()).unwrap().is_rdma_capable());
    assert!(!DeviceProvider::new(2, &DeviceOptions::default()).unwrap().is_rdma_capable());
}

#[test]
fn a_warm_pool_makes_no_driver_calls() {
    let Some(fake) = fake() else { return };
    let stream = [CudaStream::new(0).unwrap()];
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    traffic(&*pool, &stream);
    traffic(&*pool, &stream);
    fake.clear();
    traffic(&*pool, &stream);
    assert_eq!(fake.log(), []);
}
