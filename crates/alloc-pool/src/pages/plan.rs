//! Where a request goes that no free memory fits: the stretch of addresses whose pages cost least.
//!
//! Everything between two used blocks is looked at: free memory, stale views, unmapped addresses. A granule that is
//! active costs nothing, a stale view whose handle is free costs bookkeeping, all else costs calls to the backend.

use std::cmp::Reverse;
use std::ops::Range;

use super::{NONE, Pages, Place};
use crate::placement::heap::{Ask, Heap, Kind, NIL, Node, Tag};

/// What a granule costs that is not active, in tenths of one mapping.
const STALE_FREE: u64 = 1;
/// The least of all.
const LEAST: u64 = STALE_FREE;
const STALE_FREE_ELSEWHERE_BUSY: u64 = 4;
const UNMAPPED: u64 = 10;
pub(super) const STALE_TAKEN: u64 = 14;
/// The same where such views have become many: their addresses are used rather than fresh ones.
pub(super) const STALE_TAKEN_AMONG_MANY: u64 = 8;
/// A stale view that can't be unmapped before its stream has caught up.
pub(super) const STALE_TAKEN_IN_FLIGHT: u64 = 1000;
/// Active memory that another stream's work in flight uses, if physical memory may grow instead, and if not.
pub(super) const BUSY_BUT_MAY_GROW: u64 = 12;
pub(super) const BUSY: u64 = 2;
/// What can't be had at any price: leaked memory, and such as a stream under capture uses.
const FORBIDDEN: u64 = 1 << 40;
/// A gap too small for any piece of memory that could be moved into it: a new one would have to be created.
const GAP_TOO_SMALL: u64 = 40;

/// What the search found out about the supply of pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supply {
    /// Granules of the smallest handle that is free to be moved, or that may be created within the budget.
    pub(super) smallest_piece: u32,
    /// What it costs for each granule to wait for another stream.
    pub(super) wait: u64,
    /// What it costs to unmap a stale view whose handle is taken.
    pub(super) stale_taken: u64,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// A node at or before `start`, with nothing used between them.
    pub(super) first: u32,
    pub(super) start: u32,
}

/// What a granule of a handle costs where the handle is not active.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// The search that it was found out for.
    search: u64,
    active: Option<Place>,
    granules: u32,
    stale: u64,
}

/// Granules in a row that cost the same each, up to where the next run begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    first: u64,
    cost: u64,
    /// What all before them cost.
    before: u64,
}

/// Adds up runs for granules that come in ascending order, so that a whole gap is priced in one go.
struct Meter<'a> {
    runs: &'a [Run],
    at: usize,
}

impl<'a> Meter<'a> {
    fn new(runs: &'a [Run]) -> Self {
        Self { runs, at: 0 }
    }

    /// What all granules before this one cost together.
    fn cost_before(&mut self, granule: u64) -> u64 {
        while self.runs.get(self.at + 1).is_some_and(|next| next.first <= granule) {
            self.at += 1;
        }
        let run = self.runs.get(self.at).filter(|run| run.first <= granule);
        run.map_or(0, |run| run.before + (granule - run.first) * run.cost)
    }
}

/// The run that begins with a granule, made to.
fn split_runs(runs: &mut Vec<Run>, granule: u64) -> usize {
    let after = runs.partition_point(|run| run.first < granule);
    if runs.get(after).is_none_or(|run| run.first != granule)
        && let Some(before) = after.checked_sub(1)
    {
        runs.insert(after, Run { first: granule, ..runs[before] });
    }
    after
}

/// A run of nodes with nothing used among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    /// Its place among all.
    number: u32,
    first: u32,
    start: u64,
    end: u64,
    /// As many granules as there is active memory in, and no fewer.
    active: u64,
}

/// The gap around a hole, or `None` if an earlier hole of the same gap stands for it.
fn gap_around(heap: &Heap, hole: u32, granule_units: u32) -> Option<Gap> {
    let at = |index: u32| heap.node(index);
    let shift = granule_units.trailing_zeros();
    let active_in = |node: &Node| match node.kind {
        Kind::Free => ((node.end() + u64::from(granule_units) - 1) >> shift) - u64::from(node.start >> shift),
        _ => 0,
    };
    let (mut first, mut active) = (hole, 0);
    while let Some(prev) = at(at(first)?.prev).filter(|node| node.kind != Kind::Used) {
        if prev.kind == Kind::Hole {
            return None;
        }
        active += active_in(prev);
        first = at(first)?.prev;
    }
    let mut last = at(hole)?;
    while let Some(next) = at(last.next).filter(|node| node.kind != Kind::Used) {
        active += active_in(next);
        last = next;
    }
    Some(Gap { number: 0, first, start: u64::from(at(first)?.start), end: last.end(), active })
}

