//! Launches of graphs: on which stream, and what has to stay for how long.

use std::sync::Arc;

use alloc_core::{DeviceAllocator, Place, ProviderError, Transfer};
use alloc_cuda::{CapturedGraph, CudaStream, CudaTransfer, DeviceOptions, DevicePool};
use alloc_pool::PoolConfig;

use super::harness::{Living, alone, bytes, fake, release};

/// A graph of one fill, which keeps a value, and the memory that is filled.
fn fill(pool: &Arc<DevicePool>, stream: &CudaStream, kept: &Arc<()>) -> (CapturedGraph, Place) {
    let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
    let place = Place { device: pool.device(), address: block.address() };
    let (graph, ()) = stream
        .capture(|recorder| {
            let memory = recorder.allocator(Arc::clone(pool).into());
            recorder.keep(Arc::clone(kept));
            // SAFETY: the block goes with the graph.
            unsafe { CudaTransfer::of(0).unwrap().fill(place, 1 << 20, 1, stream.stream()) }.unwrap();
            release(&*memory, block, stream.stream());
            Ok::<_, ProviderError>(())
        })
        .unwrap();
    (graph, place)
}

fn pool() -> Arc<DevicePool> {
    alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap()
}

#[test]
fn a_launch_on_another_devices_default_stream_comes_after_that_streams_work() {
    let Some(fake) = fake() else { return };
    let (pool, kept) = (pool(), Arc::new(()));
    let [stream, held] = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let (graph, place) = fill(&pool, &stream, &kept);
    // The default stream of device 1 waits for this one.
    let there = CudaStream::legacy_default(1).unwrap();
    let other = alloc_cuda::device_pool(1, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let block = other.allocate(bytes(512), held.stream()).unwrap();
    fake.hold(held.stream());
    let elsewhere = Place { device: other.device(), address: block.address() };
    // SAFETY: the place is valid until the stream was waited for.
    unsafe { CudaTransfer::of(1).unwrap().fill(elsewhere, 512, 1, held.stream()) }.unwrap();
    there.wait_for(&held).unwrap();
    graph.launch(&there).unwrap();
    // SAFETY: the stand-in's memory is the process's own, and the graph has the block.
    let found = unsafe { *(place.address.get() as *const u8) };
    assert_eq!(found, 0, "the launch did not wait for the stream");
    // Nor is a launch on device 0's own default stream the last one on both.
    graph.launch(&CudaStream::legacy_default(0).unwrap()).unwrap();
    drop(graph);
    assert!(there.is_idle().unwrap(), "dropping the graph waits for its launches");
    assert_eq!(Arc::strong_count(&kept), 1);
    release(&*other, block, held.stream());
}

#[test]
fn what_a_graph_keeps_stays_if_it_is_part_of_another() {
    let _driver = alone();
    let (pool, kept) = (pool(), Arc::new(()));
    let stream = CudaStream::new(0).unwrap();
    let (inner, _) = fill(&pool, &stream, &kept);
    let outer = stream.capture(|_| inner.launch(&stream));
    // A launch of its own, which is over soon.
    inner.launch(&stream).unwrap();
    drop(inner);
    if let Ok((outer, ())) = outer {
        assert_eq!(Arc::strong_count(&kept), 2);
        assert!(pool.statistics().requested.current > 0, "the memory may be used by others");
        outer.launch(&stream).unwrap();
        stream.synchronize().unwrap();
    }
}

#[test]
fn what_a_graph_keeps_stays_if_a_launch_can_t_be_waited_for() {
    let Some(fake) = fake() else { return };
    let (pool, kept) = (pool(), Arc::new(()));
    let stream = CudaStream::new(0).unwrap();
    for (is_waited_for, kept_by) in [(true, 1), (false, 2)] {
        let (graph, _) = fill(&pool, &stream, &kept);
        let graphs = fake.living(Living::Graphs);
        fake.hold(stream.stream());
        fake.fail("cuEventRecord", 0, 304);
        if !is_waited_for {
            fake.fail("cuStreamSynchronize", 0, 304);
        }
        assert_eq!(graph.launch(&stream).unwrap_err().call, "cuEventRecord");
        assert_eq!(fake.pending(stream.stream()) > 0, !is_waited_for, "the work is under way");
        drop(graph);
        assert_eq!((Arc::strong_count(&kept), fake.living(Living::Graphs)), (kept_by, graphs + kept_by as u64 - 2));
        assert_eq!(pool.statistics().requested.current > 0, !is_waited_for);
    }
}

#[test]
fn graphs_are_made_by_drivers_that_lack_the_newer_call() {
    let Some(fake) = fake() else { return };
    let (pool, kept) = (pool(), Arc::new(()));
    let stream = CudaStream::new(0).unwrap();
    // What `cuda-link` says of a function that the driver lacks; CUDA 11.4 brought this one.
    fake.fail("cuGraphInstantiateWithFlags", 0, 36);
    let (graph, _) = fill(&pool, &stream, &kept);
    graph.launch(&stream).unwrap();
    drop(graph);
    assert_eq!(Arc::strong_count(&kept), 1);
}
