//! Buffers that copy across devices: both directions, in stream order, with and without direct access, and dropped in
//! flight.

use std::sync::Arc;

use alloc_core::{Address, AllocatorHandle, Device, DeviceAllocator, Place, Stream, Transfer};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions, DevicePool, PinnedMethod};
use alloc_pool::PoolConfig;
use buffer::Buffer;

use super::harness::{any_device, bytes, fake, gpu_alone, on_gpu, release, two_devices, two_peers};
use super::kernels::Kernels;
use super::stress::Random;

/// A pool of each device, open to the other or not.
fn pools(open: bool) -> [Arc<DevicePool>; 2] {
    [0, 1].map(|ordinal: u16| {
        let options = DeviceOptions::default();
        let options = if open { options.peers([1 - ordinal]) } else { options };
        alloc_cuda::device_pool(ordinal, &options, PoolConfig::default()).unwrap()
    })
}

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251 + seed * 13) as u8).collect()
}

fn handle(pool: &Arc<DevicePool>) -> AllocatorHandle {
    Arc::clone(pool).into()
}

/// Copies there and back, on streams of either device.
fn there_and_back(open: bool) {
    let pools = pools(open);
    let streams = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    for (from, to) in [(0, 1), (1, 0)] {
        for on in [0, 1] {
            // The last ones lie in several pages.
            for length in [1, 4096, 70_001, 2 << 20, (21 << 20) + 3] {
                let sent = pattern(length, on as u64 + 2 * from as u64);
                let source = Buffer::from_slice_on(handle(&pools[from]), &sent, streams[from].stream()).unwrap();
                let mut target = Buffer::zeroed_on(handle(&pools[to]), length + 1, streams[to].stream()).unwrap();
                assert_eq!(target.copy_from_on(&source, streams[on].stream()).unwrap(), length);
                // The source's memory is not used again before the copy has read it.
                drop(source);
                let mut back = Buffer::zeroed_on(handle(&pools[from]), length + 1, streams[from].stream()).unwrap();
                back.copy_from_exact_on(&target, streams[1 - on].stream()).unwrap();
                drop(target);
                let mut found = back.to_vec::<u8>().unwrap();
                assert_eq!(found.pop(), Some(0), "{from} to {to} on {on}, {length} bytes: one too many was written");
                assert!(found == sent, "{from} to {to} on {on}, {length} bytes");
            }
        }
    }
    // Finished when it returns, without a stream.
    let source = Buffer::from_slice(handle(&pools[0]), &pattern(3_000_000, 5)).unwrap();
    let mut target = Buffer::new(handle(&pools[1]), 3_000_000).unwrap();
    assert_eq!(target.copy_from(&source).unwrap(), 3_000_000);
    assert!(target.to_vec::<u8>().unwrap() == pattern(3_000_000, 5));
    drop((source, target));
    for pool in pools {
        assert_eq!(pool.statistics().requested.current, 0);
    }
}

#[test]
fn contents_cross_with_direct_access() {
    if two_peers("copies with direct access") {
        let _device = any_device();
        there_and_back(true);
    }
}

#[test]
fn contents_cross_without_direct_access() {
    if two_devices("copies without direct access") {
        let _device = any_device();
        there_and_back(false);
    }
}

#[test]
fn one_call_crosses_and_it_names_both_devices() {
    let Some(fake) = fake() else { return };
    for open in [false, true] {
        let pools = pools(open);
        let streams = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
        let source = Buffer::zeroed_on(handle(&pools[0]), 9 << 20, streams[0].stream()).unwrap();
        let mut target = Buffer::new_on(handle(&pools[1]), 9 << 20, streams[1].stream()).unwrap();
        fake.clear();
        target.copy_from_on(&source, streams[0].stream()).unwrap();
        assert_eq!((fake.calls("cuMemcpyPeerAsync"), fake.calls("cuMemcpyAsync")), (1, 0));
        assert_eq!(fake.calls("cuStreamSynchronize") + fake.calls("cuEventSynchronize"), 0, "nobody waits on the host");
    }
}