impl<T> Pages<T> {
    /// The cheapest place for the request. Ties go to the smallest gap.
    pub(super) fn cheapest_placement(
        &mut self,
        heap: &Heap,
        arena: u32,
        ask: Ask,
        supply: Supply,
    ) -> Option<Placement> {
        let mut gaps = std::mem::take(&mut self.scratch.gaps);
        gaps.clear();
        heap.for_each_hole(|hole, _| {
            let gap = gap_around(heap, hole, self.granule_units);
            if let Some(gap) = gap.filter(|gap| gap.end - gap.start >= u64::from(ask.units)) {
                gaps.push(Gap { number: gaps.len() as u32, ..gap });
            }
        });
        // Those with most memory first: what all others cost at least is soon more than the best that was found.
        gaps.sort_unstable_by_key(|gap| (Reverse(gap.active), gap.number));
        let need = u64::from(ask.units.div_ceil(self.granule_units));
        let mut best: Option<(u64, u64, u32, Placement)> = None;
        for gap in &gaps {
            let least = need.saturating_sub(gap.active) * LEAST;
            if best.as_ref().is_some_and(|(cost, ..)| least > *cost) {
                break;
            }
            if let Some((cost, start)) = self.cheapest_in(heap, arena, gap, ask, supply) {
                let (size, number) = (gap.end - gap.start, gap.number);
                if best.as_ref().is_none_or(|best| (cost, size, number) < (best.0, best.1, best.2)) {
                    best = Some((cost, size, number, Placement { first: gap.first, start }));
                }
            }
        }
        self.scratch.gaps = gaps;
        best.map(|(.., placement)| placement)
    }

