//! Where a device's memory is, piece by piece, as JSON.
//!
//! A pool can't tell a slot in a block from one in the cache of another thread. The index can, as it knows every block that
//! lives, so both are asked here, the pool first: a block that comes or goes in between is taken for free memory at worst.

use alloc_core::{ArenaSnapshot, Piece, PieceState, SlabSnapshot, SlotState, Snapshot, Stream};
use rustc_hash::FxHashSet;
use serde_json::{Value, json};

/// The addresses of living blocks.
pub(crate) type Living = FxHashSet<u64>;

/// A pool's arenas, and what is at no address.
pub(crate) fn json(snapshot: &Snapshot, living: &Living) -> [(&'static str, Value); 3] {
    let arenas = snapshot.arenas.iter().map(|arena| arena_json(arena, living)).collect();
    [("arenas", arenas), ("unplaced", snapshot.unplaced.into()), ("lost", snapshot.lost.into())]
}

fn arena_json(arena: &ArenaSnapshot, living: &Living) -> Value {
    let runs = arena.runs.iter().map(|run| {
        let pieces: Value = run.pieces.iter().map(|piece| piece_json(piece, living)).collect();
        json!({ "address": run.address().map(|address| address.get()), "size": run.bytes(), "pieces": pieces })
    });
    json!({ "index": arena.index, "runs": runs.collect::<Value>() })
}

fn piece_json(piece: &Piece, living: &Living) -> Value {
    let (address, size) = (piece.address.get(), piece.bytes);
    let handle = |stream: &Option<Stream>| stream.map(Stream::handle);
    match &piece.state {
        PieceState::Used { requested, stream } => json!({
            "kind": "block", "address": address, "size": size, "requested": requested, "stream": handle(stream),
        }),
        PieceState::Parked { requested, stream } => json!({
            "kind": "parked", "address": address, "size": size, "requested": requested, "stream": handle(stream),
        }),
        PieceState::Slab(slab) => json!({
            "kind": "slab", "address": address, "size": size, "stream": handle(&slab.stream),
            "slot_size": slab.slot_bytes, "slots": letters(address, slab, living),
        }),
        PieceState::Free { users } => json!({
            "kind": "free", "address": address, "size": size,
            "users": users.iter().map(|stream| stream.handle()).collect::<Vec<_>>(),
        }),
        // A kind that came later: nobody's, as far as is known here.
        _ => json!({ "kind": "unknown", "address": address, "size": size }),
    }
}

/// A letter for each slot, as the header says.
fn letters(address: u64, slab: &SlabSnapshot, living: &Living) -> String {
    let letter = |(slot, state): (u64, &SlotState)| match state {
        SlotState::Taken if living.contains(&address.saturating_add(slot.saturating_mul(slab.slot_bytes))) => 'u',
        SlotState::Taken => 't',
        SlotState::Cached => 'c',
        SlotState::Parked => 'p',
        _ => 'f',
    };
    (0..).zip(&slab.slots).map(letter).collect()
}
