//! Where free memory lies side by side that different streams used: the place that a stream has to wait for least.

use super::node::{Kind, NIL, Tag, TagSet, each_of};
use super::{Ask, Heap};

/// A place within free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The node that the place begins in.
    first: u32,
    start: u32,
    /// The streams to be waited for, and the last release of any of them.
    pub(crate) users: TagSet,
    stamp: u64,
}

/// A free node, and what it has whoever asks wait for.
#[derive(Clone, Copy, Debug)]
struct Piece {
    node: u32,
    start: u64,
    end: u64,
    users: TagSet,
    /// Of the latest release, if anybody has to be waited for.
    stamp: u64,
}

/// The best place so far, and what makes it so: the sooner all is done with that was released there the better, then the
/// less is left of the free memory around it, and then whether that stays in one piece.
type Best = Option<((u64, u64, bool), Window)>;

impl Heap {
    /// The place where `ask.tag` waits for what was released longest ago, or for nothing if there is one; never for the
    /// `untouchable` streams.
    pub(crate) fn best_window(&self, ask: Ask, untouchable: TagSet) -> Option<Window> {
        self.best_window_if(ask, untouchable, true)
    }

    /// The same, and wherever it leaves room for nothing else if there is no other: for whoever can't wait for some streams, and has
    /// memory of its own beside theirs.
    pub(crate) fn best_window_anywhere(&self, ask: Ask, untouchable: TagSet) -> Option<Window> {
        let best = self.best_window(ask, untouchable);
        if best.is_none() && untouchable != 0 { self.best_window_if(ask, untouchable, false) } else { best }
    }

    fn best_window_if(&self, ask: Ask, untouchable: TagSet, leaves_room: bool) -> Option<Window> {
        if self.is_at_ebb() {
            return None;
        }
        let (mut best, mut run) = (None, Vec::with_capacity(32));
        let (mut index, mut first, mut units) = (self.containing(0, 0), NIL, 0);
        loop {
            let node = self.node(index);
            match node {
                Some(node) if node.kind == Kind::Free => {
                    first = if units == 0 { index } else { first };
                    units += u64::from(node.units);
                }
                _ if units >= u64::from(ask.units) => {
                    run.clear();
                    self.pieces(first, ask, &mut run);
                    self.best_in_run(&run, ask, (untouchable, leaves_room), &mut best);
                    units = 0;
                }
                _ => units = 0,
            }
            match node {
                Some(node) => index = node.next,
                None => return best.map(|(_, window)| window),
            }
        }
    }

    /// The last release of each stream that is to be waited for at the place.
    pub(crate) fn releases_in(&self, window: Window, ask: Ask, releases: &mut Vec<(Tag, u64)>) {
        releases.clear();
        let end = u64::from(window.start) + u64::from(ask.units);
        let mut index = self.containing(window.first, window.start);
        while let Some(node) = self.node(index).filter(|node| u64::from(node.start) < end) {
            for tag in each_of(self.in_the_way(node, ask.tag)) {
                match releases.iter_mut().find(|(other, _)| *other == tag) {
                    Some((_, stamp)) => *stamp = node.stamp.max(*stamp),
                    None => releases.push((tag, node.stamp)),
                }
            }
            index = node.next;
        }
    }

    /// Makes a used node of the place.
    pub(crate) fn claim_window(&mut self, window: Window, ask: Ask) -> u32 {
        self.claim(window.first, window.start, ask).0
    }

    /// Takes the best place that nobody has to be waited for.
    pub(crate) fn allocate_window(&mut self, ask: Ask) -> Option<u32> {
        let window = self.best_window(ask, TagSet::MAX)?;
        Some(self.claim_window(window, ask))
    }

    /// The free nodes that follow each other from this one on.
    fn pieces(&self, first: u32, ask: Ask, run: &mut Vec<Piece>) {
        let mut index = first;
        while let Some(node) = self.node(index).filter(|node| node.kind == Kind::Free) {
            let users = self.in_the_way(node, ask.tag);
            let stamp = if users == 0 { 0 } else { node.stamp };
            run.push(Piece { node: index, start: u64::from(node.start), end: node.end(), users, stamp });
            index = node.next;
        }
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
        let skip = match wasted(low, last.end(), start, units) {
            0 => 0,
            _ => units - (start - low) % units,
        };
        u32::try_from(skip).ok().filter(|_| start + skip + units <= node.end())
    }

