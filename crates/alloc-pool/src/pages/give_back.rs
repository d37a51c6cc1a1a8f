//! Giving physical memory back to the device.

use alloc_core::{MemoryProvider, ProviderError};

use super::{Pages, Place};
use crate::notes::Note;
use crate::park::Parked;
use crate::placement::heap::{Asker, SHARED_SET, TagSet};
use crate::pool::Inner;

/// What to do about memory that work in flight may still touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Wait for that work.
    Wait,
    /// Leave the memory where it is.
    Leave,
}

impl<P: MemoryProvider> Inner<P> {
    /// Gives wholly free handles back until at most `keep` bytes are reserved; returns the bytes given back.
    pub(crate) fn give_back(&self, pages: &mut Pages<P::Physical>, keep: u64, patience: Patience) -> u64 {
        if pages.reserved.current <= keep {
            return 0;
        }
        pages.untouchable = 0;
        let complete = self.complete_free(pages, patience);
        let mut given = 0;
        for handle in self.detach_free(pages, keep, complete) {
            given += self.destroy(pages, handle);
        }
        if given > 0 {
            pages.notes.push(Note::Shrank { bytes: given, reserved: pages.reserved.current });
        }
        given
    }

    /// Finds out, or sees to it, that the streams which used free handles are idle; notes that in the arenas.
    fn complete_free(&self, pages: &mut Pages<P::Physical>, patience: Patience) -> TagSet {
        // The stamps come first: what is released meanwhile is not taken for complete.
        let mut users = pages.idle.iter().fold(0, |users, &handle| users | pages.handles[handle as usize].users);
        let mut stamps = Vec::new();
        // What can never be waited for stays apart, lest it keep back what it lies beside.
        let mut joinable = !self.lock_tags().lost;
        // Joined by force, what streams that share a tag have would be nobody's own, and whoever wanted some of it would wait for all of
        // them: not where that is done at any release, and most of it stays.
        let own_apart = if patience == Patience::Leave { joinable & SHARED_SET } else { 0 };
        joinable &= !own_apart;
        for arena in 0..pages.arena_count() {
            let Some(owner) = self.arena(arena) else { continue };
            let mut state = owner.lock();
            let apart = state.heap.join_neighbours(joinable);
            if apart & own_apart != 0 {
                users |= apart & (joinable | own_apart);
            }
            stamps.push((owner, state.heap.now()));
            pages.search += 1;
            pages.scratch.found.clear();
            pages.find_free(&state, arena, Asker::NOBODY);
            for &handle in &pages.scratch.found {
                let handle = &pages.handles[handle as usize];
                let Some(place) = handle.active else { continue };
                let (start, units) = (place.granule * pages.granule_units, handle.granules * pages.granule_units);
                let here = state.heap.users_of(handle.found.node, start, units, Asker::NOBODY);
                users |= here.map_or(0, |users| users.unfinished);
            }
        }
        let complete = match patience {
            Patience::Wait if self.may_ask() => users & !self.wait_for_each(users).0,
            Patience::Wait => 0,
            Patience::Leave => self.idle_tags(users),
        };
        for (owner, stamp) in stamps {
            let heap = &mut owner.lock().heap;
            heap.note_complete(complete, stamp);
            if complete & own_apart != 0 {
                heap.join_neighbours(joinable);
            }
        }
        complete
    }

