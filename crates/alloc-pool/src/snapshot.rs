//! A pool's memory, piece by piece, for a look from outside.
//!
//! What is there is copied under each arena's own lock, and made into a picture when no lock is held. Parked blocks and
//! streams' names are asked for afterwards, so a piece is said to be parked if it was then.

use std::sync::PoisonError;

use alloc_core::{
    Address, ArenaSnapshot, DeviceAllocator, MemoryProvider, Piece, PieceState, Run, SlabSnapshot, SlotState, Snapshot,
    Stream,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::arena::Arena;
use crate::id::slot_number;
use crate::local;
use crate::park::Parked;
use crate::placement::heap::{Kind, NOBODY, SHARED_TAG, TAGS, Tag, TagSet, each_of};
use crate::placement::slab::SlabSlots;
use crate::placement::units::{UNIT_SHIFT, class_bytes};
use crate::pool::{Inner, Pool};

/// A piece as its heap has it.
#[derive(Clone, Copy, Debug)]
struct Found {
    address: u64,
    bytes: u64,
    node: u32,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Used { requested: u64, home: Stream },
    Free { users: TagSet, home: Stream },
}

/// An arena as it was while it was locked.
#[derive(Debug)]
struct Copied {
    index: u32,
    pieces: Vec<Found>,
    slabs: Vec<SlabSlots>,
    /// The slots of blocks that wait for a thread that wants them.
    returned: Vec<u32>,
}

/// What is known of the pool beside its arenas.
#[derive(Debug, Default)]
struct Known {
    parked_nodes: FxHashSet<(u32, u32)>,
    parked_slots: FxHashSet<u32>,
    /// The slots of blocks in caches.
    cached: FxHashSet<u32>,
    /// By tag.
    streams: Vec<Vec<Stream>>,
}

impl<P: MemoryProvider> Pool<P> {
    /// Where the pool's memory is, piece by piece, and its figures. For a look from outside: each arena is locked for the time
    /// that it takes to copy its pieces, one arena after the other, so what they say may be moments apart. Nothing is asked of
    /// the backend, and a program that takes no snapshot pays nothing for it.
    ///
    /// Blocks of zero bytes have no memory, and are not in it. Of what other threads have in their caches nobody else knows:
    /// these slots are [taken](SlotState::Taken).
    ///
    /// ```
    /// use alloc_core::{DeviceAllocator, Layout, PieceState, Stream};
    ///
    /// let pool = alloc_pool::Pool::new(alloc_core::conformance::SimulatedProvider::default(), Default::default())?;
    /// let block = pool.allocate(Layout::bytes(3_000_000)?, Stream::DEFAULT)?;
    /// let snapshot = pool.snapshot();
    /// let found = snapshot.pieces().find(|piece| piece.address == block.address()).unwrap();
    /// assert_eq!(found.state, PieceState::Used { requested: 3_000_000, stream: Some(Stream::DEFAULT) });
    /// assert_eq!(snapshot.totals().reserved(), pool.statistics().reserved.current);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        let inner = &*self.inner;
        let mut snapshot = Snapshot::new(inner.device, self.statistics());
        let mut known = Known::default();
        local::all(|caches| caches.for_each_of(inner.number, |block| _ = known.cached.insert(block.slot())));
        let copied: Vec<Copied> = inner.arenas.iter().map(Copied::of).collect();
        known.cached.extend(copied.iter().flat_map(|arena| &arena.returned));
        inner.add_parked(&mut known);
        let tags = inner.lock_tags();
        known.streams = (0..TAGS).map(|tag| tags.streams_of(tag as Tag).to_vec()).collect();
        drop(tags);
        (snapshot.unplaced, snapshot.lost) = inner.lock_pages().nowhere();
        snapshot.arenas = copied.into_iter().map(|arena| arena.draw(&known)).collect();
        snapshot
    }
}

