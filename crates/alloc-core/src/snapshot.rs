//! A picture of an allocator's memory at one moment: plain data, for whoever draws, prints or compares it.

use crate::{Address, Device, Statistics, Stream};

/// Where an allocator's memory is, piece by piece.
///
/// Taken piece after piece while the program goes on: what different arenas say, and the figures, may be moments apart. While
/// nobody allocates or releases they agree: the pieces with [`Snapshot::unplaced`] and [`Snapshot::lost`] are what is reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whose memory it is.
    pub device: Device,
    /// The figures.
    pub statistics: Statistics,
    /// The arenas, by number.
    pub arenas: Vec<ArenaSnapshot>,
    /// Bytes of physical memory that is free, and in use at no address.
    pub unplaced: u64,
    /// Bytes of physical memory that neither go back nor are used again.
    pub lost: u64,
}

impl Snapshot {
    /// A snapshot without arenas.
    pub fn new(device: Device, statistics: Statistics) -> Self {
        Self { device, statistics, arenas: Vec::new(), unplaced: 0, lost: 0 }
    }

    /// All pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.arenas.iter().flat_map(|arena| &arena.runs).flat_map(|run| &run.pieces)
    }

    /// How many bytes there are of what.
    ///
    /// ```
    /// use alloc_core::{Address, ArenaSnapshot, Device, Piece, PieceState, Run, Snapshot, Statistics};
    ///
    /// let mut snapshot = Snapshot::new(Device::CPU, Statistics::default());
    /// let state = PieceState::Free { users: Vec::new() };
    /// let run = Run::new(vec![Piece::new(Address::new(4096), 512, state)]);
    /// snapshot.arenas.push(ArenaSnapshot::new(0, vec![run]));
    /// assert_eq!((snapshot.totals().free, snapshot.totals().reserved()), (512, 512));
    /// ```
    pub fn totals(&self) -> SnapshotTotals {
        let mut totals = SnapshotTotals { unplaced: self.unplaced, lost: self.lost, ..SnapshotTotals::default() };
        self.pieces().for_each(|piece| totals.count(piece));
        totals
    }
}

/// The memory of one arena: what an allocator places blocks in under one lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArenaSnapshot {
    /// Its number.
    pub index: u32,
    /// What of its addresses has memory, in their order. Between runs there is none.
    pub runs: Vec<Run>,
}

impl ArenaSnapshot {
    /// An arena with these runs.
    pub const fn new(index: u32, runs: Vec<Run>) -> Self {
        Self { index, runs }
    }
}

/// Pieces one after the other, each of which begins where the one before ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Run {
    /// At least one.
    pub pieces: Vec<Piece>,
}

impl Run {
    /// A run of these pieces.
    pub const fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces }
    }

    /// Where it begins; `None` without pieces.
    pub fn address(&self) -> Option<Address> {
        self.pieces.first().map(|piece| piece.address)
    }

    /// How long it is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().fold(0, |bytes, piece| bytes.saturating_add(piece.bytes))
    }
}

/// A part of a run that is all in one state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Where it begins.
    pub address: Address,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// What it is.
    pub state: PieceState,
}

impl Piece {
    /// A piece of `bytes` bytes from `address` on.
    pub const fn new(address: Address, bytes: u64, state: PieceState) -> Self {
        Self { address, bytes, state }
    }
}

/// What a piece is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PieceState {
    /// A block that somebody has.
    Used {
        /// How many bytes were asked for.
        requested: u64,
        /// Whose it is; `None` if that stream is gone.
        stream: Option<Stream>,
    },
    /// A block that was released, and waits for work of other streams than its own.
    Parked {
        /// How many bytes were asked for.
        requested: u64,
        /// Whose it was; `None` if that stream is gone.
        stream: Option<Stream>,
    },
    /// Small blocks of one size, one after the other.
    Slab(SlabSnapshot),
    /// Free memory.
    Free {
        /// The streams whose work may still touch it, as far as the allocator knows; none if anybody may have it at once.
        users: Vec<Stream>,
    },
}

/// Small blocks of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlabSnapshot {
    /// Bytes of each.
    pub slot_bytes: u64,
    /// Whose blocks they are; `None` if several streams share them.
    pub stream: Option<Stream>,
    /// In the order of addresses.
    pub slots: Vec<SlotState>,
}

impl SlabSnapshot {
    /// A slab of slots of `slot_bytes` bytes each.
    pub const fn new(slot_bytes: u64, stream: Option<Stream>, slots: Vec<SlotState>) -> Self {
        Self { slot_bytes, stream, slots }
    }
}

/// What a slot of a slab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotState {
    /// Free, for a block of the slab's stream.
    Free,
    /// In a block that somebody has, or in the cache of a thread other than the one that asked: only that one can tell.
    Taken,
    /// Released, and in the cache of the thread that asked, or on its way to another.
    Cached,
    /// Released, and waiting for work of other streams.
    Parked,
}

/// How many bytes a [`Snapshot`] has of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotTotals {
    /// Large blocks that somebody has, with rounding.
    pub used: u64,
    /// Slots in blocks that somebody has, or in other threads' caches.
    pub taken: u64,
    /// Slots known to be in caches.
    pub cached: u64,
    /// What waits for work of other streams.
    pub parked: u64,
    /// Slots that are free.
    pub free_slots: u64,
    /// Memory that is free, some of it behind work of streams.
    pub free: u64,
    /// Physical memory that is in use at no address.
    pub unplaced: u64,
    /// Physical memory that is never used again.
    pub lost: u64,
}

impl SnapshotTotals {
    /// All of it.
    pub fn reserved(&self) -> u64 {
        let parts =
            [self.used, self.taken, self.cached, self.parked, self.free_slots, self.free, self.unplaced, self.lost];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    fn count(&mut self, piece: &Piece) {
        let add = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
        match &piece.state {
            PieceState::Used { .. } => add(&mut self.used, piece.bytes),
            PieceState::Parked { .. } => add(&mut self.parked, piece.bytes),
            PieceState::Free { .. } => add(&mut self.free, piece.bytes),
            PieceState::Slab(slab) => {
                for slot in &slab.slots {
                    let sum = match slot {
                        SlotState::Free => &mut self.free_slots,
                        SlotState::Taken => &mut self.taken,
                        SlotState::Cached => &mut self.cached,
                        SlotState::Parked => &mut self.parked,
                    };
                    add(sum, slab.slot_bytes);
                }
            }
        }
    }
}
