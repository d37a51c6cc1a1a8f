//! The results of several allocators side by side, with the ratio to the fastest peer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::bars;
use super::record::PeerRecord;
use super::suite::OURS;
use crate::table::{Table, geometric_mean};

/// What a row of the table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Replay: the fastest pass but the first.
    Warm,
    /// Replay: the first pass, calls to the driver included.
    First,
    /// Replay: the most memory held in the first pass over the most that lived.
    Reserved,
    /// Replay: the same in the last pass.
    ReservedLast,
    /// One block again and again.
    Pair,
    /// 2,000 living blocks.
    Churn,
    /// Random allocations: the fastest pass but the first.
    Random,
    /// Threads with streams of their own.
    Threads,
    /// One thread allocates, another releases.
    ProducerConsumer,
    /// Arrays that go from thread to thread.
    Larson,
    /// Threads that allocate, and threads that release.
    Xmalloc,
}

impl Section {
    const ALL: [Self; 11] = [
        Self::Warm,
        Self::First,
        Self::Reserved,
        Self::ReservedLast,
        Self::Pair,
        Self::Churn,
        Self::Random,
        Self::Threads,
        Self::ProducerConsumer,
        Self::Larson,
        Self::Xmalloc,
    ];

    fn bench(self) -> &'static str {
        match self {
            Self::Warm | Self::First | Self::Reserved | Self::ReservedLast => "replay",
            Self::Pair => "pair",
            Self::Churn => "churn",
            Self::Random => "random",
            Self::Threads => "threads",
            Self::ProducerConsumer => "producer_consumer",
            Self::Larson => "larson",
            Self::Xmalloc => "xmalloc",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Warm => "replay, warm",
            Self::First => "replay, first pass",
            Self::Reserved => "reserved / live, first pass",
            Self::ReservedLast => "reserved / live, last pass",
            Self::ProducerConsumer => "producer/consumer",
            other => other.bench(),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Reserved | Self::ReservedLast => "ratio",
            Self::Warm | Self::First | Self::Pair | Self::Churn | Self::Random => "ns",
            _ => "Mop/s",
        }
    }

    fn is_rate(self) -> bool {
        self.unit() == "Mop/s"
    }

    fn digits(self) -> usize {
        match self.unit() {
            "ratio" => 3,
            "ns" => 1,
            _ => 2,
        }
    }

    /// The figure of one run, from its records by pass.
    fn figure(self, passes: &BTreeMap<u32, &PeerRecord>) -> Option<f64> {
        let warm = || passes.range(2..).filter_map(|(_, record)| record.ns_per_op).reduce(f64::min);
        match self {
            Self::Warm => warm(),
            Self::First => passes.get(&1)?.ns_per_op,
            Self::Reserved => passes.get(&1)?.reserved_ratio,
            Self::ReservedLast => passes.range(2..).next_back()?.1.reserved_ratio,
            // An allocator so slow that its first pass was cut short has no other.
            Self::Random => warm().or_else(|| passes.get(&1)?.ns_per_op),
            Self::Pair | Self::Churn => passes.get(&0)?.ns_per_op,
            _ => Some(passes.get(&0)?.ops_per_second? / 1e6),
        }
    }
}

/// One figure of one allocator, from all its runs.
#[derive(Clone, Debug, PartialEq)]
struct Cell {
    value: f64,
    /// In rising order.
    runs: Vec<f64>,
    is_complete: bool,
}

/// The middle of figures in rising order; with an even number of them, what lies in the middle of the middle two.
fn middle(runs: &[f64]) -> Option<f64> {
    let (last, middle) = (runs.len().checked_sub(1)?, runs.len() / 2);
    Some((runs[last - middle] + runs[middle]) / 2.0)
}

#[derive(Clone, Debug)]
struct Row {
    section: Section,
    case: String,
    streams: u32,
    cells: BTreeMap<String, Cell>,
}

/// All results side by side.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    rows: Vec<Row>,
    peers: Vec<String>,
    notes: Vec<String>,
    devices: BTreeSet<String>,
    is_of_a_gpu: bool,
}

/// Characters of an error that are shown; its record has all.
const LONGEST_ERROR: usize = 160;

