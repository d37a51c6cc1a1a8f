//! The streams that share the last tag, which a set of tags has one bit for.
//!
//! A free piece that some of them used remembers its *home* beside the bit: the one that may still use it, or nobody in
//! particular if several may. That one takes it without anybody being asked, and whoever else wants it asks that one alone. What
//! each of them may have is listed by name and size, since in the bins it would be one piece among those of all the others.

use std::collections::BTreeSet;
use std::hint::cold_path;

use alloc_core::Stream;

use super::node::{Kind, NOBODY, Node, SHARED_SET, SHARED_TAG, Tag, TagSet, own_set};
use super::window::Window;
use super::{Ask, Heap};

/// Who wants memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) tag: Tag,
    pub(crate) home: Stream,
}

impl Asker {
    /// Of whom no memory is the own.
    pub(crate) const NOBODY: Self = Self { tag: SHARED_TAG, home: NOBODY };

    /// The streams that the asker need not wait for where the node's memory is.
    #[inline(always)]
    pub(super) fn own_set_at(self, node: &Node) -> TagSet {
        if self.tag == SHARED_TAG && self.home == node.home && self.home != NOBODY {
            return SHARED_SET;
        }
        own_set(self.tag)
    }
}

/// So many streams are known by name.
const NAMED: usize = 3;

/// Some of the streams that share a tag: a few by name, or else all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharers {
    names: [Stream; NAMED],
    /// More than there are names for is all.
    count: usize,
}

impl Sharers {
    pub(crate) const NONE: Self = Self { names: [NOBODY; NAMED], count: 0 };
    pub(crate) const ALL: Self = Self { names: [NOBODY; NAMED], count: NAMED + 1 };

    pub(crate) fn is_none(&self) -> bool {
        self.count == 0
    }

    fn is_all(&self) -> bool {
        self.count > NAMED
    }

    /// Whether they are some but not all, each of which is known by name.
    pub(crate) fn are_named(&self) -> bool {
        !self.is_none() && !self.is_all()
    }

    /// Those that are known by name.
    pub(crate) fn named(&self) -> &[Stream] {
        self.names.get(..self.count).unwrap_or_default()
    }

    /// Adds the home of a node, which stands for all if it is nobody.
    pub(crate) fn add(&mut self, home: Stream) {
        if self.is_all() || self.named().contains(&home) {
            return;
        }
        match self.names.get_mut(self.count).filter(|_| home != NOBODY) {
            Some(name) => {
                *name = home;
                self.count += 1;
            }
            None => *self = Self::ALL,
        }
    }

    pub(crate) fn add_all_of(&mut self, others: &Self) {
        if others.is_all() {
            *self = Self::ALL;
        }
        others.named().iter().for_each(|&home| self.add(home));
    }

    /// Whether whoever waits for the home of a node waits for any of these.
    pub(crate) fn touch(&self, home: Stream) -> bool {
        !self.is_none() && (self.is_all() || home == NOBODY || self.named().contains(&home))
    }
}

/// The free pieces of each of these streams, the smallest first.
#[derive(Debug, Default)]
pub(super) struct OwnPieces(BTreeSet<(Stream, u32, u32)>);

impl OwnPieces {
    /// The smallest piece of at least `units` that is `usable`.
    fn best(&self, home: Stream, units: u32, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let own = self.0.range((home, units, 0)..=(home, u32::MAX, u32::MAX));
        own.map(|&(.., index)| index).find(|&index| usable(index))
    }
}

/// So many pieces of other streams are looked at for one that is complete. Whoever finds none asks for one of these.
const LOOKED_AT: u32 = 64;

impl Heap {
    /// Lists a free node if it is the own of one of these streams.
    pub(super) fn list_own(&mut self, index: u32) {
        let Node { users, home, units, .. } = self.nodes[index as usize];
        if users & SHARED_SET != 0 && home != NOBODY {
            self.own_pieces.0.insert((home, units, index));
        }
    }

    /// The opposite, before anything of the node changes.
    pub(super) fn unlist_own(&mut self, index: u32) {
        let Node { users, home, units, .. } = self.nodes[index as usize];
        if users & SHARED_SET != 0 {
            self.own_pieces.0.remove(&(home, units, index));
        }
    }

    /// Takes memory of the free node that fits best for one of these streams.
    #[cold]
    #[inline(never)]
    pub(super) fn allocate_for_sharer(&mut self, ask: Ask, leaves_room: bool) -> Option<u32> {
        let index = self.fit_of_sharer(ask, |heap, node| heap.in_the_way(node, ask.asker()) == 0)?;
        let skip = if leaves_room && self.has_marks() { self.roomy_place_in(index, ask)? } else { 0 };
        self.allocate_listed(index, skip, ask)
    }

