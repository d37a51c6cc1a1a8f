//! The figures of a pool that others use meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{A, KIB, Rig};

/// A look that is interrupted lasts as long as another thread needs for many thousand blocks.
#[test]
fn blocks_that_come_and_go_during_a_look_are_not_in_use_at_once() {
    const THREADS: u64 = 4;
    let (rig, is_over) = (Rig::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let block = rig.take(64 * KIB, A);
                    rig.give(block, A);
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            rig.figures();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let figures = rig.figures();
    assert_eq!((figures.in_use.current, figures.requested.current), (0, 0));
    assert!(figures.in_use.peak <= THREADS * 64 * KIB, "{figures:?}");
    rig.close();
}
