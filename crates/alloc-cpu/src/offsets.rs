//! Which parts of a page file are taken: best fit over free ranges that merge with their neighbours.

use std::collections::{BTreeMap, BTreeSet};

/// Free and taken ranges of a file that grows at its end. Everything in bytes.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// Free ranges below `end`: start and length. No two touch.
    by_start: BTreeMap<u64, u64>,
    /// The same by length and start.
    by_length: BTreeSet<(u64, u64)>,
    end: u64,
}

impl Offsets {
    /// A range of `bytes` bytes, or `None` where the file's length would overflow.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<u64> {
        let best = self.by_length.range((bytes, 0)..).next().copied();
        let start = match best {
            Some((length, start)) => {
                self.remove(start, length);
                if length > bytes {
                    self.insert(start + bytes, length - bytes);
                }
                start
            }
            None => {
                // The last free range may reach the end: then the file has only to grow by the difference.
                let last = self.by_start.last_key_value().map(|(&start, &length)| (start, length));
                let start = match last {
                    Some((start, length)) if start + length == self.end => start,
                    _ => self.end,
                };
                let end = start.checked_add(bytes).filter(|&end| end <= i64::MAX as u64)?;
                if start < self.end {
                    self.remove(start, self.end - start);
                }
                self.end = end;
                start
            }
        };
        Some(start)
    }

    /// Gives back a range that was taken.
    pub(crate) fn give(&mut self, start: u64, bytes: u64) {
        let (mut from, mut length) = (start, bytes);
        if let Some((&before, &its_length)) = self.by_start.range(..start).next_back()
            && before + its_length == start
        {
            self.remove(before, its_length);
            (from, length) = (before, length + its_length);
        }
        if let Some(&after) = self.by_start.get(&(start + bytes)) {
            self.remove(start + bytes, after);
            length += after;
        }
        self.insert(from, length);
    }

    /// Where the last range ends that was ever taken.
    #[cfg(test)]
    fn end(&self) -> u64 {
        self.end
    }

    #[cfg(test)]
    fn taken(&self) -> u64 {
        self.end - self.by_start.values().sum::<u64>()
    }

    fn insert(&mut self, start: u64, length: u64) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u64, length: u64) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_reused_and_merge() {
        let mut offsets = Offsets::default();
        let ranges: Vec<u64> = (0..4).map(|_| offsets.take(10).unwrap()).collect();
        assert_eq!((&ranges[..], offsets.end(), offsets.taken()), (&[0, 10, 20, 30][..], 40, 40));
        offsets.give(0, 10);
        offsets.give(20, 10);
        assert_eq!(offsets.take(10), Some(0));
        offsets.give(0, 10);
        offsets.give(10, 10);
        assert_eq!(offsets.by_start.len(), 1);
        assert_eq!(offsets.take(30), Some(0));
        assert_eq!((offsets.end(), offsets.taken()), (40, 40));
    }

    #[test]
    fn the_last_free_range_is_extended() {
        let mut offsets = Offsets::default();
        assert_eq!((offsets.take(10), offsets.take(10)), (Some(0), Some(10)));
        offsets.give(10, 10);
        assert_eq!((offsets.take(25), offsets.end()), (Some(10), 35));
        assert!(offsets.by_length.is_empty());
        assert_eq!(offsets.take(i64::MAX as u64), None);
        assert_eq!((offsets.end(), offsets.taken()), (35, 35));
    }

    #[test]
    fn random_traffic_never_overlaps_and_ends_whole() {
        let mut offsets = Offsets::default();
        let mut living: Vec<(u64, u64)> = Vec::new();
        let mut state = 7u64;
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = state >> 33;
            if living.is_empty() || dice % 5 < 3 {
                let bytes = 1 + dice % 17;
                let start = offsets.take(bytes).unwrap();
                assert!(living.iter().all(|&(at, its)| at + its <= start || start + bytes <= at));
                living.push((start, bytes));
            } else {
                let (start, bytes) = living.swap_remove((dice % living.len() as u64) as usize);
                offsets.give(start, bytes);
            }
            assert_eq!(offsets.taken(), living.iter().map(|range| range.1).sum::<u64>());
        }
        for (start, bytes) in living {
            offsets.give(start, bytes);
        }
        assert_eq!(offsets.by_start.iter().next(), Some((&0, &offsets.end())));
        assert_eq!((offsets.by_start.len(), offsets.by_length.len(), offsets.taken()), (1, 1, 0));
    }
}
