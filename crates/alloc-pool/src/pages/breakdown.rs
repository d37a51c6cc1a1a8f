//! Where the bytes of a pool are: asked for, rounded up, or free, and then why they are not used.

use alloc_core::{DeviceAllocator, MemoryProvider};

use super::Pages;
use crate::arena::ArenaState;
use crate::placement::heap::Kind;
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Pool;

/// The physical memory of a pool, in bytes, by what it is kept for. The parts add up to `reserved`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Breakdown {
    /// Physical memory held.
    pub reserved: u64,
    /// What living blocks were asked to have.
    pub requested: u64,
    /// What large blocks have beyond that: they are placed in units of 512 bytes.
    pub rounding_of_large: u64,
    /// What small blocks have beyond that: they are as large as their size class.
    pub rounding_of_small: u64,
    /// Slots of slabs that no block is in: free, in thread caches, or on their way there; and blocks that wait for
    /// work of other streams.
    pub slots: u64,
    /// Free memory beside used memory in one page.
    pub within_pages: u64,
    /// Free pages of pieces of which other pages are used: a piece moves as a whole.
    pub within_pieces: u64,
    /// Pieces that are wholly free.
    pub free_pieces: u64,
    /// Pieces that neither go back nor are used again, as a call that was to unmap them failed.
    pub leaked: u64,
}

impl<P: MemoryProvider> Pool<P> {
    /// Where the pool's bytes are. For a look from outside: it locks all arenas, one after the other, and takes time
    /// in proportion to the number of pieces. Exact while no other thread allocates or releases.
    ///
    /// ```
    /// use alloc_core::{DeviceAllocator, Layout, Stream};
    ///
    /// let pool = alloc_pool::Pool::new(alloc_core::conformance::SimulatedProvider::default(), Default::default())?;
    /// let block = pool.allocate(Layout::bytes(3_000_000)?, Stream::DEFAULT)?;
    /// let bytes = pool.breakdown();
    /// assert_eq!((bytes.requested, bytes.rounding_of_large), (3_000_000, 320));
    /// assert_eq!(bytes.reserved, 4 << 20); // two pages of 2 MiB
    /// assert_eq!(bytes.within_pages, (4 << 20) - 3_000_320);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn breakdown(&self) -> Breakdown {
        let figures = self.statistics();
        let inner = &*self.inner;
        let pages = inner.lock_pages();
        let (idle, leaked) = pages.nowhere();
        let mut bytes =
            Breakdown { reserved: pages.reserved.current, free_pieces: idle, leaked, ..Breakdown::default() };
        bytes.requested = figures.requested.current;
        let (mut used, mut large) = (0, 0);
        for index in 0..pages.arena_count() {
            let Some(arena) = inner.arena(index) else { continue };
            let state = arena.lock();
            let [asked, rounded] = state.large.gauges();
            large += rounded.current;
            bytes.rounding_of_large += rounded.current - asked.current;
            used += state.heap.used_units() << UNIT_SHIFT;
            pages.add_free(index, &state, &mut bytes);
        }
        let small = figures.in_use.current.saturating_sub(large);
        bytes.rounding_of_small = figures.in_use.current.saturating_sub(bytes.requested + bytes.rounding_of_large);
        bytes.slots = used.saturating_sub(large + small);
        bytes
    }
}

impl<T> Pages<T> {
    fn bytes_of(&self, handle: u32) -> u64 {
        u64::from(self.handles[handle as usize].granules) * self.granule_bytes()
    }

    /// The bytes that are active at no place: those that are free, and those that are leaked.
    pub(crate) fn nowhere(&self) -> (u64, u64) {
        let idle = self.idle.iter().map(|&handle| self.bytes_of(handle)).sum();
        let leaked = (0..).zip(&self.handles).filter(|(_, handle)| handle.leaked && handle.active.is_none());
        (idle, leaked.map(|(index, _)| self.bytes_of(index)).sum())
    }

    /// Adds the arena's free memory, by what else is in its page and in its piece.
    fn add_free(&self, arena: u32, state: &ArenaState, bytes: &mut Breakdown) {
        let page = self.granule_bytes();
        let granule_units = u64::from(self.granule_units);
        let mut free = vec![0_u64; self.arenas[arena as usize].views.len()];
        state.heap.for_each_free(1, |_, node| {
            debug_assert_eq!(node.kind, Kind::Free);
            for granule in u64::from(node.start) / granule_units..node.end().div_ceil(granule_units) {
                let from = (granule * granule_units).max(u64::from(node.start));
                let to = ((granule + 1) * granule_units).min(node.end());
                if let Some(free) = free.get_mut(granule as usize) {
                    *free += (to - from) << UNIT_SHIFT;
                }
            }
        });
        let active = self.handles.iter().filter_map(|handle| {
            let place = handle.active.filter(|place| place.arena == arena)?;
            free.get(place.granule as usize..(place.granule + handle.granules) as usize)
        });
        for piece in active {
            if piece.iter().all(|&free| free == page) {
                bytes.free_pieces += piece.len() as u64 * page;
                continue;
            }
            for &free in piece {
                *(if free == page { &mut bytes.within_pieces } else { &mut bytes.within_pages }) += free;
            }
        }
    }
}
