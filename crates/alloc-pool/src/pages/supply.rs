//! The supply of pages for a miss: free handles are found, taken from where they are, and attached where they are
//! needed, in the books; the calls to the backend that this means are noted as steps.

use std::cmp::Reverse;

use alloc_core::Address;

use super::serve::Failure;
use super::{Found, Handle, Home, NONE, Pages, Place};
use crate::arena::{self, ArenaState};
use crate::notes::Note;
use crate::placement::heap::{Asker, SHARED_SET, Sharers, Tag, TagSet, own_set};

/// A change that is noted in the books and has to be made by the backend.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Unmap { handle: u32, place: Place },
    Map { handle: u32, place: Place },
    Create { granules: u32, place: Place },
}

/// The locks of all arenas, held while a miss is planned. Only a miss holds more than one, and there is one miss at a
/// time, so they can't deadlock.
pub(super) struct Locked<'a> {
    pub(super) own_index: u32,
    pub(super) own: arena::Locked<'a>,
    pub(super) others: Vec<(u32, arena::Locked<'a>)>,
}

impl<'a> Locked<'a> {
    pub(super) fn state(&mut self, arena: u32) -> Option<&mut ArenaState> {
        if arena == self.own_index {
            return Some(&mut *self.own);
        }
        self.others.iter_mut().find(|(index, _)| *index == arena).map(|(_, state)| &mut **state)
    }
}

impl<T> Pages<T> {
    /// Notes all handles that lie wholly within free memory of the arena.
    pub(super) fn find_free(&mut self, state: &ArenaState, arena: u32, asker: Asker) {
        let (search, untouchable, granule_units) = (self.search, self.untouchable, self.granule_units);
        let (handles, found) = (&mut self.handles, &mut self.scratch.found);
        let views = &self.arenas[arena as usize];
        state.heap.for_each_free(granule_units, |index, node| {
            let in_the_way = state.heap.in_the_way(node, asker);
            if in_the_way & untouchable != 0 {
                return;
            }
            let busy = in_the_way != 0;
            views.for_each_within(handles, (u64::from(node.start), node.end()), granule_units, |handle, name, _| {
                handle.found = Found { search, node: index, busy };
                found.push(name);
            });
        });
        state.heap.for_each_row_of_sharers(|first, start, end| {
            let mut hint = first;
            views.for_each_within(handles, (start, end), granule_units, |handle, name, granule| {
                if handle.found.search == search {
                    return;
                }
                let (start, units) = (granule * granule_units, handle.granules * granule_units);
                hint = state.heap.containing(hint, start);
                let users = state.heap.users_of(hint, start, units, asker);
                if let Some(users) = users.filter(|users| users.in_the_way & untouchable == 0) {
                    handle.found = Found { search, node: hint, busy: users.in_the_way != 0 };
                    found.push(name);
                }
            });
        });
    }

