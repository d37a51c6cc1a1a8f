//! Free memory goes to another stream only when its work is complete, or when that stream was made to wait.

use super::{roomy, tight};
use crate::support::{A, B, C, KIB, MIB, PAGE};

const SIZES: [u64; 8] = [0, 100, 512, 4 * KIB, 60 * KIB, 100 * KIB, MIB, 5 * MIB];

#[test]
fn one_stream_alone_asks_nothing_of_its_stream() {
    let rig = tight();
    for round in 0..20 {
        let blocks: Vec<_> = SIZES.iter().cycle().take(40 + round).map(|size| rig.take(*size, A)).collect();
        for (number, block) in blocks.into_iter().enumerate() {
            if block.size() > 0 {
                rig.work(block, A);
            }
            if number % 7 != 0 {
                rig.give(block, A);
            }
        }
    }
    assert_eq!(rig.stream_calls(), (0, 0, 0));
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn releases_record_nothing_until_another_stream_wants_the_memory() {
    let rig = tight();
    let blocks: Vec<_> = (0..64).map(|_| rig.take(MIB, A)).collect();
    for block in blocks {
        rig.work(block, A);
        rig.give(block, A);
    }
    assert_eq!(rig.stream_calls(), (0, 0, 0));
    let crossed = rig.take(MIB, B);
    rig.work(crossed, B);
    let (record, _, wait) = rig.stream_calls();
    assert!((1..=2).contains(&record), "{record} events for one crossing");
    assert_eq!(wait, 1);
    rig.close();
}

#[test]
fn streams_that_take_turns_keep_to_their_own_memory_and_ask_nothing() {
    let rig = tight();
    let fill = |size: u64| -> Vec<_> { (0..64).map(|i| (rig.take(size, [A, B][i % 2]), [A, B][i % 2])).collect() };
    let release = |blocks: Vec<_>| {
        for (block, stream) in blocks {
            rig.work(block, stream);
            rig.give(block, stream);
        }
    };
    release(fill(MIB));
    let before = rig.stream_calls();
    for _ in 0..10 {
        release(fill(MIB));
    }
    assert_eq!(rig.stream_calls(), before);
    rig.close();
}

#[test]
fn a_stream_waits_rather_than_have_the_pool_grow_past_its_budget() {
    // Whole pages, and pieces of a page whose rest stays in use.
    for (size, count) in [(4 * PAGE, 1), (MIB, 8), (300 * KIB, 30)] {
        let rig = tight();
        let mut blocks: Vec<_> = (0..2 * count).map(|_| rig.take(size, A)).collect();
        let reserved = rig.figures().reserved.current;
        let kept = blocks.split_off(count);
        for block in blocks {
            rig.work(block, A);
            rig.give(block, A);
        }
        let crossed: Vec<_> = (0..count).map(|_| rig.take(size, B)).collect();
        for block in &crossed {
            rig.work(*block, B);
        }
        assert_eq!(rig.figures().reserved.current, reserved, "grew for {count} of {size}");
        assert!(rig.provider.calls().wait >= 1);
        assert_eq!(rig.provider.pending(A), count, "nothing was waited for by the host");
        for block in kept {
            rig.give(block, A);
        }
        rig.close();
    }
}

#[test]
fn within_its_budget_the_pool_grows_rather_than_have_a_stream_wait() {
    let rig = roomy();
    let block = rig.take(4 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    let other = rig.take(4 * PAGE, B);
    rig.work(other, B);
    assert_eq!((rig.provider.calls().wait, rig.figures().reserved.current), (0, 8 * PAGE));
    rig.close();
}

#[test]
fn memory_whose_work_is_complete_is_taken_without_a_wait() {
    let rig = tight();
    let block = rig.take(4 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.provider.complete_all(A);
    let same = rig.take(4 * PAGE, B);
    rig.work(same, B);
    assert_eq!((rig.provider.calls().wait, rig.figures().reserved.current), (0, 4 * PAGE));
    rig.close();
}

#[test]
fn memory_whose_work_is_complete_is_preferred_to_waiting() {
    for swapped in [false, true] {
        let rig = tight();
        let (busy, idle) = if swapped { (C, A) } else { (A, C) };
        let (first, between, second) = (rig.take(2 * PAGE, A), rig.take(PAGE, A), rig.take(2 * PAGE, C));
        rig.work(first, A);
        rig.work(second, C);
        rig.give(first, A);
        rig.give(second, C);
        rig.provider.complete_all(idle);
        let taken = rig.take(2 * PAGE, B);
        rig.work(taken, B);
        assert_eq!(rig.provider.calls().wait, 0);
        assert_eq!((rig.provider.pending(busy), rig.figures().reserved.current), (1, 5 * PAGE));
        rig.give(between, A);
        rig.close();
    }
}

#[test]
fn a_wait_reaches_as_far_as_the_work_before_the_release() {
    let rig = tight();
    let block = rig.take(2 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    let crossed = rig.take(2 * PAGE, B);
    rig.work(crossed, B);
    assert!(!rig.provider.complete_next(B), "comes after what A still does");
    assert!(rig.provider.complete_next(A) && rig.provider.complete_next(B));
    rig.close();
}

#[test]
fn what_is_left_of_a_page_that_moved_still_knows_its_stream() {
    // A page of A moves to another place for a small part of it; the rest must not go to B unordered.
    let rig = tight();
    let (low, high) = (rig.take(3 * PAGE, A), rig.take(3 * PAGE, A));
    rig.work(low, A);
    rig.give(low, A);
    let large = rig.take(2 * PAGE + 600 * KIB, A);
    let small: Vec<_> = (0..20).map(|_| rig.take(40 * KIB, A)).collect();
    let others: Vec<_> = (0..8).map(|_| rig.take(100 * KIB, B)).collect();
    for block in others {
        rig.work(block, B);
    }
    for block in small.into_iter().chain([large, high]) {
        rig.give(block, A);
    }
    rig.close();
}
