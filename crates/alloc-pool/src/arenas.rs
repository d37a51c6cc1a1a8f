//! The arenas of a pool, by index.

use std::sync::OnceLock;

use crate::arena::Arena;
use crate::id::MAX_ARENAS;

/// Arenas are added, one after the other, and stay.
#[derive(Debug)]
pub(crate) struct Arenas {
    /// The one at which all threads start. It is found without a look at a table, and since the processor guesses that
    /// it is meant, without waiting for whatever says so: a call for a large block starts and ends with a locked
    /// instruction, and every load in a row between two of them adds to its time.
    first: OnceLock<Arena>,
    others: Box<[OnceLock<Box<Arena>>]>,
}

impl Arenas {
    pub(crate) fn new() -> Self {
        Self { first: OnceLock::new(), others: (1..MAX_ARENAS).map(|_| OnceLock::new()).collect() }
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: u32) -> Option<&Arena> {
        match index.checked_sub(1) {
            None => self.first.get(),
            Some(other) => self.others.get(other as usize)?.get().map(|arena| &**arena),
        }
    }

    /// Adds an arena as the one of its index, unless that is too high.
    pub(crate) fn add(&self, arena: Arena) {
        match arena.index.checked_sub(1) {
            None => {
                self.first.get_or_init(|| arena);
            }
            Some(other) => {
                if let Some(place) = self.others.get(other as usize) {
                    place.get_or_init(|| Box::new(arena));
                }
            }
        }
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arena> {
        (0..).map_while(|index| self.get(index))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::arena::Addresses;
    use crate::placement::heap::Heap;

    use super::*;

    #[test]
    fn arenas_are_found_by_their_index() {
        let arenas = Arenas::new();
        assert!(arenas.get(0).is_none() && arenas.iter().next().is_none());
        for index in [0, 1, 2, MAX_ARENAS as u32] {
            arenas.add(Arena::new(index, Heap::new(0, 1024), Addresses::Range { base: 0 }));
        }
        assert_eq!(arenas.iter().map(|arena| arena.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!([3, MAX_ARENAS as u32, u32::MAX].iter().all(|&index| arenas.get(index).is_none()));
    }
}