/// The records of one run of one case, by pass; 0 where there are none.
type Run<'a> = BTreeMap<u32, &'a PeerRecord>;

impl Comparison {
    /// Sets the records side by side. Where an allocator was run more than once, the fastest of its runs
    /// counts for times of one thread, as others who use the machine only ever add to them, and else the median.
    pub fn of(records: &[PeerRecord]) -> Self {
        let mut comparison = Self::default();
        let mut cases: Vec<(&str, &str, u32)> = Vec::new();
        let mut runs: BTreeMap<(&str, &str, &str), Vec<Run<'_>>> = BTreeMap::new();
        comparison.is_of_a_gpu = records.iter().any(|record| record.backend == "cuda");
        comparison.devices = records.iter().map(|record| record.device.clone()).collect();
        for record in records {
            if record.allocator != OURS && !comparison.peers.contains(&record.allocator) {
                comparison.peers.push(record.allocator.clone());
            }
            if !cases.iter().any(|case| (case.0, case.1) == (&record.bench, &record.case)) {
                cases.push((&record.bench, &record.case, record.streams));
            }
            if let Some(error) = &record.error {
                let PeerRecord { bench, case, allocator, .. } = record;
                let error: String = error.chars().take(LONGEST_ERROR).collect();
                comparison.notes.push(format!("{bench} {case} failed through {allocator}: {error}"));
            }
            let runs = runs.entry((&record.bench, &record.case, &record.allocator)).or_default();
            let pass = record.pass.unwrap_or(0);
            // The latest run's, or of one that begins: a run before it that ended early takes none of its passes.
            match runs.last_mut().filter(|run| run.last_key_value().is_some_and(|(last, _)| *last < pass)) {
                Some(run) => {
                    run.insert(pass, record);
                }
                None => runs.push(Run::from([(pass, record)])),
            }
        }
        for section in Section::ALL {
            for &(bench, case, streams) in cases.iter().filter(|case| case.0 == section.bench()) {
                let allocators = comparison.peers.iter().map(String::as_str).chain([OURS]);
                let cells = allocators.filter_map(|allocator| {
                    let runs = runs.get(&(bench, case, allocator))?;
                    Some((allocator.to_owned(), cell(section, runs)?))
                });
                let cells = cells.collect();
                comparison.rows.push(Row { section, case: case.to_owned(), streams, cells });
            }
        }
        comparison
    }

    /// The cases of a section with the number of their streams.
    pub fn cases(&self, section: Section) -> impl Iterator<Item = (&str, u32)> {
        self.rows.iter().filter(move |row| row.section == section).map(|row| (row.case.as_str(), row.streams))
    }

    /// A figure of an allocator.
    pub fn figure(&self, section: Section, case: &str, allocator: &str) -> Option<f64> {
        Some(self.row(section, case)?.cells.get(allocator)?.value)
    }

    /// Our figure.
    pub fn ours(&self, section: Section, case: &str) -> Option<f64> {
        self.figure(section, case, OURS)
    }

    /// The best of the peers whose names begin with `prefix`, and its figure.
    pub fn best_peer(&self, section: Section, case: &str, prefix: &str) -> Option<(&str, f64)> {
        self.row(section, case)?.best_peer(prefix)
    }

    /// How many times better ours is than the best peer's whose name begins with `prefix`.
    pub fn ratio(&self, section: Section, case: &str, prefix: &str) -> Option<f64> {
        let (ours, (_, peers)) = (self.ours(section, case)?, self.best_peer(section, case, prefix)?);
        Some(if section.is_rate() { ours / peers } else { peers / ours })
    }

    /// The geometric mean over all cases of a section; `None` if one of them is missing.
    pub fn mean(&self, section: Section, allocator: &str) -> Option<f64> {
        let figures: Option<Vec<f64>> =
            self.cases(section).map(|(case, _)| self.figure(section, case, allocator)).collect();
        geometric_mean(figures?)
    }

    /// The peers.
    pub fn peers(&self) -> &[String] {
        &self.peers
    }

