//! The index of free ranges by size: two levels of bitmaps over lists, 64 bins to a doubling.
//!
//! After TLSF (Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for real-time systems", 2004):
//! finding a bin whose every range is large enough takes two bit scans.

use std::hint::select_unpredictable;

use super::heap::{NIL, Node};

const SUB_BITS: u32 = 6;
const SUBS: usize = 1 << SUB_BITS;
const ROWS: usize = 27;
/// Rows that are searched: all but the one behind them, whose only range is the [top](Bins::insert).
const SEARCHED: u32 = (1 << ROWS) - 1;
/// The bin of the top.
const TOP_BIN: u16 = (ROWS as u16) << SUB_BITS;
/// How many ranges of the request's own bin are looked at for the best fit.
const SCAN: u32 = 4;
/// From this many units on (512 KiB) the best of those is taken, below the first that will do: to look at another
/// range is to wait for memory, and the less a request takes, the less a better fit saves.
const WORTH_COMPARING: u32 = 1024;

/// Heads of the lists and the bitmaps that say which are not empty. The links are in the nodes.
#[derive(Debug)]
pub(crate) struct Bins {
    rows: u32,
    subs: [u64; ROWS + 1],
    heads: Box<[[u32; SUBS]; ROWS + 1]>,
}

/// The bin that ranges of `units` are kept in.
#[inline(always)]
fn bin_of(units: u32) -> u16 {
    // The first row is what comes before the first doubling, so one formula does for both, without a branch: ranges of
    // few units and of many come in no order.
    let shift = (31 - SUB_BITS) - (units | SUBS as u32).leading_zeros();
    ((shift << SUB_BITS) + (units >> shift)) as u16
}

/// Row and column of a bin.
#[inline(always)]
fn place_of(bin: u16) -> (usize, usize) {
    (usize::from(bin) >> SUB_BITS, usize::from(bin) & (SUBS - 1))
}

/// The place of a neighbour in a list or, if there is none, of the node itself: there it does no harm that the neighbour's
/// links are written, and whether it has one can't be guessed, so that writing takes less time than asking.
#[inline(always)]
fn or_itself(neighbour: u32, index: u32) -> usize {
    select_unpredictable(neighbour != NIL, neighbour, index) as usize
}

impl Bins {
    pub(crate) fn new() -> Self {
        Self { rows: 0, subs: [0; ROWS + 1], heads: Box::new([[NIL; SUBS]; ROWS + 1]) }
    }

    /// Adds a free node. The top, of which there is one at most, gets a bin that no search looks into: that it is listed as
    /// the others are spares asking whether it is the top, which can't be guessed.
    #[inline(always)]
    pub(crate) fn insert(&mut self, nodes: &mut [Node], index: u32, is_top: bool) {
        let bin = select_unpredictable(is_top, TOP_BIN, bin_of(nodes[index as usize].units));
        let (row, sub) = place_of(bin);
        let head = self.heads[row][sub];
        nodes[or_itself(head, index)].link_prev = index;
        let node = &mut nodes[index as usize];
        node.set_bin(bin);
        node.link_prev = NIL;
        node.link_next = head;
        self.heads[row][sub] = index;
        self.subs[row] |= 1 << sub;
        self.rows |= 1 << row;
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, nodes: &mut [Node], index: u32) {
        let Node { link_prev, link_next, .. } = nodes[index as usize];
        nodes[or_itself(link_next, index)].link_prev = link_prev;
        nodes[or_itself(link_prev, index)].link_next = link_next;
        let (row, sub) = place_of(nodes[index as usize].bin());
        let is_first = link_prev == NIL;
        let head = &mut self.heads[row][sub];
        *head = select_unpredictable(is_first, link_next, *head);
        let emptied = is_first & (link_next == NIL);
        self.subs[row] &= !(u64::from(emptied) << sub);
        self.rows &= !(u32::from(self.subs[row] == 0) << row);
    }

    /// A range of at least `units` that is `usable`: the smallest among the first of the request's own bin or, if none
    /// of those fits, one of the next bin that has any.
    pub(crate) fn find(&self, nodes: &[Node], units: u32, usable: impl Fn(&Node) -> bool) -> Option<u32> {
        let (row, sub) = place_of(bin_of(units));
        let fits = |node: &Node| node.units >= units && usable(node);
        let compare = units >= WORTH_COMPARING;
        self.smallest_of(nodes, self.heads[row][sub], SCAN, fits)
            .or_else(|| self.take_above(nodes, (row, sub), compare, &usable))
            .or_else(|| self.any_of(nodes, self.heads[row][sub], &fits))
    }

