//! What the driver's codes become.

use std::sync::Arc;

use alloc_core::{
    AllocError, AllocatorHandle, Block, Device, DeviceAllocator, MemoryProvider, OutOfMemory, ProviderErrorKind, Stream,
};
use alloc_cuda::{CudaStream, DeviceOptions, DevicePool, DeviceProvider, PinnedMethod, PrivatePool};
use alloc_pool::PoolConfig;

use super::harness::{any_device, bytes, fake, gpu_alone, release};

#[test]
fn a_code_that_nobody_knows_keeps_its_number() {
    let Some(fake) = fake() else { return };
    let provider = DeviceProvider::new(0, &DeviceOptions::default()).unwrap();
    fake.fail("cuMemCreate", 0, 54_321);
    let error = provider.create(2 << 20).unwrap_err();
    assert_eq!((error.call, error.code, &*error.name), ("cuMemCreate", 54_321, "CUDA_ERROR_54321"));
    assert_eq!(error.kind, ProviderErrorKind::Other);
    assert_eq!(error.to_string(), "cuMemCreate failed on cuda:0: CUDA_ERROR_54321 (54321), Other");
}

#[test]
fn memory_arguments_and_broken_contexts_are_told_apart() {
    let Some(fake) = fake() else { return };
    let provider = DeviceProvider::new(0, &DeviceOptions::default()).unwrap();
    let cases = [
        (1, ProviderErrorKind::InvalidArgument, "CUDA_ERROR_INVALID_VALUE"),
        (2, ProviderErrorKind::OutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"),
        (700, ProviderErrorKind::Poisoned, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (719, ProviderErrorKind::Poisoned, "CUDA_ERROR_LAUNCH_FAILED"),
        (801, ProviderErrorKind::Unsupported, "CUDA_ERROR_NOT_SUPPORTED"),
    ];
    for (code, kind, name) in cases {
        fake.fail("cuMemCreate", 0, code);
        let error = provider.create(2 << 20).unwrap_err();
        assert_eq!((error.kind, error.code, &*error.name), (kind, i64::from(code), name));
    }
}

#[test]
fn a_poisoned_context_fails_every_call_and_nothing_is_reused() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(1, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let [one, two] = [(); 2].map(|()| CudaStream::new(1).unwrap());
    let block = pool.allocate(bytes(4 << 20), one.stream()).unwrap();
    release(&*pool, block, one.stream());
    fake.poison(1, 719);
    assert_eq!(one.synchronize().unwrap_err().kind, ProviderErrorKind::Poisoned);
    // Another stream can't have the block: whether the first is done with it can't be known.
    let error = pool.allocate(bytes(4 << 20), two.stream()).unwrap_err();
    let AllocError::Provider(error) = error else { panic!("{error}") };
    assert_eq!(error.kind, ProviderErrorKind::Poisoned);
    fake.poison(1, 0);
}

#[test]
fn running_out_carries_the_true_figures_a_hundred_times() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let before = fake.used(0);
    for _ in 0..100 {
        let mut blocks = Vec::new();
        let error = loop {
            match pool.allocate(bytes(64 << 20), stream.stream()) {
                Ok(block) => blocks.push(block),
                Err(error) => break error,
            }
        };
        let AllocError::OutOfMemory(error) = error else { panic!("{error}") };
        // What other pools of the process hold idle, they have given back.
        let others = fake.used(0) - error.reserved;
        assert!(others <= before);
        assert_eq!(blocks.len() as u64, ((1 << 30) - others) / (64 << 20));
        assert_eq!((error.requested, error.in_use), (64 << 20, (64 << 20) * blocks.len() as u64));
        assert_eq!(error.device_free, Some((1 << 30) - fake.used(0)));
        assert_eq!(error.device_total, Some(1 << 30));
        for block in blocks {
            release(&*pool, block, stream.stream());
        }
    }
    let held = pool.statistics().reserved.current;
    let used = fake.used(0);
    assert_eq!(pool.trim(0), held);
    assert_eq!(pool.statistics().reserved.current, 0);
    assert_eq!(fake.used(0), used - held);
}

/// Takes blocks of a size until there is no more memory, and gives them and the error.
fn fill(pool: &DevicePool, size: u64, stream: Stream, blocks: &mut Vec<Block>) -> OutOfMemory {
    loop {
        match pool.allocate(bytes(size), stream) {
            Ok(block) => blocks.push(block),
            Err(AllocError::OutOfMemory(error)) => break *error,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_real_card_is_filled_to_the_last_page_a_hundred_times() {
    let Some(_gpu) = gpu_alone() else { return };
    let provider = DeviceProvider::new(0, &DeviceOptions::default()).unwrap();
    let (page, stream) = (provider.granularity(), CudaStream::new(0).unwrap());
    alloc_cuda::global(0).unwrap().trim(0);
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let at_start = provider.memory().unwrap();
    let mut filled = None;
    for round in 0..100 {
        let mut blocks = Vec::new();
        fill(&pool, 1 << 30, stream.stream(), &mut blocks);
        fill(&pool, 32 << 20, stream.stream(), &mut blocks);
        let error = fill(&pool, page, stream.stream(), &mut blocks);
        let in_use: u64 = blocks.iter().map(Block::size).sum();
        let memory = provider.memory().unwrap();
        assert_eq!((error.requested, error.in_use, error.reserved), (page, in_use, in_use));
        assert_eq!((error.device_free, error.device_total), (Some(memory.free), Some(memory.total)));
        // The driver keeps some to itself; it gives up with less than a hundredth of the card left.
        assert!(memory.free < memory.total / 100, "{} bytes are still free", memory.free);
        // What the driver keeps for page tables varies a little.
        let first = *filled.get_or_insert(in_use);
        assert!(first.abs_diff(in_use) < memory.total / 1000, "{first} bytes at first, {in_use} in round {round}");
        for block in blocks {
            release(&*pool, block, stream.stream());
        }
        if round % 10 == 9 {
            assert_eq!(pool.trim(0), in_use);
            assert_eq!(pool.statistics().reserved.current, 0);
            let free = provider.memory().unwrap().free;
            assert!(at_start.free.abs_diff(free) < memory.total / 1000, "{free} of {} bytes are free", at_start.free);
        }
    }
}

#[test]
fn a_real_card_keeps_its_headroom() {
    let Some(_gpu) = gpu_alone() else { return };
    let headroom = 4 << 30;
    let provider = DeviceProvider::new(0, &DeviceOptions::default()).unwrap();
    let (page, stream) = (provider.granularity(), CudaStream::new(0).unwrap());
    alloc_cuda::global(0).unwrap().trim(0);
    let options = DeviceOptions::default().headroom(headroom);
    let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
    for _ in 0..3 {
        let mut blocks = Vec::new();
        for size in [1 << 30, 32 << 20, page] {
            fill(&pool, size, stream.stream(), &mut blocks);
        }
        // Page tables come out of what is left, and the driver keeps some memory to itself.
        let memory = provider.memory().unwrap();
        let slack = memory.total / 500;
        assert!(memory.free.abs_diff(headroom) < slack, "{} bytes are free, {headroom} were to be", memory.free);
        for block in blocks {
            release(&*pool, block, stream.stream());
        }
        pool.trim(0);
        assert_eq!(pool.statistics().reserved.current, 0);
    }
}

#[test]
fn plain_default_streams_need_no_stream_of_ours() {
    let _device = any_device();
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    for stream in [Stream::DEFAULT, Stream::from_raw(1), Stream::from_raw(2)] {
        let block = pool.allocate(bytes(1 << 20), stream).unwrap();
        release(&*pool, block, stream);
    }
}

#[test]
fn a_private_pool_takes_memory_of_its_own_device_only() {
    let _device = any_device();
    let refused = |source| match PrivatePool::new(0, source).unwrap_err() {
        AllocError::Provider(error) => (error.kind, error.device, error.name.into_owned()),
        error => panic!("{error}"),
    };
    let pinned = alloc_cuda::pinned_pool(0, PinnedMethod::default(), PoolConfig::default()).unwrap();
    let host = alloc_cpu::pool().build().unwrap();
    for (source, name) in [(AllocatorHandle::from(pinned), "cuda_pinned:0"), (Arc::new(host).into(), "cpu:0")] {
        let expected =
            (ProviderErrorKind::InvalidArgument, Device::cuda(0), format!("the source is an allocator of {name}"));
        assert_eq!(refused(source), expected);
    }
}
