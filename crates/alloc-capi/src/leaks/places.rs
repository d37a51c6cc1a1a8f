//! Living blocks by the places in the program that they come from.

use std::cmp::Reverse;
use std::fmt;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::table::Amount;
use super::traced::{Origin, Stack, names};

/// More places than this are summed up, and not looked up.
const SHOWN: usize = 30;
/// More calls of a place than this are only counted.
const CALLS_SHOWN: usize = 40;

#[derive(Debug)]
struct Place {
    blocks: Amount,
    /// How long ago the first of them was allocated.
    oldest: Duration,
    calls: Vec<String>,
}

/// The places with the most bytes, and what there is besides.
#[derive(Debug)]
pub(super) struct Places {
    shown: Vec<Place>,
    /// Other places, and their blocks.
    others: (usize, Amount),
    /// Blocks whose place is not known: those of private pools, whose segments alone the allocator knows, and such as another
    /// thread has freed since they were seen.
    unknown: usize,
}

impl Places {
    /// Of so many blocks, those that something is known of.
    pub(super) fn new(origins: &[Origin], blocks: usize) -> Self {
        let now = Instant::now();
        let mut by_stack: FxHashMap<&Stack, (Amount, Duration)> = FxHashMap::default();
        for origin in origins {
            let (amount, oldest) = by_stack.entry(&origin.stack).or_default();
            amount.add(Amount { bytes: origin.block.size(), count: 1 });
            *oldest = now.saturating_duration_since(origin.since).max(*oldest);
        }
        let mut sorted: Vec<_> = by_stack.into_iter().collect();
        sorted.sort_by_key(|(stack, (amount, oldest))| Reverse((*amount, *oldest, *stack)));
        let others = sorted.split_off(sorted.len().min(SHOWN));
        let mut sum = Amount::default();
        others.iter().for_each(|(_, (amount, _))| sum.add(*amount));
        let names = names(sorted.iter().map(|(stack, _)| *stack));
        let shown = sorted.iter().map(|(stack, (blocks, oldest))| {
            let calls = stack.iter().filter_map(|address| names.get(address)).flatten().cloned().collect();
            Place { blocks: *blocks, oldest: *oldest, calls: from_the_border(calls) }
        });
        Self { shown: shown.collect(), others: (others.len(), sum), unknown: blocks.saturating_sub(origins.len()) }
    }
}

/// The calls from the function of the C interface on; all of them if there is none.
fn from_the_border(mut calls: Vec<String>) -> Vec<String> {
    let border = calls.iter().position(|call| call.starts_with("devmem_")).unwrap_or(0);
    calls.split_off(border)
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.shown {
            write!(f, "\n{}, the oldest {:.3} s old", place.blocks, place.oldest.as_secs_f64())?;
            for call in place.calls.iter().take(CALLS_SHOWN) {
                write!(f, "\n    {call}")?;
            }
            if let Some(more) = place.calls.len().checked_sub(CALLS_SHOWN).filter(|more| *more > 0) {
                write!(f, "\n    ({more} more calls)")?;
            }
        }
        if self.others.0 > 0 {
            write!(f, "\n{} from {} other places", self.others.1, self.others.0)?;
        }
        if self.unknown > 0 {
            write!(f, "\n{} more, of private pools or freed meanwhile", self.unknown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc_core::{Address, Block, BlockId};

    use super::*;

    fn origin(size: u64, stack: &[usize]) -> Origin {
        let block = Block::from_parts(Address::new(512), size, BlockId::from_bits(1));
        Origin { block, stack: stack.into(), since: Instant::now() }
    }

    #[test]
    fn calls_of_this_library_are_left_out() {
        let calls = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = from_the_border(calls(&["device_memory::x (devmem_.rs:3)", "devmem_allocate (x.rs:1)", "main"]));
        assert_eq!(found, ["devmem_allocate (x.rs:1)", "main"]);
        assert_eq!(from_the_border(calls(&["a", "main"])), ["a", "main"]);
        assert!(from_the_border(Vec::new()).is_empty());
    }

    #[test]
    fn places_with_the_most_bytes_come_first_and_are_bounded() {
        // Nothing has these addresses.
        let deep: Vec<usize> = (1..=CALLS_SHOWN + 2).collect();
        let mut origins = vec![origin(5000, &deep), origin(300, &[7]), origin(6000, &[7])];
        origins.extend((0..SHOWN).map(|number| origin(number as u64 + 1, &[100 + number])));
        let text = Places::new(&origins, origins.len() + 2).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("2 blocks of 6.15 KiB, the oldest 0."), "{text}");
        assert!(lines[3].starts_with("1 block of 4.88 KiB, the oldest 0."), "{text}");
        assert_eq!((lines[2], lines[4]), ("    0x7", "    0x1"), "{text}");
        assert_eq!(lines[3 + CALLS_SHOWN + 1], "    (2 more calls)", "{text}");
        assert_eq!(lines.len(), 1 + 2 * (SHOWN - 1) + 1 + CALLS_SHOWN + 1 + 2, "{text}");
        assert!(
            text.ends_with("\n2 blocks of 3 bytes from 2 other places\n2 more, of private pools or freed meanwhile")
        );
    }
}
