//! For how long a workload is measured, and what comes of it.

use std::time::{Duration, Instant};

use crate::timing::median;
use crate::workload::WorkloadError;

/// A warm-up, then rounds of one length, of which the median counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How long the workload runs before it is measured.
    pub warm: Duration,
    /// How long a round is, at least.
    pub round: Duration,
    /// How many there are.
    pub rounds: u32,
}

/// What a workload did in all rounds, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Operations in the rounds, of all threads together.
    pub ops: u64,
    /// The time of all rounds.
    pub elapsed: Duration,
    /// Operations a second, of all threads together: the median of the rounds.
    pub per_second: f64,
}

/// Operations between two looks at the clock.
const BATCH: u64 = 4096;

impl Schedule {
    /// For workloads of one thread.
    pub const ONE_THREAD: Self = Self { warm: Duration::from_millis(60), round: Duration::from_millis(60), rounds: 5 };
    /// For workloads of several.
    pub const THREADS: Self = Self { warm: Duration::from_millis(75), round: Duration::from_millis(150), rounds: 3 };

    /// A twentieth of the time: to see that everything works.
    #[must_use]
    pub fn quick(self) -> Self {
        Self { warm: self.warm / 20, round: self.round / 20, rounds: self.rounds }
    }

    /// Measures what one thread does. `work` is told how many operations to do.
    ///
    /// # Errors
    /// What `work` reports.
    pub fn measure(self, mut work: impl FnMut(u64) -> Result<(), WorkloadError>) -> Result<Measured, WorkloadError> {
        run_for(self.warm, &mut work)?;
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            rounds.push(run_for(self.round, &mut work)?);
        }
        Ok(Measured::of_rounds(&rounds))
    }
}

fn run_for(
    time: Duration,
    work: &mut impl FnMut(u64) -> Result<(), WorkloadError>,
) -> Result<(u64, Duration), WorkloadError> {
    let start = Instant::now();
    let mut ops = 0;
    loop {
        work(BATCH)?;
        ops += BATCH;
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((ops, elapsed));
        }
    }
}

impl Measured {
    /// From the operations and the time of each round.
    pub fn of_rounds(rounds: &[(u64, Duration)]) -> Self {
        Self {
            ops: rounds.iter().map(|round| round.0).sum(),
            elapsed: rounds.iter().map(|round| round.1).sum(),
            per_second: median(rounds.iter().map(|round| round.0 as f64 / round.1.as_secs_f64())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_without_the_warm_up() {
        let schedule = Schedule { warm: Duration::ZERO, round: Duration::ZERO, rounds: 3 };
        let mut calls = 0;
        let measured = schedule
            .measure(|units| {
                calls += units;
                Ok(())
            })
            .unwrap();
        assert_eq!((measured.ops, calls), (3 * BATCH, 4 * BATCH));
        assert!(measured.per_second > 0.0);
    }

    #[test]
    fn the_median_round_counts() {
        let second = Duration::from_secs(1);
        let measured = Measured::of_rounds(&[(10, second), (1, second), (12, second)]);
        assert_eq!((measured.ops, measured.elapsed), (23, 3 * second));
        assert!((measured.per_second - 10.0).abs() < 1e-9);
    }
}
