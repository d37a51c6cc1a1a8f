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
    results.add("pair", HEAP_NAME, "64 B, as a heap", effort.ns_per_unit(heap_pairs), 1)?;
    results.add("churn", "offset-allocator", "2000 live", offset_churn(effort)?, 1)?;

    let chosen = if options.allocators.is_empty() { Peer::DEFAULT } else { &options.allocators };
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let most = options.threads.unwrap_or(processors).max(1);
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
    let bars = bars(effort, most)?;
    if options.json {
        bars.iter().try_for_each(print_json)?;
    } else {
        write!(std::io::stdout().lock(), "{}\n{}", results.table(), table_of(&bars, HEAP_NAME))?;
    }
    Ok(())
}

#[cfg(feature = "jemalloc")]
const HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
#[cfg(feature = "jemalloc")]
const HEAP_NAME: &str = "jemalloc";
#[cfg(not(feature = "jemalloc"))]
const HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[cfg(not(feature = "jemalloc"))]
const HEAP_NAME: &str = "mimalloc";

/// Pairs of 64 B through the fastest heap at hand.
fn heap_pairs(units: u64) {
    let layout = HeapLayout::new::<[u64; 8]>();
    for _ in 0..units {
        // SAFETY: the layout's size is not zero; what it gives is released once, by the same layout.
        unsafe { HEAP.dealloc(black_box(HEAP.alloc(black_box(layout))), layout) };
    }
}

/// The ratios that this project holds itself to: both sides take turns, and the fastest rounds of each are compared.
fn bars(effort: Effort, most_threads: u32) -> anyhow::Result<Vec<Bar>> {
    // Enough rounds to meet some in which the machine does nothing else.
    let effort = Effort { rounds: 3 * effort.rounds, ..effort };
    let pool = host_pool(Churn::large().most_bytes(), false)?;
    let mut bars = Vec::new();
    for (bytes, bound) in [(512, 4.0), (4 * KIB, 4.0), (64 * KIB, 4.0), (20 * MIB, 15.0)] {
        let layout = Layout::bytes(bytes)?;
        let mut outcome = Ok(());
        let ratio = effort.ratio(|units| keep_first(&mut outcome, pairs(&pool, layout, units)), heap_pairs);
        outcome.context("pair")?;
        bars.push(Bar::at_most(format!("pair of {} over the heap's of 64 B", label(bytes)), ratio, bound));
    }
    {
        let mut churning = Churning::start(&pool, Stream::DEFAULT, &Churn::large())?;
        let mut offsets = OffsetChurning::start(&Churn::large()).context("the churn does not fit in 32 bits")?;
        let (mut outcome, mut fits) = (Ok(()), true);
        let ratio =
            effort.ratio(|units| keep_first(&mut outcome, churning.steps(units)), |units| fits &= offsets.steps(units));
        outcome.context("churn")?;
        ensure!(fits, "the offset allocator is full");
        bars.push(Bar::at_most("churn over offset-allocator's", ratio, 1.5));
    }
    if most_threads >= 2 {
        let units = (effort.round.as_nanos() / 10) as u64;
        let time = |threads| churn_on_threads(&pool, threads, StreamChoice::Own, units).map(|time| time.as_secs_f64());
        let (mut one, mut two) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..effort.rounds {
            one = one.min(time(1).context("one thread")?);
            two = two.min(time(2).context("two threads")?);
        }
        bars.push(Bar::at_least("throughput of two threads over one's", 2.0 * one / two, 1.8));
    }
    Ok(bars)
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
