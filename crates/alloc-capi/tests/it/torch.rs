//! What PyTorch's allocator calls, on a driver that keeps books.

use std::ffi::{CStr, c_void};
use std::ops::Deref;
use std::ptr::null_mut;

use alloc_core::{Address, Device, DeviceAllocator, Place, Stream, Transfer, registry};
use alloc_cuda::{CudaStream, CudaTransfer};
use device_memory::Status;
use device_memory::ffi::torch::*;
use device_memory::ffi::*;

use crate::harness::{Fake, fake};

const CUDA: i32 = DEVMEM_KIND_CUDA;
pub(crate) const MIB: isize = 1 << 20;
pub(crate) const POOL: TorchPoolId = TorchPoolId { first: 7, second: 0 };

/// A stream that the library knows by its handle, and is told of when it goes.
pub(crate) struct NamedStream(CudaStream);

impl NamedStream {
    pub(crate) fn new() -> Self {
        Self::of(0)
    }

    fn of(ordinal: u16) -> Self {
        Self(CudaStream::new(ordinal).unwrap())
    }
}

impl Deref for NamedStream {
    type Target = CudaStream;

    fn deref(&self) -> &CudaStream {
        &self.0
    }
}

impl Drop for NamedStream {
    fn drop(&mut self) {
        // SAFETY: the stream still lives.
        let retired = unsafe { devmem_retire_stream(CUDA, self.device().ordinal().into(), self.handle()) };
        assert_eq!(retired, Status::Ok);
    }
}

fn handle(stream: Stream) -> *mut c_void {
    std::ptr::without_provenance_mut(stream.handle() as usize)
}

pub(crate) fn take(size: isize, stream: Stream) -> *mut c_void {
    // SAFETY: the stream lives.
    unsafe { devmem_torch_alloc(size, 0, handle(stream)) }
}

pub(crate) fn give(pointer: *mut c_void, size: isize, stream: Stream) {
    // SAFETY: nothing uses the block.
    unsafe { devmem_torch_free(pointer, size, 0, handle(stream)) };
}

pub(crate) fn pool() -> &'static dyn DeviceAllocator {
    registry::get(Device::cuda(0)).unwrap()
}

pub(crate) fn last_error() -> String {
    // SAFETY: the text is valid until the next failure of this thread.
    unsafe { CStr::from_ptr(devmem_last_error()) }.to_str().unwrap().to_owned()
}

/// The fake driver, and an empty pool.
pub(crate) fn start() -> Option<Fake> {
    let fake = fake()?;
    // Two that reach each other; the others are shown to those who ask for them.
    fake.show_devices(2);
    devmem_torch_init(1);
    let warm = take(1, Stream::DEFAULT);
    give(warm, 1, Stream::DEFAULT);
    devmem_torch_reset();
    assert_eq!(pool().statistics().in_use.current, 0, "an earlier test left blocks");
    Some(fake)
}

#[test]
fn tensors_come_and_go() {
    let Some(_fake) = start() else { return };
    let stream = NamedStream::new();
    let blocks: Vec<_> = [1, 512, 100_000, 30 * MIB].map(|size| (take(size, stream.stream()), size)).into();
    assert!(blocks.iter().all(|(block, _)| !block.is_null() && block.addr().is_multiple_of(512)));
    for (block, size) in blocks {
        let mut bytes = 0;
        // SAFETY: the size is a local.
        assert_eq!(unsafe { devmem_torch_base_alloc(block, &mut bytes) }, block);
        assert_eq!(bytes as isize, size);
        give(block, size, stream.stream());
    }
    assert_eq!(take(0, stream.stream()), null_mut(), "no bytes have no address, as in PyTorch");
    assert!(pool().statistics().reserved.current >= 30 << 20);
    devmem_torch_reset();
    assert_eq!(pool().statistics().reserved.current, 0);
}

