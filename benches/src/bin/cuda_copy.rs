//! Page-locked memory and copies on a GPU: what a segment of page-locked memory costs by either method, and how fast
//! host memory of each kind is copied, against the driver's own way.

use std::hint::black_box;
use std::time::Instant;

use alloc_core::{Address, Device, DeviceAllocator, Layout, MemoryProvider, Place, StreamSet, Transfer};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions, PinnedMethod, PinnedProvider};
use alloc_pool::PoolConfig;
use anyhow::{Context, ensure};
use benches::record::print_json;
use benches::table::Table;
use benches::timing::median;
use clap::Parser;
use serde::Serialize;

/// Measures page-locked memory and copies on a GPU.
#[derive(Debug, Parser)]
#[command(name = "cuda_copy")]
struct Options {
    /// The device
    #[arg(long, default_value_t = 0)]
    device: u16,

    /// Three rounds of each instead of eleven
    #[arg(long)]
    quick: bool,

    /// Print one JSON object a line instead of tables
    #[arg(long)]
    json: bool,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Record {
    bench: &'static str,
    backend: &'static str,
    device: String,
    driver: String,
    /// What was done.
    case: &'static str,
    /// By whom.
    method: &'static str,
    bytes: u64,
    microseconds: f64,
    gigabytes_per_second: f64,
}

const SIZES: [u64; 4] = [64 << 10, 1 << 20, 16 << 20, 256 << 20];
const LARGEST: u64 = 256 << 20;

struct Bench {
    options: Options,
    device: String,
    driver: String,
    records: Vec<Record>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let info = alloc_cuda::device_info(options.device).context("no GPU to measure")?;
    let (major, minor) = alloc_cuda::driver_version()?;
    let mut bench = Bench { options, device: info.name, driver: format!("CUDA {major}.{minor}"), records: Vec::new() };
    bench.page_locked()?;
    bench.copies()?;
    if !bench.options.json {
        println!("{}, driver for {}", bench.device, bench.driver);
        bench.show("Page-locked memory: microseconds for a segment", |record| record.microseconds, 1);
        bench.show("Copies: GB/s", |record| record.gigabytes_per_second, 1);
    }
    Ok(())
}

impl Bench {
    fn note(&mut self, case: &'static str, method: &'static str, bytes: u64, seconds: f64) -> anyhow::Result<()> {
        let record = Record {
            bench: if case.starts_with("page-locked") { "page-locked" } else { "copy" },
            backend: "cuda",
            device: self.device.clone(),
            driver: self.driver.clone(),
            case,
            method,
            bytes,
            microseconds: seconds * 1e6,
            gigabytes_per_second: bytes as f64 / seconds / 1e9,
        };
        if self.options.json {
            print_json(&record).context("standard output")?;
        }
        self.records.push(record);
        Ok(())
    }

    /// The median of some rounds, in seconds, after one that warms up.
    fn rounds(&self, mut round: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
        round()?;
        let count = if self.options.quick { 3 } else { 11 };
        let times = (0..count).map(|_| round()).collect::<anyhow::Result<Vec<f64>>>()?;
        Ok(median(times))
    }

    fn page_locked(&mut self) -> anyhow::Result<()> {
        let methods =
            [("huge pages, registered", PinnedMethod::Registered), ("cuMemHostAlloc", PinnedMethod::DriverAllocated)];
        for bytes in [16 << 20, LARGEST] {
            for (name, method) in methods {
                let provider = PinnedProvider::new(self.options.device, method)?;
                let mut releases = Vec::new();
                let created = self.rounds(|| {
                    let start = Instant::now();
                    let memory = provider.create(bytes)?;
                    let created = start.elapsed().as_secs_f64();
                    let start = Instant::now();
                    // SAFETY: nobody uses the memory.
                    unsafe { provider.release(memory, bytes) }?;
                    releases.push(start.elapsed().as_secs_f64());
                    Ok(created)
                })?;
                self.note("page-locked: obtain", name, bytes, created)?;
                self.note("page-locked: give back", name, bytes, median(releases))?;
            }
            let pool = alloc_cuda::pinned_pool(self.options.device, PinnedMethod::Registered, PoolConfig::default())?;
            let stream = CudaStream::new(self.options.device)?;
            let pair = self.rounds(|| {
                let start = Instant::now();
                for _ in 0..1000 {
                    let block = pool.allocate(Layout::bytes(bytes)?, stream.stream())?;
                    // SAFETY: nobody uses the block.
                    unsafe { pool.release(black_box(block), stream.stream(), StreamSet::EMPTY) }?;
                }
                Ok(start.elapsed().as_secs_f64() / 1000.0)
            })?;
            self.note("page-locked: obtain", "pool, warm, and give back", bytes, pair)?;
        }
        Ok(())
    }

