//! The bars that this project holds itself to against its peers.

use super::comparison::{Comparison, Section};
use super::suite::OURS;
use crate::table::{Table, geometric_mean};

/// A bound and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What is measured.
    pub name: String,
    /// The case that decides, if one does.
    pub case: String,
    /// `None` if something that it needs was not measured.
    pub measured: Option<f64>,
    /// The bound.
    pub bound: Bound,
}

/// On which side of a value a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Bar {
    /// Whether it is met; `None` if it was not measured.
    pub fn holds(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.bound {
            Bound::AtLeast(bound) => measured >= bound,
            Bound::AtMost(bound) => measured <= bound,
        })
    }

    fn one(name: &str, measured: Option<f64>, bound: Bound) -> Self {
        Self { name: name.to_owned(), case: String::new(), measured, bound }
    }

    /// The case that is furthest on the wrong side decides; one that was not measured leaves the bar open.
    fn worst<'a>(name: &str, cases: impl Iterator<Item = (&'a str, Option<f64>)>, bound: Bound) -> Self {
        let mut bar = Self::one(name, None, bound);
        for (case, measured) in cases {
            let Some(measured) = measured else { return Self { measured: None, case: case.to_owned(), ..bar } };
            let is_worse = bar.measured.is_none_or(|worst| match bound {
                Bound::AtLeast(_) => measured < worst,
                Bound::AtMost(_) => measured > worst,
            });
            if is_worse {
                (bar.measured, bar.case) = (Some(measured), case.to_owned());
            }
        }
        bar
    }
}

/// All bars.
pub fn of(comparison: &Comparison) -> Vec<Bar> {
    let mut bars = replay(comparison);
    bars.extend(reserved(comparison));
    let ratios = |section, prefix: &'static str| {
        comparison.cases(section).map(move |(case, _)| (case, comparison.ratio(section, case, prefix)))
    };
    let is_small = |case: &str| matches!(case, "512 B" | "64 KiB");
    bars.push(Bar::worst(
        "pair up to 64 KiB, times faster than the fastest peer",
        ratios(Section::Pair, "").filter(|(case, _)| is_small(case)),
        Bound::AtLeast(15.0),
    ));
    bars.push(Bar::worst(
        "pair above 64 KiB, times faster than the fastest peer",
        ratios(Section::Pair, "").filter(|(case, _)| !is_small(case)),
        Bound::AtLeast(7.0),
    ));
    bars.push(Bar::worst(
        "churn, times faster than the fastest peer",
        ratios(Section::Churn, ""),
        Bound::AtLeast(10.0),
    ));
    bars.push(Bar::worst(
        "random, times faster than the fastest of RMM's resources",
        ratios(Section::Random, "rmm-"),
        Bound::AtLeast(5.0),
    ));
    bars.extend(threads(comparison));
    bars
}

fn replay(comparison: &Comparison) -> Vec<Bar> {
    let warm = |is_single: bool| {
        let cases = comparison.cases(Section::Warm).filter(move |(_, streams)| (*streams == 1) == is_single);
        cases.map(|(case, _)| (case, comparison.ratio(Section::Warm, case, "")))
    };
    let all: Option<Vec<f64>> =
        comparison.cases(Section::Warm).map(|(case, _)| comparison.ratio(Section::Warm, case, "")).collect();
    let first_of_peers =
        comparison.peers().iter().filter_map(|peer| comparison.mean(Section::First, peer)).reduce(f64::min);
    let first = comparison.mean(Section::First, OURS).zip(first_of_peers).map(|(ours, peers)| ours / peers);
    let over_torch = comparison.cases(Section::First).map(|(case, _)| {
        let figures = comparison.ours(Section::First, case).zip(comparison.figure(Section::First, case, "torch"));
        (case, figures.map(|(ours, torch)| ours / torch))
    });
    vec![
        Bar::worst("replay of one stream, warm, times faster than the fastest peer", warm(true), Bound::AtLeast(6.0)),
        Bar::worst(
            "replay of several streams, warm, times faster than the fastest peer",
            warm(false),
            Bound::AtLeast(2.5),
        ),
        Bar::one(
            "replay, warm, times faster than the fastest peer, geometric mean",
            all.and_then(geometric_mean),
            Bound::AtLeast(8.0),
        ),
        Bar::one("replay, warm, ns, geometric mean", comparison.mean(Section::Warm, OURS), Bound::AtMost(45.0)),
        Bar::one("replay, first pass, over the fastest peer's, geometric means", first, Bound::AtMost(1.0)),
        Bar::worst("replay, first pass, over PyTorch native's", over_torch, Bound::AtMost(2.0)),
    ]
}