    fn cheapest_in(&mut self, heap: &Heap, arena: u32, gap: &Gap, ask: Ask, supply: Supply) -> Option<(u64, u32)> {
        let granule = u64::from(self.granule_units);
        // A power of two: this is done for every run of every gap, and a division takes as long as all the rest.
        let shift = granule.trailing_zeros();
        let ceiling = |units: u64| (units + granule - 1) >> shift;
        let (units, align) = (u64::from(ask.units), ask.align);
        let mapped = self.arenas[arena as usize].views.len() as u64;
        let low = gap.start >> shift;
        // Past the last mapped granule all addresses are alike, so one placement there is enough.
        let high = ceiling(gap.end).min(mapped.max(low) + ceiling(units + align) + 1);
        let mut runs = std::mem::take(&mut self.scratch.runs);
        self.find_runs((arena, ask.tag), low..high, supply, &mut runs);
        self.add_waits(heap, gap, ask, supply, &mut runs, high);
        let mut sum = 0;
        for index in 0..runs.len() {
            let end = runs.get(index + 1).map_or(high, |next| next.first);
            runs[index].before = sum;
            sum += (end - runs[index].first) * runs[index].cost;
        }
        let mut best: Option<(u64, u64)> = None;
        let mut consider = |start: u64, [head, tail]: &mut [Meter<'_>; 2]| {
            let end = start + units;
            if start < gap.start || end > gap.end || ceiling(end) > high {
                return;
            }
            let cost = tail.cost_before(ceiling(end)) - head.cost_before(start >> shift);
            if cost < FORBIDDEN && best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, start));
            }
        };
        let mut earliest = [Meter::new(&runs), Meter::new(&runs)];
        let mut latest = [Meter::new(&runs), Meter::new(&runs)];
        let mut consider_at = |first: u64, last: u64| {
            consider(heap.aligned((first * granule).max(gap.start), align), &mut earliest);
            if let Some(start) = ((last + 1) * granule).min(gap.end).checked_sub(units) {
                let aligned = heap.aligned(start, align);
                let start = if aligned == start { Some(start) } else { aligned.checked_sub(align) };
                start.into_iter().for_each(|start| consider(start, &mut latest));
            }
        };
        if align > granule {
            (low..high).for_each(|index| consider_at(index, index));
        } else {
            // As a placement slides along, its cost changes evenly until an end of it meets the end of a run, so the
            // cheapest one starts or ends with a run.
            for (index, run) in runs.iter().enumerate() {
                consider_at(run.first, runs.get(index + 1).map_or(high, |next| next.first) - 1);
            }
        }
        self.scratch.runs = runs;
        best.and_then(|(cost, start)| Some((cost, u32::try_from(start).ok()?)))
    }

    /// What a granule of the handle's stale views costs. Found out once for each search: handles have many views, and
    /// are far apart in memory.
    fn price(&self, prices: &mut [Price], handle: u32, tag: Tag, supply: Supply) -> Price {
        let known = &mut prices[handle as usize];
        if known.search != self.search {
            let at = &self.handles[handle as usize];
            let stale = match at.active {
                _ if at.leaked => FORBIDDEN,
                None if self.is_out_of_reach(handle, tag) => supply.stale_taken,
                None => STALE_FREE,
                Some(_) if at.found.search != self.search => supply.stale_taken,
                Some(_) if at.found.busy => STALE_FREE_ELSEWHERE_BUSY,
                Some(_) => STALE_FREE,
            };
            *known = Price { search: self.search, active: at.active, granules: at.granules, stale };
        }
        *known
    }

    /// What the granules of a range cost.
    fn find_runs(&mut self, (arena, tag): (u32, Tag), range: Range<u64>, supply: Supply, runs: &mut Vec<Run>) {
        runs.clear();
        let mut prices = std::mem::take(&mut self.scratch.prices);
        // No search has this number.
        prices.resize(self.handles.len(), Price { search: 0, active: None, granules: 0, stale: 0 });
        let views = &self.arenas[arena as usize];
        let mapped = views.views.len() as u64;
        let (mut granule, high) = (range.start, range.end);
        while granule < high {
            let view = views.view(granule as u32);
            let (cost, end) = if view.handle == NONE {
                let rest = views.views.get(granule as usize..mapped.min(high) as usize).unwrap_or_default();
                let next = rest.iter().position(|view| view.handle != NONE);
                let end = next.map_or(high, |length| granule + length as u64);
                let open = end >= mapped;
                (if open || end - granule >= u64::from(supply.smallest_piece) { UNMAPPED } else { GAP_TOO_SMALL }, end)
            } else {
                let price = self.price(&mut prices, view.handle, tag, supply);
                let here = Place { arena, granule: granule as u32 - view.offset };
                let cost = if price.active == Some(here) { 0 } else { price.stale };
                (cost, u64::from(here.granule + price.granules).min(high))
            };
            if runs.last().is_none_or(|last| last.cost != cost) {
                runs.push(Run { first: granule, cost, before: 0 });
            }
            granule = end;
        }
        self.scratch.prices = prices;
    }

    /// Adds what it costs to wait for the streams that still use free memory in the gap.
    fn add_waits(&self, heap: &Heap, gap: &Gap, ask: Ask, supply: Supply, runs: &mut Vec<Run>, high: u64) {
        let granule = u64::from(self.granule_units);
        let mut index = gap.first;
        while let Some(node) = heap.node(index).filter(|node| node.kind != Kind::Used) {
            let in_the_way = if node.kind == Kind::Free { heap.in_the_way(node, ask.asker()) } else { 0 };
            let (from, to) = (u64::from(node.start) / granule, node.end().div_ceil(granule).min(high));
            if in_the_way != 0 && from < to {
                let wait = if in_the_way & self.untouchable == 0 { supply.wait } else { FORBIDDEN };
                let (first, last) = (split_runs(runs, from), if to < high { split_runs(runs, to) } else { runs.len() });
                runs.iter_mut().take(last).skip(first).for_each(|run| run.cost += wait);
            }
            index = node.next;
        }
    }

    /// A place for a segment of `granules`: addresses of segments are their own, so any offsets will do that leave a
    /// gap to the neighbours, so that free memory of two segments never merges.
    pub(super) fn segment_placement(&self, arena: u32, granules: u32) -> Option<Place> {
        let views = &self.arenas[arena as usize];
        let mut start = 0u32;
        for (index, view) in views.views.iter().enumerate() {
            if index as u32 >= start.checked_add(granules)?.checked_add(1)? {
                break;
            }
            if view.handle != NONE {
                start = index as u32 + 2;
            }
        }
        (start.checked_add(granules)? < views.granules).then_some(Place { arena, granule: start })
    }
}

/// A node of any heap to start a walk from: the one at offset 0, which splits and merges leave in place.
pub(super) const ANYWHERE: u32 = 0;
const _: () = assert!(ANYWHERE != NIL);
