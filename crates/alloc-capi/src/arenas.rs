//! Where a device's memory is, piece by piece, as JSON.
//!
//! A pool can't tell a slot in a block from one in the cache of another thread. The index can, as it knows every block that
//! lives, so both are asked here, the pool first: a block that comes or goes in between is taken for free memory at worst.

use alloc_core::{ArenaSnapshot, Piece, PieceState, SlabSnapshot, SlotState, Snapshot, Stream};
use rustc_hash::FxHashSet;
use serde_json::{Value, json};

/// The addresses of living blocks.
pub(crate) type Living = FxHashSet<u64>;

/// Writes a list whose items are written one by one: with a million blocks, a tree of values takes gigabytes.
pub(crate) fn write_list<T>(to: &mut String, items: impl IntoIterator<Item = T>, write: impl Fn(&mut String, T)) {
    to.push('[');
    for (place, item) in items.into_iter().enumerate() {
        if place > 0 {
            to.push(',');
        }
        write(to, item);
    }
    to.push(']');
}

/// Writes a pool's arenas, and what is at no address: three members of an object.
pub(crate) fn write(to: &mut String, snapshot: &Snapshot, living: &Living) {
    to.push_str("\"arenas\":");
    write_list(to, &snapshot.arenas, |to, arena| write_arena(to, arena, living));
    *to += &format!(",\"unplaced\":{},\"lost\":{}", snapshot.unplaced, snapshot.lost);
}

fn write_arena(to: &mut String, arena: &ArenaSnapshot, living: &Living) {
    *to += &format!("{{\"index\":{},\"runs\":", arena.index);
    write_list(to, &arena.runs, |to, run| {
        let address = json!(run.address().map(|address| address.get()));
        *to += &format!("{{\"address\":{address},\"size\":{},\"pieces\":", run.bytes());
        write_list(to, &run.pieces, |to, piece| *to += &piece_json(piece, living).to_string());
        to.push('}');
    });
    to.push('}');
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

#[cfg(test)]
mod tests {
    use alloc_core::{Address, Device, Run, Statistics};

    use super::*;

    fn written(snapshot: &Snapshot) -> Value {
        let mut text = "{".to_owned();
        write(&mut text, snapshot, &Living::from_iter([4096 + 512]));
        serde_json::from_str(&(text + "}")).unwrap()
    }

    #[test]
    fn a_snapshot_is_written_whole() {
        let mut snapshot = Snapshot::new(Device::CPU, Statistics::default());
        (snapshot.unplaced, snapshot.lost) = (1, 2);
        assert_eq!(written(&snapshot), json!({ "arenas": [], "unplaced": 1, "lost": 2 }));
        let slots = vec![SlotState::Taken, SlotState::Taken, SlotState::Cached, SlotState::Parked, SlotState::Free];
        let slab = SlabSnapshot::new(512, None, slots);
        let piece = |address, bytes, state| Piece::new(Address::new(address), bytes, state);
        let stream = Some(Stream::from_raw(7));
        let first = Run::new(vec![
            piece(4096, 2560, PieceState::Slab(slab)),
            piece(6656, 512, PieceState::Used { requested: 500, stream }),
        ]);
        let second = Run::new(vec![
            piece(8192, 512, PieceState::Parked { requested: 5, stream }),
            piece(8704, 512, PieceState::Free { users: vec![Stream::DEFAULT, Stream::from_raw(7)] }),
        ]);
        let runs = vec![first, second, Run::default()];
        snapshot.arenas = vec![ArenaSnapshot::new(0, runs), ArenaSnapshot::new(1, Vec::new())];
        let expected = json!([
            { "index": 0, "runs": [
                { "address": 4096, "size": 3072, "pieces": [
                    { "kind": "slab", "address": 4096, "size": 2560, "stream": null, "slot_size": 512, "slots": "tucpf" },
                    { "kind": "block", "address": 6656, "size": 512, "requested": 500, "stream": 7 },
                ] },
                { "address": 8192, "size": 1024, "pieces": [
                    { "kind": "parked", "address": 8192, "size": 512, "requested": 5, "stream": 7 },
                    { "kind": "free", "address": 8704, "size": 512, "users": [0, 7] },
                ] },
                { "address": null, "size": 0, "pieces": [] },
            ] },
            { "index": 1, "runs": [] },
        ]);
        assert_eq!(written(&snapshot), json!({ "arenas": expected, "unplaced": 1, "lost": 2 }));
    }
}
