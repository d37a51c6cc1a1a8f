//! Hands batches of blocks from one thread to another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lanes::{Patience, Stop};

/// Batches that a ring holds.
pub const BATCHES: usize = 8;

/// Items that are handed over at a time. The ring's cost is paid once for all of them.
pub const BATCH: usize = 64;

/// A ring of batches between one producer and one consumer. Two counters say which slots are full; a slot has a lock of
/// its own, which nobody ever waits for. Full and empty batches are swapped, so that nothing is allocated.
#[derive(Debug)]
pub struct Ring<T> {
    slots: [Mutex<Vec<T>>; BATCHES],
    pushed: Counter,
    popped: Counter,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

impl<T> Default for Ring<T> {
    fn default() -> Self {
        let slots = std::array::from_fn(|_| Mutex::new(Vec::with_capacity(BATCH)));
        Self { slots, pushed: Counter::default(), popped: Counter::default() }
    }
}

impl<T> Ring<T> {
    /// Swaps a full batch for an empty one; false if there is no room.
    #[inline]
    pub fn try_push(&self, batch: &mut Vec<T>) -> bool {
        let pushed = self.pushed.0.load(Ordering::Relaxed);
        if pushed - self.popped.0.load(Ordering::Acquire) == BATCHES {
            return false;
        }
        std::mem::swap(batch, &mut self.slot(pushed));
        self.pushed.0.store(pushed + 1, Ordering::Release);
        true
    }

    /// Swaps an empty batch for the oldest full one; false if there is none.
    #[inline]
    pub fn try_pop(&self, batch: &mut Vec<T>) -> bool {
        let popped = self.popped.0.load(Ordering::Relaxed);
        if self.pushed.0.load(Ordering::Acquire) == popped {
            return false;
        }
        std::mem::swap(batch, &mut self.slot(popped));
        self.popped.0.store(popped + 1, Ordering::Release);
        true
    }

    /// As [`Ring::try_push`], waiting for room; false if it is time to stop.
    #[inline]
    pub fn push(&self, batch: &mut Vec<T>, stop: &Stop) -> bool {
        let mut patience = Patience::default();
        while !self.try_push(batch) {
            if stop.is_set() {
                return false;
            }
            patience.wait();
        }
        true
    }

    /// As [`Ring::try_pop`], waiting for a batch; false if it is time to stop.
    #[inline]
    pub fn pop(&self, batch: &mut Vec<T>, stop: &Stop) -> bool {
        let mut patience = Patience::default();
        while !self.try_pop(batch) {
            if stop.is_set() {
                return false;
            }
            patience.wait();
        }
        true
    }

    #[inline]
    fn slot(&self, number: usize) -> MutexGuard<'_, Vec<T>> {
        self.slots[number % BATCHES].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn batches_come_out_in_their_order() {
        let (ring, stop) = (Ring::default(), Stop::default());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut batch = Vec::new();
                for number in 0..1000 {
                    assert!(batch.is_empty());
                    batch.extend([number; 3]);
                    assert!(ring.push(&mut batch, &stop));
                }
            });
            let mut batch = Vec::new();
            for number in 0..1000 {
                assert!(ring.pop(&mut batch, &stop));
                assert_eq!(batch, [number; 3]);
                batch.clear();
            }
        });
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_empty_one_gives_none() {
        let ring = Ring::default();
        for number in 0..BATCHES {
            assert!(ring.try_push(&mut vec![number]));
        }
        assert!(!ring.try_push(&mut vec![99]));
        for number in 0..BATCHES {
            let mut batch = Vec::new();
            assert!(ring.try_pop(&mut batch));
            assert_eq!(batch, [number]);
        }
        assert!(!ring.try_pop(&mut Vec::new()));
    }
}
