//! What callers hold of a heap, counted exactly.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Bytes are the low bits of the word that says what lives, blocks the others: a call then changes one word. 256 TiB.
const BLOCK_SHIFT: u32 = 48;
const BLOCK: u64 = 1 << BLOCK_SHIFT;
const BYTES: u64 = BLOCK - 1;
/// As many blocks as the word can't tell from none.
const LAP: u64 = 1 << (u64::BITS - BLOCK_SHIFT);

/// Bytes and blocks that live, the most bytes that did, and failures.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Live {
    now: AtomicU64,
    peak: AtomicU64,
    /// How often the blocks of the word passed their end, less how often they came back.
    laps: AtomicU64,
    /// Number of requests that failed for want of memory.
    failures: AtomicU64,
    /// What the heap's own figures lack to be what callers asked for, in bytes and requests: requests to private pools, less the
    /// segments that these took from the heap. Either may be below zero.
    lacking: [AtomicI64; 2],
}

impl Live {
    #[inline]
    pub(crate) fn add(&self, bytes: u64) {
        let before = self.now.fetch_add(BLOCK + bytes, Ordering::Relaxed);
        if before >> BLOCK_SHIFT == LAP - 1 {
            self.laps.fetch_add(1, Ordering::Relaxed);
        }
        let now = (before & BYTES) + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn sub(&self, bytes: u64) {
        let before = self.now.fetch_sub(BLOCK + bytes, Ordering::Relaxed);
        if before >> BLOCK_SHIFT == 0 {
            self.laps.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a request that the heap did not see.
    #[cfg(feature = "cuda")]
    pub(crate) fn asked_elsewhere(&self, bytes: u64) {
        [bytes as i64, 1].iter().zip(&self.lacking).for_each(|(more, sum)| _ = sum.fetch_add(*more, Ordering::Relaxed));
    }

    /// Counts a request to the heap that is no caller's.
    #[cfg(feature = "cuda")]
    pub(crate) fn asked_by_a_pool(&self, bytes: u64) {
        [bytes as i64, 1].iter().zip(&self.lacking).for_each(|(less, sum)| _ = sum.fetch_sub(*less, Ordering::Relaxed));
    }

    /// Bytes and requests that the heap's own figures lack.
    pub(crate) fn lacking(&self) -> [i64; 2] {
        [0, 1].map(|place: usize| self.lacking[place].load(Ordering::Relaxed))
    }

    pub(crate) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Exact as long as nobody changes it; else it may be a lap off for a moment at the end of one.
    pub(crate) fn blocks(&self) -> u64 {
        self.laps
            .load(Ordering::Relaxed)
            .wrapping_mul(LAP)
            .wrapping_add(self.now.load(Ordering::Relaxed) >> BLOCK_SHIFT)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn current(&self) -> u64 {
        self.now.load(Ordering::Relaxed) & BYTES
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.current(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_lose_no_count() {
        let live = Live::default();
        (0..LAP - 3).for_each(|_| live.add(1));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                // Each crosses the end of a lap again and again.
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        live.add(7);
                        live.add(9);
                        live.sub(7);
                        live.sub(9);
                    }
                });
            }
        });
        assert_eq!((live.blocks(), live.current()), (LAP - 3, LAP - 3));
        assert!(live.peak() >= LAP - 3 + 16 && live.peak() <= LAP - 3 + 4 * 16);
    }

    #[test]
    fn bytes_and_blocks_are_counted_past_what_a_word_holds() {
        let live = Live::default();
        let blocks = 3 * LAP + 5;
        (0..blocks).for_each(|block| live.add(block % 7));
        let bytes: u64 = (0..blocks).map(|block| block % 7).sum();
        assert_eq!((live.blocks(), live.current(), live.peak()), (blocks, bytes, bytes));
        (0..blocks).for_each(|block| live.sub(block % 7));
        assert_eq!((live.blocks(), live.current(), live.peak()), (0, 0, bytes));
        live.add(1 << 47);
        live.reset_peak();
        assert_eq!((live.blocks(), live.current(), live.peak()), (1, 1 << 47, 1 << 47));
    }
}
