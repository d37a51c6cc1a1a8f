//! The figures of a pool: what was there when nobody looked, and what others do meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{A, KIB, MIB, Rig, join_all};

/// A look that is interrupted lasts as long as another thread needs for many thousand blocks.
#[test]
fn blocks_that_come_and_go_during_a_look_are_not_in_use_at_once() {
    const THREADS: u64 = 4;
    let (rig, is_over) = (Rig::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let come_and_go = || {
            while !is_over.load(Ordering::Relaxed) {
                let block = rig.take(64 * KIB, A);
                rig.give(block, A);
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(come_and_go)).collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            rig.figures();
        }
        is_over.store(true, Ordering::Relaxed);
        join_all(threads);
    });
    let figures = rig.figures();
    assert_eq!((figures.in_use.current, figures.requested.current), (0, 0));
    assert!(figures.in_use.peak <= THREADS * 64 * KIB, "{figures:?}");
    rig.close();
}

#[test]
fn peaks_of_small_blocks_are_known_though_nobody_looked() {
    let rig = Rig::default();
    let large = rig.take(20 * MIB, A);
    for (round, kibibytes) in [64, 16].into_iter().enumerate() {
        let small: Vec<_> = (0..kibibytes << 10).map(|_| rig.take(900, A)).collect();
        small.into_iter().for_each(|block| rig.give(block, A));
        let (peak, live) = (rig.figures().in_use.peak, 20 * MIB + kibibytes * MIB);
        // Within a part in 32, the bound of the cache, and what was in slabs.
        assert!(peak <= live && peak >= live - live / 32 - 2 * MIB, "round {round}: {peak} of {live}");
        rig.pool.reset_peaks();
        assert!(rig.figures().in_use.peak < 21 * MIB);
    }
    rig.give(large, A);
    rig.close();
}