#[test]
fn memory_is_filled_and_read_in_the_order_of_the_other_devices_stream() {
    if !two_devices("fills on the other device's stream") {
        return;
    }
    let _device = any_device();
    let pools = pools(false);
    let [here, there] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let length = 6 << 20;
    for round in 0..20_u8 {
        // Memory of device 0 that device 1 can't reach, in the order of device 1's stream.
        let mut buffer = Buffer::zeroed_on(handle(&pools[0]), length, here.stream()).unwrap();
        buffer.fill_on(round + 1, there.stream()).unwrap();
        let mut copy = Buffer::new_on(handle(&pools[0]), length, here.stream()).unwrap();
        copy.copy_from_on(&buffer, there.stream()).unwrap();
        buffer.fill_on(0xEE, there.stream()).unwrap();
        let mut across = Buffer::new_on(handle(&pools[1]), length, there.stream()).unwrap();
        across.copy_from_on(&copy, there.stream()).unwrap();
        drop(copy);
        assert!(across.to_vec::<u8>().unwrap().iter().all(|byte| *byte == round + 1));
        assert!(buffer.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 0xEE));
        let mut host = vec![0_u8; length as usize];
        across.fill_on(round, here.stream()).unwrap();
        across.copy_to_slice(&mut host).unwrap();
        assert!(host.iter().all(|byte| *byte == round));
    }
}

#[test]
fn a_stream_of_the_other_device_orders_what_it_cannot_reach() {
    let Some(fake) = fake() else { return };
    let pools = pools(false);
    let [here, there] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let mut buffer = Buffer::zeroed_on(handle(&pools[0]), 1 << 20, here.stream()).unwrap();
    let mut target = Buffer::new_on(handle(&pools[1]), 1 << 20, there.stream()).unwrap();
    // Nothing of the second stream's work runs, so nothing that comes after it may either.
    fake.hold(there.stream());
    buffer.fill_on(1, there.stream()).unwrap();
    target.copy_from_on(&buffer, there.stream()).unwrap();
    buffer.fill_on(2, there.stream()).unwrap();
    assert!(fake.pending(there.stream()) > 0);
    fake.resume(there.stream());
    assert!(target.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 1));
    assert!(buffer.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 2));
    // The streams in between are used again.
    let made = fake.calls("cuStreamCreateWithPriority");
    for value in 3..40 {
        buffer.fill_on(value, there.stream()).unwrap();
        there.synchronize().unwrap();
    }
    assert_eq!(fake.calls("cuStreamCreateWithPriority"), made);
}

#[test]
fn page_locked_memory_of_one_device_takes_what_is_closed_to_that_device() {
    if !two_devices("copies to memory that is page-locked through another device") {
        return;
    }
    let _device = any_device();
    let [_, far] = pools(false);
    let pinned = alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap();
    let [here, there] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    for length in [4096, 5 << 20] {
        let source = Buffer::from_slice_on(handle(&far), &pattern(length, 1), there.stream()).unwrap();
        for on in [here.stream(), there.stream(), Stream::DEFAULT] {
            let pinned: AllocatorHandle = Arc::clone(&pinned).into();
            let mut target = Buffer::zeroed_on(pinned, length, here.stream()).unwrap();
            target.copy_from_exact_on(&source, on).unwrap();
            assert!(target.to_vec::<u8>().unwrap() == pattern(length, 1), "{length} bytes on {on:?}");
        }
    }
}

#[test]
fn a_transfer_copies_and_fills_the_memory_of_another_device_on_that_device() {
    if !two_devices("work of another device's transfer") {
        return;
    }
    let _device = any_device();
    let [_, far] = pools(false);
    let transfer = CudaTransfer::of(0).unwrap();
    let [here, there] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    for length in [4096, 9 << 20] {
        let block = far.allocate(bytes(length), there.stream()).unwrap();
        let place = Place { device: far.device(), address: block.address() };
        there.synchronize().unwrap();
        for stream in [here.stream(), there.stream(), Stream::DEFAULT] {
            let (mut sent, mut back) = (pattern(length, 2), vec![0_u8; length as usize]);
            let host =
                |bytes: &mut Vec<u8>| Place { device: Device::CPU, address: Address::new(bytes.as_mut_ptr() as u64) };
            // SAFETY: all places are valid, and nobody else uses them.
            unsafe {
                transfer.copy(host(&mut sent), place, length, stream).unwrap();
                transfer.copy(place, host(&mut back), length, stream).unwrap();
                assert!(back == sent, "{length} bytes on {stream:?}");
                transfer.fill(place, length, 7, stream).unwrap();
                transfer.copy(place, host(&mut back), length, stream).unwrap();
            }
            assert!(back.iter().all(|byte| *byte == 7), "{length} bytes on {stream:?}");
        }
        release(&*far, block, there.stream());
    }
}

