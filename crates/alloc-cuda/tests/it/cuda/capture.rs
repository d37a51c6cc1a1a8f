//! Stream capture: nothing illegal is called, and what a graph uses stays.

use std::sync::Arc;
use std::sync::mpsc::channel;

use alloc_core::{
    Address, Device, DeviceAllocator, Place, ProviderError, ProviderErrorKind, StreamSet, Transfer, TransferError,
};
use alloc_cuda::{CaptureError, CudaStream, CudaTransfer, DeviceOptions, PrivatePool};
use alloc_pool::PoolConfig;
use cust::sys::CUstreamCaptureMode;

use super::harness::{Living, alone, any_device, bytes, release};

type Error = Box<dyn std::error::Error>;

fn read(place: Place, length: usize, stream: &CudaStream) -> Vec<u8> {
    let mut memory = vec![0_u8; length];
    let host = Place { device: Device::CPU, address: Address::new(memory.as_mut_ptr() as u64) };
    // SAFETY: both places are valid.
    unsafe { CudaTransfer::of(0).unwrap().copy(place, host, length as u64, stream.stream()) }.unwrap();
    memory
}

#[test]
fn a_graph_runs_as_often_as_it_is_launched() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let out = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
    let out_place = Place { device: pool.device(), address: out.address() };
    let (graph, ()) = stream
        .capture(|recorder| -> Result<(), Error> {
            let memory = recorder.allocator(Arc::clone(&pool).into());
            // The pool grows during the capture.
            let scratch = memory.allocate(bytes(1 << 20), stream.stream())?;
            let scratch_place = Place { device: pool.device(), address: scratch.address() };
            // SAFETY: the graph keeps the block, and `out` lives longer than it.
            unsafe {
                transfer.fill(scratch_place, 1 << 20, 0x5A, stream.stream())?;
                transfer.copy(scratch_place, out_place, 1 << 20, stream.stream())?;
                memory.release(scratch, stream.stream(), StreamSet::EMPTY)?;
            }
            Ok(())
        })
        .unwrap();
    for _ in 0..3 {
        // SAFETY: the place is valid.
        unsafe { transfer.fill(out_place, 1 << 20, 0, stream.stream()) }.unwrap();
        graph.launch(&stream).unwrap();
        assert!(read(out_place, 1 << 20, &stream).iter().all(|byte| *byte == 0x5A));
    }
    drop(graph);
    release(&*pool, out, stream.stream());
    pool.trim(0);
    assert_eq!(pool.statistics().in_use.current, 0);
    assert_eq!(pool.statistics().reserved.current, 0);
}

#[test]
fn nothing_that_a_capture_forbids_is_called() {
    let _driver = alone();
    let config = PoolConfig { limit: Some(64 << 20), ..PoolConfig::default() };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap();
    let [stream, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    // Parked and foreign blocks, so that the pool has events to ask about.
    let mut uses = StreamSet::new();
    uses.insert(other.stream());
    for _ in 0..4 {
        let block = pool.allocate(bytes(8 << 20), stream.stream()).unwrap();
        // SAFETY: the use is declared.
        unsafe { pool.release(block, stream.stream(), &uses) }.unwrap();
    }
    let foreign = pool.allocate(bytes(16 << 20), other.stream()).unwrap();
    release(&*pool, foreign, other.stream());
    let (graph, blocks) = stream
        .capture(|recorder| -> Result<_, Error> {
            let memory = recorder.allocator(Arc::clone(&pool).into());
            let mut blocks = Vec::new();
            for _ in 0..6 {
                blocks.push(memory.allocate(bytes(8 << 20), stream.stream())?);
            }
            // A thread that has nothing to do with the capture.
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let block = pool.allocate(bytes(1 << 20), other.stream()).unwrap();
                    release(&*pool, block, other.stream());
                });
            });
            Ok(blocks)
        })
        .unwrap();
    drop(graph);
    for block in blocks {
        release(&*pool, block, stream.stream());
    }
}

