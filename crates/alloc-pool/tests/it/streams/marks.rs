//! Events of busy streams: what is behind them is done with before the stream is idle, and is waited for by itself.

use std::time::Instant;

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{Block, DeviceAllocator, Layout};
use alloc_pool::PoolConfig;

use super::tight;
use crate::support::{A, B, C, KIB, PAGE, Rig, simulated};

#[test]
fn a_stream_waits_for_no_more_than_was_submitted_before_the_release() {
    let rig = tight();
    let (block, other) = (rig.take(2 * PAGE, A), rig.take(PAGE, B));
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    rig.work(other, B);
    let crossed = rig.take(2 * PAGE, C);
    rig.work(crossed, C);
    assert_eq!((crossed.address(), rig.provider.calls().wait), (block.address(), 1));
    assert!(!rig.provider.complete_next(C), "comes after what B did with the block");
    assert!(rig.provider.complete_next(B) && rig.provider.complete_next(C));
    assert_eq!(rig.provider.pending(B), 1, "and not after what B did later");
    rig.give(other, B);
    rig.close();
}

#[test]
fn the_block_that_was_released_first_is_waited_for() {
    for swapped in [false, true] {
        let rig = tight();
        let (one, between, two) = (rig.take(2 * PAGE, A), rig.take(PAGE, A), rig.take(2 * PAGE, A));
        let (first, second) = if swapped { (two, one) } else { (one, two) };
        for block in [first, second] {
            rig.work(block, B);
            rig.give_used(block, A, &[B]);
        }
        let crossed = rig.take(2 * PAGE, C);
        rig.work(crossed, C);
        assert_eq!(crossed.address(), first.address());
        assert!(rig.provider.complete_next(B) && rig.provider.complete_next(C));
        rig.give(between, A);
        rig.close();
    }
}

#[test]
fn a_blocks_own_stream_waits_too_rather_than_have_the_pool_grow() {
    let rig = tight();
    let block = rig.take(2 * PAGE, A);
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    assert_eq!(rig.figures().parked.current, 2 * PAGE);
    let again = rig.take(2 * PAGE, A);
    rig.work(again, A);
    let figures = rig.figures();
    assert_eq!((figures.reserved.current, figures.parked.current), (2 * PAGE, 0), "it is parked no more");
    assert_eq!((rig.provider.calls().wait, rig.provider.pending(B)), (1, 1), "the host waited for nothing");
    rig.close();
}

#[test]
fn what_is_complete_is_not_held_up_by_what_lies_beside_it() {
    let rig = tight();
    let (done, busy) = (rig.take(PAGE, A), rig.take(PAGE, B));
    rig.work(done, B);
    rig.give_used(done, A, &[B]);
    rig.provider.complete_everything();
    rig.work(busy, B);
    rig.give(busy, B);
    let crossed = rig.take(PAGE, C);
    rig.work(crossed, C);
    assert_eq!(crossed.address(), done.address());
    assert!(rig.provider.complete_next(C), "comes after nothing that is still to be done");
    assert_eq!(rig.provider.pending(B), 1);
    rig.close();
}

#[test]
fn places_of_several_streams_are_joined_by_waits() {
    // One after the other in memory; none is large enough alone.
    let rig = tight();
    let blocks: Vec<_> = [A, B, A, B].map(|stream| (rig.take(2 * PAGE, stream), stream)).into();
    for &(block, stream) in &blocks {
        rig.work(block, stream);
        rig.give_used(block, stream, &[A, B]);
    }
    let reserved = rig.figures().reserved.current;
    let whole = rig.take(8 * PAGE, C);
    rig.work(whole, C);
    assert_eq!(rig.figures().reserved.current, reserved);
    assert_eq!((rig.figures().moves, rig.provider.pending(A), rig.provider.pending(B)), (0, 2, 2));
    rig.close();
}

