//! Pieces that are lent, and go home.
//!
//! A block that fits nowhere gets pieces moved under it, and while a pool fills up that is where they stay: the next
//! round of the same requests finds them there. But a block that takes most of what is free finds its old place cut up
//! by smaller ones, which came first, and would have the same pieces moved to yet another place in every round. So a
//! pool that was full before, and is at rest otherwise, lends pieces: it remembers where they were. When little is in
//! use they go home, which changes only the books, as their old views still stand. The next round starts as the last
//! one did, and so lends the same pieces to the same place, where they have views by now: no call is made. A piece
//! that was created for such a block, as none that could be moved fitted, is lent as well: it is kept aside for the next.

use alloc_core::MemoryProvider;

use super::budget::HARDLY_ANYTHING;
use super::plan::ANYWHERE;
use super::supply::Locked;
use super::{Home, Pages};
use crate::arena::is_for_slabs;
use crate::placement::heap::{Ask, Asker, Kind, TagSet};
use crate::pool::Inner;

/// A block of fewer pieces is found a place for good sooner or later.
const FEWEST_PIECES: u32 = 8;

impl<P: MemoryProvider> Inner<P> {
    /// If little is in use in the arena, lets lent pieces go home, and has another look for the request.
    pub(super) fn come_home(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        ask: Ask,
        untouchable: TagSet,
    ) -> Option<u32> {
        let mut own = self.arena(arena)?.lock();
        if !own.heap.is_at_ebb() {
            return None;
        }
        own.heap.set_ebb(0);
        pages.has_ebbed = true;
        // What is being captured stays where it is, and threads apart keep to their own.
        let may_move = untouchable == 0 && !self.are_threads_apart();
        if may_move && pages.handles.iter().any(|handle| handle.home.is_some()) {
            let others = (0..pages.arena_count()).filter(|&index| index != arena);
            let others = others.filter_map(|index| self.arena(index).map(|other| (index, other.lock()))).collect();
            let mut locked = Locked { own_index: arena, own, others };
            pages.go_home(&mut locked, ask.asker());
            locked.others.iter_mut().for_each(|(_, state)| state.heap.relist());
            own = locked.own;
        }
        own.heap.relist();
        own.heap.allocate(ask)
    }

    /// Whether a request is of a kind that pieces are lent for: a large block, in a pool that threads share.
    pub(super) fn may_lend(&self, pages: &Pages<P::Physical>, locked: &Locked<'_>, ask: Ask) -> bool {
        let fewest = FEWEST_PIECES.saturating_mul(self.piece_granules(pages, locked));
        ask.units / pages.granule_units >= fewest && !is_for_slabs(locked.own_index) && !self.are_threads_apart()
    }
}

impl<T> Pages<T> {
    /// Decides whether pieces that move for a request are lent. `used` units are in use with it; `may` says whether
    /// it is of a kind that they are lent for.
    pub(super) fn decide_to_lend(&mut self, locked: &mut Locked<'_>, used: u64, may: bool) {
        let heap = &mut locked.own.heap;
        let mapped = self.arenas[locked.own_index as usize].range.is_some();
        self.lending = false;
        // Memory of several streams comes back as their work is done, which is never twice the same.
        if !mapped || heap.seen().count_ones() > 1 || self.is_restless() {
            heap.set_ebb(0);
        } else if may {
            self.lending = self.has_ebbed && !self.would_raise_peak(used);
            heap.set_ebb((heap.used_units() / HARDLY_ANYTHING).max(heap.ebb()).max(1));
        }
    }

