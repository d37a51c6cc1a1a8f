//! Where free memory lies side by side that different streams used: the place that a stream has to wait for least.

use super::node::{Kind, Node, SHARED_SET, SHARED_TAG, Tag, TagSet, each_of, own_set};
use super::{Ask, Heap, Sharers, aligned};

/// A place within free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The node that the place begins in.
    pub(super) first: u32,
    pub(super) start: u32,
    /// The streams to be waited for, and the last release of any of them.
    pub(crate) users: TagSet,
    stamp: u64,
    /// Of the blocks of that size that there is free memory for, a quarter has no room, as it lies in several pieces.
    pub(crate) is_scattered: bool,
}

/// A place that was found, and when: it may be had as long as the heap is at that version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prospect {
    window: Window,
    version: Version,
}

/// Something that is another once free memory was taken or came about, or pages moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    now: u64,
    used_units: u64,
}

/// A free node and what it has whoever asks wait for, or several in a row that nobody has to be waited for.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The first.
    node: u32,
    start: u64,
    end: u64,
    users: TagSet,
    /// Of the latest release, if anybody has to be waited for.
    stamp: u64,
}

/// Free nodes that follow each other, and what lies in a row there.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: usize,
    /// Behind the last.
    last: usize,
    low: u64,
    high: u64,
    /// What is left of it if as many blocks are had there as there is room for.
    spare: u64,
}

/// The free memory that may be large enough, as it was when this search began.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    rows: Vec<Row>,
}

/// What a place has to be like.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    units: u64,
    align: u64,
    base: u64,
    untouchable: TagSet,
    leaves_room: bool,
}

impl Wanted {
    /// Whether a place may have the piece in it if all of it has to be released before `stamp`.
    fn may_have(&self, piece: &Piece, stamp: u64) -> bool {
        piece.stamp < stamp && piece.users & self.untouchable == 0
    }

    /// The first place from `start` on in the row.
    fn first_from(&self, start: u64, row: &Row) -> u64 {
        if self.align > 1 {
            return aligned(self.base, start, self.align);
        }
        if self.leaves_room { first_roomy(start, row.low, row.spare, self.units) } else { start }
    }
}

impl Pieces {
    /// The latest release at the place where that was longest ago.
    fn least_stamp(&self, wanted: &Wanted) -> Option<u64> {
        let mut least = u64::MAX;
        for row in &self.rows {
            let mut from = None;
            for index in row.first..row.last {
                let piece = &self.pieces[index];
                if !wanted.may_have(piece, least) {
                    from = None;
                    continue;
                }
                let mut start = *from.get_or_insert_with(|| wanted.first_from(piece.start, row));
                while start + wanted.units <= piece.end {
                    let latest = self.latest_within(start, index);
                    least = self.pieces[latest].stamp;
                    if least == 0 {
                        return Some(0);
                    }
                    // What is better than this place does without that piece.
                    if latest == index {
                        from = None;
                        break;
                    }
                    start = wanted.first_from(self.pieces[latest + 1].start, row);
                    from = Some(start);
                }
            }
        }
        (least != u64::MAX).then_some(least)
    }

    /// The last of the pieces with the latest release in a place that ends in the piece `last`.
    fn latest_within(&self, start: u64, last: usize) -> usize {
        let mut latest = last;
        for index in (0..last).rev().take_while(|&index| self.pieces[index].end > start) {
            if self.pieces[index].stamp > self.pieces[latest].stamp {
                latest = index;
            }
        }
        latest
    }

    /// The place where what was released longest ago is waited for; of several the one with the least left of the free memory around it,
    /// and then one that leaves that in one piece.
    fn best(&self, wanted: &Wanted) -> Option<Window> {
        let before = self.least_stamp(wanted)? + 1;
        let mut best: Option<((u64, bool), usize, u64)> = None;
        for row in &self.rows {
            let mut consider = |last: usize, start: u64| {
                let key = (row.high - row.low, start != row.low && start + wanted.units != row.high);
                if best.is_none_or(|(least, ..)| key < least) {
                    best = Some((key, last, start));
                }
            };
            // Of each stretch of pieces the first place, and the last at the end of the row.
            let (mut from, mut is_found) = (None, false);
            for index in row.first..row.last {
                let piece = &self.pieces[index];
                if !wanted.may_have(piece, before) {
                    (from, is_found) = (None, false);
                    continue;
                }
                let start = *from.get_or_insert_with(|| wanted.first_from(piece.start, row));
                if !is_found && start + wanted.units <= piece.end {
                    is_found = true;
                    consider(index, start);
                }
            }
            let end = row.high - wanted.units;
            if is_found && aligned(wanted.base, end, wanted.align) == end {
                consider(row.last - 1, end);
            }
        }
        let (_, last, start) = best?;
        let place = || self.pieces[..=last].iter().rev().take_while(|piece| piece.end > start);
        Some(Window {
            first: place().last()?.node,
            start: u32::try_from(start).ok()?,
            users: place().fold(0, |users, piece| users | piece.users),
            stamp: before - 1,
            is_scattered: false,
        })
    }
}

