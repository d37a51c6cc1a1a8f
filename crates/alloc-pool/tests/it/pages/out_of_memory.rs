//! Running out of memory is an error with true figures, told once, after which everything is as it was.

use std::sync::{Arc, Mutex};

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{
    AllocError, AllocatorEvent, Block, Device, DeviceAllocator, EventHook, Layout, OutOfMemory, ProviderErrorKind,
    Stream,
};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, PAGE, Rig, simulated};

#[derive(Debug, Default)]
struct Failures(Mutex<Vec<OutOfMemory>>);

impl EventHook for Failures {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        if let AllocatorEvent::OutOfMemory(error) = event {
            self.0.lock().unwrap().push((*error).clone());
        }
    }
}

fn small_device(pages: u64) -> (Rig, Arc<Failures>) {
    let failures = Arc::new(Failures::default());
    let config = PoolConfig { hook: Some(Arc::clone(&failures) as _), ..PoolConfig::default() };
    (Rig::new(SimulatedConfig { capacity: pages * PAGE, ..simulated() }, config), failures)
}

fn error_of(result: Result<Block, AllocError>) -> OutOfMemory {
    match result.unwrap_err() {
        AllocError::OutOfMemory(error) => *error,
        other => panic!("{other}"),
    }
}

#[test]
fn the_figures_are_true() {
    let (rig, failures) = small_device(16);
    let (large, small) = (rig.take(10 * PAGE, A), rig.take(3 * KIB, A));
    let shared = rig.take(2 * PAGE, A);
    rig.provider.set_capturing(B, true);
    rig.provider.submit(B, shared.address(), 1);
    rig.give_used(shared, A, &[B]);
    let before = rig.figures();
    let error = error_of(rig.try_take(8 * PAGE, A));
    let mut held = OutOfMemory::new(rig.pool.device(), 8 * PAGE);
    held.in_use = before.in_use.current;
    held.reserved = rig.provider.physical_bytes();
    held.largest_free = rig.figures().largest_free;
    held.parked = 2 * PAGE;
    held.device_free = Some(16 * PAGE - rig.provider.physical_bytes());
    held.device_total = Some(16 * PAGE);
    assert_eq!(error, held);
    assert_eq!(*failures.0.lock().unwrap(), [error]);
    assert_eq!((rig.figures().requested, rig.figures().in_use), (before.requested, before.in_use));
    rig.provider.set_capturing(B, false);
    rig.provider.drop_graph(B);
    rig.give(large, A);
    rig.give(small, A);
    let all = rig.take(15 * PAGE, A);
    rig.give(all, A);
    rig.close();
}

#[test]
fn nothing_is_tried_for_more_than_the_device_has() {
    let (rig, failures) = small_device(16);
    let (kept, idle) = (rig.take(2 * PAGE, A), rig.take(5 * PAGE, A));
    rig.give(idle, A);
    let (before, calls) = (rig.figures(), rig.provider.calls());
    let error = error_of(rig.try_take(16 * PAGE + 1, A));
    assert_eq!((error.requested, error.device_total), (16 * PAGE + 1, Some(16 * PAGE)));
    assert_eq!(*failures.0.lock().unwrap(), [error]);
    assert!(rig.pool.grow_to(16 * PAGE + 1, A).unwrap_err().is_out_of_memory());
    assert_eq!(failures.0.lock().unwrap().len(), 2, "the hook is told of that as well");
    let mut after = before;
    after.misses += 1;
    assert_eq!(rig.figures(), after);
    assert_eq!(rig.provider.calls(), calls);
    rig.give(kept, A);
    // All that it has can be had.
    let all = rig.take(16 * PAGE, A);
    rig.give(all, A);
    rig.close();
}

#[test]
fn what_was_created_in_vain_goes_back_past_the_threshold() {
    for (threshold, kept) in [(None, 16), (Some(8 * PAGE), 8), (Some(0), 6)] {
        let config = PoolConfig { release_threshold: threshold, ..PoolConfig::default() };
        let rig = Rig::new(SimulatedConfig { capacity: 16 * PAGE, ..simulated() }, config);
        let block = rig.take(6 * PAGE, A);
        let error = error_of(rig.try_take(12 * PAGE, A));
        assert_eq!((error.in_use, error.reserved), (6 * PAGE, 16 * PAGE));
        assert_eq!(rig.figures().reserved.current, kept * PAGE, "{threshold:?}");
        rig.give(block, A);
        rig.close();
    }
}

#[test]
fn the_largest_free_piece_can_be_had() {
    let (rig, _) = small_device(8);
    let mut blocks = Vec::new();
    while let Ok(block) = rig.try_take(700 * KIB, A) {
        blocks.push(block);
    }
    for block in blocks.split_off(blocks.len() / 2).into_iter().step_by(2) {
        rig.give(block, A);
    }
    let error = error_of(rig.try_take(6 * PAGE, A));
    assert!(error.largest_free >= 700 * KIB);
    let largest = rig.take(error.largest_free, A);
    rig.give(largest, A);
    rig.close();
}

