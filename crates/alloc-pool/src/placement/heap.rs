//! One contiguous range of addresses cut into used, free and unbacked pieces.
//!
//! Pieces are nodes in one array, linked by index in address order; free ones are also in the [`Bins`], holes
//! (addresses with no memory active behind them) in a list of their own. Neighbours of the same kind merge, so a heap
//! whose blocks are all released is one free piece for each run of backed addresses.
//!
//! Several streams share a heap. A free piece carries the set of streams whose work may still touch it and a stamp
//! that says when the last of it was released; what is known to be complete is noted per stream as a stamp too. What
//! different streams may still use stays apart, lest neither could have any of it, until it is known to be complete
//! or a miss needs everything in one piece.

mod ebb;
mod node;
mod order;
mod rest;
mod sharers;
mod walk;
mod window;

use std::hint::{cold_path, select_unpredictable};

use alloc_core::Stream;

pub(crate) use self::node::{Kind, NIL, NOBODY, Node, SHARED_SET, SHARED_TAG, TAGS, Tag, TagSet, each_of, own_set};
pub(crate) use self::sharers::{Asker, Sharers, home_of_unordered};
pub(crate) use self::window::Prospect;
use super::bins::Bins;

/// What is asked of a heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) units: u32,
    /// In units, a power of two.
    pub(crate) align: u64,
    /// By how many bytes the request is smaller.
    pub(crate) slack: u16,
    /// The stream asking.
    pub(crate) tag: Tag,
    pub(crate) home: Stream,
}

impl Ask {
    pub(crate) fn asker(&self) -> Asker {
        Asker { tag: self.tag, home: self.home }
    }
}

/// The first offset from `start` on whose address, `base` being that of offset 0, is a multiple of `align` units.
fn aligned(base: u64, start: u64, align: u64) -> u64 {
    ((base + start + align - 1) & !(align - 1)) - base
}

/// The pieces of one range.
#[derive(Debug)]
pub(crate) struct Heap {
    nodes: Vec<Node>,
    vacant: u32,
    bins: Bins,
    holes: u32,
    free_units: u64,
    used_units: u64,
    /// The least that was in use since it was last asked for.
    low_units: u64,
    /// With less than this in use the next request is a miss, so that pieces which were lent go home first.
    ebb: u64,
    /// The address of unit 0, in units: alignment is of addresses, not offsets.
    base: u64,
    capacity: u32,
    /// The free node next to the addresses at the end that were never used: taken only if nothing else fits, so that
    /// a program that repeats itself finds the addresses that it had.
    top: u32,
    /// A used node that was released last, and whose memory is not free yet: the next request may well be for just as
    /// much, and then neither merging nor searching was needed.
    resting: u32,
    /// The node that was handed out of its rest last.
    returned: u32,
    now: u64,
    /// Releases by a stream up to this stamp are complete.
    complete: Box<[u64; TAGS]>,
    /// There is an event of a stream behind what was released up to this stamp.
    marked: u64,
    /// By tag of a stream that was made to wait for others: it comes after releases by another up to this stamp.
    ordered: Vec<[u64; TAGS]>,
    /// The streams that ever had memory here.
    seen: TagSet,
    /// The latest release of each stream, as long as there are events.
    latest: Box<[u64; TAGS]>,
    /// What streams that share a tag have to themselves.
    own_pieces: sharers::OwnPieces,
    /// A buffer, so that a search needs no memory of its own.
    found: window::Pieces,
}

impl Heap {
    /// A heap of `units` units of addresses with nothing behind them, the first of which is unit `base` of the
    /// address space.
    pub(crate) fn new(base: u64, units: u32) -> Self {
        let mut heap = Self {
            nodes: Vec::with_capacity(256),
            vacant: NIL,
            bins: Bins::new(),
            holes: NIL,
            free_units: 0,
            used_units: 0,
            low_units: 0,
            ebb: 0,
            base,
            capacity: units,
            top: NIL,
            resting: NIL,
            returned: NIL,
            now: 1,
            complete: Box::new([0; TAGS]),
            marked: 0,
            ordered: Vec::new(),
            seen: 0,
            latest: Box::new([0; TAGS]),
            own_pieces: sharers::OwnPieces::default(),
            found: window::Pieces::default(),
        };
        let node = heap.vacant_node();
        heap.nodes[node as usize].units = units;
        heap.become_kind(node, Kind::Hole);
        heap
    }

