//! The way of a request that no free memory of its arena fits: pages first, then everyone who may have memory to spare.

use std::sync::atomic::Ordering;

use alloc_core::{AllocError, AllocatorEvent, MemoryProvider, OutOfMemory, Stream, pressure};

use crate::arena::is_for_slabs;
use crate::cache::{self, Batch};
use crate::pages::{Failure, Means, Patience};
use crate::placement::heap::{Ask, Prospect};
use crate::placement::units::{CLASSES, UNIT_SHIFT};
use crate::pool::Inner;

/// What memory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Block,
    Slab,
}

/// How often other pools, and callbacks, are asked for memory before a request fails.
const MAX_RELIEFS: u32 = 16;
const MAX_CALLBACKS: u32 = 64;

/// Every how many slabs that were refused, though they may be had in place of free memory, they are: that takes calls to the backend,
/// and so few blocks may as well lie between large ones.
const REFUSED_SLABS: u32 = 16;

/// The stage at which free memory goes back to the device, for memory where it is needed.
const GIVE_BACK: u32 = 3;

/// What was tried to free memory.
#[derive(Debug, Default)]
struct Remedies {
    stage: u32,
    capturing: bool,
    limited: bool,
    reliefs: u32,
    callbacks: u32,
    /// A slab was to be had in place of free memory.
    replaced: bool,
}

impl<P: MemoryProvider> Inner<P> {
    /// Serves a request that no free memory of the arena fits: looks through parked blocks, moves or creates pages,
    /// and before giving up asks everyone who may have memory to spare. `found` is where there is memory for it that other
    /// streams used, if that is known. The arena and the node that serve it.
    #[cold]
    #[inline(never)]
    pub(crate) fn miss(
        &self,
        arena: u32,
        stream: Stream,
        (ask, found): (Ask, Option<Prospect>),
        bytes: u64,
        purpose: Purpose,
    ) -> Result<(u32, u32), AllocError> {
        if purpose == Purpose::Block && self.is_beyond_device(bytes) {
            self.lock_pages().misses += 1;
            return Err(self.fail(bytes));
        }
        // While a stream is captured nothing may be asked or waited for.
        let capturing = self.driver.provider().is_capturing(stream)?;
        let mut busy = 0;
        if !capturing {
            if let Some(node) = self.take_marked(arena, stream, (ask, found))? {
                return Ok((arena, node));
            }
            match self.take_from_others(arena, stream, ask) {
                Ok(node) => return Ok((arena, node)),
                Err(asked) => busy = asked,
            }
            self.poll_listed();
        }
        self.begin_round(arena, stream);
        let mut remedies = Remedies { capturing, ..Remedies::default() };
        let mut means = Means { frugal: !capturing, device_is_full: false };
        loop {
            let served = {
                let mut pages = self.lock_pages();
                let served = self.serve(&mut pages, arena, (stream, ask), std::mem::take(&mut busy), means);
                self.defer_notes(&mut pages);
                served
            };
            self.tell_deferred();
            match served {
                Ok(node) => return Ok((arena, node)),
                Err(Failure::Provider(error)) => return Err(AllocError::Provider(error)),
                Err(Failure::Budget) => {
                    // What is kept for small blocks may be what is missing.
                    means.frugal = false;
                    cache::drain(self.number);
                    self.free_empty_slabs();
                    continue;
                }
                Err(Failure::Memory) if !means.device_is_full && (capturing || remedies.stage >= GIVE_BACK) => {
                    means.device_is_full = true;
                    continue;
                }
                Err(Failure::Limit) => remedies.limited = true,
                Err(Failure::Memory | Failure::AddressSpace) => remedies.limited = false,
            }
            if remedies.stage > 0 {
                // A block of a slab may fit where no slab does, so nobody else is troubled yet.
                if purpose == Purpose::Slab {
                    if self.replace_by_slab(&mut remedies, &ask) {
                        continue;
                    }
                    return Err(self.exhausted(bytes));
                }
                if let Some(found) = self.place_elsewhere(stream, ask, remedies.stage >= GIVE_BACK)? {
                    return Ok(found);
                }
                if remedies.stage >= GIVE_BACK
                    && let Some(found) = self.serve_elsewhere(arena, stream, ask, means)?
                {
                    return Ok(found);
                }
            }
            if !self.remedy(&mut remedies, &ask, bytes) {
                let error = self.fail(bytes);
                // What was created in vain is free.
                if !capturing {
                    self.keep_to_threshold();
                }
                return Err(error);
            }
        }
    }