/// Blocks that B still uses when A wants the next one, and bytes held at the end for each byte in use.
fn run_ahead(growth_slack_waiting: f64, completes: bool) -> f64 {
    let config = PoolConfig { growth_slack: 0.0, growth_slack_waiting, ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    for _ in 0..200 {
        let block = rig.take(8 * PAGE, A);
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
        if completes {
            rig.provider.complete_everything();
        }
    }
    let figures = rig.figures();
    rig.provider.complete_everything();
    rig.close();
    figures.reserved.peak as f64 / figures.in_use.peak as f64
}

#[test]
fn where_the_host_is_far_ahead_there_is_more_memory_to_wait_less() {
    let ratio = run_ahead(1.0, false);
    assert!((1.9..=2.0).contains(&ratio), "{ratio}");
    assert_eq!(run_ahead(0.0, false), 1.0);
    assert_eq!(run_ahead(1.0, true), 1.0, "a device that keeps up gets no more");
}

#[test]
fn events_do_not_pile_up() {
    let rig = tight();
    for _ in 0..1000 {
        let block = rig.take(2 * PAGE, A);
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
    }
    assert!(rig.provider.live_events() < 300, "{}", rig.provider.live_events());
    assert_eq!(rig.provider.pending(B), 1000);
    rig.provider.complete_everything();
    rig.pool.trim(0);
    assert_eq!((rig.provider.live_events(), rig.figures().parked.current), (0, 0));
    rig.close();
}

#[test]
fn few_events_are_asked() {
    let rig = tight();
    for _ in 0..256 {
        let block = rig.take(2 * PAGE, A);
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
        rig.provider.complete_all(B);
    }
    let (record, query, _) = rig.stream_calls();
    assert!(record >= 256 && query < record, "{query} questions about {record} events");
    rig.close();
}

#[test]
fn what_a_busy_stream_released_itself_is_marked_by_the_next_that_waits() {
    let rig = tight();
    let (shared, own, more) = (rig.take(2 * PAGE, A), rig.take(3 * PAGE, B), rig.take(PAGE, B));
    for block in [shared, own] {
        rig.work(block, B);
    }
    rig.give_used(shared, A, &[B]);
    rig.give(own, B);
    let waits = rig.take(2 * PAGE, A);
    rig.work(more, B);
    let crossed = rig.take(3 * PAGE, C);
    rig.work(crossed, C);
    assert_eq!(crossed.address(), own.address());
    assert!(rig.provider.complete_next(B) && rig.provider.complete_next(B));
    assert!(rig.provider.complete_next(C), "it need not wait for what B did since");
    assert_eq!(rig.provider.pending(B), 1);
    rig.give(waits, A);
    rig.give(more, B);
    rig.close();
}

#[test]
fn large_blocks_that_come_and_go_leave_each_other_room() {
    // Steps of four blocks of one size at most, of which the first is copied to and the others are computed in, and another
    // size in the next step. Wherever the first comes to lie the others have to find room without pages that move.
    let rig = tight();
    let mut moves = 0;
    for step in 0..400_u64 {
        let (worker, size) = ([B, C][step as usize % 2], (1 + 7 * step % 31) * PAGE);
        let copied = rig.take(size, A);
        rig.work(copied, A);
        let mut last = None;
        for _ in 0..3 {
            let (product, result) = (rig.take(size, worker), rig.take(size, worker));
            rig.work(product, worker);
            rig.work(result, worker);
            rig.give(product, worker);
            if let Some(last) = last.replace(result) {
                rig.give(last, worker);
            }
        }
        rig.give_used(copied, A, &[worker]);
        last.into_iter().for_each(|last| rig.give(last, worker));
        if step == 100 {
            moves = rig.figures().moves;
        }
        if step % 10 == 9 {
            rig.provider.complete_everything();
        }
    }
    let figures = rig.figures();
    assert_eq!(figures.moves, moves, "of pages, once all sizes were there");
    assert!(figures.reserved.peak <= figures.in_use.peak + PAGE, "{figures:?}");
    rig.close();
}

#[test]
fn a_stream_whose_events_are_over_is_asked_by_itself() {
    for is_busy in [false, true] {
        let rig = tight();
        let (shared, block) = (rig.take(PAGE, A), rig.take(4 * PAGE, A));
        rig.work(shared, B);
        rig.give_used(shared, A, &[B]);
        rig.provider.complete_everything();
        // Finds out that the event is over, and frees nothing.
        rig.pool.trim(u64::MAX);
        rig.work(block, A);
        if !is_busy {
            rig.provider.complete_everything();
        }
        rig.give(block, A);
        let before = rig.stream_calls();
        let crossed = rig.take(5 * PAGE, C);
        rig.work(crossed, C);
        let after = rig.stream_calls();
        assert_eq!(crossed.address(), shared.address(), "all that there is");
        let calls = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert_eq!(calls, if is_busy { (1, 1, 1) } else { (0, 1, 0) }, "events, questions, waits");
        assert_eq!(rig.provider.complete_next(C), !is_busy);
        rig.provider.complete_everything();
        rig.give(crossed, C);
        rig.close();
    }
}

#[test]
fn what_another_stream_takes_of_a_parked_block_is_parked_no_more() {
    for lead in 1..3 {
        let rig = tight();
        let (before, block) = (rig.take(lead * PAGE, A), rig.take(4 * PAGE, A));
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
        // Of one of the two the first page is left.
        let part = rig.pool.allocate(Layout::new(2 * PAGE, 2 * PAGE).unwrap(), C).unwrap();
        let figures = rig.figures();
        let held = figures.in_use.current + figures.parked.current;
        assert!(held <= figures.reserved.current, "{held} of {}", figures.reserved.current);
        rig.give(part, C);
        rig.give(before, A);
        rig.close();
    }
}

#[test]
fn a_release_takes_no_time_for_each_block_that_is_parked() {
    let rig = Rig::new(SimulatedConfig { capacity: 1 << 40, ..simulated() }, PoolConfig::default());
    let blocks: Vec<_> = (0..16_000).map(|_| rig.take(128 * KIB, A)).collect();
    rig.work(blocks[0], B);
    // The shortest of several parts, as the others may have been interrupted.
    let release = |blocks: &[Block]| {
        let parts = blocks.chunks(50).map(|blocks| {
            let start = Instant::now();
            blocks.iter().for_each(|&block| rig.give_used(block, A, &[B]));
            start.elapsed()
        });
        parts.min().unwrap()
    };
    let first = release(&blocks[..500]);
    release(&blocks[500..15_500]);
    let last = release(&blocks[15_500..]);
    // It was a hundred times as long.
    assert!(last < 8 * first, "{first:?} for the first of them and {last:?} for the last");
    assert_eq!(rig.figures().parked.current, 16_000 * 128 * KIB);
    rig.close();
}
