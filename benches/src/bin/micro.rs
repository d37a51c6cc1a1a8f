//! The synthetic benches in a few seconds: pair, churn, threads and buffers through several allocators, with the
//! ratios that this project holds itself to. `cargo bench` takes longer and gives distributions.

use std::alloc::{GlobalAlloc, Layout as HeapLayout};
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use alloc_core::{AllocatorHandle, DeviceAllocator, Layout, Stream};
use anyhow::{Context, ensure};
use benches::allocators::{Peer, Visitor, host_pool};
use benches::record::{MicroRecord, print_json};
use benches::table::Table;
use benches::timing::{Effort, median};
use benches::workload::{Churn, Churning, OffsetChurning, StreamChoice, WorkloadError, churn_on_threads, pairs};
use buffer::Buffer;
use clap::Parser;
use serde::Serialize;

/// Pair, churn, threads and buffers through several allocators.
#[derive(Debug, Parser)]
#[command(name = "micro")]
struct Options {
    /// Compare only these allocators
    #[arg(long = "allocator", value_name = "NAME")]
    allocators: Vec<Peer>,

    /// The most threads (default: as many as there are processors)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,

    /// Shorter and less exact
    #[arg(long)]
    quick: bool,

    /// Print one JSON object a line instead of tables
    #[arg(long)]
    json: bool,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PAIR_BYTES: [u64; 5] = [512, 4 * KIB, 64 * KIB, MIB, 20 * MIB];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let mut results = Results { json: options.json, records: Vec::new() };
    let (reference_name, reference) = reference_pair(effort);
    results.add("pair", reference_name, "64 B, as a heap", reference, 1)?;
    let offsets = offset_churn(effort)?;
    results.add("churn", "offset-allocator", "2000 live", offsets, 1)?;

    let chosen = if options.allocators.is_empty() { Peer::DEFAULT } else { &options.allocators };
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let most = options.threads.unwrap_or(processors).max(1);
    // With one processor two threads are still measured: the ratio then says what the machine can't do.
    let mut counts: Vec<u32> = (0..).map(|power| 1 << power).take_while(|&count| count <= most).collect();
    if counts.last() != Some(&most) {
        counts.push(most);
    }
    for &peer in chosen {
        peer.visit(
            Churn::large().most_bytes(),
            false,
            RunAll { peer, effort, counts: &counts, results: &mut results },
        )??;
    }
    for bytes in [512, MIB] {
        let handle = AllocatorHandle::from(Arc::new(host_pool(MIB, false)?));
        let ns = effort.ns_per_unit(|units| {
            for _ in 0..units {
                drop(black_box(Buffer::new(handle.clone(), black_box(bytes))));
            }
        });
        results.add("buffer", "pool", &label(bytes), ns, 1)?;
    }
    let bars = results.bars(reference, offsets);
    if options.json {
        bars.iter().try_for_each(print_json)?;
    } else {
        write!(std::io::stdout().lock(), "{}\n{}", results.table(), table_of(&bars, reference_name))?;
    }
    Ok(())
}

/// The time of a pair of 64 B through the fastest heap at hand.
fn reference_pair(effort: Effort) -> (&'static str, f64) {
    #[cfg(feature = "jemalloc")]
    let (name, heap) = ("jemalloc", tikv_jemallocator::Jemalloc);
    #[cfg(not(feature = "jemalloc"))]
    let (name, heap) = ("mimalloc", mimalloc::MiMalloc);
    let layout = HeapLayout::new::<[u64; 8]>();
    let ns = effort.ns_per_unit(|units| {
        for _ in 0..units {
            // SAFETY: the layout's size is not zero; what it gives is released once, by the same layout.
            unsafe { heap.dealloc(black_box(heap.alloc(black_box(layout))), layout) };
        }
    });
    (name, ns)
}

fn offset_churn(effort: Effort) -> anyhow::Result<f64> {
    let mut churning = OffsetChurning::start(&Churn::large()).context("the churn does not fit in 32 bits")?;
    let mut fits = true;
    let ns = effort.ns_per_unit(|units| fits &= churning.steps(units));
    ensure!(fits, "the offset allocator is full");
    Ok(ns)
}

/// Everything that is measured of one allocator.
struct RunAll<'a> {
    peer: Peer,
    effort: Effort,
    counts: &'a [u32],
    results: &'a mut Results,
}

impl Visitor for RunAll<'_> {
    type Output = anyhow::Result<()>;

    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) -> Self::Output {
        let name = self.peer.to_string();
        for bytes in PAIR_BYTES {
            let layout = Layout::bytes(bytes)?;
            let mut outcome = Ok(());
            let ns = self.effort.ns_per_unit(|units| keep_first(&mut outcome, pairs(&allocator, layout, units)));
            outcome.with_context(|| format!("pair through {name}"))?;
            self.results.add("pair", &name, &label(bytes), ns, 1)?;
        }
        {
            let mut churning = Churning::start(&allocator, Stream::DEFAULT, &Churn::large())?;
            let mut outcome = Ok(());
            let ns = self.effort.ns_per_unit(|units| keep_first(&mut outcome, churning.steps(units)));
            outcome.with_context(|| format!("churn through {name}"))?;
            self.results.add("churn", &name, "2000 live", ns, 1)?;
        }
        for streams in [StreamChoice::Own, StreamChoice::Shared] {
            for &threads in self.counts {
                // Long enough that threads which start on one processor are soon spread over all.
                let units = (self.effort.round.as_nanos() / 10) as u64;
                let rounds =
                    (0..self.effort.rounds.div_ceil(3)).map(|_| churn_on_threads(&allocator, threads, streams, units));
                let times = rounds.collect::<Result<Vec<_>, _>>().with_context(|| format!("threads through {name}"))?;
                let ns = median(times.iter().map(|time| time.as_secs_f64() * 1e9 / units as f64));
                self.results.add("threads", &name, &threads_label(threads, streams), ns, threads)?;
            }
        }
        Ok(())
    }
}

