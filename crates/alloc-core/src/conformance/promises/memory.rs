//! The end of memory, and giving it back.

use std::thread;

use crate::conformance::Expected::{AtLeast, AtMost, Exactly};
use crate::conformance::rng::Rng;
use crate::{Stream, StreamSet};

use super::sizes::check_error;
use super::threads::join;
use super::{Breach, Broken, Held, Trial, Verdict};

/// Asks for blocks of one size until that is refused, and checks the refusal.
fn fill_up(trial: &Trial<'_>, size: u64, capacity: u64, stream: Stream) -> Result<Vec<Held>, Broken> {
    let layout = trial.layout(size)?;
    let mut held = Vec::new();
    loop {
        match trial.try_allocate(layout, stream)? {
            Ok(one) => held.push(one),
            Err(error) if error.is_out_of_memory() => {
                check_error(trial, layout, error.clone())?;
                if let crate::AllocError::OutOfMemory(out) = &error
                    && trial.options.statistics
                {
                    trial.expect("in_use of the error", out.in_use, AtLeast(trial.live_bytes()))?;
                    trial.expect("reserved of the error", out.reserved, AtMost(capacity))?;
                }
                return Ok(held);
            }
            Err(error) => {
                let untrue = "the memory has run out";
                return Err(trial.broken(Breach::WrongError { layout, error, untrue }));
            }
        }
        if trial.live_bytes() > capacity {
            return Err(trial.broken(Breach::BeyondCapacity { served: trial.live_bytes(), capacity }));
        }
    }
}

fn release_all(trial: &Trial<'_>, mut held: Vec<Held>, seed: u64) -> Result<(), Broken> {
    let mut rng = trial.rng(seed);
    while !held.is_empty() {
        let one = held.swap_remove(rng.index(held.len()));
        trial.release(one, one.stream, StreamSet::EMPTY)?;
    }
    Ok(())
}

/// Fills the memory on a stream, releases everything, and checks that no less could be had than is expected.
fn fill_again(
    trial: &Trial<'_>,
    size: u64,
    capacity: u64,
    stream: Stream,
    expected: u64,
    occasion: &'static str,
) -> Result<(), Broken> {
    let held = fill_up(trial, size, capacity, stream)?;
    let served = held.len() as u64 * size;
    if served < expected {
        return Err(trial.broken(Breach::Lost { served, expected, occasion }));
    }
    release_all(trial, held, 3)
}

pub(in crate::conformance) fn exhaustion(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let Some(capacity) = trial.options.capacity else {
        return Ok(Verdict::NotPromised("the options name no capacity"));
    };
    let (first, other) = (trial.stream(0), trial.stream(1));
    let block = (capacity / 16).max(1);
    let held = fill_up(trial, block, capacity, first)?;
    let most = held.len() as u64 * block;
    if most < capacity / 2 {
        return Err(trial.broken(Breach::Lost { served: most, expected: capacity / 2, occasion: "the first time" }));
    }
    trial.check_figures()?;

    // What a refusal costs, many of them show.
    for _ in 0..30 {
        let layout = trial.layout(block)?;
        match trial.try_allocate(layout, first)? {
            Ok(held) => trial.release(held, first, StreamSet::EMPTY)?,
            Err(error) => check_error(trial, layout, error)?,
        }
    }

    // One released, one to be had: the memory of one is enough for another.
    let mut held = held;
    for _ in 0..2 * held.len() {
        let one = held.swap_remove(0);
        trial.release(one, first, StreamSet::EMPTY)?;
        held.push(trial.allocate(trial.layout(block)?, first)?);
    }
    release_all(trial, held, 1)?;

    fill_again(trial, block, capacity, first, most, "everything had been released")?;
    fill_again(trial, block, capacity, other, most, "everything had been released on another stream")?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| fill_again(trial, block, capacity, first, most, "on another thread"));
        join(trial, thread)
    })?;
    fill_again(trial, block, capacity, first, most, "the thread that had it has ended")?;

    // Small blocks take everything apart; what they leave must come together again.
    let small = (capacity / 4096).clamp(1, 20_000);
    let held = fill_up(trial, small, capacity, other)?;
    release_all(trial, held, 2)?;
    fill_again(trial, block, capacity, first, most, "small blocks had taken everything")?;
    let half = capacity / 2 - capacity / 16;
    fill_again(trial, half, capacity, other, half, "one block of nearly half of it")?;
    Ok(Verdict::Kept)
}

/// How often a round of [`trim`] is begun again before what is missing counts as the allocator's own fault.
const DISTURBANCES: u32 = 16;

pub(in crate::conformance) fn trim(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    for _ in 0..3 * trial.options.effort {
        // A pool of the same device that runs out of memory has this one give back what it holds, at any moment; then
        // trim has less to give. An allocator that counts wrongly does so in each round.
        let mut missed = None;
        for _ in 0..DISTURBANCES {
            missed = trim_round(trial, &mut rng)?;
            if missed.is_none() {
                break;
            }
        }
        if let Some(Trimmed { given_back, missing }) = missed {
            trial.expect("bytes that trim gave back", given_back, Exactly(missing))?;
        }
    }
    Ok(Verdict::Kept)
}

/// Fills, and trims three times: with blocks in use, to a half, and to nothing. Returns the first that gave back less
/// than went missing meanwhile.
fn trim_round(trial: &Trial<'_>, rng: &mut Rng) -> Result<Option<Trimmed>, Broken> {
    let reserved = || trial.allocator.statistics().reserved.current;
    let mut held = Vec::new();
    loop {
        let size = rng.size(trial.options.max_block);
        if trial.live_bytes() + size > trial.options.max_live / 2 || held.len() > 400 {
            break;
        }
        held.push(trial.take(trial.layout(size)?, trial.stream(rng.index(64)))?);
    }
    // What is in use stays, and so does what is in it.
    let kept = held.split_off(held.len() / 2);
    trial.give_all(held)?;
    trial.synchronize_all()?;
    let in_use = trim_to(trial, 0)?;
    trial.check_figures()?;
    for held in &kept {
        trial.verify(held, held.stream)?;
    }
    if trial.options.trims_to_zero {
        trial.expect("reserved.current", reserved(), AtLeast(trial.live_bytes()))?;
    }
    trial.give_all(kept)?;
    trial.synchronize_all()?;
    let keep = reserved() / 2;
    let half = trim_to(trial, keep)?;
    if trial.options.trims_to_zero {
        trial.expect("reserved.current", reserved(), AtMost(keep))?;
    }
    let all = trim_to(trial, 0)?;
    if trial.options.trims_to_zero {
        trial.expect("reserved.current", reserved(), Exactly(0))?;
    }
    Ok(in_use.or(half).or(all))
}

/// What [`trim`](crate::DeviceAllocator::trim) said that it gave back, and the bytes that were missing then.
struct Trimmed {
    given_back: u64,
    missing: u64,
}

/// Trims, and checks that no more is said to be given back than is missing. Returns both if it is less.
fn trim_to(trial: &Trial<'_>, keep: u64) -> Result<Option<Trimmed>, Broken> {
    let before = trial.allocator.statistics().reserved.current;
    let given_back = trial.allocator.trim(keep);
    let after = trial.allocator.statistics().reserved.current;
    let missing = before.saturating_sub(after);
    if !trial.options.trims_to_zero {
        return Ok(None);
    }
    trial.expect("bytes that trim gave back", given_back, AtMost(missing))?;
    Ok((given_back < missing).then_some(Trimmed { given_back, missing }))
}
