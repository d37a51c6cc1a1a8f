//! While a stream is captured into a graph, nothing is recorded, asked or waited for that the capture forbids.

use alloc_core::DeviceAllocator;
use alloc_pool::PoolConfig;

use super::{roomy, tight};
use crate::support::{A, B, C, KIB, MIB, PAGE, Rig, simulated};

const SIZES: [u64; 4] = [1000, 50 * KIB, 300 * KIB, 3 * PAGE];

#[test]
fn a_captured_stream_allocates_grows_and_releases() {
    let rig = tight();
    let warm = rig.take(PAGE, A);
    rig.work(warm, A);
    rig.give(warm, A);
    rig.provider.set_capturing(A, true);
    let before = rig.stream_calls();
    for _ in 0..3 {
        let blocks: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
        for block in &blocks {
            rig.work(*block, A);
        }
        blocks.into_iter().for_each(|block| rig.give(block, A));
    }
    assert_eq!(rig.stream_calls(), before);
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    rig.close();
}

#[test]
fn a_captured_stream_takes_nothing_from_others() {
    let rig = tight();
    for stream in [B, C] {
        let block = rig.take(4 * PAGE, stream);
        rig.work(block, stream);
        rig.give(block, stream);
    }
    rig.provider.complete_all(C);
    rig.provider.set_capturing(A, true);
    let before = rig.stream_calls();
    let block = rig.take(4 * PAGE, A);
    rig.work(block, A);
    rig.provider.assert_clean();
    assert_eq!(rig.stream_calls(), before);
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    rig.give(block, A);
    rig.close();
}

#[test]
fn blocks_that_a_captured_stream_uses_wait_for_the_end_of_the_capture() {
    for size in SIZES {
        let rig = roomy();
        let (one, two) = (rig.take(size, B), rig.take(size, A));
        rig.provider.set_capturing(A, true);
        rig.work(one, A);
        rig.give_used(one, B, &[A]);
        rig.give_used(two, B, &[]);
        assert!(rig.figures().parked.current >= size);
        let more: Vec<_> = (0..100).map(|_| rig.take(300 * KIB, B)).collect();
        rig.provider.assert_clean();
        rig.provider.set_capturing(A, false);
        rig.provider.drop_graph(A);
        more.into_iter().for_each(|block| rig.give(block, B));
        rig.pool.trim(0);
        assert_eq!((rig.figures().parked.current, rig.figures().reserved.current), (0, 0));
        rig.close();
    }
}

#[test]
fn others_allocate_and_release_while_a_stream_is_captured() {
    let rig = tight();
    let captured = rig.take(4 * PAGE, A);
    rig.give(captured, A);
    let foreign = rig.take(MIB, C);
    rig.work(foreign, B);
    rig.provider.set_capturing(A, true);
    rig.give_used(foreign, C, &[B]);
    for _ in 0..3 {
        let blocks: Vec<_> = SIZES.iter().flat_map(|size| [rig.take(*size, B), rig.take(*size, C)]).collect();
        for (number, block) in blocks.into_iter().enumerate() {
            let stream = if number % 2 == 0 { B } else { C };
            rig.work(block, stream);
            rig.give(block, stream);
        }
    }
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    rig.provider.complete_everything();
    rig.close();
}

