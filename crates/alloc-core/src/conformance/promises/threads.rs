//! Several threads, and threads that end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, ScopedJoinHandle};

use crate::StreamSet;
use crate::conformance::Expected;

use super::{Breach, Broken, Held, Trial, Verdict};

/// Waits until a thread is gone, its thread-local destructors included, which the end of a scope doesn't wait for.
pub(super) fn join<T>(trial: &Trial<'_>, thread: ScopedJoinHandle<'_, Result<T, Broken>>) -> Result<T, Broken> {
    thread.join().unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|message| (*message).to_string()))
            .unwrap_or_default();
        Err(trial.broken(Breach::Panicked { message }))
    })
}

/// Runs `work` on as many threads as the options say, numbered from 0, and waits for all of them.
fn on_threads<T: Send>(
    trial: &Trial<'_>,
    inputs: impl IntoIterator<Item = T>,
    work: impl Fn(usize, T) -> Result<(), Broken> + Sync,
) -> Result<(), Broken> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            inputs.into_iter().enumerate().map(|(number, input)| scope.spawn(move || work(number, input))).collect();
        threads.into_iter().map(|thread| join(trial, thread)).fold(Ok(()), Result::and)
    })
}

fn thread_count(trial: &Trial<'_>) -> usize {
    trial.options.threads.max(1)
}

/// What each thread may hold at once, in bytes.
fn share(trial: &Trial<'_>) -> u64 {
    trial.options.max_live / thread_count(trial) as u64
}

pub(in crate::conformance) fn hammer(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    on_threads(trial, 0..thread_count(trial), |number, _| {
        let mut rng = trial.rng(1 + number as u64);
        let (mut held, mut bytes): (Vec<Held>, u64) = (Vec::new(), 0);
        for _ in 0..800 * trial.options.effort {
            // Mostly what thread caches keep, and now and then what they don't.
            let size = if rng.percent(95) { rng.size(16 << 10) } else { rng.size(trial.options.max_block) };
            while !held.is_empty() && (held.len() >= 64 || bytes + size > share(trial)) {
                let one = held.swap_remove(rng.index(held.len()));
                bytes -= one.block.size();
                trial.give(one)?;
            }
            bytes += size;
            let stream = if rng.percent(90) { trial.stream(number) } else { trial.stream(rng.index(64)) };
            held.push(trial.take(trial.layout(size.min(trial.options.max_block))?, stream)?);
        }
        trial.give_all(held)
    })?;
    trial.check_figures()?;
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn exchange(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let (senders, receivers): (Vec<Sender<Held>>, Vec<Receiver<Held>>) =
        (0..thread_count(trial)).map(|_| channel()).unzip();
    let inputs: Vec<_> = receivers.into_iter().map(|receiver| (receiver, senders.clone())).collect();
    drop(senders);
    on_threads(trial, inputs, |number, (receiver, senders)| {
        let mut rng = trial.rng(1 + number as u64);
        let own = trial.stream(number);
        let take_back = |held: Held| {
            trial.verify(&held, own)?;
            trial.release(held, own, StreamSet::EMPTY)
        };
        for _ in 0..250 * trial.options.effort {
            let size = rng.size(trial.options.max_block.min(64 << 10));
            let held = trial.take(trial.layout(size)?, own)?;
            // The next owner uses it on a stream that waits for nothing.
            trial.synchronize(own)?;
            if let Err(unsent) = senders[rng.index(senders.len())].send(held) {
                // Its receiver failed and says so itself.
                return trial.give(unsent.0);
            }
            receiver.try_iter().take(2).try_for_each(take_back)?;
        }
        drop(senders);
        receiver.iter().try_for_each(take_back)
    })?;
    trial.check_figures()?;
    Ok(Verdict::Kept)
}

/// Threads that come, ask for blocks, release some, and end; the rest is released by others.
pub(in crate::conformance) fn end(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let share = share(trial) / 4;
    for round in 0..6 * trial.options.effort {
        let left = thread::scope(|scope| {
            let generation = (0..thread_count(trial)).map(|number| {
                scope.spawn(move || {
                    let mut rng = trial.rng(1 + number as u64 + 100 * round);
                    let (mut held, mut bytes) = (Vec::new(), 0);
                    for _ in 0..60 {
                        let size = rng.size(trial.options.max_block.min(256 << 10));
                        if bytes + size <= share {
                            bytes += size;
                            held.push(trial.take(trial.layout(size)?, trial.stream(number))?);
                        }
                    }
                    let left = held.split_off(held.len() / 2);
                    trial.give_all(held)?;
                    Ok(left)
                })
            });
            let generation: Vec<_> = generation.collect();
            generation.into_iter().map(|thread| join(trial, thread)).collect::<Result<Vec<_>, _>>()
        })?;
        trial.check_figures()?;
        trial.give_all(left.into_iter().flatten())?;
    }
    if trial.options.trims_to_zero {
        trial.synchronize_all()?;
        trial.allocator.trim(0);
        trial.expect("reserved.current", trial.allocator.statistics().reserved.current, Expected::Exactly(0))?;
    }
    Ok(Verdict::Kept)
}
