//! Pools of host memory: one for the process, and private ones.

use std::sync::{Arc, Mutex};

use alloc_core::{
    AllocError, AllocatorEvent, Device, DeviceAllocator, EventHook, Layout, ProviderErrorKind, Stream, StreamSet,
    registry,
};
use alloc_cpu::{HostOptions, HostPoolError, HugePages, NumaPolicy};
use alloc_pool::{PoolConfig, PoolError};

use crate::bytes::{fill, holds};

#[test]
fn the_process_has_one_pool_of_host_memory() {
    let addresses: Vec<usize> = std::thread::scope(|scope| {
        let find = || std::ptr::from_ref(alloc_cpu::global().unwrap()).addr();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(find)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(addresses.iter().all(|&address| address == addresses[0]));
    let found = registry::get(Device::CPU).unwrap();
    assert_eq!((std::ptr::from_ref(found).addr(), found.device()), (addresses[0], Device::CPU));
    let block = found.allocate(Layout::bytes(3 << 20).unwrap(), Stream::DEFAULT).unwrap();
    fill(block.address(), 3 << 20, 0xC3);
    assert!(holds(block.address(), 3 << 20, 0xC3));
    // SAFETY: the block is used no more.
    unsafe { found.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
}

#[test]
fn a_pool_that_can_not_be_made_says_why() {
    let error = alloc_cpu::pool().config(PoolConfig { growth_slack: -1.0, ..PoolConfig::default() }).build();
    assert!(matches!(error, Err(HostPoolError::Pool(PoolError::Config(_)))), "{error:?}");
    let error = alloc_cpu::pool().options(HostOptions::new().numa(NumaPolicy::Bind(vec![1000]))).build().unwrap_err();
    let HostPoolError::Provider(inner) = &error else { panic!("{error:?}") };
    assert_eq!(inner.call, "mbind");
    assert!(matches!(AllocError::from(error), AllocError::Provider(error) if error.call == "mbind"));
}

#[derive(Debug, Default)]
struct Names(Mutex<Vec<&'static str>>);

impl EventHook for Names {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        self.0.lock().unwrap().push(match event {
            AllocatorEvent::Grew { .. } => "grew",
            AllocatorEvent::Shrank { .. } => "shrank",
            AllocatorEvent::Fallback { .. } => "fallback",
            AllocatorEvent::OutOfMemory(_) => "out of memory",
            _ => "other",
        });
    }
}

#[test]
fn one_hook_hears_of_pool_and_pages() {
    let names = Arc::new(Names::default());
    let options = HostOptions::new().capacity_bytes(16 << 20).huge_pages(HugePages::Hugetlb);
    let pool = alloc_cpu::pool().options(options).event_hook(names.clone()).build().unwrap();
    let fell_back = pool.provider().page_backing().fallback.is_some();
    let block = pool.allocate(Layout::bytes(8 << 20).unwrap(), Stream::DEFAULT).unwrap();
    match pool.allocate(Layout::bytes(12 << 20).unwrap(), Stream::DEFAULT) {
        Err(AllocError::OutOfMemory(out)) => {
            assert_eq!((out.requested, out.in_use, out.device_total), (12 << 20, 8 << 20, Some(16 << 20)));
        }
        other => panic!("{other:?}"),
    }
    // SAFETY: the block is used no more.
    unsafe { pool.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
    assert!(pool.trim(0) >= 8 << 20);
    let heard = names.0.lock().unwrap();
    for name in ["grew", "out of memory", "shrank"] {
        assert!(heard.contains(&name), "{name} among {heard:?}");
    }
    assert_eq!(heard.contains(&"fallback"), fell_back);
}

#[test]
fn a_request_past_the_machine_is_an_error() {
    let pool = alloc_cpu::pool().build().unwrap();
    for size in [1 << 50, i64::MAX as u64 - 255] {
        let error = pool.allocate(Layout::bytes(size).unwrap(), Stream::DEFAULT).unwrap_err();
        let right = match &error {
            AllocError::OutOfMemory(_) | AllocError::TooLarge { .. } => true,
            AllocError::Provider(error) => error.kind == ProviderErrorKind::OutOfMemory,
            _ => false,
        };
        assert!(right, "{error:?}");
    }
    assert_eq!(pool.provider().created_bytes(), 0);
}