#[test]
fn what_a_graph_keeps_goes_after_its_last_launch() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let [stream, launcher] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let graphs = driver.living(Living::Graphs);
    let transfer = CudaTransfer::of(0).unwrap();
    let kept = Arc::new(());
    let (graph, ()) = stream
        .capture(|recorder| -> Result<(), Error> {
            let memory = recorder.allocator(Arc::clone(&pool).into());
            let block = memory.allocate(bytes(1 << 20), stream.stream())?;
            let place = Place { device: pool.device(), address: block.address() };
            recorder.keep(Arc::clone(&kept));
            // SAFETY: the graph keeps the block.
            unsafe {
                transfer.fill(place, 1 << 20, 1, stream.stream())?;
                memory.release(block, stream.stream(), StreamSet::EMPTY)?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(Arc::strong_count(&kept), 2);
    assert!(pool.statistics().requested.current >= 1 << 20, "released, but the graph has it");
    driver.hold(launcher.stream());
    graph.launch(&launcher).unwrap();
    driver.fake().inspect(|fake| assert!(fake.pending(launcher.stream()) > 0));
    drop(graph);
    assert!(launcher.is_idle().unwrap(), "dropping the graph waits for its launches");
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(pool.statistics().requested.current, 0);
    assert_eq!(driver.living(Living::Graphs), graphs);
}

#[test]
fn a_side_stream_may_go_before_the_capture_is_over() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let [stream, owned, behind] = [(); 3].map(|()| CudaStream::new(0).unwrap());
    let handles = [owned.handle(), behind.handle()];
    // SAFETY: the owner owns the stream.
    let kept = unsafe { CudaStream::from_raw_kept(0, behind.handle(), Box::new(behind)) }.unwrap();
    for user in [&stream, &owned, &kept] {
        let block = pool.allocate(bytes(8 << 20), user.stream()).unwrap();
        release(&*pool, block, user.stream());
    }
    let living = driver.living(Living::Streams);
    let (graph, ()) = stream
        .capture(|_| -> Result<(), ProviderError> {
            for side in [owned, kept] {
                side.wait_for(&stream)?;
                stream.wait_for(&side)?;
                driver.clear();
                drop(side);
                let recorded = |(name, stream): &(String, u64)| name == "cuEventRecord" && handles.contains(stream);
                driver.fake().inspect(|fake| assert!(!fake.log().iter().any(recorded)));
            }
            // Others come and go meanwhile, and allocate.
            let new = CudaStream::new(0)?;
            let block = pool.allocate(bytes(8 << 20), new.stream()).unwrap();
            release(&*pool, block, new.stream());
            assert_eq!(driver.living(Living::Streams), living.map(|living| living + 1));
            Ok(())
        })
        .unwrap();
    assert_eq!(driver.living(Living::Streams), living.map(|living| living - 2), "the capture is over, and so are they");
    for _ in 0..3 {
        let new = CudaStream::new(0).unwrap();
        let block = pool.allocate(bytes(8 << 20), new.stream()).unwrap();
        release(&*pool, block, new.stream());
    }
    drop(graph);
}

#[test]
fn a_side_stream_of_somebody_elses_capture_ends_with_the_next_stream() {
    let driver = alone();
    let [stream, side] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let living = driver.living(Living::Streams);
    let mut graph = std::ptr::null_mut();
    // SAFETY: the driver is loaded, the stream lives, and the out parameter is a local.
    unsafe {
        let _ = cust::sys::cuStreamBeginCapture_v2(
            stream.handle() as _,
            CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
        );
        side.wait_for(&stream).unwrap();
        drop(side);
        let _ = cust::sys::cuStreamEndCapture(stream.handle() as _, &raw mut graph);
        let _ = cust::sys::cuGraphDestroy(graph);
    }
    assert_eq!(driver.living(Living::Streams), living);
    drop(CudaStream::new(0).unwrap());
    assert_eq!(driver.living(Living::Streams), living.map(|living| living - 1));
}

#[test]
fn a_failed_capture_leaves_a_stream_that_works() {
    let driver = alone();
    let stream = CudaStream::new(0).unwrap();
    let graphs = driver.living(Living::Graphs);
    let failed = stream.capture(|_| Err::<(), _>("no")).unwrap_err();
    assert_eq!(failed, CaptureError::Work("no"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = stream.capture(|_| -> Result<(), Error> { panic!("on purpose") });
    }));
    assert!(panicked.is_err());
    if let Some(fake) = driver.fake() {
        fake.fail("cuGraphInstantiateWithFlags", 0, 2);
        let failed = stream.capture(|_| Ok::<_, ()>(())).unwrap_err();
        assert!(matches!(failed, CaptureError::Driver(error) if error.kind == ProviderErrorKind::OutOfMemory));
    }
    assert!(!stream.is_capturing().unwrap());
    stream.synchronize().unwrap();
    assert_eq!(driver.living(Living::Graphs), graphs);
}

#[test]
fn what_is_released_while_a_capture_is_abandoned_goes_back() {
    let _driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    for _ in 0..600 {
        std::thread::scope(|scope| {
            let abandoned = stream.capture(|recorder| {
                let memory = recorder.allocator(Arc::clone(&pool).into());
                let (started, has_started) = channel();
                for _ in 0..4 {
                    let named = stream.stream();
                    let blocks: Vec<_> = (0..64).map(|_| memory.allocate(bytes(1000), named).unwrap()).collect();
                    let (memory, started) = (Arc::clone(&memory), started.clone());
                    scope.spawn(move || {
                        for block in blocks {
                            release(&*memory, block, named);
                            let _ = started.send(());
                        }
                    });
                }
                (0..100).try_for_each(|_| has_started.recv()).map_or(Ok(()), |()| Err("no"))
            });
            assert!(abandoned.is_err());
        });
        assert_eq!(pool.statistics().requested.current, 0);
    }
}

