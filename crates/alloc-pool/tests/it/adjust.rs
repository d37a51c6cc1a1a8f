//! A pool in use can be given another limit, and its peaks can be counted anew.

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{Addressing, AllocError, DeviceAllocator};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, Rig, simulated};

#[test]
fn a_limit_holds_from_when_it_is_set() {
    let rig = Rig::new(simulated(), PoolConfig { limit: Some(64 * MIB), ..PoolConfig::default() });
    assert_eq!(rig.pool.limit(), Some(64 * MIB));
    let first = rig.take(32 * MIB, A);
    rig.pool.set_limit(Some(40 * MIB));
    match rig.try_take(16 * MIB, A) {
        Err(AllocError::OutOfMemory(figures)) => assert_eq!(figures.limit, Some(40 * MIB)),
        other => panic!("{other:?}"),
    }
    rig.pool.set_limit(None);
    let second = rig.take(128 * MIB, A);
    rig.give(first, A);
    rig.give(second, A);
}

#[test]
fn a_limit_below_what_is_held_takes_nothing_away() {
    let rig = Rig::new(simulated(), PoolConfig::default());
    let block = rig.take(32 * MIB, A);
    rig.pool.set_limit(Some(MIB));
    rig.give(block, A);
    let again = rig.take(32 * MIB, A);
    rig.give(again, A);
    assert!(rig.pool.trim(0) >= 32 * MIB);
    assert!(rig.try_take(32 * MIB, A).is_err());
}

#[test]
fn what_a_lowered_limit_leaves_can_be_had_though_more_is_held() {
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let rig = Rig::new(SimulatedConfig { addressing, ..simulated() }, PoolConfig::default());
        let kept = rig.take(4 * MIB, A);
        let blocks: Vec<_> = (0..6).map(|_| rig.take(20 * MIB, A)).collect();
        blocks.into_iter().for_each(|block| rig.give(block, A));
        rig.pool.set_limit(Some(60 * MIB));
        // None of what is free is as large where each piece has an address of its own.
        let large = rig.take(40 * MIB, A);
        if addressing == Addressing::Segmented {
            assert!(rig.provider.physical_bytes() <= 60 * MIB);
        }
        rig.give(large, A);
        rig.give(kept, A);
        rig.close();
    }
}

#[test]
fn peaks_are_counted_from_what_is_there() {
    let rig = Rig::new(simulated(), PoolConfig::default());
    let (large, small) = (rig.take(64 * MIB, A), rig.take(8 * MIB, A));
    rig.give(large, A);
    rig.pool.trim(0);
    rig.pool.reset_peaks();
    let statistics = rig.pool.statistics();
    assert_eq!(statistics.requested.peak, 8 * MIB);
    assert_eq!(statistics.in_use.peak, 8 * MIB);
    assert_eq!(statistics.reserved.peak, statistics.reserved.current);
    assert!(statistics.reserved.peak < 64 * MIB);
    rig.give(small, A);
}

#[test]
fn the_peak_of_what_is_parked_is_counted_anew_for_blocks_of_every_size() {
    for size in [8 * MIB, 60 * KIB] {
        let rig = Rig::default();
        let shared = rig.take(size, A);
        rig.work(shared, B);
        rig.give_used(shared, A, &[B]);
        assert!(rig.figures().parked.peak >= size);
        rig.provider.complete_everything();
        rig.pool.trim(0);
        rig.pool.reset_peaks();
        let parked = rig.figures().parked;
        assert_eq!((parked.current, parked.peak), (0, 0), "{size} bytes");
        assert!(parked.total >= size);
        rig.close();
    }
}