    pub(crate) fn node(&self, index: u32) -> Option<&Node> {
        self.nodes.get(index as usize)
    }

    /// How many units of addresses the heap has.
    pub(crate) fn capacity(&self) -> u64 {
        u64::from(self.capacity)
    }

    /// How many units of free memory there are.
    pub(crate) fn free_units(&self) -> u64 {
        self.free_units
    }

    pub(crate) fn used_units(&self) -> u64 {
        self.used_units
    }

    pub(crate) fn largest_free(&self) -> u32 {
        self.bins.largest(&self.nodes).max(self.node(self.top).map_or(0, |top| top.units))
    }

    /// The streams that ever had memory here.
    pub(crate) fn seen(&self) -> TagSet {
        self.seen
    }

    /// The stamp of the latest release.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Takes free memory that `tag` may use at once.
    pub(crate) fn allocate(&mut self, ask: Ask) -> Option<u32> {
        self.allocate_within::<false>(ask)
    }

    /// The same, but where there are events only if that leaves room for as many more such blocks as could be had:
    /// whoever would leave less is better off at another place, which a miss looks for.
    #[inline(always)]
    pub(crate) fn allocate_leaving_room(&mut self, ask: Ask) -> Option<u32> {
        self.allocate_within::<true>(ask)
    }

    /// Takes memory of the free node that fits best.
    #[inline(always)]
    fn allocate_within<const LEAVES_ROOM: bool>(&mut self, ask: Ask) -> Option<u32> {
        if self.resting != NIL {
            let index = std::mem::replace(&mut self.resting, NIL);
            if self.would_fit_best(index, ask) {
                return Some(self.hand_out_again(index, ask));
            }
            self.release_inline(index);
        }
        if self.is_at_ebb() {
            return None;
        }
        if ask.tag == SHARED_TAG {
            cold_path();
            return self.allocate_for_sharer(ask, LEAVES_ROOM);
        }
        let slack = u32::try_from(ask.align - 1).ok()?;
        let Some(index) = self.fit(ask, |heap, node| heap.is_at_hand(node, ask.tag)) else {
            cold_path();
            return if self.seen & SHARED_SET == 0 { None } else { self.allocate_of_sharers(ask, LEAVES_ROOM) };
        };
        let mut skip = if LEAVES_ROOM && self.marked != 0 { self.roomy_place_in(index, ask)? } else { 0 };
        self.unlink_free(index);
        if slack > 0 {
            let start = u64::from(self.nodes[index as usize].start);
            skip = (self.aligned(start, ask.align) - start) as u32;
        }
        if skip > 0 {
            let rest = self.split(index, skip);
            self.link_free(index);
            return Some(self.finish_allocate(rest, ask));
        }
        Some(self.finish_allocate(index, ask))
    }

    /// The best free node that is usable; the top only if there is no other.
    #[inline]
    fn fit(&self, ask: Ask, usable: impl Fn(&Self, &Node) -> bool) -> Option<u32> {
        let needed = ask.units.checked_add(u32::try_from(ask.align - 1).ok()?)?;
        let fit = self.bins.find(&self.nodes, needed, |node| usable(self, node));
        fit.or_else(|| self.node(self.top).filter(|top| top.units >= needed && usable(self, top)).map(|_| self.top))
    }

    #[inline(always)]
    fn finish_allocate(&mut self, index: u32, ask: Ask) -> u32 {
        if self.nodes[index as usize].units > ask.units {
            let rest = self.split(index, ask.units);
            self.link_free(rest);
        }
        self.make_used(index, ask)
    }