    /// Activates the stale views among the granules whose handles are free, and plans to unmap the others, so that
    /// what is left is active or unmapped.
    pub(super) fn settle_stale_views(&mut self, locked: &mut Locked<'_>, asker: Asker, first: u32, end: u32) {
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
            if self.take(locked, asker, view.handle) {
                self.activate(view.handle, place);
            } else {
                self.remove_view(view.handle, place);
                self.scratch.steps.push(Step::Unmap { handle: view.handle, place });
            }
        }
    }

    /// Which of several found handles goes first: the arena's own, then the one at the highest address.
    fn precedence(&self, handle: &Handle<T>, arena: u32) -> (bool, Reverse<u32>) {
        let place = handle.active.unwrap_or(Place { arena, granule: 0 });
        (place.arena != arena, Reverse(place.granule))
    }

    /// Granules of the smallest piece at hand.
    pub(super) fn smallest_piece(&self, growth: u32) -> u32 {
        if growth > 0 {
            return 1;
        }
        let listed = self.scratch.found.iter().chain(&self.idle);
        listed.map(|&handle| self.handles[handle as usize].granules).min().unwrap_or(1)
    }

    pub(super) fn begin(&mut self, untouchable: TagSet) {
        self.untouchable = untouchable;
        self.in_the_way = 0;
        self.sharers = Sharers::NONE;
        self.scratch.steps.clear();
        self.scratch.planned = 0;
        self.scratch.attached.clear();
    }

    /// What was found before is found no more.
    pub(super) fn begin_search(&mut self) {
        self.search += 1;
        self.scratch.found.clear();
    }

    /// The smallest free handle of at least `granules`, an idle one if there is any as small.
    pub(super) fn found_of_at_least(&self, arena: u32, granules: u32, tag: Tag) -> Option<u32> {
        let at = |index: u32| &self.handles[index as usize];
        let will_do = |&index: &u32| at(index).granules >= granules && !self.is_out_of_reach(index, tag);
        let idle = self.idle.iter().copied().filter(will_do).min_by_key(|&index| at(index).granules);
        let found = self.scratch.found.iter().copied().filter(will_do);
        let found = found.min_by_key(|&index| {
            let handle = at(index);
            (handle.granules, handle.found.busy, self.precedence(handle, arena))
        });
        idle.into_iter().chain(found).min_by_key(|&index| at(index).granules)
    }

    /// How many unmapped granules follow from `place` on, up to the larger of those that are needed there and of a piece. They
    /// are unmapped up to `clear_to`, if that lies beyond: so a request of many pieces has its addresses looked at once, not for
    /// each piece again.
    pub(super) fn room_at(&self, place: Place, (need, piece): (u32, u32), clear_to: &mut u32) -> u32 {
        if *clear_to <= place.granule {
            let views = &self.arenas[place.arena as usize];
            // As far as any piece of the request reaches.
            let end = views.granules.min(place.granule.saturating_add(need).saturating_add(piece));
            let clear = (place.granule..end).take_while(|&granule| views.view(granule).handle == NONE);
            *clear_to = place.granule.saturating_add(clear.count() as u32);
        }
        (*clear_to - place.granule).min(need.max(piece))
    }

    /// How many granules can be moved without a wait.
    pub(super) fn granules_at_hand(&self, tag: Tag) -> u32 {
        let idle = self.idle.iter().filter(|&&index| self.handles[index as usize].users & !own_set(tag) == 0);
        let found = self.scratch.found.iter().filter(|&&index| !self.handles[index as usize].found.busy);
        idle.chain(found).map(|&index| self.handles[index as usize].granules).fold(0, u32::saturating_add)
    }

    /// Whether a handle that is nowhere active has users that the request can't be ordered after.
    pub(super) fn is_out_of_reach(&self, index: u32, tag: Tag) -> bool {
        let handle = &self.handles[index as usize];
        handle.active.is_none() && handle.users & !own_set(tag) & self.untouchable != 0
    }

    /// Takes a handle from where it is, if it is free: its old addresses become a hole with a stale view.
    pub(super) fn take(&mut self, locked: &mut Locked<'_>, asker: Asker, index: u32) -> bool {
        if self.is_out_of_reach(index, asker.tag) {
            return false;
        }
        let handle = &mut self.handles[index as usize];
        let in_the_way = if let Some(place) = handle.active {
            if handle.found.search != self.search {
                return false;
            }
            let start = place.granule * self.granule_units;
            let units = handle.granules * self.granule_units;
            let Some(state) = locked.state(place.arena) else { return false };
            let node = state.heap.containing(handle.found.node, start);
            let Some(users) = state.heap.users_of(node, start, units, asker) else {
                handle.found.search = 0;
                return false;
            };
            self.sharers.add_all_of(&users.sharers);
            state.heap.convert_to_hole(node, start, units);
            handle.users = users.unfinished;
            handle.found.search = 0;
            if self.lending {
                handle.home.get_or_insert(Home::At(place));
            }
            self.set_active(index, None);
            users.in_the_way
        } else {
            if self.lending {
                handle.home.get_or_insert(Home::Nowhere);
            }
            let in_the_way = handle.users & !own_set(asker.tag);
            if in_the_way & SHARED_SET != 0 {
                self.sharers = Sharers::ALL;
            }
            self.unlist_idle(index);
            in_the_way
        };
        self.in_the_way |= in_the_way;
        true
    }

    /// Takes the free handle that fits a run of `room` granules best: the largest within `need`, else the smallest
    /// beyond. With `idle_only`, only handles that are nowhere active, which costs nobody anything.
    pub(super) fn take_best(
        &mut self,
        locked: &mut Locked<'_>,
        asker: Asker,
        need: u32,
        room: u32,
        idle_only: bool,
    ) -> Option<u32> {
        loop {
            let mut best: Option<(u32, (bool, bool, i64))> = None;
            let listed = if idle_only { &self.idle } else { &self.scratch.found };
            for &index in listed {
                let handle = &self.handles[index as usize];
                let usable = handle.active.is_none() || handle.found.search == self.search;
                if handle.granules > room
                    || !usable
                    || (!idle_only && handle.active.is_none())
                    || self.is_out_of_reach(index, asker.tag)
                {
                    continue;
                }
                let over = handle.granules > need;
                let rank = if over { i64::from(handle.granules) } else { -i64::from(handle.granules) };
                let key = (handle.found.busy && !idle_only, over, rank);
                let goes_before = |other: u32| {
                    let precedence = |handle| self.precedence(handle, locked.own_index);
                    !idle_only && precedence(handle) < precedence(&self.handles[other as usize])
                };
                if best.is_none_or(|(other, least)| key < least || (key == least && goes_before(other))) {
                    best = Some((index, key));
                }
            }
            let (index, _) = best?;
            if self.take(locked, asker, index) {
                return Some(index);
            }
        }
    }

    /// Plans a mapping of a handle taken; returns its granules.
    pub(super) fn attach(&mut self, handle: u32, place: Place) -> u32 {
        self.add_view(handle, place);
        self.activate(handle, place);
        self.scratch.steps.push(Step::Map { handle, place });
        self.moves += 1;
        let granules = self.handles[handle as usize].granules;
        self.moved_granules += u64::from(granules);
        self.notes.push(Note::Moved { bytes: u64::from(granules) * self.granule_bytes() });
        granules
    }

    pub(super) fn activate(&mut self, handle: u32, place: Place) {
        // What was lent before stays so, whoever has it next: the round to come is to start like this one.
        let home = &mut self.handles[handle as usize].home;
        *home = home.filter(|&home| home != Home::At(place));
        self.set_active(handle, Some(place));
        self.scratch.attached.push(handle);
    }

    pub(super) fn deactivate(&mut self, handle: u32) {
        self.set_active(handle, None);
        if !self.handles[handle as usize].leaked {
            self.idle.push(handle);
        }
    }

    /// Takes back the views that were activated for a request which failed before it could be ordered.
    pub(super) fn detach_attached(&mut self) {
        for index in std::mem::take(&mut self.scratch.attached) {
            if self.set_active(index, None).is_some() && !self.handles[index as usize].leaked {
                self.idle.push(index);
            }
        }
    }

    pub(super) fn plan_creation(&mut self, granules: u32, place: Place, limit: Option<u64>) -> Result<u32, Failure> {
        let planned = self.scratch.planned + u64::from(granules);
        let after = planned.saturating_mul(self.granule_bytes());
        if limit.is_some_and(|limit| self.reserved.current.saturating_add(after) > limit) {
            return Err(Failure::Limit);
        }
        self.scratch.planned = planned;
        self.scratch.steps.push(Step::Create { granules, place });
        Ok(granules)
    }

    /// Takes the steps from `made` on out of the books again.
    pub(super) fn undo_steps(&mut self, made: usize) {
        while self.scratch.steps.len() > made {
            match self.scratch.steps.pop() {
                Some(Step::Map { handle, place }) => {
                    self.remove_view(handle, place);
                    self.deactivate(handle);
                }
                Some(Step::Unmap { handle, place }) => self.add_view(handle, place),
                Some(Step::Create { granules, .. }) => self.scratch.planned -= u64::from(granules),
                None => {}
            }
        }
    }

    pub(super) fn address(&self, place: Place) -> Address {
        let base = self.arenas[place.arena as usize].range.map_or(0, |range| range.start.get());
        Address::new(base + u64::from(place.granule) * self.granule_bytes())
    }
}
