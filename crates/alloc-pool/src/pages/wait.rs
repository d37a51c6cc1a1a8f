//! A stream that waits for another one's memory, where the pool would have to grow past its budget or to move pages instead.

use alloc_core::{MemoryProvider, ProviderError, Stream};

use super::serve::Means;
use super::{Pages, Patience};
use crate::arena::is_for_slabs;
use crate::crossing::Found;
use crate::placement::heap::{Ask, Prospect, SHARED_TAG, TagSet, own_set};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Inner;
use crate::streams::Tags;

/// Every how many waits what was created past the budget is looked for: it is mostly in use, or other streams are busy with it.
const GIVE_BACK_EVERY: u64 = 1024;

/// Whose memory may be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Of those that there are events of which are not known to be over.
    Marked,
    /// Of all but these.
    AllBut(TagSet),
}

impl<P: MemoryProvider> Inner<P> {
    /// Free memory that the stream need not wait for, though it lies in several pieces, or such that events are at hand for: then
    /// nobody has to be asked anything, which takes longer than to wait for what is long complete. The used node.
    pub(crate) fn take_marked(
        &self,
        arena: u32,
        stream: Stream,
        (ask, found): (Ask, Option<Prospect>),
    ) -> Result<Option<u32>, ProviderError> {
        let has_marks = || self.arena(arena).is_some_and(|owner| owner.lock().heap.has_marks());
        if self.are_threads_apart() || (found.is_none() && !has_marks()) {
            return Ok(None);
        }
        let served = {
            let mut pages = self.lock_pages();
            let peak_before = pages.peak_units;
            let means = Means { frugal: true, device_is_full: false };
            let served = self.wait_instead(&mut pages, arena, (stream, ask, found), Others::Marked, means);
            if pages.peak_units > peak_before {
                pages.note_peak();
            } else if matches!(served, Ok(Some(_))) && pages.misses.is_multiple_of(GIVE_BACK_EVERY) {
                let keep = pages.most_to_keep(&self.config);
                if pages.reserved.current > keep {
                    self.pass_all_marks();
                    self.give_back(&mut pages, keep, Patience::Leave);
                }
            }
            self.defer_notes(&mut pages);
            served
        };
        self.tell_deferred();
        served
    }

    /// A used node of the arena whose memory the stream was made to wait for. `None`, with nothing done, if there is none that
    /// will do, or if the pool may grow. `found` is the place if one was found under the arena's lock. What is known about streams
    /// has to do, but for those of which there are no marks.
    pub(super) fn wait_instead(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        (stream, ask, found): (Stream, Ask, Option<Prospect>),
        others: Others,
        means: Means,
    ) -> Result<Option<u32>, ProviderError> {
        let Some(owner) = self.arena(arena) else { return Ok(None) };
        {
            let mut state = owner.lock();
            if state.heap.seen() & !own_set(ask.tag) == 0 {
                return Ok(None);
            }
            pages.count(arena, &mut state);
        }
        for index in (0..pages.arena_count()).filter(|&index| index != arena) {
            if let Some(other) = self.arena(index) {
                pages.count(index, &mut other.lock());
            }
        }
        let mut table = self.lock_tags();
        if others == Others::Marked {
            self.mark_releases(&mut table, arena, ask.tag);
        }
        let is_far_ahead = pages.held_up.is_due().then(|| self.is_far_ahead(&mut table, pages, arena));
        let mut state = owner.lock();
        let untouchable = if let Others::AllBut(untouchable) = others { untouchable } else { 0 };
        let Some(window) = state.heap.best_window_or(found, ask, untouchable) else { return Ok(None) };
        if window.users == 0 {
            return Ok(Some(state.heap.claim_window(window, ask)));
        }
        state.heap.releases_in(window, ask, &mut pages.scratch.releases);
        let sharers = state.heap.sharers_in(window, ask);
        if others == Others::Marked {
            // No call to the backend is made under the arena's lock.
            let (found_at, now) = (state.heap.version(), state.heap.now());
            drop(state);
            let waiter = (ask.tag != SHARED_TAG).then_some((ask.tag, stream));
            let passed = self.pass_unmarked(&mut table, arena, (&pages.scratch.releases, sharers.as_ref()), waiter);
            state = owner.lock();
            let Some(Found { complete, ordered, .. }) = passed else { return Ok(None) };
            if complete | ordered != 0 {
                match &sharers {
                    Some(sharers) => state.heap.note_complete_in(window, ask, (complete, sharers), now),
                    None => state.heap.note_complete(complete, now),
                }
                if ordered != 0 {
                    state.heap.note_ordered(ask.tag, ordered, now);
                }
                state.heap.releases_in(window, ask, &mut pages.scratch.releases);
            }
            if state.heap.version() != found_at {
                return Ok(None);
            }
            if pages.scratch.releases.is_empty() {
                return Ok(Some(state.heap.claim_window(window, ask)));
            }
        }
        let peak_before = pages.peak_units;
        pages.peak_units = peak_before.max(pages.used_units() + u64::from(ask.units));
        let may_hold = if means.device_is_full { 0 } else { pages.granules_within(self.limit()) };
        let need = ask.units.div_ceil(pages.granule_units);
        let may_grow = |pages: &Pages<P::Physical>| pages.growth_granules(&self.config).min(may_hold) >= need;
        if !may_grow(pages) {
            if !is_for_slabs(arena) && pages.scattered.note(window.is_scattered, state.heap.free_units()) {
                drop((state, table));
                pages.peak_units = peak_before;
                self.gather(pages, arena, (stream, ask.tag));
                return self.wait_instead(pages, arena, (stream, ask, None), others, means);
            }
            // Which may be what allows it.
            pages.held_up.note(is_far_ahead);
        }
        if may_grow(pages) {
            pages.peak_units = peak_before;
            return Ok(None);
        }
        let node = state.heap.claim_window(window, ask);
        drop(state);
        pages.misses += 1;
        pages.note_want(arena, ask.units);
        let before = (&pages.scratch.releases[..], sharers.as_ref());
        let ordered = self.order_after_releases(&mut table, arena, before, (ask.tag, stream));
        drop(table);
        ordered.map(|()| Some(node)).inspect_err(|_| {
            pages.peak_units = peak_before;
            pages.in_the_way = window.users;
            self.unclaim(pages, arena, node);
        })
    }

