//! A snapshot has every piece of a pool's memory, once, and says what it is.

use std::collections::{HashMap, HashSet};

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{
    Address, Addressing, Block, DeviceAllocator, Piece, PieceState, ProviderErrorKind, Run, SlotState, Snapshot, Stream,
};
use alloc_pool::PoolConfig;

use crate::support::{A, B, C, KIB, MIB, PAGE, Rig, random, simulated, trim_and_fail};

const ADDRESSINGS: [Addressing; 2] = [Addressing::Mapped, Addressing::Segmented];

fn rig(addressing: Addressing) -> Rig {
    Rig::new(SimulatedConfig { addressing, ..simulated() }, PoolConfig { arenas: 4, ..PoolConfig::default() })
}

/// The addresses that the snapshot says are in use, with the bytes that each has: large blocks and slots.
fn in_use(snapshot: &Snapshot) -> HashMap<u64, u64> {
    let mut found = HashMap::new();
    for piece in snapshot.pieces() {
        match &piece.state {
            PieceState::Used { .. } => assert_eq!(found.insert(piece.address.get(), piece.bytes), None),
            PieceState::Slab(slab) => {
                for (slot, state) in (0..).zip(&slab.slots) {
                    if *state == SlotState::Taken {
                        let address = piece.address.get() + slot * slab.slot_bytes;
                        assert_eq!(found.insert(address, slab.slot_bytes), None);
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// Nothing is there twice, runs are whole and apart, and the sums are those of the statistics.
#[track_caller]
fn check(rig: &Rig, snapshot: &Snapshot) {
    let figures = rig.figures();
    let totals = snapshot.totals();
    assert_eq!(totals.reserved(), figures.reserved.current, "{totals:?}");
    assert_eq!(totals.reserved(), rig.provider.physical_bytes());
    assert_eq!(totals.used + totals.taken, figures.in_use.current, "{totals:?}");
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut pages = HashSet::new();
    for run in snapshot.arenas.iter().flat_map(|arena| &arena.runs) {
        let mut end = run.address().unwrap().get();
        for piece in &run.pieces {
            assert_eq!(piece.address.get(), end, "pieces of a run leave no gap");
            assert!(piece.bytes > 0);
            if let PieceState::Slab(slab) = &piece.state {
                assert_eq!(piece.bytes, slab.slot_bytes * slab.slots.len() as u64);
            }
            end += piece.bytes;
        }
        assert_eq!(end, run.address().unwrap().get() + run.bytes());
        for page in (run.address().unwrap().get()..end).step_by(PAGE as usize) {
            let behind = rig.provider.physical_at(Address::new(page)).unwrap();
            assert!(pages.insert(behind), "memory behind two addresses is counted at the one that is in use");
        }
        ranges.push((run.address().unwrap().get(), end));
    }
    for arena in &snapshot.arenas {
        let end = |run: &Run| run.address().unwrap().get() + run.bytes();
        let apart = |pair: &[Run]| end(&pair[0]) < pair[1].address().unwrap().get();
        assert!(arena.runs.windows(2).all(apart), "runs are in order, and as long as can be");
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "runs are apart");
}

fn find(snapshot: &Snapshot, block: Block) -> &Piece {
    let holds =
        |piece: &&Piece| (piece.address.get()..piece.address.get() + piece.bytes).contains(&block.address().get());
    snapshot.pieces().find(holds).unwrap()
}

#[test]
fn every_living_block_and_every_byte_is_there_once() {
    for addressing in ADDRESSINGS {
        let (rig, mut random) = (rig(addressing), random(7));
        let mut blocks: Vec<(Block, Stream)> = Vec::new();
        let mut stale_seen = false;
        for step in 0..3000 {
            let stream = [A, B, C][random(3) as usize];
            let size = if random(3) == 0 { 1 + random(9 * MIB) } else { 1 + random(64 * KIB) };
            blocks.push((rig.take(size, stream), stream));
            while blocks.len() > 200 + random(100) as usize {
                let (block, home) = blocks.swap_remove(random(blocks.len() as u64) as usize);
                rig.give(block, home);
            }
            if step % 100 == 0 {
                let snapshot = rig.pool.snapshot();
                check(&rig, &snapshot);
                let found = in_use(&snapshot);
                assert_eq!(found.len(), blocks.len());
                for (block, _) in &blocks {
                    assert!(found[&block.address().get()] >= block.size());
                }
                stale_seen |= rig.provider.mapped_bytes() > rig.provider.physical_bytes();
            }
        }
        assert_eq!(stale_seen, addressing == Addressing::Mapped, "some pages are mapped twice");
        rig.pool.trim(0);
        check(&rig, &rig.pool.snapshot());
        blocks.into_iter().for_each(|(block, stream)| rig.give(block, stream));
        let snapshot = rig.pool.snapshot();
        check(&rig, &snapshot);
        assert!(in_use(&snapshot).is_empty());
        rig.close();
    }
}

#[test]
fn what_threads_left_behind_adds_up() {
    for addressing in ADDRESSINGS {
        let rig = rig(addressing);
        let left: Vec<Block> = std::thread::scope(|scope| {
            let work = |seed| {
                let rig = &rig;
                move || {
                    let (mut random, stream) = (random(seed), [A, B, C][seed as usize % 3]);
                    let mut mine = Vec::new();
                    for _ in 0..2000 {
                        let size = if random(4) == 0 { random(3 * MIB) } else { random(64 * KIB) };
                        mine.push(rig.take(1 + size, stream));
                        if mine.len() > 40 {
                            rig.give(mine.swap_remove(random(40) as usize), stream);
                        }
                        if random(100) == 0 {
                            // Nobody is quiet, so that nothing can be said but that it ends, and that runs are whole.
                            let snapshot = rig.pool.snapshot();
                            assert!(snapshot.arenas.iter().flat_map(|arena| &arena.runs).all(|run| run.bytes() > 0));
                        }
                    }
                    mine
                }
            };
            let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(work(seed))).collect();
            let mut left = Vec::new();
            threads.into_iter().for_each(|thread| left.extend(thread.join().unwrap()));
            left
        });
        let snapshot = rig.pool.snapshot();
        check(&rig, &snapshot);
        let found = in_use(&snapshot);
        assert_eq!(found.len(), left.len());
        assert!(left.iter().all(|block| found.contains_key(&block.address().get())));
        assert!(snapshot.arenas.len() >= 2);
    }
}

#[test]
fn a_block_has_its_size_and_stream_and_a_slot_its_state() {
    let (rig, elsewhere) = (Rig::default(), Rig::default());
    let (large, small, other) = (rig.take(3 * MIB + 5, A), rig.take(1000, B), rig.take(1000, B));
    rig.give(other, B);
    // Another pool has slots of the same numbers.
    let theirs = [elsewhere.take(1000, B), elsewhere.take(1000, B)];
    theirs.into_iter().for_each(|block| elsewhere.give(block, B));
    let snapshot = rig.pool.snapshot();
    let piece = find(&snapshot, large);
    assert_eq!(piece.bytes, 3 * MIB + 512);
    assert_eq!(piece.state, PieceState::Used { requested: 3 * MIB + 5, stream: Some(A) });
    let piece = find(&snapshot, small);
    let PieceState::Slab(slab) = &piece.state else { panic!("{piece:?}") };
    assert_eq!((slab.slot_bytes, slab.stream), (1024, Some(B)));
    let slot = |block: Block| slab.slots[((block.address().get() - piece.address.get()) / slab.slot_bytes) as usize];
    assert_eq!((slot(small), slot(other)), (SlotState::Taken, SlotState::Cached));
    assert_eq!(slab.slots.iter().filter(|slot| **slot == SlotState::Taken).count(), 1);

    // Another thread's cache nobody can look into.
    let theirs = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let theirs = find(&rig.pool.snapshot(), small).clone();
            rig.pool.flush_thread_cache();
            theirs
        });
        thread.join().unwrap()
    });
    let PieceState::Slab(slab) = &theirs.state else { panic!("{theirs:?}") };
    assert!(slab.slots.iter().all(|slot| *slot != SlotState::Cached));
    rig.pool.flush_thread_cache();
    let totals = rig.pool.snapshot().totals();
    assert_eq!((totals.taken, totals.cached), (1024, 0));
}

#[test]
fn blocks_on_their_way_to_another_thread_are_nobodys() {
    let rig = Rig::default();
    let blocks: Vec<Block> = (0..60_000).map(|_| rig.take(1000, A)).collect();
    rig.pool.flush_thread_cache();
    std::thread::scope(|scope| scope.spawn(|| blocks.into_iter().for_each(|block| rig.give(block, A))).join().unwrap());
    let snapshot = rig.pool.snapshot();
    check(&rig, &snapshot);
    assert_eq!((snapshot.totals().taken, snapshot.totals().cached), (0, rig.figures().cached));
    assert!(snapshot.totals().cached > 0);
}

#[test]
fn free_memory_says_whose_work_may_still_touch_it() {
    let rig = Rig::default();
    let block = rig.take(5 * PAGE, A);
    rig.work(block, A);
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    let users = |snapshot: &Snapshot| match &find(snapshot, block).state {
        PieceState::Free { users } => users.clone(),
        state => panic!("{state:?}"),
    };
    let before = rig.provider.calls();
    let snapshot = rig.pool.snapshot();
    assert_eq!(rig.provider.calls(), before, "a snapshot asks the backend nothing");
    assert_eq!(users(&snapshot), [A, B]);
    rig.provider.complete_everything();
    // Once somebody has asked the device, which a request of another stream does.
    let other = rig.take(5 * PAGE, C);
    assert_eq!(other.address(), block.address(), "it is free for all");
    rig.give(other, C);
    assert_eq!(users(&rig.pool.snapshot()), [C]);
    rig.work(block, C);
    rig.provider.complete_everything();
    let part = rig.take(PAGE, A);
    let rest = rig.pool.snapshot();
    let free = rest.pieces().filter_map(|piece| match &piece.state {
        PieceState::Free { users } => Some((piece.bytes, users.clone())),
        _ => None,
    });
    assert_eq!(free.collect::<Vec<_>>(), [(4 * PAGE, Vec::new())], "what is known to be over is nobody's");
    rig.give(part, A);
}

#[test]
fn a_block_of_a_stream_that_is_gone_is_nobodys() {
    let rig = Rig::default();
    let block = rig.take(3 * MIB, A);
    rig.pool.retire_stream(A);
    // Another one with its name.
    let other = rig.take(3 * MIB, A);
    let snapshot = rig.pool.snapshot();
    assert_eq!(find(&snapshot, block).state, PieceState::Used { requested: 3 * MIB, stream: None });
    assert_eq!(find(&snapshot, other).state, PieceState::Used { requested: 3 * MIB, stream: Some(A) });
}

#[test]
fn parked_blocks_are_told_apart() {
    let rig = Rig::default();
    let (kept, small) = (rig.take(2000, A), rig.take(2000, A));
    // The pool knows of the stream.
    rig.give(rig.take(100, B), B);
    rig.work(small, B);
    rig.give_used(small, A, &[B]);
    let state = || {
        let snapshot = rig.pool.snapshot();
        let piece = find(&snapshot, small);
        let PieceState::Slab(slab) = &piece.state else { panic!("{piece:?}") };
        let slot = (small.address().get() - piece.address.get()) / slab.slot_bytes;
        (slab.slots[slot as usize], snapshot.totals().parked)
    };
    assert_eq!(state(), (SlotState::Parked, rig.figures().parked.current));
    assert_eq!(state().1, 2048);
    // The next ones wait for an event together, which is not recorded yet.
    let more = rig.take(2000, A);
    rig.work(more, B);
    rig.give_used(more, A, &[B]);
    assert_eq!(state().1, 4096);
    assert_eq!(state().1, rig.figures().parked.current);

    // A large one waits by itself if one of the streams is being captured.
    let large = rig.take(3 * MIB, A);
    rig.provider.set_capturing(C, true);
    rig.give_used(large, A, &[C]);
    let snapshot = rig.pool.snapshot();
    assert_eq!(find(&snapshot, large).state, PieceState::Parked { requested: 3 * MIB, stream: Some(A) });
    assert_eq!(snapshot.totals().parked, rig.figures().parked.current);
    rig.provider.set_capturing(C, false);
    rig.provider.complete_everything();
    rig.give(kept, A);
    rig.close();
}

#[test]
fn memory_that_is_nowhere_and_views_that_are_stale_are_counted_once() {
    let (mut nowhere, mut moved) = (0, 0);
    for failing in 0..12 {
        let rig = Rig::default();
        let blocks: Vec<Block> = (0..8).map(|_| rig.take(4 * PAGE, A)).collect();
        blocks.iter().step_by(2).for_each(|block| rig.give(*block, A));
        // Nowhere are twelve pages side by side, so free ones are moved, and their old views stay. A call that fails then
        // leaves some of them without a place.
        if failing > 0 {
            rig.provider.fail_call(failing, ProviderErrorKind::Other);
        }
        let joined = rig.try_take(12 * PAGE, A);
        rig.provider.cancel_failures();
        let snapshot = rig.pool.snapshot();
        check(&rig, &snapshot);
        assert_eq!(in_use(&snapshot).len(), 4 + usize::from(joined.is_ok()));
        nowhere += snapshot.unplaced;
        moved += rig.figures().moves;
        joined.into_iter().chain(blocks.into_iter().skip(1).step_by(2)).for_each(|block| rig.give(block, A));
        check(&rig, &rig.pool.snapshot());
        rig.close();
    }
    assert!(nowhere > 0 && moved > 0, "{nowhere} {moved}");
}

#[test]
fn memory_that_is_lost_is_counted() {
    trim_and_fail(|rig| {
        let snapshot = rig.pool.snapshot();
        check(rig, &snapshot);
        assert_eq!(snapshot.lost, rig.figures().leaked);
        snapshot.lost
    });
}

#[test]
fn a_pool_that_was_never_used_has_nothing() {
    let rig = Rig::default();
    let snapshot = rig.pool.snapshot();
    assert_eq!((snapshot.pieces().count(), snapshot.totals().reserved()), (0, 0));
    let zero = rig.take(0, A);
    assert!(!in_use(&rig.pool.snapshot()).contains_key(&zero.address().get()), "a block of no bytes has no memory");
    rig.give(zero, A);
}