#[test]
fn what_fails_is_said_and_nothing_breaks() {
    let Some(_fake) = start() else { return };
    assert_eq!(devmem_torch_exceptions(), 0, "there is no PyTorch here to throw with");
    assert_eq!(devmem_set_limit(CUDA, 0, 64 << 20), Status::Ok);
    assert_eq!(take(128 * MIB, Stream::DEFAULT), null_mut());
    let text = last_error();
    assert!(text.starts_with("CUDA out of memory. Tried to allocate 128.00 MiB"), "{text}");
    let block = take(16 * MIB, Stream::DEFAULT);
    assert!(!block.is_null(), "the program goes on");
    give(block, 17 * MIB, Stream::DEFAULT);
    assert!(last_error().contains("has 16777216 bytes"), "{}", last_error());
    give(block, 16 * MIB, Stream::DEFAULT);
    give(block, 16 * MIB, Stream::DEFAULT);
    assert!(last_error().contains("freed before"), "{}", last_error());
    assert_eq!(devmem_set_limit(CUDA, 0, 0), Status::Ok);
    assert_eq!(take(-1, Stream::DEFAULT), null_mut());
    // SAFETY: the stream is the default one.
    assert_eq!(unsafe { devmem_torch_alloc(1, 99, null_mut()) }, null_mut());
}

#[test]
fn a_fraction_is_a_limit() {
    let Some(_fake) = start() else { return };
    // SAFETY: there is nothing to pass through.
    unsafe { devmem_torch_memory_fraction(0.25, 0) };
    let mut limit = 0;
    // SAFETY: the number is a local.
    assert_eq!(unsafe { devmem_limit(CUDA, 0, &mut limit) }, Status::Ok);
    assert_eq!(limit, alloc_cuda::device_info(0).unwrap().total_memory / 4);
    for nonsense in [f64::NAN, -0.5, 1.5] {
        // SAFETY: there is no PyTorch here to throw with.
        unsafe { devmem_torch_memory_fraction(nonsense, 0) };
        assert!(last_error().contains("no fraction"), "{nonsense}: {}", last_error());
        // SAFETY: the number is a local.
        assert_eq!(unsafe { devmem_limit(CUDA, 0, &mut limit) }, Status::Ok);
        assert_eq!(limit, alloc_cuda::device_info(0).unwrap().total_memory / 4, "the limit stays");
    }
    // SAFETY: as above.
    unsafe { devmem_torch_memory_fraction(0.0, 0) };
    assert_eq!(take(1, Stream::DEFAULT), null_mut());
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_limit(CUDA, 0, &mut limit) }, Status::Ok);
    assert_eq!(limit, 1, "a limit that leaves nothing is not none");
    assert_eq!(devmem_set_limit(CUDA, 0, 0), Status::Ok);
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_limit(CUDA, 0, &mut limit) }, Status::Ok);
    assert_eq!(limit, 0);
}

/// Work on the stream that uses the block.
fn fill(block: *mut c_void, stream: Stream) {
    let place = Place { device: Device::cuda(0), address: Address::new(block.addr() as u64) };
    // SAFETY: the block has as many bytes, and lives as long as the test waits for.
    unsafe { CudaTransfer::of(0).unwrap().fill(place, 8 << 20, 1, stream) }.unwrap();
}

/// Whether whoever gets the memory of a block of 8 MiB, which was just freed, comes after work that is held back.
fn is_waited_for(fake: &Fake, block: *mut c_void, stream: Stream) -> bool {
    let waits = fake.calls("cuStreamWaitEvent");
    let others = [(); 3].map(|()| take(8 * MIB, stream));
    let is_reused_at_once = others.contains(&block) && fake.calls("cuStreamWaitEvent") == waits;
    others.into_iter().for_each(|other| give(other, 8 * MIB, stream));
    !is_reused_at_once
}

