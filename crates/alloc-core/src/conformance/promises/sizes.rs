//! Sizes and alignments, from nothing to more than there is.

use crate::conformance::Expected;
use crate::conformance::rng::Rng;
use crate::{AllocError, Layout, ProviderErrorKind, StreamSet};

use super::{Breach, Broken, Held, Trial, Verdict};

pub(in crate::conformance) fn sizes(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let mut held = Vec::new();
    for power in 0..=trial.options.max_block.max(1).ilog2() {
        let middle = 1_u64 << power;
        for size in [middle - 1, middle, middle + 1] {
            let layout = trial.layout(size.min(trial.options.max_block))?;
            make_room(trial, &mut held, &mut rng, layout.size())?;
            held.push(trial.take(layout, trial.stream(held.len()))?);
        }
        trial.check_figures()?;
    }
    trial.give_all(held)?;
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn alignments(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let mut held = Vec::new();
    let mut align = 1;
    while align <= trial.options.max_align {
        for size in [1, align - 1, align, align + 1, 3 * align + 5, 0] {
            let layout = trial.aligned(size.min(trial.options.max_block), align)?;
            make_room(trial, &mut held, &mut rng, layout.size())?;
            // A byte in between, lest every block begins where an aligned one ended.
            held.push(trial.take(trial.aligned(1, 1)?, trial.stream(0))?);
            held.push(trial.take(layout, trial.stream(0))?);
        }
        align *= 2;
    }
    trial.check_figures()?;
    while !held.is_empty() {
        trial.give(held.swap_remove(rng.index(held.len())))?;
    }
    Ok(Verdict::Kept)
}

fn make_room(trial: &Trial<'_>, held: &mut Vec<Held>, rng: &mut Rng, bytes: u64) -> Result<(), Broken> {
    while !held.is_empty() && trial.live_bytes() + bytes > trial.options.max_live {
        trial.give(held.swap_remove(rng.index(held.len())))?;
    }
    Ok(())
}

pub(in crate::conformance) fn zero_bytes(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let before = trial.allocator.statistics();
    let (mut empty, mut sized) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for number in 0..200 {
            let stream = trial.stream(number);
            empty.push(trial.allocate(trial.aligned(0, 1 << (number % 13))?, stream)?);
            if number % 4 == 0 {
                sized.push(trial.take(trial.layout(1 + 300 * number as u64)?, stream)?);
            }
        }
        trial.check_figures()?;
        // Every second one, and all of them in the last round.
        let mut kept = Vec::new();
        for (number, held) in empty.drain(..).enumerate() {
            if round < 2 && number % 2 == 0 {
                kept.push(held);
            } else {
                trial.release(held, held.stream, StreamSet::EMPTY)?;
            }
        }
        empty = kept;
        trial.give_all(sized.drain(..))?;
    }
    if trial.options.statistics {
        // What no bytes cost can be seen only while nothing else is alive.
        let many =
            (0..1000).map(|_| trial.allocate(trial.layout(0)?, trial.stream(0))).collect::<Result<Vec<_>, _>>()?;
        let requested = trial.allocator.statistics().requested.current;
        trial.expect("requested.current", requested, Expected::Exactly(before.requested.current))?;
        for held in many {
            trial.release(held, held.stream, StreamSet::EMPTY)?;
        }
    }
    Ok(Verdict::Kept)
}

/// More than any device has.
const PEBIBYTE: u64 = 1 << 50;

pub(in crate::conformance) fn impossible_sizes(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let neighbour = trial.take(trial.layout(10_000)?, trial.stream(0))?;
    let before = trial.allocator.statistics();
    for align in [1, 256, 4096, 2 << 20, 1 << 30] {
        let most = i64::MAX as u64 - (align - 1);
        let near = |limit: u64| [limit - 4097, limit - 513, limit - 1, limit];
        let powers = (50..63).map(|power| 1 << power).flat_map(|size: u64| [size - 1, size, size + 1]);
        for size in powers.chain(near(most)).chain([PEBIBYTE * 3 + 7]).filter(|size| *size <= most) {
            // One byte less than a pebibyte is as impossible.
            refuse(trial, trial.aligned(size, align)?)?;
        }
    }
    // Alignments that no address but 0 has, or nearly so: served rightly or refused, and never wrapped.
    for power in 40..63 {
        for size in [0, 1, 4096] {
            let layout = trial.aligned(size, 1 << power)?;
            match trial.try_allocate(layout, trial.stream(0))? {
                Ok(held) => {
                    trial.write(&held, trial.stream(0))?;
                    trial.give(held)?;
                }
                Err(error) => check_error(trial, layout, error)?,
            }
        }
    }
    if trial.options.statistics {
        let now = trial.allocator.statistics();
        trial.expect("in_use.current", now.in_use.current, Expected::Exactly(before.in_use.current))?;
    }
    trial.check_figures()?;
    trial.give(trial.take(trial.layout(10_000)?, trial.stream(0))?)?;
    trial.give(neighbour)?;
    Ok(Verdict::Kept)
}

fn refuse(trial: &Trial<'_>, layout: Layout) -> Result<(), Broken> {
    match trial.allocator.allocate(layout, trial.stream(0)) {
        Ok(block) => Err(trial.broken(Breach::Impossible { layout, block })),
        Err(error) => check_error(trial, layout, error),
    }
}

/// Checks that an error for a request that is too large says so.
pub(super) fn check_error(trial: &Trial<'_>, layout: Layout, error: AllocError) -> Result<(), Broken> {
    let device = trial.allocator.device();
    let untrue = match &error {
        AllocError::TooLarge { device: said, .. } | AllocError::LimitReached { device: said, .. }
            if *said != device =>
        {
            Some("the device is another")
        }
        AllocError::OutOfMemory(out) if out.device != device => Some("the device is another"),
        AllocError::TooLarge { requested, .. } | AllocError::LimitReached { requested, .. }
            if *requested != layout.size() =>
        {
            Some("another size was asked for")
        }
        AllocError::OutOfMemory(out) if out.requested != layout.size() => Some("another size was asked for"),
        AllocError::TooLarge { maximum, .. } if *maximum >= layout.size() && layout.align() <= 4096 => {
            Some("that is not above the maximum")
        }
        AllocError::LimitReached { requested, in_use, limit, .. } if in_use.saturating_add(*requested) <= *limit => {
            Some("that is within the limit")
        }
        AllocError::OutOfMemory(out) if out.largest_free >= layout.size() && layout.align() <= 256 => {
            Some("a block that large is said to be free")
        }
        AllocError::TooLarge { .. } => None,
        AllocError::Layout(_) => Some("the layout is fine"),
        AllocError::Provider(provider)
            if provider.kind == ProviderErrorKind::Unsupported && layout.align() > trial.options.max_align =>
        {
            None
        }
        other if other.is_out_of_memory() => None,
        _ => Some("it is a matter of memory"),
    };
    match untrue {
        Some(untrue) => Err(trial.broken(Breach::WrongError { layout, error, untrue })),
        None => Ok(()),
    }
}
