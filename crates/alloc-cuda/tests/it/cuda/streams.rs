//! Streams: owned, kept, borrowed, default, and of contexts that are not ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alloc_core::{Address, Device, DeviceAllocator, Place, ProviderErrorKind, Stream, StreamSet, Transfer};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions};
use alloc_pool::PoolConfig;

use super::harness::{Living, alone, any_device, bytes, fake, release, two_devices};

#[test]
fn an_owned_stream_is_destroyed_once_and_retired_before() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let living = driver.living(Living::Streams);
    let stream = CudaStream::new(0).unwrap();
    assert_eq!(driver.living(Living::Streams), living.map(|living| living + 1));
    let block = pool.allocate(bytes(8 << 20), stream.stream()).unwrap();
    release(&*pool, block, stream.stream());
    drop(stream);
    assert_eq!(driver.living(Living::Streams), living);
    // What was cached for it serves others, and no call names the dead stream: the fake would say so.
    let other = CudaStream::new(0).unwrap();
    let grown = pool.statistics().provider_calls.create;
    let block = pool.allocate(bytes(8 << 20), other.stream()).unwrap();
    assert_eq!(pool.statistics().provider_calls.create, grown);
    release(&*pool, block, other.stream());
}

#[test]
fn streams_with_one_handle_are_told_apart() {
    let Some(_fake) = fake() else { return };
    let first = CudaStream::new(0).unwrap();
    let named = first.stream();
    drop(first);
    let second = CudaStream::new(0).unwrap();
    assert_eq!(second.handle(), named.handle(), "the driver uses handles again");
    assert_ne!(second.stream(), named);
}

#[test]
fn an_owned_stream_that_is_borrowed_by_its_handle_ends_under_both_names() {
    let driver = alone();
    let config = PoolConfig { growth_slack: 0.0, ..PoolConfig::default() };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap();
    let own = CudaStream::new(0).unwrap();
    // SAFETY: the stream lives; it retires when it is dropped.
    let borrowed = unsafe { CudaStream::from_raw(0, own.handle()) }.unwrap().stream();
    let block = pool.allocate(bytes(8 << 20), borrowed).unwrap();
    release(&*pool, block, borrowed);
    drop(own);
    assert_ne!(alloc_cuda::stream_named(borrowed.handle()), borrowed, "the handle's next stream is another one");
    let [next, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    driver.fake().inspect(|_| assert_eq!(next.handle(), borrowed.handle(), "the driver uses handles again"));
    drop(next);
    let block = pool.allocate(bytes(9 << 20), other.stream()).unwrap();
    release(&*pool, block, other.stream());
    pool.trim(0);
}

#[test]
fn a_stream_that_several_keep_ends_with_the_last_of_them() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let owned = Arc::new(CudaStream::new(0).unwrap());
    // SAFETY: the owner owns the stream.
    let keep = || unsafe { CudaStream::from_raw_kept(0, owned.handle(), Box::new(Arc::clone(&owned))) }.unwrap();
    let (first, second) = (keep(), keep());
    assert_eq!(first.stream(), second.stream());
    let block = pool.allocate(bytes(3 << 20), first.stream()).unwrap();
    release(&*pool, block, first.stream());
    driver.clear();
    drop(first);
    driver.assert_calls("cuEventRecord", 0);
    assert_eq!(keep().stream(), second.stream());
    let retired = second.stream();
    drop(second);
    driver.fake().inspect(|fake| assert!(fake.calls("cuEventRecord") > 0, "by each pool"));
    assert_ne!(keep().stream(), retired);
}

