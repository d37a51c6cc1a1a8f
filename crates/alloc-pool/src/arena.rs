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
    pub(crate) large: LargeCounts,
}

/// What became of an arena's large blocks, in bytes. Sums that only grow, so that counting a block is a few additions.
#[derive(Debug, Default)]
pub(crate) struct LargeCounts {
    allocations: u64,
    allocated: u64,
    released: u64,
    /// What rounding added to the blocks allocated, and to those released.
    padding: u64,
    padding_released: u64,
    peak_in_use: u64,
    peak_requested: u64,
}

impl LargeCounts {
    /// Counts a block of `bytes`, of which `padding` were not asked for.
    #[inline(always)]
    pub(crate) fn count_allocation(&mut self, bytes: u64, padding: u64) {
        self.allocations += 1;
        self.allocated = self.allocated.wrapping_add(bytes);
        self.padding = self.padding.wrapping_add(padding);
        let in_use = self.in_use();
        if in_use > self.peak_in_use {
            self.peak_in_use = in_use;
        }
        let requested = self.requested();
        if requested > self.peak_requested {
            self.peak_requested = requested;
        }
    }

    #[inline(always)]
    pub(crate) fn count_release(&mut self, bytes: u64, padding: u64) {
        self.released = self.released.wrapping_add(bytes);
        self.padding_released = self.padding_released.wrapping_add(padding);
    }

    #[inline(always)]
    fn in_use(&self) -> u64 {
        self.allocated.wrapping_sub(self.released)
    }

    #[inline(always)]
    fn requested(&self) -> u64 {
        self.in_use().wrapping_sub(self.padding.wrapping_sub(self.padding_released))
    }

    /// Counts the peaks from what is there now.
    pub(crate) fn reset_peaks(&mut self) {
        (self.peak_in_use, self.peak_requested) = (self.in_use(), self.requested());
    }

    /// Bytes asked for, and the same with rounding.
    pub(crate) fn gauges(&self) -> [Gauge; 2] {
        let gauge = |current, peak, total| Gauge { current, peak, total, count: self.allocations };
        [
            gauge(self.requested(), self.peak_requested, self.allocated.wrapping_sub(self.padding)),
            gauge(self.in_use(), self.peak_in_use, self.allocated),
        ]
    }
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
                large: LargeCounts::default(),
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