    /// Takes memory that some of these streams used for another, which is no worse off for it.
    #[cold]
    #[inline(never)]
    pub(super) fn allocate_of_sharers(&mut self, ask: Ask, leaves_room: bool) -> Option<u32> {
        let index = self.fit(ask, |heap, node| heap.in_the_way(node, ask.asker()) == 0)?;
        let skip = if leaves_room && self.has_marks() { self.roomy_place_in(index, ask)? } else { 0 };
        self.allocate_listed(index, skip, ask)
    }

    /// Takes memory of a free node that some of these streams used, or one of them asks for, from `skip` units on.
    fn allocate_listed(&mut self, index: u32, skip: u32, ask: Ask) -> Option<u32> {
        let start = u64::from(self.nodes[index as usize].start);
        let start = if ask.align > 1 { self.aligned(start, ask.align) } else { start + u64::from(skip) };
        Some(self.claim(index, u32::try_from(start).ok()?, ask).0)
    }

    /// Makes free memory of a node whose block was one of these streams' and has ended.
    #[cold]
    #[inline(never)]
    pub(super) fn put_back(&mut self, index: u32) -> u32 {
        let Node { next, prev, home, .. } = self.nodes[index as usize];
        let mut index = index;
        if self.may_join_sharer(next, home) {
            self.detach(next);
            self.absorb_next(index);
        }
        if self.may_join_sharer(prev, home) {
            self.detach(prev);
            self.absorb_next(prev);
            index = prev;
        }
        let node = &mut self.nodes[index as usize];
        (node.users, node.home) = (SHARED_SET, home);
        self.attach(index, Kind::Free);
        index
    }

    /// Whether free memory may merge with such as the stream `home` released just now, as for any other stream.
    fn may_join_sharer(&self, index: u32, home: Stream) -> bool {
        let Some(node) = self.node(index).filter(|node| node.kind == Kind::Free) else { return false };
        match node.users & !(Asker { tag: SHARED_TAG, home }).own_set_at(node) {
            0 => node.stamp > self.marked,
            others => self.marked == 0 && self.outstanding_for(SHARED_TAG, others, node.stamp) == 0,
        }
    }

    /// Cuts a node that is in no list after `units`; the new node behind it, of the same home.
    pub(super) fn split_with_home(&mut self, index: u32, units: u32) -> u32 {
        let rest = self.split(index, units);
        self.nodes[rest as usize].home = self.nodes[index as usize].home;
        rest
    }

    /// Whether two nodes may become one of that kind: of free memory only if nothing that is one of these streams' own would be
    /// another's as well.
    #[inline]
    pub(super) fn may_merge(&self, one: u32, other: u32, kind: Kind) -> bool {
        if kind == Kind::Hole {
            return true;
        }
        let (one, other) = (&self.nodes[one as usize], &self.nodes[other as usize]);
        match (one.users & SHARED_SET, other.users & SHARED_SET) {
            (0, 0) => true,
            (SHARED_SET, SHARED_SET) => one.home == other.home,
            _ => false,
        }
    }

    /// Notes whose the memory of two nodes is that are about to become one.
    pub(super) fn merge_homes(&mut self, index: u32, absorbed: u32) {
        let Node { users, home, .. } = self.nodes[absorbed as usize];
        if users & SHARED_SET == 0 {
            return;
        }
        let node = &mut self.nodes[index as usize];
        let is_first = node.users & SHARED_SET == 0;
        node.home = if is_first || node.home == home { home } else { NOBODY };
    }

    /// The best free node for one of these streams: its own before what is complete if that is no better a fit.
    fn fit_of_sharer(&self, ask: Ask, usable: impl Fn(&Self, &Node) -> bool) -> Option<u32> {
        let units = ask.units.checked_add(u32::try_from(ask.align - 1).ok()?)?;
        let at = |index: u32| &self.nodes[index as usize];
        let is_usable = |index: u32| index != self.top && usable(self, at(index));
        let own = if ask.home == NOBODY { None } else { self.own_pieces.best(ask.home, units, is_usable) };
        if own.is_some_and(|own| self.bins.is_listed_for(at(own), units)) {
            return own;
        }
        let any = self.bins.find_near(&self.nodes, units, LOOKED_AT, |node| usable(self, node));
        let best = own.into_iter().chain(any).min_by_key(|&index| at(index).units);
        best.or_else(|| self.node(self.top).filter(|top| top.units >= units && usable(self, top)).map(|_| self.top))
    }

