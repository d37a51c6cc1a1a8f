//! How the small benches take time.

use std::time::{Duration, Instant};

/// How long measurements take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// How often each is repeated.
    pub rounds: u32,
    /// How long one round is meant to take.
    pub round: Duration,
}

impl Effort {
    /// Enough for figures that repeat.
    pub const FULL: Self = Self { rounds: 15, round: Duration::from_millis(20) };
    /// Enough to see that everything works.
    pub const QUICK: Self = Self { rounds: 5, round: Duration::from_millis(4) };

    /// Nanoseconds for one unit of `work`, which is told how many to do: the median of the rounds, after one that
    /// only warms up.
    pub fn ns_per_unit(self, mut work: impl FnMut(u64)) -> f64 {
        let mut units = 1_u64;
        loop {
            let start = Instant::now();
            work(units);
            let elapsed = start.elapsed();
            if elapsed * 4 >= self.round || units >= 1 << 40 {
                let scale = self.round.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
                units = ((units as f64 * scale) as u64).max(1);
                break;
            }
            units *= 2;
        }
        median((0..self.rounds).map(|_| {
            let start = Instant::now();
            work(units);
            start.elapsed().as_secs_f64() * 1e9 / units as f64
        }))
    }
}

/// The middle value.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_does_the_same_number_of_units() {
        let mut rounds = Vec::new();
        let effort = Effort { rounds: 3, round: Duration::from_micros(50) };
        let ns = effort.ns_per_unit(|units| {
            rounds.push(units);
            (0..units).for_each(|unit| {
                std::hint::black_box(unit);
            });
        });
        assert!(ns > 0.0);
        let last = &rounds[rounds.len() - 3..];
        assert!(last.iter().all(|units| units == &last[0]));
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
