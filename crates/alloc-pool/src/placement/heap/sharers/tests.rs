//! Memory of streams that share a tag, in small heaps.

use super::*;

impl Heap {
    /// Whether just these pieces are listed as some stream's own.
    pub(in super::super) fn check_own(&self, own: BTreeSet<(Stream, u32, u32)>) -> Result<(), String> {
        let listed = &self.own_pieces.0;
        if *listed == own { Ok(()) } else { Err(format!("{listed:?} are listed, {own:?} are own")) }
    }
}

fn of(stream: u64, units: u32) -> Ask {
    Ask { units, align: 1, slack: 0, tag: SHARED_TAG, home: Stream::from_raw(stream) }
}

fn backed(units: u32) -> Heap {
    let mut heap = Heap::new(0, 1 << 20);
    heap.convert(0, 0, units, Kind::Free, 0);
    heap
}

/// Blocks of streams 1, 2, ... one beside the other.
fn blocks(heap: &mut Heap, streams: u64, units: u32) -> Vec<u32> {
    (1..=streams).map(|stream| heap.allocate(of(stream, units)).unwrap()).collect()
}

#[test]
fn each_has_its_own_memory_and_no_others() {
    let mut heap = backed(30);
    let blocks = blocks(&mut heap, 3, 10);
    for &block in &blocks {
        heap.release(block);
        heap.check().unwrap();
    }
    assert_eq!(heap.allocate(of(4, 1)), None);
    assert_eq!(heap.allocate(of(2, 11)), None, "what lies beside is another's");
    for (stream, block) in [(3, blocks[2]), (1, blocks[0]), (2, blocks[1])] {
        assert_eq!(heap.allocate(of(stream, 10)), Some(block));
        heap.check().unwrap();
    }
}

#[test]
fn own_memory_comes_apart_and_together_again() {
    let mut heap = backed(40);
    let [one, _other] = blocks(&mut heap, 2, 20)[..] else { unreachable!() };
    heap.release(one);
    let parts: Vec<_> = [5, 5, 10].map(|units| heap.allocate(of(1, units)).unwrap()).into();
    for part in [1, 0, 2] {
        heap.release(parts[part]);
        heap.check().unwrap();
    }
    assert!(heap.allocate(of(1, 20)).is_some());
}

#[test]
fn what_is_left_beside_an_aligned_block_is_still_the_own() {
    let mut heap = backed(40);
    let [one, _other] = blocks(&mut heap, 2, 20)[..] else { unreachable!() };
    heap.release(one);
    let first = heap.allocate(of(1, 5)).unwrap();
    let aligned = heap.allocate(Ask { align: 8, ..of(1, 3) }).unwrap();
    assert_eq!(heap.node(aligned).unwrap().start, 8);
    heap.check().unwrap();
    let [before, behind] = [3, 9].map(|units| heap.allocate(of(1, units)).unwrap());
    for part in [aligned, before, behind, first] {
        heap.release(part);
        heap.check().unwrap();
    }
    assert!(heap.allocate(of(1, 20)).is_some());
}

#[test]
fn memory_that_comes_about_beside_it_leaves_it_the_own() {
    for users in [0, own_set(2), SHARED_SET] {
        let mut heap = backed(10);
        let block = heap.allocate(of(1, 10)).unwrap();
        heap.release(block);
        heap.convert_for(0, (10, 5), Kind::Free, (users, Stream::from_raw(2)));
        heap.check().unwrap();
        assert_eq!(heap.allocate(of(1, 10)), Some(block), "{users:b}");
        assert_eq!(heap.node(block).unwrap().start, 0);
    }
}