/// Frees a block of `main` in the midst of work of `side` that uses it: `end` does, by whatever function. Where it was.
fn freed_in_use(fake: &Fake, main: &NamedStream, side: &NamedStream, end: impl FnOnce(*mut c_void)) -> *mut c_void {
    let block = take(8 * MIB, main.stream());
    side.wait_for(main).unwrap();
    fake.hold(side.stream());
    fill(block, side.stream());
    end(block);
    assert_eq!(pool().statistics().parked.current, 8 << 20);
    assert!(is_waited_for(fake, block, main.stream()), "work on another stream still uses the memory");
    fake.resume(side.stream());
    side.synchronize().unwrap();
    devmem_torch_reset();
    assert_eq!(pool().statistics().in_use.current, 0);
    block
}

/// Records the stream, and frees the block on its own.
fn record_and_give(block: *mut c_void, main: &NamedStream, side: &NamedStream) {
    // SAFETY: the block lives.
    unsafe { devmem_torch_record_stream(block, handle(side.stream())) };
    give(block, 8 * MIB, main.stream());
}

#[test]
fn a_recorded_stream_is_waited_for() {
    let Some(fake) = start() else { return };
    let [main, side, third] = [(); 3].map(|()| NamedStream::new());
    let block = freed_in_use(&fake, &main, &side, |block| record_and_give(block, &main, &side));
    // What was recorded is forgotten with the block.
    let again = take(8 * MIB, main.stream());
    assert_eq!(again, block);
    let records = fake.calls("cuEventRecord");
    record_and_give(again, &main, &third);
    assert_eq!(fake.calls("cuEventRecord"), records + 1);
    devmem_torch_reset();
    assert_eq!(pool().statistics().reserved.current, 0);
}

#[test]
fn a_block_may_be_freed_on_another_stream_than_its_own() {
    let Some(fake) = start() else { return };
    let [main, side] = [(); 2].map(|()| NamedStream::new());
    freed_in_use(&fake, &main, &side, |block| give(block, 8 * MIB, side.stream()));
    // SAFETY: the last use was on the stream named.
    let free_on = |block| assert_eq!(unsafe { devmem_free_on(block, side.handle()) }, Status::Ok);
    freed_in_use(&fake, &main, &side, free_on);
}

#[test]
fn a_stream_that_has_the_handle_of_one_that_ended_is_waited_for() {
    let Some(fake) = start() else { return };
    let main = NamedStream::new();
    let gone = {
        let gone = NamedStream::new();
        let block = take(8 * MIB, gone.stream());
        give(block, 8 * MIB, gone.stream());
        gone.handle()
    };
    // The driver hands the handle out again, and the new stream allocates nothing.
    let side = NamedStream::new();
    assert_eq!(side.handle(), gone);
    freed_in_use(&fake, &main, &side, |block| record_and_give(block, &main, &side));
}

#[test]
fn default_streams_of_threads_are_told_apart() {
    /// `CU_STREAM_PER_THREAD`.
    const PER_THREAD: u64 = 2;
    let Some(fake) = start() else { return };
    let take = || {
        let mut pointer = null_mut();
        // SAFETY: the pointer is a local, and the stream one that each thread has.
        assert_eq!(unsafe { devmem_allocate_on(CUDA, 0, 8 << 20, 0, PER_THREAD, &mut pointer) }, Status::Ok);
        pointer.expose_provenance()
    };
    // SAFETY: nothing uses the block.
    let free = |block| unsafe { devmem_free_on(std::ptr::with_exposed_provenance_mut(block), PER_THREAD) };
    let block = take();
    let records = fake.calls("cuEventRecord");
    assert_eq!(free(block), Status::Ok);
    assert_eq!(fake.calls("cuEventRecord"), records, "a thread frees on its own stream");
    let block = take();
    assert_eq!(std::thread::scope(|scope| scope.spawn(|| free(block)).join().unwrap()), Status::Ok);
    assert!(fake.calls("cuEventRecord") > records, "and another thread on another one");
    // PyTorch names the stream of the allocation, from whatever thread.
    let (block, records) = (take(), fake.calls("cuEventRecord"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            give(std::ptr::with_exposed_provenance_mut(block), 8 * MIB, Stream::from_raw(PER_THREAD));
        });
    });
    assert_eq!(fake.calls("cuEventRecord"), records);
    devmem_torch_reset();
    assert_eq!(pool().statistics().in_use.current, 0);
}