    /// Takes as many idle handles out of the arenas as have to go: those in use nowhere first, then the highest
    /// addresses.
    fn detach_free(&self, pages: &mut Pages<P::Physical>, keep: u64, complete: TagSet) -> Vec<u32> {
        let mut excess = pages.reserved.current.saturating_sub(keep);
        let granule_bytes = pages.granule_bytes();
        let mut chosen = Vec::new();
        let (handles, idle) = (&pages.handles, &mut pages.idle);
        idle.retain(|&handle| {
            let Some(found) = handles.get(handle as usize) else { return false };
            let goes = excess > 0 && found.users & !complete == 0;
            if goes {
                excess = excess.saturating_sub(u64::from(found.granules) * granule_bytes);
                chosen.push(handle);
            }
            !goes
        });
        for arena in (0..pages.arena_count()).rev() {
            if excess == 0 {
                break;
            }
            let Some(owner) = self.arena(arena) else { continue };
            let mut state = owner.lock();
            pages.search += 1;
            pages.scratch.found.clear();
            pages.find_free(&state, arena, Asker::NOBODY);
            let mut found = std::mem::take(&mut pages.scratch.found);
            found.sort_unstable_by_key(|&handle| {
                std::cmp::Reverse(pages.handles[handle as usize].active.map_or(0, |place| place.granule))
            });
            for &index in &found {
                if excess == 0 {
                    break;
                }
                let granule_units = pages.granule_units;
                if pages.handles[index as usize].found.busy {
                    continue;
                }
                let Some(place) = pages.set_active(index, None) else { continue };
                let handle = &mut pages.handles[index as usize];
                handle.users = 0;
                let (start, units) = (place.granule * granule_units, handle.granules * granule_units);
                let node = state.heap.containing(handle.found.node, start);
                state.heap.convert_to_hole(node, start, units);
                excess = excess.saturating_sub(u64::from(handle.granules) * granule_bytes);
                chosen.push(index);
            }
            pages.scratch.found = found;
        }
        chosen
    }

    /// Unmaps all views of a detached handle whose work is complete and releases its memory; returns its bytes, or 0
    /// if it had to be leaked.
    fn destroy(&self, pages: &mut Pages<P::Physical>, index: u32) -> u64 {
        let views: Vec<Place> = pages.handles[index as usize].views.clone();
        let bytes = u64::from(pages.handles[index as usize].granules) * pages.granule_bytes();
        for view in views {
            if pages.arenas[view.arena as usize].range.is_some()
                && let Err(error) = self.driver.unmap(pages.address(view), bytes)
            {
                // Memory that is still mapped must not go back, and no other may be mapped there.
                pages.leak(index, error);
                return 0;
            }
            pages.remove_view(index, view);
        }
        let Some(physical) = pages.handles[index as usize].physical.take() else { return 0 };
        pages.vacant.push(index);
        pages.reserved.sub(bytes);
        if let Err(error) = self.driver.release(physical, bytes) {
            let what = "the backend complained of memory that was given back";
            pages.notes.push(Note::DoneWithout { what, error });
        }
        bytes
    }

    /// Gives everything back as far as it can be: the pool is going away, with no block of it in use.
    pub(crate) fn close(&self, pages: &mut Pages<P::Physical>) {
        let everyone = (0..pages.arena_count()).filter_map(|arena| self.arena(arena));
        let seen = everyone.fold(0, |seen, arena| seen | arena.lock().heap.seen());
        let (unknown, error) =
            self.wait_for_each(pages.handles.iter().fold(seen, |users, handle| users | handle.users));
        for parked in self.wait_for_lost() {
            self.leak_behind(pages, parked);
        }
        for handle in 0..pages.handles.len() as u32 {
            if pages.handles[handle as usize].physical.is_none() || pages.handles[handle as usize].leaked {
                continue;
            }
            pages.set_active(handle, None);
            let views = pages.handles[handle as usize].views.iter();
            let seen = views.filter_map(|view| self.arena(view.arena)).map(|arena| arena.lock().heap.seen());
            let users = seen.fold(pages.handles[handle as usize].users, |users, seen| users | seen);
            match &error {
                Some(error) if users & unknown != 0 => pages.leak(handle, error.clone()),
                _ => drop(self.destroy(pages, handle)),
            }
        }
        for arena in &mut pages.arenas {
            if arena.views.is_empty()
                && let Some(range) = arena.range.take()
                && let Err(error) = self.driver.unreserve(range)
            {
                pages.notes.push(Note::DoneWithout { what: "an address range was not given back", error });
            }
        }
    }