    /// Those of these streams that have to be waited for at a place of `units` from `start` on, which the node `first` is at or near.
    #[cold]
    #[inline(never)]
    pub(crate) fn sharers_at(&self, first: u32, start: u32, units: u32, asker: Asker) -> Sharers {
        let mut sharers = Sharers::NONE;
        let end = u64::from(start) + u64::from(units);
        let mut index = self.containing(first, start);
        while let Some(node) = self.node(index).filter(|node| u64::from(node.start) < end) {
            if node.kind == Kind::Free && self.in_the_way(node, asker) & SHARED_SET != 0 {
                sharers.add(node.home);
            }
            index = node.next;
        }
        sharers
    }

    /// The same of a place that was found.
    #[inline]
    pub(crate) fn sharers_in(&self, window: Window, ask: Ask) -> Option<Sharers> {
        let has_any = window.users & SHARED_SET != 0;
        has_any.then(|| self.sharers_at(window.first, window.start, ask.units, ask.asker()))
    }

    /// Notes that all releases by these streams up to `stamp` are complete, of those that share a tag by the `sharers`: of theirs only
    /// what is at the place, as each keeps the rest of its own for itself.
    pub(crate) fn note_complete_in(
        &mut self,
        window: Window,
        ask: Ask,
        (tags, sharers): (TagSet, &Sharers),
        stamp: u64,
    ) {
        if tags & SHARED_SET == 0 || !sharers.are_named() {
            self.note_complete(tags, stamp);
            return;
        }
        self.note_complete(tags & !SHARED_SET, stamp);
        self.note_sharers_complete(window, ask, sharers, stamp);
    }

    fn note_sharers_complete(&mut self, window: Window, ask: Ask, sharers: &Sharers, stamp: u64) {
        let end = u64::from(window.start) + u64::from(ask.units);
        let mut index = self.containing(window.first, window.start);
        while let Some(&Node { kind, users, home, stamp: released, start, next, .. }) = self.node(index)
            && u64::from(start) < end
        {
            let is_complete = released <= stamp && sharers.named().contains(&home);
            if kind == Kind::Free && users & SHARED_SET != 0 && is_complete {
                self.unlist_own(index);
                self.nodes[index as usize].users &= !SHARED_SET;
            }
            index = next;
        }
    }

    /// The place that fits best and where none of these has to be waited for, in one piece if there is such a one.
    pub(crate) fn best_place(&mut self, ask: Ask, busy: TagSet, passed_over: Option<&Sharers>) -> Option<Window> {
        let passed_over = passed_over.unwrap_or(&Sharers::NONE);
        let will_do = |window: &Window, home: Stream| {
            window.users & busy == 0 && (window.users & SHARED_SET == 0 || !passed_over.touch(home))
        };
        let in_one_piece = self.best_of_any(ask).map(|index| {
            let node = &self.nodes[index as usize];
            (self.window_in(index, ask), node.home)
        });
        match in_one_piece.filter(|(window, home)| will_do(window, *home)) {
            Some((window, _)) => Some(window),
            None => self.best_window_past(ask, busy, passed_over),
        }
    }

    #[inline(always)]
    fn best_of_any(&self, ask: Ask) -> Option<u32> {
        if ask.tag == SHARED_TAG { self.fit_of_sharer(ask, |_, _| true) } else { self.fit(ask, |_, _| true) }
    }

    /// The streams that have to be waited for before `ask.tag` may have the free memory that fits best.
    pub(crate) fn users_of_best(&self, ask: Ask) -> Option<TagSet> {
        let index = self.best_of_any(ask)?;
        Some(self.in_the_way(&self.nodes[index as usize], ask.asker()))
    }

    /// Makes free memory of a claimed node that nobody got, and of which the streams in the way were not waited for.
    pub(crate) fn give_up(&mut self, index: u32, in_the_way: TagSet) {
        self.end_use(index);
        self.retire(index);
        let now = self.now;
        let node = &mut self.nodes[index as usize];
        node.home = home_of_unordered(node.home, in_the_way);
        (node.users, node.stamp) = (in_the_way | 1 << node.tag, now);
        self.become_kind(index, Kind::Free);
    }
}

/// Whose memory is that a stream was to have: also that of those in the way.
pub(crate) fn home_of_unordered(home: Stream, in_the_way: TagSet) -> Stream {
    if in_the_way & SHARED_SET == 0 {
        home
    } else {
        cold_path();
        NOBODY
    }
}

#[cfg(test)]
mod tests;
