//! The figures of a pool, gathered from its arenas, its threads' caches and its pages.

use std::sync::atomic::fence;
use std::sync::{Arc, PoisonError};

use alloc_core::{Gauge, MemoryProvider, Statistics};

use crate::cache::CacheCounters;
use crate::placement::units::{CLASSES, UNIT_SHIFT, class_bytes};
use crate::pool::Inner;
use crate::primitive::{AtomicU64, Ordering};

/// The counters of the caches that exist, and the sums of those that are gone.
#[derive(Debug, Default)]
pub(crate) struct CacheTotals {
    living: Vec<Arc<CacheCounters>>,
    gone: Sums,
    /// Counted under the lock, for threads that have no cache.
    uncached: CacheCounters,
    /// The most that was seen of bytes asked for, and of the same with rounding.
    pub(crate) peak_requested: u64,
    pub(crate) peak_in_use: u64,
}

/// Blocks that were allocated, or that were released.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    blocks: u64,
    requested: u64,
    bytes: u64,
}

impl Flow {
    fn allocated(counters: &CacheCounters) -> Self {
        let (blocks, bytes) = count_and_bytes(&counters.allocated);
        let slack = counters.allocated_slack.load(Ordering::Relaxed);
        Self { blocks, requested: bytes.saturating_sub(slack), bytes }
    }

    fn released(counters: &CacheCounters) -> Self {
        let slack = counters.released_slack.load(Ordering::Relaxed);
        let (blocks, bytes) = count_and_bytes(&counters.released);
        Self { blocks, requested: bytes.saturating_sub(slack), bytes }
    }

