//! Growing and moving pages does not wait for a busy device.

use alloc_core::{Addressing, DeviceAllocator};
use alloc_cuda::{CudaStream, DeviceOptions};
use alloc_pool::PoolConfig;

use super::harness::{alone, bytes, release};
use super::kernels::Kernels;

#[test]
fn a_thousand_growing_and_moving_allocations_finish_before_queued_work_does() {
    // Other tests call `cuMemFree` and the like, which wait for the device and keep everybody else waiting too.
    let driver = alone();
    let roomy = driver.fake().map(|fake| fake.set_capacity(0, 8 << 30));
    let [busy, idle, other] = [(); 3].map(|()| CudaStream::new(0).unwrap());
    let counters = alloc_cuda::global(0).unwrap();
    let counter = counters.allocate(bytes(8), busy.stream()).unwrap();
    let marker = counters.allocate(bytes(4096), busy.stream()).unwrap();
    let kernels = Kernels::new(counter, &busy);
    let options = DeviceOptions::default().addressing(Addressing::Mapped);
    let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
    // What is there before: every second page run is free, so that larger blocks need pages from several holes.
    let mut kept: Vec<_> = (0..200).map(|_| pool.allocate(bytes(4 << 20), other.stream()).unwrap()).collect();
    for index in (0..100).rev() {
        release(&*pool, kept.swap_remove(2 * index), other.stream());
    }
    other.synchronize().unwrap();
    let before = pool.statistics();

    driver.hold(busy.stream());
    // At 2 GHz more than 200 ms.
    kernels.fill(marker, 1, 600_000_000, &busy);
    let mut blocks = Vec::new();
    for round in 0..1000_u64 {
        let size = if round % 20 == 0 { 8 << 20 } else { 256 << 10 << (round % 4) };
        blocks.push(pool.allocate(bytes(size), idle.stream()).unwrap());
    }
    assert!(!busy.is_idle().unwrap(), "the allocations waited for the device");
    let after = pool.statistics();
    assert!(after.provider_calls.create > before.provider_calls.create, "nothing grew");
    assert!(after.moves > before.moves, "nothing moved");

    driver.resume(busy.stream());
    for block in blocks {
        release(&*pool, block, idle.stream());
    }
    for block in kept {
        release(&*pool, block, other.stream());
    }
    drop(pool);
    drop(kernels);
    for block in [counter, marker] {
        release(counters, block, busy.stream());
    }
    if let (Some(fake), Some(bytes)) = (driver.fake(), roomy) {
        fake.set_capacity(0, bytes);
    }
}
