//! Counting by thread: each counts for itself and tells the others when the sum has changed enough to matter.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use alloc_core::Gauge;

/// A thread keeps changes of up to this many bytes to itself.
const UNTOLD: i64 = 32 << 10;

/// What one thread has counted. Only that thread writes, with plain stores; any may read. What readers add up is never
/// moved from one number to another while a thread lives: whoever read one before and the other after would count it
/// twice, and a single large block doubles the sum.
#[derive(Debug, Default)]
pub(crate) struct ThreadTally {
    allocated: AtomicU64,
    allocations: AtomicU64,
    /// Change of the bytes in use by this thread.
    in_use: AtomicI64,
    /// As much of it as [`Total`] knows of. For the thread itself.
    told: AtomicI64,
    /// The bytes in use by all threads when this one last told. For the thread itself.
    base: AtomicI64,
    /// The highest that the bytes in use by all threads have been since then, as far as this thread knows.
    highest: AtomicI64,
}

/// What all threads together have counted.
#[derive(Debug, Default)]
pub(crate) struct Total {
    /// As far as threads have told.
    told: AtomicI64,
    peak: AtomicI64,
    /// Of threads that have ended or have no tally.
    in_use: AtomicI64,
    allocated: AtomicU64,
    allocations: AtomicU64,
}

impl ThreadTally {
    pub(crate) fn add(&self, bytes: u64, total: &Total) {
        self.allocated.store(self.allocated.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
        self.allocations.store(self.allocations.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        let in_use = self.in_use.load(Ordering::Relaxed).saturating_add_unsigned(bytes);
        self.in_use.store(in_use, Ordering::Relaxed);
        let untold = in_use.saturating_sub(self.told.load(Ordering::Relaxed));
        if untold > UNTOLD {
            return self.tell(total);
        }
        let sum = self.base.load(Ordering::Relaxed).saturating_add(untold);
        if sum > self.highest.load(Ordering::Relaxed) {
            self.highest.store(sum, Ordering::Relaxed);
        }
    }

    pub(crate) fn sub(&self, bytes: u64, total: &Total) {
        let in_use = self.in_use.load(Ordering::Relaxed).saturating_sub_unsigned(bytes);
        self.in_use.store(in_use, Ordering::Relaxed);
        if in_use.saturating_sub(self.told.load(Ordering::Relaxed)) < -UNTOLD {
            self.tell(total);
        }
    }

    fn tell(&self, total: &Total) {
        let in_use = self.in_use.load(Ordering::Relaxed);
        let untold = in_use.saturating_sub(self.told.load(Ordering::Relaxed));
        let above = self.highest.load(Ordering::Relaxed).saturating_sub(self.base.load(Ordering::Relaxed));
        let before = total.told.fetch_add(untold, Ordering::Relaxed);
        let now = before.saturating_add(untold);
        total.reach(before.saturating_add(above.max(untold)));
        self.told.store(in_use, Ordering::Relaxed);
        self.base.store(now, Ordering::Relaxed);
        // Released, so that whoever finds it lowered finds the peak too.
        self.highest.store(now, Ordering::Release);
    }

    /// Hands everything on, for a thread that ends. Nobody may be reading meanwhile.
    pub(crate) fn close(&self, total: &Total) {
        self.tell(total);
        total.in_use.fetch_add(self.in_use.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        total.allocated.fetch_add(self.allocated.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        total.allocations.fetch_add(self.allocations.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Total {
    /// Counts for a thread that has no tally of its own.
    pub(crate) fn add(&self, bytes: u64) {
        self.in_use.fetch_add(clamp(bytes), Ordering::Relaxed);
        let before = self.told.fetch_add(clamp(bytes), Ordering::Relaxed);
        self.reach(before.saturating_add_unsigned(bytes));
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        self.allocations.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts for a thread that has no tally of its own.
    pub(crate) fn sub(&self, bytes: u64) {
        self.in_use.fetch_sub(clamp(bytes), Ordering::Relaxed);
        self.told.fetch_sub(clamp(bytes), Ordering::Relaxed);
    }

    fn reach(&self, in_use: i64) {
        if in_use > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(in_use, Ordering::Relaxed);
        }
    }

    /// The figures, with what the threads have not told yet. The peak is exact for one thread; several can be past
    /// it by what each keeps untold.
    pub(crate) fn gauge<'a>(&self, threads: impl Iterator<Item = &'a ThreadTally>) -> Gauge {
        let mut current = self.in_use.load(Ordering::Relaxed);
        let mut highest = 0i64;
        let mut allocated = self.allocated.load(Ordering::Relaxed);
        let mut allocations = self.allocations.load(Ordering::Relaxed);
        for thread in threads {
            current = current.saturating_add(thread.in_use.load(Ordering::Relaxed));
            highest = highest.max(thread.highest.load(Ordering::Acquire));
            allocated = allocated.wrapping_add(thread.allocated.load(Ordering::Relaxed));
            allocations = allocations.wrapping_add(thread.allocations.load(Ordering::Relaxed));
        }
        let peak = self.peak.load(Ordering::Relaxed).max(highest).max(current);
        let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
        Gauge { current: bytes(current), peak: bytes(peak), total: allocated, count: allocations }
    }
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_counts_exactly() {
        let (total, tally) = (Total::default(), ThreadTally::default());
        let mut exact = Gauge::default();
        let mut state = 3u64;
        let mut living = Vec::new();
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if state >> 63 == 0 || living.is_empty() {
                let bytes = (state >> 40) % 5_000;
                living.push(bytes);
                tally.add(bytes, &total);
                exact.add(bytes);
            } else if let Some(bytes) = living.pop() {
                tally.sub(bytes, &total);
                exact.sub(bytes);
            }
            assert_eq!(total.gauge(std::iter::once(&tally)), exact);
        }
        tally.close(&total);
        assert_eq!(total.gauge(std::iter::empty()), exact);
    }
}
