//! Which streams may have a free piece: those that used it, those that come after these, and everyone once they are done.

use super::node::{Kind, NIL, Node, TAGS, Tag, TagSet, own_set};
use super::{Ask, Heap};

/// Free nodes side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    first: u32,
    units: u64,
    /// The streams in the way of whoever asked.
    pub(crate) users: TagSet,
}

impl Stretch {
    const NONE: Self = Self { first: NIL, units: 0, users: 0 };
}

impl Heap {
    /// Notes that all releases by these streams up to `stamp` are complete.
    pub(crate) fn note_complete(&mut self, tags: TagSet, stamp: u64) {
        let mut rest = tags;
        while rest != 0 {
            let complete = &mut self.complete[rest.trailing_zeros() as usize];
            *complete = stamp.max(*complete);
            rest &= rest - 1;
        }
    }

    /// Notes that the stream of `tag`, which is no shared one, comes after all releases by these streams up to `stamp`.
    pub(crate) fn note_ordered(&mut self, tag: Tag, after: TagSet, stamp: u64) {
        let row = usize::from(tag);
        if self.ordered.len() <= row {
            self.ordered.resize(row + 1, [0; TAGS]);
        }
        let mut rest = after;
        while rest != 0 {
            let ordered = &mut self.ordered[row][rest.trailing_zeros() as usize];
            *ordered = stamp.max(*ordered);
            rest &= rest - 1;
        }
    }

    /// The streams that have to be waited for before `tag` may use the memory of a free node.
    #[inline]
    pub(crate) fn in_the_way(&self, node: &Node, tag: Tag) -> TagSet {
        let others = node.users & !own_set(tag);
        if others == 0 { 0 } else { self.outstanding_for(tag, others, node.stamp) }
    }

    /// Those of the streams that `tag` does not come after already, up to `stamp`.
    #[cold]
    #[inline(never)]
    fn outstanding_for(&self, tag: Tag, others: TagSet, stamp: u64) -> TagSet {
        let found = self.outstanding(others, stamp);
        let Some(ordered) = self.ordered.get(usize::from(tag)) else { return found };
        let (mut rest, mut left) = (found, 0);
        while rest != 0 {
            let other = rest.trailing_zeros();
            if ordered[other as usize] < stamp {
                left |= 1 << other;
            }
            rest &= rest - 1;
        }
        left
    }

    /// The streams whose work may still touch a free node's memory.
    pub(crate) fn unfinished(&self, node: &Node) -> TagSet {
        self.outstanding(node.users, node.stamp)
    }

    /// Those of the streams whose releases up to `stamp` are not known to be complete.
    #[cold]
    #[inline(never)]
    fn outstanding(&self, tags: TagSet, stamp: u64) -> TagSet {
        let (mut rest, mut found) = (tags, 0);
        while rest != 0 {
            let tag = rest.trailing_zeros();
            if self.complete[tag as usize] < stamp {
                found |= 1 << tag;
            }
            rest &= rest - 1;
        }
        found
    }

    /// The streams that have to be waited for before `ask.tag` may have the free memory that fits best.
    pub(crate) fn users_of_best(&self, ask: Ask) -> Option<TagSet> {
        let index = self.fit(ask, |_, _| true)?;
        Some(self.in_the_way(&self.nodes[index as usize], ask.tag))
    }

    /// The smallest stretch of free memory, kept apart for different streams, that would be large enough if it were joined.
    pub(crate) fn best_stretch(&self, ask: Ask) -> Option<Stretch> {
        let needed = u64::from(ask.units) + ask.align - 1;
        let mut best: Option<Stretch> = None;
        let (mut index, mut now) = (self.containing(0, 0), Stretch::NONE);
        loop {
            let node = self.node(index);
            if let Some(node) = node.filter(|node| node.kind == Kind::Free) {
                now = Stretch {
                    first: if now.units == 0 { index } else { now.first },
                    units: now.units + u64::from(node.units),
                    users: now.users | self.in_the_way(node, ask.tag),
                };
            } else {
                if now.units >= needed && best.is_none_or(|best| now.units < best.units) {
                    best = Some(now);
                }
                now = Stretch::NONE;
            }
            match node {
                Some(node) => index = node.next,
                None => return best,
            }
        }
    }

    /// Takes a stretch of free memory, if nothing of it has to be waited for. At ebb that is left to a miss, as all is.
    pub(crate) fn allocate_stretch(&mut self, ask: Ask) -> Option<u32> {
        if self.is_at_ebb() {
            return None;
        }
        let stretch = self.best_stretch(ask).filter(|stretch| stretch.users == 0)?;
        let start = self.aligned(u64::from(self.nodes[stretch.first as usize].start), ask.align);
        Some(self.claim(stretch.first, u32::try_from(start).ok()?, ask).0)
    }

    /// Whether free memory may merge with such as the stream of `tag` released just now: not if others than this may still
    /// use it, since neither could have the whole then. What it comes after is complete when its own work is.
    #[inline(always)]
    pub(super) fn may_join(&self, index: u32, tag: Tag) -> bool {
        let node = &self.nodes[index as usize];
        let others = node.users & !(1 << tag);
        others == 0 || self.outstanding_for(tag, others, node.stamp) == 0
    }

    /// Merges free neighbours that were kept apart: those that no stream but `users` may still use.
    pub(crate) fn join_neighbours(&mut self, users: TagSet) {
        if self.seen.count_ones() < 2 {
            return;
        }
        let mut index = self.containing(0, 0);
        while index != NIL {
            let next = self.nodes[index as usize].next;
            if next == NIL {
                break;
            }
            let (one, two) = (&self.nodes[index as usize], &self.nodes[next as usize]);
            let both_free = one.kind == Kind::Free && two.kind == Kind::Free;
            let unfinished = if both_free { self.unfinished(one) | self.unfinished(two) } else { 0 };
            if both_free && unfinished & !users == 0 {
                self.unlink_free(next);
                self.unlink_free(index);
                self.absorb_next(index);
                self.nodes[index as usize].users = unfinished;
                self.link_free(index);
            } else {
                index = next;
            }
        }
    }
}
