//! Memory that crosses streams.

use crate::{Stream, StreamSet};

use super::{Broken, Held, Trial, Verdict};

/// Every ordered pair of two different streams.
fn pairs(trial: &Trial<'_>) -> Vec<(Stream, Stream)> {
    let streams = &trial.options.streams;
    streams
        .iter()
        .flat_map(|one| streams.iter().map(move |other| (*one, *other)))
        .filter(|(one, other)| one != other)
        .collect()
}

const ONE_STREAM: Verdict = Verdict::NotPromised("the options name fewer than two streams");

pub(in crate::conformance) fn cross(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let pairs = pairs(trial);
    if pairs.is_empty() {
        return Ok(ONE_STREAM);
    }
    let mut rng = trial.rng(0);
    let mut held: Vec<(Held, Stream)> = Vec::new();
    for _ in 0..300 * trial.options.effort {
        let (born, used) = pairs[rng.index(pairs.len())];
        let size = rng.size(trial.options.max_block);
        while held.len() > 40 || (!held.is_empty() && trial.live_bytes() + size > trial.options.max_live) {
            let (held, used) = held.swap_remove(rng.index(held.len()));
            trial.verify(&held, used)?;
            match rng.below(3) {
                // The stream of birth is known to the allocator, and need not be named.
                0 => trial.release(held, used, StreamSet::EMPTY)?,
                1 => trial.release(held, held.stream, &StreamSet::from_iter([used]))?,
                _ => trial.release(held, used, &trial.options.streams.iter().copied().collect())?,
            }
        }
        let one = trial.take(trial.layout(size)?, born)?;
        // The other stream waits for nothing.
        trial.synchronize(born)?;
        held.push((one, used));
    }
    for (held, used) in held {
        trial.verify(&held, used)?;
        trial.release(held, used, StreamSet::EMPTY)?;
    }
    trial.check_figures()?;
    Ok(Verdict::Kept)
}

/// Sizes large enough for a fill of them to take a while, and small enough for a cache.
fn sizes(trial: &Trial<'_>) -> [u64; 3] {
    [4096, 256 << 10, 4 << 20].map(|size: u64| size.min(trial.options.max_block))
}

/// A fill is queued on one stream, and the block released there at once. Whoever gets the memory on another stream
/// must not see the fill arrive late.
pub(in crate::conformance) fn order(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if let Some(verdict) = needs_contents_and_streams(trial) {
        return Ok(verdict);
    }
    for (first, second) in pairs(trial) {
        for size in sizes(trial) {
            let layout = trial.layout(size)?;
            let blocks = (0..8).map(|_| trial.allocate(layout, first)).collect::<Result<Vec<_>, _>>()?;
            for held in blocks {
                trial.fill(&held, 0xA5, first)?;
                trial.fill(&held, 0x5A, first)?;
                trial.release(held, first, StreamSet::EMPTY)?;
            }
            let reused = (0..8).map(|_| trial.take(layout, second)).collect::<Result<Vec<_>, _>>()?;
            trial.synchronize(first)?;
            trial.give_all(reused)?;
        }
    }
    Ok(Verdict::Kept)
}

/// A fill is queued on a stream that the release names. Not even the block's own stream may reuse the memory before
/// it.
pub(in crate::conformance) fn uses(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if let Some(verdict) = needs_contents_and_streams(trial) {
        return Ok(verdict);
    }
    for (own, foreign) in pairs(trial) {
        for size in sizes(trial) {
            let layout = trial.layout(size)?;
            for named in [true, false] {
                let blocks = (0..6).map(|_| trial.allocate(layout, own)).collect::<Result<Vec<_>, _>>()?;
                trial.synchronize(own)?;
                for held in blocks {
                    trial.fill(&held, 0xA5, foreign)?;
                    trial.fill(&held, 0x5A, foreign)?;
                    if named {
                        trial.release(held, own, &StreamSet::from_iter([foreign]))?;
                    } else {
                        trial.release(held, foreign, StreamSet::EMPTY)?;
                    }
                }
                let reused = (0..6).map(|_| trial.take(layout, own)).collect::<Result<Vec<_>, _>>()?;
                trial.synchronize(foreign)?;
                trial.give_all(reused)?;
            }
        }
    }
    Ok(Verdict::Kept)
}

fn needs_contents_and_streams(trial: &Trial<'_>) -> Option<Verdict> {
    if !trial.options.contents {
        return Some(Verdict::NotPromised("the options say that there are no contents"));
    }
    pairs(trial).is_empty().then_some(ONE_STREAM)
}

pub(in crate::conformance) fn retired(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let [.., stays, goes] = trial.options.streams[..] else { return Ok(ONE_STREAM) };
    let mut rng = trial.rng(0);
    for round in 0..6 * trial.options.effort {
        // The backend's handle may come back for a new stream: the identity tells the two apart.
        let goes = Stream::with_identity(goes.handle(), 0xFEED + round);
        let sizes: Vec<u64> = (0..40).map(|_| rng.size(trial.options.max_block.min(256 << 10))).collect();
        let take = |stream| {
            sizes.iter().map(|size| trial.take(trial.layout(*size)?, stream)).collect::<Result<Vec<Held>, Broken>>()
        };
        let mut held = take(goes)?;
        let survivors = held.split_off(held.len() / 2);
        trial.give_all(held)?;
        trial.synchronize(goes)?;
        trial.allocator.retire_stream(goes);
        trial.check_figures()?;
        trial.give_all(take(stays)?)?;
        for held in survivors {
            trial.verify(&held, stays)?;
            trial.release(held, stays, StreamSet::EMPTY)?;
        }
    }
    Ok(Verdict::Kept)
}
