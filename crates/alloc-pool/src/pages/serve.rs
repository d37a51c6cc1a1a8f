//! The miss: free pages are moved to where they are needed, and created only when there are none to move.

use alloc_core::{MemoryProvider, ProviderError, ProviderErrorKind, Stream};

use super::plan::{self, ANYWHERE, Placement, Supply};
use super::supply::{Locked, Step};
use super::wait::Others;
use super::{Home, NONE, Pages, Patience, Place};
use crate::arena::{Addresses, Arena, is_for_slabs};
use crate::notes::Note;
use crate::placement::heap::{Ask, Asker, Heap, Kind, NOBODY, SHARED_SET, Tag, TagSet, home_of_unordered, own_set};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Inner;

/// Why a miss could not be served. Nothing was lost.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The device has no memory left.
    Memory,
    /// The pool's limit is reached.
    Limit,
    /// The pool would have to grow past its budget, though its peak has not risen.
    Budget,
    /// The arena's addresses are used up.
    AddressSpace,
    /// The backend failed otherwise.
    Provider(ProviderError),
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        if error.kind == ProviderErrorKind::OutOfMemory { Self::Memory } else { Self::Provider(error) }
    }
}

/// What is known about the streams when a miss is planned.
#[derive(Debug)]
pub(super) struct Situation {
    /// The streams that can't be waited for, since they are being captured: all if the request's stream is.
    untouchable: TagSet,
    /// There are more views in the arena that nobody uses than memory in the pool.
    debris: bool,
    /// The streams whose work is complete.
    idle: TagSet,
    /// The streams that ever had memory in the request's arena, and so may use its views.
    own_seen: TagSet,
    own_stamp: u64,
    other_stamps: Vec<u64>,
}

impl Situation {
    fn views_are_idle(&self) -> bool {
        self.own_seen & !self.idle == 0
    }

    /// The request's stream is being captured.
    fn capturing(&self) -> bool {
        self.untouchable == TagSet::MAX
    }

    fn cost_of_stale_views(&self) -> u64 {
        match (self.views_are_idle(), self.debris) {
            (false, _) => plan::STALE_TAKEN_IN_FLIGHT,
            (true, false) => plan::STALE_TAKEN,
            (true, true) => plan::STALE_TAKEN_AMONG_MANY,
        }
    }
}

/// What a miss may do for memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// Not to grow past the budget unless the peak rises.
    pub(crate) frugal: bool,
    /// The device was found to have no memory left, so what is free is moved, whatever the budget allows.
    pub(crate) device_is_full: bool,
}

/// The node that was claimed for a request, or why it can't be served, with the node if one was claimed all the same.
type Decided = Result<u32, (Option<u32>, Failure)>;

/// Which arenas a miss looks at.
#[derive(Clone, Debug)]
enum Reach {
    /// Its own, and these, which have memory to spare.
    Near(Vec<u32>),
    All,
}

/// A block of more pieces than this gets larger ones, at most so many times as large.
const PIECES_OF_A_BLOCK: u32 = 16;
const LARGER_PIECES: u32 = 3;
/// A piece in which small blocks lie here and there can't go where it is needed, so it is no larger part of a limit than this.
const SLAB_PIECES_WITHIN_LIMIT: u64 = 64;

impl<P: MemoryProvider> Inner<P> {
    /// A used node of the arena for the request, with memory behind all of it that `stream` may use. The `busy`
    /// streams are known not to be idle.
    pub(crate) fn serve(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        (stream, ask): (Stream, Ask),
        busy: TagSet,
        means: Means,
    ) -> Result<u32, Failure> {
        let untouchable = self.untouchable_tags(stream);
        let (peak_before, reserved_before) = (pages.peak_units, pages.reserved.current);
        if let Some(node) = self.come_home(pages, arena, ask, untouchable) {
            return Ok(node);
        }
        let mut served = Ok(None);
        if untouchable != TagSet::MAX && self.are_threads_apart() {
            let near = self.arenas_with_excess(pages, arena);
            let apart = Means { frugal: false, ..means };
            served = self.serve_within(pages, arena, ask, Reach::Near(near), (busy, untouchable), apart);
        }
        // What the device has no room for may be free elsewhere.
        if matches!(served, Ok(None) | Err(Failure::Memory)) {
            pages.peak_units = peak_before;
            let reach = if untouchable == TagSet::MAX { Reach::Near(Vec::new()) } else { Reach::All };
            let waits = self.wait_instead(pages, arena, (stream, ask, None), Others::AllBut(untouchable), means);
            served = waits.map_err(Failure::Provider);
            if matches!(served, Ok(None)) {
                served = self.serve_within(pages, arena, ask, reach, (busy, untouchable), means);
            }
        }
        match served {
            Ok(Some(node)) => {
                if pages.peak_units > peak_before {
                    pages.note_peak();
                } else if pages.reserved.current == reserved_before && untouchable == 0 && !self.are_threads_apart() {
                    let keep = pages.most_to_keep(&self.config);
                    self.give_back(pages, keep, Patience::Leave);
                }
                Ok(node)
            }
            Ok(None) => Err(Failure::AddressSpace),
            Err(failure) => {
                pages.peak_units = peak_before;
                Err(failure)
            }
        }
    }

