//! More streams than there are tags for.

use alloc_core::{DeviceAllocator, Stream};

use super::tight;
use crate::support::{KIB, PAGE};

const SIZES: [u64; 5] = [512, 6 * KIB, 64 * KIB, 200 * KIB, 3 * PAGE];

#[test]
fn a_hundred_streams_share_a_pool_and_never_meet_in_a_block() {
    let rig = tight();
    let streams: Vec<Stream> = (1..=100).map(Stream::from_raw).collect();
    let mut live = Vec::new();
    for step in 0..1200_usize {
        let stream = streams[(step * 37) % streams.len()];
        let block = rig.take(SIZES[(step / 3) % SIZES.len()], stream);
        rig.work(block, stream);
        live.push((block, stream));
        if live.len() > 60 {
            let (block, stream) = live.swap_remove((step * 13) % live.len());
            rig.give(block, stream);
        }
        if step % 3 == 0 {
            rig.provider.complete_next(streams[(step * 11) % streams.len()]);
        }
    }
    rig.provider.assert_clean();
    for (block, stream) in live.drain(..) {
        rig.give(block, stream);
    }
    let figures = rig.figures();
    assert_eq!((figures.requested.current, figures.in_use.current), (0, 0));
    rig.pool.trim(0);
    assert_eq!((rig.figures().reserved.current, rig.provider.mapped_bytes()), (0, 0));
    rig.close();
}

#[test]
fn streams_past_the_64th_get_memory_from_one_another_only_in_order() {
    let rig = tight();
    let streams: Vec<Stream> = (1..=70).map(Stream::from_raw).collect();
    let kept: Vec<_> = streams.iter().map(|stream| rig.take(512, *stream)).collect();
    for pair in streams[63..].windows(2) {
        for size in [10 * KIB, 2 * PAGE] {
            let block = rig.take(size, pair[0]);
            rig.work(block, pair[0]);
            rig.give(block, pair[0]);
            let next = rig.take(size, pair[1]);
            rig.work(next, pair[1]);
            rig.give(next, pair[1]);
        }
    }
    rig.provider.assert_clean();
    for (block, stream) in kept.into_iter().zip(streams) {
        rig.give(block, stream);
    }
    rig.close();
}

#[test]
fn a_retired_stream_makes_room_for_one_that_has_a_tag_to_itself() {
    let rig = tight();
    let streams: Vec<Stream> = (1..=80).map(Stream::from_raw).collect();
    for stream in &streams {
        let block = rig.take(512, *stream);
        rig.give(block, *stream);
    }
    for stream in &streams {
        rig.pool.retire_stream(*stream);
    }
    let fresh = Stream::from_raw(1000);
    let kept = rig.take(100 * KIB, fresh);
    let before = rig.stream_calls();
    for _ in 0..100 {
        let block = rig.take(100 * KIB, fresh);
        rig.work(block, fresh);
        rig.give(block, fresh);
    }
    assert_eq!(rig.stream_calls(), before, "a stream with a tag of its own asks nothing");
    rig.give(kept, fresh);
    rig.close();
}
