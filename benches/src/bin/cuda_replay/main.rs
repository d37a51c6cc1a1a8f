//! Replays allocation traces of real programs on a GPU, through this workspace's pool and through the driver's own
//! allocators, and shows what each costs: time with and without the driver's calls, memory reserved over memory
//! live, and the calls by kind.

mod timed;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{Addressing, DeviceAllocator, Stream};
use alloc_cuda::{AsyncAllocator, CudaStream, DeviceOptions, DeviceProvider, DirectAllocator};
use alloc_pool::{Pool, PoolConfig};
use alloc_trace::{PassReport, Replay};
use anyhow::{Context, ensure};
use benches::record::{Calls, print_json};
use benches::table::{Table, geometric_mean};
use benches::traces::{self, Extent, NamedTrace};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use timed::Timed;

/// Replays allocation traces on a GPU.
#[derive(Debug, Parser)]
#[command(name = "cuda_replay")]
struct Options {
    /// Replay these traces (RMM's CSV, plain, gzip or zstd) instead of those that come with the workspace
    #[arg(long = "trace", value_name = "FILE", num_args = 1..)]
    traces: Vec<PathBuf>,

    /// How often each trace is replayed on the same allocator; a warm time is the best of the later passes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    passes: u32,

    /// Compare only these allocators
    #[arg(long = "allocator", value_name = "NAME")]
    allocators: Vec<Peer>,

    /// The device
    #[arg(long, default_value_t = 0)]
    device: u16,

    /// Replay only this many rows of each trace through `direct`, whose calls take tens of microseconds
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    direct_rows: usize,

    /// Two passes over the first 20,000 rows of each trace, 2,000 through `direct`: to see that everything works
    #[arg(long)]
    quick: bool,

    /// Print one JSON object a line for each pass instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// This workspace's pool over pages that move
    Pool,
    /// The same after `Pool::grow_to`: it holds what will live at one time before that is asked for
    Grown,
    /// This workspace's pool over segments of `cuMemAlloc`
    Segments,
    /// `cuMemAllocAsync` and `cuMemFreeAsync`
    Async,
    /// `cuMemAlloc` and `cuMemFree`
    Direct,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Grown => "grown",
            Self::Segments => "segments",
            Self::Async => "async",
            Self::Direct => "direct",
        })
    }
}

/// One pass of one trace through one allocator.
#[derive(Clone, Debug, Serialize)]
struct Record {
    bench: &'static str,
    backend: &'static str,
    device: String,
    driver: String,
    allocator: String,
    trace: String,
    pass: u32,
    ops: u64,
    ns_per_op: f64,
    /// Without the time inside the driver; `null` where every operation is a call to the driver.
    ns_per_op_without_driver: Option<f64>,
    peak_live: u64,
    peak_reserved: Option<u64>,
    reserved_ratio: Option<f64>,
    moves: u64,
    hits: u64,
    misses: u64,
    provider_calls: Calls,
}

struct Bench {
    options: Options,
    device: String,
    driver: String,
    records: Vec<Record>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let info = alloc_cuda::device_info(options.device).context("no GPU to replay on")?;
    let (major, minor) = alloc_cuda::driver_version()?;
    let driver = format!("CUDA {major}.{minor}");
    let mut bench = Bench { options, device: info.name, driver, records: Vec::new() };
    if !bench.options.json {
        println!("{} ({} bytes), driver for {}", bench.device, info.total_memory, bench.driver);
    }
    let paths =
        if bench.options.traces.is_empty() { traces::shipped()? } else { std::mem::take(&mut bench.options.traces) };
    let all = [Peer::Pool, Peer::Segments, Peer::Async, Peer::Direct];
    let peers = if bench.options.allocators.is_empty() { all.to_vec() } else { bench.options.allocators.clone() };
    let mut names = Vec::new();
    for (name, path) in traces::names(&paths) {
        for peer in &peers {
            bench.replay(&name, path, *peer).with_context(|| format!("{} through {peer}", path.display()))?;
        }
        names.push(name);
    }
    if !bench.options.json {
        write!(std::io::stdout().lock(), "{}", bench.summary(&names, &peers)).context("standard output")?;
    }
    Ok(())
}

