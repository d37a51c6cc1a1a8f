//! Small heaps, checked piece by piece.

use super::*;

fn ask(units: u32) -> Ask {
    Ask { units, align: 1, slack: 0, tag: 0, home: Stream::DEFAULT }
}

fn backed(units: u32) -> Heap {
    let mut heap = Heap::new(0, 1 << 20);
    heap.convert(0, 0, units, Kind::Free, 0);
    heap
}

impl Heap {
    /// The books, recounted the slow way; an error names the first that does not agree.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut index =
            self.nodes.iter().position(|n| n.kind != Kind::Vacant && n.prev == NIL).ok_or("no first")? as u32;
        let (mut at, mut free, mut used, mut last) = (0u64, 0u64, 0u64, Kind::Vacant);
        let mut prev = NIL;
        while index != NIL {
            let node = &self.nodes[index as usize];
            if u64::from(node.start) != at || node.units == 0 || node.prev != prev {
                return Err(format!("node {index} at {} where {at} was due", node.start));
            }
            if node.kind == last && last != Kind::Used {
                let before = &self.nodes[prev as usize];
                let told_apart = (before.stamp <= self.marked) != (node.stamp <= self.marked);
                let users = self.unfinished(node);
                let of_several = users & SHARED_SET != 0 && (node.home == NOBODY || node.home != before.home);
                let is_listed = (before.users ^ node.users) & SHARED_SET != 0;
                let differ = told_apart || of_several || is_listed || self.unfinished(before) != users;
                let apart = node.kind == Kind::Free && differ;
                if !apart {
                    return Err(format!("node {index} did not merge with its neighbour"));
                }
            }
            match node.kind {
                Kind::Free => free += u64::from(node.units),
                Kind::Used => used += u64::from(node.units),
                Kind::Hole => {}
                Kind::Vacant => return Err(format!("vacant node {index} is linked")),
            }
            (last, at, prev, index) = (node.kind, node.end(), index, node.next);
        }
        let mut own: Vec<_> = (0..).zip(&self.nodes).collect();
        own.retain(|(_, n)| n.kind == Kind::Free && n.users & SHARED_SET != 0 && n.home != NOBODY);
        self.check_own(own.into_iter().map(|(index, node)| (node.home, node.units, index)).collect())?;
        let mut listed = 0;
        self.for_each_free(1, |_, node| listed += u64::from(node.units));
        if (free, used, listed) != (self.free_units, self.used_units, free) {
            return Err(format!("free {free} used {used} listed {listed}: {} {}", self.free_units, self.used_units));
        }
        self.bins.check(&self.nodes, self.top)
    }
}

#[test]
fn a_new_top_sends_the_one_before_to_the_others() {
    let mut heap = Heap::new(0, 1000);
    let hole = heap.containing(0, 0);
    heap.convert(hole, 0, 100, Kind::Free, 0);
    heap.check().unwrap();
    let first = heap.top;
    // Memory further on, with addresses behind it, but none between it and the end of the range but these.
    heap.convert(first, 500, 100, Kind::Free, 0);
    heap.check().unwrap();
    assert_ne!(heap.top, first);
    assert_eq!(heap.node(heap.top).unwrap().start, 500);
    // The one before is found as any other, and first.
    assert_eq!(heap.allocate(ask(60)), Some(first));
    heap.check().unwrap();
    let last = heap.allocate(ask(60)).unwrap();
    assert_eq!(heap.node(last).unwrap().start, 500);
    heap.check().unwrap();
}

#[test]
fn released_neighbours_merge_into_one() {
    let mut heap = backed(1000);
    let blocks: Vec<u32> = (0..10).filter_map(|_| heap.allocate(ask(100))).collect();
    assert_eq!(blocks.len(), 10);
    assert_eq!(heap.allocate(ask(1)), None);
    for i in [1, 3, 5, 7, 9, 0, 2, 4, 6, 8] {
        heap.release(blocks[i]);
        heap.check().unwrap();
    }
    assert_eq!(heap.largest_free(), 1000);
}

