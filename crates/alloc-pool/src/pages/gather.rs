//! Free memory that lies in several pieces, brought together where streams wait for each other because of it.
//!
//! A block that lives for long cuts the addresses in two for good, and where it is placed is up to the first moments of a program. No
//! page has to move for the blocks that come and go: each has its place, and waits there for the block before it. In one piece the
//! same memory has room for the next one beside it.

use alloc_core::{MemoryProvider, Stream};

use super::Pages;
use super::serve::Failure;
use super::supply::Locked;
use crate::placement::heap::{Ask, Asker, Tag, TagSet};
use crate::pool::Inner;

/// So many waits are borne first, and so many more for each piece that moved the time before: that takes about as long as they
/// do, or less. If none could move, twice as many as before.
const BORNE: u64 = 64;
const BORNE_PER_PIECE: u64 = 4;

/// Waits of streams for others, in memory that lies in several pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scattered {
    waits: u64,
    borne: u64,
    /// The most units that were free then.
    most_free: u64,
}

impl Default for Scattered {
    fn default() -> Self {
        Self { waits: 0, borne: BORNE, most_free: 0 }
    }
}

impl Scattered {
    /// Notes a wait while so many units are free; whether to gather them now: when about as many are as at any wait of late.
    pub(super) fn note(&mut self, is_scattered: bool, free: u64) -> bool {
        self.most_free = self.most_free.max(free);
        self.waits += u64::from(is_scattered);
        if self.waits / 2 > self.borne {
            // So much is not free any more.
            (self.waits, self.most_free) = (0, 0);
        }
        is_scattered && self.waits > self.borne && free >= self.most_free - self.most_free / 64
    }

    /// Begins anew after so many pieces moved.
    fn begin_anew(&mut self, moved: u64) {
        let borne = if moved == 0 { self.borne.saturating_mul(2) } else { BORNE + BORNE_PER_PIECE * moved };
        *self = Self { borne, ..Self::default() };
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// Moves the arena's free pages together, as for a block of all of them, which `stream` releases at once. If that fails, what is
    /// at hand has to do: whoever needs the call that failed will meet the error.
    pub(super) fn gather(&self, pages: &mut Pages<P::Physical>, arena: u32, (stream, tag): (Stream, Tag)) {
        if self.untouchable_tags(stream) != 0 {
            pages.scattered.waits = 0;
            return;
        }
        let before = (pages.moves, pages.moved_granules);
        let gathered = self.gather_now(pages, arena, (stream, tag));
        pages.forgive_moves(pages.moves - before.0, pages.moved_granules - before.1);
        match (gathered, self.arena(arena)) {
            (Ok(Some(node)), Some(owner)) => {
                owner.lock().heap.release(node);
                pages.scattered.begin_anew(pages.scratch.attached.len() as u64);
            }
            _ => pages.scattered.begin_anew(0),
        }
    }

    /// A used node of all that was free.
    fn gather_now(
        &self,
        pages: &mut Pages<P::Physical>,
        arena: u32,
        (stream, tag): (Stream, Tag),
    ) -> Result<Option<u32>, Failure> {
        let Some(owner) = self.arena(arena).filter(|_| pages.arenas[arena as usize].range.is_some()) else {
            return Ok(None);
        };
        let situation = self.survey(pages, (owner, arena), &[], tag, (TagSet::MAX, 0));
        let mut locked = Locked { own_index: arena, own: owner.lock(), others: Vec::new() };
        locked.own.heap.join_neighbours(TagSet::MAX);
        pages.lending = false;
        pages.begin(0);
        pages.begin_search();
        pages.find_free(&locked.own, arena, Asker { tag, home: stream });
        let found = pages.scratch.found.iter().map(|&handle| pages.handles[handle as usize].granules);
        let units = found.fold(0_u32, u32::saturating_add).saturating_mul(pages.granule_units);
        let ask = Ask { units, align: 1, slack: 0, tag, home: stream };
        if units == 0 {
            return Ok(None);
        }
        let decided = self.decide(pages, &mut locked, ask, (&situation, 0, true));
        drop(locked);
        self.conclude(pages, arena, ask.asker(), decided, &situation).map(Some)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Notes so many waits, the free units being these in turn; how many of them were due.
    fn due(scattered: &mut Scattered, waits: u64, free: &[u64]) -> usize {
        let mut free = free.iter().cycle();
        (0..waits).filter(|_| scattered.note(true, *free.next().unwrap_or(&0))).count()
    }

    #[test]
    fn waits_are_borne_first_and_then_most_is_free() {
        let mut scattered = Scattered::default();
        assert_eq!(due(&mut scattered, BORNE, &[1000]), 0);
        assert!(!scattered.note(true, 900), "more was free before");
        assert!(!scattered.note(false, 1000), "it is in one piece");
        assert!(scattered.note(true, 990));
    }

    #[test]
    fn what_moved_is_paid_for_by_waits() {
        let mut scattered = Scattered::default();
        scattered.begin_anew(50);
        assert_eq!(due(&mut scattered, BORNE + 50 * BORNE_PER_PIECE, &[1000]), 0);
        assert_eq!(due(&mut scattered, 1, &[1000]), 1);
        scattered.begin_anew(0);
        assert_eq!(due(&mut scattered, 2 * (BORNE + 50 * BORNE_PER_PIECE), &[1000]), 0);
        assert_eq!(due(&mut scattered, 1, &[1000]), 1);
    }

    #[test]
    fn what_was_free_long_ago_is_forgotten() {
        let mut scattered = Scattered::default();
        scattered.note(false, 1_000_000);
        assert_eq!(due(&mut scattered, 2 * BORNE, &[1000]), 0);
        assert!(due(&mut scattered, 2 * BORNE, &[1000]) > 0);
    }
}
