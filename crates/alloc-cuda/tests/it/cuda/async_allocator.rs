//! The driver's own pool: pairing, stream order, stale releases, figures.

use std::sync::{Arc, Barrier};

use alloc_core::{AllocError, DeviceAllocator, ProviderErrorKind, ReleaseError, Stream, StreamSet};
use alloc_cuda::{AsyncAllocator, CudaStream};

use super::harness::{Living, alone, bytes, fake, release};

/// Of threads that meet at random.
const ROUNDS: usize = 300;

#[test]
fn every_allocation_is_freed_once() {
    let driver = alone();
    let pooled = driver.living(Living::Pooled);
    let allocator = AsyncAllocator::new(0).unwrap();
    let blocks: Vec<_> = (1..=100).map(|i| allocator.allocate(bytes(i * 1000), Stream::DEFAULT).unwrap()).collect();
    assert_eq!(driver.living(Living::Pooled), pooled.map(|pooled| pooled + 100));
    assert_eq!(allocator.statistics().requested.current, 5050 * 1000);
    for block in &blocks {
        release(&allocator, *block, Stream::DEFAULT);
    }
    driver.assert_calls("cuMemAllocFromPoolAsync", 100);
    driver.assert_calls("cuMemFreeAsync", 100);
    assert_eq!(driver.living(Living::Pooled), pooled);
    driver.assert_calls("cuEventRecord", 0);
    let reserved = allocator.statistics().reserved.current;
    assert!(reserved >= 5050 * 1000, "the pool keeps its memory: {reserved}");
    assert_eq!(allocator.trim(0), reserved);
    assert_eq!(allocator.statistics().reserved.current, 0);
    // SAFETY: the contract allows stale releases to be tried; they are refused.
    let again = unsafe { allocator.release(blocks[3], Stream::DEFAULT, StreamSet::EMPTY) };
    assert!(matches!(again, Err(ReleaseError::Stale { .. })), "{again:?}");
}

#[test]
fn an_empty_driver_pool_is_kept_for_the_next_allocator() {
    let driver = alone();
    let one = AsyncAllocator::new(0).unwrap();
    let block = one.allocate(bytes(1 << 20), Stream::DEFAULT).unwrap();
    release(&one, block, Stream::DEFAULT);
    let pools = driver.living(Living::Pools);
    drop(one);
    let two = AsyncAllocator::new(0).unwrap();
    assert_eq!(driver.living(Living::Pools), pools);
    let reserved = two.statistics().reserved;
    assert_eq!((reserved.current, reserved.peak), (0, 0));
    // One with a block in it is not.
    let kept = two.allocate(bytes(1 << 20), Stream::DEFAULT).unwrap();
    drop(two);
    let three = AsyncAllocator::new(0).unwrap();
    assert_eq!(three.statistics().reserved.current, 0);
    driver.assert_calls("cuMemPoolDestroy", 0);
    // SAFETY: the allocator of the block is gone; this one does not know it.
    let foreign = unsafe { three.release(kept, Stream::DEFAULT, StreamSet::EMPTY) };
    assert!(matches!(foreign, Err(ReleaseError::Foreign { .. })), "{foreign:?}");
}

#[test]
fn a_release_comes_after_the_birth_stream_and_all_uses() {
    let Some(fake) = fake() else { return };
    let allocator = AsyncAllocator::new(0).unwrap();
    let pooled = fake.living(Living::Pooled);
    let [born, used, released] = [(); 3].map(|()| CudaStream::new(0).unwrap());
    let block = allocator.allocate(bytes(1 << 20), born.stream()).unwrap();
    let mut uses = StreamSet::new();
    uses.insert(used.stream());
    fake.hold(born.stream());
    fake.hold(used.stream());
    fake.clear();
    fake.hold(born.stream());
    fake.hold(used.stream());
    // SAFETY: nothing uses the block but what is declared.
    unsafe { allocator.release(block, released.stream(), &uses) }.unwrap();
    let log: Vec<_> = fake
        .log()
        .into_iter()
        .filter(|(name, _)| ["cuEventRecord", "cuStreamWaitEvent", "cuMemFreeAsync"].contains(&name.as_str()))
        .collect();
    let expected = [
        ("cuEventRecord", born.handle()),
        ("cuStreamWaitEvent", released.handle()),
        ("cuEventRecord", used.handle()),
        ("cuStreamWaitEvent", released.handle()),
        ("cuMemFreeAsync", released.handle()),
    ];
    assert_eq!(log, expected.map(|(name, subject)| (name.to_owned(), subject)));
    assert_eq!(fake.living(Living::Pooled), pooled + 1, "the block is free only after both streams");
    fake.resume(born.stream());
    assert_eq!(fake.living(Living::Pooled), pooled + 1);
    fake.resume(used.stream());
    assert_eq!(fake.living(Living::Pooled), pooled);
}