#[test]
fn alignment_is_of_addresses() {
    let mut heap = Heap::new(3, 4096);
    heap.convert(0, 0, 1000, Kind::Free, 0);
    let index = heap.allocate(Ask { align: 64, ..ask(10) }).unwrap();
    assert_eq!((heap.node(index).unwrap().start + 3) % 64, 0);
    heap.check().unwrap();
}

#[test]
fn a_claim_spans_free_memory_and_holes() {
    let mut heap = backed(100);
    heap.convert(0, 40, 20, Kind::Hole, 0);
    heap.check().unwrap();
    let (index, in_the_way) = heap.claim(0, 30, ask(50));
    let node = heap.node(index).unwrap();
    assert_eq!((node.start, node.units, in_the_way), (30, 50, 0));
    assert_eq!(heap.free_units(), 50);
    heap.check().unwrap();
    heap.abandon(index);
    heap.check().unwrap();
    assert_eq!(heap.free_units(), 50);
}

#[test]
fn the_best_fit_of_a_bin_wins() {
    let mut heap = backed(4000);
    let mut cut = |units| {
        let block = heap.allocate(ask(units)).unwrap();
        heap.allocate(ask(1)).unwrap();
        block
    };
    let (wide, tight) = (cut(259), cut(257));
    heap.release(tight);
    heap.release(wide);
    assert_eq!(heap.allocate(ask(256)), Some(tight));
}

#[test]
fn another_streams_memory_is_taken_only_once_its_work_is_complete() {
    let mut heap = backed(100);
    let block = heap.allocate(ask(100)).unwrap();
    heap.release(block);
    let foreign = Ask { tag: 1, ..ask(50) };
    assert_eq!(heap.allocate(foreign), None);
    let early = heap.now() - 1;
    heap.note_complete(1, early);
    assert_eq!(heap.allocate(foreign), None, "a completion before the release says nothing of it");
    heap.note_complete(1, heap.now());
    assert!(heap.allocate(foreign).is_some());
}

#[test]
fn merged_memory_keeps_all_its_users() {
    let mut heap = backed(100);
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(Ask { tag: 1, ..ask(50) }).unwrap());
    heap.release(a);
    heap.release(b);
    let (claimed, in_the_way) = heap.claim(0, 0, Ask { tag: 1, ..ask(100) });
    assert_eq!(in_the_way, 1, "only the other stream is in the way");
    heap.release(claimed);
    heap.check().unwrap();
}

#[test]
fn memory_of_two_streams_stays_apart_while_both_may_use_theirs() {
    let mut heap = backed(100);
    let theirs = Ask { tag: 1, ..ask(50) };
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(theirs).unwrap());
    heap.release(a);
    heap.release(b);
    heap.check().unwrap();
    let again = (heap.allocate(ask(50)), heap.allocate(theirs));
    assert_eq!(again, (Some(a), Some(b)), "each has its own, and asks nobody");
    heap.release(a);
    heap.release(b);
    heap.join_neighbours(1);
    assert_eq!(heap.largest_free(), 50, "the other's is not complete");
    heap.note_complete(1 << 1, heap.now());
    heap.join_neighbours(1);
    heap.check().unwrap();
    let both = heap.allocate(ask(100)).unwrap();
    heap.release(both);
    assert_eq!(heap.allocate(theirs), None, "complete users are forgotten, the others are not");
}

#[test]
fn memory_that_nobody_uses_any_more_merges_with_any_other() {
    let mut heap = backed(100);
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(Ask { tag: 1, ..ask(50) }).unwrap());
    heap.release(a);
    heap.note_complete(1, heap.now());
    heap.release(b);
    heap.check().unwrap();
    assert!(heap.allocate(Ask { tag: 1, ..ask(100) }).is_some());
}

#[test]
fn memory_that_a_stream_comes_after_is_its_own_and_merges_with_what_it_releases() {
    let mut heap = backed(100);
    let theirs = Ask { tag: 1, ..ask(50) };
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(theirs).unwrap());
    heap.release(a);
    let now = heap.now();
    heap.note_ordered(1, 1, now);
    assert_eq!(heap.allocate(Ask { tag: 2, ..ask(50) }), None, "another stream comes after neither");
    heap.release(b);
    heap.check().unwrap();
    assert_eq!(heap.largest_free(), 100);
    assert_eq!(heap.allocate(ask(50)), None, "whoever wants it comes after the second stream");
    // To be done with that is to be done with the first, which it came after.
    heap.note_complete(1 << 1, heap.now());
    assert!(heap.allocate(Ask { tag: 2, ..ask(100) }).is_some());
}

