//! Blocks that other streams use wait until that work is complete.

use alloc_core::DeviceAllocator;
use alloc_pool::PoolConfig;

use super::{roomy, tight};
use crate::support::{A, B, C, KIB, PAGE, Rig, simulated};

const SIZES: [u64; 3] = [4 * KIB, 100 * KIB, 3 * PAGE];

#[test]
fn a_block_used_elsewhere_is_not_reused_before_that_work_is_complete() {
    for size in SIZES {
        for by_release in [false, true] {
            let rig = roomy();
            let block = rig.take(size, A);
            rig.work(block, B);
            if by_release {
                rig.give(block, B);
            } else {
                rig.give_used(block, A, &[B]);
            }
            assert!(rig.figures().parked.current >= size);
            let other = rig.take(size, A);
            rig.work(other, A);
            assert_ne!(other.address(), block.address());
            assert_eq!(rig.provider.pending(B), 1);
            rig.provider.complete_everything();
            rig.close();
        }
    }
}

#[test]
fn each_stream_that_uses_a_block_gets_one_event_and_its_own_none() {
    let rig = roomy();
    let block = rig.take(PAGE, A);
    for stream in [A, B, C] {
        rig.provider.submit_read(stream, block.address(), PAGE);
    }
    let before = rig.provider.calls().record;
    rig.give_used(block, A, &[A, B, C]);
    assert_eq!(rig.provider.calls().record - before, 2);
    assert_eq!(rig.figures().parked.current, PAGE);
    rig.provider.complete_all(B);
    rig.pool.flush_thread_cache();
    let other = rig.take(PAGE, A);
    assert_eq!(rig.figures().parked.current, PAGE, "one of two streams is not enough");
    rig.provider.complete_all(C);
    rig.provider.complete_all(A);
    rig.give(other, A);
    rig.close();
}

#[test]
fn work_that_is_complete_at_release_parks_nothing() {
    for size in SIZES {
        let rig = roomy();
        let block = rig.take(size, A);
        rig.work(block, B);
        rig.provider.complete_everything();
        rig.give_used(block, A, &[B]);
        assert_eq!((rig.figures().parked.current, rig.provider.calls().query), (0, 0));
        rig.close();
    }
}

#[test]
fn parked_blocks_are_looked_through_before_the_pool_grows() {
    for size in SIZES {
        let rig = roomy();
        let mut blocks: Vec<_> = (0..32).map(|_| rig.take(size, A)).collect();
        rig.pool.flush_thread_cache();
        for block in blocks.drain(..) {
            rig.work(block, B);
            rig.give_used(block, A, &[B]);
        }
        rig.provider.complete_all(B);
        let reserved = rig.figures().reserved.current;
        let again: Vec<_> = (0..32).map(|_| rig.take(size, A)).collect();
        assert_eq!(rig.figures().reserved.current, reserved, "{size}");
        for block in again {
            rig.give(block, A);
        }
        rig.close();
    }
}

#[test]
fn parked_blocks_are_waited_for_before_memory_runs_out() {
    // By the stream itself if the block is a large one, else by the host.
    for (size, by_host) in [(PAGE, false), (50 * KIB, true)] {
        let rig = Rig::new(simulated(), PoolConfig { limit: Some(4 * PAGE), ..PoolConfig::default() });
        let mut blocks = Vec::new();
        while let Ok(block) = rig.try_take(size, A) {
            blocks.push(block);
        }
        let count = blocks.len();
        for block in blocks.drain(..) {
            rig.work(block, B);
            rig.give_used(block, A, &[B]);
        }
        let again: Vec<_> = (0..count).map(|_| rig.take(size, A)).collect();
        assert_eq!((rig.provider.pending(B) == 0, rig.provider.calls().wait == 0), (by_host, by_host), "{size}");
        for block in again {
            rig.work(block, A);
            rig.give(block, A);
        }
        rig.close();
    }
}

#[test]
fn many_parked_blocks_are_looked_through_without_a_miss() {
    let rig = roomy();
    let blocks: Vec<_> = (0..1000).map(|_| rig.take(100 * KIB, A)).collect();
    let misses = rig.figures().misses;
    for block in blocks {
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
        rig.provider.complete_all(B);
    }
    assert!(rig.figures().parked.peak <= 64 * (100 * KIB + 512), "{}", rig.figures().parked.peak);
    assert_eq!(rig.figures().misses, misses);
    rig.close();
}

