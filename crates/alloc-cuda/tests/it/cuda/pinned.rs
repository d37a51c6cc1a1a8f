//! Page-locked host memory: pairing, and blocks in flight.

use alloc_core::{Device, DeviceAllocator, MemoryProvider, Place, ProviderErrorKind, Transfer};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions, PinnedMethod, PinnedProvider};
use alloc_pool::PoolConfig;

use super::harness::{Living, alone, any_device, bytes, fake, release};

#[test]
fn every_page_that_is_locked_is_unlocked() {
    let driver = alone();
    let stream = CudaStream::new(0).unwrap();
    // What pageable copies keep for good.
    let host = || [Living::HostAllocations, Living::HostRegistrations].map(|kind| driver.living(kind));
    let before = host();
    for method in [PinnedMethod::Registered, PinnedMethod::DriverAllocated] {
        let pool = alloc_cuda::pinned_pool(0, method, PoolConfig::default()).unwrap();
        let blocks: Vec<_> =
            (0..20).map(|i| pool.allocate(bytes(100_000 << (i % 6)), stream.stream()).unwrap()).collect();
        if driver.fake().is_some() {
            let grown = [0, 1].map(|index| host()[index] > before[index]);
            assert_eq!(grown, [method == PinnedMethod::DriverAllocated, method == PinnedMethod::Registered]);
        }
        for block in blocks {
            // SAFETY: the block is host memory of ours.
            unsafe { std::ptr::write_bytes(block.address().get() as *mut u8, 1, block.size() as usize) };
            release(&*pool, block, stream.stream());
        }
        drop(pool);
    }
    assert_eq!(host(), before);
}

#[test]
fn what_takes_addresses_is_refused_without_a_code() {
    let _device = any_device();
    let provider = PinnedProvider::new(0, PinnedMethod::default()).unwrap();
    let error = provider.reserve(900).unwrap_err();
    assert_eq!((error.kind, error.call, error.code), (ProviderErrorKind::Unsupported, "reserve", 0));
}

#[test]
fn a_failed_registration_loses_nothing() {
    let Some(fake) = fake() else { return };
    let stream = CudaStream::new(0).unwrap();
    let pool = alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    let registered = fake.living(Living::HostRegistrations);
    fake.fail("cuMemHostRegister_v2", 0, 304);
    assert!(pool.allocate(bytes(1 << 20), stream.stream()).is_err());
    assert_eq!(fake.living(Living::HostRegistrations), registered);
    let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
    release(&*pool, block, stream.stream());
}

#[test]
fn a_block_released_during_a_copy_is_not_handed_to_another_stream() {
    let driver = alone();
    let device = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let pinned = alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    let [copies, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let transfer = CudaTransfer::of(0).unwrap();
    let length = 1 << 20;
    let source = pinned.allocate(bytes(length), copies.stream()).unwrap();
    let target = device.allocate(bytes(length), copies.stream()).unwrap();
    // SAFETY: the block is host memory of ours.
    unsafe { std::ptr::write_bytes(source.address().get() as *mut u8, 7, length as usize) };
    driver.hold(copies.stream());
    let place = |device, block: alloc_core::Block| Place { device, address: block.address() };
    // SAFETY: both places are valid until the stream has come past the copy: the pool keeps the block parked.
    unsafe {
        transfer
            .copy(place(Device::cuda_pinned(0), source), place(Device::cuda(0), target), length, copies.stream())
            .unwrap();
    }
    release(&*pinned, source, copies.stream());
    let taken = pinned.allocate(bytes(length), other.stream()).unwrap();
    assert!(
        taken.address().get() + length <= source.address().get()
            || source.address().get() + length <= taken.address().get()
            || driver.fake().is_none_or(|fake| fake.pending(other.stream()) > 0),
        "a stream that did not wait has the memory that the copy still reads"
    );
    driver.resume(copies.stream());
    let mut back = vec![0_u8; length as usize];
    let host = Place { device: Device::CPU, address: alloc_core::Address::new(back.as_mut_ptr() as u64) };
    // SAFETY: the places are valid.
    unsafe { transfer.copy(place(Device::cuda(0), target), host, length, copies.stream()) }.unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
    release(&*pinned, taken, other.stream());
    release(&*device, target, copies.stream());
}

#[test]
fn both_methods_serve_copies() {
    let _device = any_device();
    let device = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    for method in [PinnedMethod::Registered, PinnedMethod::DriverAllocated] {
        let pinned = alloc_cuda::pinned_pool(0, method, PoolConfig::default()).unwrap();
        let length = 3_000_000;
        let host = pinned.allocate(bytes(length), stream.stream()).unwrap();
        let block = device.allocate(bytes(length), stream.stream()).unwrap();
        let [a, b] = [(pinned.device(), host), (device.device(), block)]
            .map(|(device, block)| Place { device, address: block.address() });
        // SAFETY: the block is host memory of ours, and the places are valid.
        let memory = unsafe { std::slice::from_raw_parts_mut(host.address().get() as *mut u8, length as usize) };
        memory.fill(1);
        // SAFETY: as above; the stream is waited for before the host looks.
        unsafe {
            transfer.copy(a, b, length, stream.stream()).unwrap();
            stream.synchronize().unwrap();
            memory.fill(0);
            transfer.copy(b, a, length, stream.stream()).unwrap();
        }
        stream.synchronize().unwrap();
        assert!(memory.iter().all(|byte| *byte == 1));
        release(&*pinned, host, stream.stream());
        release(&*device, block, stream.stream());
    }
}