#[test]
fn what_an_event_is_behind_stays_apart_from_later_releases() {
    let mut heap = backed(150);
    let [a, b, c] = [(); 3].map(|()| heap.allocate(ask(50)).unwrap());
    heap.release(a);
    heap.note_mark(heap.now());
    let marked = heap.now();
    heap.release(b);
    heap.release(c);
    heap.check().unwrap();
    assert_eq!(heap.largest_free(), 100, "what no event tells apart merges");
    heap.note_complete(1, marked);
    assert!(heap.allocate(Ask { tag: 1, ..ask(50) }).is_some_and(|node| heap.node(node).unwrap().start == 0));
    assert_eq!(heap.allocate(Ask { tag: 1, ..ask(50) }), None);
}

#[test]
fn with_events_about_complete_memory_does_not_merge_with_such_as_is_not() {
    let mut heap = backed(100);
    let theirs = Ask { tag: 1, ..ask(50) };
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(theirs).unwrap());
    heap.release_shared(a, 0b101, 1);
    heap.note_mark(1);
    heap.note_complete(0b101, heap.now());
    heap.release(b);
    heap.check().unwrap();
    assert_eq!(heap.largest_free(), 50);
    heap.join_own(1);
    assert!(heap.allocate(Ask { tag: 3, ..ask(50) }).is_some(), "nobody is in the way of the first");
    assert_eq!(heap.allocate(Ask { tag: 3, ..ask(50) }), None);
}

#[test]
fn a_stream_comes_after_no_release_that_was_later() {
    let mut heap = backed(100);
    let (a, b) = (heap.allocate(ask(40)).unwrap(), heap.allocate(ask(60)).unwrap());
    heap.release(a);
    heap.note_ordered(1, 1, heap.now());
    heap.note_ordered(1, 1, 0);
    heap.release(b);
    assert_eq!(heap.allocate(Ask { tag: 1, ..ask(60) }), None);
}

#[test]
fn of_places_without_a_wait_the_one_in_the_smallest_gap_is_taken() {
    let mut heap = backed(400);
    let of = |tag, units| Ask { tag, ..ask(units) };
    // Two stretches of two streams' memory: 120 units and 100, apart.
    let layout = [(0, 60), (1, 60), (0, 20), (0, 50), (1, 50), (0, 20)];
    let blocks: Vec<u32> = layout.iter().map(|&(tag, units)| heap.allocate(of(tag, units)).unwrap()).collect();
    let rest = heap.allocate(ask(140)).unwrap();
    for index in [0, 1, 3, 4] {
        heap.release(blocks[index]);
    }
    let wanted = of(2, 90);
    heap.note_ordered(2, 1, heap.now());
    assert_eq!(
        (heap.fit(wanted, |_, _| true), heap.best_window(wanted, 0).map(|window| window.users)),
        (None, Some(2))
    );
    assert_eq!(heap.allocate_window(wanted), None, "the second stream is in the way");
    heap.note_ordered(2, 2, heap.now());
    let taken = heap.allocate_window(wanted).unwrap();
    assert_eq!((heap.node(taken).unwrap().start, heap.node(taken).unwrap().units), (140, 90));
    // What is left of it is still the second stream's.
    assert!(heap.allocate(of(1, 10)).is_some_and(|node| heap.node(node).unwrap().start == 230));
    assert!(heap.best_window(of(2, 121), 0).is_none());
    heap.release(rest);
}

#[test]
fn joined_by_force_memory_keeps_all_its_users() {
    let mut heap = backed(100);
    let (a, b) = (heap.allocate(ask(50)).unwrap(), heap.allocate(Ask { tag: 1, ..ask(50) }).unwrap());
    heap.release(a);
    heap.release(b);
    heap.join_neighbours(TagSet::MAX);
    assert_eq!(heap.largest_free(), 100);
    assert_eq!((heap.allocate(ask(50)), heap.allocate(Ask { tag: 1, ..ask(50) })), (None, None));
}