    /// Takes lent pieces that are wholly free back to where they were.
    fn go_home(&mut self, locked: &mut Locked<'_>, asker: Asker) {
        self.search += 1;
        self.begin(0);
        self.lending = false;
        self.scratch.found.clear();
        self.find_free(&locked.own, locked.own_index, asker);
        for (index, state) in &locked.others {
            self.find_free(state, *index, asker);
        }
        let found = std::mem::take(&mut self.scratch.found);
        for &index in &found {
            let Some(home) = self.handles[index as usize].home else { continue };
            if !self.take(locked, asker, index) {
                continue;
            }
            let handle = &mut self.handles[index as usize];
            handle.home = None;
            match home {
                Home::Nowhere => self.idle.push(index),
                Home::At(home) => {
                    let (start, units) = (home.granule * self.granule_units, handle.granules * self.granule_units);
                    let users = handle.users;
                    if let Some(state) = locked.state(home.arena) {
                        state.heap.convert(ANYWHERE, start, units, Kind::Free, users);
                        self.set_active(index, Some(home));
                    }
                }
            }
        }
        self.scratch.found = found;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::error::Error;

    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{Block, DeviceAllocator, Layout, Stream, StreamSet};

    use super::*;
    use crate::{Pool, PoolConfig};

    const MIB: u64 = 1 << 20;
    /// In the first the pool fills up, in the others it finds out what to lend where.
    const ROUNDS_UNTIL_REST: usize = 3;

    /// Blocks of many sizes come and go; then one takes most of what is free, and the pool is as full as it gets.
    fn round(pool: &Pool<SimulatedProvider>, seed: u64) -> Result<(), Box<dyn Error>> {
        let take = |bytes| Ok::<_, Box<dyn Error>>(pool.allocate(Layout::bytes(bytes)?, Stream::DEFAULT)?);
        let give = |block| Inner::release(&pool.inner, block, Stream::DEFAULT, StreamSet::EMPTY);
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut live: Vec<Block> = Vec::new();
        let mut used = 0;
        for (up_to, has_large) in [(450 * MIB, true), (440 * MIB, false)] {
            while used < up_to {
                for bytes in [MIB / 4 + random(6 * MIB), random(64 << 10)] {
                    let block = take(bytes)?;
                    used += block.size();
                    live.push(block);
                }
                if random(3) == 0 {
                    let gone = live.swap_remove(random(live.len() as u64) as usize);
                    used -= gone.size();
                    give(gone)?;
                }
            }
            while used > 380 * MIB {
                let gone = live.swap_remove(random(live.len() as u64) as usize);
                used -= gone.size();
                give(gone)?;
            }
            if has_large {
                give(take(480 * MIB - used)?)?;
            }
        }
        Ok(live.into_iter().try_for_each(give)?)
    }

    #[test]
    fn rounds_of_the_same_requests_come_to_rest() {
        for seed in 1..9 {
            let provider = SimulatedProvider::new(SimulatedConfig::default());
            let pool = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
            (0..ROUNDS_UNTIL_REST).for_each(|_| round(&pool, seed).unwrap());
            let (calls, before) = (provider.calls(), pool.statistics());
            (0..8).for_each(|_| round(&pool, seed).unwrap());
            let (calls_after, after) = (provider.calls(), pool.statistics());
            assert!(after.misses >= before.misses + 8, "the large block finds no room: {before:?} {after:?}");
            assert_eq!((calls_after.create, calls_after.map), (calls.create, calls.map), "seed {seed}");
            assert_eq!((calls_after.unmap, calls_after.release), (calls.unmap, calls.release), "seed {seed}");
            assert_eq!(after.reserved.peak, before.reserved.peak);
            let bytes = pool.breakdown();
            let free = bytes.slots + bytes.within_pages + bytes.within_pieces + bytes.free_pieces;
            assert_eq!(free, bytes.reserved, "{bytes:?}");
            assert_eq!(pool.trim(0), before.reserved.current);
            provider.assert_clean();
        }
    }

    #[test]
    fn a_pool_that_fills_up_keeps_pieces_where_they_were_moved() {
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), PoolConfig::default()).unwrap();
        round(&pool, 1).unwrap();
        let pages = pool.inner.lock_pages();
        assert!(pages.moves > 0 && !pages.lending && pages.handles.iter().all(|handle| handle.home.is_none()));
        drop(pages);
        (0..2).for_each(|_| round(&pool, 1).unwrap());
        let pages = pool.inner.lock_pages();
        let away = pages.handles.iter().filter(|handle| handle.home.is_some());
        assert!(away.clone().count() > 0);
        assert!(away.clone().all(|handle| handle.home != handle.active.map(Home::At)));
        assert!(away.into_iter().all(|handle| match handle.home {
            Some(Home::At(home)) => handle.views.contains(&home),
            home => home == Some(Home::Nowhere),
        }));
    }
}
