//! How much physical memory a pool may hold, and which arenas have some to spare.
//!
//! As long as all threads share one pair of arenas, memory is created up to a little past the peak of what was in use,
//! and beyond that free pages are moved. Threads that got in each other's way have arenas of their own. If those moved
//! each other's pages, every page taken would be the next miss of the arena that had it, and misses come one at a
//! time. So each of them may hold half more than it used at most, and what others may take is what it holds beyond
//! half more than it used at most of late.

use super::Pages;
use crate::arena::ArenaState;
use crate::config::PoolConfig;
use crate::placement::units::UNIT_SHIFT;

/// What an arena's heap says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Census {
    used_units: u64,
    /// The least that was in use since the pool was last asked whether it is in unrest.
    low_units: u64,
    peak_units: u64,
    recent: Recent,
    /// All large blocks so far, and their bytes.
    allocations: u64,
    allocated_bytes: u64,
}

/// The most units that were in use or wanted in this stretch of misses, and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    stretch: u64,
    most: u64,
    most_before: u64,
}

/// How many misses of all arenas a stretch has.
const RECENT_MISSES: u64 = 128;

impl Recent {
    fn note(&mut self, units: u64, misses: u64) {
        let stretch = misses / RECENT_MISSES;
        if stretch != self.stretch {
            let most_before = if stretch == self.stretch + 1 { self.most } else { 0 };
            *self = Self { stretch, most: 0, most_before };
        }
        self.most = self.most.max(units);
    }

    fn most(&self) -> u64 {
        self.most.max(self.most_before)
    }
}

/// What had happened when the peak of what is in use last rose, but for little.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AtPeak {
    units: u64,
    /// Physical bytes held.
    reserved: u64,
    pub(super) moved_granules: u64,
    pub(super) allocated_bytes: u64,
}

/// The peak of what is in use, and what was noted of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    units: u64,
    noted: AtPeak,
}

/// A pool that moves no more than one byte in so many allocated is at rest. Beyond that, how many times all of its
/// memory it may move first, and by how much of the peak it may grow for each further time.
const ALLOCATED_PER_MOVED: u64 = 500;
const ROUNDS_AT_REST: f64 = 0.6;
const MORE_PER_ROUND: f64 = 0.02;
/// One that was given more than this for it does not lend pieces: it has places of its own for most of what it needs.
const RESTLESS: f64 = 0.01;

/// With less than this part of what was in use left, a program is at the end of a round: it may need no more in the next,
/// and lent pieces go home.
pub(super) const HARDLY_ANYTHING: u64 = 16;

/// A peak that rises by less than this part of it has been reached before.
const LITTLE: u64 = 64;
/// How far the pieces created past the budget, since no free one could be moved, may add up, as a fraction of what the
/// pool held at its peak. What is beyond that goes back as soon as it is free.
const CREEP: f64 = 0.01;
/// What an arena of its own may hold beside half more than it used at most, in bytes.
const SPARE_BYTES: u64 = 8 << 20;

/// Half more, and a little.
fn with_spare(units: u64, granule_units: u64) -> u64 {
    units + units / 2 + (SPARE_BYTES >> UNIT_SHIFT).max(granule_units)
}

impl<T> Pages<T> {
    /// Notes how much of the arena is in use.
    pub(super) fn count(&mut self, arena: u32, state: &mut ArenaState) {
        let used = state.heap.used_units();
        let low = state.heap.take_low();
        let census = &mut self.arenas[arena as usize].census;
        census.used_units = used;
        census.low_units = census.low_units.min(low);
        census.peak_units = census.peak_units.max(used);
        census.recent.note(used, self.misses);
        (census.allocations, census.allocated_bytes) = state.large.allocated();
    }

    /// Notes that the arena, which was just counted, wants so many units more than it has free.
    pub(super) fn note_want(&mut self, arena: u32, units: u32) {
        let census = &mut self.arenas[arena as usize].census;
        census.recent.note(census.used_units + u64::from(units), self.misses);
    }

    /// Whether so many units in use are a new peak, and not the same one reached again.
    pub(super) fn would_raise_peak(&self, used: u64) -> bool {
        used > self.at_peak.units + self.at_peak.units / LITTLE
    }

    /// Notes that the peak of what is in use has risen.
    pub(super) fn note_peak(&mut self) {
        if self.would_raise_peak(self.peak_units) {
            let (allocations, allocated_bytes) = self.allocated();
            let (units, reserved, moved_granules) = (self.peak_units, self.reserved.current, self.moved_granules);
            self.has_ebbed = false;
            self.at_peak = AtPeak { units, reserved, moved_granules, allocated_bytes };
            self.unrest.begin_anew(allocations, self.moves);
        }
    }

    /// Has the pool grow as if so many units had been in use; what was the peak before, if it was less.
    pub(crate) fn raise_peak(&mut self, units: u64) -> Option<Peak> {
        let before = Peak { units: self.peak_units, noted: self.at_peak };
        (units > self.peak_units).then(|| {
            self.peak_units = units;
            self.note_peak();
            before
        })
    }

    /// Undoes that, unless there was a higher peak meanwhile.
    pub(crate) fn take_back_peak(&mut self, units: u64, before: Peak) {
        if self.peak_units == units {
            (self.peak_units, self.at_peak) = (before.units, before.noted);
        }
    }