#[test]
fn the_top_is_taken_last() {
    let mut heap = backed(1000);
    let (low, _keep) = (heap.allocate(ask(300)).unwrap(), heap.allocate(ask(100)).unwrap());
    heap.release(low);
    let next = heap.allocate(ask(50)).unwrap();
    assert_eq!(heap.node(next).unwrap().start, 0);
}

/// What requests get with and without a rest, in the same order of calls.
#[test]
fn a_rest_changes_no_placement() {
    let (mut plain, mut resting) = (backed(40_000), backed(40_000));
    let mut live: Vec<(u32, u32)> = Vec::new();
    let mut state = 9_u64;
    let mut repeats = 0;
    for _ in 0..20_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let random = (state >> 33) as u32;
        if live.len() > 40 || (!live.is_empty() && random.is_multiple_of(3)) {
            let (one, other) = live.swap_remove(random as usize % live.len());
            let units = plain.node(one).unwrap().units;
            plain.release(one);
            resting.release_to_rest(other);
            if random.is_multiple_of(2) {
                repeats += u32::from(resting.is_resting());
                live.extend(plain.allocate(ask(units)).zip(resting.allocate(ask(units))));
            }
        } else {
            let units = 1 + random % 2000;
            let (one, other) = (plain.allocate(ask(units)), resting.allocate(ask(units)));
            assert_eq!(one.is_some(), other.is_some());
            live.extend(one.zip(other));
        }
        if let Some(&(one, other)) = live.last() {
            let (one, other) = (plain.node(one).unwrap(), resting.node(other).unwrap());
            assert_eq!((one.start, one.units), (other.start, other.units));
        }
    }
    assert!(repeats > 500, "{repeats}");
    resting.end_rest();
    resting.check().unwrap();
    assert_eq!((plain.free_units(), plain.used_units()), (resting.free_units(), resting.used_units()));
}

#[test]
fn at_ebb_a_request_is_a_miss_until_the_tide_is_reset() {
    let mut heap = backed(100);
    let (one, two) = (heap.allocate(ask(10)).unwrap(), heap.allocate(ask(10)).unwrap());
    heap.set_ebb(15);
    let three = heap.allocate(ask(10)).unwrap();
    heap.release(one);
    heap.release(two);
    assert!(heap.is_at_ebb());
    assert_eq!((heap.allocate(ask(10)), heap.allocate_window(ask(10))), (None, None));
    assert_eq!(heap.ebb(), 15);
    heap.set_ebb(0);
    assert!(!heap.is_at_ebb() && heap.allocate(ask(10)).is_some());
    heap.release(three);
    heap.check().unwrap();
}

/// Of ranges of one size the one released last is taken first; after a fresh start, that with the lowest address.
#[test]
fn lists_in_address_order_forget_who_was_released_when() {
    for fresh in [false, true] {
        let mut heap = backed(100);
        let blocks: Vec<_> = (0..8).map(|_| heap.allocate(ask(10)).unwrap()).collect();
        for index in [2, 0, 6, 4] {
            heap.release(blocks[index]);
        }
        if fresh {
            heap.relist();
        }
        let starts = [(); 4].map(|()| heap.allocate(ask(10)).map(|node| heap.node(node).unwrap().start));
        let expected = if fresh { [0, 20, 40, 60] } else { [40, 60, 0, 20] };
        assert_eq!(starts, expected.map(Some));
        heap.check().unwrap();
    }
}

#[test]
fn nobody_is_in_the_way_at_addresses_without_memory() {
    let mut heap = backed(100);
    let of = |tag, units| Ask { tag, ..ask(units) };
    let blocks = [of(0, 50), of(3, 50)].map(|ask| heap.allocate(ask).unwrap());
    heap.release(blocks[0]);
    let claimed = heap.claim(0, 0, of(1, 50)).0;
    heap.abandon(claimed);
    assert_eq!(heap.claim(0, 0, of(2, 50)).1, 0);
    heap.check().unwrap();
}
