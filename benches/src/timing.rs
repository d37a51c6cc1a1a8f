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
        let units = self.units_per_round(&mut work);
        median((0..self.rounds).map(|_| time(units, &mut work)))
    }

    /// How many times as long a unit of `work` takes as one of `reference`. Their rounds take turns, and the fastest of
    /// each count: what else a machine does only ever makes a round slower.
    pub fn ratio(self, mut work: impl FnMut(u64), mut reference: impl FnMut(u64)) -> f64 {
        let (units, reference_units) = (self.units_per_round(&mut work), self.units_per_round(&mut reference));
        let rounds = (0..self.rounds).map(|_| (time(units, &mut work), time(reference_units, &mut reference)));
        let (fastest, reference) =
            rounds.fold((f64::INFINITY, f64::INFINITY), |best, round| (best.0.min(round.0), best.1.min(round.1)));
        fastest / reference
    }

    fn units_per_round(self, work: &mut impl FnMut(u64)) -> u64 {
        // What the first does may take far longer than all others: it would have a round do next to nothing.
        work(1);
        let mut units = 1_u64;
        loop {
            let start = Instant::now();
            work(units);
            let elapsed = start.elapsed();
            if elapsed * 4 >= self.round || units >= 1 << 40 {
                let scale = self.round.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
                return ((units as f64 * scale) as u64).max(1);
            }
            units *= 2;
        }
    }
}

/// Nanoseconds for each of so many units.
fn time(units: u64, work: &mut impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    work(units);
    start.elapsed().as_secs_f64() * 1e9 / units as f64
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
    fn a_slow_first_unit_makes_no_short_rounds() {
        let effort = Effort { rounds: 3, round: Duration::from_millis(2) };
        let mut units_of_last = 0;
        let mut first = true;
        effort.ns_per_unit(|units| {
            units_of_last = units;
            if std::mem::take(&mut first) {
                std::thread::sleep(Duration::from_millis(50));
            }
            (0..units).for_each(|unit| {
                std::hint::black_box(unit);
            });
        });
        assert!(units_of_last > 100, "{units_of_last}");
    }

    #[test]
    fn what_is_compared_takes_turns() {
        let turns = std::cell::RefCell::new(Vec::new());
        let effort = Effort { rounds: 3, round: Duration::from_micros(50) };
        let work = |who: usize| {
            let turns = &turns;
            move |units| {
                turns.borrow_mut().push(who);
                (0..units).for_each(|unit| {
                    std::hint::black_box(unit);
                });
            }
        };
        assert!(effort.ratio(work(1), work(2)) > 0.0);
        assert!(turns.borrow().ends_with(&[1, 2, 1, 2, 1, 2]));
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