#[test]
fn a_small_block_is_told_of_once_and_served_from_the_last_scraps() {
    let (rig, failures) = small_device(4);
    let mut blocks = Vec::new();
    while let Ok(block) = rig.try_take(60 * KIB, A) {
        blocks.push(block);
    }
    assert_eq!(failures.0.lock().unwrap().len(), 1);
    let served: u64 = blocks.iter().map(|block| block.size()).sum();
    assert!(served >= 4 * PAGE - 256 * KIB, "{served} of {}", 4 * PAGE);
    // What is left is good for something smaller.
    let mut left = 0;
    while let Ok(block) = rig.try_take(512, A) {
        left += 1;
        blocks.push(block);
    }
    let figures = rig.figures();
    assert_eq!(figures.in_use.current, 4 * PAGE, "{left} scraps");
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

#[test]
fn what_other_threads_cache_is_not_lost() {
    let (rig, _) = small_device(4);
    std::thread::scope(|scope| {
        let (warmed, wait_warmed) = std::sync::mpsc::channel();
        let (asked, wait_asked) = std::sync::mpsc::channel::<()>();
        let pool = &rig;
        let thread = scope.spawn(move || {
            let blocks: Vec<_> = (0..64).map(|_| pool.take(4 * KIB, A)).collect();
            blocks.into_iter().for_each(|block| pool.give(block, A));
            warmed.send(()).unwrap();
            wait_asked.recv().unwrap();
            let block = pool.take(512, A);
            pool.give(block, A);
        });
        wait_warmed.recv().unwrap();
        assert!(rig.try_take(4 * PAGE, A).is_err(), "the other thread has not been asked yet");
        asked.send(()).unwrap();
        thread.join().unwrap();
    });
    let all = rig.take(4 * PAGE, A);
    rig.give(all, A);
    rig.close();
}

#[test]
fn sizes_no_arena_could_hold_are_too_large() {
    let rig = Rig::default();
    for size in [1 << 42, 1 << 50, (1 << 62) + 1, i64::MAX as u64 - 255] {
        let error = rig.try_take(size, A).unwrap_err();
        let AllocError::TooLarge { requested, maximum, device } = error else { panic!("{error}") };
        assert_eq!((requested, device), (size, rig.pool.device()));
        assert!(maximum < size);
    }
    let error = rig.pool.allocate(Layout::new(1, 1 << 50).unwrap(), A).unwrap_err();
    assert!(matches!(error, AllocError::TooLarge { requested: 1, .. }), "{error}");
    assert_eq!(rig.figures().requested.count, 0);
    rig.close();
}

#[test]
fn addresses_that_cannot_be_reserved_are_tried_for_in_smaller_ranges() {
    let provider = SimulatedConfig { address_space: 4 << 30, ..simulated() };
    let rig = Rig::new(provider, PoolConfig { address_space: Some(1 << 40), ..PoolConfig::default() });
    let block = rig.take(100 * MIB, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.close();
}

#[test]
fn no_addresses_at_all_is_an_error_and_not_the_end() {
    let rig = Rig::default();
    rig.provider.fail_always(Some(ProviderErrorKind::OutOfMemory));
    assert!(rig.try_take(PAGE, A).unwrap_err().is_out_of_memory());
    assert!(rig.try_take(10, A).unwrap_err().is_out_of_memory());
    rig.provider.cancel_failures();
    let block = rig.take(PAGE, A);
    rig.give(block, A);
    rig.close();
}

/// As many blocks as fit in 16,000 MiB live, of up to 1,024 MiB each, on a device that has an eighth more: far more
/// than what is free in one piece is always free in pieces, and those that are whole have to be moved.
#[test]
fn random_blocks_always_fit_a_device_an_eighth_larger_than_they_are() {
    for seed in 1..3_u64 {
        let rig = Rig::new(SimulatedConfig { capacity: 18_000 * MIB, ..simulated() }, PoolConfig::default());
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) % below
        };
        let (mut live, mut bytes): (Vec<Block>, u64) = (Vec::new(), 0);
        for step in 0..8_000 {
            let size = 1 + random(1024 * MIB);
            if random(100) < 73 && bytes + size <= 16_000 * MIB {
                let block = rig.try_take(size, A);
                live.push(block.unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}")));
                bytes += size;
            } else if !live.is_empty() {
                let block = live.swap_remove(random(live.len() as u64) as usize);
                bytes -= block.size();
                rig.give(block, A);
            }
        }
        assert!(rig.provider.physical_bytes() <= 18_000 * MIB);
        live.into_iter().for_each(|block| rig.give(block, A));
        rig.close();
    }
}