    fn row(&self, section: Section, case: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.section == section && row.case == case)
    }

    fn table(&self) -> Table {
        let columns = ["workload", "case", "unit", OURS, "its runs"].map(str::to_owned);
        let columns = columns.into_iter().chain(self.peers.iter().cloned());
        let devices: Vec<&str> = self.devices.iter().map(String::as_str).collect();
        let title = format!("The pool and its peers: {}", devices.join(", "));
        let mut table = Table::new(title, columns.chain(["best peer", "ratio"].map(str::to_owned)));
        let mut is_cut = false;
        for section in Section::ALL {
            let rows = self.rows.iter().filter(|row| row.section == section && !row.cells.is_empty());
            let mut shown = 0;
            for row in rows {
                table.row(self.cells(row));
                is_cut |= row.cells.values().any(|cell| !cell.is_complete);
                shown += 1;
            }
            if shown > 1 && section <= Section::ReservedLast {
                let means = Row { case: "geometric mean".to_owned(), cells: self.means(section), section, streams: 0 };
                table.row(self.cells(&means));
            }
            if shown > 0 {
                table.rule();
            }
        }
        table.note(
            "ns: time for one call in replay and random, for an allocation and a release together elsewhere. Mop/s: \
             million allocations with their releases a second, all threads together.",
        );
        table.note("ratio: how many times better than the best peer. Of several runs the fastest is shown for ns, else the median.");
        if is_cut {
            table.note("* ended early by a limit of time; the time of what was done.");
        }
        for note in &self.notes {
            table.note(note.clone());
        }
        table
    }

    fn means(&self, section: Section) -> BTreeMap<String, Cell> {
        let allocators = self.peers.iter().map(String::as_str).chain([OURS]);
        allocators
            .filter_map(|name| {
                let value = self.mean(section, name)?;
                Some((name.to_owned(), Cell { value, runs: vec![value], is_complete: true }))
            })
            .collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let digits = row.section.digits();
        let mut cells = vec![row.section.title().to_owned(), row.case.clone(), row.section.unit().to_owned()];
        cells.push(show(row.cells.get(OURS), digits));
        cells.push(match row.cells.get(OURS).map(|cell| cell.runs.as_slice()) {
            Some([first, .., last]) => format!("{first:.digits$}-{last:.digits$}"),
            _ => String::new(),
        });
        cells.extend(self.peers.iter().map(|peer| show(row.cells.get(peer), digits)));
        let best = row.best_peer("");
        cells.push(best.map_or_else(|| "-".to_owned(), |(name, _)| name.to_owned()));
        let ours = row.cells.get(OURS).map(|cell| cell.value);
        cells.push(match (ours, best) {
            (Some(ours), Some((_, peers))) => {
                format!("{:.2}x", if row.section.is_rate() { ours / peers } else { peers / ours })
            }
            _ => "-".to_owned(),
        });
        cells
    }
}

impl Row {
    fn best_peer(&self, prefix: &str) -> Option<(&str, f64)> {
        let peers = self.cells.iter().filter(|(name, _)| *name != OURS && name.starts_with(prefix));
        let figures = peers.map(|(name, cell)| (name.as_str(), cell.value));
        if self.section.is_rate() {
            figures.max_by(|one, other| one.1.total_cmp(&other.1))
        } else {
            figures.min_by(|one, other| one.1.total_cmp(&other.1))
        }
    }
}