/// Copies that overlap in both directions, their sources and destinations dropped while they run, between kernels that
/// write late and kernels that look.
fn storm(open: bool, seed: u64) {
    let pools = pools(open);
    let streams = [0, 0, 1, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let globals = [0, 1].map(|ordinal| alloc_cuda::global(ordinal).unwrap());
    let counters = [0, 1].map(|index: usize| globals[index].allocate(bytes(8), streams[2 * index].stream()).unwrap());
    let kernels = [0, 1].map(|index: usize| Kernels::on(index as u16, counters[index], &streams[2 * index]));
    let mut random = Random(seed);
    let rounds = if on_gpu() { 3000 } else { 400 };
    for value in 1..=rounds {
        let from = random.below(2) as usize;
        let to = 1 - from;
        let [home, far] = [from, to].map(|index| &streams[2 * index + random.below(2) as usize]);
        let length = (1 + random.below(1000)) << random.below(12) << 2;
        let mut source = Buffer::new_on(handle(&pools[from]), length, home.stream()).unwrap();
        let block = |buffer: &Buffer| {
            alloc_core::Block::from_parts(buffer.address(), length, alloc_core::BlockId::from_bits(0))
        };
        kernels[from].fill(block(&source), value, random.below(100_000), home);
        source.use_on(home.stream());
        // SAFETY: the kernel before writes every byte.
        unsafe { source.assume_init(length) };
        let mut target = Buffer::new_on(handle(&pools[to]), length, far.stream()).unwrap();
        let on = [home, far][random.below(2) as usize];
        target.copy_from_exact_on(&source, on.stream()).unwrap();
        match random.below(3) {
            0 => drop(source),
            // Written again at once, behind the copy.
            1 => source.fill_on(0xFF, home.stream()).unwrap(),
            // In flight when both go.
            _ => {}
        }
        if random.below(4) > 0 {
            target.make_ready_on(far.stream()).unwrap();
            kernels[to].check(block(&target), value, far);
            target.use_on(far.stream());
        }
    }
    for stream in &streams {
        stream.synchronize().unwrap();
    }
    for (index, kernels) in kernels.iter().enumerate() {
        assert_eq!(kernels.mismatches(&streams[2 * index]), 0, "on device {index}");
    }
    drop(kernels);
    for (index, counter) in counters.into_iter().enumerate() {
        release(globals[index], counter, streams[2 * index].stream());
    }
    for pool in &pools {
        assert_eq!(pool.statistics().requested.current, 0);
        assert_eq!(pool.statistics().leaked, 0);
    }
}

#[test]
fn copies_overlap_and_buffers_drop_in_flight() {
    for (open, seed) in [(false, 0xC0FF_EE01), (true, 0xC0FF_EE02)] {
        let there_are = if open { two_peers } else { two_devices };
        if !there_are("copies that overlap") {
            continue;
        }
        let fake = fake();
        let _device = fake.is_none().then(any_device);
        if let Some(fake) = &fake {
            fake.lazy(seed);
        }
        storm(open, seed);
    }
}

#[test]
fn a_graph_captures_work_of_the_other_device() {
    if !two_devices("a graph over two devices") {
        return;
    }
    // Another test's wait for all of a device would end the capture.
    let alone = gpu_alone();
    let _device = alone.is_none().then(any_device);
    let pools = pools(false);
    let [here, there] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let mut far = Buffer::zeroed_on(handle(&pools[0]), 1 << 20, here.stream()).unwrap();
    far.make_ready_on(there.stream()).unwrap();
    let place = Place { device: far.device(), address: far.address() };
    // Captured on device 1's stream, done on device 0.
    let (graph, ()) = there
        .capture(|_recorder| {
            // SAFETY: the buffer outlives the graph, and nothing else uses it while that runs.
            unsafe { CudaTransfer::of(0).unwrap().fill(place, 1 << 20, 0x42, there.stream()) }
        })
        .unwrap();
    for _ in 0..3 {
        far.fill(0).unwrap();
        graph.launch(&there).unwrap();
        far.use_on(there.stream());
        assert!(far.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 0x42));
    }
    // What a capture used is not taken for idle work.
    far.fill_on(7, there.stream()).unwrap();
    assert!(far.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 7));
    drop(graph);
}
