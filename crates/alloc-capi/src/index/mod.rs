//! From an address to the block that starts there, in constant time and without a lock.
//!
//! Blocks that live are in a small table found by a hash of the address ([`front`]); those that find no place there are in a
//! large one that mirrors the address space ([`flat`]), which also remembers where a block started that is gone.

mod flat;
mod front;

use std::sync::OnceLock;

use alloc_core::{Block, Stream};

use flat::Flat;
use front::Front;

const UNIT_SHIFT: u32 = 9;

/// Who handed a block out: a number that [`crate::memory`] gives meaning to.
pub(crate) type Owner = u16;

/// What the index knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) block: Block,
    pub(crate) owner: Owner,
    /// The stream that it was allocated for.
    pub(crate) stream: Stream,
    /// Whether other streams were recorded.
    pub(crate) shared: bool,
}

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    Unknown,
    Freed,
}

/// The tables.
pub(crate) struct Index {
    front: OnceLock<Front>,
    flat: Flat,
}

/// The index of this process: addresses of hosts and devices are in one space.
pub(crate) static INDEX: Index = Index::new();

/// Whether a block of a pool can start at the address, and which unit of the address space that is.
fn unit_of(address: u64) -> Option<u64> {
    let is_possible = address.is_multiple_of(1 << UNIT_SHIFT) && address >> UNIT_SHIFT < flat::UNITS;
    is_possible.then_some(address >> UNIT_SHIFT)
}

impl Index {
    const fn new() -> Self {
        Self { front: OnceLock::new(), flat: Flat::new() }
    }

    /// Notes a block. `false`, with nothing done, for an address that the tables can't hold.
    #[inline]
    pub(crate) fn insert(&self, block: Block, owner: Owner, stream: Stream) -> bool {
        let Some(unit) = unit_of(block.address().get()) else { return false };
        let entry = Entry { block, owner, stream, shared: false };
        // Nobody else notes a block there: the address is this one's, and the entry of the one before was taken.
        self.front.get_or_init(Front::new).insert(unit, &entry, |gone| self.flat.remember(gone))
            || self.flat.insert(unit, &entry)
    }

    /// What starts at an address.
    pub(crate) fn find(&self, address: u64) -> Result<Entry, Absent> {
        let unit = unit_of(address).ok_or(Absent::Unknown)?;
        let in_front = self.front.get().map_or(Err(Absent::Unknown), |front| front.find(unit));
        in_front.or_else(|absent| self.flat.find(unit).map_err(|behind| absent.or(behind)))
    }

    /// Takes the block at an address out, if `accept` likes it and it is among those that are found at once; `None`, with
    /// nothing done, may mean anything else. Of several calls for one block, of this and of [`Index::take`], at most one gets it.
    #[inline(always)]
    pub(crate) fn take_if<T>(&self, address: u64, accept: impl Fn(&Entry) -> Option<T>) -> Option<(Entry, T)> {
        self.front.get()?.take_if(unit_of(address)?, accept)
    }

    /// Takes the block at an address out, if `accept` likes it, or says why not. Of several such calls for one block exactly one gets it.
    #[inline]
    pub(crate) fn take<E: From<Absent>>(
        &self,
        address: u64,
        accept: impl Fn(&Entry) -> Result<(), E>,
    ) -> Result<Entry, E> {
        let Some(unit) = unit_of(address) else { return Err(Absent::Unknown.into()) };
        let absent = match self.front.get().map(|front| front.take(unit, &accept)) {
            Some(Ok(taken)) => return taken,
            Some(Err(absent)) => absent,
            None => Absent::Unknown,
        };
        match self.flat.take(unit, &accept) {
            Ok(taken) => taken,
            Err(behind) => Err(absent.or(behind).into()),
        }
    }

    /// Notes that other streams use the block; `false` if there is none.
    pub(crate) fn mark_shared(&self, address: u64) -> bool {
        let Some(unit) = unit_of(address) else { return false };
        self.front.get().is_some_and(|front| front.mark_shared(unit)) || self.flat.mark_shared(unit)
    }

    /// Visits every living block, in the order of addresses. Blocks that come and go meanwhile may be missed.
    pub(crate) fn for_each(&self, visit: impl FnMut(Entry)) {
        let mut living = Vec::new();
        if let Some(front) = self.front.get() {
            front.for_each(|entry| living.push(entry));
        }
        self.flat.for_each(|entry| living.push(entry));
        living.sort_unstable_by_key(|entry| entry.block.address());
        // One that was freed and noted again between both looks.
        living.dedup_by_key(|entry| entry.block.address());
        living.into_iter().for_each(visit);
    }
}

