//! Streams end; what was theirs is handed on.

use alloc_core::{AllocError, DeviceAllocator, Layout, ProviderErrorKind, Stream};

use super::{roomy, tight};
use crate::support::{A, B, C, KIB, PAGE};

const NEXT: Stream = Stream::with_identity(1, 1);

#[test]
fn a_retired_streams_memory_goes_to_the_next_stream_that_comes() {
    for size in [10 * KIB, 3 * PAGE] {
        let rig = roomy();
        let blocks: Vec<_> = (0..8).map(|_| rig.take(size, A)).collect();
        for block in blocks {
            rig.work(block, A);
            rig.give(block, A);
        }
        rig.provider.complete_all(A);
        let reserved = rig.figures().reserved.current;
        rig.pool.retire_stream(A);
        let (waits, cached) = (rig.provider.calls().wait, rig.figures().cached);
        let blocks: Vec<_> = (0..8).map(|_| rig.take(size, NEXT)).collect();
        for block in blocks {
            rig.work(block, NEXT);
        }
        assert_eq!((rig.figures().reserved.current, rig.provider.calls().wait), (reserved, waits), "{cached}");
        rig.close();
    }
}

#[test]
fn what_a_retired_stream_still_does_is_waited_for_by_its_successor() {
    let rig = tight();
    for size in [10 * KIB, 3 * PAGE] {
        let block = rig.take(size, A);
        rig.work(block, A);
        rig.give(block, A);
    }
    rig.pool.retire_stream(A);
    assert_eq!(rig.provider.live_events(), 1, "the point up to which it had come");
    for size in [10 * KIB, 3 * PAGE] {
        let block = rig.take(size, NEXT);
        rig.work(block, NEXT);
    }
    assert_eq!(rig.provider.calls().wait, 1);
    assert!(!rig.provider.complete_next(NEXT));
    rig.close();
}

#[test]
fn retirement_asks_for_one_event() {
    let rig = tight();
    // One that allocated nothing may have used others' blocks.
    for stream in [A, B] {
        if stream == B {
            let block = rig.take(PAGE, B);
            rig.give(block, B);
        }
        let (records, queries, waits) = rig.stream_calls();
        rig.pool.retire_stream(stream);
        rig.pool.retire_stream(stream);
        assert_eq!(rig.stream_calls(), (records + 1, queries, waits));
    }
    rig.close();
}

#[test]
fn blocks_outlive_their_stream() {
    // Owners that are dropped late give their blocks back on a stream that is gone.
    for size in [0, 10 * KIB, 3 * PAGE] {
        for pending in [false, true] {
            let rig = tight();
            let block = rig.take(size, A);
            if size > 0 {
                rig.work(block, A);
            }
            if !pending {
                rig.provider.complete_all(A);
            }
            rig.pool.retire_stream(A);
            let records = rig.provider.calls().record;
            rig.give(block, A);
            assert_eq!(rig.provider.calls().record, records, "nothing is recorded on a stream that is gone");
            let other = rig.take(size, B);
            if size > 0 {
                rig.work(other, B);
            }
            rig.give(other, B);
            rig.close();
        }
    }
}

#[test]
fn what_a_retired_stream_still_does_with_anothers_block_is_waited_for() {
    let rig = roomy();
    let block = rig.take(PAGE, A);
    let foreign = rig.take(512, B);
    rig.work(block, B);
    rig.pool.retire_stream(B);
    rig.give_used(block, A, &[B]);
    assert_eq!(rig.figures().parked.current, PAGE);
    let other = rig.take(PAGE, A);
    rig.work(other, A);
    rig.provider.complete_all(B);
    rig.give(other, A);
    rig.give(foreign, A);
    rig.pool.trim(0);
    assert_eq!(rig.figures().parked.current, 0);
    rig.close();
}

