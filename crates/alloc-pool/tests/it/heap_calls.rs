//! The warm path asks the global heap for nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use alloc_core::DeviceAllocator;
use alloc_core::conformance::SimulatedProvider;
use alloc_pool::{Pool, PoolConfig};

use crate::support::{A, B, KIB, MIB, Rig, give, simulated, take};

/// The system's heap, counted for each thread, so that tests that run beside this one don't count.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that ends has no counter any more.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    let _ = BYTES.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

fn calls() -> u64 {
    CALLS.get()
}

#[test]
fn the_counter_counts() {
    let before = calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(calls() - before, 2);
}

const SIZES: [u64; 12] =
    [0, 1, 700, 4 * KIB, 9 * KIB, 33 * KIB, 64 * KIB, 65 * KIB, 300 * KIB, MIB, 5 * MIB, 2 * MIB + 1];

#[test]
fn mixed_traffic_on_two_streams_makes_no_heap_call() {
    // Large blocks on one of them only: what the other had would have to be asked for.
    let rig = Rig::default();
    let mut live = Vec::with_capacity(64);
    let mut round = || {
        let mut state = 3_u64;
        for _ in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = SIZES[(state >> 33) as usize % SIZES.len()];
            let stream = if size <= 64 * KIB && state >> 62 == 0 { B } else { A };
            live.push((rig.take(size, stream), stream));
            if live.len() == 64 {
                let (block, stream) = live.swap_remove((state >> 40) as usize % 64);
                rig.give(block, stream);
            }
        }
        for (block, stream) in live.drain(..) {
            rig.give(block, stream);
        }
    };
    (0..10).for_each(|_| round());
    let (before, provider) = (calls(), rig.provider.fallible_calls());
    (0..5).for_each(|_| round());
    assert_eq!((calls() - before, rig.provider.fallible_calls() - provider), (0, 0));
    rig.close();
}

#[test]
fn one_stream_makes_no_heap_call_at_all() {
    let rig = Rig::default();
    let mut live = Vec::with_capacity(64);
    let mut round = || {
        for size in SIZES.iter().cycle().take(60) {
            live.push(rig.take(*size, A));
        }
        for block in live.drain(..).rev() {
            rig.give(block, A);
        }
        for size in SIZES {
            for _ in 0..50 {
                let block = rig.take(size, A);
                rig.give(block, A);
            }
        }
    };
    (0..10).for_each(|_| round());
    let (before, provider) = (calls(), rig.provider.fallible_calls());
    (0..20).for_each(|_| round());
    assert_eq!((calls() - before, rig.provider.fallible_calls() - provider), (0, 0));
    rig.close();
}

#[test]
fn releases_of_other_threads_blocks_make_no_heap_call() {
    let rig = Rig::default();
    // This thread has the stream; what it releases was taken elsewhere.
    let warm: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
    warm.into_iter().for_each(|block| rig.give(block, A));
    for round in 0..8 {
        let blocks = std::thread::scope(|scope| {
            scope.spawn(|| SIZES.iter().cycle().take(120).map(|size| rig.take(*size, A)).collect::<Vec<_>>()).join()
        })
        .unwrap();
        let before = calls();
        for block in &blocks {
            rig.give(*block, A);
        }
        let made = calls() - before;
        // Lists of arenas grow at first.
        assert!(made == 0 || round < 4, "{made} in round {round}");
    }
    rig.close();
}

#[test]
fn a_thread_that_empties_its_caches_keeps_nothing_of_them() {
    let rig = Rig::default();
    let once = || {
        for stream in [A, B] {
            let block = rig.take(4 * KIB, stream);
            rig.give(block, stream);
        }
        rig.pool.flush_thread_cache();
    };
    (0..100).for_each(|_| once());
    let before = BYTES.get();
    (0..1000).for_each(|_| once());
    let kept = BYTES.get() - before;
    assert!(kept < 16 << 10, "{kept} bytes of 2000 caches");
    rig.close();
}

#[test]
fn pools_that_are_gone_leave_nothing_with_the_thread() {
    let once = || {
        let pool = Pool::new(SimulatedProvider::new(simulated()), PoolConfig::default()).unwrap();
        for stream in [A, B] {
            for size in SIZES {
                let block = take(&pool, size, stream);
                give(&pool, block, stream);
            }
        }
        pool.trim(0);
    };
    (0..20).for_each(|_| once());
    let before = BYTES.get();
    (0..200).for_each(|_| once());
    let kept = BYTES.get() - before;
    assert!(kept < 64 << 10, "{kept} bytes of 200 pools");
}
