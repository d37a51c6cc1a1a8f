//! Allocators that come and go under threads that stay.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use super::threads::join;
use super::{Broken, Trial, Verdict};

/// Blocks that a thread takes and gives back, so that whatever it caches by thread is warm.
fn warm(trial: &Trial<'_>) -> Result<(), Broken> {
    let mut held = Vec::new();
    for size in [0, 1, 512, 4096, 4096, 70_000] {
        for number in 0..3 {
            held.push(trial.take(trial.layout(size)?, trial.stream(number))?);
        }
    }
    trial.give_all(held)?;
    // And in the other order.
    let held = (0..4).map(|_| trial.take(trial.layout(4096)?, trial.stream(0))).collect::<Result<Vec<_>, _>>()?;
    trial.give_all(held.into_iter().rev())
}

pub(in crate::conformance) fn drop_order(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    successors(trial)?;
    two_at_once(trial)?;
    living_blocks(trial)?;
    warm(trial)?;
    Ok(Verdict::Kept)
}

fn fresh<'a>(trial: &Trial<'a>) -> Trial<'a> {
    Trial::new(trial.suite, trial.promise(), trial.suite.make().allocator, None)
}

/// One allocator after the other is used by a thread that outlives them all: what it remembers of one must not reach
/// the next, which may well lie at the same address.
fn successors(trial: &Trial<'_>) -> Result<(), Broken> {
    thread::scope(|scope| {
        let (sender, receiver) = channel::<Arc<Trial<'_>>>();
        let (done, finished) = channel();
        let thread = scope.spawn(move || {
            for other in receiver {
                warm(&other)?;
                drop(other);
                if done.send(()).is_err() {
                    break;
                }
            }
            Ok(())
        });
        for round in 0..10 {
            let other = Arc::new(fresh(trial));
            if sender.send(Arc::clone(&other)).is_err() {
                break;
            }
            if round % 2 == 0 {
                warm(&other)?;
            }
            // An error of the thread is joined for below.
            if finished.recv().is_err() {
                break;
            }
            other.check_balance()?;
        }
        drop(sender);
        join(trial, thread)
    })
}

/// Two allocators used by one thread in turns, the older of them dropped first.
fn two_at_once(trial: &Trial<'_>) -> Result<(), Broken> {
    let mut one = fresh(trial);
    for _ in 0..5 {
        let other = fresh(trial);
        let held = [one.take(one.layout(4096)?, one.stream(0))?, one.take(one.layout(90_000)?, one.stream(1))?];
        warm(&other)?;
        warm(&one)?;
        one.give_all(held)?;
        one.check_balance()?;
        one = other;
    }
    Ok(())
}

/// Blocks that are alive when their allocator goes are lost, and nothing else is.
fn living_blocks(trial: &Trial<'_>) -> Result<(), Broken> {
    for size in [0, 100, 100_000, trial.options.max_block] {
        let other = fresh(trial);
        other.take(other.layout(size)?, other.stream(0))?;
        drop(other);
        warm(trial)?;
    }
    Ok(())
}
