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

    /// Whether the stream has a free slot of the class.
    pub(crate) fn has(&self, class: usize, tag: Tag) -> bool {
        self.partial.get(tag as usize).is_some_and(|classes| classes[class] != NIL)
    }

    /// Gives a slot back; an emptied slab leaves the books and is returned. A slot that is free already stays so.
    #[inline]
    pub(crate) fn give(&mut self, index: u32, slot: u32) -> Option<EmptySlab> {
        let slab = self.slabs.get_mut(index as usize)?;
        slab.free |= 1 << slot;
        let class = slab.class as usize;
        let (partial, empty) = (slab.partial, slab.free == all_slots(class));
        if empty {
            let emptied = EmptySlab { class, node: slab.node, ledger: slab.ledger };
            if partial {
                self.unlist(index);
            }
            self.slabs[index as usize].next = self.vacant;
            self.slabs[index as usize].node = NIL;
            self.vacant = index;
            return Some(emptied);
        }
        if !partial {
            self.list(index);
        }
        None
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
        let mut emptied = None;
        for slot in taken {
            assert_eq!(emptied, None);
            emptied = slabs.give(index, slot);
        }
        assert_eq!(emptied, Some(EmptySlab { class, node: 5, ledger: 9 }));
        assert_eq!(slabs.take(class, 2), None);
    }
}
