//! Physical memory grows within its budget and never past its limit.

use std::time::Instant;

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{AllocError, Block, DeviceAllocator};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, PAGE, Rig, simulated};

/// Traffic of all sizes on two streams that holds up to `most` bytes; failures are shrugged off.
fn traffic(rig: &Rig, seed: u64, most: u64, mut after_each: impl FnMut(&Rig)) {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut live: Vec<(Block, _)> = Vec::new();
    let mut bytes = 0;
    for _ in 0..1500 {
        let size = [random(8 * KIB), random(200 * KIB), random(6 * MIB), 2 * MIB][random(4) as usize];
        let stream = [A, B][random(2) as usize];
        while !live.is_empty() && bytes + size > most {
            let (block, stream) = live.swap_remove(random(live.len() as u64) as usize);
            bytes -= block.size();
            rig.give(block, stream);
        }
        if let Ok(block) = rig.try_take(size, stream) {
            bytes += size;
            live.push((block, stream));
        }
        after_each(rig);
    }
    live.into_iter().for_each(|(block, stream)| rig.give(block, stream));
}

#[test]
fn nothing_is_taken_before_it_is_asked_for() {
    let rig = Rig::default();
    assert_eq!((rig.provider.physical_bytes(), rig.provider.fallible_calls()), (0, 1), "only asked how much there is");
    rig.close();
}

#[test]
fn the_limit_is_never_passed() {
    for limit in [24 * MIB, 33 * MIB + 1] {
        let rig = Rig::new(simulated(), PoolConfig { limit: Some(limit), ..PoolConfig::default() });
        // More is asked for than the limit allows.
        traffic(&rig, 3, 40 * MIB, |rig| assert!(rig.provider.physical_bytes() <= limit));
        assert!(rig.provider.peak_physical_bytes() > limit / 2);
        rig.close();
    }
}

#[test]
fn a_request_past_the_limit_says_so_and_loses_nothing() {
    let limit = 16 * PAGE;
    let rig = Rig::new(simulated(), PoolConfig { limit: Some(limit), ..PoolConfig::default() });
    let held = rig.take(12 * PAGE, A);
    let before = rig.figures();
    let Err(AllocError::OutOfMemory(error)) = rig.try_take(5 * PAGE, A) else { panic!("served past the limit") };
    assert_eq!((error.limit, error.requested, error.in_use), (Some(limit), 5 * PAGE, 12 * PAGE));
    assert_eq!((rig.figures().requested, rig.figures().in_use), (before.requested, before.in_use));
    let fits = rig.take(4 * PAGE, A);
    rig.give(fits, A);
    rig.give(held, A);
    let all = rig.take(16 * PAGE, A);
    rig.give(all, A);
    rig.close();
}

#[test]
fn whole_pages_stay_within_the_budget() {
    for slack in [0.0, 0.02, 0.25] {
        let config = PoolConfig {
            growth_slack: slack,
            growth_slack_moving: 0.0,
            growth_slack_thrashing: 0.0,
            ..PoolConfig::default()
        };
        let rig = Rig::new(simulated(), config);
        let mut live: Vec<Block> = Vec::new();
        let mut state = 5_u64;
        let (mut bytes, mut peak) = (0, 0);
        for _ in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = (1 + (state >> 33) % 9) * PAGE;
            while bytes + size > 200 * PAGE {
                let block = live.swap_remove((state >> 40) as usize % live.len());
                bytes -= block.size();
                rig.give(block, A);
            }
            live.push(rig.take(size, A));
            bytes += size;
            peak = peak.max(bytes);
            let budget = (peak as f64 * (1.0 + slack)) as u64 + PAGE;
            let reserved = rig.provider.physical_bytes();
            assert!(reserved <= budget, "{reserved} reserved for a peak of {peak} with slack {slack}");
        }
        live.into_iter().for_each(|block| rig.give(block, A));
        rig.close();
    }
}

/// Makes a pool serve blocks of so many pages at random while at most 512 pages are in use, all of which are released after so many
/// blocks. The moves of those after the first blocks, and the peak of reserved bytes over the peak in use.
fn unrest(growth_slack_thrashing: f64, (blocks, round): ([u64; 2], u64), pages: fn(u64) -> u64) -> (u64, f64) {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack_thrashing, ..PoolConfig::default() });
    let (mut live, mut used, mut state) = (Vec::<Block>::new(), 0, 3_u64);
    let mut served = 0;
    let [_, moves] = blocks.map(|blocks| {
        let before = rig.figures().moves;
        for _ in 0..blocks {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = pages(state >> 33);
            while used + size > 512 || (served == round && !live.is_empty()) {
                let block = live.swap_remove((state >> 40) as usize % live.len());
                used -= block.size() / PAGE;
                rig.give(block, A);
            }
            served = served % round + 1;
            live.push(rig.take(size * PAGE, A));
            used += size;
        }
        rig.figures().moves - before
    });
    live.into_iter().for_each(|block| rig.give(block, A));
    let (reserved, in_use) = (rig.figures().reserved.peak, rig.figures().in_use.peak);
    rig.close();
    (moves, reserved as f64 / in_use as f64)
}

