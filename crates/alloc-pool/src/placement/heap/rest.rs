//! The block released last rests: its node is neither merged nor free until the next call, which may well be for just
//! as much. It is handed out again only where best fit would have chosen it, so that nothing lies elsewhere than without.

use super::node::{Kind, NIL, Node, SHARED_TAG};
use super::{Ask, Heap};
use crate::placement::units::UNIT_SHIFT;

impl Heap {
    /// Ends the life of a used node's block. Its memory is free by the next release or request. Whether it rests, and
    /// not for the first time in a row.
    #[inline(always)]
    pub(crate) fn release_to_rest(&mut self, index: u32) -> bool {
        // Free memory may be due to be made of two nodes, of the one that rests first.
        let mut due = std::mem::replace(&mut self.resting, NIL);
        loop {
            if due != NIL {
                self.release_inline(due);
                if due == index {
                    return false;
                }
            }
            let Node { prev, next, .. } = self.nodes[index as usize];
            let is_free = |index: u32| self.nodes.get(index as usize).is_some_and(|node| node.kind == Kind::Free);
            // One answer of both, as neither can be guessed.
            if !is_free(prev) & ((next == self.top) | !is_free(next)) {
                self.retire(index);
                self.resting = index;
                return self.returned == index;
            }
            due = index;
        }
    }

    /// Whether a request would get the memory of the resting node if it were free: it is exactly as large and stands
    /// alone, or is next to the top and nothing else is large enough.
    #[inline(always)]
    pub(super) fn would_fit_best(&self, index: u32, ask: Ask) -> bool {
        let node = &self.nodes[index as usize];
        node.units == ask.units
            && node.tag == ask.tag
            && ask.tag != SHARED_TAG
            && ask.align == 1
            && (node.next != self.top || self.bins.find(&self.nodes, ask.units, |_| true).is_none())
    }

    /// Begins another life of a node that rested.
    #[inline(always)]
    pub(super) fn hand_out_again(&mut self, index: u32, ask: Ask) -> u32 {
        let node = &mut self.nodes[index as usize];
        node.set_slack(ask.slack);
        node.home = ask.home;
        self.returned = index;
        index
    }

    /// Whether memory was released that is not free yet.
    #[inline(always)]
    pub(crate) fn is_resting(&self) -> bool {
        self.resting != NIL
    }

    /// The resting node, if another request for just as much would get it.
    pub(crate) fn would_return(&self) -> Option<(u32, &Node)> {
        let node = self.node(self.resting)?;
        let ask = Ask { units: node.units, align: 1, slack: node.slack(), tag: node.tag, home: node.home };
        self.would_fit_best(self.resting, ask).then_some((self.resting, node))
    }

    /// Makes up for releases of the resting node's block, each after an allocation of just as much, and for one
    /// allocation more if the block is out. The bytes of the block, and how many of them were not asked for.
    pub(crate) fn catch_up(&mut self, releases: u64, is_out: bool) -> Option<(u64, u64)> {
        let index = self.resting;
        let node = self.nodes.get_mut(index as usize)?;
        node.generation = node.generation.wrapping_add(releases as u32);
        if is_out {
            (self.resting, self.returned) = (NIL, index);
        }
        Some((u64::from(node.units) << UNIT_SHIFT, u64::from(node.slack())))
    }

    /// Makes free memory of what was released last.
    pub(crate) fn end_rest(&mut self) {
        let index = std::mem::replace(&mut self.resting, NIL);
        if index != NIL {
            self.release(index);
        }
    }
}
