//! All workloads, one after the other, each on a fresh allocator. One that fails is noted, and the next is run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alloc_core::{DeviceAllocator, Stream};
use alloc_trace::{PassReport, Replay};
use clap::ValueEnum;

use super::plan::{self, RandomAllocations};
use super::producer_consumer::{self, Kind};
use super::record::PeerRecord;
use super::schedule::{Measured, Schedule};
use super::{larson, pair, random_allocations, threads, xmalloc};
use crate::traces::{Extent, NamedTrace};
use crate::workload::{Churning, WorkloadError};

/// What this workspace's pool is called among its peers.
pub const OURS: &str = "alloc-pool";

/// Streams that the workloads need.
pub const STREAMS: usize = 16;

/// Passes of replays and of random allocations.
pub const PASSES: u32 = 3;

/// Rows of each trace that are replayed to see that everything works.
pub const QUICK_ROWS: usize = 20_000;

const MIB: u64 = 1 << 20;
const PAIRS: [(&str, u64); 5] =
    [("512 B", 512), ("64 KiB", 64 << 10), ("1 MiB", MIB), ("20 MiB", 20 * MIB), ("256 MiB", 256 * MIB)];
const RANDOM_MIB: [u32; 4] = [1, 4, 64, 1024];
const THREADS: [usize; 5] = [1, 2, 4, 8, 16];
const THREAD_PAIRS: [usize; 3] = [1, 4, 8];

/// A workload by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Bench {
    /// Recordings of real programs
    Replay,
    /// One block again and again
    Pair,
    /// 2,000 living blocks
    Churn,
    /// Random allocations and releases
    Random,
    /// Threads with streams of their own
    Threads,
    /// One thread allocates, another releases
    ProducerConsumer,
    /// Arrays of blocks that go from thread to thread
    Larson,
    /// Threads that allocate, and threads that release
    Xmalloc,
}

/// Where allocators come from.
pub trait Backend {
    /// What is measured.
    type Allocator: DeviceAllocator;

    /// `cuda` or `cpu`.
    fn name(&self) -> &'static str;

    /// The device, as people call it.
    fn device(&self) -> &str;

    /// [`STREAMS`] streams that don't wait for one another.
    fn streams(&self) -> &[Stream];

    /// A fresh allocator in its default configuration, which will have to hold so many bytes at a time.
    ///
    /// # Errors
    /// What the backend reports.
    fn allocator(&self, peak: u64) -> anyhow::Result<Self::Allocator>;
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The workloads.
    pub benches: Vec<Bench>,
    /// The recordings.
    pub traces: Vec<PathBuf>,
    /// Short, to see that everything works.
    pub is_quick: bool,
}

/// What is known of a workload before it is run.
struct Case {
    bench: &'static str,
    case: String,
    threads: u32,
    streams: u32,
    unit: &'static str,
    peak_live: Option<u64>,
}

impl Suite {
    /// Runs everything, telling `sink` of each result.
    pub fn run<B: Backend>(&self, backend: &B, mut sink: impl FnMut(PeerRecord)) {
        let mut runner = Runner { suite: self, backend, sink: &mut sink };
        for bench in &self.benches {
            match bench {
                Bench::Replay => self.traces.iter().for_each(|path| runner.replay(path)),
                Bench::Pair => runner.pairs(),
                Bench::Churn => runner.churn(),
                Bench::Random => runner.random(),
                Bench::Threads => runner.threads(),
                Bench::ProducerConsumer => runner.producers_and_consumers(),
                Bench::Larson => runner.larson(),
                Bench::Xmalloc => runner.xmalloc(),
            }
        }
    }

    /// How much of each recording is replayed.
    pub fn extent(&self) -> Extent {
        if self.is_quick { Extent::Rows(QUICK_ROWS) } else { Extent::Whole }
    }

    fn schedule(&self, schedule: Schedule) -> Schedule {
        if self.is_quick { schedule.quick() } else { schedule }
    }

    fn counts<'a>(&self, all: &'a [usize]) -> &'a [usize] {
        if self.is_quick { &all[..2] } else { all }
    }
}

struct Runner<'a, B> {
    suite: &'a Suite,
    backend: &'a B,
    sink: &'a mut dyn FnMut(PeerRecord),
}

