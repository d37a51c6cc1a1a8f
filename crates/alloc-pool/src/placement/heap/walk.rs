//! The pieces of a heap in the order of their addresses, for whoever looks at them from outside.

use super::node::{Kind, NIL, Node, SHARED_SET};
use super::{Asker, Heap, Sharers, TagSet};

/// Whose work may still touch a stretch of free memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Users {
    pub(crate) unfinished: TagSet,
    /// Those that whoever asked has to come after, and which they are of those that share a tag.
    pub(crate) in_the_way: TagSet,
    pub(crate) sharers: Sharers,
}

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

    /// Visits all free memory that lies in a row, as the first node and where it begins and ends, if some of it is apart since streams
    /// that share a tag used it.
    pub(crate) fn for_each_row_of_sharers(&self, mut visit: impl FnMut(u32, u64, u64)) {
        if self.seen & SHARED_SET == 0 {
            return;
        }
        let mut pieces = self.pieces();
        while let Some((first, node)) = pieces.find(|(_, node)| node.kind == Kind::Free) {
            let (mut end, mut is_apart, mut is_shared) = (node.end(), false, node.users & SHARED_SET != 0);
            for (_, next) in pieces.by_ref().take_while(|(_, next)| next.kind == Kind::Free) {
                (end, is_apart, is_shared) = (next.end(), true, is_shared || next.users & SHARED_SET != 0);
            }
            if is_apart && is_shared {
                visit(first, u64::from(node.start), end);
            }
        }
    }

    /// Whose work may still touch `units` units from `start` on, near the node `hint`; `None` if not all of that is free.
    pub(crate) fn users_of(&self, hint: u32, start: u32, units: u32, asker: Asker) -> Option<Users> {
        let mut users = Users { unfinished: 0, in_the_way: 0, sharers: Sharers::NONE };
        let end = u64::from(start) + u64::from(units);
        let mut index = self.containing(hint, start);
        loop {
            let node = self.node(index).filter(|node| node.kind == Kind::Free)?;
            let in_the_way = self.in_the_way(node, asker);
            users.unfinished |= self.unfinished(node);
            users.in_the_way |= in_the_way;
            if in_the_way & SHARED_SET != 0 {
                users.sharers.add(node.home);
            }
            if node.end() >= end {
                return Some(users);
            }
            index = node.next;
        }
    }

    /// Makes a hole of free memory, of several nodes if it lies apart.
    pub(crate) fn convert_to_hole(&mut self, hint: u32, start: u32, units: u32) {
        let (mut at, end) = (start, u64::from(start) + u64::from(units));
        let mut hint = hint;
        while u64::from(at) < end {
            let index = self.containing(hint, at);
            let part = self.nodes[index as usize].end().min(end) - u64::from(at);
            let part = u32::try_from(part).unwrap_or(units);
            hint = self.convert(index, at, part, Kind::Hole, 0);
            at += part;
        }
    }
}
