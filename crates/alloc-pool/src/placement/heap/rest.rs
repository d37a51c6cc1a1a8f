//! The block released last rests: its node is neither merged nor free until the next call, which may well be for just
//! as much. It is handed out again only where best fit would have chosen it, so that nothing lies elsewhere than without.

use super::node::{Kind, NIL, Node, SHARED_TAG};
use super::{Ask, Heap};

impl Heap {
    /// Ends the life of a used node's block. Its memory is free by the next release or request.
    #[inline(always)]
    pub(crate) fn release_to_rest(&mut self, index: u32) {
        // Free memory may be due to be made of two nodes, of the one that rests first.
        let mut due = std::mem::replace(&mut self.resting, NIL);
        loop {
            if due != NIL {
                self.release_inline(due);
                if due == index {
                    return;
                }
            }
            let Node { prev, next, .. } = self.nodes[index as usize];
            let is_free = |index: u32| self.nodes.get(index as usize).is_some_and(|node| node.kind == Kind::Free);
            if !is_free(prev) && (next == self.top || !is_free(next)) {
                self.retire(index);
                self.resting = index;
                return;
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

    /// Whether memory was released that is not free yet.
    #[inline(always)]
    pub(crate) fn is_resting(&self) -> bool {
        self.resting != NIL
    }

    /// Makes free memory of what was released last.
    pub(crate) fn end_rest(&mut self) {
        let index = std::mem::replace(&mut self.resting, NIL);
        if index != NIL {
            self.release(index);
        }
    }
}