fn cell(section: Section, runs: &[Run<'_>]) -> Option<Cell> {
    let mut figures: Vec<f64> = runs.iter().filter_map(|run| section.figure(run)).collect();
    figures.sort_by(f64::total_cmp);
    let value = if section.unit() == "ns" { figures.first().copied() } else { middle(&figures) }?;
    let is_complete = runs.iter().all(|run| run.values().all(|record| record.complete));
    Some(Cell { value, runs: figures, is_complete })
}

fn show(cell: Option<&Cell>, digits: usize) -> String {
    match cell {
        Some(cell) => format!("{:.digits$}{}", cell.value, if cell.is_complete { "" } else { "*" }),
        None => "-".to_owned(),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        if self.is_of_a_gpu {
            write!(f, "{}", bars::table(&bars::of(self)))
        } else {
            writeln!(f, "The bars are for a GPU.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with no more than the comparison looks at.
    fn record(allocator: &str, bench: &str, case: &str, pass: Option<u32>, ns: f64) -> PeerRecord {
        PeerRecord {
            bench: bench.to_owned(),
            backend: "cuda".to_owned(),
            device: String::new(),
            allocator: allocator.to_owned(),
            case: case.to_owned(),
            threads: 1,
            streams: 1,
            pass,
            unit: "pair".to_owned(),
            ops: 1,
            elapsed_ns: ns as u64,
            ns_per_op: Some(ns),
            ops_per_second: Some(1e9 / ns),
            peak_live: Some(100),
            peak_reserved: Some(103),
            reserved_ratio: Some(1.03),
            complete: true,
            error: None,
        }
    }

    #[test]
    fn the_best_warm_pass_of_the_fastest_run_counts_and_the_median_rate() {
        let mut records = Vec::new();
        for (pass, ns) in [(1, 500.0), (2, 12.0), (3, 10.0), (1, 300.0), (2, 20.0), (3, 30.0)] {
            records.push(record(OURS, "replay", "a", Some(pass), ns));
        }
        records.push(record("torch", "replay", "a", Some(1), 200.0));
        records.push(record("torch", "replay", "a", Some(2), 150.0));
        let comparison = Comparison::of(&records);
        assert_eq!(comparison.ours(Section::Warm, "a"), Some(10.0));
        assert_eq!(comparison.ours(Section::First, "a"), Some(300.0));
        assert_eq!(comparison.ratio(Section::Warm, "a", ""), Some(15.0));
        let rates = [200.0, 100.0, 1000.0, 400.0].map(|ns| record(OURS, "threads", "c", None, ns));
        let rate = Comparison::of(&rates).ours(Section::Threads, "c").unwrap();
        assert!((rate - 3.75).abs() < 1e-9, "between the middle two of 1, 2.5, 5 and 10: {rate}");
        assert_eq!(comparison.best_peer(Section::First, "a", "rmm-"), None);
        assert!(comparison.to_string().contains("10.0-20.0"), "{comparison}");
    }

    #[test]
    fn a_run_that_ended_early_takes_no_passes_of_the_next() {
        let mut failed = record(OURS, "replay", "a", Some(2), 1.0);
        (failed.ns_per_op, failed.error) = (None, Some("out of memory".to_owned()));
        let mut records = vec![record(OURS, "replay", "a", Some(1), 500.0), failed];
        for (pass, ns) in [(1, 400.0), (2, 20.0), (3, 10.0)] {
            records.push(record(OURS, "replay", "a", Some(pass), ns));
        }
        let comparison = Comparison::of(&records);
        let warm = &comparison.row(Section::Warm, "a").unwrap().cells[OURS];
        assert_eq!((warm.value, warm.runs.as_slice()), (10.0, &[10.0][..]));
    }

    #[test]
    fn the_best_peer_has_the_least_time_and_the_highest_rate() {
        let records = [("torch", 300.0), ("rmm-pool", 100.0), (OURS, 10.0)];
        for (bench, section) in [("pair", Section::Pair), ("threads", Section::Threads)] {
            let records: Vec<_> = records.iter().map(|&(name, ns)| record(name, bench, "c", None, ns)).collect();
            let comparison = Comparison::of(&records);
            assert_eq!(comparison.best_peer(section, "c", "").unwrap().0, "rmm-pool");
            assert!((comparison.ratio(section, "c", "").unwrap() - 10.0).abs() < 1e-9);
        }
    }

    #[test]
    fn failures_and_what_was_cut_short_are_told() {
        let mut failed = record("rmm-pool", "pair", "c", None, 1.0);
        (failed.ns_per_op, failed.error) = (None, Some("out of memory".to_owned()));
        let mut cut = record("torch", "pair", "c", None, 2.0);
        cut.complete = false;
        let shown = Comparison::of(&[record(OURS, "pair", "c", None, 1.0), failed, cut]).to_string();
        assert!(shown.contains("pair c failed through rmm-pool: out of memory"), "{shown}");
        assert!(shown.contains("2.0*") && shown.contains("torch  2.00x"), "{shown}");
    }
}
