//! Which bytes of a buffer are known to be initialised.

use std::ops::Range;

/// A set of bytes: the prefix in one number, since nearly every buffer is written from its start, and islands behind
/// it for those that are filled piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    prefix: u64,
    /// Sorted, disjoint, not adjacent, none empty, all past the prefix and not touching it.
    islands: Vec<Range<u64>>,
}

impl Extent {
    /// The bytes from 0 to `len`.
    pub(crate) const fn full(len: u64) -> Self {
        Self { prefix: len, islands: Vec::new() }
    }

    /// How many bytes from the start on are in the set.
    pub(crate) const fn prefix(&self) -> u64 {
        self.prefix
    }

    /// How many of the `len` bytes from `start` on are in the set before the first one that is not.
    pub(crate) fn run(&self, start: u64, len: u64) -> u64 {
        let end = if start < self.prefix {
            self.prefix
        } else {
            self.islands.iter().find(|island| island.contains(&start)).map_or(start, |island| island.end)
        };
        (end - start).min(len)
    }

    /// Adds `len` bytes from `start` on.
    pub(crate) fn insert(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        if len == 0 {
            return;
        }
        if start <= self.prefix {
            self.prefix = self.prefix.max(end);
            let swallowed = self.islands.partition_point(|island| island.start <= self.prefix);
            for island in self.islands.drain(..swallowed) {
                self.prefix = self.prefix.max(island.end);
            }
            return;
        }
        let first = self.islands.partition_point(|island| island.end < start);
        let last = self.islands.partition_point(|island| island.start <= end);
        let touched = &self.islands[first..last];
        let merged = touched.first().map_or(start, |island| island.start.min(start))
            ..touched.last().map_or(end, |island| island.end.max(end));
        self.islands.splice(first..last, [merged]);
    }

    /// Takes `len` bytes from `start` on out.
    pub(crate) fn remove(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len);
        if len == 0 {
            return;
        }
        if start < self.prefix {
            if end < self.prefix {
                self.islands.insert(0, end..self.prefix);
            }
            self.prefix = start;
        }
        if self.islands.is_empty() {
            return;
        }
        let outside = |island: Range<u64>| [island.start..island.end.min(start), island.start.max(end)..island.end];
        self.islands = self.islands.drain(..).flat_map(outside).filter(|island| !island.is_empty()).collect();
    }

    /// Takes all bytes from `len` on out.
    pub(crate) fn truncate(&mut self, len: u64) {
        self.remove(len, u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_grow_together() {
        let mut extent = Extent::default();
        extent.insert(4, 2);
        extent.insert(8, 2);
        assert_eq!((extent.prefix(), extent.run(4, 9), extent.run(5, 9), extent.run(6, 9)), (0, 2, 1, 0));
        extent.insert(6, 2);
        assert_eq!(extent.run(4, 100), 6);
        extent.insert(0, 4);
        assert_eq!(extent, Extent::full(10));
    }

    #[test]
    fn every_operation_agrees_with_a_set_of_bytes() {
        const BYTES: u64 = 24;
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let mut extent = Extent::default();
            let mut model = [false; BYTES as usize];
            for _ in 0..40 {
                let start = random(BYTES);
                let len = random(BYTES - start + 1);
                let (from, to) = (start as usize, (start + len) as usize);
                match random(8) {
                    0..=3 => {
                        extent.insert(start, len);
                        model[from..to].fill(true);
                    }
                    4..=6 => {
                        extent.remove(start, len);
                        model[from..to].fill(false);
                    }
                    _ => {
                        extent.truncate(start);
                        model[from..].fill(false);
                    }
                }
                for start in 0..BYTES {
                    let run = model[start as usize..].iter().take_while(|set| **set).count() as u64;
                    assert_eq!(extent.run(start, BYTES), run, "{extent:?} {model:?} at {start}");
                }
                assert_eq!(extent.prefix(), extent.run(0, BYTES));
                assert!(extent.islands.iter().all(|island| !island.is_empty() && island.start > extent.prefix));
                assert!(extent.islands.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