    /// Whether the device has less memory in all than is asked for, so that no effort could make room: whatever was tried would only
    /// take all there is from the device, and from whoever else needs it, or give back what the pool has.
    pub(crate) fn is_beyond_device(&self, bytes: u64) -> bool {
        // What it has is asked again, as it may have become more since. A backend that says 0 does not know.
        bytes > self.device_total
            && self.driver.provider().memory().is_ok_and(|memory| memory.total != 0 && bytes > memory.total)
    }

    /// The error of a request that failed for good, of which the hook is told.
    pub(crate) fn fail(&self, bytes: u64) -> AllocError {
        let error = self.out_of_memory(bytes);
        self.tell(&AllocatorEvent::OutOfMemory(&error));
        error.into()
    }

    /// If hardly anything is in use and pieces are about to go home, makes free memory of what is kept for small blocks:
    /// what a round leaves behind would have the next one place its slabs otherwise, and take other pieces for them.
    fn begin_round(&self, arena: u32, stream: Stream) {
        if self.are_threads_apart() || !self.arena(arena).is_some_and(|owner| owner.lock().heap.is_at_ebb()) {
            return;
        }
        let key = self.cache_key(stream);
        let mut batch = Batch::new();
        for class in 0..CLASSES {
            cache::with(key, |cache| cache.empty(class, &mut batch));
            self.give_to_slabs(&mut batch);
        }
        self.free_empty_slabs();
    }

    /// Free memory of any arena, at worst such as the stream has to wait for. The arena and the node.
    fn place_elsewhere(&self, stream: Stream, ask: Ask, among_slabs: bool) -> Result<Option<(u32, u32)>, AllocError> {
        let every = || (0..).map_while(|index| self.arena(index).map(|arena| (index, arena)));
        let all = || every().filter(|&(index, _)| among_slabs || !is_for_slabs(index));
        if let Some(found) = all().find_map(|(index, arena)| Some((index, arena.lock().heap.allocate(ask)?))) {
            return Ok(Some(found));
        }
        let untouchable = self.untouchable_tags(stream);
        for (index, arena) in all() {
            let mut releases = Vec::new();
            let claimed = {
                let heap = &mut arena.lock().heap;
                heap.best_window_anywhere(ask, untouchable).map(|window| {
                    heap.releases_in(window, ask, &mut releases);
                    (window, heap.sharers_in(window, ask), heap.claim_window(window, ask))
                })
            };
            let Some((window, sharers, node)) = claimed else { continue };
            let (before, waiter) = ((&releases[..], sharers.as_ref()), (ask.tag, stream));
            if let Err(error) = self.order_after_releases(&mut self.lock_tags(), index, before, waiter) {
                arena.lock().heap.give_up(node, window.users);
                return Err(AllocError::Provider(error));
            }
            self.tell_deferred();
            return Ok(Some((index, node)));
        }
        Ok(None)
    }