    #[inline(always)]
    fn make_used(&mut self, index: u32, ask: Ask) -> u32 {
        let node = &mut self.nodes[index as usize];
        node.kind = Kind::Used;
        node.set_slack(ask.slack);
        node.home = ask.home;
        node.tag = ask.tag;
        self.used_units += u64::from(ask.units);
        self.seen |= 1 << ask.tag;
        index
    }

    /// The first offset from `start` on whose address is a multiple of `align` units.
    pub(crate) fn aligned(&self, start: u64, align: u64) -> u64 {
        aligned(self.base, start, align)
    }

    /// Gives a used node's memory back; returns the free node that holds it now.
    pub(crate) fn release(&mut self, index: u32) -> u32 {
        self.release_inline(index)
    }

    /// A used node is about to be none. All that lowers what is in use comes through here and counts on, so that [`Version`]s
    /// never come back: else as much could be taken of a place that was found as a miss gives up meanwhile.
    ///
    /// [`Version`]: window::Version
    #[inline(always)]
    fn end_use(&mut self, index: u32) {
        self.now += 1;
        self.used_units -= u64::from(self.nodes[index as usize].units);
        self.low_units = self.low_units.min(self.used_units);
    }

    #[inline(always)]
    fn release_inline(&mut self, index: u32) -> u32 {
        self.end_use(index);
        let node = &mut self.nodes[index as usize];
        node.generation = node.generation.wrapping_add(1);
        node.users = 1 << node.tag;
        node.stamp = self.now;
        let (tag, users) = (node.tag, node.users);
        if self.marked != 0 {
            self.latest[usize::from(tag)] = self.now;
        }
        if tag == SHARED_TAG {
            cold_path();
            return self.put_back(index);
        }
        let (mut index, next, prev) = (index, node.next, node.prev);
        if next != NIL && self.nodes[next as usize].kind == Kind::Free && self.may_join(next, tag) {
            self.unlink_free(next);
            self.absorb_next(index);
        }
        if prev != NIL && self.nodes[prev as usize].kind == Kind::Free && self.may_join(prev, tag) {
            self.unlink_free(prev);
            self.absorb_next(prev);
            index = prev;
        }
        self.nodes[index as usize].users = users;
        self.link_free(index);
        index
    }

    /// Makes one used node at `start`. `first` is a free node or hole at or before it, and everything from there to
    /// the end of the new node is free or a hole. Also returns the streams to be waited for.
    pub(crate) fn claim(&mut self, first: u32, start: u32, ask: Ask) -> (u32, TagSet) {
        let mut index = self.containing(first, start);
        // Of a hole nobody says who uses it.
        let way =
            |heap: &Self, node: &Node| if node.kind == Kind::Free { heap.in_the_way(node, ask.asker()) } else { 0 };
        let mut in_the_way = way(self, &self.nodes[index as usize]);
        let kind = self.detach(index);
        let skip = start - self.nodes[index as usize].start;
        if skip > 0 {
            let rest = self.split_with_home(index, skip);
            self.attach(index, kind);
            index = rest;
        }
        let of = |kind, node: &Node| (kind, node.users, node.stamp, node.home);
        let mut last = of(kind, &self.nodes[index as usize]);
        while self.nodes[index as usize].units < ask.units {
            let next = self.nodes[index as usize].next;
            let node = &self.nodes[next as usize];
            in_the_way |= way(self, node);
            last = of(node.kind, node);
            self.detach(next);
            self.absorb_next(index);
        }
        if self.nodes[index as usize].units > ask.units {
            let rest = self.split(index, ask.units);
            let node = &mut self.nodes[rest as usize];
            (node.users, node.stamp, node.home) = (last.1, last.2, last.3);
            self.attach(rest, last.0);
        }
        (self.make_used(index, ask), in_the_way)
    }

    /// Takes the blocks in use from their stream: it is gone, and another has its name.
    pub(crate) fn disown(&mut self, stream: Stream, nobody: Stream) {
        for node in self.nodes.iter_mut().filter(|node| node.kind == Kind::Used && node.home == stream) {
            node.home = nobody;
        }
    }

    /// Ends the life of a used node's block without giving its memory back yet.
    #[inline(always)]
    pub(crate) fn retire(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.generation = node.generation.wrapping_add(1);
    }