impl Heap {
    /// The place where `ask.tag` waits for what was released longest ago, or for nothing if there is one; never for the
    /// `untouchable` streams.
    pub(crate) fn best_window(&mut self, ask: Ask, untouchable: TagSet) -> Option<Window> {
        self.best_window_if(ask, untouchable, &Sharers::NONE, true)
    }

    /// The same, past whatever these streams have to be waited for at.
    pub(super) fn best_window_past(&mut self, ask: Ask, untouchable: TagSet, passed_over: &Sharers) -> Option<Window> {
        self.best_window_if(ask, untouchable, passed_over, true)
    }

    /// The same, and wherever it leaves room for nothing else if there is no other: for whoever can't wait for some streams, and has
    /// memory of its own beside theirs.
    pub(crate) fn best_window_anywhere(&mut self, ask: Ask, untouchable: TagSet) -> Option<Window> {
        let best = self.best_window(ask, untouchable);
        if best.is_none() && untouchable != 0 {
            self.best_window_if(ask, untouchable, &Sharers::NONE, false)
        } else {
            best
        }
    }

    fn best_window_if(
        &mut self,
        ask: Ask,
        untouchable: TagSet,
        passed_over: &Sharers,
        leaves_room: bool,
    ) -> Option<Window> {
        if self.is_at_ebb() {
            return None;
        }
        let mut found = std::mem::take(&mut self.found);
        let units = u64::from(ask.units.max(1));
        let (free, room) = self.find_pieces(ask, units, passed_over, &mut found);
        let wanted = Wanted { units, align: ask.align, base: self.base, untouchable, leaves_room };
        let best = found.best(&wanted);
        self.found = found;
        let most = free / units;
        best.map(|window| Window { is_scattered: 4 * (most - room.min(most)) >= most.max(1), ..window })
    }

    /// Finds the free memory that may be large enough; how many units are free in all, and for how many blocks there is room.
    fn find_pieces(&self, ask: Ask, units: u64, passed_over: &Sharers, found: &mut Pieces) -> (u64, u64) {
        if ask.tag != SHARED_TAG && passed_over.is_none() {
            let own = own_set(ask.tag);
            return self.find_pieces_with(units, found, self.in_the_way_of(ask.tag, |_| own), |_, node| node.stamp);
        }
        let in_the_way = self.in_the_way_of(ask.tag, |node| ask.asker().own_set_at(node));
        // No place has a piece in it that is released as late as can be.
        self.find_pieces_with(units, found, in_the_way, |users, node| {
            if users & SHARED_SET != 0 && passed_over.touch(node.home) { u64::MAX } else { node.stamp }
        })
    }

    /// The same, with what stands for a node's streams and the last release of any of them.
    #[inline(always)]
    fn find_pieces_with(
        &self,
        units: u64,
        found: &mut Pieces,
        in_the_way: impl Fn(&Node) -> TagSet,
        stamp_of: impl Fn(TagSet, &Node) -> u64,
    ) -> (u64, u64) {
        let Pieces { pieces, rows } = found;
        pieces.clear();
        rows.clear();
        let (mut free, mut room) = (0, 0);
        let mut index = self.containing(0, 0);
        while let Some(mut node) = self.node(index) {
            if node.kind != Kind::Free {
                index = node.next;
                continue;
            }
            let (first, low) = (pieces.len(), u64::from(node.start));
            let high = loop {
                let users = in_the_way(node);
                let stamp = if users == 0 { 0 } else { stamp_of(users, node) };
                match pieces[first..].last_mut() {
                    Some(before) if users == 0 && before.users == 0 => before.end = node.end(),
                    _ => {
                        pieces.push(Piece { node: index, start: u64::from(node.start), end: node.end(), users, stamp })
                    }
                }
                index = node.next;
                match self.node(index) {
                    Some(next) if next.kind == Kind::Free => node = next,
                    _ => break node.end(),
                }
            };
            free += high - low;
            if high - low < units {
                pieces.truncate(first);
            } else {
                room += (high - low) / units;
                rows.push(Row { first, last: pieces.len(), low, high, spare: (high - low) % units });
            }
        }
        (free, room)
    }

