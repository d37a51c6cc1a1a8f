//! The places that are found, beside all there are.

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
fn a_place_that_was_found_is_had_unless_memory_was_taken_or_moved_since() {
    let changes: [fn(&mut Heap); 3] =
        [|_| (), |heap| assert!(heap.allocate(ask(10, 0)).is_some()), |heap| _ = heap.convert(0, 0, 5, Kind::Hole, 0)];
    for (number, change) in changes.into_iter().enumerate() {
        let (mut heap, blocks) = cut(&[(0, 100), (1, 5)]);
        heap.release(blocks[0]);
        heap.note_mark(heap.now());
        let found = heap.allocate_or_find(ask(90, 2)).unwrap_err();
        let first = found.map(|found| found.window);
        assert_eq!(start(first), Some(0));
        change(&mut heap);
        let window = heap.best_window_or(found, ask(90, 2), 0);
        assert_eq!(window == first, number == 0, "{number}: {window:?}");
        assert_eq!(window, heap.best_window(ask(90, 2), 0));
    }
    let (mut heap, blocks) = cut(&[(0, 100), (1, 5)]);
    heap.release(blocks[0]);
    assert!(matches!(heap.allocate_or_find(ask(90, 0)), Err(None)), "without events a miss looks for it");
    heap.note_mark(heap.now());
    assert!(heap.allocate_or_find(ask(90, 0)).is_ok());
}

#[test]
fn a_place_is_not_had_if_some_of_it_was_taken_after_a_release_of_an_earlier_stamp() {
    let (mut heap, blocks) = cut(&[(0, 10), (1, 20), (0, 10), (1, 10)]);
    heap.note_mark(1);
    heap.release(blocks[1]);
    let stamp = heap.reserve_stamp();
    let found = heap.allocate_or_find(ask(20, 2)).unwrap_err();
    heap.release_shared(blocks[3], 0b1010, stamp);
    // As much is in use as before.
    let taken = heap.allocate(ask(10, 1)).unwrap();
    let taken = heap.node(taken).map(|node| u64::from(node.start)..node.end()).unwrap();
    let window = heap.best_window_or(found, ask(20, 2), 0);
    let is_beside = |start: u64| start >= taken.end || start + 20 <= taken.start;
    assert!(start(window).is_none_or(|start| is_beside(u64::from(start))), "{window:?} {taken:?}");
}

#[test]
fn a_place_is_not_had_if_some_of_it_was_taken_while_a_miss_gave_up_as_much() {
    let (mut heap, blocks) = cut(&[(0, 100), (1, 5), (3, 10)]);
    heap.abandon(blocks[2]);
    let first = heap.containing(0, 105);
    let (claimed, _) = heap.claim(first, 105, ask(10, 3));
    heap.release(blocks[0]);
    heap.note_mark(heap.now());
    let found = heap.allocate_or_find(ask(90, 2)).unwrap_err();
    assert_eq!(start(found.map(|found| found.window)), Some(0));
    assert!(heap.allocate(ask(10, 0)).is_some());
    heap.abandon(claimed);
    let window = heap.best_window_or(found, ask(90, 2), 0);
    assert_eq!((start(window), window), (Some(10), heap.best_window(ask(90, 2), 0)));
}

/// Every place there is, tried one after the other: the latest release there, what is left around it, and whether in one piece.
fn best_of_all(heap: &Heap, ask: Ask, untouchable: TagSet) -> Option<(u64, u64, bool)> {
    let (units, mut best, mut row) = (u64::from(ask.units), None, Vec::new());
    for start in 0..=heap.capacity() {
        let node = (start < heap.capacity()).then(|| heap.node(heap.containing(0, start as u32))).flatten();
        if let Some(node) = node.filter(|node| node.kind == Kind::Free) {
            let users = heap.in_the_way(node, ask.asker());
            row.push((users, if users == 0 { 0 } else { node.stamp }));
            continue;
        }
        let length = row.len() as u64;
        for (at, place) in row.windows(ask.units as usize).enumerate() {
            let (at, low) = (at as u64, start - length);
            let may = place.iter().all(|(users, _)| users & untouchable == 0);
            let fits = if ask.align > 1 {
                (heap.base + low + at).is_multiple_of(ask.align)
            } else {
                at / units + (length - units - at) / units == length / units - 1
            };
            if may && fits {
                let stamp = place.iter().map(|(_, stamp)| *stamp).max().unwrap_or(0);
                let key = (stamp, length - units, at != 0 && at + units != length);
                best = Some(best.map_or(key, |least| key.min(least)));
            }
        }
        row.clear();
    }
    best
}

#[test]
fn no_place_is_better() {
    let mut state = 7_u64;
    let mut below = |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let mut found = [0; 2];
    for _ in 0..2_000 {
        let layout: Vec<_> = (0..4 + below(12)).map(|_| (below(5) as u8, 1 + below(12) as u32)).collect();
        let (mut heap, mut blocks) = cut(&layout);
        heap.base = below(64);
        heap.note_mark(1);
        while blocks.len() as u64 > below(5) {
            let block = blocks.swap_remove(below(blocks.len() as u64) as usize);
            heap.release(block);
        }
        heap.note_complete(1 << below(5), below(heap.now()));
        heap.note_ordered(2, 1 << below(5), below(heap.now() + 4));
        let wanted = Ask { align: 1 << below(4).saturating_sub(1), ..ask(1 + below(30) as u32, 2) };
        let untouchable = if below(3) == 0 { 1 << below(5) } else { 0 };
        let window = heap.best_window(wanted, untouchable);
        let expected = best_of_all(&heap, wanted, untouchable);
        found[usize::from(window.is_some())] += 1;
        let key = window.map(|window| {
            let (start, units) = (u64::from(window.start), u64::from(wanted.units));
            let (mut low, mut high) = (start, start);
            let is_free = |heap: &Heap, at: u64| {
                at < heap.capacity() && heap.node(heap.containing(0, at as u32)).unwrap().kind == Kind::Free
            };
            while low > 0 && is_free(&heap, low - 1) {
                low -= 1;
            }
            while is_free(&heap, high) {
                high += 1;
            }
            (window.stamp, high - low - units, start != low && start + units != high)
        });
        assert_eq!(key, expected, "{wanted:?} {untouchable:b} {window:?}");
    }
    assert!(found.iter().all(|&times| times > 300), "{found:?}");
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
