//! Several devices in one process.

use alloc_core::{Address, Addressing, Device, DeviceAllocator, Place, ProviderErrorKind, StreamSet, Transfer};
use alloc_cuda::{AsyncAllocator, CudaStream, CudaTransfer, DeviceOptions, DeviceProvider};
use alloc_pool::PoolConfig;

use super::harness::{any_device, bytes, fake, release};

#[test]
fn each_device_has_one_pool_of_its_own() {
    let _device = any_device();
    let count = alloc_cuda::device_count().unwrap();
    let pools: Vec<_> = (0..count).map(|ordinal| alloc_cuda::global(ordinal).unwrap()).collect();
    for (ordinal, pool) in pools.iter().enumerate() {
        assert_eq!(pool.device(), Device::cuda(ordinal as u16));
        assert!(std::ptr::addr_eq(*pool, alloc_cuda::global(ordinal as u16).unwrap()));
        let pinned = alloc_cuda::pinned(ordinal as u16).unwrap();
        assert_eq!(pinned.device(), Device::cuda_pinned(ordinal as u16));
        let stream = CudaStream::new(ordinal as u16).unwrap();
        for allocator in [*pool, pinned] {
            let block = allocator.allocate(bytes(3_000_000), stream.stream()).unwrap();
            release(allocator, block, stream.stream());
        }
    }
}

#[test]
fn memory_is_taken_from_the_device_that_was_named() {
    let Some(fake) = fake() else { return };
    for ordinal in 0..4 {
        let before: Vec<_> = (0..4).map(|device| fake.used(device)).collect();
        let pool = alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default()).unwrap();
        let stream = CudaStream::new(ordinal).unwrap();
        let block = pool.allocate(bytes(50 << 20), stream.stream()).unwrap();
        for device in 0..4 {
            let grown = fake.used(device) - before[usize::from(device)];
            assert_eq!(grown >= 50 << 20, device == ordinal, "{grown} bytes on {device}");
        }
        release(&*pool, block, stream.stream());
    }
}

#[test]
fn peers_get_access_where_it_is_asked_for() {
    let Some(fake) = fake() else { return };
    let transfer = CudaTransfer::of(1).unwrap();
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let stream = CudaStream::new(1).unwrap();
        let with = DeviceOptions::default().addressing(addressing).peers([1]);
        let pool = alloc_cuda::device_pool(0, &with, PoolConfig::default()).unwrap();
        let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
        let place = Place { device: pool.device(), address: block.address() };
        // Work of device 1 on memory of device 0.
        // SAFETY: the place is valid.
        unsafe { transfer.fill(place, 1 << 20, 9, stream.stream()) }.unwrap();
        stream.synchronize().unwrap();
        release(&*pool, block, stream.stream());
        pool.trim(0);
    }
    let refused = DeviceProvider::new(0, &DeviceOptions::default().peers([3])).unwrap_err();
    assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
    let refused = AsyncAllocator::with_peers(0, &[3]).unwrap_err();
    assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
    assert!(AsyncAllocator::with_peers(0, &[1]).is_ok());
    drop(fake);
}

#[test]
fn the_fake_notices_access_that_was_not_asked_for() {
    let Some(fake) = fake() else { return };
    let stream = CudaStream::new(1).unwrap();
    let pool =
        alloc_cuda::device_pool(0, &DeviceOptions::default().addressing(Addressing::Mapped), PoolConfig::default())
            .unwrap();
    let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    // SAFETY: the fake driver answers with an error.
    let _ = unsafe { CudaTransfer::of(1).unwrap().fill(place, 1 << 20, 9, stream.stream()) };
    assert!(stream.synchronize().is_err());
    assert_eq!(fake.take_violations().len(), 1);
    release(&*pool, block, stream.stream());
}

#[test]
fn copies_between_devices_carry_the_contents() {
    let Some(fake) = fake() else { return };
    let pools: Vec<_> = (0..4)
        .map(|ordinal| alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default()).unwrap())
        .collect();
    let streams: Vec<_> = (0..4).map(|ordinal| CudaStream::new(ordinal).unwrap()).collect();
    for from in 0..4_usize {
        for to in (0..4_usize).filter(|to| *to != from) {
            let length = 100_000;
            let transfer = CudaTransfer::of(from as u16).unwrap();
            let stream = &streams[from];
            let source = pools[from].allocate(bytes(length), stream.stream()).unwrap();
            // Born on a stream of its own device, used on one of another.
            let target = pools[to].allocate(bytes(length), streams[to].stream()).unwrap();
            stream.wait_for(&streams[to]).unwrap();
            let [a, b] = [(&pools[from], source), (&pools[to], target)]
                .map(|(pool, block)| Place { device: pool.device(), address: block.address() });
            let mut back = vec![0_u8; length as usize];
            let host = Place { device: Device::CPU, address: Address::new(back.as_mut_ptr() as u64) };
            // SAFETY: all places are valid, and the stream comes after the other.
            unsafe {
                transfer.fill(a, length, (from * 4 + to) as u8, stream.stream()).unwrap();
                transfer.copy(a, b, length, stream.stream()).unwrap();
                transfer.copy(b, a, length, stream.stream()).unwrap();
                transfer.copy(a, host, length, stream.stream()).unwrap();
            }
            assert!(back.iter().all(|byte| *byte == (from * 4 + to) as u8));
            release(&*pools[from], source, stream.stream());
            let mut uses = StreamSet::new();
            uses.insert(stream.stream());
            // SAFETY: the use on the other device's stream is declared.
            unsafe { pools[to].release(target, streams[to].stream(), &uses) }.unwrap();
        }
    }
    assert!(fake.calls("cuMemcpyPeerAsync") == 24);
    assert!(fake.calls("cuStreamGetCtx") > 0, "events of another device's stream are made in its context");
}