#[test]
fn claims_on_blocks_of_private_pools_are_checked() {
    let Some(_fake) = start() else { return };
    begin();
    let block = take(MIB, Stream::DEFAULT);
    end();
    // SAFETY: nothing uses the block.
    let free = |ordinal, size: isize| unsafe { devmem_free_checked(block, CUDA, ordinal, size as u64, 0) };
    // A device that has a heap, and one that has none yet.
    assert_eq!((free(1, MIB), free(7, MIB)), (Status::WrongDevice, Status::WrongDevice));
    assert!(last_error().contains("cuda:0, not of cuda:7"), "{}", last_error());
    // SAFETY: as above.
    unsafe { devmem_torch_free(block, MIB, 1, null_mut()) };
    assert_eq!(free(0, MIB + 1), Status::WrongSize);
    assert_eq!((free(0, MIB), free(0, MIB)), (Status::Ok, Status::DoubleFree));
    devmem_torch_release_pool(0, POOL);
    assert_eq!(pool().statistics().in_use.current, 0);
}

#[test]
fn what_callers_hold_is_counted_however_it_comes_back() {
    let Some(_fake) = start() else { return };
    let [main, side] = [(); 2].map(|()| NamedStream::new());
    let counts = || {
        let mut figures = device_memory::Statistics::default();
        // SAFETY: the figures are a local of that size.
        let told = unsafe { devmem_statistics(CUDA, 0, &mut figures, size_of_val(&figures)) };
        assert_eq!(told, Status::Ok);
        (figures.allocated, figures.block_count, figures.failure_count)
    };
    let (bytes, blocks, failures) = counts();
    let take_counted = || {
        let block = take(MIB, main.stream());
        assert_eq!(counts(), (bytes + (1 << 20), blocks + 1, failures));
        block
    };
    let block = take_counted();
    give(block, MIB, main.stream());
    assert_eq!(counts(), (bytes, blocks, failures), "on its own stream");
    let block = take_counted();
    give(block, MIB, side.stream());
    assert_eq!(counts(), (bytes, blocks, failures), "on another");
    let block = take_counted();
    // SAFETY: the block lives.
    unsafe { devmem_torch_record_stream(block, handle(side.stream())) };
    give(block, MIB, main.stream());
    assert_eq!(counts(), (bytes, blocks, failures), "after it was recorded");
    begin();
    let block = take_counted();
    end();
    give(block, MIB, main.stream());
    devmem_torch_release_pool(0, POOL);
    assert_eq!(counts(), (bytes, blocks, failures), "to a private pool");
    assert_eq!(devmem_set_limit(CUDA, 0, 32 << 20), Status::Ok);
    assert_eq!(take(64 * MIB, main.stream()), null_mut());
    assert_eq!(devmem_set_limit(CUDA, 0, 0), Status::Ok);
    assert_eq!(counts(), (bytes, blocks, failures + 1));
}

#[test]
fn what_callers_ask_for_is_counted_from_private_pools_too() {
    let Some(_fake) = start() else { return };
    let totals = || {
        let mut figures = device_memory::Statistics::default();
        // SAFETY: the figures are a local of that size.
        let told = unsafe { devmem_statistics(CUDA, 0, &mut figures, size_of_val(&figures)) };
        assert_eq!(told, Status::Ok);
        (figures.allocated_total, figures.allocation_count)
    };
    let (bytes, requests) = totals();
    let take_and_give = || {
        let blocks = [(); 10].map(|()| take(MIB, Stream::DEFAULT));
        blocks.into_iter().for_each(|block| give(block, MIB, Stream::DEFAULT));
    };
    take_and_give();
    assert_eq!(totals(), (bytes + (10 << 20), requests + 10));
    begin();
    take_and_give();
    take_and_give();
    assert_eq!(totals(), (bytes + (30 << 20), requests + 30), "not what the pool took for them");
    end();
    devmem_torch_release_pool(0, POOL);
    assert_eq!(totals(), (bytes + (30 << 20), requests + 30));
    assert_eq!(pool().statistics().in_use.current, 0);
}