#[test]
fn what_a_capture_kept_goes_when_it_panics() {
    let _driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = stream.capture(|recorder| -> Result<(), Error> {
            let memory = recorder.allocator(Arc::clone(&pool).into());
            let block = memory.allocate(bytes(1000), stream.stream())?;
            release(&*memory, block, stream.stream());
            panic!("on purpose")
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(pool.statistics().requested.current, 0);
}

#[test]
fn what_goes_during_a_capture_harms_neither_it_nor_what_comes_after() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let [stream, side] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let private = PrivatePool::new(0, Arc::clone(&pool).into()).unwrap();
    for (memory, user) in [(&*pool as &dyn DeviceAllocator, &stream), (&*pool, &side), (&private, &side)] {
        let block = memory.allocate(bytes(8 << 20), user.stream()).unwrap();
        release(memory, block, user.stream());
    }
    let block = pool.allocate(bytes(4096), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    let (graph, ()) = stream
        .capture(|_| -> Result<(), ProviderError> {
            side.wait_for(&stream)?;
            // SAFETY: the block lives longer than the graph.
            unsafe { CudaTransfer::of(0)?.fill(place, 4096, 3, side.stream()) }.unwrap();
            stream.wait_for(&side)?;
            drop((side, private));
            Ok(())
        })
        .unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(read(place, 4096, &stream), vec![3; 4096]);
    drop(graph);
    release(&*pool, block, stream.stream());
    for _ in 0..3 {
        let new = CudaStream::new(0).unwrap();
        let block = pool.allocate(bytes(8 << 20), new.stream()).unwrap();
        release(&*pool, block, new.stream());
    }
    // Other tests may be capturing.
    let is_back = || {
        alloc_cuda::give_back_put_off();
        std::thread::sleep(std::time::Duration::from_millis(10));
        pool.statistics().in_use.current == 0
    };
    assert!((0..1000).any(|_| is_back()), "{:?}", pool.statistics());
}

#[test]
fn the_legacy_stream_can_t_be_captured() {
    let _device = any_device();
    let stream = CudaStream::legacy_default(0).unwrap();
    let error = stream.capture(|_| Ok::<_, ()>(())).unwrap_err();
    assert!(matches!(error, CaptureError::Driver(error) if error.call == "cuStreamBeginCapture"));
}

#[test]
fn pageable_memory_in_a_capture_is_refused_and_harms_nothing() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let block = pool.allocate(bytes(4096), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    let mut memory = vec![0_u8; 4096];
    let host = Place { device: Device::CPU, address: Address::new(memory.as_mut_ptr() as u64) };
    let (graph, ()) = stream
        .capture(|_| {
            for (from, to) in [(host, place), (place, host)] {
                // SAFETY: the places are valid.
                let refused = unsafe { transfer.copy(from, to, 4096, stream.stream()) };
                let Err(TransferError::Provider(error)) = refused else { panic!("{refused:?}") };
                assert_eq!((error.kind, error.code), (ProviderErrorKind::Unsupported, 900));
            }
            // SAFETY: the block lives longer than the graph.
            unsafe { transfer.fill(place, 4096, 3, stream.stream()) }
        })
        .unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(read(place, 4096, &stream), vec![3; 4096]);
    drop(graph);
    release(&*pool, block, stream.stream());
}

#[test]
fn a_private_pool_reuses_within_and_gives_nothing_back_before_it_goes() {
    let driver = alone();
    let before = driver.fake().map(|fake| fake.used(0)); // other tests may have left blocks of their own
    let source = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let pool = PrivatePool::new(0, Arc::clone(&source).into()).unwrap();
    let (graph, addresses) = stream
        .capture(|_| -> Result<_, Error> {
            let mut addresses = Vec::new();
            for _ in 0..8 {
                let block = pool.allocate(bytes(8 << 20), stream.stream())?;
                addresses.push(block.address());
                release(&pool, block, stream.stream());
            }
            Ok(addresses)
        })
        .unwrap();
    assert!(addresses.iter().all(|address| *address == addresses[0]), "temporaries of a capture reuse each other");
    let held = source.statistics().in_use.current;
    assert!((8 << 20..=12 << 20).contains(&held), "{held}");
    // Pressure on the device reaches what is free, and no private memory.
    source.trim(0);
    alloc_core::pressure::relieve(Device::cuda(0), u64::MAX, None);
    assert_eq!(source.statistics().in_use.current, held);
    graph.launch(&stream).unwrap();
    drop(graph);
    drop(pool);
    assert_eq!(source.statistics().in_use.current, 0);
    source.trim(0);
    assert_eq!(driver.fake().map(|fake| fake.used(0)), before);
}

#[test]
fn a_private_pool_gives_back_what_no_block_lies_in() {
    let _driver = alone();
    let source = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let pool = PrivatePool::new(0, Arc::clone(&source).into()).unwrap();
    let [workspace, scratch] = [(); 2].map(|()| pool.allocate(bytes(8 << 20), stream.stream()).unwrap());
    release(&pool, scratch, stream.stream());
    let held = source.statistics().in_use.current;
    // SAFETY: there is no graph.
    let given = unsafe { pool.give_back_unused() };
    assert!(given >= 8 << 20, "{given}");
    assert_eq!(source.statistics().in_use.current, held - given);
    let scratch = pool.allocate(bytes(8 << 20), stream.stream()).unwrap();
    assert_ne!(scratch.address(), workspace.address(), "what lives stays");
    release(&pool, scratch, stream.stream());
    release(&pool, workspace, stream.stream());
    drop(pool);
    assert_eq!(source.statistics().in_use.current, 0);
}

#[test]
fn the_legacy_stream_is_left_alone_while_a_blocking_stream_captures() {
    let _driver = alone();
    let config = PoolConfig { limit: Some(64 << 20), ..PoolConfig::default() };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap();
    let other = CudaStream::new(0).unwrap();
    let legacy = CudaStream::legacy_default(0).unwrap();
    // The default streams of threads are blocking ones.
    let blocking = CudaStream::per_thread_default(0).unwrap();
    let mut uses = StreamSet::new();
    uses.insert(legacy.stream());
    let foreign: Vec<_> = (0..4).map(|_| pool.allocate(bytes(8 << 20), legacy.stream()).unwrap()).collect();
    let waiting = pool.allocate(bytes(8 << 20), other.stream()).unwrap();
    let (graph, ()) = blocking
        .capture(|_| -> Result<_, Error> {
            for block in foreign {
                release(&*pool, block, legacy.stream());
            }
            // SAFETY: the use is declared.
            unsafe { pool.release(waiting, other.stream(), &uses) }?;
            for stream in [&blocking, &other, &legacy] {
                // What is free was used on the legacy stream, which nobody can be made to wait for.
                let blocks: Vec<_> =
                    (0..12).map_while(|_| pool.allocate(bytes(4 << 20), stream.stream()).ok()).collect();
                blocks.into_iter().for_each(|block| release(&*pool, block, stream.stream()));
            }
            assert!(legacy.is_capturing()?);
            let in_thread = || {
                let block = pool.allocate(bytes(1 << 20), legacy.stream()).unwrap();
                release(&*pool, block, legacy.stream());
                pool.trim(0);
            };
            std::thread::scope(|scope| scope.spawn(in_thread).join()).unwrap();
            Ok(())
        })
        .unwrap();
    drop(graph);
    pool.trim(0);
    assert_eq!(pool.statistics().reserved.current, 0);
}

#[test]
fn waiting_for_a_stream_harms_no_capture_of_another() {
    let _driver = alone();
    let [captured, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let (graph, ()) = captured
        .capture(|_| {
            other.synchronize()?;
            assert!(other.is_idle()?);
            Ok::<_, Error>(())
        })
        .unwrap();
    drop(graph);
}

#[test]
fn a_large_copy_on_one_threads_default_stream_harms_no_capture_on_anothers() {
    let _driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let captured = CudaStream::per_thread_default(0).unwrap();
    let copies = || {
        let stream = CudaStream::per_thread_default(0).unwrap();
        let length = 21 << 20;
        let block = pool.allocate(bytes(length), stream.stream()).unwrap();
        let place = Place { device: pool.device(), address: block.address() };
        let mut memory = vec![6_u8; length as usize];
        let host = Place { device: Device::CPU, address: Address::new(memory.as_mut_ptr() as u64) };
        // SAFETY: the places are valid.
        unsafe { CudaTransfer::of(0).unwrap().copy(host, place, length, stream.stream()) }.unwrap();
        assert!(read(place, length as usize, &stream).iter().all(|byte| *byte == 6));
        release(&*pool, block, stream.stream());
    };
    let (graph, ()) = captured
        .capture(|_| {
            std::thread::scope(|scope| scope.spawn(copies).join()).unwrap();
            Ok::<_, Error>(())
        })
        .unwrap();
    drop(graph);
}
