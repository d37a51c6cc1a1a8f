//! Memory that is made before it is needed.

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{Addressing, AllocError, DeviceAllocator};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{A, B, C, KIB, MIB, PAGE, Rig, give, simulated, take};

/// Calls that make memory, or give an address to it.
fn calls(rig: &Rig) -> (u64, u64) {
    let calls = rig.figures().provider_calls;
    (calls.create, calls.map)
}

#[test]
fn what_was_made_beforehand_serves_every_size_and_stream_without_a_call() {
    let rig = Rig::default();
    let held = rig.pool.grow_to(64 * MIB, A).unwrap();
    assert_eq!(held, 64 * MIB);
    let before = rig.figures().provider_calls;
    let blocks = [(24 * MIB, A), (20 * MIB, B), (100 * KIB, C), (8 * MIB, C)]
        .map(|(size, stream)| (rig.take(size, stream), stream));
    assert_eq!(rig.figures().provider_calls, before);
    blocks.into_iter().for_each(|(block, stream)| rig.give(block, stream));
    rig.close();
}

#[test]
fn nothing_counts_as_in_use_by_it() {
    let rig = Rig::default();
    rig.pool.grow_to(64 * MIB, A).unwrap();
    let figures = rig.figures();
    assert_eq!((figures.in_use, figures.requested), (Default::default(), Default::default()));
    assert_eq!((figures.reserved.current, figures.largest_free), (64 * MIB, 64 * MIB));
    rig.close();
}

#[test]
fn what_is_held_already_is_not_made_again() {
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let rig = Rig::new(SimulatedConfig { addressing, ..simulated() }, PoolConfig::default());
        let (kept, free) = (rig.take(20 * MIB, A), rig.take(30 * MIB, A));
        rig.give(free, A);
        let held = rig.provider.physical_bytes();
        let before = rig.provider.fallible_calls();
        assert_eq!(rig.pool.grow_to(held, A).unwrap(), held);
        assert_eq!(rig.provider.fallible_calls(), before);
        let grown = rig.pool.grow_to(80 * MIB, B).unwrap();
        assert!((80 * MIB..80 * MIB + PAGE).contains(&grown), "{grown}");
        assert_eq!(grown, rig.provider.physical_bytes());
        rig.give(kept, A);
        rig.close();
    }
}

#[test]
fn pieces_are_those_of_a_pool_that_had_as_much_in_use() {
    let rig = Rig::default();
    rig.pool.grow_to(3 << 30, A).unwrap();
    // A 192nd each, where pieces of a growing pool begin with a page.
    assert_eq!(rig.figures().provider_calls.create, 192);
    rig.close();
}

#[test]
fn it_is_kept_while_little_is_in_use() {
    let rig = Rig::default();
    rig.pool.grow_to(64 * MIB, A).unwrap();
    for round in 0..200 {
        let block = rig.take((1 + round % 7) * 3 * MIB, [A, B][round as usize % 2]);
        rig.give(block, [A, B][round as usize % 2]);
    }
    assert_eq!(rig.figures().reserved.current, 64 * MIB);
    assert_eq!(rig.pool.trim(0), 64 * MIB);
    rig.close();
}

#[test]
fn past_the_limit_or_the_device_nothing_is_made() {
    let config = PoolConfig { limit: Some(40 * MIB), ..PoolConfig::default() };
    let rig = Rig::new(SimulatedConfig { capacity: 64 * MIB, ..simulated() }, config);
    let refuse = |bytes| match rig.pool.grow_to(bytes, A) {
        Err(AllocError::OutOfMemory(figures)) => {
            assert_eq!((figures.requested, figures.limit, figures.reserved), (bytes, rig.pool.limit(), 0));
            assert_eq!(rig.figures().provider_calls.memory(), 0);
        }
        other => panic!("{other:?}"),
    };
    refuse(40 * MIB + 1);
    rig.pool.set_limit(None);
    [64 * MIB + 1, 1 << 40, u64::MAX].into_iter().for_each(refuse);
    assert_eq!(rig.pool.grow_to(64 * MIB, A).unwrap(), 64 * MIB);
    rig.close();
}

#[test]
fn what_a_full_device_had_left_stays_and_growth_is_as_before() {
    let config = PoolConfig { growth_slack: 0.0, ..PoolConfig::default() };
    let rig = Rig::new(SimulatedConfig { capacity: 32 * PAGE, ..simulated() }, config);
    let other = Pool::new(rig.provider.clone(), PoolConfig::default()).unwrap();
    let theirs = take(&other, 10 * PAGE, A);
    match rig.pool.grow_to(30 * PAGE, A) {
        Err(AllocError::OutOfMemory(figures)) => {
            assert_eq!((figures.requested, figures.in_use, figures.device_free), (30 * PAGE, 0, Some(0)));
            assert_eq!((figures.reserved, figures.largest_free), (22 * PAGE, 22 * PAGE));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((rig.figures().in_use.peak, rig.figures().reserved.current), (0, 22 * PAGE));
    rig.pool.trim(0);
    // Free pages move: had the peak stayed where it was never reached, others would be made.
    let blocks: Vec<_> = (0..8).map(|_| rig.take(PAGE, A)).collect();
    let (kept, given): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
    given.into_iter().for_each(|(_, block)| rig.give(block, A));
    let large = rig.take(4 * PAGE, A);
    assert_eq!(rig.figures().reserved.current, 8 * PAGE);
    rig.give(large, A);
    kept.into_iter().for_each(|(_, block)| rig.give(block, A));
    give(&other, theirs, A);
    drop(other);
    rig.close();
}

#[test]
fn a_stream_that_is_busy_or_captured_has_memory_made_as_well() {
    for captured in [false, true] {
        let rig = Rig::default();
        let block = rig.take(4 * MIB, A);
        rig.work(block, A);
        rig.provider.set_capturing(A, captured);
        assert!(rig.pool.grow_to(64 * MIB, A).unwrap() >= 64 * MIB);
        rig.provider.set_capturing(A, false);
        let before = calls(&rig);
        let others = rig.take(32 * MIB, B);
        rig.work(others, B);
        assert_eq!(calls(&rig), before);
        rig.give(others, B);
        rig.give(block, A);
        rig.close();
    }
}
