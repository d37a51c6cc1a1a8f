//! When hardly anything is in use, a heap can be made to start afresh.

use super::Heap;
use super::node::{Kind, NIL};

impl Heap {
    /// Whether so little is in use that pieces should go home before more is.
    #[inline(always)]
    pub(crate) fn is_at_ebb(&self) -> bool {
        self.used_units < self.ebb
    }

    /// Once less than so many units are in use, the next request is a miss.
    pub(crate) fn set_ebb(&mut self, units: u64) {
        self.ebb = units;
    }

    pub(crate) fn ebb(&self) -> u64 {
        self.ebb
    }

    /// The least that was in use since this was last called, in units.
    pub(crate) fn take_low(&mut self) -> u64 {
        std::mem::replace(&mut self.low_units, self.used_units)
    }

    /// Puts the free nodes into their lists in address order, as if nothing had been released before.
    pub(crate) fn relist(&mut self) {
        let mut index = self.containing(0, 0);
        while self.nodes[index as usize].next != NIL {
            index = self.nodes[index as usize].next;
        }
        while index != NIL {
            if self.nodes[index as usize].kind == Kind::Free && index != self.top {
                self.bins.remove(&mut self.nodes, index);
                self.bins.insert(&mut self.nodes, index, false);
            }
            index = self.nodes[index as usize].prev;
        }
    }
}