impl<P: MemoryProvider> Inner<P> {
    fn add_parked(&self, known: &mut Known) {
        let list = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        list.for_each(|parked| match parked {
            Parked::Node { arena, node } => _ = known.parked_nodes.insert((arena, node)),
            Parked::Slot(block) => _ = known.parked_slots.insert(block.slot()),
        });
    }
}

impl Copied {
    fn of(arena: &Arena) -> Self {
        // Room is made before: whoever waits for the lock does not wait for the system's memory as well.
        let [pieces, slabs, returned] = {
            let state = arena.lock();
            [state.heap.most_pieces(), state.slabs.most(), state.returns.blocks().count()]
                .map(|most| most + most / 8 + 16)
        };
        let mut copied = Self {
            index: arena.index,
            pieces: Vec::with_capacity(pieces),
            slabs: Vec::with_capacity(slabs),
            returned: Vec::with_capacity(returned),
        };
        let state = arena.lock();
        for (index, node) in state.heap.pieces() {
            let what = match node.kind {
                Kind::Used => What::Used { requested: node.requested(), home: node.home },
                Kind::Free => What::Free { users: state.heap.unfinished(node), home: node.home },
                Kind::Hole | Kind::Vacant => continue,
            };
            let address = state.addresses.of(node.start).get();
            copied.pieces.push(Found { address, bytes: u64::from(node.units) << UNIT_SHIFT, node: index, what });
        }
        state.slabs.for_each(|slab| copied.slabs.push(slab));
        copied.returned.extend(state.returns.blocks().map(|block| block.slot()));
        copied
    }

    fn draw(mut self, known: &Known) -> ArenaSnapshot {
        // Segments lie where they lie.
        self.pieces.sort_unstable_by_key(|piece| piece.address);
        let slabs: FxHashMap<u32, SlabSlots> = self.slabs.iter().map(|slab| (slab.node, *slab)).collect();
        let mut arena = ArenaSnapshot::new(self.index, Vec::new());
        let mut end = None;
        for piece in &self.pieces {
            let state = match (slabs.get(&piece.node), piece.what) {
                (Some(slab), What::Used { .. }) => PieceState::Slab(known.slab(slab)),
                (_, What::Used { requested, home }) => {
                    let stream = (home != NOBODY).then_some(home);
                    match known.parked_nodes.contains(&(self.index, piece.node)) {
                        true => PieceState::Parked { requested, stream },
                        false => PieceState::Used { requested, stream },
                    }
                }
                (_, What::Free { users, home }) => {
                    let users = each_of(users).flat_map(|tag| known.streams_at(tag, &home)).copied().collect();
                    PieceState::Free { users }
                }
            };
            let drawn = Piece::new(Address::new(piece.address), piece.bytes, state);
            match arena.runs.last_mut().filter(|_| end == Some(piece.address)) {
                Some(run) => run.pieces.push(drawn),
                None => arena.runs.push(Run::new(vec![drawn])),
            }
            end = piece.address.checked_add(piece.bytes);
        }
        arena
    }
}

impl Known {
    fn streams_of(&self, tag: Tag) -> &[Stream] {
        self.streams.get(usize::from(tag)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The same at a free piece, which has the name of the one of them that shares its tag, if it is one.
    fn streams_at<'a>(&'a self, tag: Tag, home: &'a Stream) -> &'a [Stream] {
        if tag == SHARED_TAG && *home != NOBODY { std::slice::from_ref(home) } else { self.streams_of(tag) }
    }

    fn slab(&self, slab: &SlabSlots) -> SlabSnapshot {
        let slots = (0..slab.all.count_ones()).map(|slot| {
            let number = slot_number(slab.ledger, slot);
            match slab.free >> slot & 1 {
                1 => SlotState::Free,
                _ if self.parked_slots.contains(&number) => SlotState::Parked,
                _ if self.cached.contains(&number) => SlotState::Cached,
                _ => SlotState::Taken,
            }
        });
        let stream = match self.streams_of(slab.tag) {
            [stream] => Some(*stream),
            _ => None,
        };
        SlabSnapshot::new(class_bytes(slab.class), stream, slots.collect())
    }
}
