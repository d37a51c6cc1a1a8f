//! The figures of a pool, gathered from its arenas, its threads' caches and its pages.

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

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    allocations: u64,
    allocated_requested: u64,
    allocated_bytes: u64,
    released_requested: u64,
    released_bytes: u64,
    cached: u64,
    refills: u64,
}

/// How many blocks there are in all classes together, and how many bytes they have.
fn count_and_bytes(by_class: &[AtomicU64; CLASSES]) -> (u64, u64) {
    by_class.iter().enumerate().fold((0, 0), |(count, bytes), (class, blocks)| {
        let blocks = blocks.load(Ordering::Relaxed);
        (count + blocks, bytes + blocks * class_bytes(class))
    })
}

impl Sums {
    fn add(&mut self, counters: &CacheCounters) {
        // Releases first: an allocation that is missed only makes the figures older, never negative.
        let slack = counters.released_slack.load(Ordering::Relaxed);
        let (_, bytes) = count_and_bytes(&counters.released);
        self.released_bytes += bytes;
        self.released_requested += bytes.saturating_sub(slack);
        let (count, bytes) = count_and_bytes(&counters.allocated);
        self.allocations += count;
        self.allocated_bytes += bytes;
        self.allocated_requested += bytes.saturating_sub(counters.allocated_slack.load(Ordering::Relaxed));
        self.cached += counters.cached.load(Ordering::Relaxed);
        self.refills += counters.refills.load(Ordering::Relaxed);
    }
}

impl CacheTotals {
    pub(crate) fn add(&mut self, counters: Arc<CacheCounters>) {
        self.living.push(counters);
    }

    /// Adds the counters of a cache that goes away to the sums.
    pub(crate) fn retire(&mut self, counters: &Arc<CacheCounters>) {
        if let Some(position) = self.living.iter().position(|living| Arc::ptr_eq(living, counters)) {
            let counters = self.living.swap_remove(position);
            counters.cached.store(0, Ordering::Relaxed);
            self.gone.add(&counters);
        }
    }

    pub(crate) fn count_uncached(&self, count: impl FnOnce(&CacheCounters)) {
        count(&self.uncached);
    }

    fn sums(&self) -> Sums {
        let mut sums = self.gone;
        sums.add(&self.uncached);
        sums.refills += count_and_bytes(&self.uncached.allocated).0;
        for counters in &self.living {
            sums.add(counters);
        }
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
            gauge.count = gauge.count.saturating_add(sums.allocations);
        };
        add(&mut statistics.requested, sums.allocated_requested, sums.released_requested);
        add(&mut statistics.in_use, sums.allocated_bytes, sums.released_bytes);
        // A thread may be between a block and the bytes that it was smaller by.
        statistics.requested.current = statistics.requested.current.min(statistics.in_use.current);
        caches.peak_requested = caches.peak_requested.max(largest_arena_peaks.0).max(statistics.requested.current);
        caches.peak_in_use = caches.peak_in_use.max(largest_arena_peaks.1).max(statistics.in_use.current);
        statistics.requested.peak = caches.peak_requested;
        statistics.in_use.peak = caches.peak_in_use;
        drop(caches);
        statistics.hits = sums.allocations.saturating_sub(sums.refills);
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