    /// Whether the host is far ahead of the device: whether the arena, which was just counted, has handed out many times the pool's
    /// peak since the oldest mark that was not passed.
    fn is_far_ahead(&self, table: &mut Tags<P::Event>, pages: &Pages<P::Physical>, arena: u32) -> bool {
        let far = (pages.peak_units << UNIT_SHIFT).saturating_mul(PEAKS_AHEAD);
        let allocated = pages.allocated_bytes_of(arena);
        let is_far = |oldest: Option<u64>| oldest.is_some_and(|oldest| allocated.saturating_sub(oldest) > far);
        if !is_far(table.marks.oldest(arena)) {
            return false;
        }
        // They may have been passed long since.
        self.pass_marks(table, arena);
        is_far(table.marks.oldest(arena))
    }
}

/// The host is far ahead of the device if it was handed so many times the peak since a moment that the device has not come
/// past. To wait for memory then takes the device's time, and there is more for each such wait, as a fraction of the peak.
const PEAKS_AHEAD: u64 = 8;
const MORE_PER_WAIT: f64 = 0.01;
/// After so many waits of any kind it may hold a little more at once. Streams that use each other's memory leave it in pieces of which few
/// pages are free as a whole, so that pages are created past the budget sooner or later, one at a time and more of them.
const FEW_AT_ALL: u64 = 8;
const MORE_FOR_ANY: f64 = 0.0105;

impl<T> Pages<T> {
    /// How much more the pool may hold for the sake of waiting less, as a fraction of its peak.
    pub(super) fn more_for_waiting(&self, most: f64) -> f64 {
        let for_any = if self.held_up.waits >= FEW_AT_ALL { MORE_FOR_ANY } else { 0.0 };
        let far_ahead = self.held_up.most.saturating_sub(BORNE * FEW) as f64 / FEW as f64 * MORE_PER_WAIT;
        (for_any + far_ahead).min(most)
    }
}

/// Waits of streams for others that are far behind the host, in parts of one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeldUp {
    waits: u64,
    now: u64,
    most: u64,
}

/// So many waits are borne first, and so many that were nothing to the device make up for one that was: a program that is far
/// ahead of it now and then, for a few steps, does without more memory.
const BORNE: u64 = 64;
const FEW: u64 = 16;
/// One wait in so many stands for all of them, as whether the host is far ahead takes asking the device.
const LOOKED_AT: u64 = 4;

impl HeldUp {
    /// Whether the next wait is one of those that are looked at: by multiples of the golden ratio, so that they are spread evenly
    /// over the waits of a program that repeats itself, after whatever number of them it does.
    const fn is_due(&self) -> bool {
        self.waits.wrapping_mul(0x9e37_79b9_7f4a_7c15) < u64::MAX / LOOKED_AT
    }

    /// Notes a wait, and whether the host is far ahead if that was looked at.
    fn note(&mut self, is_far_ahead: Option<bool>) {
        self.waits += 1;
        let Some(is_far_ahead) = is_far_ahead else { return };
        let (more, less) = (LOOKED_AT * FEW, LOOKED_AT);
        self.now = if is_far_ahead { self.now + more } else { self.now.saturating_sub(less) };
        self.most = self.most.max(self.now);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn being_far_ahead_counts_if_it_lasts() {
        let more = |far: u64, near: u64, times: u64| {
            let mut pages = Pages::<()>::new(1);
            for wait in 0..times * (far + near) {
                let is_far_ahead = wait % (far + near) < far;
                let is_looked_at = pages.held_up.is_due();
                pages.held_up.note(is_looked_at.then_some(is_far_ahead));
            }
            pages.more_for_waiting(0.5)
        };
        assert_eq!(more(BORNE - 2 * LOOKED_AT, 0, 1), MORE_FOR_ANY);
        assert!((more(BORNE + 20, 0, 1) - 0.2).abs() < 0.1);
        assert_eq!(more(1, 2 * FEW, 10_000), MORE_FOR_ANY, "now and then");
        assert_eq!(more(2, FEW, 10_000), 0.5);
    }

    #[test]
    fn a_pool_whose_streams_wait_at_all_may_hold_a_little_more() {
        let mut pages = Pages::<()>::new(1);
        let more = |pages: &Pages<()>| (pages.more_for_waiting(0.5), pages.more_for_waiting(0.001));
        for _ in 1..FEW_AT_ALL {
            pages.held_up.note(Some(false));
        }
        assert_eq!(more(&pages), (0.0, 0.0));
        pages.held_up.note(Some(false));
        assert_eq!(more(&pages), (MORE_FOR_ANY, 0.001), "but no more than is allowed");
    }

    #[test]
    fn waits_that_come_round_are_looked_at_as_often_as_others() {
        for period in 1..=12 {
            let (mut held_up, mut looked_at) = (HeldUp::default(), vec![0_u64; period]);
            for wait in 0..400 * period {
                looked_at[wait % period] += u64::from(held_up.is_due());
                held_up.note(None);
            }
            assert!(looked_at.iter().all(|times| (80..=120).contains(times)), "{period}: {looked_at:?}");
        }
    }
}