#[test]
fn a_pool_that_thrashes_grows_until_it_does_not() {
    let run =
        |growth_slack_thrashing| unrest(growth_slack_thrashing, ([20_000, 5000], u64::MAX), |random| 1 + random % 64);
    let (moves_without, without) = run(0.0);
    let (moves_with, with) = run(1.0);
    assert!(moves_with * 4 < moves_without, "{moves_with} moves instead of {moves_without}");
    assert!(without < with && with < 2.1, "{with} of the peak instead of {without}");
}

#[test]
fn a_pool_that_toils_round_after_round_grows_a_little() {
    // One block in twelve is of a size of its own, and leaves gaps between those that are all alike.
    let pages = |random| if random % 12 == 0 { 8 + random / 12 % 17 } else { 16 };
    let run = |growth_slack_thrashing| unrest(growth_slack_thrashing, ([60_000, 5000], 3000), pages);
    let (moves_without, without) = run(0.0);
    let (moves_with, with) = run(1.0);
    assert!(moves_with * 4 < moves_without, "{moves_with} moves instead of {moves_without}");
    assert!(without < with && with < 1.3, "{with} of the peak instead of {without}");
}

#[test]
fn a_request_that_failed_does_not_widen_the_budget() {
    let config = || PoolConfig {
        limit: Some(256 * PAGE),
        growth_slack: 0.02,
        growth_slack_thrashing: 0.0,
        ..PoolConfig::default()
    };
    let (rig, other) = (Rig::new(simulated(), config()), Rig::new(simulated(), config()));
    assert!(rig.try_take(10_000 * PAGE, A).is_err());
    traffic(&rig, 9, 64 * MIB, |_| ());
    traffic(&other, 9, 64 * MIB, |_| ());
    // The addresses that the failed request was planned for are in pieces, so not every page lies where it would.
    let (reserved, usual) = (rig.figures().reserved.peak, other.figures().reserved.peak);
    assert!(reserved <= usual + 2 * PAGE, "{reserved} instead of {usual}");
    rig.close();
    other.close();
}

#[test]
fn pieces_grow_with_the_pool() {
    let config = PoolConfig { pieces_per_peak: 16, growth_slack: 0.25, max_piece: 64 * MIB, ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    let blocks: Vec<_> = (0..2000).map(|_| rig.take(2 * MIB, A)).collect();
    let creations = rig.provider.calls().create;
    assert!((16..=200).contains(&creations), "{creations} pieces for 4 GB");
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

#[test]
fn what_is_free_past_the_threshold_goes_back_as_it_is_released() {
    let threshold = 4 * PAGE;
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(threshold), ..PoolConfig::default() });
    let blocks: Vec<_> = (0..16).map(|_| rig.take(PAGE, A)).collect();
    for (number, block) in blocks.into_iter().enumerate() {
        rig.give(block, A);
        let in_use = (15 - number as u64) * PAGE;
        let reserved = rig.provider.physical_bytes();
        assert!(reserved <= in_use.max(threshold), "{reserved} reserved, {in_use} in use");
    }
    assert_eq!(rig.provider.physical_bytes(), threshold);
    rig.close();
}

#[test]
fn a_release_past_the_threshold_waits_for_nothing() {
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(0), ..PoolConfig::default() });
    let (busy, idle) = (rig.take(4 * PAGE, A), rig.take(4 * PAGE, B));
    rig.work(busy, A);
    rig.give(busy, A);
    assert_eq!(rig.provider.pending(A), 1, "a release waited for the stream");
    assert!(rig.provider.is_backed(busy.address(), busy.size()));
    rig.provider.complete_all(A);
    rig.give(idle, B);
    assert_eq!(rig.provider.physical_bytes(), 0, "what could not go then goes now");
    rig.pool.trim(0);
    rig.close();
}

#[test]
fn blocks_that_were_parked_count_against_the_threshold_too() {
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(0), ..PoolConfig::default() });
    let (shared, own) = (rig.take(4 * PAGE, A), rig.take(4 * PAGE, A));
    rig.work(shared, B);
    rig.give_used(shared, A, &[B]);
    rig.provider.complete_all(B);
    rig.give(own, A);
    rig.pool.trim(0);
    assert_eq!(rig.provider.physical_bytes(), 0);
    rig.close();
}

/// A request that would have the pool grow past its budget is given up and made again: what was done for it is undone page by page,
/// which took hundreds of milliseconds when each page was looked for from the first block on.
#[test]
fn giving_up_a_large_request_takes_no_time_for_each_block_there_is() {
    let provider = SimulatedConfig { granularity: 64 * KIB, capacity: 64 << 30, ..simulated() };
    let rig = Rig::new(provider, PoolConfig { growth_slack: 0.2, ..PoolConfig::default() });
    let start = Instant::now();
    let blocks: Vec<_> = (0..40_000_u64).map(|number| rig.take(100 * KIB + number % 100 * KIB, A)).collect();
    let filled = start.elapsed();
    let (kept, gone): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(number, _)| number % 3 > 0);
    gone.into_iter().for_each(|(_, block)| rig.give(block, A));
    let free = rig.take(1000 * MIB, A);
    rig.give(free, A);
    let start = Instant::now();
    let large = rig.take(1900 * MIB, A);
    let missed = start.elapsed();
    // About as long as that; it was a hundred times as long.
    assert!(missed < 15 * filled, "{missed:?}, and all blocks together {filled:?}");
    rig.give(large, A);
    kept.into_iter().for_each(|(_, block)| rig.give(block, A));
    rig.close();
}