    /// The other arenas that have memory to spare.
    fn arenas_with_excess(&self, pages: &mut Pages<P::Physical>, arena: u32) -> Vec<u32> {
        for index in 0..pages.arena_count() {
            if let Some(other) = self.arena(index) {
                pages.count(index, &mut other.lock());
            }
        }
        (0..pages.arena_count()).filter(|&index| index != arena && pages.excess_granules(index) > 0).collect()
    }

    /// The same within reach. `None`, with nothing done, if arenas out of reach might spare what these can't.
    fn serve_within(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        ask: Ask,
        reach: Reach,
        (busy, untouchable): (TagSet, TagSet),
        means: Means,
    ) -> Result<Option<u32>, Failure> {
        let Some(own) = self.arena(arena) else { return Err(Failure::AddressSpace) };
        let others: Vec<u32> = match &reach {
            Reach::Near(near) => near.clone(),
            Reach::All => (0..pages.arena_count()).filter(|&index| index != arena).collect(),
        };
        let situation = self.survey(pages, (own, arena), &others, ask.tag, (busy, untouchable));
        let mut locked = Locked { own_index: arena, own: own.lock(), others: Vec::with_capacity(others.len()) };
        for &index in &others {
            locked.others.extend(self.arena(index).map(|other| (index, other.lock())));
        }
        locked.own.heap.note_complete(situation.idle, situation.own_stamp);
        for ((_, state), stamp) in locked.others.iter_mut().zip(&situation.other_stamps) {
            state.heap.note_complete(situation.idle, *stamp);
        }
        // Who can't wait for everybody takes whatever there is.
        let allocate = if situation.untouchable != 0 { Heap::allocate } else { Heap::allocate_leaving_room };
        if let Some(node) = allocate(&mut locked.own.heap, ask) {
            return Ok(Some(node));
        }
        locked.own.heap.join_own(ask.tag);
        if let Some(node) = allocate(&mut locked.own.heap, ask) {
            return Ok(Some(node));
        }
        // Who can't be waited for keeps apart, lest what lies beside is out of reach as well, and so does what is one sharer's own.
        let joinable = (!situation.untouchable | own_set(ask.tag)) & !SHARED_SET;
        locked.own.heap.join_neighbours(joinable);
        for (_, state) in &mut locked.others {
            state.heap.join_neighbours(joinable);
        }
        pages.misses += 1;
        pages.begin(situation.untouchable);
        pages.begin_search();
        pages.count(arena, &mut locked.own);
        pages.note_want(arena, ask.units);
        pages.find_free(&locked.own, arena, ask.asker());
        for (index, state) in &mut locked.others {
            pages.count(*index, state);
            pages.find_free(state, *index, ask.asker());
        }
        pages.note_unrest();
        let used = pages.used_units() + u64::from(ask.units);
        let may_lend = matches!(reach, Reach::All) && self.may_lend(pages, &locked, ask);
        pages.decide_to_lend(&mut locked, used, may_lend);
        let frugal = means.frugal && used <= pages.peak_units;
        pages.peak_units = pages.peak_units.max(used);
        let need = ask.units.div_ceil(pages.granule_units);
        // At the limit free pages are moved, whatever the budget would allow.
        let may_hold = if means.device_is_full { 0 } else { pages.granules_within(self.limit()) };
        let growth = match &reach {
            Reach::Near(near) if !situation.capturing() => {
                let excess = near.iter().fold(0, |sum: u32, &index| sum.saturating_add(pages.excess_granules(index)));
                let growth = pages.own_growth_granules(arena, ask.units).min(may_hold);
                if growth < need && pages.granules_at_hand(ask.tag) < need {
                    pages.misses -= 1;
                    return Ok(None);
                }
                if excess >= need { 0 } else { growth }
            }
            _ => pages.growth_granules(&self.config).min(may_hold),
        };
        let decided = if pages.arenas[arena as usize].range.is_some() {
            self.decide(pages, &mut locked, ask, (&situation, growth, frugal))
        } else {
            self.decide_segment(pages, &mut locked, ask, growth)
        };
        drop(locked);
        self.conclude(pages, arena, ask.asker(), decided, &situation).map(Some)
    }

