//! Copies and fills in all directions; contents are checked through the driver.

use alloc_core::{Address, Device, DeviceAllocator, Place, Stream, Transfer, TransferError};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions, PinnedMethod};
use alloc_pool::PoolConfig;

use super::harness::{alone, any_device, bytes, fake, release};

fn host(memory: &mut [u8]) -> Place {
    Place { device: Device::CPU, address: Address::new(memory.as_mut_ptr() as u64) }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 255) as u8).collect()
}

#[test]
fn pageable_memory_goes_there_and_back() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let own = CudaStream::new(0).unwrap();
    for stream in [own.stream(), Stream::DEFAULT, Stream::from_raw(1), Stream::from_raw(2)] {
        // Around the sizes of the chunks, and many of them.
        for length in [1, 100, 65_535, 65_536, 65_537, (4 << 20) - 1, (4 << 20) + 1, 37 << 20] {
            let block = pool.allocate(bytes(length as u64), stream).unwrap();
            let place = Place { device: pool.device(), address: block.address() };
            let mut source = pattern(length);
            let mut back = vec![0; length];
            // SAFETY: all places are valid for the length.
            unsafe {
                transfer.copy(host(&mut source), place, length as u64, stream).unwrap();
                // The source has been read.
                source.fill(0xEE);
                transfer.copy(place, host(&mut back), length as u64, stream).unwrap();
            }
            // The destination has been written.
            assert!(back == pattern(length), "{length} bytes on {stream:?}");
            release(&*pool, block, stream);
        }
    }
}

#[test]
fn an_upload_from_page_locked_memory_named_as_the_hosts_is_read_too() {
    let driver = alone();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let pinned = alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let source = pinned.allocate(bytes(1000), stream.stream()).unwrap();
    let target = pool.allocate(bytes(1000), stream.stream()).unwrap();
    let as_host = Place { device: Device::CPU, address: source.address() };
    let on_device = Place { device: pool.device(), address: target.address() };
    // SAFETY: the block is host memory of ours.
    let memory = unsafe { std::slice::from_raw_parts_mut(source.address().get() as *mut u8, 1000) };
    memory.fill(5);
    driver.hold(stream.stream());
    // SAFETY: the places are valid.
    unsafe { transfer.copy(as_host, on_device, 1000, stream.stream()) }.unwrap();
    driver.fake().inspect(|fake| assert!(fake.pending(stream.stream()) > 0, "the copy has not run"));
    memory.fill(6);
    driver.resume(stream.stream());
    let mut back = vec![0; 1000];
    // SAFETY: the places are valid.
    unsafe { transfer.copy(on_device, host(&mut back), 1000, stream.stream()) }.unwrap();
    assert_eq!(back, vec![5; 1000]);
    release(&*pinned, source, stream.stream());
    release(&*pool, target, stream.stream());
}

#[test]
fn page_locked_memory_and_fills_are_stream_ordered() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let pinned = alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let length = 5_000_000;
    let [a, b] = [(); 2].map(|()| pool.allocate(bytes(length), stream.stream()).unwrap());
    let locked = pinned.allocate(bytes(length), stream.stream()).unwrap();
    let [a_place, b_place] = [a, b].map(|block| Place { device: pool.device(), address: block.address() });
    let locked_place = Place { device: pinned.device(), address: locked.address() };
    let mut back = vec![0; length as usize];
    // SAFETY: all places are valid for the length until the stream was waited for.
    unsafe {
        transfer.fill(a_place, length, 0xAB, stream.stream()).unwrap();
        transfer.copy(a_place, b_place, length, stream.stream()).unwrap();
        transfer.copy(b_place, locked_place, length, stream.stream()).unwrap();
        transfer.fill(a_place, length, 0, stream.stream()).unwrap();
        transfer.copy(locked_place, a_place, length, stream.stream()).unwrap();
        transfer.copy(a_place, host(&mut back), length, stream.stream()).unwrap();
        assert!(back.iter().all(|byte| *byte == 0xAB));
        transfer.fill(locked_place, length, 0x11, stream.stream()).unwrap();
        transfer.copy(locked_place, host(&mut back), length, stream.stream()).unwrap();
        assert!(back.iter().all(|byte| *byte == 0x11));
        back.fill(0x22);
        transfer.copy(host(&mut back), locked_place, length, stream.stream()).unwrap();
        back.fill(0);
        transfer.copy(locked_place, host(&mut back), length, stream.stream()).unwrap();
        assert!(back.iter().all(|byte| *byte == 0x22));
        transfer.fill(host(&mut back), length, 0x33, stream.stream()).unwrap();
        assert!(back.iter().all(|byte| *byte == 0x33));
    }
    release(&*pinned, locked, stream.stream());
    for block in [a, b] {
        release(&*pool, block, stream.stream());
    }
}

