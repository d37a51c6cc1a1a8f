//! Giving physical memory back to the device.

use alloc_core::MemoryProvider;

use super::{Pages, Place};
use crate::notes::Note;
use crate::placement::heap::Kind;
use crate::pool::Inner;

impl<P: MemoryProvider> Inner<P> {
    /// Gives wholly free handles back until at most `keep` bytes are reserved; returns the bytes given back. Waits
    /// for the streams whose work may still touch them.
    pub(crate) fn give_back(&self, pages: &mut Pages<P::Physical>, keep: u64) -> u64 {
        let chosen = self.detach_free(pages, keep);
        let mut given = 0;
        for handle in chosen {
            given += self.destroy(pages, handle);
        }
        if given > 0 {
            pages.notes.push(Note::Shrank { bytes: given, reserved: pages.reserved.current });
        }
        given
    }

    /// Takes as many handles out of the arenas as have to go: those in use nowhere first, then the highest addresses.
    fn detach_free(&self, pages: &mut Pages<P::Physical>, keep: u64) -> Vec<u32> {
        let mut excess = pages.reserved.current.saturating_sub(keep);
        let granule_bytes = pages.granule_bytes();
        let mut chosen = Vec::new();
        while excess > 0
            && let Some(handle) = pages.idle.pop()
        {
            excess = excess.saturating_sub(u64::from(pages.handles[handle as usize].granules) * granule_bytes);
            chosen.push(handle);
        }
        for arena in (0..pages.arena_count()).rev() {
            if excess == 0 {
                break;
            }
            let Some(owner) = self.arena(arena) else { continue };
            let mut state = owner.lock();
            pages.search += 1;
            pages.capturing = false;
            pages.scratch.found.clear();
            pages.find_free(&state, arena, 0);
            let mut found = std::mem::take(&mut pages.scratch.found);
            found.sort_unstable_by_key(|&handle| {
                std::cmp::Reverse(pages.handles[handle as usize].active.map_or(0, |place| place.granule))
            });
            for &index in &found {
                if excess == 0 {
                    break;
                }
                let granule_units = pages.granule_units;
                let handle = &mut pages.handles[index as usize];
                let Some(place) = handle.active.take() else { continue };
                let (start, units) = (place.granule * granule_units, handle.granules * granule_units);
                let node = state.heap.containing(handle.found.node, start);
                state.heap.convert(node, start, units, Kind::Hole, 0);
                excess = excess.saturating_sub(u64::from(handle.granules) * granule_bytes);
                chosen.push(index);
            }
            pages.scratch.found = found;
        }
        chosen
    }

    /// Unmaps all views of a detached handle and releases its memory; returns its bytes, or 0 if it had to be leaked.
    fn destroy(&self, pages: &mut Pages<P::Physical>, index: u32) -> u64 {
        let views: Vec<Place> = pages.handles[index as usize].views.clone();
        let bytes = u64::from(pages.handles[index as usize].granules) * pages.granule_bytes();
        let mut users = pages.handles[index as usize].users;
        for view in &views {
            users |= self.arena(view.arena).map_or(0, |arena| arena.lock().heap.seen());
        }
        if let Err(error) = self.wait_for_tags(users) {
            pages.handles[index as usize].leaked = true;
            pages.leaked += bytes;
            pages.notes.push(Note::Leaked { bytes, cause: error });
            return 0;
        }
        for view in views {
            if pages.arenas[view.arena as usize].range.is_some()
                && let Err(error) = self.driver.unmap(pages.address(view), bytes)
            {
                // Memory that is still mapped must not go back, and no other may be mapped there.
                pages.handles[index as usize].leaked = true;
                pages.leaked += bytes;
                pages.notes.push(Note::Leaked { bytes, cause: error });
                return 0;
            }
            pages.remove_view(index, view);
        }
        let Some(physical) = pages.handles[index as usize].physical.take() else { return 0 };
        pages.vacant.push(index);
        pages.reserved.sub(bytes);
        if let Err(error) = self.driver.release(physical, bytes) {
            pages.notes.push(Note::Leaked { bytes, cause: error });
        }
        bytes
    }

    /// Gives everything back as far as it can be: the pool is going away, with no block of it in use.
    pub(crate) fn close(&self, pages: &mut Pages<P::Physical>) {
        let all = 0..pages.handles.len() as u32;
        for handle in all
            .filter(|&handle| {
                let handle = &pages.handles[handle as usize];
                handle.physical.is_some() && !handle.leaked
            })
            .collect::<Vec<_>>()
        {
            pages.handles[handle as usize].active = None;
            self.destroy(pages, handle);
        }
        for arena in &mut pages.arenas {
            if arena.views.is_empty()
                && let Some(range) = arena.range.take()
                && let Err(error) = self.driver.unreserve(range)
            {
                tracing::debug!(%error, "address range not given back");
            }
        }
    }
}