impl Bench {
    /// How many rows are replayed through `direct`.
    fn direct_rows(&self) -> usize {
        if self.options.quick { self.options.direct_rows.min(2_000) } else { self.options.direct_rows }
    }

    fn replay(&mut self, name: &str, path: &std::path::Path, peer: Peer) -> anyhow::Result<()> {
        let rows = match (self.options.quick, peer) {
            (_, Peer::Direct) => Extent::Rows(self.direct_rows()),
            (true, _) => Extent::Rows(20_000),
            (false, _) => Extent::Whole,
        };
        let trace = NamedTrace { name: name.to_owned(), ..NamedTrace::load(path, rows)? };
        let ordinal = self.options.device;
        let streams: Vec<CudaStream> =
            trace.trace.streams().iter().map(|_| CudaStream::new(ordinal)).collect::<Result<_, _>>()?;
        let names: Vec<Stream> = streams.iter().map(CudaStream::stream).collect();
        let passes = if self.options.quick || peer == Peer::Direct { 2 } else { self.options.passes };
        let replay = Replay::new(&trace.trace).passes(passes).streams(names.clone());
        let in_driver = Arc::new(AtomicU64::new(0));
        match peer {
            Peer::Pool | Peer::Grown | Peer::Segments => {
                let addressing = if peer == Peer::Segments { Addressing::Segmented } else { Addressing::Mapped };
                let inner = DeviceProvider::new(ordinal, &DeviceOptions::default().addressing(addressing))?;
                let provider = Timed::new(inner, Arc::clone(&in_driver));
                let pool = Pool::new(provider, PoolConfig::from_env()?)?;
                if peer == Peer::Grown {
                    pool.grow_to(trace.peak_live, names.first().copied().unwrap_or(Stream::DEFAULT))?;
                    in_driver.store(0, Ordering::Relaxed);
                }
                self.run(&replay, &pool, peer, &trace, Some(&in_driver))?;
                for stream in &streams {
                    pool.retire_stream(stream.stream());
                }
            }
            Peer::Async => self.run(&replay, &AsyncAllocator::new(ordinal)?, peer, &trace, None)?,
            Peer::Direct => self.run(&replay, &DirectAllocator::new(ordinal)?, peer, &trace, None)?,
        }
        Ok(())
    }

    fn run<A: DeviceAllocator>(
        &mut self,
        replay: &Replay<'_>,
        allocator: &A,
        peer: Peer,
        trace: &NamedTrace,
        in_driver: Option<&AtomicU64>,
    ) -> anyhow::Result<()> {
        let mut reports: Vec<(PassReport, Option<u64>)> = Vec::new();
        replay.run_with(allocator, |report| {
            reports.push((report.clone(), in_driver.map(|time| time.swap(0, Ordering::Relaxed))));
        })?;
        ensure!(!reports.is_empty(), "nothing was replayed");
        for (report, driver) in reports {
            let without = driver.map(|driver| {
                (report.elapsed.as_nanos() as f64 - driver as f64).max(0.0) / report.operations.max(1) as f64
            });
            let record = Record {
                bench: "replay",
                backend: "cuda",
                device: self.device.clone(),
                driver: self.driver.clone(),
                allocator: peer.to_string(),
                trace: trace.name.clone(),
                pass: report.pass,
                ops: report.operations,
                ns_per_op: report.ns_per_operation(),
                ns_per_op_without_driver: without,
                peak_live: report.peak_live,
                peak_reserved: report.peak_reserved(),
                reserved_ratio: report.reserved_ratio(),
                moves: report.moves(),
                hits: report.hits(),
                misses: report.misses(),
                provider_calls: report.provider_calls().into(),
            };
            if self.options.json {
                print_json(&record).context("standard output")?;
            }
            self.records.push(record);
        }
        Ok(())
    }