impl Absent {
    /// What two tables say together.
    fn or(self, other: Self) -> Self {
        if self == Self::Unknown { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    use alloc_core::{Address, BlockId};

    use super::*;

    fn block(address: u64, id: u64) -> Block {
        Block::from_parts(Address::new(address), 700, BlockId::from_bits(id))
    }

    fn accept(_: &Entry) -> Result<(), Absent> {
        Ok(())
    }

    #[test]
    fn a_block_is_found_until_it_is_taken_once() {
        let index = Index::new();
        let (address, stream) = (0x7f12_3456_7a00, Stream::with_identity(9, 77));
        assert_eq!(index.find(address), Err(Absent::Unknown));
        assert!(index.insert(block(address, 0), 300, stream));
        let entry = index.find(address).unwrap();
        assert_eq!((entry.block, entry.owner, entry.stream), (block(address, 0), 300, stream));
        assert!(!entry.shared && index.mark_shared(address) && index.find(address).unwrap().shared);
        assert_eq!(index.find(address + 512), Err(Absent::Unknown), "inside a block nothing starts");
        assert_eq!(index.find(address + 1), Err(Absent::Unknown));
        assert!(index.take(address, |_| Err(Absent::Unknown)).is_err(), "what is not accepted stays");
        assert_eq!(index.take(address, accept).unwrap().block, block(address, 0));
        assert_eq!(index.take(address, accept), Err(Absent::Freed));
        assert_eq!(index.find(address), Err(Absent::Freed));
        assert!(!index.mark_shared(address));
    }

    #[test]
    fn addresses_beyond_the_table_are_refused() {
        let index = Index::new();
        assert!(!index.insert(block(1 << 57, 1), 0, Stream::DEFAULT));
        assert!(!index.insert(block(513, 1), 0, Stream::DEFAULT));
        assert!(index.insert(block((1 << 57) - 512, 1), 0, Stream::DEFAULT));
        assert_eq!(index.find(u64::MAX), Err(Absent::Unknown));
    }

    #[test]
    fn a_look_that_says_yes_or_no_takes_a_block_once() {
        let index = Index::new();
        assert_eq!(index.take_if(4096, |_| Some(())), None, "nothing was noted yet");
        assert!(index.insert(block(4096, 5), 1, Stream::DEFAULT));
        assert_eq!(index.take_if(4096, |_| None::<()>), None);
        assert_eq!(index.take_if(4097, |_| Some(())), None);
        assert_eq!(index.take_if(8192, |_| Some(())), None);
        let (entry, id) = index.take_if(4096, |entry| Some(entry.block.id())).unwrap();
        assert_eq!((entry.block, id), (block(4096, 5), BlockId::from_bits(5)));
        assert_eq!(index.take_if(4096, |_| Some(())), None);
        assert_eq!(index.take(4096, accept), Err(Absent::Freed));
    }

    #[test]
    fn what_changed_since_it_was_looked_at_is_not_taken() {
        let index = Index::new();
        let note = |id| assert!(index.insert(block(4096, id), 1, Stream::DEFAULT));
        note(1);
        assert_eq!(index.take_if(4096, |_| index.take(4096, accept).ok()), None);
        note(2);
        assert_eq!(index.take_if(4096, |_| index.mark_shared(4096).then_some(())), None);
        let freed_and_noted_again = || index.take(4096, accept).ok().inspect(|_| note(2));
        assert_eq!(index.take_if(4096, |_| freed_and_noted_again()), None);
        assert!(index.take(4096, accept).is_ok());
    }

    #[test]
    fn of_many_takers_one_gets_the_block() {
        let index = Index::new();
        for round in 0..200 {
            assert!(index.insert(block(4096, round), 1, Stream::DEFAULT));
            let begun = AtomicU64::new(0);
            let takers = || match begun.fetch_add(1, Ordering::Relaxed) {
                1 => index.take_if(4096, |_| Some(())).is_some(),
                _ => index.take(4096, accept).is_ok(),
            };
            let got = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(takers)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).filter(|got| *got).count()
            });
            assert_eq!(got, 1);
        }
    }

    #[test]
    fn all_living_blocks_are_visited_in_order() {
        let index = Index::new();
        for address in [0x7f00_0000_0000, 0x1000, 0x200_0000] {
            assert!(index.insert(block(address, address), 0, Stream::DEFAULT));
        }
        let mut seen = Vec::new();
        index.for_each(|entry| seen.push(entry.block.address().get()));
        assert_eq!(seen, [0x1000, 0x200_0000, 0x7f00_0000_0000]);
    }

    #[test]
    fn more_blocks_than_the_front_holds_are_found_and_remembered() {
        let index = Index::new();
        let address = |n: u64| 0x7f00_0000_0000 + n * 512 * (1 + n % 300);
        let addresses: std::collections::BTreeSet<u64> = (0..3 * front::SLOTS as u64).map(address).collect();
        for round in 0..2 {
            for &address in &addresses {
                assert!(index.insert(block(address, address ^ round), 7, Stream::DEFAULT));
            }
            let mut count = 0;
            index.for_each(|_| count += 1);
            assert_eq!(count, addresses.len());
            for &address in &addresses {
                assert_eq!(index.find(address).unwrap().block, block(address, address ^ round));
                assert!(index.mark_shared(address));
            }
            for &address in &addresses {
                let taken = index.take(address, accept).unwrap();
                assert!(taken.shared && taken.block == block(address, address ^ round));
            }
            for &address in &addresses {
                assert_eq!(index.take(address, accept), Err(Absent::Freed), "however long ago");
            }
        }
    }

    #[test]
    fn threads_that_share_places_take_their_own_blocks_only() {
        let index = Index::new();
        // All in one bucket of the front, which has room for two.
        let addresses = front::addresses_of_one_bucket(6);
        let wrong = AtomicU64::new(0);
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let own = &addresses[2 * thread..2 * thread + 2];
                let (index, wrong, start) = (&index, &wrong, &start);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..20_000 {
                        for &address in own {
                            index.insert(block(address, address + round), thread as Owner, Stream::DEFAULT);
                        }
                        for &address in own {
                            let of_this = |entry: &Entry| {
                                let right = entry.block == block(address, address + round);
                                if right { Ok(()) } else { Err(Absent::Unknown) }
                            };
                            let taken = index.take(address, of_this).is_ok_and(|entry| entry.owner == thread as Owner);
                            wrong.fetch_add(u64::from(!taken), Ordering::Relaxed);
                        }
                        wrong.fetch_add(u64::from(index.take(own[0], accept).is_ok()), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(wrong.into_inner(), 0);
    }
}
