//! The pieces of a heap in the order of their addresses, for whoever looks at them from outside.

use super::Heap;
use super::node::{NIL, Node};

impl Heap {
    /// At most how many pieces there are.
    pub(crate) fn most_pieces(&self) -> usize {
        self.nodes.len()
    }

    /// All pieces, holes among them.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u32, &Node)> {
        let mut index = self.containing(0, 0);
        std::iter::from_fn(move || {
            let current = index;
            let node = self.nodes.get(current as usize).filter(|_| current != NIL)?;
            index = node.next;
            Some((current, node))
        })
    }
}
