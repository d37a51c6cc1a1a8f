//! The tables at the end.

use std::fmt;

use benches::allocators::Peer;
use benches::memory::human;
use benches::record::ReplayRecord;
use benches::table::{Table, geometric_mean};
use benches::traces::NamedTrace;

use crate::options::Options;

/// Everything that was measured, on its way to the tables.
#[derive(Debug)]
pub struct Summary {
    peers: Vec<String>,
    passes: u32,
    timed_pass: u32,
    touch: bool,
    threads: bool,
    traces: Vec<String>,
    records: Vec<ReplayRecord>,
    left_out: Vec<String>,
    cut: Vec<String>,
    failures: Vec<(String, String)>,
    repaired: Vec<String>,
}

impl Summary {
    /// Of nothing as yet.
    pub fn new(options: &Options) -> Self {
        Self {
            peers: options.peers().iter().map(Peer::to_string).collect(),
            passes: options.passes(),
            timed_pass: options.timed_pass(),
            touch: options.touch,
            threads: options.threads,
            traces: Vec::new(),
            records: Vec::new(),
            left_out: Vec::new(),
            cut: Vec::new(),
            failures: Vec::new(),
            repaired: Vec::new(),
        }
    }

    /// Adds the passes of one trace through one allocator.
    pub fn add(&mut self, trace: &NamedTrace, records: Vec<ReplayRecord>) {
        self.note_trace(trace);
        self.records.extend(records);
    }

    /// Notes that an allocator failed on a trace.
    pub fn fail(&mut self, trace: &NamedTrace, peer: Peer) {
        self.note_trace(trace);
        self.failures.push((trace.name.clone(), peer.to_string()));
    }

    /// Notes that a trace is left out for want of memory; returns the note.
    pub fn leave_out(&mut self, trace: &NamedTrace, available: u64) -> &str {
        self.left_out.push_mut(format!(
            "{} is left out: its peak of {} does not fit in half of the {} of memory that is free.",
            trace.name,
            human(trace.peak_live),
            human(available)
        ))
    }

    /// Whether anything failed.
    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    fn note_trace(&mut self, trace: &NamedTrace) {
        if !self.traces.contains(&trace.name) {
            self.traces.push(trace.name.clone());
            if let Some(rows) = trace.cut_at {
                self.cut.push(format!("Only the first {rows} rows of {} were replayed.", trace.name));
            }
            if trace.anomalies().count() > 0 {
                self.repaired.push(format!("{} was repaired: {}.", trace.name, trace.anomalies()));
            }
        }
    }

    fn record(&self, trace: &str, peer: &str, pass: u32) -> Option<&ReplayRecord> {
        self.records.iter().find(|record| record.trace == trace && record.allocator == peer && record.pass == pass)
    }

    fn ns(&self, trace: &str, peer: &str) -> Option<f64> {
        Some(self.record(trace, peer, self.timed_pass)?.ns_per_op)
    }

    fn mean_ns(&self, peer: &str) -> Option<f64> {
        let all: Option<Vec<f64>> = self.traces.iter().map(|trace| self.ns(trace, peer)).collect();
        geometric_mean(all?)
    }

    fn any_of(&self, trace: &str) -> Option<&ReplayRecord> {
        self.records.iter().find(|record| record.trace == trace)
    }

    fn times(&self) -> Table {
        let columns = ["trace", "operations", "peak live"].map(str::to_owned);
        let title = format!(
            "Time per operation in ns, pass {} of {}, {}, {}",
            self.timed_pass,
            self.passes,
            if self.threads { "a thread for each recorded one" } else { "one thread" },
            if self.touch { "every page written to" } else { "memory not touched" },
        );
        let mut table = Table::new(title, columns.iter().chain(&self.peers));
        for trace in &self.traces {
            let about = self.any_of(trace).map(|record| (record.ops.to_string(), human(record.peak_live)));
            let (operations, peak) = about.unwrap_or_default();
            let times = self.peers.iter().map(|peer| show(self.ns(trace, peer), 1));
            table.row([trace.clone(), operations, peak].into_iter().chain(times));
        }
        table.rule();
        let blank = || [String::new(), String::new()];
        let means = self.peers.iter().map(|peer| show(self.mean_ns(peer), 1));
        table.row(std::iter::once("geometric mean".to_owned()).chain(blank()).chain(means));
        if let Some(pool) = self.mean_ns("pool") {
            let ratios = self.peers.iter().map(|peer| match self.mean_ns(peer) {
                Some(mean) => format!("{:.2}x", mean / pool),
                None => "-".to_owned(),
            });
            table.row(std::iter::once("over the pool's".to_owned()).chain(blank()).chain(ratios));
        }
        if self.peers.iter().any(|peer| peer == "null") {
            table.note("null is the loop without an allocator; it is part of all other figures.");
        }
        table
    }

