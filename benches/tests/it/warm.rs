//! A warm pass of the pool over host memory calls neither the global heap nor the provider.

use std::cell::Cell;

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet, forward_allocator};
use alloc_trace::{Policy, Replay, Trace};
use benches::allocators::{Heap, host_pool};
use benches::traces::folder;

use crate::counting;

/// Counts the calls of the global heap that the inner allocator makes on this thread.
#[derive(Debug)]
struct CountHeapCalls<A>(A);

thread_local! {
    static INSIDE: Cell<u64> = const { Cell::new(0) };
}

fn counted<T>(call: impl FnOnce() -> T) -> T {
    let before = counting::calls();
    let result = call();
    INSIDE.set(INSIDE.get() + counting::calls() - before);
    result
}

// SAFETY: all is answered by the allocator within.
unsafe impl<A: DeviceAllocator> DeviceAllocator for CountHeapCalls<A> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        counted(|| self.0.allocate(layout, stream))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // SAFETY: the caller's promises are those that the inner allocator asks for.
        counted(|| unsafe { self.0.release(block, stream, uses) })
    }

    forward_allocator!(self => self.0; device, statistics, trim, grow_to, transfer, retire_stream);
}

/// Heap calls and provider calls of each pass.
fn replay(name: &str, passes: u32) -> Vec<(u64, u64)> {
    let trace = Trace::load(folder().join(format!("{name}.csv.zst")), Policy::Strict).unwrap();
    let peak = trace.live().map(|point| point.live_bytes).max().unwrap();
    let allocator = CountHeapCalls(host_pool(peak, false).unwrap());
    let mut counts = Vec::new();
    INSIDE.set(0);
    Replay::new(&trace)
        .passes(passes)
        .run_with(&allocator, |report| counts.push((INSIDE.replace(0), report.provider_calls().all())))
        .unwrap();
    counts
}

#[test]
fn warm_passes_of_repeating_programs_call_neither_the_heap_nor_the_provider() {
    for name in ["gpt2_train", "llama_serve"] {
        let counts = replay(name, 3);
        assert!(counts[0].1 > 0, "{name}: the first pass takes memory from the provider");
        assert_eq!(counts[1..], [(0, 0), (0, 0)], "{name}: heap and provider calls by pass: {counts:?}");
    }
}

/// Their largest blocks take nearly all that is free, and find no room in any pass.
#[test]
fn programs_with_very_large_blocks_come_to_rest_as_well() {
    for name in ["maskrcnn_train", "moe_train"] {
        let calls: Vec<u64> = replay(name, 5).into_iter().map(|(_, provider)| provider).collect();
        assert!(calls[0] > 0 && calls[2..] == [0, 0, 0], "{name}: provider calls by pass: {calls:?}");
    }
}

#[test]
fn a_heap_that_calls_the_global_heap_is_found_out() {
    let trace = Trace::load(folder().join("prefetch_streams.csv.zst"), Policy::Strict).unwrap();
    let allocator = CountHeapCalls(Heap::new(counting::CountingHeap));
    INSIDE.set(0);
    Replay::new(&trace).run(&allocator).unwrap();
    assert_eq!(INSIDE.get(), 2 * trace.blocks().len() as u64);
}