#[test]
fn what_is_joined_by_force_is_nobodys_own() {
    let mut heap = backed(30);
    for block in blocks(&mut heap, 3, 10) {
        heap.release(block);
    }
    heap.join_neighbours(TagSet::MAX);
    heap.check().unwrap();
    assert_eq!(heap.largest_free(), 30);
    assert_eq!([1, 2, 3].map(|stream| heap.allocate(of(stream, 1))), [None; 3]);
    let place = heap.best_place(of(1, 20), 0, None).unwrap();
    assert!(heap.sharers_in(place, of(1, 20)).unwrap().is_all());
    heap.note_complete(SHARED_SET, heap.now());
    assert!(heap.allocate(of(4, 30)).is_some());
}

#[test]
fn of_a_place_that_two_used_both_are_named() {
    let mut heap = backed(30);
    for block in blocks(&mut heap, 3, 10) {
        heap.release(block);
    }
    let wanted = of(1, 15);
    let place = heap.best_place(wanted, 0, None).unwrap();
    let sharers = heap.sharers_in(place, wanted).unwrap();
    assert!(sharers.named() == [Stream::from_raw(2)] || sharers.named() == [2, 3].map(Stream::from_raw), "{sharers:?}");
    let mut passed_over = Sharers::NONE;
    passed_over.add(Stream::from_raw(2));
    assert_eq!(heap.best_place(wanted, 0, Some(&passed_over)), None, "no place is without the second's");
    assert!(heap.best_place(of(4, 10), 0, Some(&passed_over)).is_some_and(|place| place.start != 10));
}

#[test]
fn what_was_found_complete_is_everyones_and_the_rest_stays_as_it_is() {
    let mut heap = backed(40);
    let blocks = [1, 2, 1, 2].map(|stream| heap.allocate(of(stream, 10)).unwrap());
    heap.release(blocks[0]);
    heap.release(blocks[2]);
    let wanted = of(3, 10);
    let place = heap.best_place(wanted, 0, None).unwrap();
    let (sharers, asked_at) = (heap.sharers_in(place, wanted).unwrap(), heap.now());
    heap.note_complete_in(place, wanted, (SHARED_SET, &sharers), asked_at - 2);
    assert_eq!(heap.allocate(wanted), None, "it was released after the question");
    heap.note_complete_in(place, wanted, (SHARED_SET, &sharers), asked_at);
    heap.check().unwrap();
    assert!(heap.allocate(wanted).is_some());
    assert_eq!(heap.allocate(wanted), None);
    assert!(heap.allocate(of(1, 10)).is_some(), "the first has the other piece to itself");
}

#[test]
fn memory_that_nobody_got_is_also_of_those_that_were_not_waited_for() {
    let mut heap = backed(20);
    for block in blocks(&mut heap, 2, 10) {
        heap.release(block);
    }
    let (node, in_the_way) = heap.claim(0, 0, of(1, 20));
    assert_eq!(in_the_way, SHARED_SET);
    heap.give_up(node, in_the_way);
    heap.check().unwrap();
    assert_eq!([1, 2].map(|stream| heap.allocate(of(stream, 1))), [None; 2]);
}

#[test]
fn a_stream_called_nobody_owns_nothing() {
    let mut heap = backed(10);
    let nobodys = Ask { home: NOBODY, ..of(0, 10) };
    let block = heap.allocate(nobodys).unwrap();
    heap.release(block);
    heap.check().unwrap();
    assert_eq!(heap.allocate(nobodys), None);
}

#[test]
fn sharers_are_named_as_long_as_they_are_few() {
    let mut sharers = Sharers::NONE;
    for stream in (1..=NAMED as u64).chain(1..=NAMED as u64).map(Stream::from_raw) {
        sharers.add(stream);
        assert!(sharers.are_named() && sharers.touch(stream) && sharers.touch(NOBODY));
    }
    assert!(!sharers.touch(Stream::from_raw(99)));
    let mut more = sharers;
    more.add(Stream::from_raw(99));
    assert!(more.is_all() && more.named().is_empty() && more.touch(Stream::from_raw(1000)));
    sharers.add_all_of(&Sharers::NONE);
    assert!(sharers.are_named());
    sharers.add(NOBODY);
    assert!(sharers.is_all(), "nobody in particular is any of them");
}
