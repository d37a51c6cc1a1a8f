//! Slabs: runs of equal small blocks, with one bit a block in ordinary memory.

use super::heap::{NIL, Tag};
use super::units::{CLASSES, class_slots};

#[derive(Debug)]
struct Slab {
    /// One bit for each slot that is free.
    free: u64,
    /// One for each there is.
    all: u64,
    class: u8,
    /// The stream whose blocks these are.
    tag: Tag,
    partial: bool,
    prev: u32,
    next: u32,
    /// The heap node that holds the slab's memory; `NIL` for the class of zero bytes.
    node: u32,
    /// The slab's entry in the ledger that all threads share.
    ledger: u32,
}

/// The slabs of one arena; those with free slots are listed by stream and class.
#[derive(Debug)]
pub(crate) struct Slabs {
    slabs: Vec<Slab>,
    vacant: u32,
    partial: Vec<[u32; CLASSES]>,
    /// The slab that was kept last though it was empty, by stream and class: others may be listed before it since.
    kept: Vec<[u32; CLASSES]>,
    /// How many slots there are, by stream and class.
    slots: Vec<[u32; CLASSES]>,
}

/// A slab without a block in use, taken out of the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EmptySlab {
    pub(crate) class: usize,
    pub(crate) node: u32,
    pub(crate) ledger: u32,
}

/// A slab as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabSlots {
    pub(crate) node: u32,
    pub(crate) ledger: u32,
    pub(crate) class: usize,
    pub(crate) tag: Tag,
    /// One bit for each slot that is free, and for each that there is.
    pub(crate) free: u64,
    pub(crate) all: u64,
}

/// The least part of a slab that a stream gets.
const SMALLEST_PART: u32 = 4;

impl Slabs {
    pub(crate) fn new() -> Self {
        Self {
            slabs: Vec::with_capacity(64),
            vacant: NIL,
            partial: Vec::with_capacity(4),
            kept: Vec::with_capacity(4),
            slots: Vec::with_capacity(4),
        }
    }

    /// How many slots the next slab of the class has. Where several streams have slabs, each begins with small ones: with many
    /// classes, few blocks of each, and a slab for each stream most of their memory would be nobody's.
    pub(crate) fn next_slots(&self, class: usize, tag: Tag, among_several: bool) -> u32 {
        let all = class_slots(class);
        if !among_several {
            return all;
        }
        let there = self.slots.get(usize::from(tag)).map_or(0, |classes| classes[class]);
        there.clamp(all.div_ceil(SMALLEST_PART), all)
    }

    /// Adds an empty slab of so many slots, at most as many as one of the class has; returns its local index.
    pub(crate) fn add(&mut self, (class, slots): (usize, u32), tag: Tag, node: u32, ledger: u32) -> u32 {
        if self.partial.len() <= tag as usize {
            self.partial.resize(tag as usize + 1, [NIL; CLASSES]);
            self.kept.resize(tag as usize + 1, [NIL; CLASSES]);
            self.slots.resize(tag as usize + 1, [0; CLASSES]);
        }
        self.slots[tag as usize][class] += slots;
        let all = u64::MAX >> (u64::BITS - slots.clamp(1, class_slots(class)));
        let slab = Slab { free: all, all, class: class as u8, tag, partial: false, prev: NIL, next: NIL, node, ledger };
        let index = if self.vacant == NIL {
            self.slabs.push(slab);
            self.slabs.len() as u32 - 1
        } else {
            let index = self.vacant;
            self.vacant = self.slabs[index as usize].next;
            self.slabs[index as usize] = slab;
            index
        };
        self.list(index);
        index
    }

    /// Takes a free slot of the class: the ledger entry of its slab, and the slot.
    #[inline]
    pub(crate) fn take(&mut self, class: usize, tag: Tag) -> Option<(u32, u32)> {
        let index = self.partial.get(tag as usize)?[class];
        let slab = self.slabs.get_mut(index as usize)?;
        let slot = slab.free.trailing_zeros();
        slab.free &= slab.free - 1;
        let ledger = slab.ledger;
        if slab.free == 0 {
            self.unlist(index);
        }
        Some((ledger, slot))
    }

