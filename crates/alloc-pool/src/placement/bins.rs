//! The index of free ranges by size: two levels of bitmaps over lists, 16 bins to a doubling.
//!
//! After TLSF (Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for real-time systems", 2004):
//! finding a bin whose every range is large enough takes two bit scans.

use super::heap::{NIL, Node};

const SUB_BITS: u32 = 4;
const SUBS: usize = 1 << SUB_BITS;
const ROWS: usize = 32;
/// How many ranges of the request's own bin are looked at for the best fit.
const SCAN: u32 = 16;

/// Heads of the lists and the bitmaps that say which are not empty. The links are in the nodes.
#[derive(Debug)]
pub(crate) struct Bins {
    rows: u32,
    subs: [u16; ROWS],
    heads: Box<[[u32; SUBS]; ROWS]>,
}

/// Row and column of the bin that ranges of `units` are kept in.
fn bin_of(units: u32) -> (usize, usize) {
    if units < SUBS as u32 {
        return (0, units as usize);
    }
    let log = 31 - units.leading_zeros();
    let sub = (units >> (log - SUB_BITS)) as usize & (SUBS - 1);
    ((log - SUB_BITS + 1) as usize, sub)
}

impl Bins {
    pub(crate) fn new() -> Self {
        Self { rows: 0, subs: [0; ROWS], heads: Box::new([[NIL; SUBS]; ROWS]) }
    }

    pub(crate) fn insert(&mut self, nodes: &mut [Node], index: u32) {
        let (row, sub) = bin_of(nodes[index as usize].units);
        let head = self.heads[row][sub];
        let node = &mut nodes[index as usize];
        node.link_prev = NIL;
        node.link_next = head;
        if head != NIL {
            nodes[head as usize].link_prev = index;
        }
        self.heads[row][sub] = index;
        self.subs[row] |= 1 << sub;
        self.rows |= 1 << row;
    }

    pub(crate) fn remove(&mut self, nodes: &mut [Node], index: u32) {
        let Node { units, link_prev, link_next, .. } = nodes[index as usize];
        if link_next != NIL {
            nodes[link_next as usize].link_prev = link_prev;
        }
        if link_prev != NIL {
            nodes[link_prev as usize].link_next = link_next;
            return;
        }
        let (row, sub) = bin_of(units);
        self.heads[row][sub] = link_next;
        if link_next == NIL {
            self.subs[row] &= !(1 << sub);
            if self.subs[row] == 0 {
                self.rows &= !(1 << row);
            }
        }
    }

    /// The smallest range of at least `units` that is `usable` among the first of the request's own bin, else the
    /// first usable one of the next bins.
    pub(crate) fn find(&self, nodes: &[Node], units: u32, usable: impl Fn(&Node) -> bool) -> Option<u32> {
        let (row, sub) = bin_of(units);
        let (mut best, mut best_units) = (NIL, u32::MAX);
        let mut index = self.heads[row][sub];
        let mut looked = 0;
        while index != NIL && looked < SCAN {
            let node = &nodes[index as usize];
            if node.units >= units && node.units < best_units && usable(node) {
                (best, best_units) = (index, node.units);
                if best_units == units {
                    return Some(best);
                }
            }
            index = node.link_next;
            looked += 1;
        }
        if best != NIL {
            return Some(best);
        }
        // One past the scanned ones may fit too, so the rest of this bin is looked through if no larger bin has any.
        self.first_above(nodes, row, sub, &usable)
            .or_else(|| self.first_in_list(nodes, index, u32::MAX, |node| node.units >= units && usable(node)))
    }

    /// The first usable range of the bins above this one.
    fn first_above(&self, nodes: &[Node], row: usize, sub: usize, usable: &impl Fn(&Node) -> bool) -> Option<u32> {
        let mut row = row;
        let mut subs = u32::from(self.subs[row]) & (u32::MAX << (sub + 1));
        loop {
            while subs != 0 {
                let sub = subs.trailing_zeros() as usize;
                subs &= subs - 1;
                if let Some(index) = self.first_in_list(nodes, self.heads[row][sub], SCAN, usable) {
                    return Some(index);
                }
            }
            let rows = self.rows & u32::MAX.checked_shl(row as u32 + 1).unwrap_or(0);
            if rows == 0 {
                return None;
            }
            row = rows.trailing_zeros() as usize;
            subs = u32::from(self.subs[row]);
        }
    }

    fn first_in_list(&self, nodes: &[Node], head: u32, most: u32, usable: impl Fn(&Node) -> bool) -> Option<u32> {
        let (mut index, mut looked) = (head, 0);
        while index != NIL && looked < most {
            let node = &nodes[index as usize];
            if usable(node) {
                return Some(index);
            }
            index = node.link_next;
            looked += 1;
        }
        None
    }

    /// Visits every range of at least `units`, in no particular order.
    pub(crate) fn for_each_from(&self, nodes: &[Node], units: u32, mut visit: impl FnMut(u32)) {
        let (first_row, first_sub) = bin_of(units);
        for row in first_row..ROWS {
            let mut subs = self.subs[row];
            if row == first_row {
                subs &= u16::MAX << first_sub;
            }
            while subs != 0 {
                let sub = subs.trailing_zeros() as usize;
                subs &= subs - 1;
                let mut index = self.heads[row][sub];
                while index != NIL {
                    if nodes[index as usize].units >= units {
                        visit(index);
                    }
                    index = nodes[index as usize].link_next;
                }
            }
        }
    }

    /// The size of the largest range.
    pub(crate) fn largest(&self, nodes: &[Node]) -> u32 {
        if self.rows == 0 {
            return 0;
        }
        let row = 31 - self.rows.leading_zeros() as usize;
        let sub = 15 - self.subs[row].leading_zeros() as usize;
        let mut index = self.heads[row][sub];
        let mut largest = 0;
        while index != NIL {
            largest = largest.max(nodes[index as usize].units);
            index = nodes[index as usize].link_next;
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_ordered_by_size_and_cover_all_sizes() {
        let mut last = (0, 0);
        for units in 1..100_000u32 {
            let bin = bin_of(units);
            assert!(bin >= last, "{units}");
            last = bin;
        }
        assert!(bin_of(u32::MAX).0 < ROWS);
    }
}