    /// The allocators that know what they reserve.
    fn knowing(&self) -> Vec<&String> {
        let knows = |peer: &&String| {
            self.records.iter().any(|record| record.allocator == **peer && record.reserved_ratio.is_some())
        };
        self.peers.iter().filter(knows).collect()
    }

    fn reserved(&self) -> Option<Table> {
        let knowing = self.knowing();
        let cases: Vec<(&str, u32)> =
            knowing.iter().flat_map(|peer| (1..=self.passes).map(|pass| (peer.as_str(), pass))).collect();
        let names =
            cases.iter().map(|(peer, pass)| if *pass == 1 { format!("{peer}, pass 1") } else { pass.to_string() });
        let mut table = Table::new(
            "Peak of reserved bytes over peak of live bytes, pass by pass",
            std::iter::once("trace".to_owned()).chain(names),
        );
        let ratio = |trace: &str, peer: &str, pass| self.record(trace, peer, pass)?.reserved_ratio;
        for trace in &self.traces {
            let ratios = cases.iter().map(|&(peer, pass)| show(ratio(trace, peer, pass), 3));
            table.row(std::iter::once(trace.clone()).chain(ratios));
        }
        table.rule();
        let mean = |&(peer, pass): &(&str, u32)| {
            let all: Option<Vec<f64>> = self.traces.iter().map(|trace| ratio(trace, peer, pass)).collect();
            show(all.and_then(geometric_mean), 3)
        };
        table.row(std::iter::once("geometric mean".to_owned()).chain(cases.iter().map(mean)));
        let worst = |&(peer, pass): &(&str, u32)| {
            show(self.traces.iter().filter_map(|trace| ratio(trace, peer, pass)).reduce(f64::max), 3)
        };
        table.row(std::iter::once("worst".to_owned()).chain(cases.iter().map(worst)));
        if knowing.len() < self.peers.len() {
            table.note("The other allocators don't know what they hold.");
        }
        (!knowing.is_empty() && !self.traces.is_empty()).then_some(table)
    }

    fn calls(&self) -> Option<Table> {
        let knowing = self.knowing();
        let columns = ["trace", "allocator"].map(str::to_owned).into_iter();
        let passes = (1..=self.passes).map(|pass| format!("pass {pass}"));
        let columns = columns.chain(passes).chain(["hits".to_owned(), "misses".to_owned()]);
        let mut table = Table::new("Calls to the device: create/map/unmap/release", columns);
        for trace in &self.traces {
            for (at, peer) in knowing.iter().enumerate() {
                let calls = (1..=self.passes).map(|pass| {
                    let calls = self.record(trace, peer, pass).and_then(|record| record.provider_calls);
                    calls.map_or_else(unknown, |calls| {
                        format!("{}/{}/{}/{}", calls.create, calls.map, calls.unmap, calls.release)
                    })
                });
                let timed = self.record(trace, peer, self.timed_pass);
                let share = |record: &ReplayRecord| {
                    Some(format!("{:.1}%", record.hits? as f64 * 200.0 / record.ops.max(1) as f64))
                };
                let hits = timed.and_then(share).unwrap_or_else(unknown);
                let misses = timed.and_then(|record| record.misses).map_or_else(unknown, |misses| misses.to_string());
                let name = if at == 0 { trace.clone() } else { String::new() };
                table.row([name, (*peer).clone()].into_iter().chain(calls).chain([hits, misses]));
            }
        }
        table.note(format!("Hits of thread caches and misses are those of pass {}.", self.timed_pass));
        (!knowing.is_empty() && !self.traces.is_empty()).then_some(table)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.traces.is_empty() {
            writeln!(f, "{}", self.times())?;
        }
        if let Some(table) = self.reserved() {
            writeln!(f, "{table}")?;
        }
        if let Some(table) = self.calls() {
            writeln!(f, "{table}")?;
        }
        self.left_out.iter().chain(&self.cut).chain(&self.repaired).try_for_each(|note| writeln!(f, "{note}"))?;
        self.failures.iter().try_for_each(|(trace, peer)| writeln!(f, "{trace} FAILED through {peer}; see above."))
    }
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(unknown, |value| format!("{value:.digits$}"))
}

fn unknown() -> String {
    "-".to_owned()
}