    /// Does what was decided, or undoes it. The node that was claimed, with memory behind it.
    pub(super) fn conclude(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        asker: Asker,
        decided: Decided,
        situation: &Situation,
    ) -> Result<u32, Failure> {
        match decided {
            Ok(node) => {
                let done = self.carry_out(pages, asker.home, situation);
                self.settle(pages, arena, node, asker, true);
                if let Err(failure) = done {
                    self.unclaim(pages, arena, node);
                    return Err(failure);
                }
                Ok(node)
            }
            Err((None, failure)) => Err(failure),
            Err((Some(node), failure)) => {
                pages.undo_steps(0);
                self.settle(pages, arena, node, asker, false);
                self.unclaim(pages, arena, node);
                Err(failure)
            }
        }
    }

    /// Finds out which streams are idle, before the arenas are locked. The stamps are taken first: what is released
    /// meanwhile is not taken for complete.
    pub(super) fn survey(
        &self,
        pages: &Pages<P::Physical>,
        (own, arena): (&Arena, u32),
        others: &[u32],
        tag: Tag,
        (busy, untouchable): (TagSet, TagSet),
    ) -> Situation {
        let state = own.lock();
        let (own_seen, own_stamp) = (state.heap.seen(), state.heap.now());
        drop(state);
        let mut seen = own_seen;
        let mut other_stamps = Vec::with_capacity(others.len());
        for other in others.iter().filter_map(|&index| self.arena(index)) {
            let state = other.lock();
            seen |= state.heap.seen();
            other_stamps.push(state.heap.now());
        }
        // Whether the own stream is idle matters only to views that might be unmapped, which may well wait until they
        // are many: one stream alone needs no event.
        let debris = pages.has_debris(arena);
        let own_matters = if debris { own_set(tag) } else { 0 };
        let asked = if untouchable == TagSet::MAX { 0 } else { (seen & !own_set(tag)) | own_matters };
        let idle = self.idle_tags(asked & !busy);
        Situation { untouchable, debris, idle, own_seen, own_stamp, other_stamps }
    }

    /// Chooses the place and the pages, in the books only. On failure, the claimed node if there is one.
    pub(super) fn decide(
        &self,
        pages: &mut Pages<P::Physical>,
        locked: &mut Locked<'_>,
        ask: Ask,
        (situation, growth, frugal): (&Situation, u32, bool),
    ) -> Decided {
        let arena = locked.own_index;
        let mut growth = growth;
        let piece = self.piece_granules_for(ask, pages, locked);
        let supply = Supply {
            smallest_piece: pages.smallest_piece(growth),
            wait: if growth > 0 { plan::BUSY_BUT_MAY_GROW } else { plan::BUSY },
            stale_taken: situation.cost_of_stale_views(),
        };
        let Placement { first, start } =
            pages.cheapest_placement(&locked.own.heap, arena, ask, supply).ok_or((None, Failure::AddressSpace))?;
        pages.sharers.add_all_of(&locked.own.heap.sharers_at(first, start, ask.units, ask.asker()));
        let (node, in_the_way) = locked.own.heap.claim(first, start, ask);
        pages.in_the_way |= in_the_way;
        let granule_units = u64::from(pages.granule_units);
        let end = (u64::from(start) + u64::from(ask.units)).div_ceil(granule_units) as u32;
        let first = start / pages.granule_units;
        pages.settle_stale_views(locked, ask.asker(), first, end);
        let (mut granule, mut clear_to) = (first, first);
        while granule < end {
            let view = pages.arenas[arena as usize].view(granule);
            if view.handle != NONE {
                granule = granule - view.offset + pages.handles[view.handle as usize].granules;
                continue;
            }
            let place = Place { arena, granule };
            let need = end - granule;
            let room = pages.room_at(place, (need, piece), &mut clear_to);
            if let Some(handle) = pages.take_best(locked, ask.asker(), need, room, true) {
                granule += pages.attach(handle, place);
            } else if growth >= need.min(piece) {
                // All that is left of the budget, lest a later round of the same requests finds it.
                let granules = room.min(growth.min(piece).max(need.min(piece)));
                growth = growth.saturating_sub(granules);
                granule += pages.plan_creation(granules, place, self.limit()).map_err(|e| (Some(node), e))?;
            } else if let Some(handle) = pages.take_best(locked, ask.asker(), need, room, false) {
                granule += pages.attach(handle, place);
            } else if frugal {
                return Err((Some(node), Failure::Budget));
            } else {
                let granules = room.min(need).min(piece);
                granule += pages.plan_creation(granules, place, self.limit()).map_err(|e| (Some(node), e))?;
            }
        }
        Ok(node)
    }