    /// Pages moved to the free memory of another arena: what lies beside a block there can't be moved here. The arena
    /// and the node.
    fn serve_elsewhere(
        &self,
        arena: u32,
        stream: Stream,
        ask: Ask,
        means: Means,
    ) -> Result<Option<(u32, u32)>, AllocError> {
        for other in (0..).take_while(|&index| self.arena(index).is_some()).filter(|&index| index != arena) {
            let served = {
                let mut pages = self.lock_pages();
                let served = self.serve(&mut pages, other, (stream, ask), 0, means);
                self.defer_notes(&mut pages);
                served
            };
            self.tell_deferred();
            match served {
                Ok(node) => return Ok(Some((other, node))),
                Err(Failure::Provider(error)) => return Err(AllocError::Provider(error)),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Does the next thing that may free memory; `false` if there is none left.
    fn remedy(&self, tried: &mut Remedies, ask: &Ask, bytes: u64) -> bool {
        let needed = u64::from(ask.units) << UNIT_SHIFT;
        loop {
            tried.stage += 1;
            let helped = match tried.stage {
                1 => {
                    cache::drain(self.number);
                    self.next_epoch();
                    if !tried.capturing {
                        self.poll_parked();
                    }
                    self.free_empty_slabs();
                    true
                }
                2 => !tried.capturing && self.wait_for_parked(),
                GIVE_BACK => {
                    if !tried.capturing {
                        self.make_way(needed, Patience::Wait);
                    }
                    // From here on every arena's memory may be taken.
                    true
                }
                4 => {
                    // Another pool's memory doesn't help against a limit of this one's own.
                    let asking = Some(self.registration.id());
                    let freed =
                        !tried.limited && !tried.capturing && pressure::relieve(self.device, needed, asking) > 0;
                    if freed && tried.reliefs < MAX_RELIEFS {
                        tried.reliefs += 1;
                        tried.stage = GIVE_BACK;
                    }
                    freed
                }
                5 => {
                    let freed = pressure::call_back(&self.out_of_memory(bytes));
                    if freed && tried.callbacks < MAX_CALLBACKS {
                        tried.callbacks += 1;
                        tried.stage = 0;
                    }
                    freed
                }
                _ => return false,
            };
            if helped {
                return true;
            }
        }
    }

    /// Gives free memory back, so that as much can be created elsewhere; how many bytes.
    fn make_way(&self, needed: u64, patience: Patience) -> u64 {
        let mut pages = self.lock_pages();
        // More than the limit may be held, if that was lowered.
        let allowed = self.limit().unwrap_or(u64::MAX).min(pages.reserved.current);
        let keep = allowed.saturating_sub(needed.saturating_add(self.granularity));
        let given = self.give_back(&mut pages, keep, patience);
        self.defer_notes(&mut pages);
        given
    }

    /// Gives free memory back for a slab, if many were refused: free pieces may all be larger than any that is moved to where slabs
    /// live, and then each small block would be a miss, and have all caches emptied. Whether there was any.
    fn replace_by_slab(&self, tried: &mut Remedies, ask: &Ask) -> bool {
        if tried.capturing || std::mem::replace(&mut tried.replaced, true) {
            return false;
        }
        let refused = self.refused_slabs.fetch_add(1, Ordering::Relaxed);
        refused % REFUSED_SLABS == REFUSED_SLABS - 1
            && self.make_way(u64::from(ask.units) << UNIT_SHIFT, Patience::Leave) > 0
    }

    /// The state of the pool, as an error.
    pub(crate) fn out_of_memory(&self, requested: u64) -> OutOfMemory {
        let statistics = self.gather_statistics();
        let memory = self.driver.provider().memory().ok();
        let mut figures = OutOfMemory::new(self.device, requested);
        figures.in_use = statistics.in_use.current;
        figures.reserved = statistics.reserved.current;
        figures.largest_free = statistics.largest_free;
        figures.parked = statistics.parked.current;
        figures.limit = self.limit();
        figures.device_free = memory.map(|memory| memory.free);
        figures.device_total = memory.map(|memory| memory.total);
        figures
    }

    #[cold]
    pub(crate) fn exhausted(&self, requested: u64) -> AllocError {
        self.out_of_memory(requested).into()
    }
}