#[test]
fn a_kept_stream_is_retired_before_its_owner_goes() {
    let _driver = alone();
    struct Owner {
        _stream: CudaStream,
        gone: Arc<AtomicBool>,
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
    let gone = Arc::new(AtomicBool::new(false));
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let owned = CudaStream::new(0).unwrap();
    let handle = owned.handle();
    let owner = Box::new(Owner { _stream: owned, gone: Arc::clone(&gone) });
    // SAFETY: the owner owns the stream.
    let kept = unsafe { CudaStream::from_raw_kept(0, handle, owner) }.unwrap();
    let block = pool.allocate(bytes(3 << 20), kept.stream()).unwrap();
    release(&*pool, block, kept.stream());
    drop(kept);
    assert!(gone.load(Ordering::Relaxed));
    let block = pool.allocate(bytes(3 << 20), Stream::DEFAULT).unwrap();
    release(&*pool, block, Stream::DEFAULT);
}

#[test]
fn a_stream_of_cust_is_one_of_ours() {
    let driver = alone();
    let living = driver.living(Living::Streams);
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is loaded, the parameters are a valid device and locals.
    unsafe {
        let _ = cust::sys::cuDevicePrimaryCtxRetain(&raw mut context, 0);
        let _ = cust::sys::cuCtxPushCurrent_v2(context);
    }
    let theirs = cust::stream::Stream::new(cust::stream::StreamFlags::NON_BLOCKING, None).unwrap();
    let handle = theirs.as_inner() as u64;
    let stream = CudaStream::from_cust(0, theirs).unwrap();
    assert_eq!(stream.handle(), handle);
    let block = alloc_cuda::global(0).unwrap().allocate(bytes(1 << 20), stream.stream()).unwrap();
    release(alloc_cuda::global(0).unwrap(), block, stream.stream());
    drop(stream);
    if two_devices("a stream of cust for another device") {
        let theirs = cust::stream::Stream::new(cust::stream::StreamFlags::NON_BLOCKING, None).unwrap();
        let error = CudaStream::from_cust(1, theirs).unwrap_err();
        assert_eq!((error.kind, error.device), (ProviderErrorKind::InvalidArgument, Device::cuda(1)));
    }
    assert_eq!(driver.living(Living::Streams), living);
    // SAFETY: the context was pushed above.
    unsafe {
        let _ = cust::sys::cuCtxPopCurrent_v2(&raw mut context);
    }
}

/// Streams that end while other threads wait for what they did, and take their memory.
#[test]
fn streams_may_end_while_others_wait_for_them() {
    let _driver = alone();
    let config = PoolConfig { limit: Some(40 << 20), ..PoolConfig::default() };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let user = CudaStream::new(0).unwrap();
    let mut uses = StreamSet::new();
    uses.insert(user.stream());
    let one_thread = &|thread: u8| {
        for round in 0..100_u8 {
            let stream = CudaStream::new(0).unwrap();
            for size in [700, 50_000, 3 << 20, 9 << 20, 50_000] {
                // The others may have all of it.
                let Ok(block) = pool.allocate(bytes(size), stream.stream()) else { continue };
                let place = Place { device: pool.device(), address: block.address() };
                let mut back = vec![0_u8; 700];
                let host = Place { device: Device::CPU, address: Address::new(back.as_mut_ptr() as u64) };
                let value = thread ^ round;
                // SAFETY: the places are valid, and the uses are the stream's and what is declared.
                unsafe {
                    transfer.fill(place, size, value, stream.stream()).unwrap();
                    transfer.copy(place, host, 700, stream.stream()).unwrap();
                    let uses = if round % 2 == 0 { &uses } else { StreamSet::EMPTY };
                    pool.release(block, stream.stream(), uses).unwrap();
                }
                assert!(back.iter().all(|byte| *byte == value));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || one_thread(64 * thread))).collect();
        // What threads keep goes back when they are over, and not when the scope's are said to be.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let figures = pool.statistics();
    assert_eq!((figures.requested.current, figures.leaked), (0, 0));
    pool.trim(0);
    assert_eq!(pool.statistics().reserved.current, 0);
}

#[test]
fn per_thread_default_streams_differ_by_thread() {
    let _device = any_device();
    let here = CudaStream::per_thread_default(0).unwrap().stream();
    let there = std::thread::spawn(|| CudaStream::per_thread_default(0).unwrap().stream()).join().unwrap();
    assert_eq!((here.handle(), there.handle()), (2, 2));
    assert_ne!(here, there);
    assert_eq!(here, CudaStream::per_thread_default(0).unwrap().stream());
}

#[test]
fn default_streams_end_with_their_threads() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let own = CudaStream::new(0).unwrap();
    let user = || {
        let stream = CudaStream::per_thread_default(0).unwrap().stream();
        let block = pool.allocate(bytes(4 << 20), stream).unwrap();
        release(&*pool, block, stream);
    };
    for _ in 0..200 {
        std::thread::scope(|scope| scope.spawn(user).join()).unwrap();
    }
    driver.clear();
    let block = pool.allocate(bytes(40 << 20), own.stream()).unwrap();
    release(&*pool, block, own.stream());
    let asked = driver.fake().map(|fake| fake.calls("cuStreamIsCapturing"));
    assert!(asked < Some(20), "{asked:?}");
}

#[test]
fn default_streams_of_threads_don_t_end_while_one_is_captured() {
    let _driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let user = || {
        let stream = CudaStream::per_thread_default(0).unwrap();
        let block = pool.allocate(bytes(4 << 20), stream.stream()).unwrap();
        release(&*pool, block, stream.stream());
    };
    let captured = CudaStream::per_thread_default(0).unwrap();
    std::thread::scope(|scope| scope.spawn(user).join()).unwrap();
    let graph = captured.capture(|_| {
        drop(CudaStream::new(0)?);
        CudaStream::per_thread_default(0).map(drop)
    });
    assert!(graph.is_ok());
}

#[test]
fn another_threads_default_stream_is_reached_through_the_legacy_one() {
    let driver = alone();
    let transfer = CudaTransfer::of(0).unwrap();
    let own = CudaStream::new(0).unwrap();
    let there = std::thread::spawn(|| CudaStream::per_thread_default(0).unwrap().stream()).join().unwrap();
    let here = CudaStream::per_thread_default(0).unwrap().stream();
    driver.clear();
    transfer.order_after(own.stream(), there).unwrap();
    transfer.order_after(own.stream(), here).unwrap();
    let Some(fake) = driver.fake() else { return };
    let recorded: Vec<_> =
        fake.log().into_iter().filter(|(name, _)| name == "cuEventRecord").map(|(_, stream)| stream).collect();
    assert_eq!(recorded, [1, 2]);
}

#[test]
fn a_stream_of_another_context_gets_events_of_its_own() {
    let _driver = alone();
    let own = CudaStream::new(0).unwrap(); // starts the driver
    let mut context = std::ptr::null_mut();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the driver is loaded, and the parameters are locals.
    unsafe {
        let _ = cust::sys::cuCtxCreate_v2(&raw mut context, 0, 0);
        let _ = cust::sys::cuStreamCreate(&raw mut raw, 1);
        let _ = cust::sys::cuCtxPopCurrent_v2(&raw mut context);
    }
    // SAFETY: the stream lives until the end of the test.
    let foreign = unsafe { CudaStream::from_raw(0, raw as u64) }.unwrap();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let block = pool.allocate(bytes(1 << 20), own.stream()).unwrap();
    let mut uses = StreamSet::new();
    uses.insert(foreign.stream());
    // SAFETY: nothing else uses the block.
    unsafe { pool.release(block, own.stream(), &uses) }.unwrap();
    drop(pool);
    foreign.retire();
    // SAFETY: nothing names the stream any more.
    unsafe {
        let _ = cust::sys::cuStreamDestroy_v2(raw);
        let _ = cust::sys::cuCtxDestroy_v2(context);
    }
}

#[test]
fn streams_wait_for_each_other_across_devices() {
    let Some(fake) = fake() else { return };
    let [one, two] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    fake.hold(one.stream());
    two.wait_for(&one).unwrap();
    assert!(!two.is_idle().unwrap());
    fake.resume(one.stream());
    assert!(two.is_idle().unwrap());
}