    fn of(&self, trace: &str, peer: Peer) -> impl DoubleEndedIterator<Item = &Record> + use<'_> {
        let (trace, name) = (trace.to_owned(), peer.to_string());
        self.records.iter().filter(move |record| record.trace == trace && record.allocator == name)
    }

    fn first(&self, trace: &str, peer: Peer) -> Option<&Record> {
        self.of(trace, peer).find(|record| record.pass == 1)
    }

    fn warm(&self, trace: &str, peer: Peer) -> Option<&Record> {
        self.of(trace, peer)
            .filter(|record| record.pass > 1)
            .min_by(|one, other| one.ns_per_op.total_cmp(&other.ns_per_op))
    }

    fn summary(&self, traces: &[String], peers: &[Peer]) -> String {
        type Figure = fn(&Bench, &str, Peer) -> Option<f64>;
        let figures: [(&str, usize, Figure); 4] = [
            ("Time per operation in ns, best warm pass", 1, |bench, trace, peer| {
                Some(bench.warm(trace, peer)?.ns_per_op)
            }),
            ("The same without the time inside the driver's calls", 1, |bench, trace, peer| {
                bench.warm(trace, peer)?.ns_per_op_without_driver
            }),
            ("Time per operation in ns, first pass", 1, |bench, trace, peer| Some(bench.first(trace, peer)?.ns_per_op)),
            ("Peak of reserved bytes over peak of live bytes, first pass", 3, |bench, trace, peer| {
                bench.first(trace, peer)?.reserved_ratio
            }),
        ];
        let show = |figure: Option<f64>, digits: usize| match figure {
            Some(figure) => format!("{figure:.digits$}"),
            None => "-".to_owned(),
        };
        let mut text = String::new();
        for (title, digits, figure) in figures {
            let columns = std::iter::once("trace".to_owned()).chain(peers.iter().map(Peer::to_string));
            let mut table = Table::new(title, columns);
            for trace in traces {
                let cells = peers.iter().map(|peer| show(figure(self, trace, *peer), digits));
                table.row(std::iter::once(trace.clone()).chain(cells));
            }
            table.rule();
            let all =
                |peer: &Peer| -> Option<Vec<f64>> { traces.iter().map(|trace| figure(self, trace, *peer)).collect() };
            let means = peers.iter().map(|peer| show(all(peer).and_then(geometric_mean), digits));
            table.row(std::iter::once("geometric mean".to_owned()).chain(means));
            let worst = peers
                .iter()
                .map(|peer| show(all(peer).and_then(|figures| figures.into_iter().reduce(f64::max)), digits));
            table.row(std::iter::once("worst".to_owned()).chain(worst));
            text.push_str(&format!("{table}\n"));
        }
        let columns = ["trace", "allocator", "pass 1", "last pass", "moves in pass 1"];
        let mut table = Table::new("Calls to the driver: create/map/unmap/release, record/query/wait", columns);
        for trace in traces {
            for peer in peers {
                let last = self.of(trace, *peer).next_back();
                let calls = |record: Option<&Record>| {
                    record.map_or_else(String::new, |record| {
                        let Calls { create, map, unmap, release, record, query, wait, .. } = record.provider_calls;
                        format!("{create}/{map}/{unmap}/{release}, {record}/{query}/{wait}")
                    })
                };
                let first = self.first(trace, *peer);
                let moves = first.map_or_else(String::new, |record| record.moves.to_string());
                table.row([trace.clone(), peer.to_string(), calls(first), calls(last), moves]);
            }
        }
        table.note(format!(
            "direct replays the first {} rows of each trace; on all of them its calls take minutes.",
            self.direct_rows()
        ));
        text.push_str(&table.to_string());
        text
    }
}
