//! No call leaves another context current.

use alloc_core::{DeviceAllocator, Place, Stream, StreamSet, Transfer};
use alloc_cuda::{AsyncAllocator, CudaStream, CudaTransfer, DeviceOptions, PinnedMethod};
use alloc_pool::PoolConfig;

use super::harness::{alone, bytes, fake, release};

fn current() -> u64 {
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is loaded, and the out parameter is a local. The fake returns a code that the enum has.
    let code = unsafe { cust::sys::cuCtxGetCurrent(&raw mut context) };
    assert_eq!(code as i32, 0);
    context as u64
}

fn every_kind_of_call(ordinal: u16) {
    let stream = CudaStream::new(ordinal).unwrap();
    let options = DeviceOptions::default();
    let transfer = CudaTransfer::of(ordinal).unwrap();
    let device = alloc_cuda::device_pool(ordinal, &options, PoolConfig::default()).unwrap();
    let pinned = alloc_cuda::pinned_pool(ordinal, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    for name in [stream.stream(), Stream::DEFAULT] {
        let block = device.allocate(bytes(10_000_000), name).unwrap();
        let host = pinned.allocate(bytes(1000), name).unwrap();
        let mut pageable = vec![1_u8; 1000];
        let on_host =
            Place { device: alloc_core::Device::CPU, address: alloc_core::Address::new(pageable.as_mut_ptr() as u64) };
        let on_device = Place { device: device.device(), address: block.address() };
        // SAFETY: all places are valid, and the stream is waited for.
        unsafe {
            transfer.copy(on_host, on_device, 1000, name).unwrap();
            transfer.copy(on_device, on_host, 1000, name).unwrap();
            transfer.fill(on_device, 1000, 7, name).unwrap();
        }
        transfer.synchronize(name).unwrap();
        release(&*pinned, host, name);
        release(&*device, block, name);
    }
    device.trim(0);
    pinned.trim(0);
    if alloc_cuda::device_info(ordinal).unwrap().memory_pools {
        let allocator = AsyncAllocator::new(ordinal).unwrap();
        let block = allocator.allocate(bytes(5000), Stream::DEFAULT).unwrap();
        // SAFETY: nothing uses the block.
        unsafe { allocator.release(block, stream.stream(), StreamSet::EMPTY) }.unwrap();
        allocator.trim(0);
    }
}

#[test]
fn the_current_context_stays_what_it_was() {
    let _driver = alone();
    let devices = alloc_cuda::device_count().unwrap();
    let calls_before = current();
    assert_eq!(calls_before, 0, "this thread has none yet");
    for ordinal in 0..devices {
        every_kind_of_call(ordinal);
        assert_eq!(current(), 0);
    }

    let mut own = std::ptr::null_mut();
    // SAFETY: the driver is loaded and the out parameter a local.
    let code = unsafe { cust::sys::cuCtxCreate_v2(&raw mut own, 0, i32::from(devices) - 1) };
    assert_eq!(code as i32, 0);
    for ordinal in 0..devices {
        every_kind_of_call(ordinal);
        assert_eq!(current(), own as u64);
    }
    // SAFETY: the context was just made.
    let code = unsafe { cust::sys::cuCtxDestroy_v2(own) };
    assert_eq!(code as i32, 0);
}

#[test]
fn a_failure_restores_it_too() {
    let Some(fake) = fake() else { return };
    for call in ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemAddressReserve", "cuEventCreate"] {
        let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
        fake.fail(call, 0, 999);
        let _ = pool.allocate(bytes(1 << 20), Stream::DEFAULT).map(|block| release(&*pool, block, Stream::DEFAULT));
        assert_eq!(current(), 0, "after {call}");
        fake.clear();
    }
}
