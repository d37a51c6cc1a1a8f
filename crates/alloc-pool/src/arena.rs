//! An arena: an address range with its heap and slabs, under one lock. All threads start at one arena; those that meet
//! at its lock spread over more.

use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::Yield;

use alloc_core::{Address, Gauge};

use crate::placement::heap::Heap;
use crate::placement::slab::Slabs;
use crate::placement::units::UNIT_SHIFT;

/// Size of the range that gives blocks of zero bytes their addresses.
pub(crate) const ZERO_RANGE: u64 = 2 << 20;

/// Arenas come in pairs: one for large blocks, and the next one for slabs, so that small blocks that live long don't
/// lie between large ones.
pub(crate) const SLAB_ARENA: u32 = 1;

/// Whether the arena of this index is for slabs.
pub(crate) fn is_for_slabs(arena: u32) -> bool {
    arena % 2 == SLAB_ARENA
}

/// One arena. The alignment keeps the locks of two arenas out of each other's cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Arena {
    /// Held for tens of nanoseconds by one thread that hardly ever meets another, so giving it back with a plain store
    /// counts for more than sleeping well: a waiting thread yields.
    state: SpinMutex<ArenaState, Yield>,
}

/// The state of an arena while it is locked.
pub(crate) type Locked<'a> = SpinMutexGuard<'a, ArenaState>;

/// What the lock of an arena protects.
#[derive(Debug)]
pub(crate) struct ArenaState {
    pub(crate) heap: Heap,
    pub(crate) slabs: Slabs,
    pub(crate) addresses: Addresses,
    /// One bit for each free slab of zero-byte blocks.
    pub(crate) zero_slabs: u64,
    /// Large blocks: bytes asked for, and with rounding.
    pub(crate) requested: Gauge,
    pub(crate) in_use: Gauge,
}

/// From offsets to addresses.
#[derive(Debug)]
pub(crate) enum Addresses {
    /// One reserved range.
    Range { base: u64 },
    /// Segments with addresses of their own: that of each granule, if it has memory.
    Segments { granules: Vec<u64>, granule_units: u32 },
}

impl Addresses {
    #[inline]
    pub(crate) fn of(&self, unit: u32) -> Address {
        match self {
            Self::Range { base } => Address::new(base + (u64::from(unit) << UNIT_SHIFT)),
            Self::Segments { granules, granule_units } => {
                let base = granules.get((unit / granule_units) as usize).copied().unwrap_or(0);
                Address::new(base + (u64::from(unit % granule_units) << UNIT_SHIFT))
            }
        }
    }
}

impl Arena {
    pub(crate) fn new(heap: Heap, addresses: Addresses) -> Self {
        let zero_slabs = if matches!(addresses, Addresses::Range { .. }) { u64::MAX } else { 0 };
        Self {
            state: SpinMutex::new(ArenaState {
                heap,
                slabs: Slabs::new(),
                addresses,
                zero_slabs,
                requested: Gauge::default(),
                in_use: Gauge::default(),
            }),
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_> {
        self.state.lock()
    }

    /// The lock, and whether another thread was in the way.
    #[inline]
    pub(crate) fn lock_or_wait(&self) -> (Locked<'_>, bool) {
        match self.state.try_lock() {
            Some(state) => (state, false),
            None => (self.lock(), true),
        }
    }
}