    /// Places that begin or end with a piece are enough: between those the same pieces are met. Of those that leave no room
    /// for as many more such blocks as could be had it is the nearest that do.
    fn best_in_run(&self, run: &[Piece], ask: Ask, (untouchable, leaves_room): (TagSet, bool), best: &mut Best) {
        let (Some(low), Some(high)) = (run.first().map(|piece| piece.start), run.last().map(|piece| piece.end)) else {
            return;
        };
        let units = u64::from(ask.units);
        if high - low < units {
            return;
        }
        let is_too_late = |best: &Best, stamp| best.as_ref().is_some_and(|(least, _)| stamp > least.0);
        let consider = |best: &mut Best, start: u64, first: Option<usize>| {
            let end = start + units;
            if start < low || end > high {
                return;
            }
            let first = first.unwrap_or_else(|| run.partition_point(|piece| piece.end <= start));
            let (mut users, mut stamp) = (0, 0);
            for piece in run[first..].iter().take_while(|piece| piece.start < end) {
                users |= piece.users;
                stamp = stamp.max(piece.stamp);
                if is_too_late(best, stamp) {
                    return;
                }
            }
            let key = (stamp, high - low - units, start != low && end != high);
            if users & untouchable == 0
                && best.as_ref().is_none_or(|(least, _)| key < *least)
                && let Ok(at) = u32::try_from(start)
            {
                *best = Some((key, Window { first: run[first].node, start: at, users, stamp }));
            }
        };
        // Many pieces have the same places near them.
        let mut moved = [u64::MAX; 2];
        for (index, piece) in run.iter().enumerate() {
            let last = piece.end.checked_sub(units).map(|last| match self.aligned(last, ask.align) {
                aligned if aligned == last => last,
                aligned => aligned.saturating_sub(ask.align),
            });
            let first = self.aligned(piece.start, ask.align);
            for (start, holds_it) in [(Some(first), first == piece.start), (last, false)] {
                let Some(start) = start else { continue };
                match wasted(low, high, start, units) {
                    beyond if beyond == 0 || ask.align > 1 || !leaves_room => {
                        // It holds the piece itself, unless it was aligned.
                        if ask.align > 1 || !is_too_late(best, piece.stamp) {
                            consider(best, start, holds_it.then_some(index));
                        }
                    }
                    beyond => {
                        for (known, near) in
                            moved.iter_mut().zip([start - beyond, start - (start - low) % units + units])
                        {
                            if std::mem::replace(known, near) != near {
                                consider(best, near, None);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How far a place in free memory from `low` to `high` lies behind the last one before it that leaves room for as many more
/// of that size as there is at all.
fn wasted(low: u64, high: u64, start: u64, units: u64) -> u64 {
    (start.saturating_sub(low) % units).saturating_sub((high - low) % units)
}

#[cfg(test)]
mod tests {
    use alloc_core::Stream;

    use super::*;

    fn ask(units: u32, tag: u8) -> Ask {
        Ask { units, align: 1, slack: 0, tag, home: Stream::DEFAULT }
    }

    /// A heap of which all is backed, cut into blocks of these streams.
    fn cut(layout: &[(u8, u32)]) -> (Heap, Vec<u32>) {
        let units = layout.iter().map(|&(_, units)| units).sum();
        let mut heap = Heap::new(0, units);
        heap.convert(0, 0, units, Kind::Free, 0);
        let blocks = layout.iter().map(|&(tag, units)| heap.allocate(ask(units, tag)).unwrap()).collect();
        (heap, blocks)
    }

    fn start(window: Option<Window>) -> Option<u32> {
        window.map(|window| window.start)
    }

    #[test]
    fn what_was_released_first_is_waited_for() {
        let (mut heap, blocks) = cut(&[(0, 100), (1, 5), (0, 100), (1, 5), (0, 120)]);
        for index in [4, 0, 2] {
            heap.release(blocks[index]);
        }
        let window = heap.best_window(ask(90, 2), 0).unwrap();
        assert_eq!((window.start, window.users), (210, 1));
        assert!(window.stamp < heap.now());
        heap.note_complete(1, window.stamp);
        assert_eq!(heap.best_window(ask(90, 2), 0).unwrap(), Window { users: 0, stamp: 0, ..window });
        assert_eq!(start(heap.best_window(ask(125, 2), 0)), None);
    }

    #[test]
    fn a_place_may_lie_across_pieces_and_leaves_one_piece_where_it_can() {
        let (mut heap, blocks) = cut(&[(3, 10), (0, 40), (1, 40), (0, 40), (3, 10)]);
        heap.release(blocks[2]);
        heap.release(blocks[3]);
        heap.release(blocks[1]);
        // The first two released are the cheapest that are enough, and lie at an end.
        let window = heap.best_window(ask(60, 2), 0).unwrap();
        assert_eq!((window.start, window.users), (70, 0b11));
        let node = heap.claim_window(window, ask(60, 2));
        assert_eq!(heap.node(node).map(|node| (node.start, node.units)), Some((70, 60)));
        assert_eq!(heap.used_units(), 80);
        heap.check().unwrap();
    }

    #[test]
    fn streams_that_cannot_be_waited_for_are_avoided() {
        let (mut heap, blocks) = cut(&[(0, 50), (1, 50), (0, 50)]);
        for block in blocks {
            heap.release(block);
        }
        assert_eq!(start(heap.best_window(ask(50, 2), 0b01)), Some(50));
        assert_eq!(start(heap.best_window(ask(51, 2), 0b01)), None);
        assert_eq!(start(heap.best_window(ask(50, 2), 0b11)), None);
        assert_eq!(heap.allocate_window(ask(150, 2)), None);
        heap.note_ordered(2, 0b11, heap.now());
        assert!(heap.allocate_window(ask(150, 2)).is_some());
    }

    #[test]
    fn places_are_aligned() {
        let (mut heap, blocks) = cut(&[(3, 10), (0, 100), (1, 100), (3, 30)]);
        heap.release(blocks[1]);
        heap.release(blocks[2]);
        for (units, align) in [(60, 32), (100, 64), (140, 64), (64, 16)] {
            let window = heap.best_window(Ask { align, ..ask(units, 2) }, 0).unwrap();
            assert_eq!(u64::from(window.start) % align, 0);
            assert!(window.start >= 10 && window.start + units <= 210, "{window:?}");
        }
        assert_eq!(start(heap.best_window(Ask { align: 64, ..ask(150, 2) }, 0)), None, "64 to 214 is too far");
    }

    #[test]
    fn a_place_leaves_room_for_as_many_more_as_there_was() {
        // One run of 130, of which the middle was released first, by another stream. Its beginning would leave room for two
        // more blocks of 30 where there is room for three.
        let (mut heap, blocks) = cut(&[(0, 15), (1, 100), (0, 15)]);
        for index in [1, 0, 2] {
            heap.release(blocks[index]);
        }
        let mut starts = Vec::new();
        while let Some(window) = heap.best_window(ask(30, 2), 0) {
            starts.push(window.start);
            heap.claim_window(window, ask(30, 2));
        }
        assert_eq!(starts.len(), 4, "{starts:?}");
        assert!((15..85).contains(&starts[0]), "{starts:?}: what was released first is waited for");
        assert_eq!(heap.free_units(), 10);
        heap.check().unwrap();
    }

    #[test]
    fn what_fits_is_taken_where_it_leaves_room_once_there_are_events() {
        // Of 200 units the first 55 are another stream's. Right behind them 30 leave room for four more, further on for five.
        for (marked, expected) in [(false, 55), (true, 60)] {
            let (mut heap, blocks) = cut(&[(0, 55), (1, 145)]);
            for block in blocks {
                heap.release(block);
            }
            if marked {
                heap.note_mark(1);
            }
            let node = heap.allocate_leaving_room(ask(30, 1)).unwrap();
            assert_eq!(heap.node(node).map(|node| node.start), Some(expected));
            heap.check().unwrap();
        }
    }

    #[test]
    fn what_lies_badly_is_left_to_a_miss_unless_it_is_of_the_same_size() {
        let (mut heap, blocks) = cut(&[(0, 55), (1, 32), (0, 113)]);
        for block in blocks {
            heap.release(block);
        }
        assert_eq!(heap.roomy_place_in(1, ask(30, 1)), None);
        assert_eq!(heap.roomy_place_in(1, ask(20, 1)), Some(5));
        heap.note_mark(1);
        assert_eq!(heap.allocate_leaving_room(ask(30, 1)), None);
        assert!(heap.allocate_leaving_room(ask(32, 1)).is_some());
    }

    #[test]
    fn each_stream_is_waited_for_as_far_as_its_own_releases() {
        let (mut heap, blocks) = cut(&[(0, 10), (1, 10), (0, 10), (3, 10)]);
        let mut stamps = Vec::new();
        for index in [1, 0, 2] {
            heap.release(blocks[index]);
            stamps.push(heap.now());
        }
        let window = heap.best_window(ask(30, 2), 0).unwrap();
        let mut releases = vec![(9, 9)];
        heap.releases_in(window, ask(30, 2), &mut releases);
        assert_eq!(releases, [(0, stamps[2]), (1, stamps[0])]);
        heap.note_complete(1, stamps[2]);
        heap.releases_in(window, ask(30, 2), &mut releases);
        assert_eq!(releases, [(1, stamps[0])]);
    }
}
