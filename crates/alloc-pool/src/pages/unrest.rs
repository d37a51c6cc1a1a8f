//! Pools that keep moving pieces, and the memory that they are given for it.
//!
//! Moving costs time and growing costs memory, and which of them a program wants less shows only as it runs. Two things are
//! looked for. A pool *thrashes* if what it moves says that it will never come to rest; from then on it is given what takes it
//! there. A pool *toils* if moves take a good part of the time of any program, whatever its rounds; it is given a little for each
//! piece that moves while that is so, until it is not.

use super::Pages;
use super::budget::HARDLY_ANYTHING;

/// A pool thrashes if long after its peak was reached it has moved more than one byte in so many allocated, and that by
/// so many times all of its memory.
const ALLOCATED_PER_MOVED_THRASHING: u64 = 64;
const ROUNDS_BEFORE_THRASHING: u64 = 2;

/// So does one that for so many stretches of so many blocks has moved more than one piece in so many of them: a piece
/// takes as long to move as a thousand blocks to allocate. A stretch without makes up for one that had more, and all
/// begins anew when less than this part of the peak is in use.
#[derive(Clone, Copy, Debug)]
struct Bearable {
    blocks_per_moved_piece: u64,
    stretch: u64,
    stretches: u64,
    /// A stretch with several times as much counts as several, but as no more than so many.
    most_for_one: u64,
    ebb: f64,
}

/// For any program, and for one whose blocks come and go while about as many live: that one does nothing over and over
/// that could be learnt, so that what it moves now says what it will go on moving.
const BEARABLE: [Bearable; 2] = [
    Bearable {
        blocks_per_moved_piece: 320,
        stretch: 32768,
        stretches: 3,
        most_for_one: 1,
        ebb: 1.0 / HARDLY_ANYTHING as f64,
    },
    Bearable { blocks_per_moved_piece: 2000, stretch: 4096, stretches: 3, most_for_one: 1, ebb: 2.0 / 3.0 },
];

/// From then on it is given more for each time that it moves all of its pieces, but for one piece in so many blocks.
const MORE_PER_ROUND_OF_THRASHING: f64 = 2.0;
const BLOCKS_PER_BORNE_PIECE: u64 = 16000;

/// With more moves than this, other allocators would be done sooner, so rounds that end don't excuse it, nor does any ebb.
const TOIL: Bearable =
    Bearable { blocks_per_moved_piece: 100, stretch: 2048, stretches: 12, most_for_one: 2, ebb: 0.0 };
/// What a pool is given for each time that it moves all of its pieces while it toils. More would overshoot: the first pages let it
/// do without most moves.
const MORE_PER_ROUND_OF_TOIL: f64 = 0.2;

/// For how long pieces have been moved all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Lasting {
    /// What had happened when this stretch of time began.
    allocations: u64,
    moves: u64,
    /// Stretches full of moves, less those that were not.
    score: u64,
}

impl Lasting {
    fn begin(allocations: u64, moves: u64) -> Self {
        Self { allocations, moves, score: 0 }
    }

    /// Whether pieces have been moved for longer than is bearable, with what has happened by now.
    fn lasts(&mut self, bearable: &Bearable, allocations: u64, moves: u64) -> bool {
        let blocks = allocations.saturating_sub(self.allocations);
        if blocks >= bearable.stretch {
            let moved = moves.saturating_sub(self.moves);
            let borne = blocks / bearable.blocks_per_moved_piece;
            let score = if moved > borne {
                self.score + (moved / borne.max(1)).min(bearable.most_for_one)
            } else {
                self.score.saturating_sub(blocks / bearable.stretch)
            };
            *self = Self { allocations, moves, score: score.min(bearable.stretches) };
        }
        self.score >= bearable.stretches
    }
}

/// What had happened when the pool was found to thrash.
#[derive(Clone, Copy, Debug)]
struct Thrashing {
    moves: u64,
    allocations: u64,
}

/// What a pool that toils has moved meanwhile.
#[derive(Clone, Copy, Debug, Default)]
struct Toil {
    lasting: Lasting,
    /// Moves when it was last looked at.
    moves: u64,
    /// Moves while it toiled.
    rewarded: u64,
}

impl Toil {
    fn note(&mut self, allocations: u64, moves: u64) {
        if self.lasting.lasts(&TOIL, allocations, moves) {
            self.rewarded += moves.saturating_sub(self.moves);
        }
        self.moves = moves;
    }
}

/// How a pool comes to rest, or does not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unrest {
    lasting: [Lasting; 2],
    /// Since when the pool thrashes, if it does.
    thrashing: Option<Thrashing>,
    toil: Toil,
}

impl Unrest {
    /// Looks at what comes from now on only, as what is in use has risen to a new peak. What was given stays given.
    pub(super) fn begin_anew(&mut self, allocations: u64, moves: u64) {
        self.lasting = [Lasting::begin(allocations, moves); 2];
        self.toil.lasting = Lasting::begin(allocations, moves);
    }

    /// Leaves out so many moves that were just made.
    pub(super) fn forgive(&mut self, moves: u64) {
        self.lasting.iter_mut().for_each(|lasting| lasting.moves += moves);
        self.thrashing.iter_mut().for_each(|since| since.moves += moves);
        self.toil.lasting.moves += moves;
        self.toil.moves += moves;
    }
}

