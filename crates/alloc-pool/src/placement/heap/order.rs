//! Which streams may have a free piece: those that used it, those that come after these, and everyone once they are done.

use super::node::{Kind, NIL, Node, SHARED_SET, SHARED_TAG, TAGS, Tag, TagSet, each_of, own_set};
use super::{Asker, Heap};

/// A stream that comes after no other.
static NOT_ORDERED: [u64; TAGS] = [0; TAGS];

impl Heap {
    /// Whether there are events, or were.
    pub(crate) fn has_marks(&self) -> bool {
        self.marked != 0
    }

    /// How many units of the memory that was released up to `stamp`, and whose node this was, are free still and not known to be
    /// done with. Another stream may have taken part of it.
    pub(crate) fn parked_units(&self, index: u32, users: TagSet, stamp: u64) -> u32 {
        let node = self.node(index).filter(|node| node.kind == Kind::Free && node.stamp == stamp);
        let parked = node.filter(|node| self.outstanding(node.users & users, stamp) != 0);
        parked.map_or(0, |node| node.units)
    }

    /// Notes that there is an event of a stream behind what was released up to `stamp`.
    pub(crate) fn note_mark(&mut self, stamp: u64) {
        self.marked = stamp.max(self.marked);
    }

    /// The stamp of a release that is to come: one that gets a later stamp may come before it.
    pub(crate) fn reserve_stamp(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Gives a used node's memory back that all these streams used. It stays apart from its neighbours.
    pub(crate) fn release_shared(&mut self, index: u32, users: TagSet, stamp: u64) {
        // The stamp is of earlier.
        self.end_use(index);
        let node = &mut self.nodes[index as usize];
        (node.users, node.stamp) = (users, stamp);
        self.seen |= users;
        self.link_free(index);
    }

    /// Notes that all releases by these streams up to `stamp` are complete.
    pub(crate) fn note_complete(&mut self, tags: TagSet, stamp: u64) {
        for tag in each_of(tags) {
            let complete = &mut self.complete[usize::from(tag)];
            *complete = stamp.max(*complete);
        }
    }

    /// Notes that the stream of `tag`, which is no shared one, comes after all releases by these streams up to `stamp`.
    pub(crate) fn note_ordered(&mut self, tag: Tag, after: TagSet, stamp: u64) {
        let row = usize::from(tag);
        if self.ordered.len() <= row {
            self.ordered.resize(row + 1, [0; TAGS]);
        }
        for other in each_of(after) {
            let ordered = &mut self.ordered[row][usize::from(other)];
            *ordered = stamp.max(*ordered);
        }
    }

    /// The streams that have to be waited for before `asker` may use the memory of a free node.
    #[inline]
    pub(crate) fn in_the_way(&self, node: &Node, asker: Asker) -> TagSet {
        let others = node.users & !own_set(asker.tag);
        if others == 0 {
            0
        } else if asker.tag == SHARED_TAG {
            self.outstanding_for(asker.tag, node.users & !asker.own_set_at(node), node.stamp)
        } else {
            self.outstanding_for(asker.tag, others, node.stamp)
        }
    }

    /// Those of the streams that `tag` does not come after already, up to `stamp`.
    #[cold]
    #[inline(never)]
    pub(super) fn outstanding_for(&self, tag: Tag, others: TagSet, stamp: u64) -> TagSet {
        self.outstanding_but(self.ordered_by(tag), others, stamp)
    }

    /// Those of the streams whose releases up to `stamp` are neither known to be complete nor `ordered`.
    #[inline(always)]
    fn outstanding_but(&self, ordered: &[u64; TAGS], tags: TagSet, stamp: u64) -> TagSet {
        // By hand, as each piece of a search comes through here.
        let (mut rest, mut left) = (tags, 0);
        while rest != 0 {
            let tag = rest.trailing_zeros() as usize;
            let lowest = rest & rest.wrapping_neg();
            if self.complete[tag] < stamp && ordered[tag] < stamp {
                left |= lowest;
            }
            rest ^= lowest;
        }
        left
    }

    /// The same as [`Heap::in_the_way`], of many nodes.
    #[inline(always)]
    pub(super) fn in_the_way_of(&self, tag: Tag, own: impl Fn(&Node) -> TagSet) -> impl Fn(&Node) -> TagSet {
        let ordered = self.ordered_by(tag);
        move |node| self.outstanding_but(ordered, node.users & !own(node), node.stamp)
    }

    #[inline(always)]
    fn ordered_by(&self, tag: Tag) -> &[u64; TAGS] {
        self.ordered.get(usize::from(tag)).unwrap_or(&NOT_ORDERED)
    }

    /// The latest release by a stream of a block that no other used, if it is not known to be done with.
    pub(crate) fn latest_release(&self, tag: Tag) -> Option<u64> {
        let latest = self.latest[usize::from(tag)];
        (latest > self.complete[usize::from(tag)]).then_some(latest)
    }

    /// The streams whose work may still touch a free node's memory.
    pub(crate) fn unfinished(&self, node: &Node) -> TagSet {
        self.outstanding(node.users, node.stamp)
    }

    /// Those of the streams whose releases up to `stamp` are not known to be complete.
    #[cold]
    #[inline(never)]
    fn outstanding(&self, tags: TagSet, stamp: u64) -> TagSet {
        self.outstanding_but(&NOT_ORDERED, tags, stamp)
    }

    /// Whether free memory may merge with such as the stream of `tag` released just now: not if others than this may still
    /// use it, since neither could have the whole then. What the stream comes after is complete when its own work is. But where
    /// there are events, others would have to wait longer for the whole than for what an event is behind, or what is complete.
    #[inline(always)]
    pub(super) fn may_join(&self, index: u32, tag: Tag) -> bool {
        let node = &self.nodes[index as usize];
        let others = node.users & !(1 << tag);
        if others == 0 {
            return node.stamp > self.marked;
        }
        self.marked == 0 && self.keep_apart(tag, others, node.stamp) == 0
    }

    /// Whether `tag`, which is no shared one, may have the memory of a free node that is not listed as any stream's own.
    #[inline(always)]
    pub(super) fn is_at_hand(&self, node: &Node, tag: Tag) -> bool {
        let others = node.users & !(1 << tag);
        others == 0 || self.keep_apart(tag, others, node.stamp) == 0
    }

    /// Those of the streams that `tag` does not come after already, up to `stamp`, and always those that share a tag: what they had
    /// is listed as their own, and stays apart until all of it is put in order.
    #[cold]
    #[inline(never)]
    fn keep_apart(&self, tag: Tag, others: TagSet, stamp: u64) -> TagSet {
        others & SHARED_SET | self.outstanding_but(self.ordered_by(tag), others, stamp)
    }

    /// Merges free neighbours that were kept apart and that no stream but that of `tag` may still use, as far as nobody has to wait
    /// the longer for it.
    pub(crate) fn join_own(&mut self, tag: Tag) {
        self.join_neighbours(if self.marked == 0 { own_set(tag) } else { 0 });
    }

    /// Merges free neighbours that were kept apart: those that no stream but `users` may still use. Returns all streams that may
    /// still use what stays apart.
    pub(crate) fn join_neighbours(&mut self, users: TagSet) -> TagSet {
        // The one that several share stands for several.
        if self.seen.count_ones() < 2 && self.seen & SHARED_SET == 0 {
            return 0;
        }
        let mut kept_apart = 0;
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
                self.detach(next);
                self.detach(index);
                self.merge_homes(index, next);
                self.absorb_next(index);
                self.nodes[index as usize].users = unfinished;
                self.attach(index, Kind::Free);
            } else {
                kept_apart |= unfinished;
                index = next;
            }
        }
        kept_apart
    }
}
