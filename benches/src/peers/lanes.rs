//! Threads that work until they are told to stop, and whose rates are read while they do.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::schedule::{Measured, Schedule};
use crate::workload::WorkloadError;

/// Operations between two looks at whether to stop.
pub const BATCH: u64 = 64;

/// How many operations a thread has done. Lanes lie apart, so that threads don't share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Lane(AtomicU64);

impl Lane {
    /// Counts operations. Only the thread that owns the lane does.
    #[inline]
    pub fn add(&self, ops: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + ops, Ordering::Relaxed);
    }

    fn done(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether the threads go on.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stop(AtomicBool);

impl Stop {
    /// Whether it is time to stop.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits a little for another thread: 64 times on the processor, then by letting others run.
#[derive(Debug, Default)]
pub struct Patience(u32);

impl Patience {
    /// Waits once more.
    #[inline]
    pub fn wait(&mut self) {
        if self.0 < 64 {
            self.0 += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

/// Runs `work` on so many threads at a time and measures their rates together. Each thread first makes ready what it
/// works with, which is not measured, and drops it when all has been measured.
///
/// # Errors
/// What the first of the threads that failed reports.
pub fn measure<T: Send>(
    schedule: Schedule,
    threads: u32,
    prepare: impl Fn(u32) -> Result<T, WorkloadError> + Sync,
    work: impl Fn(&mut T, &Lane, &Stop) -> Result<(), WorkloadError> + Sync,
) -> Result<Measured, WorkloadError> {
    let lanes: Vec<Lane> = (0..threads).map(|_| Lane::default()).collect();
    let stop = Stop::default();
    let ready = Barrier::new(threads as usize + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .zip(&lanes)
            .map(|(number, lane)| {
                let (prepare, work, stop, ready) = (&prepare, &work, &stop, &ready);
                scope.spawn(move || {
                    let prepared = prepare(number);
                    // Even a thread that failed comes here, so that the others don't wait for ever.
                    ready.wait();
                    let outcome = prepared.and_then(|mut prepared| {
                        work(&mut prepared, lane, stop)?;
                        Ok(prepared)
                    });
                    if outcome.is_err() {
                        stop.set();
                    }
                    outcome.map(drop)
                })
            })
            .collect();
        ready.wait();
        let rounds = watch(schedule, &lanes, &stop);
        stop.set();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(Measured::of_rounds(&rounds))
    })
}

/// How many times as long as it is meant to be a round may take.
const LONGEST: u32 = 100;

/// The operations and the time of each round. One in which nothing was done goes on until something is: on a machine that
/// has other things to do a short one may pass before a thread has its turn, and would tell of a rate of zero.
fn watch(schedule: Schedule, lanes: &[Lane], stop: &Stop) -> Vec<(u64, Duration)> {
    let read = || (Instant::now(), lanes.iter().map(Lane::done).sum::<u64>());
    thread::sleep(schedule.warm);
    let mut last = read();
    let mut rounds = Vec::new();
    for _ in 0..schedule.rounds {
        if stop.is_set() {
            break;
        }
        let mut now = last;
        for _ in 0..LONGEST {
            thread::sleep(schedule.round);
            now = read();
            if now.1 > last.1 || stop.is_set() {
                break;
            }
        }
        rounds.push((now.1 - last.1, now.0 - last.0));
        last = now;
    }
    rounds
}

#[cfg(test)]
mod tests {
    use alloc_core::{DeviceAllocator, Layout, Stream};

    use super::*;
    use crate::allocators::OriginalPool;

    const SHORT: Schedule = Schedule { warm: Duration::ZERO, round: Duration::from_millis(5), rounds: 2 };

    #[test]
    fn all_threads_count() {
        let measured = measure(SHORT, 3, Ok, |_, lane, stop| {
            while !stop.is_set() {
                lane.add(1);
                thread::yield_now();
            }
            Ok(())
        });
        let measured = measured.unwrap();
        assert!(measured.ops > 0 && measured.elapsed >= 2 * SHORT.round);
    }

    #[test]
    fn a_round_goes_on_until_something_is_done() {
        let measured = measure(SHORT, 1, Ok, |_, lane, stop| {
            while !stop.is_set() {
                thread::sleep(6 * SHORT.round);
                lane.add(1);
            }
            Ok(())
        });
        let measured = measured.unwrap();
        assert!(measured.ops >= 2 && measured.per_second > 0.0, "{measured:?}");
    }

    #[test]
    fn a_thread_that_fails_stops_the_others() {
        let pool = OriginalPool::new();
        let too_much = || pool.allocate(Layout::bytes(1 << 60).unwrap(), Stream::DEFAULT).map(|_| ());
        let until_stopped = |_: &mut u32, _: &Lane, stop: &Stop| {
            while !stop.is_set() {
                thread::yield_now();
            }
            Ok(())
        };
        assert!(measure(SHORT, 2, |number| too_much().map(|()| number).map_err(Into::into), until_stopped).is_err());
        let second_fails = |number: &mut u32, lane: &Lane, stop: &Stop| match *number {
            1 => too_much().map_err(Into::into),
            _ => until_stopped(number, lane, stop),
        };
        assert!(measure(SHORT, 2, Ok, second_fails).is_err());
    }
}