#[test]
fn a_parked_block_goes_home() {
    // The memory of a small block that B gives back is A's again: no order is needed to reuse it.
    let rig = tight();
    let blocks: Vec<_> = (0..200).map(|_| rig.take(2 * KIB, A)).collect();
    let reserved = rig.figures().reserved.current;
    for block in blocks {
        rig.work(block, B);
        rig.give(block, B);
    }
    rig.provider.complete_all(B);
    rig.pool.flush_thread_cache();
    for _ in 0..200 {
        let block = rig.take(2 * KIB, A);
        rig.work(block, A);
    }
    assert_eq!((rig.figures().reserved.current, rig.provider.calls().wait), (reserved, 0));
    rig.close();
}

#[test]
fn events_go_back_when_they_are_over() {
    let rig = tight();
    for size in SIZES {
        let block = rig.take(size, A);
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
    }
    assert_eq!(rig.provider.live_events(), SIZES.len());
    rig.provider.complete_everything();
    let block = rig.take(8 * PAGE, A);
    assert_eq!(rig.provider.live_events(), 0);
    rig.give(block, A);
    rig.close();
}

#[test]
fn small_blocks_of_the_same_streams_share_events() {
    let rig = roomy();
    let blocks: Vec<_> = (0..640).map(|_| rig.take(4 * KIB, A)).collect();
    let _known = [rig.take(PAGE, B), rig.take(PAGE, C)];
    rig.provider.submit_read(B, blocks[0].address(), KIB);
    rig.provider.submit_read(C, blocks[0].address(), KIB);
    for (number, &block) in blocks.iter().enumerate() {
        rig.provider.submit_read(B, block.address(), KIB);
        let uses: &[_] = if number % 2 == 0 { &[B] } else { &[B, C] };
        rig.give_used(block, A, uses);
    }
    let (record, query, _) = rig.stream_calls();
    assert!(record < 150 && query < 150, "{record} events and {query} questions for 640 blocks");
    assert_eq!(rig.figures().parked.current, 640 * 4 * KIB, "none is complete");
    rig.provider.complete_all(B);
    let _ = rig.take(PAGE, A);
    assert_eq!(rig.figures().parked.current, 320 * 4 * KIB, "C was only submitted something before the others");
    rig.provider.complete_all(C);
    rig.close();
}

#[test]
fn where_work_is_complete_again_nothing_is_put_off() {
    let rig = roomy();
    let _known = rig.take(PAGE, B);
    let take_used = |complete: bool| {
        let block = rig.take(4 * KIB, A);
        rig.work(block, B);
        if complete {
            rig.provider.complete_everything();
        }
        rig.give_used(block, A, &[B]);
    };
    (0..8).for_each(|_| take_used(false));
    // What is put off from now on is complete once it is looked at, and from then on nothing is.
    (0..32).for_each(|_| take_used(true));
    assert_eq!(rig.figures().parked.current, 0);
    rig.close();
}

#[test]
fn a_stream_that_ends_is_recorded_for_what_it_used() {
    let rig = roomy();
    for stream in [B, C] {
        let _known = rig.take(PAGE, stream);
        let blocks: Vec<_> = (0..8).map(|_| rig.take(4 * KIB, A)).collect();
        for &block in &blocks {
            rig.work(block, stream);
            rig.give_used(block, A, &[stream]);
        }
        let events = rig.provider.live_events();
        rig.pool.retire_stream(stream);
        assert!(rig.provider.live_events() > events, "before the stream is gone");
        let events = rig.provider.calls().record;
        rig.provider.complete_all(stream);
        let _ = rig.take(PAGE, A);
        assert_eq!((rig.provider.calls().record, rig.figures().parked.current), (events, 0));
    }
    rig.close();
}

#[test]
fn a_stream_that_only_uses_blocks_is_recorded_at_once_and_never_again_once_it_is_gone() {
    let rig = roomy();
    let blocks: Vec<_> = (0..4).map(|_| rig.take(4 * KIB, A)).collect();
    let before = rig.provider.calls().record;
    for &block in &blocks {
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
    }
    assert_eq!(rig.provider.calls().record - before, 4);
    rig.pool.retire_stream(B);
    assert_eq!(rig.provider.calls().record - before, 5, "its end, for blocks that come back later");
    let _ = rig.take(4 * PAGE, A);
    assert_eq!(rig.provider.calls().record - before, 5);
    assert_eq!(rig.figures().parked.current, 4 * 4 * KIB);
    rig.close();
}