    /// The same, but of the request's own bin no more than the first `most` ranges are looked at.
    pub(crate) fn find_near(
        &self,
        nodes: &[Node],
        units: u32,
        most: u32,
        usable: impl Fn(&Node) -> bool,
    ) -> Option<u32> {
        let (row, sub) = place_of(bin_of(units));
        let fits = |node: &Node| node.units >= units && usable(node);
        self.smallest_of(nodes, self.heads[row][sub], SCAN, fits)
            .or_else(|| self.take_above(nodes, (row, sub), true, &usable))
            .or_else(|| self.smallest_of(nodes, self.heads[row][sub], most, fits))
    }

    /// Whether a free node that is not the top is in the bin where a request for so many units is looked for first.
    pub(crate) fn is_listed_for(&self, node: &Node, units: u32) -> bool {
        node.bin() == bin_of(units)
    }

    /// The smallest of a whole list: one past the first of the own bin may fit too.
    #[cold]
    #[inline(never)]
    fn any_of(&self, nodes: &[Node], head: u32, fits: &impl Fn(&Node) -> bool) -> Option<u32> {
        self.smallest_of(nodes, head, u32::MAX, fits)
    }

    /// The smallest usable range among the first of the next bin that has one; without `compare`, the first.
    fn take_above(
        &self,
        nodes: &[Node],
        (row, sub): (usize, usize),
        compare: bool,
        usable: &impl Fn(&Node) -> bool,
    ) -> Option<u32> {
        let mut row = row;
        let mut subs = self.subs[row] & u64::MAX.checked_shl(sub as u32 + 1).unwrap_or(0);
        loop {
            while subs != 0 {
                let sub = subs.trailing_zeros() as usize;
                subs &= subs - 1;
                let head = self.heads[row][sub];
                let first = nodes.get(head as usize).filter(|node| !compare && usable(node)).map(|_| head);
                let taken = first.or_else(|| self.smallest_of(nodes, head, SCAN, usable));
                if taken.is_some() {
                    return taken;
                }
            }
            let rows = self.rows & SEARCHED & u32::MAX.checked_shl(row as u32 + 1).unwrap_or(0);
            if rows == 0 {
                return None;
            }
            row = rows.trailing_zeros() as usize;
            subs = self.subs[row];
        }
    }

    /// The smallest of the first `most` ranges of a list that will do.
    #[inline]
    fn smallest_of(&self, nodes: &[Node], head: u32, most: u32, will_do: impl Fn(&Node) -> bool) -> Option<u32> {
        let (mut best, mut best_units) = (None, u32::MAX);
        let (mut index, mut looked) = (head, 0);
        while index != NIL && looked < most {
            let node = &nodes[index as usize];
            if (best.is_none() || node.units < best_units) && will_do(node) {
                (best, best_units) = (Some(index), node.units);
            }
            index = node.link_next;
            looked += 1;
        }
        best
    }

    /// Visits every range of at least `units`, in no particular order.
    pub(crate) fn for_each_from(&self, nodes: &[Node], units: u32, mut visit: impl FnMut(u32)) {
        let (first_row, first_sub) = place_of(bin_of(units));
        for row in first_row..ROWS {
            let mut subs = self.subs[row];
            if row == first_row {
                subs &= u64::MAX << first_sub;
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
        let rows = self.rows & SEARCHED;
        if rows == 0 {
            return 0;
        }
        let row = 31 - rows.leading_zeros() as usize;
        let sub = 63 - self.subs[row].leading_zeros() as usize;
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
impl Bins {
    /// Whether every node is listed where its size says, but for the top, and the bitmaps say where there is any.
    pub(crate) fn check(&self, nodes: &[Node], top: u32) -> Result<(), String> {
        let mut tops = Vec::new();
        for (row, heads) in self.heads.iter().enumerate() {
            for (sub, head) in heads.iter().enumerate() {
                let bin = (row << SUB_BITS | sub) as u16;
                if (self.subs[row] >> sub & 1 == 1) != (*head != NIL) {
                    return Err(format!("bin {bin}: the bitmap is wrong"));
                }
                let (mut index, mut prev) = (*head, NIL);
                while index != NIL {
                    let node = &nodes[index as usize];
                    if node.bin() != bin || node.link_prev != prev || row < ROWS && bin_of(node.units) != bin {
                        return Err(format!("node {index} of {} units is wrong in bin {bin}", node.units));
                    }
                    tops.extend((row == ROWS).then_some(index));
                    (prev, index) = (index, node.link_next);
                }
            }
            if (self.rows >> row & 1 == 1) != (self.subs[row] != 0) {
                return Err(format!("row {row}: the bitmap is wrong"));
            }
        }
        let wanted = if top == NIL { vec![] } else { vec![top] };
        if tops == wanted { Ok(()) } else { Err(format!("tops {tops:?} are listed, {wanted:?} is one")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_ordered_by_size_and_cover_all_sizes() {
        let mut last = 0;
        for units in 1..100_000u32 {
            let bin = bin_of(units);
            assert!(bin >= last, "{units}");
            last = bin;
        }
        assert!(bin_of(u32::MAX) < TOP_BIN);
    }
}
