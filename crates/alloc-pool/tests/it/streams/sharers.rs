//! Streams that share the last tag, as they came when the pool had told as many apart as it can.

use alloc_core::{Block, DeviceAllocator, PieceState, Stream};
use alloc_pool::PoolConfig;

use super::tight;
use crate::support::{KIB, MIB, PAGE, Rig, random, simulated};

const SIZES: [u64; 4] = [512, 10 * KIB, 300 * KIB, 2 * PAGE];

/// Streams that come after so many that each of them shares the last tag.
fn sharers(rig: &Rig, count: u64) -> Vec<Stream> {
    for stream in (0..63).map(|number| Stream::from_raw(9_000 + number)) {
        let block = rig.take(512, stream);
        rig.give(block, stream);
    }
    (1..=count).map(Stream::from_raw).collect()
}

/// One block of each of the streams, all of them at a time, and then none; each stream has work that is not complete.
fn all_at_a_time(rig: &Rig, streams: &[Stream], size: u64) -> Vec<Block> {
    let blocks: Vec<_> = streams.iter().map(|&stream| rig.take(size, stream)).collect();
    for (&block, &stream) in blocks.iter().zip(streams) {
        rig.work(block, stream);
        rig.give(block, stream);
    }
    blocks
}

#[test]
fn a_snapshot_names_the_one_stream_that_may_still_use_a_piece() {
    let rig = tight();
    let streams = sharers(&rig, 20);
    let blocks = all_at_a_time(&rig, &streams, 2 * PAGE);
    let snapshot = rig.pool.snapshot();
    for (block, stream) in blocks.iter().zip(streams) {
        let piece = snapshot.pieces().find(|piece| piece.address == block.address()).unwrap();
        assert_eq!(piece.state, PieceState::Free { users: vec![stream] });
    }
}

#[test]
fn nobody_is_asked_for_a_streams_own_memory() {
    for size in SIZES {
        let rig = tight();
        let streams = sharers(&rig, 200);
        let blocks = all_at_a_time(&rig, &streams, size);
        let before = rig.stream_calls();
        for round in 0..4 {
            for (&first, &stream) in blocks.iter().zip(&streams) {
                let block = rig.take(size, stream);
                rig.work(block, stream);
                assert!(block.address() == first.address(), "{stream:?} has other memory in round {round}");
                rig.give(block, stream);
            }
        }
        assert_eq!(rig.stream_calls(), before, "of {size} bytes");
        rig.close();
    }
}

#[test]
fn for_the_memory_of_another_that_one_is_asked() {
    for size in SIZES {
        let rig = tight();
        let streams = sharers(&rig, 200);
        // Before there is memory all are asked.
        rig.give(rig.take(size, streams[0]), streams[0]);
        for round in 0..3 {
            for &stream in &streams {
                let before = rig.stream_calls();
                let block = rig.take(size, stream);
                let after = rig.stream_calls();
                let (asked, others) = (after.1 - before.1, (after.0 - before.0, after.2 - before.2));
                assert!(asked <= 1 && others == (0, 0), "{asked} questions and {others:?} in round {round}");
                rig.work(block, stream);
                rig.provider.complete_all(stream);
                rig.give(block, stream);
            }
        }
        assert!(rig.figures().reserved.current <= 2 * PAGE.max(size), "one block goes from stream to stream");
        rig.close();
    }
}

#[test]
fn own_memory_is_had_in_part_and_in_one_piece_again() {
    let rig = tight();
    let streams = sharers(&rig, 100);
    let large = MIB;
    let blocks = all_at_a_time(&rig, &streams, large);
    let before = rig.stream_calls();
    let mut random = random(7);
    for (&whole, &stream) in blocks.iter().zip(&streams) {
        let mut parts: Vec<_> = (0..4).map(|_| rig.take(large / 4, stream)).collect();
        let range = whole.address().get()..whole.address().get() + large;
        assert!(parts.iter().all(|part| range.contains(&part.address().get())));
        while !parts.is_empty() {
            let part = parts.swap_remove(random(parts.len() as u64) as usize);
            rig.work(part, stream);
            rig.give(part, stream);
        }
        let again = rig.take(large, stream);
        assert_eq!(again.address(), whole.address());
        rig.give(again, stream);
    }
    assert_eq!(rig.stream_calls(), before);
    rig.close();
}