/// Routes this thread's allocations to the pool.
pub(crate) fn begin() {
    // SAFETY: without a filter the thread decides.
    unsafe { devmem_torch_begin_allocate_to_pool(0, POOL, null_mut()) };
}

pub(crate) fn end() {
    // SAFETY: nothing is passed through.
    unsafe { devmem_torch_end_allocate_to_pool(0, POOL) };
}

#[test]
fn what_a_capture_used_stays_until_the_pool_is_released() {
    let Some(fake) = start() else { return };
    let stream = NamedStream::new();
    let before = take(MIB, stream.stream());
    begin();
    let (graph, addresses) = stream
        .capture(|_| -> Result<_, std::convert::Infallible> {
            let mut addresses = Vec::new();
            let output = take(4 * MIB, stream.stream());
            for _ in 0..10 {
                let block = take(8 * MIB, stream.stream());
                addresses.push(block);
                give(block, 8 * MIB, stream.stream());
            }
            // What was there before may go while work is captured.
            give(before, MIB, stream.stream());
            addresses.push(output);
            Ok(addresses)
        })
        .unwrap();
    end();
    let output = addresses[10];
    assert!(addresses[..10].iter().all(|address| *address == addresses[0]), "a capture reuses its temporaries");
    let held = pool().statistics().in_use.current;
    assert!((12 << 20..24 << 20).contains(&held), "{held}");
    // Nobody else gets the memory, whatever they ask for, and pressure does not reach it.
    let others: Vec<_> = (0..8).map(|_| take(8 * MIB, stream.stream())).collect();
    assert!(!others.contains(&addresses[0]));
    others.into_iter().for_each(|other| give(other, 8 * MIB, stream.stream()));
    devmem_torch_reset();
    assert_eq!(pool().statistics().in_use.current, held);
    graph.launch(&stream).unwrap();
    drop(graph);
    // The output outlives its pool.
    devmem_torch_release_pool(0, POOL);
    assert_eq!(devmem_torch_pool_users(0, POOL), 0);
    let left = pool().statistics().in_use.current;
    assert!((4 << 20..=held - (8 << 20)).contains(&left), "{left} of {held} for an output of 4 MiB");
    give(output, 4 * MIB, stream.stream());
    assert_eq!(pool().statistics().in_use.current, 0, "with the last block the memory goes back");
    devmem_torch_reset();
    assert_eq!(fake.used(0), 0);
}

#[test]
fn other_threads_and_streams_are_not_routed() {
    let Some(_fake) = start() else { return };
    let stream = NamedStream::new();
    begin();
    let ours = take(MIB, stream.stream()).expose_provenance();
    let [other, captured] = std::thread::scope(|scope| {
        let in_thread = scope.spawn(|| {
            let other = take(MIB, stream.stream()).expose_provenance();
            // A thread that helps with a capture: autograd's, say.
            let helped = NamedStream::new();
            let capture = |_: &_| Ok::<_, std::convert::Infallible>(take(MIB, helped.stream()).expose_provenance());
            let (graph, captured) = helped.capture(capture).unwrap();
            drop(graph);
            give(std::ptr::with_exposed_provenance_mut(captured), MIB, helped.stream());
            [other, captured]
        });
        in_thread.join().unwrap()
    });
    end();
    let snapshot = {
        let mut text = vec![0_u8; 1 << 16];
        // SAFETY: the buffer has that many bytes.
        let length = unsafe { devmem_snapshot_json(CUDA, 0, text.as_mut_ptr().cast(), text.len()) };
        serde_json::from_slice::<serde_json::Value>(&text[..length]).unwrap()
    };
    let is_private = |address: usize| {
        let blocks = snapshot["blocks"].as_array().unwrap();
        blocks.iter().find(|block| block["address"] == address).map(|block| block["private_pool"] == true)
    };
    assert_eq!((is_private(ours), is_private(other), is_private(captured)), (Some(true), Some(false), None));
    let of_ours = snapshot["blocks"].as_array().unwrap().iter().find(|block| block["address"] == ours).unwrap();
    assert_eq!(of_ours["pool"], serde_json::json!([POOL.first, POOL.second]));
    for address in [ours, other] {
        give(std::ptr::with_exposed_provenance_mut(address), MIB, stream.stream());
    }
    devmem_torch_release_pool(0, POOL);
    assert_eq!(pool().statistics().in_use.current, 0);
}