    /// The same for segments: one segment holds the whole request.
    fn decide_segment(
        &self,
        pages: &mut Pages<P::Physical>,
        locked: &mut Locked<'_>,
        ask: Ask,
        growth: u32,
    ) -> Decided {
        let arena = locked.own_index;
        let need = ask.units.div_ceil(pages.granule_units);
        let claim = |locked: &mut Locked<'_>, place: Place, granule_units: u32| {
            let start = place.granule * granule_units;
            let first = locked.own.heap.containing(ANYWHERE, start);
            locked.own.heap.claim(first, start, ask).0
        };
        let roomy = pages.found_of_at_least(arena, need, ask.tag);
        if let Some(handle) = roomy.filter(|_| growth < need) {
            let stale = pages.handles[handle as usize].views.iter().find(|place| place.arena == arena).copied();
            let place = match stale {
                Some(place) => Some(place),
                None => pages.segment_placement(arena, pages.handles[handle as usize].granules),
            };
            if let Some(place) = place
                && pages.take(locked, ask.asker(), handle)
            {
                let node = claim(locked, place, pages.granule_units);
                if stale.is_some() {
                    pages.activate(handle, place);
                } else {
                    pages.attach(handle, place);
                }
                return Ok(node);
            }
        }
        let piece = self.piece_granules(pages, locked);
        let granules = if growth >= piece { need.max(piece) } else { need };
        let place = pages.segment_placement(arena, granules).ok_or((None, Failure::AddressSpace))?;
        pages.plan_creation(granules, place, self.limit()).map_err(|failure| (None, failure))?;
        Ok(claim(locked, place, pages.granule_units))
    }

    /// How many granules a new piece of memory has: it grows with the pool. A piece for slabs has room for a quarter of what thread
    /// caches may keep, so that these don't make a warm program grow.
    pub(super) fn piece_granules(&self, pages: &Pages<P::Physical>, locked: &Locked<'_>) -> u32 {
        let bytes = if is_for_slabs(locked.own_index) {
            let used = locked.own.heap.used_units() << UNIT_SHIFT;
            let most = self.limit().map_or(u64::MAX, |limit| limit / SLAB_PIECES_WITHIN_LIMIT);
            ((used / 4).max(self.config.thread_cache / 4) + pages.granule_bytes()).min(most)
        } else {
            (pages.peak_units << UNIT_SHIFT) / u64::from(self.config.pieces_per_peak)
        };
        u32::try_from((bytes.min(self.config.max_piece) / pages.granule_bytes()).max(1)).unwrap_or(1)
    }

    /// The same for a block of many of them, which are larger: a call takes as long for a large piece as for a small
    /// one, and so many lie side by side that no more are used in part.
    fn piece_granules_for(&self, ask: Ask, pages: &Pages<P::Physical>, locked: &Locked<'_>) -> u32 {
        let piece = self.piece_granules(pages, locked);
        let part = ask.units.div_ceil(pages.granule_units) / PIECES_OF_A_BLOCK;
        part.clamp(piece, piece.saturating_mul(LARGER_PIECES))
    }

    /// Makes the planned calls to the backend. On failure, the steps not made are taken out of the books.
    fn carry_out(&self, pages: &mut Pages<P::Physical>, stream: Stream, situation: &Situation) -> Result<(), Failure> {
        if let Err(error) = self.order_after_tags(pages.in_the_way, &pages.sharers, stream) {
            // The pages remember who used them: they are had by whoever can be ordered after that.
            pages.undo_steps(0);
            pages.detach_attached();
            return Err(Failure::Provider(error));
        }
        let mut made = 0;
        let result = self.make_all(pages, situation, &mut made);
        if result.is_err() {
            pages.undo_steps(made);
        }
        result
    }

    fn make_all(&self, pages: &mut Pages<P::Physical>, situation: &Situation, made: &mut usize) -> Result<(), Failure> {
        let must_unmap = pages.scratch.steps.iter().any(|step| matches!(step, Step::Unmap { .. }));
        if must_unmap && !situation.views_are_idle() {
            if situation.untouchable != 0 {
                return Err(Failure::AddressSpace);
            }
            self.wait_for_tags(situation.own_seen)?;
        }
        while let Some(&step) = pages.scratch.steps.get(*made) {
            self.make(pages, step)?;
            *made += 1;
        }
        Ok(())
    }

    fn make(&self, pages: &mut Pages<P::Physical>, step: Step) -> Result<(), ProviderError> {
        match step {
            Step::Unmap { handle, place } => {
                let bytes = u64::from(pages.handles[handle as usize].granules) * pages.granule_bytes();
                self.driver.unmap(pages.address(place), bytes)
            }
            Step::Map { handle, place } => self.map(pages, handle, place),
            Step::Create { granules, place } => {
                let bytes = u64::from(granules) * pages.granule_bytes();
                let physical = self.driver.create(bytes)?;
                pages.reserved.add(bytes);
                let handle = pages.new_handle(physical, granules);
                pages.handles[handle as usize].home = pages.lending.then_some(Home::Nowhere);
                pages.add_view(handle, place);
                pages.activate(handle, place);
                pages.notes.push(Note::Grew { bytes, reserved: pages.reserved.current });
                if let Err(error) = self.map(pages, handle, place) {
                    pages.deactivate(handle);
                    pages.remove_view(handle, place);
                    return Err(error);
                }
                Ok(())
            }
        }
    }

    fn map(&self, pages: &Pages<P::Physical>, handle: u32, place: Place) -> Result<(), ProviderError> {
        let Some(physical) = &pages.handles[handle as usize].physical else { return Ok(()) };
        if pages.arenas[place.arena as usize].range.is_none() {
            return Ok(());
        }
        let bytes = u64::from(pages.handles[handle as usize].granules) * pages.granule_bytes();
        self.driver.map(pages.address(place), physical, bytes)
    }

    /// Makes free memory of what the attached pages hold beside the claimed node. `ordered` says whether the
    /// request's stream comes after the work that may still touch them.
    fn settle(&self, pages: &mut Pages<P::Physical>, arena: u32, node: u32, asker: Asker, ordered: bool) {
        let Some(owner) = self.arena(arena) else { return };
        let mut state = owner.lock();
        let Some((start, end)) = state.heap.node(node).map(|n| (u64::from(n.start), n.end())) else { return };
        for index in 0..pages.scratch.attached.len() {
            let handle = &pages.handles[pages.scratch.attached[index] as usize];
            let (Some(place), Some(physical)) = (handle.active, &handle.physical) else { continue };
            let first = u64::from(place.granule) * u64::from(pages.granule_units);
            let last = first + u64::from(handle.granules) * u64::from(pages.granule_units);
            if let Addresses::Segments { granules, .. } = &mut state.addresses {
                let base = self.driver.provider().segment_address(physical).get();
                let end = (place.granule + handle.granules) as usize;
                if granules.len() < end {
                    granules.resize(end, 0);
                }
                for (offset, address) in granules[place.granule as usize..end].iter_mut().enumerate() {
                    *address = base + offset as u64 * pages.granule_bytes();
                }
            }
            // To come after the request's stream is then to come after all of them.
            let users = match handle.users {
                0 => (0, NOBODY),
                _ if ordered => (1 << asker.tag, asker.home),
                users => (users | 1 << asker.tag, NOBODY),
            };
            for (from, to) in [(first, last.min(start)), (first.max(end), last)] {
                if from < to {
                    state.heap.convert_for(node, (from as u32, (to - from) as u32), Kind::Free, users);
                }
            }
        }
    }

    /// Gives a claimed node up: what is backed becomes free memory, the rest holes again.
    pub(super) fn unclaim(&self, pages: &Pages<P::Physical>, arena: u32, node: u32) {
        let Some(owner) = self.arena(arena) else { return };
        let mut state = owner.lock();
        let Some(claimed) = state.heap.node(node).cloned() else { return };
        let (start, end) = (u64::from(claimed.start), claimed.end());
        // From one granule to the next: the way from the first node is long where there are many blocks.
        let mut at = state.heap.abandon(node);
        let users = (pages.in_the_way | 1 << claimed.tag, home_of_unordered(claimed.home, pages.in_the_way));
        let granule = u64::from(pages.granule_units);
        for index in start / granule..end.div_ceil(granule) {
            if pages.is_active(arena, index as u32) {
                let (from, to) = ((index * granule).max(start), ((index + 1) * granule).min(end));
                at = state.heap.convert_for(at, (from as u32, (to - from) as u32), Kind::Free, users);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::channel;

    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{Block, Device, DeviceAllocator, DeviceKind, Layout, StreamSet};

    use crate::{Pool, PoolConfig, cache};

    use super::*;

    const PAGE: u64 = 2 << 20;
    const A: Stream = Stream::from_raw(1);
    const C: Stream = Stream::from_raw(3);

    #[test]
    fn at_the_end_of_memory_pages_of_threads_apart_are_moved() {
        let take = |pool: &Pool<SimulatedProvider>, pages: u64| -> Block {
            pool.allocate(Layout::bytes(pages * PAGE).unwrap(), A).unwrap()
        };
        let release = |pool: &Pool<SimulatedProvider>, block, stream| {
            Inner::release(&pool.inner, block, stream, StreamSet::EMPTY).unwrap();
        };
        let give = |pool: &Pool<SimulatedProvider>, block| release(pool, block, A);
        for (number, limited, captured) in [(0, true, false), (1, true, true), (2, false, false), (3, false, true)] {
            let device = Device::new(DeviceKind::new(12, false), 60_000 + number);
            let capacity = if limited { 1 << 30 } else { 36 * PAGE };
            let provider = SimulatedProvider::new(SimulatedConfig { device, capacity, ..SimulatedConfig::default() });
            let limit = limited.then_some(36 * PAGE);
            let pool = Pool::new(provider.clone(), PoolConfig { limit, ..PoolConfig::default() }).unwrap();
            let own = take(&pool, 1);
            // A third thread, which stays where this one is.
            pool.inner.take_seat().unwrap();
            let of_captured = pool.allocate(Layout::bytes(PAGE).unwrap(), C).unwrap();
            std::thread::scope(|scope| {
                // Channels, so that neither waits for the other when it failed.
                let (ready, is_ready) = channel();
                let (done, is_done) = channel::<()>();
                let pool = &pool;
                let other = scope.spawn(move || {
                    give(pool, take(pool, 1));
                    let seat = pool.inner.change_seat(0).unwrap();
                    cache::with(pool.inner.cache_key(A), |cache| cache.seat.arena = seat).unwrap();
                    let blocks: Vec<_> = (0..16).map(|_| take(pool, 2)).collect();
                    blocks.iter().step_by(2).for_each(|&block| give(pool, block));
                    ready.send(()).unwrap();
                    is_done.recv().unwrap();
                    blocks.iter().skip(1).step_by(2).for_each(|&block| give(pool, block));
                });
                is_ready.recv().unwrap();
                assert!(pool.inner.are_threads_apart());
                provider.set_capturing(C, captured);
                let before = (provider.calls().release, pool.statistics().moves);
                let block = pool.allocate(Layout::bytes(12 * PAGE).unwrap(), A);
                let after = (provider.calls().release, pool.statistics().moves);
                done.send(()).unwrap();
                other.join().unwrap();
                let block = block.unwrap();
                assert!(after.0 == before.0 && after.1 >= before.1 + 4, "{before:?} {after:?}");
                provider.set_capturing(C, false);
                give(pool, block);
            });
            give(&pool, own);
            release(&pool, of_captured, C);
            pool.trim(0);
            assert_eq!(pool.statistics().reserved.current, 0);
            provider.assert_clean();
        }
    }
}