#[test]
fn what_a_busy_stream_has_is_passed_over() {
    let config = PoolConfig { growth_slack: 0.0, limit: Some(64 * PAGE), ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    let streams = sharers(&rig, 10);
    let blocks = all_at_a_time(&rig, &streams[..3], PAGE);
    // One of three is idle, and neither the first nor the last.
    rig.provider.complete_all(streams[1]);
    let before = (rig.stream_calls(), rig.figures().reserved.current);
    let block = rig.take(PAGE, streams[9]);
    rig.work(block, streams[9]);
    assert_eq!(block.address(), blocks[1].address());
    let (records, asked, waits) = rig.stream_calls();
    assert_eq!((records, waits, rig.figures().reserved.current), (before.0.0, before.0.2, before.1));
    assert!(asked - before.0.1 <= 3, "{asked}");
    rig.give(block, streams[9]);
    rig.close();
}

#[test]
fn whoever_waits_for_memory_waits_for_its_own_stream_alone() {
    let config = PoolConfig { growth_slack: 0.0, limit: Some(100 * PAGE), ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    let streams = sharers(&rig, 101);
    all_at_a_time(&rig, &streams[..100], PAGE - 64 * KIB);
    let before = rig.stream_calls();
    let block = rig.take(PAGE - 64 * KIB, streams[100]);
    rig.work(block, streams[100]);
    let (records, asked, waits) = rig.stream_calls();
    assert_eq!((records - before.0, waits - before.2), (1, 1), "of a hundred that are busy");
    assert!(asked - before.1 <= 10, "{asked} questions");
    rig.give(block, streams[100]);
    rig.close();
}

#[test]
fn a_new_stream_of_an_old_name_comes_after_what_it_takes_for_its_own() {
    let rig = tight();
    let streams = sharers(&rig, 3);
    let [first, name, last] = streams[..] else { unreachable!() };
    let blocks = all_at_a_time(&rig, &[first, name, last], PAGE);
    rig.pool.retire_stream(name);
    let waits = rig.provider.calls().wait;
    let block = rig.take(PAGE, name);
    assert_eq!(block.address(), blocks[1].address());
    assert_eq!(rig.provider.calls().wait, waits + 1, "the new stream waits for the end of the old one");
    rig.give(block, name);
    rig.close();
}

#[test]
fn whoever_has_the_name_and_a_tag_of_its_own_is_not_asked_for_what_the_old_one_had() {
    let rig = tight();
    let streams = sharers(&rig, 3);
    let [name, other, third] = streams[..] else { unreachable!() };
    let (kept, blocks) = (rig.take(PAGE, third), all_at_a_time(&rig, &[name], PAGE));
    rig.provider.complete_all(name);
    rig.pool.retire_stream(name);
    // The new one gets the tag of this one.
    rig.pool.retire_stream(Stream::from_raw(9_007));
    let own = rig.take(512, name);
    rig.work(own, name);
    let before = rig.stream_calls();
    let block = rig.take(PAGE, other);
    rig.work(block, other);
    assert_eq!((block.address(), rig.stream_calls()), (blocks[0].address(), before));
    rig.give(block, other);
    rig.give(own, name);
    rig.give(kept, third);
    rig.close();
}

#[test]
fn a_stream_that_is_gone_is_not_asked_for_its_memory() {
    for is_over in [true, false] {
        let rig = tight();
        let streams = sharers(&rig, 3);
        let [gone, other, third] = streams[..] else { unreachable!() };
        let (kept, blocks) = (rig.take(PAGE, third), all_at_a_time(&rig, &[gone], PAGE));
        if is_over {
            rig.provider.complete_all(gone);
        }
        rig.pool.retire_stream(gone);
        rig.provider.complete_all(gone);
        // Whoever asks the stream hears no, and whoever records on it gets an event of a capture: only its end is known.
        rig.provider.set_capturing(gone, true);
        let queries = rig.provider.calls().query;
        if is_over {
            let block = rig.take(PAGE, other);
            assert_eq!(block.address(), blocks[0].address());
            assert_eq!(rig.provider.calls().query, queries, "nobody is left to be asked");
            rig.give(block, other);
        }
        rig.provider.set_capturing(gone, false);
        if !is_over {
            let block = rig.take(PAGE, other);
            assert_eq!((block.address(), rig.provider.calls().query), (blocks[0].address(), queries + 1));
            rig.give(block, other);
        }
        rig.give(kept, third);
        rig.close();
    }
}

#[test]
fn a_captured_stream_has_its_own_and_nobody_is_asked_meanwhile() {
    let rig = tight();
    let streams = sharers(&rig, 4);
    let blocks = all_at_a_time(&rig, &streams[..3], PAGE);
    let [captured, other, third, fourth] = streams[..] else { unreachable!() };
    rig.provider.set_capturing(captured, true);
    let before = rig.stream_calls();
    for (stream, block) in [captured, other, third].into_iter().zip(&blocks) {
        let own = rig.take(PAGE, stream);
        rig.work(own, stream);
        assert_eq!(own.address(), block.address());
        rig.give(own, stream);
    }
    assert_eq!(rig.stream_calls(), before);
    // What the captured one has is out of reach, and that of the others as long as one may not ask.
    let block = rig.take(PAGE, fourth);
    rig.work(block, fourth);
    assert!(blocks.iter().all(|other| other.address() != block.address()));
    assert_eq!(rig.provider.calls().wait, before.2);
    rig.provider.assert_clean();
    rig.provider.set_capturing(captured, false);
    rig.provider.drop_graph(captured);
    rig.give(block, fourth);
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn whether_any_is_captured_is_not_found_out_for_each_that_has_ended() {
    const ENDED: u64 = 200;
    let rig = tight();
    let streams = sharers(&rig, ENDED + 1);
    let (last, ended) = streams.split_last().unwrap();
    let kept = rig.take(512, *last);
    all_at_a_time(&rig, ended, 64 * KIB);
    ended.iter().for_each(|&stream| rig.pool.retire_stream(stream));
    rig.provider.complete_everything();
    // Whatever may fail and is none of these calls is a question about a capture.
    let asked = || {
        let calls = rig.provider.calls();
        let others = calls.reserve + calls.create + calls.map + calls.unmap + calls.release;
        (calls.query, rig.provider.fallible_calls() - others - calls.record - calls.query - calls.wait)
    };
    // Of memory that many used all are asked.
    let before = asked();
    let block = rig.take(3 * PAGE, *last);
    let after = asked();
    let (queries, captures) = (after.0 - before.0, after.1 - before.1);
    assert!(queries >= ENDED && captures < 10 * (63 + 1), "{queries} questions, {captures} about captures");
    rig.work(block, *last);
    rig.give(block, *last);
    rig.give(kept, *last);
    rig.close();
}

#[test]
fn what_is_more_than_may_be_kept_stays_with_its_streams_until_these_are_idle() {
    const SIZE: u64 = 300 * KIB;
    let threshold = 2 * PAGE;
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(threshold), ..PoolConfig::default() });
    let streams = sharers(&rig, 100);
    let blocks = all_at_a_time(&rig, &streams, SIZE);
    assert!(rig.figures().reserved.current > threshold);
    let (records, asked, waits) = rig.stream_calls();
    for (&first, &stream) in blocks.iter().zip(&streams) {
        let block = rig.take(SIZE, stream);
        rig.work(block, stream);
        assert_eq!(block.address(), first.address());
        rig.give(block, stream);
    }
    let after = rig.stream_calls();
    assert_eq!((after.0, after.2), (records, waits), "nobody waits for another");
    assert!(after.1 - asked <= 2 * streams.len() as u64, "{} questions", after.1 - asked);
    // In each page are blocks of several streams.
    rig.provider.complete_everything();
    let block = rig.take(SIZE, streams[0]);
    rig.give(block, streams[0]);
    assert!(rig.figures().reserved.current <= threshold);
    rig.close();
}

#[test]
fn all_of_it_goes_back_to_the_device() {
    let rig = tight();
    let streams = sharers(&rig, 150);
    for size in SIZES {
        all_at_a_time(&rig, &streams, size);
    }
    rig.pool.trim(0);
    assert_eq!(rig.figures().reserved.current, 0, "though it lay in pieces of 150 streams");
    rig.close();
}

#[test]
fn a_page_goes_back_though_some_of_it_is_of_a_stream_with_a_tag_of_its_own() {
    let threshold = 2 * PAGE;
    let rig = Rig::new(simulated(), PoolConfig { release_threshold: Some(threshold), ..PoolConfig::default() });
    let sharer = sharers(&rig, 1)[0];
    // Each page has a block of both.
    let both = [Stream::from_raw(9_000), sharer];
    all_at_a_time(&rig, &both.repeat(4), PAGE / 2);
    assert!(rig.figures().reserved.current > threshold);
    rig.provider.complete_everything();
    let block = rig.take(300 * KIB, sharer);
    rig.give(block, sharer);
    assert!(rig.figures().reserved.current <= threshold, "{}", rig.figures().reserved.current);
    rig.close();
}

#[test]
fn pages_that_move_for_one_leave_the_others_what_is_their_own() {
    const COUNT: u64 = 100;
    for size in [PAGE, PAGE / 4] {
        let rig = tight();
        let streams = sharers(&rig, COUNT + 1);
        let (last, others) = streams.split_last().unwrap();
        // No memory of more than three pages lies in a row.
        let mut kept = Vec::new();
        let mut blocks = Vec::new();
        for (number, &stream) in others.iter().enumerate() {
            blocks.push(rig.take(size, stream));
            if (number as u64).is_multiple_of(3 * PAGE / size) {
                kept.push(rig.take(PAGE, *last));
            }
        }
        for (&block, &stream) in blocks.iter().zip(others) {
            rig.work(block, stream);
            rig.give(block, stream);
        }
        let before = rig.figures();
        let block = rig.take(8 * PAGE, *last);
        assert!(rig.figures().moves > before.moves, "no page had to move");
        assert_eq!(rig.figures().reserved, before.reserved, "pages of several streams move too");
        rig.work(block, *last);
        rig.give(block, *last);
        let waits = rig.provider.calls().wait;
        let mut at_home = 0;
        for (&first, &stream) in blocks.iter().zip(others) {
            let block = rig.take(size, stream);
            rig.work(block, stream);
            at_home += u64::from(block.address() == first.address());
            rig.give(block, stream);
        }
        let (waits, moved) = (rig.provider.calls().wait - waits, COUNT - at_home);
        // Whoever's memory is gone takes another's, one by one.
        assert!(waits <= moved && moved < COUNT / 2, "{waits} waits, {moved} have other memory than before");
        rig.provider.complete_everything();
        kept.into_iter().for_each(|block| rig.give(block, *last));
        rig.close();
    }
}

#[test]
fn whoever_has_pages_moved_waits_for_those_that_had_them_alone() {
    let rig = tight();
    let streams = sharers(&rig, 40);
    let (last, others) = streams.split_last().unwrap();
    let (movers, rest) = others.split_at(3);
    let small = all_at_a_time(&rig, rest, 64 * KIB);
    let (mut kept, mut blocks) = (Vec::new(), Vec::new());
    for &stream in movers {
        kept.push(rig.take(PAGE, *last));
        blocks.push(rig.take(PAGE, stream));
    }
    kept.push(rig.take(PAGE, *last));
    for (block, &stream) in blocks.into_iter().zip(movers) {
        rig.work(block, stream);
        rig.give(block, stream);
    }
    let (before, moves) = (rig.provider.calls(), rig.figures().moves);
    let block = rig.take(3 * PAGE, *last);
    assert_eq!(rig.figures().moves, moves + 3);
    let after = rig.provider.calls();
    assert_eq!((after.wait - before.wait, after.create), (3, before.create), "{} others are busy", small.len());
    rig.work(block, *last);
    rig.give(block, *last);
    rig.provider.complete_everything();
    kept.into_iter().for_each(|block| rig.give(block, *last));
    rig.close();
}
