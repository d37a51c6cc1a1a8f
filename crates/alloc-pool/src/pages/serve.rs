//! The miss: free pages are moved to where they are needed, and created only when there are none to move.

use alloc_core::{Address, MemoryProvider, ProviderError, ProviderErrorKind, Stream};

use super::plan::{self, ANYWHERE, Placement, Supply};
use super::{Found, NONE, Pages, Place};
use crate::arena::{self, Addresses, Arena, ArenaState, is_for_slabs};
use crate::notes::Note;
use crate::placement::heap::{Ask, Kind, Tag, TagSet, own_set};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Inner;

/// Why a miss could not be served. Nothing was lost.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The device has no memory left.
    Memory,
    /// The pool's limit is reached.
    Limit,
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

/// A change that is noted in the books and has to be made by the backend.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Unmap { handle: u32, place: Place },
    Map { handle: u32, place: Place },
    Create { granules: u32, place: Place },
}

/// The locks of all arenas, held while a miss is planned. Only a miss holds more than one, and there is one miss at a
/// time, so they can't deadlock.
struct Locked<'a> {
    own_index: u32,
    own: arena::Locked<'a>,
    others: Vec<(u32, arena::Locked<'a>)>,
}

impl<'a> Locked<'a> {
    fn state(&mut self, arena: u32) -> Option<&mut ArenaState> {
        if arena == self.own_index {
            return Some(&mut *self.own);
        }
        self.others.iter_mut().find(|(index, _)| *index == arena).map(|(_, state)| &mut **state)
    }
}

/// What is known about the streams when a miss is planned.
#[derive(Debug)]
struct Situation {
    /// The request's stream is being captured: nothing may be waited for or asked.
    capturing: bool,
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

    fn cost_of_waiting(&self, may_grow: bool) -> u32 {
        match (self.capturing, may_grow) {
            (true, _) => plan::BUSY_UNDER_CAPTURE,
            (false, true) => plan::BUSY_BUT_MAY_GROW,
            (false, false) => plan::BUSY,
        }
    }

