//! A page of HTML with the map of a device's memory.

use alloc_core::{PieceState, SlotState, Snapshot};
use alloc_trace::Picture;

use crate::arenas::Living;
use crate::heaps::Heap;
use crate::index::INDEX;
use crate::memory::device_of;
use crate::report::private_snapshots;

/// The map of the device's pool, and of its private pools, with the figures.
pub(crate) fn html(heap: &Heap) -> String {
    let (pool, private) = (heap.snapshot(), private_snapshots(heap));
    let living = living_of(heap);
    let named = |(id, snapshot): ([u64; 2], Snapshot)| {
        (format!("Private pool {}, {}: part of the blocks above", id[0], id[1]), snapshot)
    };
    let own = match pool {
        Some(pool) => ("The device's pool".to_owned(), pool),
        None => {
            let figures = Snapshot::new(heap.device, heap.allocator().statistics());
            ("The program's own allocator, of which only the figures are known".to_owned(), figures)
        }
    };
    let mut maps: Vec<(String, Snapshot)> = std::iter::once(own).chain(private.into_iter().map(named)).collect();
    maps.iter_mut().for_each(|(_, snapshot)| tell_cached(snapshot, &living));
    let page = Picture::new(format!("Memory of {}", heap.device));
    maps.iter().fold(page, |page, (caption, snapshot)| page.snapshot(caption, snapshot)).to_string()
}

fn living_of(heap: &Heap) -> Living {
    let mut living = Living::default();
    INDEX.for_each(|entry| {
        if device_of(entry.owner) == Some(heap.device) {
            living.insert(entry.block.address().get());
        }
    });
    living
}

/// Slots that the pool takes for taken, and in which nobody has a block, are in the caches of other threads.
fn tell_cached(snapshot: &mut Snapshot, living: &Living) {
    let runs = snapshot.arenas.iter_mut().flat_map(|arena| &mut arena.runs);
    for piece in runs.flat_map(|run| &mut run.pieces) {
        let PieceState::Slab(slab) = &mut piece.state else { continue };
        for (slot, state) in (0_u64..).zip(&mut slab.slots) {
            let address = piece.address.get().saturating_add(slot.saturating_mul(slab.slot_bytes));
            if *state == SlotState::Taken && !living.contains(&address) {
                *state = SlotState::Cached;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc_core::{Address, ArenaSnapshot, Device, Piece, Run, SlabSnapshot, Statistics, Stream};

    use super::*;

    #[test]
    fn what_nobody_has_is_in_a_cache() {
        let slots = vec![SlotState::Taken, SlotState::Free, SlotState::Taken, SlotState::Parked];
        let slab = SlabSnapshot::new(512, Some(Stream::DEFAULT), slots);
        let piece = Piece::new(Address::new(4096), 2048, PieceState::Slab(slab));
        let mut snapshot = Snapshot::new(Device::CPU, Statistics::default());
        snapshot.arenas.push(ArenaSnapshot::new(0, vec![Run::new(vec![piece])]));
        tell_cached(&mut snapshot, &Living::from_iter([4096 + 2 * 512]));
        let totals = snapshot.totals();
        assert_eq!([totals.taken, totals.cached, totals.free_slots, totals.parked], [512; 4]);
        let PieceState::Slab(slab) = &snapshot.arenas[0].runs[0].pieces[0].state else { panic!() };
        assert_eq!((slab.slots[0], slab.slots[2]), (SlotState::Cached, SlotState::Taken));
    }
}