#[test]
fn running_out_of_memory_under_capture_is_an_error_and_no_breach() {
    let rig = Rig::new(simulated(), PoolConfig { limit: Some(4 * PAGE), ..PoolConfig::default() });
    let block = rig.take(3 * PAGE, B);
    let before = rig.take(512, A);
    rig.work(block, B);
    rig.give(block, B);
    rig.provider.set_capturing(A, true);
    assert!(rig.try_take(3 * PAGE, A).unwrap_err().is_out_of_memory());
    rig.provider.assert_clean();
    // Another stream can still be made to wait, though B can't be asked whether there is anything to wait for.
    let crossed = rig.take(3 * PAGE, C);
    rig.work(crossed, C);
    rig.give(crossed, C);
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    let block = rig.take(3 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    rig.give(before, A);
    rig.close();
}

#[test]
fn nothing_is_trimmed_that_a_graph_may_use() {
    let rig = tight();
    let blocks: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
    rig.provider.set_capturing(A, true);
    blocks.iter().for_each(|block| rig.work(*block, A));
    rig.pool.trim(0);
    rig.provider.assert_clean();
    rig.provider.set_capturing(A, false);
    // The graph is there, and so are its blocks: their pages stay where they are, whatever else goes.
    let backing: Vec<_> = blocks.iter().map(|block| rig.provider.physical_at(block.address())).collect();
    let other = rig.take(5 * PAGE, B);
    rig.give(other, B);
    rig.pool.trim(0);
    assert_eq!(backing, blocks.iter().map(|block| rig.provider.physical_at(block.address())).collect::<Vec<_>>());
    rig.provider.assert_clean();
    rig.provider.drop_graph(A);
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.pool.trim(0);
    assert_eq!(rig.figures().reserved.current, 0);
    rig.close();
}

/// Memory of A's between pieces of C's, where a block of five pages leaves no room for another beside it; a limit keeps the pool
/// from growing.
fn between_pieces_of_another(own: &[u64]) -> Rig {
    let config = PoolConfig { growth_slack: 0.0, limit: Some(14 * PAGE), ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    let (shared, _before) = (rig.take(PAGE, A), rig.take(PAGE, A));
    let low = rig.take(2 * PAGE, C);
    let own: Vec<_> = own.iter().map(|pages| rig.take(pages * PAGE, A)).collect();
    let high = rig.take(3 * PAGE, C);
    let _after = rig.take(PAGE, A);
    for block in [low, high] {
        rig.work(block, C);
        rig.give(block, C);
    }
    let (last, others) = own.split_last().unwrap();
    others.iter().for_each(|&block| rig.give(block, A));
    rig.work(shared, B);
    rig.give_used(shared, A, &[B]);
    // Behind a mark, so that it stays apart.
    rig.give(*last, A);
    rig
}

#[test]
fn own_memory_that_lies_badly_is_had_during_a_capture() {
    // In one piece and in two, while the neighbour is captured or whoever asks is.
    for (own, captured) in [(&[6][..], C), (&[6], A), (&[3, 3], A), (&[3, 3], C)] {
        let rig = between_pieces_of_another(own);
        rig.provider.set_capturing(captured, true);
        let block = rig.take(5 * PAGE, A);
        rig.work(block, A);
        assert_eq!((rig.figures().moves, rig.provider.calls().wait), (0, 0), "{own:?} {captured:?}");
    }
}

#[test]
fn small_blocks_are_recorded_for_while_another_stream_is_captured() {
    let rig = roomy();
    let blocks: Vec<_> = (0..640).map(|_| rig.take(4 * KIB, A)).collect();
    let (of_b, _of_c) = (rig.take(PAGE, B), rig.take(PAGE, C));
    for &block in &blocks {
        rig.work(block, B);
    }
    rig.give_used(blocks[0], A, &[B]);
    rig.provider.set_capturing(C, true);
    let before = rig.stream_calls();
    for &block in &blocks[1..] {
        rig.give_used(block, A, &[B]);
    }
    let after = rig.stream_calls();
    assert!((39..50).contains(&(after.0 - before.0)), "{before:?} {after:?}");
    assert_eq!(after.1, before.1, "nobody is asked");
    rig.provider.set_capturing(C, false);
    rig.give(of_b, B);
    rig.close();
}

#[test]
fn pages_that_a_stream_comes_after_move_while_their_own_is_captured() {
    let rig = tight();
    // Pages of A with blocks of C between them, and two in one piece that A released last.
    let (islands, kept): (Vec<_>, Vec<_>) = (0..2).map(|_| (rig.take(PAGE, A), rig.take(PAGE, C))).unzip();
    let (shared, between, last) = (rig.take(PAGE, A), rig.take(PAGE, C), rig.take(2 * PAGE, A));
    rig.work(shared, B);
    rig.give_used(shared, A, &[B]);
    let held = rig.take(PAGE, C);
    assert_eq!(held.address(), shared.address(), "there are events");
    for block in islands.into_iter().chain([last]) {
        rig.work(block, A);
        rig.give(block, A);
    }
    let ordered = rig.take(2 * PAGE, C);
    rig.work(ordered, C);
    assert_eq!(ordered.address(), last.address(), "so that C comes after all that A released");
    rig.provider.set_capturing(A, true);
    let before = (rig.stream_calls(), rig.figures().reserved.current);
    let moved = rig.take(2 * PAGE, C);
    rig.work(moved, C);
    assert_eq!((rig.stream_calls(), rig.figures().reserved.current), before);
    assert!(rig.figures().moves > 0);
    rig.provider.set_capturing(A, false);
    rig.provider.drop_graph(A);
    rig.provider.complete_everything();
    kept.into_iter().chain([between, held, ordered, moved]).for_each(|block| rig.give(block, C));
    rig.close();
}
