//! What would have to wait for the device while a stream is captured goes later, and harms no capture.

use std::ffi::CString;
use std::sync::Arc;

use alloc_core::{DeviceAllocator, ProviderErrorKind, Stream};
use alloc_cuda::{
    AsyncAllocator, CudaStream, DeviceOptions, DevicePool, DirectAllocator, Module, PrivatePool, ShareableMemory,
};
use alloc_pool::PoolConfig;

use super::harness::{Alone, Living, alone, bytes, fake, release, two_peers};

/// Does something on another thread while this one captures, and asserts that the capture comes to a graph.
fn while_captured<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let stream = CudaStream::new(0).unwrap();
    let work = |_: &_| Ok::<_, ()>(std::thread::scope(|scope| scope.spawn(f).join()).unwrap());
    let (graph, result) = stream.capture(work).unwrap();
    drop(graph);
    result
}

/// A private pool with a segment, and the pool that it is of.
fn private(stream: &CudaStream) -> (PrivatePool, Arc<DevicePool>) {
    let source = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let private = PrivatePool::new(0, Arc::clone(&source).into()).unwrap();
    let block = private.allocate(bytes(8 << 20), stream.stream()).unwrap();
    release(&private, block, stream.stream());
    assert!(source.statistics().in_use.current >= 8 << 20);
    (private, source)
}

fn assert_waited(driver: &Alone, times: u64) {
    driver.assert_calls("cuCtxSynchronize", times);
}

#[test]
fn a_private_pool_that_goes_during_a_capture_gives_its_memory_back_later() {
    let driver = alone();
    let held = |source: &DevicePool| source.statistics().in_use.current;
    let stream = CudaStream::new(0).unwrap();
    let (gone, source) = private(&stream);
    let all = held(&source);
    while_captured(move || drop(gone));
    assert_waited(&driver, 0);
    assert_eq!(held(&source), all, "work may use the segments still");
    let (other, other_source) = private(&stream);
    while_captured(alloc_cuda::give_back_put_off);
    // SAFETY: there is no graph.
    while_captured(|| assert_eq!(unsafe { other.give_back_unused() }, 0));
    assert_waited(&driver, 0);
    drop(other);
    assert_eq!((held(&source), held(&other_source)), (0, 0));
    assert_waited(&driver, 1);

    // Once more, with one that stays: its trimming is an occasion as well, and so is what programs call.
    let (stays, _stays_source) = private(&stream);
    let trim = || assert_eq!(stays.trim(0), 0);
    for occasion in [&trim, &alloc_cuda::give_back_put_off as &dyn Fn()] {
        let (gone, source) = private(&stream);
        while_captured(move || drop(gone));
        assert_ne!(held(&source), 0);
        occasion();
        assert_eq!(held(&source), 0);
    }
    let waited = driver.fake().map_or(0, |fake| fake.calls("cuCtxSynchronize"));
    stays.trim(0);
    alloc_cuda::give_back_put_off();
    assert_waited(&driver, waited);
}

#[test]
fn a_private_pool_whose_own_stream_is_captured_goes_after_that_stream() {
    let _driver = alone();
    let stream = CudaStream::new(0).unwrap();
    let (gone, source) = private(&stream);
    let work = |_: &_| {
        drop(gone);
        Ok::<_, ()>(())
    };
    drop(stream.capture(work).unwrap());
    drop(stream);
    assert_ne!(source.statistics().in_use.current, 0);
    alloc_cuda::give_back_put_off();
    assert_eq!(source.statistics().in_use.current, 0);
}