    /// Keeps what is behind a block from being given back: its work can't be known to be complete. The block itself
    /// was reported before.
    fn leak_behind(&self, pages: &mut Pages<P::Physical>, parked: Parked) {
        let (arena, node) = match parked {
            Parked::Node { arena, node } => (arena, Some(node)),
            Parked::Slot(block) => match self.ledger.get(crate::id::slab_and_slot(block.slot()).0) {
                Some(entry) => {
                    let arena = entry.facts().arena;
                    (arena, self.arena(arena).and_then(|owner| owner.lock().slabs.node(entry.place())))
                }
                None => return,
            },
        };
        let place = self.arena(arena).zip(node).and_then(|(owner, node)| {
            let state = owner.lock();
            state.heap.node(node).map(|node| (node.start, node.end()))
        });
        let Some((start, end)) = place else { return };
        for granule in start / pages.granule_units..(end.div_ceil(u64::from(pages.granule_units))) as u32 {
            let view = pages.arenas[arena as usize].view(granule);
            if let Some(handle) = pages.handles.get_mut(view.handle as usize) {
                handle.leaked = true;
            }
        }
    }
}

impl<T> Pages<T> {
    /// Gives a handle up: its memory goes neither back nor to anybody.
    fn leak(&mut self, index: u32, cause: ProviderError) {
        let bytes = u64::from(self.handles[index as usize].granules) * self.granule_bytes();
        self.handles[index as usize].leaked = true;
        self.leaked += bytes;
        self.notes.push(Note::Leaked { bytes, cause });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{Block, DeviceAllocator, Layout, Stream, StreamSet};

    use super::*;
    use crate::{Pool, PoolConfig};

    const PAGE: u64 = 2 << 20;

    #[test]
    fn of_a_page_that_lies_in_several_pieces_none_is_left_when_it_goes() {
        let provider = SimulatedProvider::new(SimulatedConfig::default());
        let pool = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
        let inner = &pool.inner;
        let take = |bytes, stream| pool.allocate(Layout::bytes(bytes).unwrap(), Stream::from_raw(stream)).unwrap();
        let give = |block: Block, stream| {
            Inner::release(inner, block, Stream::from_raw(stream), StreamSet::EMPTY).unwrap();
        };
        // Streams enough that those after them share a tag.
        (1000..1063).for_each(|stream| give(take(512, stream), stream));
        let blocks = [(PAGE / 2, 1), (PAGE / 2, 2), (PAGE, 3)].map(|(bytes, stream)| (take(bytes, stream), stream));
        let arena = (0..).find(|&arena| inner.arena(arena).unwrap().lock().heap.used_units() >= 4096).unwrap();
        let heap_does = |what: &mut dyn FnMut(&mut crate::placement::heap::Heap)| {
            what(&mut inner.arena(arena).unwrap().lock().heap)
        };
        let mut stamp = 0;
        for (block, stream) in blocks {
            heap_does(&mut |heap| stamp = heap.now());
            give(block, stream);
        }
        // As when others are found to be idle between the two looks at what may go: the first two are done, the last is not.
        heap_does(&mut |heap| heap.note_complete(SHARED_SET, stamp));
        let mut pages = inner.lock_pages();
        let (mut before, mut after) = (0, 0);
        heap_does(&mut |heap| before = heap.free_units());
        let chosen = inner.detach_free(&mut pages, 0, 0);
        let granules: u32 = chosen.iter().map(|&handle| pages.handles[handle as usize].granules).sum();
        assert!(granules > 0, "the page of the first two goes");
        heap_does(&mut |heap| after = heap.free_units());
        assert_eq!(before - after, u64::from(granules * pages.granule_units));
        let given: u64 = chosen.into_iter().map(|handle| inner.destroy(&mut pages, handle)).sum();
        assert_eq!(given, u64::from(granules) * PAGE);
        drop(pages);
        let block = take(PAGE, 1);
        assert!(provider.is_backed(block.address(), block.size()));
        give(block, 1);
        drop(pool);
        provider.assert_clean();
        provider.assert_all_returned();
    }
}