#[test]
fn a_block_outlives_its_birth_stream() {
    let driver = alone();
    let allocator = AsyncAllocator::new(0).unwrap();
    let pooled = driver.living(Living::Pooled);
    let [born, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let block = allocator.allocate(bytes(1000), born.stream()).unwrap();
    allocator.retire_stream(born.stream());
    drop(born);
    release(&allocator, block, other.stream());
    other.synchronize().unwrap();
    assert_eq!(driver.living(Living::Pooled), pooled);
}

#[test]
fn a_birth_stream_may_end_while_a_block_is_released() {
    let _driver = alone();
    let allocator = Arc::new(AsyncAllocator::new(0).unwrap());
    alloc_cuda::tell_of_retired_streams(&allocator);
    let other = CudaStream::new(0).unwrap();
    for _ in 0..ROUNDS {
        let born = CudaStream::new(0).unwrap();
        let blocks: Vec<_> = (0..8).map(|_| allocator.allocate(bytes(1000), born.stream()).unwrap()).collect();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                blocks.iter().for_each(|block| release(&*allocator, *block, other.stream()));
            });
            start.wait();
            drop(born);
        });
    }
}

#[test]
fn what_a_captured_stream_was_doing_when_it_ended_is_unknown() {
    let driver = alone();
    let allocator = AsyncAllocator::new(0).unwrap();
    let [born, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let block = allocator.allocate(bytes(1000), born.stream()).unwrap();
    let captured = born.capture(|_| {
        driver.clear();
        allocator.retire_stream(born.stream());
        driver.assert_calls("cuEventRecord", 0);
        Ok::<_, ()>(())
    });
    assert!(captured.is_ok());
    // SAFETY: nothing uses the block.
    let result = unsafe { allocator.release(block, other.stream(), StreamSet::EMPTY) };
    let Err(ReleaseError::Leaked { source, .. }) = result else { panic!("{result:?}") };
    assert_eq!(source.kind, ProviderErrorKind::Unsupported);
    assert!(!other.is_capturing().unwrap());
}

#[test]
fn running_out_carries_the_figures() {
    let Some(fake) = fake() else { return };
    let allocator = AsyncAllocator::new(1).unwrap();
    let block = allocator.allocate(bytes(600 << 20), Stream::DEFAULT).unwrap();
    let error = allocator.allocate(bytes(500 << 20), Stream::DEFAULT).unwrap_err();
    let AllocError::OutOfMemory(error) = error else { panic!("{error}") };
    assert_eq!((error.requested, error.in_use, error.reserved), (500 << 20, 600 << 20, 600 << 20));
    assert_eq!(error.device_total, Some(1 << 30));
    assert_eq!(error.device_free, Some((1 << 30) - fake.used(1)));
    release(&allocator, block, Stream::DEFAULT);
}

#[test]
fn a_failed_free_leaks_and_says_so() {
    let Some(fake) = fake() else { return };
    let allocator = AsyncAllocator::new(0).unwrap();
    let block = allocator.allocate(bytes(1000), Stream::DEFAULT).unwrap();
    fake.fail("cuMemFreeAsync", 0, 719);
    // SAFETY: nothing uses the block.
    let result = unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) };
    let Err(ReleaseError::Leaked { source, .. }) = result else { panic!("{result:?}") };
    assert_eq!((source.kind, source.call), (ProviderErrorKind::Poisoned, "cuMemFreeAsync"));
    assert_eq!(allocator.statistics().leaked, 1000);
    drop(allocator);
    fake.clear();
}

#[test]
fn a_device_without_pools_says_so() {
    let Some(_fake) = fake() else { return };
    let error = AsyncAllocator::new(3).unwrap_err();
    assert_eq!((error.kind, error.device.ordinal()), (ProviderErrorKind::Unsupported, 3));
}