#[test]
fn what_the_driver_refuses_for_a_capture_of_others_goes_later_too() {
    let Some(fake) = fake() else { return };
    let stream = CudaStream::new(0).unwrap();
    let (gone, source) = private(&stream);
    fake.fail("cuCtxSynchronize", 0, 900);
    drop(gone);
    assert_ne!(source.statistics().in_use.current, 0);
    alloc_cuda::give_back_put_off();
    assert_eq!(source.statistics().in_use.current, 0);
    // A device that failed can't be waited for later either.
    let (gone, source) = private(&stream);
    fake.fail("cuCtxSynchronize", 0, 719);
    drop(gone);
    let waited = fake.calls("cuCtxSynchronize");
    alloc_cuda::give_back_put_off();
    assert_eq!(fake.calls("cuCtxSynchronize"), waited);
    assert_ne!(source.statistics().in_use.current, 0);
}

#[test]
fn to_wait_for_a_device_during_a_capture_is_refused() {
    let driver = alone();
    let refused = while_captured(|| alloc_cuda::synchronize(0)).unwrap_err();
    assert_eq!((refused.code, refused.kind), (900, ProviderErrorKind::Unsupported));
    assert_waited(&driver, 0);
    let failed = CudaStream::new(0).unwrap().capture(|_| Err::<(), _>("no"));
    assert!(failed.is_err());
    alloc_cuda::synchronize(0).unwrap();
}

#[test]
fn the_driver_s_pool_is_not_trimmed_during_a_capture() {
    let driver = alone();
    let allocator = AsyncAllocator::new(0).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let block = allocator.allocate(bytes(4 << 20), stream.stream()).unwrap();
    release(&allocator, block, stream.stream());
    assert_eq!(while_captured(|| allocator.trim(0)), 0);
    assert_waited(&driver, 0);
    driver.assert_calls("cuMemPoolTrimTo", 0);
    assert!(allocator.trim(0) >= 4 << 20);
}

#[test]
fn plain_memory_released_during_a_capture_is_freed_later() {
    let driver = alone();
    let allocator = DirectAllocator::new(0).unwrap();
    let living = driver.living(Living::Allocations);
    let take = || allocator.allocate(bytes(300 << 20), Stream::DEFAULT).unwrap();
    let put_off = |block| {
        let calls = || ["cuMemFree_v2", "cuCtxSynchronize"].map(|name| driver.fake().map(|fake| fake.calls(name)));
        let before = calls();
        while_captured(|| release(&allocator, block, Stream::DEFAULT));
        assert_eq!(calls(), before);
        let figures = allocator.statistics();
        assert_eq!((figures.in_use.current, figures.reserved.current, figures.leaked), (300 << 20, 600 << 20, 0));
    };
    let stays = take();
    put_off(take());
    if driver.fake().is_some() {
        // The device has a gigabyte: memory that runs out is an occasion.
        let large = allocator.allocate(bytes(600 << 20), Stream::DEFAULT).unwrap();
        assert_eq!(driver.living(Living::Allocations), living.map(|living| living + 2));
        release(&allocator, large, Stream::DEFAULT);
    } else {
        allocator.trim(0);
    }
    put_off(take());
    assert_eq!(while_captured(|| allocator.trim(0)), 0);
    assert_eq!(allocator.trim(0), 300 << 20);
    put_off(take());
    release(&allocator, stays, Stream::DEFAULT);
    assert_eq!((driver.living(Living::Allocations), allocator.statistics().reserved.current), (living, 0));
}

#[test]
fn shared_memory_and_modules_go_after_the_capture() {
    let driver = alone();
    let mapped = driver.living(Living::Mappings);
    let peers: &[u16] = if two_peers("shared memory with a peer") { &[1] } else { &[] };
    let memory = ShareableMemory::new(0, 1 << 20, peers).unwrap();
    let module = Module::from_ptx(0, &CString::new(include_str!("kernels.ptx")).unwrap()).unwrap();
    while_captured(move || drop((memory, module)));
    assert_waited(&driver, 0);
    assert_eq!(driver.living(Living::Mappings), mapped.map(|mapped| mapped + 1));
    driver.assert_calls("cuModuleUnload", 0);
    alloc_cuda::give_back_put_off();
    assert_eq!(driver.living(Living::Mappings), mapped);
    driver.assert_calls("cuModuleUnload", 1);
}