fn keep_first(outcome: &mut Result<(), WorkloadError>, new: Result<(), WorkloadError>) {
    if outcome.is_ok() {
        *outcome = new;
    }
}

fn label(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= MIB => format!("{} MiB", bytes / MIB),
        bytes if bytes >= KIB => format!("{} KiB", bytes / KIB),
        bytes => format!("{bytes} B"),
    }
}

fn threads_label(threads: u32, streams: StreamChoice) -> String {
    match streams {
        StreamChoice::Own => format!("{threads}, own streams"),
        StreamChoice::Shared => format!("{threads}, one stream"),
    }
}

struct Results {
    json: bool,
    records: Vec<MicroRecord>,
}

/// A ratio that this project holds itself to.
#[derive(Debug, Serialize)]
struct Bar {
    bench: &'static str,
    bar: String,
    measured: f64,
    at_most: Option<f64>,
    at_least: Option<f64>,
    holds: bool,
}

impl Bar {
    fn at_most(bar: impl Into<String>, measured: f64, bound: f64) -> Self {
        let holds = measured <= bound;
        Self { bench: "bar", bar: bar.into(), measured, at_most: Some(bound), at_least: None, holds }
    }

    fn at_least(bar: impl Into<String>, measured: f64, bound: f64) -> Self {
        let holds = measured >= bound;
        Self { bench: "bar", bar: bar.into(), measured, at_most: None, at_least: Some(bound), holds }
    }
}

impl Results {
    fn add(&mut self, bench: &str, allocator: &str, case: &str, ns: f64, threads: u32) -> anyhow::Result<()> {
        let record = MicroRecord {
            bench: bench.to_owned(),
            backend: "cpu".to_owned(),
            allocator: allocator.to_owned(),
            case: case.to_owned(),
            ns,
            per_second: f64::from(threads) * 1e9 / ns,
        };
        if self.json {
            print_json(&record)?;
        }
        self.records.push(record);
        Ok(())
    }

    fn find(&self, bench: &str, allocator: &str, case: &str) -> Option<&MicroRecord> {
        self.records.iter().find(|record| record.bench == bench && record.allocator == allocator && record.case == case)
    }

    fn bars(&self, reference: f64, offsets: f64) -> Vec<Bar> {
        let mut bars = Vec::new();
        for (bytes, bound) in PAIR_BYTES.into_iter().zip([4.0, 4.0, 4.0, f64::INFINITY, 15.0]) {
            if let Some(pair) = self.find("pair", "pool", &label(bytes)).filter(|_| bound.is_finite()) {
                bars.push(Bar::at_most(
                    format!("pair of {} over the heap's of 64 B", label(bytes)),
                    pair.ns / reference,
                    bound,
                ));
            }
        }
        if let Some(churn) = self.find("churn", "pool", "2000 live") {
            bars.push(Bar::at_most("churn over offset-allocator's", churn.ns / offsets, 1.5));
        }
        let threads = |count| self.find("threads", "pool", &threads_label(count, StreamChoice::Own));
        if let (Some(one), Some(two)) = (threads(1), threads(2)) {
            bars.push(Bar::at_least("throughput of two threads over one's", two.per_second / one.per_second, 1.8));
        }
        bars
    }

    fn table(&self) -> Table {
        let mut allocators: Vec<&str> = Vec::new();
        let mut cases: Vec<(&str, &str)> = Vec::new();
        for record in &self.records {
            if !allocators.contains(&record.allocator.as_str()) {
                allocators.push(&record.allocator);
            }
            if !cases.contains(&(&record.bench, &record.case)) {
                cases.push((&record.bench, &record.case));
            }
        }
        let columns = ["bench", "case"].into_iter().chain(allocators.iter().copied());
        let mut table = Table::new("Time for an allocation and a release together, in ns", columns);
        cases.sort_by_key(|case| ["pair", "churn", "threads", "buffer"].iter().position(|bench| *bench == case.0));
        for (bench, case) in cases {
            let times = allocators.iter().map(|allocator| match self.find(bench, allocator, case) {
                Some(record) => format!("{:.1}", record.ns),
                None => "-".to_owned(),
            });
            table.row([bench.to_owned(), case.to_owned()].into_iter().chain(times));
        }
        table.note("threads: the time that each thread takes for one, all running at the same time.");
        table
    }
}

fn table_of(bars: &[Bar], reference: &str) -> Table {
    let mut table = Table::new("Ratios", ["ratio", "measured", "bound", "holds"]);
    for bar in bars {
        let bound = match (bar.at_most, bar.at_least) {
            (Some(bound), _) => format!("at most {bound}"),
            (None, Some(bound)) => format!("at least {bound}"),
            (None, None) => String::new(),
        };
        table.row([
            bar.bar.clone(),
            format!("{:.2}", bar.measured),
            bound,
            if bar.holds { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table.note(format!("The heap of the pairs is {reference}."));
    table
}
