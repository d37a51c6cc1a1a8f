//! The figures, one by one.

use crate::StreamSet;
use crate::conformance::Expected::{AtLeast, Exactly};

use super::{Broken, Trial, Verdict};

pub(in crate::conformance) fn statistics(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if !trial.options.statistics {
        return Ok(Verdict::NotPromised("the options say that no figures are kept"));
    }
    let mut rng = trial.rng(0);
    let before = trial.allocator.statistics();
    let (mut held, mut count, mut total) = (Vec::new(), 0, 0);
    for _ in 0..200 * trial.options.effort {
        let size = rng.size(trial.options.max_block);
        if trial.live_bytes() + size <= trial.options.max_live {
            held.push(trial.allocate(trial.layout(size)?, trial.stream(rng.index(64)))?);
            (count, total) = (count + 1, total + size);
        }
        if rng.percent(40) && !held.is_empty() {
            let held = held.swap_remove(rng.index(held.len()));
            trial.release(held, held.stream, StreamSet::EMPTY)?;
        }
        trial.check_figures()?;
        let now = trial.allocator.statistics();
        trial.expect("requested.count", now.requested.count, Exactly(before.requested.count + count))?;
        trial.expect("requested.total", now.requested.total, Exactly(before.requested.total + total))?;
        if now.reserved.current > 0 {
            trial.expect("reserved.current", now.reserved.current, AtLeast(now.in_use.current))?;
            trial.expect("reserved.peak", now.reserved.peak, AtLeast(now.reserved.current))?;
        }
    }
    for held in held.drain(..) {
        trial.release(held, held.stream, StreamSet::EMPTY)?;
    }
    peak(trial)?;
    Ok(Verdict::Kept)
}

/// The peak stays when what made it is gone. Large blocks, whose peak is exact.
fn peak(trial: &Trial<'_>) -> Result<(), Broken> {
    let size = trial.options.max_block;
    let count = (trial.options.max_live / size).clamp(1, 8);
    let held =
        (0..count).map(|_| trial.allocate(trial.layout(size)?, trial.stream(0))).collect::<Result<Vec<_>, Broken>>()?;
    let full = trial.allocator.statistics();
    for held in held {
        trial.release(held, held.stream, StreamSet::EMPTY)?;
    }
    let empty = trial.allocator.statistics();
    trial.expect("requested.peak", full.requested.peak, AtLeast(count * size))?;
    trial.expect("in_use.peak", full.in_use.peak, AtLeast(count * size))?;
    trial.expect("requested.peak", empty.requested.peak, Exactly(full.requested.peak))?;
    trial.expect("in_use.peak", empty.in_use.peak, Exactly(full.in_use.peak))
}