#[test]
fn a_pool_is_shared_and_comes_back() {
    let Some(_fake) = start() else { return };
    let stream = NamedStream::new();
    assert_eq!(devmem_torch_retain_pool(0, POOL), Status::Ok);
    let mut first = null_mut();
    for round in 0..3 {
        begin();
        assert_eq!(devmem_torch_pool_users(0, POOL), 2);
        let block = take(2 * MIB, stream.stream());
        if round == 0 {
            first = block;
        }
        assert_eq!(block, first, "a pool that is held keeps its memory");
        end();
        give(block, 2 * MIB, stream.stream());
        devmem_torch_release_pool(0, POOL);
    }
    devmem_torch_release_pool(0, POOL);
    assert_eq!(pool().statistics().in_use.current, 0);
    devmem_torch_release_pool(0, POOL);
    assert!(last_error().contains("nobody holds"), "{}", last_error());
    end();
    assert!(last_error().contains("nothing is allocated to"), "{}", last_error());
}

#[test]
fn pools_that_end_during_another_capture_wait() {
    let Some(_fake) = start() else { return };
    let stream = NamedStream::new();
    begin();
    let block = take(MIB, stream.stream());
    end();
    give(block, MIB, stream.stream());
    let held = pool().statistics().in_use.current;
    let other = TorchPoolId { first: 8, second: 0 };
    // SAFETY: without a filter the thread decides.
    unsafe { devmem_torch_begin_allocate_to_pool(0, other, null_mut()) };
    let capture = |_: &_| {
        devmem_torch_release_pool(0, POOL);
        Ok::<_, std::convert::Infallible>(())
    };
    let (graph, ()) = stream.capture(capture).unwrap();
    assert_eq!(pool().statistics().in_use.current, held, "the device can't be waited for in a capture");
    // SAFETY: nothing is passed through.
    unsafe { devmem_torch_end_allocate_to_pool(0, other) };
    assert_eq!(pool().statistics().in_use.current, 0);
    drop(graph);
    devmem_torch_release_pool(0, other);
}

#[test]
fn running_out_in_a_private_pool_has_the_figures_of_the_device() {
    let Some(_fake) = start() else { return };
    assert_eq!(devmem_set_limit(CUDA, 0, 32 << 20), Status::Ok);
    begin();
    assert_eq!(take(64 * MIB, Stream::DEFAULT), null_mut());
    assert!(last_error().contains("64.00 MiB") && last_error().contains("limit is 32.00 MiB"), "{}", last_error());
    let block = take(8 * MIB, Stream::DEFAULT);
    assert!(!block.is_null());
    end();
    give(block, 8 * MIB, Stream::DEFAULT);
    devmem_torch_release_pool(0, POOL);
    assert_eq!(devmem_set_limit(CUDA, 0, 0), Status::Ok);
    assert_eq!(pool().statistics().in_use.current, 0);
}