    fn cost_of_stale_views(&self) -> u32 {
        match (self.views_are_idle(), self.debris) {
            (false, _) => plan::STALE_TAKEN_IN_FLIGHT,
            (true, false) => plan::STALE_TAKEN,
            (true, true) => plan::STALE_TAKEN_AMONG_MANY,
        }
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// A used node of the arena for the request, with memory behind all of it that `stream` may use.
    pub(crate) fn serve(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        stream: Stream,
        ask: Ask,
    ) -> Result<u32, Failure> {
        let Some(own) = self.arena(arena) else { return Err(Failure::AddressSpace) };
        let situation = self.survey(pages, own, arena, stream, ask.tag);
        let mut locked = Locked { own_index: arena, own: own.lock(), others: Vec::new() };
        if !situation.capturing {
            for index in (0..pages.arena_count()).filter(|&index| index != arena) {
                locked.others.extend(self.arena(index).map(|other| (index, other.lock())));
            }
        }
        locked.own.heap.note_complete(situation.idle, situation.own_stamp);
        for ((_, state), stamp) in locked.others.iter_mut().zip(&situation.other_stamps) {
            state.heap.note_complete(situation.idle, *stamp);
        }
        if let Some(node) = locked.own.heap.allocate(ask) {
            return Ok(node);
        }
        pages.misses += 1;
        pages.search += 1;
        pages.begin(situation.capturing);
        pages.scratch.found.clear();
        pages.find_free(&locked.own, arena, ask.tag);
        let mut used = locked.own.heap.used_units();
        for (index, state) in &locked.others {
            pages.find_free(state, *index, ask.tag);
            used += state.heap.used_units();
        }
        pages.sort_found(arena);
        pages.peak_units = pages.peak_units.max(used + u64::from(ask.units));
        let decided = if pages.arenas[arena as usize].range.is_some() {
            self.decide(pages, &mut locked, ask, &situation)
        } else {
            self.decide_segment(pages, &mut locked, ask)
        };
        drop(locked);
        match decided {
            Ok(node) => {
                let done = self.carry_out(pages, stream, &situation);
                self.settle(pages, arena, node, ask.tag, true);
                if let Err(failure) = done {
                    self.unclaim(pages, arena, node);
                    return Err(failure);
                }
                Ok(node)
            }
            Err((None, failure)) => Err(failure),
            Err((Some(node), failure)) => {
                pages.undo_steps(0);
                self.settle(pages, arena, node, ask.tag, false);
                self.unclaim(pages, arena, node);
                Err(failure)
            }
        }
    }

    /// Finds out which streams are idle, before the arenas are locked. The stamps are taken first: what is released
    /// meanwhile is not taken for complete.
    fn survey(&self, pages: &Pages<P::Physical>, own: &Arena, arena: u32, stream: Stream, tag: Tag) -> Situation {
        let capturing = self.driver.provider().is_capturing(stream).unwrap_or(true);
        let state = own.lock();
        let (own_seen, own_stamp) = (state.heap.seen(), state.heap.now());
        drop(state);
        let mut seen = own_seen;
        let mut other_stamps = Vec::new();
        if !capturing {
            for other in (0..pages.arena_count()).filter(|&index| index != arena).filter_map(|index| self.arena(index))
            {
                let state = other.lock();
                seen |= state.heap.seen();
                other_stamps.push(state.heap.now());
            }
        }
        // Whether the own stream is idle matters only to views that might be unmapped, which may well wait until they
        // are many: one stream alone needs no event.
        let debris = pages.has_debris(arena);
        let own_matters = if debris { own_set(tag) } else { 0 };
        let asked = if capturing { 0 } else { (seen & !own_set(tag)) | own_matters };
        let idle = self.idle_tags(asked);
        Situation { capturing, debris, idle, own_seen, own_stamp, other_stamps }
    }

    /// Chooses the place and the pages, in the books only. On failure, the claimed node if there is one.
    fn decide(
        &self,
        pages: &mut Pages<P::Physical>,
        locked: &mut Locked<'_>,
        ask: Ask,
        situation: &Situation,
    ) -> Result<u32, (Option<u32>, Failure)> {
        let arena = locked.own_index;
        let mut growth = self.growth_granules(pages);
        let piece = self.piece_granules(pages, locked);
        let supply = Supply {
            smallest_piece: pages.smallest_piece(growth),
            wait: situation.cost_of_waiting(growth > 0),
            stale_taken: situation.cost_of_stale_views(),
        };
        let Placement { first, start } =
            pages.cheapest_placement(&locked.own.heap, arena, ask, supply).ok_or((None, Failure::AddressSpace))?;
        let (node, in_the_way) = locked.own.heap.claim(first, start, ask);
        pages.in_the_way |= in_the_way;
        if situation.capturing && in_the_way != 0 {
            // Nothing else was left, and a captured stream can't wait for work outside of its graph.
            return Err((Some(node), Failure::Memory));
        }
        let granule_units = u64::from(pages.granule_units);
        let end = (u64::from(start) + u64::from(ask.units)).div_ceil(granule_units) as u32;
        let first = start / pages.granule_units;
        pages.settle_stale_views(locked, ask.tag, first, end);
        let mut granule = first;
        while granule < end {
            let view = pages.arenas[arena as usize].view(granule);
            if view.handle != NONE {
                granule = granule - view.offset + pages.handles[view.handle as usize].granules;
                continue;
            }
            let place = Place { arena, granule };
            let need = end - granule;
            let room = pages.room_at(place, need.max(piece));
            if let Some(handle) = pages.take_best(locked, ask.tag, need, room, true) {
                granule += pages.attach(handle, place);
            } else if growth >= need.min(piece) {
                let granules = room.min(if growth >= piece { piece } else { need });
                growth = growth.saturating_sub(granules);
                granule += pages.plan_creation(granules, place, self.config.limit).map_err(|e| (Some(node), e))?;
            } else if let Some(handle) = pages.take_best(locked, ask.tag, need, room, false) {
                granule += pages.attach(handle, place);
            } else {
                let granules = room.min(need).min(piece);
                granule += pages.plan_creation(granules, place, self.config.limit).map_err(|e| (Some(node), e))?;
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
    ) -> Result<u32, (Option<u32>, Failure)> {
        let arena = locked.own_index;
        let need = ask.units.div_ceil(pages.granule_units);
        let claim = |locked: &mut Locked<'_>, place: Place, granule_units: u32| {
            let start = place.granule * granule_units;
            let first = locked.own.heap.containing(ANYWHERE, start);
            locked.own.heap.claim(first, start, ask).0
        };
        let growth = self.growth_granules(pages);
        let roomy = pages.found_of_at_least(need);
        if let Some(handle) = roomy.filter(|_| growth < need) {
            let stale = pages.handles[handle as usize].views.iter().find(|place| place.arena == arena).copied();
            let place = match stale {
                Some(place) => Some(place),
                None => pages.segment_placement(arena, pages.handles[handle as usize].granules),
            };
            if let Some(place) = place
                && pages.take(locked, ask.tag, handle)
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
        pages.plan_creation(granules, place, self.config.limit).map_err(|failure| (None, failure))?;
        Ok(claim(locked, place, pages.granule_units))
    }

    /// How many granules may be created before free ones are moved instead.
    fn growth_granules(&self, pages: &Pages<P::Physical>) -> u32 {
        let peak = (pages.peak_units << UNIT_SHIFT) as f64;
        let budget = peak * (1.0 + self.config.growth_slack);
        let left = (budget as u64).saturating_sub(pages.reserved.current) / pages.granule_bytes();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// How many granules a new piece of memory has: it grows with the pool. A piece for slabs has room for what thread
    /// caches will keep, so that these don't make a warm program grow.
    fn piece_granules(&self, pages: &Pages<P::Physical>, locked: &Locked<'_>) -> u32 {
        let bytes = if is_for_slabs(locked.own_index) {
            let used = locked.own.heap.used_units() << UNIT_SHIFT;
            (used / 4).max(self.config.thread_cache) + pages.granule_bytes()
        } else {
            (pages.peak_units << UNIT_SHIFT) / u64::from(self.config.pieces_per_peak)
        };
        u32::try_from((bytes.min(self.config.max_piece) / pages.granule_bytes()).max(1)).unwrap_or(1)
    }

    /// Makes the planned calls to the backend. On failure, the steps not made are taken out of the books.
    fn carry_out(&self, pages: &mut Pages<P::Physical>, stream: Stream, situation: &Situation) -> Result<(), Failure> {
        if let Err((tag, error)) = self.order_after_tags(pages.in_the_way, stream) {
            // Whether work still touches these pages can't be known any more: nobody gets them again.
            let bytes = pages.leak_pages_of(tag);
            pages.notes.push(Note::Leaked { bytes, cause: error.clone() });
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
            if situation.capturing {
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
    fn settle(&self, pages: &mut Pages<P::Physical>, arena: u32, node: u32, tag: Tag, ordered: bool) {
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
                0 => 0,
                _ if ordered => 1 << tag,
                users => users | 1 << tag,
            };
            for (from, to) in [(first, last.min(start)), (first.max(end), last)] {
                if from < to {
                    state.heap.convert(node, from as u32, (to - from) as u32, Kind::Free, users);
                }
            }
        }
    }

    /// Gives a claimed node up: what is backed becomes free memory, the rest holes again.
    fn unclaim(&self, pages: &Pages<P::Physical>, arena: u32, node: u32) {
        let Some(owner) = self.arena(arena) else { return };
        let mut state = owner.lock();
        let Some((start, end, tag)) = state.heap.node(node).map(|n| (u64::from(n.start), n.end(), n.tag)) else {
            return;
        };
        state.heap.abandon(node);
        let users = pages.in_the_way | 1 << tag;
        let granule = u64::from(pages.granule_units);
        for index in start / granule..end.div_ceil(granule) {
            if pages.is_active(arena, index as u32) {
                let (from, to) = ((index * granule).max(start), ((index + 1) * granule).min(end));
                state.heap.convert(ANYWHERE, from as u32, (to - from) as u32, Kind::Free, users);
            }
        }
    }
}

impl<T> Pages<T> {
    /// Notes all handles that lie wholly within free memory of the arena.
    pub(super) fn find_free(&mut self, state: &ArenaState, arena: u32, tag: Tag) {
        let granule_units = u64::from(self.granule_units);
        let (search, capturing) = (self.search, self.capturing);
        let (handles, found) = (&mut self.handles, &mut self.scratch.found);
        let views = &self.arenas[arena as usize];
        state.heap.for_each_free(self.granule_units, |index, node| {
            let busy = state.heap.in_the_way(node, tag) != 0;
            if busy && capturing {
                return;
            }
            let first = u64::from(node.start).div_ceil(granule_units) as u32;
            let end = (node.end() / granule_units) as u32;
            let mut granule = first;
            while granule < end {
                let view = views.view(granule);
                let Some(handle) = handles.get_mut(view.handle as usize) else {
                    granule += 1;
                    continue;
                };
                let start = granule - view.offset;
                granule = start + handle.granules;
                if start >= first && granule <= end {
                    handle.found = Found { search, node: index, busy };
                    found.push(view.handle);
                }
            }
        });
    }

    /// Activates the stale views among the granules whose handles are free, and plans to unmap the others, so that
    /// what is left is active or unmapped.
    fn settle_stale_views(&mut self, locked: &mut Locked<'_>, tag: Tag, first: u32, end: u32) {
        let arena = locked.own_index;
        let mut granule = first;
        while granule < end {
            let view = self.arenas[arena as usize].view(granule);
            if view.handle == NONE {
                granule += 1;
                continue;
            }
            let place = Place { arena, granule: granule - view.offset };
            let handle = &self.handles[view.handle as usize];
            granule = place.granule + handle.granules;
            if handle.active == Some(place) {
                continue;
            }
            if self.take(locked, tag, view.handle) {
                self.activate(view.handle, place);
            } else {
                self.remove_view(view.handle, place);
                self.scratch.steps.push(Step::Unmap { handle: view.handle, place });
            }
        }
    }

    /// Orders what was found: the arena's own first, then idle ones, the highest address first.
    fn sort_found(&mut self, arena: u32) {
        let handles = &self.handles;
        self.scratch.found.sort_unstable_by_key(|&index| {
            let handle = &handles[index as usize];
            let place = handle.active.unwrap_or(Place { arena, granule: 0 });
            (handle.found.busy, place.arena != arena, std::cmp::Reverse(place.granule))
        });
    }

    /// Granules of the smallest piece at hand.
    fn smallest_piece(&self, growth: u32) -> u32 {
        if growth > 0 {
            return 1;
        }
        let listed = self.scratch.found.iter().chain(&self.idle);
        listed.map(|&handle| self.handles[handle as usize].granules).min().unwrap_or(1)
    }

    fn begin(&mut self, capturing: bool) {
        self.capturing = capturing;
        self.in_the_way = 0;
        self.scratch.steps.clear();
        self.scratch.attached.clear();
    }

    /// The smallest free handle of at least `granules`.
    fn found_of_at_least(&self, granules: u32) -> Option<u32> {
        let listed = self.idle.iter().chain(&self.scratch.found).copied();
        listed
            .filter(|&handle| self.handles[handle as usize].granules >= granules)
            .min_by_key(|&handle| self.handles[handle as usize].granules)
    }

    /// How many unmapped granules follow from `place` on, up to `most`.
    fn room_at(&self, place: Place, most: u32) -> u32 {
        let views = &self.arenas[place.arena as usize];
        let end = views.granules.min(place.granule.saturating_add(most));
        (place.granule..end).take_while(|&granule| views.view(granule).handle == NONE).count() as u32
    }

    /// Whether a handle that is nowhere active has users whom a request under capture can't wait for.
    pub(super) fn is_out_of_reach(&self, index: u32, tag: Tag) -> bool {
        let handle = &self.handles[index as usize];
        self.capturing && handle.active.is_none() && handle.users & !own_set(tag) != 0
    }

    /// Takes a handle from where it is, if it is free: its old addresses become a hole with a stale view.
    fn take(&mut self, locked: &mut Locked<'_>, tag: Tag, index: u32) -> bool {
        if self.is_out_of_reach(index, tag) {
            return false;
        }
        let handle = &mut self.handles[index as usize];
        if let Some(place) = handle.active {
            if handle.found.search != self.search {
                return false;
            }
            let start = place.granule * self.granule_units;
            let units = handle.granules * self.granule_units;
            let Some(state) = locked.state(place.arena) else { return false };
            let node = state.heap.containing(handle.found.node, start);
            let whole = |node: &&crate::placement::heap::Node| {
                node.kind == Kind::Free && node.end() >= u64::from(start) + u64::from(units)
            };
            if state.heap.node(node).filter(whole).is_none() {
                handle.found.search = 0;
                return false;
            }
            let users = state.heap.node(node).map_or(0, |node| state.heap.unfinished(node));
            state.heap.convert(node, start, units, Kind::Hole, 0);
            handle.users = users;
            handle.found.search = 0;
            handle.active = None;
        } else {
            self.unlist_idle(index);
        }
        self.in_the_way |= self.handles[index as usize].users & !own_set(tag);
        true
    }

    /// Takes the free handle that fits a run of `room` granules best: the largest within `need`, else the smallest
    /// beyond. With `idle_only`, only handles that are nowhere active, which costs nobody anything.
    fn take_best(&mut self, locked: &mut Locked<'_>, tag: Tag, need: u32, room: u32, idle_only: bool) -> Option<u32> {
        loop {
            let mut best: Option<(u32, (bool, bool, i64))> = None;
            let listed = if idle_only { &self.idle } else { &self.scratch.found };
            for &index in listed {
                let handle = &self.handles[index as usize];
                let usable = handle.active.is_none() || handle.found.search == self.search;
                if handle.granules > room
                    || !usable
                    || (!idle_only && handle.active.is_none())
                    || self.is_out_of_reach(index, tag)
                {
                    continue;
                }
                let over = handle.granules > need;
                let rank = if over { i64::from(handle.granules) } else { -i64::from(handle.granules) };
                let key = (handle.found.busy && !idle_only, over, rank);
                if best.is_none_or(|(_, least)| key < least) {
                    best = Some((index, key));
                }
            }
            let (index, _) = best?;
            if self.take(locked, tag, index) {
                return Some(index);
            }
        }
    }

    /// Plans a mapping of a handle taken; returns its granules.
    fn attach(&mut self, handle: u32, place: Place) -> u32 {
        self.add_view(handle, place);
        self.activate(handle, place);
        self.scratch.steps.push(Step::Map { handle, place });
        self.moves += 1;
        let granules = self.handles[handle as usize].granules;
        self.notes.push(Note::Moved { bytes: u64::from(granules) * self.granule_bytes() });
        granules
    }

    fn activate(&mut self, handle: u32, place: Place) {
        self.handles[handle as usize].active = Some(place);
        self.scratch.attached.push(handle);
    }

    fn deactivate(&mut self, handle: u32) {
        self.handles[handle as usize].active = None;
        if !self.handles[handle as usize].leaked {
            self.idle.push(handle);
        }
    }

    /// Takes back the views that were activated for a request which failed before it could be ordered.
    fn detach_attached(&mut self) {
        for index in std::mem::take(&mut self.scratch.attached) {
            if self.handles[index as usize].active.take().is_some() && !self.handles[index as usize].leaked {
                self.idle.push(index);
            }
        }
    }

    /// Gives up the handles taken for this request that the stream used; returns their bytes.
    fn leak_pages_of(&mut self, tag: Tag) -> u64 {
        let mut granules = 0;
        for &index in &self.scratch.attached {
            let handle = &mut self.handles[index as usize];
            if handle.users & (1 << tag) != 0 && !handle.leaked {
                handle.leaked = true;
                granules += u64::from(handle.granules);
            }
        }
        let bytes = granules * self.granule_bytes();
        self.leaked += bytes;
        bytes
    }

    fn plan_creation(&mut self, granules: u32, place: Place, limit: Option<u64>) -> Result<u32, Failure> {
        let planned: u64 = self
            .scratch
            .steps
            .iter()
            .map(|step| match step {
                Step::Create { granules, .. } => u64::from(*granules),
                _ => 0,
            })
            .sum();
        let after = (planned + u64::from(granules)).saturating_mul(self.granule_bytes());
        if limit.is_some_and(|limit| self.reserved.current.saturating_add(after) > limit) {
            return Err(Failure::Limit);
        }
        self.scratch.steps.push(Step::Create { granules, place });
        Ok(granules)
    }

    /// Takes the steps from `made` on out of the books again.
    fn undo_steps(&mut self, made: usize) {
        while self.scratch.steps.len() > made {
            match self.scratch.steps.pop() {
                Some(Step::Map { handle, place }) => {
                    self.remove_view(handle, place);
                    self.deactivate(handle);
                }
                Some(Step::Unmap { handle, place }) => self.add_view(handle, place),
                Some(Step::Create { .. }) | None => {}
            }
        }
    }

    pub(super) fn address(&self, place: Place) -> Address {
        let base = self.arenas[place.arena as usize].range.map_or(0, |range| range.start.get());
        Address::new(base + u64::from(place.granule) * self.granule_bytes())
    }
}