    fn copies(&mut self) -> anyhow::Result<()> {
        let ordinal = self.options.device;
        let transfer = CudaTransfer::of(ordinal)?;
        let stream = CudaStream::new(ordinal)?;
        let device = alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default())?;
        let pinned = alloc_cuda::pinned_pool(ordinal, PinnedMethod::Registered, PoolConfig::default())?;
        let block = device.allocate(Layout::bytes(LARGEST)?, stream.stream())?;
        let locked = pinned.allocate(Layout::bytes(LARGEST)?, stream.stream())?;
        let mut pageable = vec![1_u8; LARGEST as usize];
        let start = Address::new(pageable.as_mut_ptr().expose_provenance() as u64);
        let there = Place { device: device.device(), address: block.address() };
        let sides = [
            ("page-locked host memory", "pool", Place { device: pinned.device(), address: locked.address() }),
            ("pageable host memory", "pool", Place { device: Device::CPU, address: start }),
            // Named as page-locked, pageable memory is left to the driver, which copies it its own way.
            ("pageable host memory", "driver", Place { device: pinned.device(), address: start }),
        ];
        for bytes in SIZES {
            for (kind, method, host) in sides {
                for up in [true, false] {
                    let (from, to) = if up { (host, there) } else { (there, host) };
                    let seconds = self.rounds(|| {
                        let begin = Instant::now();
                        // SAFETY: both places have as many bytes; the stream is waited for.
                        unsafe { transfer.copy(from, to, bytes, stream.stream()) }?;
                        stream.synchronize()?;
                        Ok(begin.elapsed().as_secs_f64())
                    })?;
                    let case = match (kind, up) {
                        ("page-locked host memory", true) => "copy: page-locked up",
                        ("page-locked host memory", false) => "copy: page-locked down",
                        (_, true) => "copy: pageable up",
                        (_, false) => "copy: pageable down",
                    };
                    self.note(case, method, bytes, seconds)?;
                }
            }
        }
        ensure!(pageable.iter().all(|byte| *byte == 1), "a copy changed what it copied");
        // SAFETY: the stream was waited for.
        unsafe { pinned.release(locked, stream.stream(), StreamSet::EMPTY) }?;
        // SAFETY: as above.
        unsafe { device.release(block, stream.stream(), StreamSet::EMPTY) }?;
        Ok(())
    }

    fn show(&self, title: &str, figure: impl Fn(&Record) -> f64, digits: usize) {
        let of_bench: Vec<&Record> = self
            .records
            .iter()
            .filter(|record| (record.bench == "page-locked") == title.starts_with("Page-locked"))
            .collect();
        let mut sizes: Vec<u64> = of_bench.iter().map(|record| record.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let columns = ["case", "method"].into_iter().map(str::to_owned);
        let mut table = Table::new(title, columns.chain(sizes.iter().map(|bytes| format!("{} KiB", bytes >> 10))));
        let mut rows: Vec<(&str, &str)> = of_bench.iter().map(|record| (record.case, record.method)).collect();
        let mut seen = Vec::new();
        rows.retain(|row| {
            let new = !seen.contains(row);
            seen.push(*row);
            new
        });
        for (case, method) in rows {
            let cells = sizes.iter().map(|bytes| {
                let found = of_bench.iter().find(|r| (r.case, r.method, r.bytes) == (case, method, *bytes));
                found.map_or_else(|| "-".to_owned(), |record| format!("{:.digits$}", figure(record)))
            });
            table.row([case.to_owned(), method.to_owned()].into_iter().chain(cells));
        }
        println!("{table}");
    }
}
