//! Streams that are dear to ask and always idle are waited for without being asked.

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{Block, DeviceAllocator, Stream};
use alloc_pool::PoolConfig;

use crate::support::{A, B, C, KIB, MIB, PAGE, Rig, simulated};

/// How often a stream has to be idle before it is trusted, and is waited for before it is asked again.
const TURNS: usize = 16;

/// A pool that may grow, where asking is dear or not.
fn roomy(is_idle_dear: bool) -> Rig {
    let provider = SimulatedConfig { is_idle_dear, ..simulated() };
    Rig::new(provider, PoolConfig { growth_slack: 16.0, ..PoolConfig::default() })
}

/// Memory of A goes to B and back, `times` times, with nothing under way.
fn cross(rig: &Rig, times: usize) {
    for _ in 0..times {
        for stream in [A, B] {
            let block = rig.take(2 * PAGE, stream);
            rig.work(block, stream);
            rig.give(block, stream);
            rig.provider.complete_all(stream);
        }
    }
}

/// B takes memory of A, on which work is under way.
fn cross_busy(rig: &Rig) -> Block {
    let block = rig.take(2 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    let crossed = rig.take(2 * PAGE, B);
    rig.work(crossed, B);
    crossed
}

#[test]
fn a_trusted_stream_is_waited_for_and_not_asked() {
    let rig = roomy(true);
    cross(&rig, TURNS);
    assert_eq!(rig.figures().reserved.current, 2 * PAGE, "idle streams hand everything over");
    assert_eq!(rig.provider.calls().wait, 0);
    // The block itself crosses from B back to A, whose work was complete.
    let (block, before) = (rig.take(2 * PAGE, A), rig.stream_calls());
    rig.work(block, A);
    rig.give(block, A);
    let crossed = rig.take(2 * PAGE, B);
    rig.work(crossed, B);
    let after = rig.stream_calls();
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (1, 0, 1), "{before:?} {after:?}");
    assert_eq!(rig.figures().reserved.current, 2 * PAGE);
    rig.give(crossed, B);
    rig.close();
}

#[test]
fn where_asking_takes_no_time_streams_are_always_asked() {
    let rig = roomy(false);
    cross(&rig, 4 * TURNS);
    let crossed = cross_busy(&rig);
    assert_eq!((rig.provider.calls().wait, rig.figures().reserved.current), (0, 4 * PAGE), "grew");
    rig.give(crossed, B);
    rig.close();
}

#[test]
fn a_stream_is_trusted_only_after_it_was_idle_many_times_in_a_row() {
    let rig = roomy(true);
    cross(&rig, TURNS - 2);
    let crossed = cross_busy(&rig);
    assert_eq!((rig.provider.calls().wait, rig.figures().reserved.current), (0, 4 * PAGE), "grew");
    rig.give(crossed, B);
    rig.close();
}

/// A stream that stays busy is found out, and is not waited for any more.
#[test]
fn trust_ends_with_a_stream_that_is_busy() {
    let rig = roomy(true);
    cross(&rig, TURNS);
    let mut crossed = Vec::new();
    for _ in 0..8 * TURNS {
        crossed.push(cross_busy(&rig));
    }
    let waits = rig.provider.calls().wait;
    assert!((1..=2 * TURNS as u64).contains(&waits), "{waits}");
    crossed.push(cross_busy(&rig));
    assert_eq!(rig.provider.calls().wait, waits, "it is busy, as before");
    for block in crossed {
        rig.give(block, B);
    }
    rig.close();
}

/// The provider notes what would become part of the capture.
#[test]
fn a_trusted_stream_is_not_waited_for_while_it_is_captured() {
    for captured in [A, B, C] {
        let rig = roomy(true);
        cross(&rig, TURNS);
        let (known, block) = (rig.take(PAGE, C), rig.take(2 * PAGE, A));
        rig.work(block, A);
        rig.give(block, A);
        let before = rig.stream_calls();
        rig.provider.set_capturing(captured, true);
        let crossed = rig.take(2 * PAGE, B);
        let after = rig.stream_calls();
        let expected = if captured == C { 1 } else { 0 };
        assert_eq!(after.2 - before.2, expected, "{captured:?}: {before:?} {after:?}");
        rig.provider.set_capturing(captured, false);
        for (block, stream) in [(crossed, B), (known, C)] {
            rig.give(block, stream);
        }
        rig.close();
    }
}

#[test]
fn a_new_stream_is_not_trusted_for_the_one_before() {
    let rig = roomy(true);
    cross(&rig, TURNS);
    rig.pool.retire_stream(A);
    let block = rig.take(2 * PAGE, C);
    rig.work(block, C);
    rig.give(block, C);
    let crossed = rig.take(2 * PAGE, B);
    rig.work(crossed, B);
    assert_eq!((rig.provider.calls().wait, rig.figures().reserved.current), (0, 4 * PAGE), "grew");
    rig.give(crossed, B);
    rig.close();
}

/// Random traffic of streams that are idle most of the time. The provider sees whether anything overlaps.
#[test]
fn trusted_streams_never_overlap() {
    let rig = Rig::new(
        SimulatedConfig { is_idle_dear: true, granularity: 64 * KIB, ..simulated() },
        PoolConfig { growth_slack: 0.0, ..PoolConfig::default() },
    );
    let streams = [A, B, C, Stream::from_raw(4)];
    let mut live: Vec<(Block, Stream)> = Vec::new();
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for step in 0..12_000 {
        let stream = streams[random(streams.len())];
        if live.len() > 24 || !live.is_empty() && random(2) == 0 {
            let (block, stream) = live.swap_remove(random(live.len()));
            rig.give(block, stream);
        } else {
            let block = rig.take((1 + random(32) as u64) * 48 * KIB, stream);
            rig.work(block, stream);
            live.push((block, stream));
        }
        // Long stretches of idle streams, and some in which one lags behind.
        if step % 3000 < 2500 {
            rig.provider.complete_everything();
        } else if random(4) == 0 {
            rig.provider.complete_next(stream);
        }
    }
    assert!(rig.provider.calls().wait > 0, "{:?}", rig.provider.calls());
    assert!(rig.figures().reserved.peak < 64 * MIB);
    for (block, stream) in live {
        rig.give(block, stream);
    }
    rig.close();
}