#[test]
fn host_to_host_is_not_ours() {
    let _device = any_device();
    let transfer = CudaTransfer::of(0).unwrap();
    let (mut a, mut b) = (vec![1; 10], vec![2; 10]);
    // SAFETY: the places are valid.
    let error = unsafe { transfer.copy(host(&mut a), host(&mut b), 10, Stream::DEFAULT) }.unwrap_err();
    assert_eq!(error, TransferError::Unsupported { from: Device::CPU, to: Device::CPU });
    assert!(!transfer.can_copy(Device::CPU, Device::cuda(60_000)));
    assert!(transfer.can_copy(Device::CPU, Device::cuda_pinned(0)));
}

#[test]
fn a_failure_in_the_middle_of_a_large_copy_is_reported_and_nothing_is_lost() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let length = 64 << 20;
    let block = pool.allocate(bytes(length as u64), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    let mut memory = pattern(length);
    for call in ["cuMemcpyAsync", "cuEventRecord"] {
        for after in [0, 3, 15] {
            fake.fail(call, after, 1);
            // SAFETY: the places are valid.
            let up = unsafe { transfer.copy(host(&mut memory), place, length as u64, stream.stream()) };
            let Err(TransferError::Provider(error)) = up else { panic!("{up:?}") };
            assert_eq!((error.call, error.code), (call, 1));
            fake.fail("cuMemcpyAsync", after, 1);
            // SAFETY: the places are valid.
            let down = unsafe { transfer.copy(place, host(&mut memory), length as u64, stream.stream()) };
            assert!(down.is_err());
        }
    }
    memory = pattern(length);
    let mut back = vec![0; length];
    // SAFETY: the places are valid.
    unsafe {
        transfer.copy(host(&mut memory), place, length as u64, stream.stream()).unwrap();
        transfer.copy(place, host(&mut back), length as u64, stream.stream()).unwrap();
    }
    assert!(back == memory);
    release(&*pool, block, stream.stream());
}

#[test]
fn a_copy_waits_for_no_stream_that_lags_behind() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let transfer = CudaTransfer::of(0).unwrap();
    let [lagging, other] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let mut memory = pattern(1000);
    let places = [&lagging, &other].map(|stream| {
        let block = pool.allocate(bytes(1000), stream.stream()).unwrap();
        (block, Place { device: pool.device(), address: block.address() })
    });
    fake.hold(lagging.stream());
    // SAFETY: the places are valid.
    unsafe { transfer.copy(host(&mut memory), places[0].1, 1000, lagging.stream()) }.unwrap();
    // More than there are chunks.
    for _ in 0..300 {
        // SAFETY: as above.
        unsafe { transfer.copy(host(&mut memory), places[1].1, 1000, other.stream()) }.unwrap();
    }
    assert!(fake.pending(lagging.stream()) > 0, "the other stream's copies waited for this one's");
    fake.resume(lagging.stream());
    release(&*pool, places[0].0, lagging.stream());
    release(&*pool, places[1].0, other.stream());
}

#[test]
fn copies_that_fail_leave_none_waiting_for_ever() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let block = pool.allocate(bytes(1000), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    let named = stream.stream();
    let copy = move || {
        let mut memory = vec![0; 1000];
        // SAFETY: the places are valid.
        unsafe { CudaTransfer::of(0).unwrap().copy(place, host(&mut memory), 1000, named) }
    };
    // More than there are chunks.
    (0..300).for_each(|_| fake.fail("cuEventSynchronize", 0, 999));
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        (0..300).for_each(|_| assert!(copy().is_err()));
        done.send(copy())
    });
    let last = is_done.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(last.expect("a copy waits for chunks that never come back"), Ok(()));
    release(&*pool, block, stream.stream());
}

#[test]
fn many_threads_copy_at_once() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_u8 {
            let pool = &pool;
            scope.spawn(move || {
                let stream = CudaStream::new(0).unwrap();
                let transfer = CudaTransfer::of(0).unwrap();
                let length = 9_000_000;
                for round in 0..4 {
                    let block = pool.allocate(bytes(length), stream.stream()).unwrap();
                    let place = Place { device: pool.device(), address: block.address() };
                    let mut memory = vec![thread * 10 + round; length as usize];
                    // SAFETY: the places are valid.
                    unsafe { transfer.copy(host(&mut memory), place, length, stream.stream()) }.unwrap();
                    memory.fill(0);
                    // SAFETY: the places are valid.
                    unsafe { transfer.copy(place, host(&mut memory), length, stream.stream()) }.unwrap();
                    assert!(memory.iter().all(|byte| *byte == thread * 10 + round));
                    release(&**pool, block, stream.stream());
                }
            });
        }
    });
}
