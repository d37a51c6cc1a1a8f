//! Slabs: runs of equal small blocks, with one bit a block in ordinary memory.

use super::heap::{NIL, Tag};
use super::units::{CLASSES, class_slots};

#[derive(Debug)]
struct Slab {
    /// One bit for each slot that is free.
    free: u64,
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
}

/// A slab without a block in use, taken out of the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EmptySlab {
    pub(crate) class: usize,
    pub(crate) node: u32,
    pub(crate) ledger: u32,
}

/// All slots of a class.
pub(crate) fn all_slots(class: usize) -> u64 {
    u64::MAX >> (64 - class_slots(class))
}

impl Slabs {
    pub(crate) fn new() -> Self {
        Self { slabs: Vec::with_capacity(64), vacant: NIL, partial: Vec::with_capacity(4) }
    }

    /// Adds an empty slab; returns its local index.
    pub(crate) fn add(&mut self, class: usize, tag: Tag, node: u32, ledger: u32) -> u32 {
        if self.partial.len() <= tag as usize {
            self.partial.resize(tag as usize + 1, [NIL; CLASSES]);
        }
        let slab = Slab {
            free: all_slots(class),
            class: class as u8,
            tag,
            partial: false,
            prev: NIL,
            next: NIL,
            node,
            ledger,
        };
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
        let empty = slab.free == all_slots(slab.class as usize);
        if !slab.partial {
            self.list(index);
        }
        let slab = &self.slabs[index as usize];
        let alone = slab.prev == NIL && slab.next == NIL;
        if empty && !alone { Some(self.remove(index)) } else { None }
    }

    /// Takes an empty slab that was kept out of the books, if there is any.
    pub(crate) fn take_empty(&mut self) -> Option<EmptySlab> {
        let heads = self.partial.iter().flatten().copied().filter(|&head| head != NIL);
        let is_empty = |&head: &u32| {
            let slab = &self.slabs[head as usize];
            slab.free == all_slots(slab.class as usize)
        };
        let index = heads.into_iter().find(is_empty)?;
        Some(self.remove(index))
    }

    fn remove(&mut self, index: u32) -> EmptySlab {
        self.unlist(index);
        let slab = &mut self.slabs[index as usize];
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
        let index = slabs.add(class, 2, 5, 9);
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
    fn of_two_slabs_the_emptied_one_leaves() {
        let mut slabs = Slabs::new();
        let class = CLASSES - 1;
        let (first, second) = (slabs.add(class, 0, 1, 1), slabs.add(class, 0, 2, 2));
        let (ledger, slot) = slabs.take(class, 0).unwrap();
        assert_eq!(ledger, 2, "the slab that came last is used first");
        assert_eq!(slabs.give(second, slot), Some(EmptySlab { class, node: 2, ledger: 2 }));
        assert!(slabs.has(class, 0), "slab {first} is left");
    }
}