    /// Turns a used node into a hole; returns the one that holds it now.
    pub(crate) fn abandon(&mut self, index: u32) -> u32 {
        self.end_use(index);
        self.retire(index);
        self.become_kind(index, Kind::Hole)
    }

    /// Turns `units` units from `start` on, which lie within one free node or hole, into the other kind. `users` are
    /// those whose work may still touch memory that becomes free, of those that share a tag any. Returns the node that holds them now.
    pub(crate) fn convert(&mut self, hint: u32, start: u32, units: u32, to: Kind, users: TagSet) -> u32 {
        self.convert_for(hint, (start, units), to, (users, NOBODY))
    }

    /// The same, and of those that share a tag only `home` may still touch the memory.
    pub(crate) fn convert_for(
        &mut self,
        hint: u32,
        (start, units): (u32, u32),
        to: Kind,
        (users, home): (TagSet, Stream),
    ) -> u32 {
        let index = self.containing(hint, start);
        debug_assert!(self.nodes[index as usize].end() >= u64::from(start) + u64::from(units), "of several nodes");
        let from = self.detach(index);
        let skip = start - self.nodes[index as usize].start;
        let middle = if skip > 0 {
            let rest = self.split_with_home(index, skip);
            self.attach(index, from);
            rest
        } else {
            index
        };
        if self.nodes[middle as usize].units > units {
            let rest = self.split_with_home(middle, units);
            self.attach(rest, from);
        }
        // What was noted as complete so far says nothing of these users.
        self.now += 1;
        let node = &mut self.nodes[middle as usize];
        (node.users, node.stamp, node.home) = (users, self.now, home);
        self.become_kind(middle, to)
    }

    /// The node that holds `offset`, found by walking from `hint`, or from anywhere if that node is gone by now.
    pub(crate) fn containing(&self, hint: u32, offset: u32) -> u32 {
        let mut index = hint;
        if self.nodes[index as usize].kind == Kind::Vacant {
            index = self.nodes.iter().position(|node| node.kind != Kind::Vacant).map_or(hint, |found| found as u32);
        }
        while self.nodes[index as usize].end() <= u64::from(offset) {
            index = self.nodes[index as usize].next;
        }
        while self.nodes[index as usize].start > offset {
            index = self.nodes[index as usize].prev;
        }
        index
    }

    /// Visits every free node of at least `units`.
    pub(crate) fn for_each_free(&self, units: u32, mut visit: impl FnMut(u32, &Node)) {
        self.bins.for_each_from(&self.nodes, units, |index| visit(index, &self.nodes[index as usize]));
        if let Some(top) = self.node(self.top).filter(|top| top.units >= units) {
            visit(self.top, top);
        }
    }