impl<T> Pages<T> {
    /// Finds out whether the pool has come to thrash or to toil.
    pub(super) fn note_unrest(&mut self) {
        let (allocations, allocated) = self.allocated();
        self.unrest.toil.note(allocations, self.moves);
        if self.unrest.thrashing.is_some() {
            return;
        }
        let low = self.take_low_units();
        let mut lasts = false;
        for (lasting, bearable) in self.unrest.lasting.iter_mut().zip(&BEARABLE) {
            if (low as f64) < self.peak_units as f64 * bearable.ebb {
                *lasting = Lasting::begin(allocations, self.moves);
            }
            lasts |= lasting.lasts(bearable, allocations, self.moves);
        }
        let moved = (self.moved_granules - self.at_peak.moved_granules).saturating_mul(self.granule_bytes());
        let bearable = allocated.saturating_sub(self.at_peak.allocated_bytes) / ALLOCATED_PER_MOVED_THRASHING;
        let has_moved_all = moved > bearable.saturating_add(ROUNDS_BEFORE_THRASHING * self.reserved.current);
        if lasts || has_moved_all {
            self.unrest.thrashing = Some(Thrashing { moves: self.moves, allocations });
        }
    }

    /// How much more the pool may hold for the sake of moving less, as a fraction of its peak, if it thrashes or toils.
    pub(super) fn more_for_unrest(&self, most: f64) -> f64 {
        let pieces = (self.handles.len() - self.vacant.len()).max(1) as f64;
        let for_toil = MORE_PER_ROUND_OF_TOIL * self.unrest.toil.rewarded as f64 / pieces;
        let for_thrashing = self.unrest.thrashing.map_or(0.0, |since| {
            let blocks = self.allocated().0.saturating_sub(since.allocations);
            let beyond = (self.moves - since.moves).saturating_sub(blocks / BLOCKS_PER_BORNE_PIECE);
            MORE_PER_ROUND_OF_THRASHING * beyond as f64 / pieces
        });
        for_thrashing.max(for_toil).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many blocks a pool that moves a piece every so many blocks is found restless for too long.
    fn lasts_after(bearable: &Bearable, blocks_per_piece: impl Fn(u64) -> u64) -> Option<u64> {
        let (mut lasting, mut moves) = (Lasting::default(), 0);
        (1..1_000_000).find(|&blocks| {
            let moved = blocks % blocks_per_piece(blocks) == 0;
            moves += u64::from(moved);
            moved && lasting.lasts(bearable, blocks, moves)
        })
    }

    #[test]
    fn a_pool_that_moves_pieces_all_the_time_is_in_unrest() {
        for bearable in BEARABLE.iter().chain([&TOIL]) {
            let borne = bearable.blocks_per_moved_piece;
            for times in 1..=3 {
                let limit = bearable.stretch * bearable.stretches.div_ceil(bearable.most_for_one.min(times));
                let found = lasts_after(bearable, |_| borne * 9 / 10 / times);
                assert!(
                    found.is_some_and(|blocks| (limit..limit + bearable.stretch).contains(&blocks)),
                    "{bearable:?}"
                );
            }
            assert_eq!(lasts_after(bearable, |_| borne * 5 / 4), None, "one in so many is borne");
        }
    }

    #[test]
    fn a_pool_that_comes_to_rest_in_between_is_not() {
        for bearable in BEARABLE.iter().chain([&TOIL]) {
            let busy_then_still =
                |blocks: u64| if blocks % (8 * bearable.stretch) < bearable.stretch { 50 } else { 5_000 };
            assert_eq!(lasts_after(bearable, busy_then_still), None, "{bearable:?}");
        }
    }

    #[test]
    fn toil_is_rewarded_while_it_lasts() {
        let mut toil = Toil::default();
        let (mut allocations, mut moves) = (0, 0);
        let mut work = |toil: &mut Toil, stretches: u64, moved: u64| {
            let before = toil.rewarded;
            for _ in 0..stretches {
                (allocations, moves) = (allocations + TOIL.stretch, moves + moved);
                toil.note(allocations, moves);
            }
            toil.rewarded - before
        };
        let much = TOIL.stretch / TOIL.blocks_per_moved_piece + 1;
        assert_eq!(work(&mut toil, TOIL.stretches - 1, much), 0, "it is borne for a while");
        assert_eq!(work(&mut toil, 10 * TOIL.stretches, much), 10 * TOIL.stretches * much);
        assert_eq!(work(&mut toil, 10, much - 2), 0, "a stretch with less ends it at once");
        assert_eq!(work(&mut toil, 9, much), 0, "and has to be made up for");
        assert_eq!(work(&mut toil, 1, much), much);
    }

    #[test]
    fn a_pool_that_toils_is_given_a_little_for_each_piece() {
        let mut pages = Pages::<()>::new(1);
        assert_eq!(pages.more_for_unrest(1.0), 0.0);
        pages.unrest.toil.rewarded = 3;
        assert_eq!((pages.more_for_unrest(1.0), pages.more_for_unrest(0.05)), (3.0 * MORE_PER_ROUND_OF_TOIL, 0.05));
        pages.unrest.begin_anew(0, 0);
        assert_eq!(pages.more_for_unrest(1.0), 3.0 * MORE_PER_ROUND_OF_TOIL, "which it keeps at a new peak");
    }

    #[test]
    fn moves_that_are_forgiven_are_no_toil() {
        let mut unrest = Unrest::default();
        for stretch in 1..=2 * TOIL.stretches {
            unrest.forgive(100);
            unrest.toil.note(stretch * TOIL.stretch, stretch * 100);
            assert_eq!(unrest.toil.lasting.score, 0);
        }
        unrest.toil.lasting.score = TOIL.stretches;
        unrest.forgive(7);
        unrest.toil.note(2 * TOIL.stretches * TOIL.stretch, 2 * TOIL.stretches * 100 + 7);
        assert_eq!(unrest.toil.rewarded, 0, "though it toils");
    }
}