    /// The heap node that holds a slab's memory.
    pub(crate) fn node(&self, index: u32) -> Option<u32> {
        self.slabs.get(index as usize).map(|slab| slab.node).filter(|&node| node != NIL)
    }

    /// At most how many slabs there are.
    pub(crate) fn most(&self) -> usize {
        self.slabs.len()
    }

    /// Visits the slabs that have memory: each one's node, entry in the ledger, class and stream, and the slots that are free,
    /// one bit each, of those that there are.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(SlabSlots)) {
        for slab in self.slabs.iter().filter(|slab| slab.node != NIL) {
            let Slab { node, ledger, class, tag, free, all, .. } = *slab;
            visit(SlabSlots { node, ledger, class: class.into(), tag, free, all });
        }
    }

    /// Whether the stream has a free slot of the class.
    pub(crate) fn has(&self, class: usize, tag: Tag) -> bool {
        self.partial.get(tag as usize).is_some_and(|classes| classes[class] != NIL)
    }

    /// Gives a slot back. An emptied slab leaves the books and is returned, unless it is its class's only one with free
    /// slots: that is kept, so that a class in light use does not make and unmake slabs. A slot that is free already
    /// stays so.
    #[inline]
    pub(crate) fn give(&mut self, index: u32, slot: u32) -> Option<EmptySlab> {
        let slab = self.slabs.get_mut(index as usize)?;
        slab.free |= 1 << slot;
        let empty = slab.free == slab.all;
        if !slab.partial {
            self.list(index);
        }
        let slab = &self.slabs[index as usize];
        if !empty {
            return None;
        }
        if slab.prev == NIL && slab.next == NIL {
            self.kept[slab.tag as usize][slab.class as usize] = index;
            return None;
        }
        Some(self.remove(index))
    }

    /// Takes an empty slab that was kept out of the books, if there is any.
    pub(crate) fn take_empty(&mut self) -> Option<EmptySlab> {
        // Of the lists the first are looked at, and no more: what was kept was alone in its list, and is its last.
        let listed = self.partial.iter().chain(&self.kept).flatten().copied();
        // A slab that was kept may be in use by now, or gone, or another.
        let is_empty =
            |&index: &u32| self.slabs.get(index as usize).is_some_and(|slab| slab.partial && slab.free == slab.all);
        let index = listed.into_iter().find(is_empty)?;
        Some(self.remove(index))
    }

    fn remove(&mut self, index: u32) -> EmptySlab {
        self.unlist(index);
        let slab = &mut self.slabs[index as usize];
        self.slots[slab.tag as usize][slab.class as usize] -= slab.all.count_ones();
        let emptied = EmptySlab { class: slab.class as usize, node: slab.node, ledger: slab.ledger };
        slab.node = NIL;
        slab.next = self.vacant;
        self.vacant = index;
        emptied
    }

    fn list(&mut self, index: u32) {
        let (class, tag) = (self.slabs[index as usize].class as usize, self.slabs[index as usize].tag as usize);
        let head = self.partial[tag][class];
        let slab = &mut self.slabs[index as usize];
        (slab.prev, slab.next, slab.partial) = (NIL, head, true);
        if head != NIL {
            self.slabs[head as usize].prev = index;
        }
        self.partial[tag][class] = index;
    }

    fn unlist(&mut self, index: u32) {
        let slab = &mut self.slabs[index as usize];
        slab.partial = false;
        let (prev, next, class, tag) = (slab.prev, slab.next, slab.class as usize, slab.tag as usize);
        if next != NIL {
            self.slabs[next as usize].prev = prev;
        }
        if prev == NIL {
            self.partial[tag][class] = next;
        } else {
            self.slabs[prev as usize].next = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_handed_out_once_and_an_emptied_slab_leaves() {
        let mut slabs = Slabs::new();
        let class = CLASSES - 1;
        let index = slabs.add((class, class_slots(class)), 2, 5, 9);
        let taken: Vec<u32> = std::iter::from_fn(|| slabs.take(class, 2).map(|(_, slot)| slot)).collect();
        assert_eq!(taken, (0..class_slots(class)).collect::<Vec<_>>());
        assert_eq!(slabs.take(class, 1), None, "slots belong to their stream");
        for slot in taken {
            assert_eq!(slabs.give(index, slot), None, "the only slab is kept");
        }
        assert_eq!(slabs.take_empty(), Some(EmptySlab { class, node: 5, ledger: 9 }));
        assert_eq!(slabs.take_empty(), None);
        assert_eq!(slabs.take(class, 2), None);
    }

    #[test]
    fn among_several_streams_slabs_begin_small_and_double() {
        let (mut slabs, class) = (Slabs::new(), 8);
        let all = class_slots(class);
        assert_eq!(slabs.next_slots(class, 1, false), all, "a stream alone has whole ones");
        let mut given = Vec::new();
        for node in 0..4 {
            let slots = slabs.next_slots(class, 1, true);
            slabs.add((class, slots), 1, node, node);
            given.push(slots);
        }
        assert_eq!(given, [all / 4, all / 4, all / 2, all]);
        assert_eq!(slabs.next_slots(class, 0, true), all / 4, "another stream begins anew");
        let taken: Vec<(u32, u32)> = std::iter::from_fn(|| slabs.take(class, 1)).collect();
        assert_eq!(taken.len() as u32, 2 * all);
        assert!(taken.iter().all(|&(ledger, slot)| slot < given[ledger as usize]));
        for (ledger, slot) in taken {
            slabs.give(ledger, slot);
        }
        while slabs.take_empty().is_some() {}
        assert_eq!(slabs.next_slots(class, 1, true), all / 4, "with none left it begins anew");
        // One block is the least.
        assert!((0..CLASSES).all(|class| slabs.next_slots(class, 0, true) >= 1));
    }

    #[test]
    fn a_slab_that_was_kept_is_found_behind_others() {
        let (mut slabs, class) = (Slabs::new(), CLASSES - 1);
        let first = slabs.add((class, 4), 0, 1, 1);
        (0..4).for_each(|_| assert!(slabs.take(class, 0).is_some()));
        let second = slabs.add((class, 4), 0, 2, 2);
        (0..4).for_each(|_| assert!(slabs.take(class, 0).is_some()));
        (0..4).for_each(|slot| assert_eq!(slabs.give(first, slot), None, "it is the only one with free slots"));
        assert_eq!(slabs.give(second, 0), None);
        assert_eq!(slabs.take_empty(), Some(EmptySlab { class, node: 1, ledger: 1 }));
        assert_eq!(slabs.take_empty(), None, "of the other three blocks are in use");
        (1..4).for_each(|slot| assert_eq!(slabs.give(second, slot), None));
        assert_eq!(slabs.take_empty(), Some(EmptySlab { class, node: 2, ledger: 2 }));
        assert_eq!(slabs.take_empty(), None);
    }

    #[test]
    fn of_two_slabs_the_emptied_one_leaves() {
        let mut slabs = Slabs::new();
        let class = CLASSES - 1;
        let (first, second) = (slabs.add((class, 4), 0, 1, 1), slabs.add((class, 4), 0, 2, 2));
        let (ledger, slot) = slabs.take(class, 0).unwrap();
        assert_eq!(ledger, 2, "the slab that came last is used first");
        assert_eq!(slabs.give(second, slot), Some(EmptySlab { class, node: 2, ledger: 2 }));
        assert!(slabs.has(class, 0), "slab {first} is left");
    }
}