    /// The last release of each stream that is to be waited for at the place.
    pub(crate) fn releases_in(&self, window: Window, ask: Ask, releases: &mut Vec<(Tag, u64)>) {
        releases.clear();
        let end = u64::from(window.start) + u64::from(ask.units);
        let mut index = self.containing(window.first, window.start);
        while let Some(node) = self.node(index).filter(|node| u64::from(node.start) < end) {
            for tag in each_of(self.in_the_way(node, ask.asker())) {
                match releases.iter_mut().find(|(other, _)| *other == tag) {
                    Some((_, stamp)) => *stamp = node.stamp.max(*stamp),
                    None => releases.push((tag, node.stamp)),
                }
            }
            index = node.next;
        }
    }

    /// The place that a request would get in a free node which is large enough.
    pub(super) fn window_in(&self, index: u32, ask: Ask) -> Window {
        let node = &self.nodes[index as usize];
        let start = self.aligned(u64::from(node.start), ask.align);
        Window {
            first: index,
            start: u32::try_from(start).unwrap_or(node.start),
            users: self.in_the_way(node, ask.asker()),
            stamp: node.stamp,
            is_scattered: false,
        }
    }

    /// Makes a used node of the place.
    pub(crate) fn claim_window(&mut self, window: Window, ask: Ask) -> u32 {
        self.claim(window.first, window.start, ask).0
    }

    pub(crate) fn version(&self) -> Version {
        Version { now: self.now, used_units: self.used_units }
    }

    /// Where there are events, takes the best place if nobody has to be waited for there; else the place.
    pub(crate) fn allocate_or_find(&mut self, ask: Ask) -> Result<u32, Option<Prospect>> {
        let window = if self.has_marks() { self.best_window(ask, 0) } else { None };
        match window {
            Some(window) if window.users == 0 => Ok(self.claim_window(window, ask)),
            window => Err(window.map(|window| Prospect { window, version: self.version() })),
        }
    }

    /// The place that was found if it is still the best, or such a one.
    pub(crate) fn best_window_or(&mut self, found: Option<Prospect>, ask: Ask, untouchable: TagSet) -> Option<Window> {
        match found.filter(|found| found.version == self.version() && untouchable == 0) {
            Some(found) => Some(found.window),
            None => self.best_window_anywhere(ask, untouchable),
        }
    }

    /// Takes the best place that nobody has to be waited for.
    pub(crate) fn allocate_window(&mut self, ask: Ask) -> Option<u32> {
        let window = self.best_window(ask, TagSet::MAX)?;
        Some(self.claim_window(window, ask))
    }

    /// How far into a free node a block can be had there such that the free memory around it has room for as many more of that
    /// size as if the best place had been taken. Of several large blocks that come and go in any order one in the middle is
    /// enough to have the others wait, or pages move.
    #[cold]
    #[inline(never)]
    pub(super) fn roomy_place_in(&self, index: u32, ask: Ask) -> Option<u32> {
        let node = self.node(index)?;
        if node.units == ask.units || ask.align > 1 {
            return Some(0);
        }
        let free = |index: u32| self.node(index).filter(|node| node.kind == Kind::Free);
        let (mut first, mut last) = (node, node);
        while let Some(prev) = free(first.prev) {
            first = prev;
        }
        while let Some(next) = free(last.next) {
            last = next;
        }
        let (low, start, units) = (u64::from(first.start), u64::from(node.start), u64::from(ask.units));
        let place = first_roomy(start, low, (last.end() - low) % units, units);
        u32::try_from(place - start).ok().filter(|_| place + units <= node.end())
    }
}

/// The first place from `start` on that leaves room for as many more of that size as there is at all, in free memory that
/// begins at `low` and has `spare` units beside those.
fn first_roomy(start: u64, low: u64, spare: u64, units: u64) -> u64 {
    match (start - low) % units {
        beyond if beyond <= spare => start,
        beyond => start - beyond + units,
    }
}

#[cfg(test)]
mod tests;