#[test]
fn a_name_that_comes_back_is_not_taken_for_the_stream_that_had_it() {
    // B uses A's block, ends, and a new stream has its handle: A's block still waits for the old one.
    let rig = roomy();
    let block = rig.take(PAGE, A);
    let own = rig.take(PAGE, B);
    rig.work(block, B);
    rig.work(own, B);
    rig.give(own, B);
    rig.pool.retire_stream(B);
    rig.give_used(block, A, &[B]);
    let reborn = rig.take(PAGE, B);
    let other = rig.take(PAGE, A);
    rig.work(other, A);
    assert_eq!(rig.provider.pending(B), 2);
    rig.give(reborn, B);
    rig.give(other, A);
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn a_stream_that_has_an_old_ones_handle_comes_after_it() {
    // The simulation takes equal names for one stream, so what is asked for is looked at, not what it prevents.
    let rig = tight();
    let block = rig.take(PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.pool.retire_stream(A);
    let (record, _, wait) = rig.stream_calls();
    let block = rig.take(PAGE, A);
    assert_eq!(rig.provider.calls().wait, wait + 1, "the new stream is not known to come after the old one");
    assert_eq!(rig.provider.calls().record, record, "an event of the new stream says nothing of the old one");
    rig.give(block, A);
    rig.close();
}

#[test]
fn a_block_of_a_stream_that_is_gone_is_not_the_new_ones_own() {
    // The block's memory is handed on to NEXT together with all that A had; the new A uses it, releases it, and NEXT
    // must not get it before that work is done.
    for size in [10 * KIB, 3 * PAGE] {
        let rig = roomy();
        let block = rig.take(size, A);
        rig.pool.retire_stream(A);
        let next = rig.take(512, NEXT);
        let reborn = rig.take(512, A);
        rig.work(block, A);
        rig.give(block, A);
        rig.pool.flush_thread_cache();
        let other = rig.take(size, NEXT);
        rig.work(other, NEXT);
        for (block, stream) in [(next, NEXT), (reborn, A), (other, NEXT)] {
            rig.give(block, stream);
        }
        rig.provider.assert_clean();
        rig.provider.complete_everything();
        rig.close();
    }
}

#[test]
fn streams_may_come_and_go_for_ever() {
    let rig = tight();
    let mut reserved = 0;
    for number in 0..500 {
        let stream = Stream::with_identity(7, number);
        for size in [512, 10 * KIB, PAGE] {
            let block = rig.take(size, stream);
            rig.work(block, stream);
            rig.give(block, stream);
        }
        if number % 50 != 0 {
            rig.provider.complete_all(stream);
        }
        rig.pool.retire_stream(stream);
        if number == 10 {
            reserved = rig.figures().reserved.current;
        }
    }
    assert_eq!(rig.figures().reserved.current, reserved);
    let pending = 10;
    assert!(rig.provider.live_events() <= pending, "{} events of streams long gone", rig.provider.live_events());
    rig.provider.complete_everything();
    for stream in [C, NEXT] {
        let block = rig.take(PAGE, stream);
        rig.give(block, stream);
        rig.pool.retire_stream(stream);
    }
    assert_eq!(rig.provider.live_events(), 0);
    rig.close();
}

#[test]
fn a_name_that_comes_back_has_what_was_left_under_it() {
    let rig = roomy();
    for stream in [A, B] {
        let block = rig.take(PAGE, stream);
        rig.give(block, stream);
    }
    rig.pool.retire_stream(A);
    rig.pool.retire_stream(B);
    let again = rig.take(PAGE, A);
    rig.provider.set_capturing(A, true);
    // Whoever takes over what was B's has nothing to do with A, which can't be asked.
    let next = rig.take(PAGE, C);
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    rig.give(again, A);
    rig.give(next, C);
    rig.close();
}

#[test]
fn a_stream_is_not_forgotten_as_long_as_nobody_took_over_what_it_left() {
    let rig = roomy();
    let later = |number| Stream::with_identity(9, number);
    for stream in [A, later(0)] {
        let block = rig.take(PAGE, stream);
        rig.give(block, stream);
    }
    rig.pool.retire_stream(A);
    rig.pool.retire_stream(later(0));
    // So many that the first would be forgotten.
    for number in 1..1 << 16 {
        let block = rig.take(0, later(number));
        rig.give(block, later(number));
        rig.pool.retire_stream(later(number));
    }
    // A stands for one that is gone, and must not be asked.
    rig.provider.set_capturing(A, true);
    let blocks = [B, C].map(|stream| rig.take(PAGE, stream));
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    blocks.into_iter().zip([B, C]).for_each(|(block, stream)| rig.give(block, stream));
    rig.close();
}

#[test]
fn a_stream_that_ended_again_is_not_forgotten_with_its_earlier_end() {
    let rig = roomy();
    let later = Stream::from_raw(9);
    for _ in 0..1 << 15 {
        for stream in [A, later] {
            let block = rig.take(0, stream);
            rig.give(block, stream);
            rig.pool.retire_stream(stream);
        }
    }
    let block = rig.take(PAGE, A);
    rig.pool.retire_stream(A);
    // What A left is taken over, and some more streams end, so that the earliest ends are forgotten.
    let kept = [B, C].map(|stream| rig.take(0, stream));
    for number in 0..4 {
        let stream = Stream::with_identity(9, 1 + number);
        let block = rig.take(0, stream);
        rig.give(block, stream);
        rig.pool.retire_stream(stream);
    }
    rig.provider.set_capturing(A, true);
    rig.give_used(block, B, &[A]);
    assert_eq!(rig.figures().parked.current, 0, "A is gone, and all that it did is complete");
    rig.provider.set_capturing(A, false);
    kept.into_iter().zip([B, C]).for_each(|(block, stream)| rig.give(block, stream));
    rig.close();
}

#[test]
fn a_stream_that_only_used_blocks_is_not_asked_when_it_is_gone() {
    for size in [4 * KIB, PAGE] {
        let rig = tight();
        let block = rig.take(size, A);
        rig.work(block, B);
        rig.pool.retire_stream(B);
        let records = rig.provider.calls().record;
        // It stands for one that is gone.
        rig.provider.set_capturing(B, true);
        rig.give_used(block, A, &[B]);
        rig.provider.set_capturing(B, false);
        assert_eq!((rig.provider.calls().record, rig.figures().parked.current), (records, block.size()));
        assert!(rig.provider.pending(B) > 0);
        rig.pool.trim(0);
        assert_eq!(
            (rig.figures().parked.current, rig.provider.pending(B)),
            (0, 0),
            "the event at its end was waited for"
        );
        rig.close();
    }
}

#[test]
fn what_a_stream_that_ends_while_captured_had_is_nobody_elses() {
    let rig = roomy();
    let block = rig.take(PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.provider.set_capturing(A, true);
    let records = rig.provider.calls().record;
    rig.pool.retire_stream(A);
    assert_eq!(rig.provider.calls().record, records, "the event would be the capture's");
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    let blocks = [B, C].map(|stream| rig.take(PAGE, stream));
    for (block, stream) in blocks.into_iter().zip([B, C]) {
        rig.work(block, stream);
    }
    rig.provider.assert_clean();
    for (block, stream) in blocks.into_iter().zip([B, C]) {
        rig.give(block, stream);
    }
    rig.provider.complete_everything();
    assert_eq!(rig.pool.trim(0), 2 * PAGE);
    assert_eq!(rig.figures().reserved.current, PAGE, "whether A's work is over is not known");
}

#[test]
fn a_stream_that_used_a_block_in_a_capture_and_ended_within_it_is_not_asked_later() {
    let rig = tight();
    let block = rig.take(4 * KIB, A);
    rig.provider.set_capturing(B, true);
    rig.give_used(block, A, &[B]);
    rig.pool.retire_stream(B);
    rig.provider.set_capturing(B, false);
    let records = rig.provider.calls().record;
    let other = rig.take(PAGE, A);
    assert_eq!((rig.provider.calls().record, rig.figures().parked.current), (records, block.size()));
    rig.provider.assert_clean();
    rig.give(other, A);
}

#[test]
fn whatever_fails_as_a_name_comes_back_what_the_old_stream_uses_is_kept() {
    for call in 1..12 {
        let rig = roomy();
        let block = rig.take(50 * KIB, B);
        for stream in [A, C] {
            let own = rig.take(1000, stream);
            rig.work(own, stream);
            rig.give(own, stream);
        }
        rig.work(block, A);
        rig.pool.retire_stream(A);
        rig.give_used(block, B, &[A]);
        // NEXT takes over what was A's, and C leaves something for whoever comes.
        let next = rig.take(1000, NEXT);
        rig.pool.retire_stream(C);
        rig.provider.fail_call(call, ProviderErrorKind::Other);
        let again = rig.try_take(1000, A);
        rig.provider.cancel_failures();
        let blocks: Vec<_> = (0..40).map(|_| rig.take(50 * KIB, B)).collect();
        for &block in &blocks {
            rig.work(block, B);
        }
        rig.provider.assert_clean();
        assert!(rig.figures().parked.current > 0, "call {call}");
        blocks.into_iter().for_each(|block| rig.give(block, B));
        rig.give(next, NEXT);
        again.into_iter().for_each(|block| rig.give(block, A));
        rig.provider.complete_everything();
        rig.close();
    }
}

#[test]
fn nothing_is_asked_when_a_name_comes_back_while_another_stream_is_captured() {
    let rig = tight();
    for stream in [A, B] {
        let block = rig.take(PAGE, stream);
        rig.work(block, stream);
        rig.give(block, stream);
    }
    rig.pool.retire_stream(A);
    rig.provider.set_capturing(B, true);
    let wait = rig.provider.calls().wait;
    let reborn = rig.take(PAGE, A);
    assert_eq!(rig.provider.calls().wait, wait + 1, "it comes after the one before");
    rig.provider.assert_clean();
    rig.provider.set_capturing(B, false);
    rig.provider.drop_graph(B);
    rig.give(reborn, A);
    rig.close();
}

#[test]
fn a_stream_that_begins_with_a_capture_comes_after_no_other() {
    let rig = roomy();
    let block = rig.take(PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.pool.retire_stream(A);
    for stream in [NEXT, A] {
        rig.provider.set_capturing(stream, true);
        let before = rig.stream_calls();
        let taken = rig.pool.allocate(Layout::bytes(PAGE).unwrap(), stream);
        assert_eq!(rig.stream_calls(), before);
        rig.provider.assert_clean();
        match taken {
            Ok(block) => {
                assert_eq!(stream, NEXT);
                rig.provider.set_capturing(stream, false);
                rig.provider.drop_graph(stream);
                rig.give(block, stream);
            }
            // It has the name of one whose work can't be waited for; after the capture it is waited for.
            Err(error) => {
                assert!(matches!(&error, AllocError::Provider(error) if error.call == "allocate"), "{error}");
                assert_eq!(stream, A);
                rig.provider.set_capturing(stream, false);
                rig.provider.drop_graph(stream);
                let block = rig.take(PAGE, stream);
                rig.give(block, stream);
            }
        }
    }
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn nothing_is_asked_when_a_stream_ends_while_another_is_captured() {
    let rig = tight();
    for stream in [A, B, C] {
        let block = rig.take(PAGE, stream);
        rig.work(block, stream);
        rig.give(block, stream);
    }
    rig.pool.retire_stream(A);
    let before = rig.provider.calls().query;
    rig.provider.set_capturing(B, true);
    rig.pool.retire_stream(C);
    assert_eq!(rig.provider.calls().query, before, "A has work left");
    rig.provider.assert_clean();
    rig.provider.set_capturing(B, false);
    rig.provider.drop_graph(B);
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn nothing_is_asked_when_a_stream_ends_that_is_captured_itself() {
    for is_known in [true, false] {
        let rig = tight();
        // One that ended before, and whose end was to be asked for.
        let block = rig.take(PAGE, B);
        rig.work(block, B);
        rig.give(block, B);
        rig.pool.retire_stream(B);
        if is_known {
            let block = rig.take(PAGE, A);
            rig.give(block, A);
        }
        rig.provider.set_capturing(A, true);
        let before = rig.stream_calls();
        rig.pool.retire_stream(A);
        assert_eq!(rig.stream_calls(), before);
        rig.provider.set_capturing(A, false);
        rig.provider.assert_clean();
        rig.provider.complete_everything();
    }
}