fn reserved(comparison: &Comparison) -> Vec<Bar> {
    let first = comparison.cases(Section::Reserved).map(|(case, _)| (case, comparison.ours(Section::Reserved, case)));
    let growth = comparison.cases(Section::Reserved).map(|(case, _)| {
        let (first, last) = (comparison.ours(Section::Reserved, case), comparison.ours(Section::ReservedLast, case));
        // Three decimal places, as the table shows.
        (case, first.zip(last).map(|(first, last)| (last / first * 1e3).round() / 1e3))
    });
    vec![
        Bar::one("reserved over live, geometric mean", comparison.mean(Section::Reserved, OURS), Bound::AtMost(1.025)),
        Bar::worst("reserved over live", first, Bound::AtMost(1.05)),
        Bar::worst("reserved in the last pass over the first's", growth, Bound::AtMost(1.0)),
    ]
}

fn threads(comparison: &Comparison) -> Vec<Bar> {
    let ours = |case: &str| comparison.ours(Section::Threads, case);
    let scaling = ours("16 threads").zip(ours("1 thread")).map(|(many, one)| many / one);
    let handed_over = comparison.cases(Section::ProducerConsumer).filter_map(|(case, _)| {
        let count: u32 = case.strip_suffix("pairs").or_else(|| case.strip_suffix("pair"))?.trim().parse().ok()?;
        let same = if count == 1 { "1 thread, ring".to_owned() } else { format!("{count} threads, ring") };
        let rate = |case: &str| comparison.ours(Section::ProducerConsumer, case);
        Some((case, rate(case).zip(rate(&same)).map(|(two, one)| two / one)))
    });
    vec![
        Bar::one("16 threads, times the rate of one", scaling, Bound::AtLeast(10.0)),
        Bar::one(
            "16 threads, times the rate of the fastest peer",
            comparison.ratio(Section::Threads, "16 threads", ""),
            Bound::AtLeast(25.0),
        ),
        Bar::worst("producer/consumer over the same on one thread", handed_over, Bound::AtLeast(0.4)),
    ]
}

/// The bars as a table.
pub fn table(bars: &[Bar]) -> Table {
    let mut table = Table::new("Bars", ["bar", "decided by", "measured", "bound", "holds"]);
    for bar in bars {
        let bound = match bar.bound {
            Bound::AtLeast(bound) => format!("at least {bound}"),
            Bound::AtMost(bound) => format!("at most {bound}"),
        };
        let measured = bar.measured.map_or_else(|| "-".to_owned(), |measured| format!("{measured:.3}"));
        let holds = match bar.holds() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not measured",
        };
        table.row([&bar.name, &bar.case, &measured, &bound, holds]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_decides_and_a_missing_one_leaves_it_open() {
        let cases = [("a", Some(3.0)), ("b", Some(2.0)), ("c", Some(4.0))];
        let low = Bar::worst("x", cases.into_iter(), Bound::AtLeast(2.5));
        assert_eq!((low.case.as_str(), low.holds()), ("b", Some(false)));
        let high = Bar::worst("x", cases.into_iter(), Bound::AtMost(4.0));
        assert_eq!((high.case.as_str(), high.holds()), ("c", Some(true)));
        let open = Bar::worst("x", cases.into_iter().chain([("d", None)]), Bound::AtMost(4.0));
        assert_eq!((open.case.as_str(), open.holds()), ("d", None));
    }

    #[test]
    fn nothing_measured_holds_nothing() {
        let bars = of(&Comparison::default());
        assert_eq!(bars.len(), 16);
        assert!(bars.iter().all(|bar| bar.holds().is_none()));
        assert!(table(&bars).to_string().contains("not measured"));
    }
}
