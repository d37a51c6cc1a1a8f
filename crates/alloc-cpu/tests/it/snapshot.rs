//! A snapshot of a pool of host memory names what is in use, and all that is reserved.

use std::collections::BTreeMap;

use alloc_core::{Block, DeviceAllocator, Layout, PieceState, SlotState, Stream, StreamSet};
use alloc_cpu::HostOptions;
use alloc_pool::PoolConfig;

use crate::bytes::{fill, holds, read};

const STREAMS: [Stream; 2] = [Stream::from_raw(1), Stream::from_raw(2)];

#[test]
fn all_that_is_in_use_is_named_and_nothing_else_is() {
    let config = PoolConfig { arenas: 2, ..PoolConfig::default() };
    let pool = alloc_cpu::pool().options(HostOptions::new().capacity_bytes(256 << 20)).config(config).build().unwrap();
    let work = |stream: Stream| {
        let mut kept: Vec<Block> = Vec::new();
        for step in 0..600_u64 {
            let bytes = 1 + step * step * 7919 % if step % 5 == 0 { 2 << 20 } else { 60_000 };
            let block = pool.allocate(Layout::bytes(bytes).unwrap(), stream).unwrap();
            fill(block.address(), bytes, step as u8);
            kept.push(block);
            if kept.len() > 30 {
                // SAFETY: nothing uses the block any more.
                unsafe { pool.release(kept.swap_remove(step as usize % 30), stream, StreamSet::EMPTY) }.unwrap();
            }
        }
        kept
    };
    let kept: Vec<(Stream, Vec<Block>)> = std::thread::scope(|scope| {
        let work = &work;
        let threads = STREAMS.map(|stream| scope.spawn(move || (stream, work(stream))));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Other tests may run out of memory, and have this pool give back what is free in between.
    let (snapshot, figures) = loop {
        let before = pool.statistics();
        let snapshot = pool.snapshot();
        if pool.statistics() == before {
            break (snapshot, before);
        }
    };
    let totals = snapshot.totals();
    assert_eq!(totals.reserved(), figures.reserved.current, "{totals:?}");
    assert_eq!(totals.used + totals.taken, figures.in_use.current);

    let mut in_use = BTreeMap::new();
    for piece in snapshot.pieces() {
        match &piece.state {
            PieceState::Used { stream, .. } => _ = in_use.insert(piece.address, (piece.bytes, *stream)),
            PieceState::Slab(slab) => {
                for (slot, _) in (0..).zip(&slab.slots).filter(|(_, state)| **state == SlotState::Taken) {
                    let address = piece.address.checked_add(slot * slab.slot_bytes).unwrap();
                    in_use.insert(address, (slab.slot_bytes, slab.stream));
                }
            }
            _ => {}
        }
    }
    for (stream, blocks) in &kept {
        for block in blocks {
            let (bytes, of) = in_use.remove(&block.address()).unwrap();
            assert!(bytes >= block.size());
            assert!(holds(block.address(), 1, read(block.address(), block.size() - 1, 1)[0]));
            assert_eq!(of, Some(*stream));
        }
    }
    assert!(in_use.is_empty(), "nobody has {in_use:?}");
    for (stream, blocks) in kept {
        // SAFETY: nothing uses the blocks any more.
        blocks.into_iter().for_each(|block| unsafe { pool.release(block, stream, StreamSet::EMPTY) }.unwrap());
    }
}
