//! Memory that is not in use goes back to the device on request, and comes together before it does.

use alloc_core::DeviceAllocator;
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, PAGE, Rig, simulated};

#[test]
fn trimming_keeps_what_it_is_told_to() {
    let rig = Rig::default();
    let blocks: Vec<_> = (0..20).map(|_| rig.take(PAGE, A)).collect();
    blocks.into_iter().for_each(|block| rig.give(block, A));
    let reserved = rig.figures().reserved.current;
    assert_eq!(rig.pool.trim(u64::MAX), 0);
    assert_eq!(rig.pool.trim(reserved), 0);
    assert_eq!(rig.pool.trim(7 * PAGE), reserved - 7 * PAGE);
    assert_eq!(rig.provider.physical_bytes(), 7 * PAGE);
    assert_eq!(rig.pool.trim(6 * PAGE + 1), PAGE, "at most, not at least");
    assert_eq!((rig.pool.trim(0), rig.pool.trim(0)), (6 * PAGE, 0));
    assert_eq!((rig.provider.physical_bytes(), rig.provider.mapped_bytes()), (0, 0));
    rig.close();
}

#[test]
fn blocks_in_use_keep_their_pages_and_nothing_else_stays() {
    let rig = Rig::default();
    let blocks: Vec<_> = (0..40).map(|number| rig.take(if number % 8 == 0 { PAGE } else { 3 * PAGE }, A)).collect();
    let (kept, given): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.size() == PAGE);
    given.into_iter().for_each(|block| rig.give(block, A));
    let backing = |rig: &Rig| kept.iter().map(|block| rig.provider.physical_at(block.address())).collect::<Vec<_>>();
    let before = backing(&rig);
    rig.pool.trim(0);
    assert_eq!((rig.provider.physical_bytes(), backing(&rig)), (5 * PAGE, before));
    let again = rig.take(3 * PAGE, A);
    rig.work(again, A);
    rig.give(again, A);
    kept.iter().for_each(|block| rig.give(*block, A));
    rig.close();
}

#[test]
fn work_in_flight_is_waited_for() {
    let rig = Rig::default();
    let (own, shared) = (rig.take(2 * PAGE, A), rig.take(PAGE, A));
    rig.work(own, A);
    rig.work(shared, B);
    rig.give(own, A);
    rig.give_used(shared, A, &[B]);
    rig.pool.trim(0);
    assert_eq!((rig.provider.pending(A), rig.provider.pending(B), rig.provider.physical_bytes()), (0, 0, 0));
    rig.close();
}

#[test]
fn what_is_complete_is_not_waited_for() {
    let rig = Rig::default();
    let (busy, idle) = (rig.take(2 * PAGE, A), rig.take(2 * PAGE, B));
    rig.work(busy, A);
    rig.give(idle, B);
    rig.pool.trim(2 * PAGE);
    assert_eq!((rig.provider.pending(A), rig.provider.physical_bytes()), (1, 2 * PAGE));
    rig.give(busy, A);
    rig.close();
}

#[test]
fn caches_of_this_thread_are_emptied() {
    let rig = Rig::default();
    let blocks: Vec<_> = (0..200).map(|_| rig.take(2 * KIB, A)).collect();
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.pool.trim(0);
    assert_eq!((rig.figures().cached, rig.provider.physical_bytes()), (0, 0));
    rig.close();
}

#[test]
fn released_blocks_come_together_to_one_piece() {
    // Pages are never moved here, so what is reserved is one run.
    let rig = Rig::new(simulated(), PoolConfig { growth_slack: 16.0, ..PoolConfig::default() });
    let mut state = 11_u64;
    for round in 0..5 {
        let mut blocks: Vec<_> = (0..200_u64).map(|number| rig.take(65 * KIB + number * 7919 % (3 * MIB), A)).collect();
        while !blocks.is_empty() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let block = blocks.swap_remove((state >> 33) as usize % blocks.len());
            rig.give(block, A);
        }
        let figures = rig.figures();
        assert_eq!(figures.largest_free, figures.reserved.current, "in round {round}");
    }
    let whole = rig.take(rig.figures().reserved.current, A);
    rig.give(whole, A);
    rig.close();
}

#[test]
fn small_blocks_come_together_too() {
    for thread_cache in [0, 2 * MIB] {
        let config = PoolConfig { growth_slack: 16.0, thread_cache, ..PoolConfig::default() };
        let rig = Rig::new(simulated(), config);
        let blocks: Vec<_> = (0..3000_u64).map(|number| rig.take(1 + number * 131 % (64 * KIB), A)).collect();
        blocks.into_iter().rev().for_each(|block| rig.give(block, A));
        rig.pool.flush_thread_cache();
        let figures = rig.figures();
        assert_eq!((figures.cached, figures.in_use.current), (0, 0));
        assert_eq!(rig.pool.trim(0), figures.reserved.current);
        rig.close();
    }
}

#[test]
fn an_empty_slab_goes_back_though_another_of_its_class_has_room() {
    let rig = Rig::new(simulated(), PoolConfig { thread_cache: 0, ..PoolConfig::default() });
    // A slab has four blocks, a page eight slabs: all but the last are on the first page.
    let mut blocks: Vec<_> = (0..9 * 4).map(|_| rig.take(64 * KIB, A)).collect();
    assert_eq!(rig.provider.physical_bytes(), 2 * PAGE);
    let last = blocks.split_off(8 * 4);
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.give(last[0], A);
    assert_eq!((rig.pool.trim(0), rig.provider.physical_bytes()), (PAGE, PAGE));
    assert_eq!(rig.pool.breakdown().slots, 64 * KIB);
    last[1..].iter().for_each(|&block| rig.give(block, A));
    rig.close();
}

#[test]
fn small_blocks_and_blocks_that_others_used_go_back_past_a_threshold_too() {
    for thread_cache in [0, 2 * MIB] {
        let config = PoolConfig { release_threshold: Some(2 * PAGE), thread_cache, ..PoolConfig::default() };
        let rig = Rig::new(simulated(), config);
        let blocks: Vec<_> = (0..20_000).map(|_| rig.take(KIB, A)).collect();
        assert!(rig.provider.physical_bytes() > 8 * PAGE);
        blocks.into_iter().for_each(|block| rig.give(block, A));
        assert!(rig.provider.physical_bytes() <= 2 * PAGE, "{} bytes", rig.provider.physical_bytes());
        rig.close();
    }
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(0), ..PoolConfig::default() });
    let (shared, other) = (rig.take(4 * PAGE, A), rig.take(KIB, B));
    rig.give_used(shared, A, &[B]);
    assert!(rig.provider.physical_bytes() <= 2 * PAGE, "B has done nothing with it");
    rig.give(other, B);
    rig.close();
}