#[test]
fn a_full_device_leaves_the_driver_its_part() {
    let Some(fake) = start() else { return };
    let mut blocks = Vec::new();
    while let block = take(8 * MIB, Stream::DEFAULT)
        && !block.is_null()
    {
        blocks.push(block);
    }
    assert!(last_error().contains("4.00 MiB of it for the driver"), "{}", last_error());
    // A 256th of the fake's gigabyte, and no whole block more.
    let free = (1 << 30) - fake.used(0);
    assert!((4 << 20..8 << 20).contains(&free), "{free}");
    blocks.into_iter().for_each(|block| give(block, 8 * MIB, Stream::DEFAULT));
    devmem_torch_reset();
}

#[test]
fn devices_of_one_process_reach_each_other() {
    let Some(fake) = start() else { return };
    let streams = [0, 1].map(NamedStream::of);
    let take = |ordinal: i32, stream: &NamedStream| {
        // SAFETY: the stream lives.
        let pointer = unsafe { devmem_torch_alloc(8 * MIB, ordinal, handle(stream.stream())) };
        assert!(!pointer.is_null(), "{}", last_error());
        pointer
    };
    // What was there before the second device was used, and what comes after.
    let before = take(0, &streams[0]);
    let there = take(1, &streams[1]);
    let after = take(0, &streams[0]);
    for (ordinal, from, to) in [(0, before, there), (1, there, after), (1, before, there), (0, after, there)] {
        // As PyTorch copies: a call that names no devices, on a stream of either.
        let device = Device::cuda(ordinal);
        let [from, to] = [from, to].map(|pointer| Place { device, address: Address::new(pointer as u64) });
        let stream = &streams[usize::from(ordinal)];
        // SAFETY: both are as long, and live past the wait.
        unsafe { CudaTransfer::of(ordinal).unwrap().copy(from, to, 8 << 20, stream.stream()) }.unwrap();
        stream.synchronize().unwrap();
    }
    for (ordinal, pointer) in [(0, before), (1, there), (0, after)] {
        // SAFETY: nothing uses the blocks.
        unsafe { devmem_torch_free(pointer, 8 * MIB, ordinal, handle(streams[ordinal as usize].stream())) };
    }
    assert_eq!(fake.violations(), Vec::<String>::new());
    // One that the others don't reach has segments, which the driver copies for anybody.
    fake.show_devices(4);
    let creations = fake.calls("cuMemCreate");
    let apart = NamedStream::of(3);
    let block = take(3, &apart);
    assert_eq!(fake.calls("cuMemCreate"), creations);
    // SAFETY: nothing uses the block.
    unsafe { devmem_torch_free(block, 8 * MIB, 3, handle(apart.stream())) };
    devmem_torch_reset();
}

#[test]
fn who_asks_whether_a_device_is_open_does_not_open_it() {
    let Some(fake) = start() else { return };
    fake.show_devices(4);
    let contexts = fake.calls("cuDevicePrimaryCtxRetain");
    let mut open = 7;
    // SAFETY: the number is a local.
    let mut ask = |ordinal| unsafe { (devmem_is_open(CUDA, ordinal, &mut open), open) };
    assert_eq!((ask(0), ask(2)), ((Status::Ok, 1), (Status::Ok, 0)));
    assert_eq!((ask(5).0, ask(99).0), (Status::Unavailable, Status::InvalidArgument));
    assert_eq!(fake.calls("cuDevicePrimaryCtxRetain"), contexts);
    // SAFETY: a null pointer is refused.
    assert_eq!(unsafe { devmem_is_open(CUDA, 0, null_mut()) }, Status::InvalidArgument);
}

#[test]
fn devices_that_are_not_there_are_unavailable() {
    let Some(_fake) = start() else { return };
    let mut pointer = null_mut();
    // SAFETY: the pointer is a local.
    assert_eq!(unsafe { devmem_allocate(CUDA, 30, 1, &mut pointer) }, Status::Unavailable);
    let mut count = 0;
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_device_count(CUDA, &mut count) }, Status::Ok);
    assert_eq!(count, u32::from(alloc_cuda::device_count().unwrap()));
}