    /// Leaves moves that no request needed out of all that says how much the program makes the pool move.
    pub(super) fn forgive_moves(&mut self, moves: u64, granules: u64) {
        self.moved_granules -= granules;
        self.unrest.forgive(moves);
    }

    /// All large blocks so far, and their bytes.
    pub(super) fn allocated(&self) -> (u64, u64) {
        let each = self.arenas.iter().map(|arena| (arena.census.allocations, arena.census.allocated_bytes));
        each.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1.saturating_add(part.1)))
    }

    /// The least that was in use since this was last asked, arena by arena.
    pub(super) fn take_low_units(&mut self) -> u64 {
        let censuses = self.arenas.iter_mut().map(|arena| &mut arena.census);
        censuses.map(|census| std::mem::replace(&mut census.low_units, census.used_units)).sum()
    }

    /// The bytes of all large blocks so far of an arena, when it was last asked.
    pub(super) fn allocated_bytes_of(&self, arena: u32) -> u64 {
        self.arenas[arena as usize].census.allocated_bytes
    }

    /// What was in use in all arenas when they were last asked.
    pub(super) fn used_units(&self) -> u64 {
        self.arenas.iter().map(|arena| arena.census.used_units).sum()
    }

    /// How many granules may be created before free ones are moved instead. A pool that has moved several times the
    /// memory it holds is spared more of that by a little more memory.
    pub(super) fn growth_granules(&self, config: &PoolConfig) -> u32 {
        let left = self.budget_bytes(config).saturating_sub(self.reserved.current) / self.granule_bytes();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// How many granules may be created before the limit is reached.
    pub(super) fn granules_within(&self, limit: Option<u64>) -> u32 {
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.reserved.current) / self.granule_bytes());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    fn budget_bytes(&self, config: &PoolConfig) -> u64 {
        let more = self.more_for_restless(config.growth_slack_moving)
            + self.more_for_unrest(config.growth_slack_thrashing)
            + self.more_for_waiting(config.growth_slack_waiting);
        ((self.peak_units << UNIT_SHIFT) as f64 * (1.0 + config.growth_slack + more)) as u64
    }

    /// Whether the pool has moved so much that it is given memory for it.
    pub(super) fn is_restless(&self) -> bool {
        self.more_for_restless(f64::INFINITY) > RESTLESS
    }

    /// How much more the pool may hold for the sake of moving less, as a fraction of its peak.
    fn more_for_restless(&self, most: f64) -> f64 {
        let moved = self.moved_granules.saturating_mul(self.granule_bytes());
        let beyond = moved.saturating_sub(self.allocated().1 / ALLOCATED_PER_MOVED);
        let rounds = beyond as f64 / self.reserved.current.max(1) as f64;
        (MORE_PER_ROUND * (rounds - ROUNDS_AT_REST)).clamp(0.0, most)
    }

    /// Bytes held that should go back, since they are more than pieces created in need may add up to.
    pub(super) fn most_to_keep(&self, config: &PoolConfig) -> u64 {
        let settled = self.budget_bytes(config).max(self.at_peak.reserved);
        (settled as f64 * (1.0 + CREEP)) as u64
    }

    /// How many granules the arena may create though others have free ones.
    pub(super) fn own_growth_granules(&self, arena: u32, units: u32) -> u32 {
        let arena = &self.arenas[arena as usize];
        let granule_units = u64::from(self.granule_units);
        let peak = arena.census.peak_units.max(arena.census.used_units + u64::from(units));
        let most = with_spare(peak, granule_units) / granule_units;
        u32::try_from(most.saturating_sub(u64::from(arena.active))).unwrap_or(u32::MAX)
    }

    /// How many granules the arena could give away and still have some to spare.
    pub(super) fn excess_granules(&self, arena: u32) -> u32 {
        let arena = &self.arenas[arena as usize];
        let granule_units = u64::from(self.granule_units);
        let wanted = with_spare(arena.census.recent.most(), granule_units).div_ceil(granule_units);
        u32::try_from(u64::from(arena.active).saturating_sub(wanted)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_that_are_forgiven_earn_no_memory() {
        let more = |forgiven: u64| {
            let mut pages = Pages::<()>::new(1);
            pages.reserved.add(100 << UNIT_SHIFT);
            (pages.moves, pages.moved_granules) = (500, 500);
            pages.forgive_moves(forgiven, forgiven);
            pages.more_for_restless(1.0)
        };
        assert!(more(0) > more(300));
        assert_eq!(more(500), 0.0);
    }

    #[test]
    fn what_an_arena_used_counts_for_a_while() {
        let mut recent = Recent::default();
        recent.note(500, 0);
        recent.note(20, RECENT_MISSES - 1);
        assert_eq!(recent.most(), 500);
        recent.note(30, RECENT_MISSES);
        assert_eq!(recent.most(), 500, "the stretch before counts too");
        recent.note(10, 2 * RECENT_MISSES);
        assert_eq!(recent.most(), 30);
        recent.note(10, 9 * RECENT_MISSES);
        assert_eq!(recent.most(), 10, "what was long ago does not count, though nobody asked since");
    }
}
