//! Buffers as slices of `cudarc`, and its streams as ours.

use std::sync::Arc;

use alloc_core::DeviceAllocator;
use alloc_cuda::{CudaStream, CudarcError, CudarcSlice, DeviceOptions, DevicePool};
use alloc_pool::PoolConfig;
use buffer::{Buffer, MemoryMut};
use cudarc::driver::CudaContext;

use super::harness::{Living, alone, any_device, bytes, fake, release};

fn current() -> u64 {
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is loaded, and the out parameter is a local.
    let code = unsafe { cust::sys::cuCtxGetCurrent(&raw mut context) };
    assert_eq!(code as i32, 0);
    context as u64
}

#[test]
fn a_buffer_is_a_slice_and_a_buffer_again() {
    let _device = any_device();
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    let stream = CudaStream::from_cudarc(theirs.clone()).unwrap();
    let pool = alloc_cuda::global(0).unwrap();
    let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();
    let source = Buffer::from_slice_on(pool, &values, stream.stream()).unwrap();
    let target = Buffer::zeroed_on(pool, 4000, stream.stream()).unwrap();
    let (source_address, target_address) = (source.address(), target.address());
    let source = CudarcSlice::<f32>::new(source, &theirs).unwrap();
    let mut target = CudarcSlice::<f32>::new(target, &theirs).unwrap();
    assert_eq!((source.len(), target.len()), (1000, 1000));
    theirs.memcpy_dtod(&*source, &mut target.as_view_mut()).unwrap();
    assert_eq!(theirs.clone_dtoh(&*target).unwrap(), values);
    let (source, target) = (source.into_buffer(), target.into_buffer());
    assert_eq!((source.address(), target.address()), (source_address, target_address));
    let mut back = vec![0.0_f32; 1000];
    back.as_borrowed_mut().copy_from(&target).unwrap();
    assert_eq!(back, values);
}

#[test]
fn cudarc_never_frees_our_memory() {
    let driver = alone();
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    let stream = CudaStream::from_cudarc(theirs.clone()).unwrap();
    let pool = alloc_cuda::global(0).unwrap();
    let in_use = pool.statistics().requested.current;
    let buffer = Buffer::zeroed_on(pool, 1 << 20, stream.stream()).unwrap();
    let before = current();
    let slice = CudarcSlice::<u8>::new(buffer, &theirs).unwrap();
    assert_eq!(current(), before);
    driver.clear();
    drop(slice);
    assert_eq!(current(), before);
    driver.assert_calls("cuMemFree_v2", 0);
    driver.assert_calls("cuMemFreeAsync", 0);
    assert_eq!(pool.statistics().requested.current, in_use, "it went back to the pool");
}

/// A buffer of a pool that has nothing else, on a stream of its own.
fn buffer_on(stream: &CudaStream) -> (Arc<DevicePool>, Buffer) {
    let config = PoolConfig { growth_slack: 0.0, ..PoolConfig::default() };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap();
    let handle: Arc<dyn DeviceAllocator> = pool.clone();
    let buffer = Buffer::zeroed_on(handle, 8 << 20, stream.stream()).unwrap();
    (pool, buffer)
}

/// Such a buffer as a slice, which is the last owner of its stream of `cudarc`.
fn slice_on(stream: &CudaStream) -> (Arc<DevicePool>, CudarcSlice<u8>) {
    let (pool, buffer) = buffer_on(stream);
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    (pool, CudarcSlice::new(buffer, &theirs).unwrap())
}

/// Allocates what only the buffer's memory is there for, and looks whether a stream that is gone was named.
fn reuse(pool: &DevicePool, stream: &CudaStream) {
    let block = pool.allocate(bytes(9 << 20), stream.stream()).unwrap();
    release(pool, block, stream.stream());
    pool.trim(0);
}

#[test]
fn a_slice_may_be_the_last_owner_of_its_stream() {
    let driver = alone();
    let own = CudaStream::new(0).unwrap();
    let (pool, slice) = slice_on(&own);
    let living = driver.living(Living::Streams);
    drop(slice);
    assert_eq!(driver.living(Living::Streams), living.map(|living| living - 1));
    reuse(&pool, &own);
}

#[test]
fn a_slice_is_no_reason_to_name_its_stream_later() {
    let _driver = alone();
    let own = CudaStream::new(0).unwrap();
    let (pool, buffer) = buffer_on(&own);
    let other = CudaStream::new(0).unwrap();
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    drop(CudarcSlice::<u8>::new(buffer, &theirs).unwrap());
    drop(theirs);
    reuse(&pool, &other);
}

#[test]
fn a_buffer_that_was_a_slice_outlives_the_stream() {
    let driver = alone();
    let own = CudaStream::new(0).unwrap();
    let (pool, slice) = slice_on(&own);
    let living = driver.living(Living::Streams);
    let buffer = slice.into_buffer();
    assert_eq!(driver.living(Living::Streams), living.map(|living| living - 1));
    assert_eq!(buffer.to_vec::<u8>().unwrap(), vec![0; 8 << 20]);
    drop(buffer);
    reuse(&pool, &own);
}

#[test]
fn a_stream_that_can_t_be_waited_for_outlives_the_buffer() {
    let Some(fake) = fake() else { return };
    let own = CudaStream::new(0).unwrap();
    let (pool, slice) = slice_on(&own);
    let living = fake.living(Living::Streams);
    fake.fail("cuStreamSynchronize", 0, 1);
    let buffer = slice.into_buffer();
    assert_eq!((fake.failures_left(), fake.living(Living::Streams)), (0, living));
    drop(buffer);
    reuse(&pool, &own);
}

#[test]
fn a_stream_of_cudarc_lives_as_long_as_ours() {
    let driver = alone();
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    let living = driver.living(Living::Streams);
    let stream = CudaStream::from_cudarc(theirs).unwrap();
    stream.synchronize().unwrap();
    drop(stream);
    assert_eq!(driver.living(Living::Streams), living.map(|living| living - 1));
}

#[test]
fn a_buffer_of_another_device_comes_back_unharmed() {
    let Some(_fake) = fake() else { return };
    let theirs = CudaContext::new(0).unwrap().new_stream().unwrap();
    let buffer = Buffer::zeroed(alloc_cuda::global(1).unwrap(), 64).unwrap();
    let address = buffer.address();
    let error = CudarcSlice::<u8>::new(buffer, &theirs).unwrap_err();
    let CudarcError::WrongDevice { buffer, .. } = error else { panic!("{error}") };
    assert_eq!(buffer.address(), address);
}