    fn and(self, other: Self) -> Self {
        Self {
            blocks: self.blocks + other.blocks,
            requested: self.requested + other.requested,
            bytes: self.bytes + other.bytes,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    allocated: Flow,
    released: Flow,
    cached: u64,
    refills: u64,
}

/// How often threads are looked at that allocate meanwhile.
const LOOKS: u32 = 8;

/// How many blocks there are in all classes together, and how many bytes they have.
fn count_and_bytes(by_class: &[AtomicU64; CLASSES]) -> (u64, u64) {
    by_class.iter().enumerate().fold((0, 0), |(count, bytes), (class, blocks)| {
        let blocks = blocks.load(Ordering::Relaxed);
        (count + blocks, bytes + blocks * class_bytes(class))
    })
}

impl Sums {
    /// Adds what a cache has beside what came and went.
    fn add_rest(&mut self, counters: &CacheCounters) {
        self.cached += counters.cached.load(Ordering::Relaxed);
        self.refills += counters.refills.load(Ordering::Relaxed);
    }
}

impl CacheTotals {
    pub(crate) fn add(&mut self, counters: Arc<CacheCounters>) {
        counters.place.store(self.living.len() as u64, Ordering::Relaxed);
        self.living.push(counters);
    }

    /// Adds the counters of a cache that goes away to the sums.
    pub(crate) fn retire(&mut self, counters: &Arc<CacheCounters>) {
        let place = counters.place.load(Ordering::Relaxed) as usize;
        if self.living.get(place).is_some_and(|living| Arc::ptr_eq(living, counters)) {
            let counters = self.living.swap_remove(place);
            if let Some(moved) = self.living.get(place) {
                moved.place.store(place as u64, Ordering::Relaxed);
            }
            counters.cached.store(0, Ordering::Relaxed);
            self.gone.allocated = self.gone.allocated.and(Flow::allocated(&counters));
            self.gone.released = self.gone.released.and(Flow::released(&counters));
            self.gone.add_rest(&counters);
        }
    }

    pub(crate) fn count_uncached(&self, count: impl FnOnce(&CacheCounters)) {
        count(&self.uncached);
    }

    /// Adds up what all threads counted. What they allocate meanwhile is left out though its release may be counted, lest a
    /// block that is released by then counts as one in use: a thread may come and go many million times while the one that
    /// looks here is interrupted, and a peak stays. Of some looks the one counts that had fewest blocks allocated meanwhile.
    fn sums(&self) -> Sums {
        let each = || self.living.iter().map(|counters| &**counters).chain([&self.uncached]);
        let allocated = || each().map(Flow::allocated).fold(self.gone.allocated, Flow::and);
        let mut sums = self.gone;
        let mut fewest = u64::MAX;
        for _ in 0..LOOKS {
            let before = allocated();
            // What was released is loaded after that, and before it is asked again what was allocated.
            fence(Ordering::Acquire);
            let released = each().map(Flow::released).fold(self.gone.released, Flow::and);
            fence(Ordering::Acquire);
            let meanwhile = allocated().blocks.saturating_sub(before.blocks);
            if meanwhile < fewest {
                (sums.allocated, sums.released, fewest) = (before, released, meanwhile);
            }
            if meanwhile == 0 {
                break;
            }
        }
        each().for_each(|counters| sums.add_rest(counters));
        sums.refills += count_and_bytes(&self.uncached.allocated).0;
        sums
    }
}

impl<P: MemoryProvider> Inner<P> {
    pub(crate) fn gather_statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        {
            let pages = self.lock_pages();
            statistics.reserved = pages.reserved;
            statistics.misses = pages.misses;
            statistics.moves = pages.moves;
            statistics.leaked = pages.leaked;
        }
        let (mut largest_arena_peaks, mut returned) = ((0, 0), 0);
        for arena in self.arenas.iter() {
            let state = arena.lock();
            let [requested, in_use] = state.large.gauges();
            returned += state.returns.bytes();
            for (sum, part) in [(&mut statistics.requested, &requested), (&mut statistics.in_use, &in_use)] {
                sum.current += part.current;
                sum.total += part.total;
                sum.count += part.count;
            }
            largest_arena_peaks.0 = largest_arena_peaks.0.max(requested.peak);
            largest_arena_peaks.1 = largest_arena_peaks.1.max(in_use.peak);
            statistics.largest_free = statistics.largest_free.max(u64::from(state.heap.largest_free()) << UNIT_SHIFT);
        }
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = caches.sums();
        let add = |gauge: &mut Gauge, allocated: u64, released: u64| {
            gauge.current = gauge.current.saturating_add(allocated.saturating_sub(released));
            gauge.total = gauge.total.saturating_add(allocated);
            gauge.count = gauge.count.saturating_add(sums.allocated.blocks);
        };
        add(&mut statistics.requested, sums.allocated.requested, sums.released.requested);
        add(&mut statistics.in_use, sums.allocated.bytes, sums.released.bytes);
        // A thread may be between a block and the bytes that it was smaller by.
        statistics.requested.current = statistics.requested.current.min(statistics.in_use.current);
        caches.peak_requested = caches.peak_requested.max(largest_arena_peaks.0).max(statistics.requested.current);
        caches.peak_in_use = caches.peak_in_use.max(largest_arena_peaks.1).max(statistics.in_use.current);
        statistics.requested.peak = caches.peak_requested;
        statistics.in_use.peak = caches.peak_in_use;
        drop(caches);
        statistics.hits = sums.allocated.blocks.saturating_sub(sums.refills);
        statistics.cached = sums.cached + returned;
        {
            let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            statistics.parked = parked.bytes;
            statistics.leaked += parked.leaked;
        }
        let shared = self.count_parked(&mut self.lock_tags());
        statistics.parked.current += shared.current;
        statistics.parked.peak = statistics.parked.peak.max(shared.peak).max(statistics.parked.current);
        statistics.parked.total += shared.total;
        statistics.parked.count += shared.count;
        statistics.rejected_releases = self.rejected.load(Ordering::Relaxed);
        statistics.provider_calls = self.driver.calls();
        statistics
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn whatever_order_caches_go_in_each_is_counted_once() {
        let mut totals = CacheTotals::default();
        let mut living: Vec<_> = (0..100).map(|_| Arc::new(CacheCounters::default())).collect();
        for counters in &living {
            totals.add(Arc::clone(counters));
            counters.count_allocation(3, 0);
            counters.cached.store(7, Ordering::Relaxed);
        }
        let mut step = 0;
        while !living.is_empty() {
            step += 1;
            let counters = living.swap_remove(step * 37 % living.len());
            totals.retire(&counters);
            totals.retire(&counters);
            let sums = totals.sums();
            assert_eq!((sums.allocated.blocks, sums.cached), (100, 7 * living.len() as u64));
            assert_eq!(totals.living.len(), living.len());
        }
    }
}