impl<B: Backend> Runner<'_, B> {
    fn replay(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut case = Case::new("replay", name.split('.').next().unwrap_or_default(), 1, "call");
        let mut reports = Vec::new();
        let outcome = self.try_replay(path, &mut case, &mut reports);
        for report in &reports {
            let mut record = self.record(&case);
            record.pass = Some(report.pass);
            record.is_one_run(report.operations, report.elapsed);
            record.holds(report.peak_reserved());
            (self.sink)(record);
        }
        if let Err(error) = outcome {
            self.failed(&case, Some(reports.len() as u32 + 1), &error);
        }
    }

    fn try_replay(&self, path: &Path, case: &mut Case, reports: &mut Vec<PassReport>) -> anyhow::Result<()> {
        let trace = NamedTrace::load(path, self.suite.extent())?;
        let recorded = trace.trace.streams().len();
        case.case.clone_from(&trace.name);
        case.streams = recorded as u32;
        case.peak_live = Some(trace.peak_live);
        let streams = self.backend.streams().get(..recorded);
        let streams = streams.ok_or_else(|| anyhow::anyhow!("{recorded} streams are more than {STREAMS}"))?;
        let allocator = self.backend.allocator(trace.peak_live)?;
        let replay = Replay::new(&trace.trace).passes(PASSES).streams(streams);
        Ok(replay.run_with(&allocator, |report| reports.push(report.clone()))?)
    }

    fn pairs(&mut self) {
        for (name, bytes) in PAIRS {
            let case = Case { peak_live: Some(bytes), ..Case::new("pair", name, 1, "pair") };
            self.measure(&case, bytes, |allocator, streams, suite| {
                pair::run(allocator, streams[0], bytes, suite.schedule(Schedule::ONE_THREAD))
            });
        }
    }

    fn churn(&mut self) {
        let churn = plan::churn();
        let case = Case { peak_live: Some(plan::peak_of(&churn)), ..Case::new("churn", "2000 live", 1, "pair") };
        self.measure(&case, churn.most_bytes(), |allocator, streams, suite| {
            let mut churning = Churning::start(allocator, streams[0], &churn)?;
            suite.schedule(Schedule::ONE_THREAD).measure(|units| churning.steps(units))
        });
    }

    fn random(&mut self) {
        for most_mib in RANDOM_MIB {
            let allocations = if self.suite.is_quick { 2_000 } else { 100_000 };
            let plan = RandomAllocations::new(most_mib, allocations);
            let name = format!("up to {most_mib} MiB");
            let case = Case { peak_live: Some(plan.peak_live), ..Case::new("random", &name, 1, "call") };
            if let Err((pass, error)) = self.try_random(&case, &plan) {
                self.failed(&case, Some(pass), &error);
            }
        }
    }

    fn try_random(&mut self, case: &Case, plan: &RandomAllocations) -> Result<(), (u32, anyhow::Error)> {
        let allocator = self.backend.allocator(plan.peak_live).map_err(|error| (1, error))?;
        for pass in 1..=PASSES {
            let stream = self.backend.streams()[0];
            let done = random_allocations::pass(&allocator, stream, plan, random_allocations::LIMIT);
            let done = done.map_err(|error| (pass, error.into()))?;
            let mut record = self.record(case);
            record.pass = Some(pass);
            record.complete = done.complete;
            record.is_one_run(done.ops, done.elapsed);
            record.holds(Some(allocator.statistics().reserved.peak));
            (self.sink)(record);
            if !done.complete {
                break;
            }
        }
        Ok(())
    }

    fn threads(&mut self) {
        for &count in self.suite.counts(&THREADS) {
            let case = Case::on_streams("threads", &plural(count, "thread"), count, count);
            self.measure(&case, count as u64 * 200 * MIB, |allocator, streams, suite| {
                threads::run(allocator, &streams[..count], suite.schedule(Schedule::THREADS))
            });
        }
    }

    fn producers_and_consumers(&mut self) {
        for &count in self.suite.counts(&THREAD_PAIRS) {
            for kind in Kind::ALL {
                let name = match kind {
                    Kind::TwoThreads => plural(count, "pair"),
                    Kind::OneThreadThroughTheRing => format!("{}, ring", plural(count, "thread")),
                    Kind::OneThreadBatchByBatch => format!("{}, batch", plural(count, "thread")),
                };
                let case = Case::on_streams("producer_consumer", &name, count * kind.threads() as usize, count);
                self.measure(&case, count as u64 * 1024 * MIB, |allocator, streams, suite| {
                    producer_consumer::run(allocator, &streams[..count], kind, suite.schedule(Schedule::THREADS))
                });
            }
        }
    }

    fn larson(&mut self) {
        for &count in self.suite.counts(&THREADS) {
            let case = Case::on_streams("larson", &plural(count, "thread"), count, count);
            self.measure(&case, count as u64 * 1024 * MIB, |allocator, streams, suite| {
                larson::run(allocator, &streams[..count], suite.schedule(Schedule::THREADS))
            });
        }
    }

    fn xmalloc(&mut self) {
        for &count in self.suite.counts(&THREAD_PAIRS) {
            let case = Case::on_streams("xmalloc", &format!("{count} + {}", plural(count, "thread")), 2 * count, count);
            self.measure(&case, count as u64 * 1024 * MIB, |allocator, streams, suite| {
                xmalloc::run(allocator, &streams[..count], suite.schedule(Schedule::THREADS))
            });
        }
    }

    /// Runs a workload that is measured in rounds, on a fresh allocator.
    fn measure(
        &mut self,
        case: &Case,
        peak: u64,
        work: impl FnOnce(&B::Allocator, &[Stream], &Suite) -> Result<Measured, WorkloadError>,
    ) {
        let run = || -> anyhow::Result<(Measured, u64)> {
            let allocator = self.backend.allocator(peak)?;
            let measured = work(&allocator, self.backend.streams(), self.suite)?;
            Ok((measured, allocator.statistics().reserved.peak))
        };
        match run() {
            Ok((measured, reserved)) => {
                let mut record = self.record(case);
                record.is_measured(measured);
                record.holds(Some(reserved));
                (self.sink)(record);
            }
            Err(error) => self.failed(case, None, &error),
        }
    }

    fn failed(&mut self, case: &Case, pass: Option<u32>, error: &anyhow::Error) {
        let mut record = self.record(case);
        record.pass = pass;
        record.complete = false;
        record.error = Some(format!("{error:#}"));
        (self.sink)(record);
    }

    fn record(&self, case: &Case) -> PeerRecord {
        PeerRecord {
            bench: case.bench.to_owned(),
            backend: self.backend.name().to_owned(),
            device: self.backend.device().to_owned(),
            allocator: OURS.to_owned(),
            case: case.case.clone(),
            threads: case.threads,
            streams: case.streams,
            pass: None,
            unit: case.unit.to_owned(),
            ops: 0,
            elapsed_ns: 0,
            ns_per_op: None,
            ops_per_second: None,
            peak_live: case.peak_live,
            peak_reserved: None,
            reserved_ratio: None,
            complete: true,
            error: None,
        }
    }
}

impl Case {
    fn new(bench: &'static str, case: &str, streams: u32, unit: &'static str) -> Self {
        Self { bench, case: case.to_owned(), threads: 1, streams, unit, peak_live: None }
    }

    fn on_streams(bench: &'static str, case: &str, threads: usize, streams: usize) -> Self {
        Self { threads: threads as u32, ..Self::new(bench, case, streams as u32, "pair") }
    }
}

impl PeerRecord {
    fn is_one_run(&mut self, ops: u64, elapsed: Duration) {
        self.is_measured(Measured::of_rounds(&[(ops, elapsed)]));
    }

    fn is_measured(&mut self, measured: Measured) {
        self.ops = measured.ops;
        self.elapsed_ns = u64::try_from(measured.elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.ns_per_op = Some(1e9 / measured.per_second);
        self.ops_per_second = Some(measured.per_second);
    }

    fn holds(&mut self, peak_reserved: Option<u64>) {
        self.peak_reserved = peak_reserved;
        self.reserved_ratio = match (peak_reserved, self.peak_live) {
            (Some(reserved), Some(live)) if live > 0 => Some(reserved as f64 / live as f64),
            _ => None,
        };
    }
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