    /// Visits every used node.
    pub(crate) fn for_each_used(&self, mut visit: impl FnMut(u32, &Node)) {
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.kind == Kind::Used) {
            visit(index as u32, node);
        }
    }

    /// Visits every hole.
    pub(crate) fn for_each_hole(&self, mut visit: impl FnMut(u32, &Node)) {
        let mut index = self.holes;
        while index != NIL {
            visit(index, &self.nodes[index as usize]);
            index = self.nodes[index as usize].link_next;
        }
    }

    /// An entry that is free for reuse. Its generation goes on, and all else that matters to its next kind is to be set.
    #[inline(always)]
    fn vacant_node(&mut self) -> u32 {
        if self.vacant != NIL {
            let index = self.vacant;
            self.vacant = self.nodes[index as usize].next;
            return index;
        }
        self.nodes.push(Node::VACANT);
        self.nodes.len() as u32 - 1
    }

    /// Cuts a node that is in no list after `units`; returns the new node behind it, also in no list.
    #[inline(always)]
    fn split(&mut self, index: u32, units: u32) -> u32 {
        let rest = self.vacant_node();
        let node = &mut self.nodes[index as usize];
        let Node { start, units: all, next, users, stamp, .. } = *node;
        node.units = units;
        node.next = rest;
        // Field by field: a whole node would be put together elsewhere and copied.
        let place = &mut self.nodes[rest as usize];
        place.start = start + units;
        place.units = all - units;
        place.prev = index;
        place.next = next;
        place.users = users;
        place.stamp = stamp;
        if next != NIL {
            self.nodes[next as usize].prev = rest;
        }
        rest
    }

    /// Adds the following node, which is in no list, to this one.
    #[inline(always)]
    fn absorb_next(&mut self, index: u32) {
        let next = self.nodes[index as usize].next;
        let Node { units, next: after, users, stamp, .. } = self.nodes[next as usize];
        let node = &mut self.nodes[index as usize];
        node.units += units;
        node.users |= users;
        node.stamp = node.stamp.max(stamp);
        node.next = after;
        if after != NIL {
            self.nodes[after as usize].prev = index;
        }
        let gone = &mut self.nodes[next as usize];
        gone.kind = Kind::Vacant;
        // A block that died here is recognised even if its entry names another block by then.
        gone.generation = gone.generation.wrapping_add(1);
        gone.next = self.vacant;
        self.vacant = next;
    }

    #[inline(always)]
    fn link_free(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.kind = Kind::Free;
        self.free_units += u64::from(node.units);
        let next = node.next;
        let is_top = self.nodes.get(next as usize).is_some_and(|next| (next.next == NIL) & (next.kind == Kind::Hole));
        if is_top & (self.top != NIL) {
            cold_path();
            self.bins.remove(&mut self.nodes, self.top);
            self.bins.insert(&mut self.nodes, self.top, false);
        }
        self.top = select_unpredictable(is_top, index, self.top);
        self.bins.insert(&mut self.nodes, index, is_top);
    }

    #[inline(always)]
    fn unlink_free(&mut self, index: u32) {
        self.free_units -= u64::from(self.nodes[index as usize].units);
        self.top = select_unpredictable(self.top == index, NIL, self.top);
        self.bins.remove(&mut self.nodes, index);
    }

    fn link_hole(&mut self, index: u32) {
        let head = self.holes;
        let node = &mut self.nodes[index as usize];
        node.kind = Kind::Hole;
        node.link_prev = NIL;
        node.link_next = head;
        if head != NIL {
            self.nodes[head as usize].link_prev = index;
        }
        self.holes = index;
    }

    fn unlink_hole(&mut self, index: u32) {
        let Node { link_prev, link_next, .. } = self.nodes[index as usize];
        if link_next != NIL {
            self.nodes[link_next as usize].link_prev = link_prev;
        }
        if link_prev == NIL {
            self.holes = link_next;
        } else {
            self.nodes[link_prev as usize].link_next = link_next;
        }
    }

    /// Takes a free node or hole out of its list; returns what it was.
    fn detach(&mut self, index: u32) -> Kind {
        let kind = self.nodes[index as usize].kind;
        match kind {
            Kind::Free => {
                self.unlist_own(index);
                self.unlink_free(index);
            }
            Kind::Hole => self.unlink_hole(index),
            Kind::Used | Kind::Vacant => debug_assert!(false, "detached a node of kind {kind:?}"),
        }
        kind
    }

    fn attach(&mut self, index: u32, kind: Kind) {
        match kind {
            Kind::Hole => self.link_hole(index),
            _ => {
                self.link_free(index);
                self.list_own(index);
            }
        }
    }

    /// Gives a node that is in no list a kind, merged with neighbours of that kind; returns the node that holds it now.
    fn become_kind(&mut self, index: u32, kind: Kind) -> u32 {
        let mut index = index;
        let next = self.nodes[index as usize].next;
        if next != NIL && self.nodes[next as usize].kind == kind && self.may_merge(index, next, kind) {
            self.detach(next);
            self.absorb_next(index);
        }
        let prev = self.nodes[index as usize].prev;
        if prev != NIL && self.nodes[prev as usize].kind == kind && self.may_merge(prev, index, kind) {
            self.detach(prev);
            self.absorb_next(prev);
            index = prev;
        }
        self.attach(index, kind);
        index
    }
}

#[cfg(test)]
mod tests;