#[test]
fn free_memory_beside_a_block_in_the_arena_of_small_blocks_can_be_had() {
    const PAGES: u64 = 12;
    let config = PoolConfig { thread_cache: 24 * MIB, ..PoolConfig::default() };
    let rig = Rig::new(SimulatedConfig { capacity: PAGES * PAGE, ..simulated() }, config);
    // A pool that was larger before gets a large piece for its first small block.
    let all = rig.take(PAGES * PAGE, A);
    rig.give(all, A);
    rig.pool.trim(0);
    let small = rig.take(KIB, A);
    let piece = rig.figures().reserved.current / PAGE;
    assert!(piece >= 4, "{piece} pages");
    let own = rig.take((PAGES - piece) * PAGE, A);
    let guest = rig.take((piece - 2) * PAGE, A);
    assert_eq!(rig.figures().reserved.current, PAGES * PAGE);
    rig.give(own, A);
    // Nearly two pages lie beside the guest; the others are moved there.
    let beside = rig.take((PAGES - piece + 1) * PAGE, A);
    assert_eq!(beside.address(), guest.address().checked_add(guest.size()).unwrap());
    [small, guest, beside].into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

/// Blocks of whole pages fill an empty pool to the last page, whatever came before and whenever another pool of the
/// device had this one give memory back; but for the rare case that a piece of several pages, used in part, has too few
/// addresses beside it.
#[test]
fn an_empty_pool_can_be_filled_with_blocks_of_whole_pages() {
    const PAGES: u64 = 64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % below
    };
    let mut short = 0;
    for turn in 0..50 {
        let provider = SimulatedConfig { capacity: PAGES * PAGE, ..simulated() };
        let rig = Rig::new(provider, PoolConfig { thread_cache: random(2) * MIB, ..PoolConfig::default() });
        let mut fill_and_empty = |size: u64, stream: Stream| {
            let mut relieve = |of: u64| {
                if random(of) < 1 {
                    rig.pool.trim(rig.figures().reserved.current.saturating_sub(random(10) * PAGE));
                }
                random(1 << 20) as usize
            };
            let mut live = Vec::new();
            while let Ok(block) = rig.try_take(size, stream) {
                live.push(block);
                relieve(100);
            }
            let filled = live.len() as u64;
            while !live.is_empty() {
                let at = relieve(400) % live.len();
                rig.give(live.swap_remove(at), stream);
            }
            filled
        };
        for round in 0..3 {
            fill_and_empty([32 * KIB, 60 * KIB, 3 * MIB, 21 * MIB][(turn + round) % 4], A);
            let pages = 1 + (turn * 7 + round) as u64 % 16;
            let (filled, whole) = (fill_and_empty(pages * PAGE, B), PAGES / pages);
            assert!(filled + 1 >= whole, "turn {turn}, round {round}: {filled} of {whole} blocks of {pages} pages");
            short += u64::from(filled < whole);
        }
        rig.close();
    }
    assert!(short <= 3, "{short} of 150 were not filled");
}

#[test]
fn within_a_small_limit_small_blocks_keep_little_of_it() {
    const SMALL_PAGE: u64 = 64 * KIB;
    let provider = SimulatedConfig { granularity: SMALL_PAGE, ..simulated() };
    let rig = Rig::new(provider, PoolConfig { limit: Some(40 * SMALL_PAGE), ..PoolConfig::default() });
    // The pool may grow to its peak again at once.
    let largest = rig.take(38 * SMALL_PAGE, A);
    rig.give(largest, A);
    rig.pool.trim(0);
    let small: Vec<_> = (0..32).map(|_| rig.take(60 * KIB, A)).collect();
    let (kept, gone): (Vec<_>, Vec<_>) = small.into_iter().enumerate().partition(|(index, _)| index % 16 == 0);
    gone.into_iter().for_each(|(_, block)| rig.give(block, A));
    let large = rig.take(30 * SMALL_PAGE, A);
    rig.give(large, A);
    kept.into_iter().for_each(|(_, block)| rig.give(block, A));
    rig.close();
}

/// Free pieces of several pages are not moved to where small blocks live. Each of these was three misses, which empty all caches.
#[test]
fn small_blocks_are_cached_though_all_free_memory_is_in_large_pieces() {
    const PAGES: u64 = 32;
    for limit in [None, Some(PAGES * PAGE)] {
        let capacity = if limit.is_some() { 64 } else { 1 } * PAGES * PAGE;
        let rig = Rig::new(SimulatedConfig { capacity, ..simulated() }, PoolConfig { limit, ..PoolConfig::default() });
        let all = rig.take(PAGES * PAGE, A);
        rig.give(all, A);
        assert!(rig.figures().provider_calls.create < PAGES, "pieces of several pages");
        let small: Vec<_> = (0..5000).map(|_| rig.take(KIB, A)).collect();
        let figures = rig.figures();
        assert!(figures.hits > 4000 && figures.misses < 1000, "{} hits, {} misses", figures.hits, figures.misses);
        assert!(figures.reserved.current <= PAGES * PAGE);
        small.into_iter().for_each(|block| rig.give(block, A));
        rig.close();
    }
}
