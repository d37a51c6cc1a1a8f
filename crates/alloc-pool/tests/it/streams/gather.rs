//! Free memory in several pieces is brought together once streams had to wait for each other often enough because of it.

use alloc_core::{Block, ProviderErrorKind};

use super::tight;
use crate::support::{A, B, C, MIB, PAGE, Rig};

const ISLANDS: u64 = 4;
const ISLAND: u64 = 4 * PAGE;
/// One has room in an island, and in all of them together six in place of four.
const BLOCK: u64 = 5 * MIB;

/// Islands of free memory that B still uses, between blocks of C that stay.
fn islands() -> (Rig, Vec<Block>) {
    let rig = tight();
    let (islands, kept): (Vec<_>, Vec<_>) = (0..ISLANDS).map(|_| (rig.take(ISLAND, A), rig.take(PAGE, C))).unzip();
    for block in islands {
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
    }
    (rig, kept)
}

/// A block of A that it has to wait for B for, and that B uses again.
fn pass(rig: &Rig, bytes: u64) {
    let block = rig.take(bytes, A);
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
}

fn pass_one(rig: &Rig) {
    pass(rig, BLOCK);
}

fn close(rig: Rig, kept: Vec<Block>) {
    rig.provider.complete_everything();
    kept.into_iter().for_each(|block| rig.give(block, C));
    rig.close();
}

#[test]
fn waits_in_several_pieces_bring_them_together() {
    let (rig, kept) = islands();
    let before = (rig.figures().reserved.current, rig.provider.calls());
    let waits = (1_u64..).find(|_| {
        pass_one(&rig);
        rig.figures().moves > 0
    });
    assert!(waits.is_some_and(|waits| (64..80).contains(&waits)), "{waits:?}");
    let (figures, calls) = (rig.figures(), rig.provider.calls());
    assert_eq!((figures.reserved.current, figures.largest_free), (before.0, ISLANDS * ISLAND - BLOCK));
    assert_eq!(calls.unmap, before.1.unmap);
    assert_eq!(rig.provider.pending(B) as u64, ISLANDS + waits.unwrap(), "the host waited for nobody");
    let (moves, busy) = (figures.moves, rig.provider.pending(B));
    let whole = rig.take(ISLANDS * ISLAND, C);
    rig.work(whole, C);
    assert_eq!(rig.figures().moves, moves);
    assert!(!rig.provider.complete_next(C), "B uses some of it yet");
    assert_eq!(rig.provider.pending(B), busy);
    rig.provider.complete_everything();
    rig.give(whole, C);
    close(rig, kept);
}

#[test]
fn pages_come_together_again_where_they_were_before() {
    let (rig, mut kept) = islands();
    for round in 1..6 {
        let waited = rig.provider.pending(B);
        // The islands of the first round are of four pages, later ones of three.
        let bytes = if round == 1 { BLOCK } else { 2 * PAGE };
        let waits = (1..2000).find(|_| {
            pass(&rig, bytes);
            rig.figures().largest_free > ISLAND
        });
        assert_eq!(rig.provider.pending(B), waited + waits.expect("nothing was gathered"));
        assert_eq!(rig.provider.calls().unmap, 0, "round {round}");
        rig.provider.complete_everything();
        kept.drain(..).for_each(|block| rig.give(block, C));
        let pairs: Vec<_> = (0..ISLANDS).map(|_| (rig.take(3 * PAGE, A), rig.take(PAGE, C))).collect();
        for (block, stays) in pairs {
            kept.push(stays);
            rig.work(block, B);
            rig.give_used(block, A, &[B]);
        }
    }
    close(rig, kept);
}

#[test]
fn what_is_in_one_piece_or_too_large_for_any_other_place_stays_where_it_is() {
    for block in [PAGE / 2, ISLAND] {
        let (rig, kept) = islands();
        for _ in 0..300 {
            let block = rig.take(block, A);
            rig.work(block, B);
            rig.give_used(block, A, &[B]);
        }
        assert_eq!(rig.figures().moves, 0, "{block} bytes");
        close(rig, kept);
    }
}

#[test]
fn nothing_is_gathered_while_a_stream_is_captured() {
    let (rig, kept) = islands();
    rig.provider.set_capturing(C, true);
    (0..100).for_each(|_| pass_one(&rig));
    assert_eq!(rig.figures().moves, 0);
    rig.provider.set_capturing(C, false);
    (0..70).for_each(|_| pass_one(&rig));
    assert!(rig.figures().moves > 0);
    close(rig, kept);
}

#[test]
fn whatever_fails_on_the_way_nothing_is_lost() {
    let calls = (1..).find(|&at| {
        let (rig, kept) = islands();
        // The next wait is one too many.
        (0..64).for_each(|_| pass_one(&rig));
        assert_eq!(rig.figures().moves, 0);
        let reserved = rig.figures().reserved.current;
        rig.provider.fail_call(at, ProviderErrorKind::Other);
        let block = rig.try_take(BLOCK, A);
        let failed = rig.provider.injected_failures() > 0;
        rig.provider.cancel_failures();
        if let Ok(block) = block {
            rig.give(block, A);
        }
        assert_eq!((rig.figures().reserved.current, rig.figures().in_use.current), (reserved, ISLANDS * PAGE));
        assert!(failed || rig.figures().moves > 0);
        close(rig, kept);
        !failed
    });
    assert!(calls.is_some_and(|calls| calls > 10), "{calls:?}");
}
