//! Several GPUs: copies across devices against the driver's own, what it costs to be open to peers, and NCCL on our memory.
//! Where there is one GPU, what one can show is measured, and what is left out is said.

mod copies;
mod hot_path;
mod nccl;

use anyhow::Context;
use benches::record::print_json;
use benches::timing::median;
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Measures several GPUs.
#[derive(Debug, Parser)]
#[command(name = "cuda_devices")]
struct Options {
    /// What to measure [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,

    /// Three rounds of each instead of twelve, and smaller sizes
    #[arg(long)]
    quick: bool,

    /// Print one JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Copies between devices, open to each other and not
    Copies,
    /// Allocations from pools that are open to peers and such that are not
    HotPath,
    /// All-reduce and all-gather over all devices
    Nccl,
}

type Run = fn(&Bench) -> anyhow::Result<()>;

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Record {
    bench: &'static str,
    device: String,
    driver: String,
    /// What was done.
    case: String,
    /// By whom.
    method: &'static str,
    bytes: u64,
    microseconds: f64,
    /// GB/s, where bytes moved.
    gigabytes_per_second: Option<f64>,
    /// Time over that of the reference, where there is one.
    ratio: Option<f64>,
}

struct Bench {
    options: Options,
    device: String,
    driver: String,
    count: u16,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let count = alloc_cuda::device_count().context("no GPU to measure")?;
    let (major, minor) = alloc_cuda::driver_version()?;
    let device = alloc_cuda::device_info(0)?.name;
    let bench = Bench { options, device, driver: format!("CUDA {major}.{minor}"), count };
    bench.say(&format!("{count} x {}, driver for {}", bench.device, bench.driver));
    let wanted = |part| bench.options.parts.is_empty() || bench.options.parts.contains(&part);
    // One part that fails is no reason to leave out the others.
    let mut failed = 0;
    let parts: [(Part, Run); 3] =
        [(Part::Copies, copies::run), (Part::HotPath, hot_path::run), (Part::Nccl, nccl::run)];
    for (part, run) in parts {
        if wanted(part)
            && let Err(error) = run(&bench)
        {
            eprintln!("{part:?}: {error:#}");
            failed += 1;
        }
    }
    anyhow::ensure!(failed == 0, "{failed} parts failed");
    Ok(())
}

impl Bench {
    /// Tells people something; programs that read JSON are not told.
    fn say(&self, text: &str) {
        if !self.options.json {
            println!("{text}");
        }
    }

    fn note(
        &self,
        bench: &'static str,
        (case, method): (&str, &'static str),
        bytes: u64,
        seconds: f64,
        (moved, reference): (Option<f64>, Option<f64>),
    ) -> anyhow::Result<()> {
        let record = Record {
            bench,
            device: self.device.clone(),
            driver: self.driver.clone(),
            case: case.to_owned(),
            method,
            bytes,
            microseconds: seconds * 1e6,
            gigabytes_per_second: moved.map(|moved| moved / seconds / 1e9),
            ratio: reference.map(|reference| seconds / reference),
        };
        if self.options.json {
            return print_json(&record).context("standard output");
        }
        let speed = record.gigabytes_per_second.map_or_else(String::new, |speed| format!("{speed:9.2} GB/s"));
        let ratio = record.ratio.map_or_else(String::new, |ratio| format!("{ratio:8.4} of the reference's time"));
        println!("{bench:9} {case:34} {method:26} {bytes:>10} B {:12.3} us {speed} {ratio}", record.microseconds);
        Ok(())
    }

    /// The medians of what takes turns, in seconds, after a round that warms up. Another one begins each turn, as who comes
    /// after whom makes a difference.
    fn turns<const N: usize>(&self, mut round: impl FnMut(usize) -> anyhow::Result<f64>) -> anyhow::Result<[f64; N]> {
        let rounds = if self.options.quick { 3 } else { 12 };
        let mut times = [const { Vec::new() }; N];
        for turn in 0..=rounds {
            for place in 0..N {
                let who = (turn + place) % N;
                let seconds = round(who)?;
                if turn > 0 {
                    times[who].push(seconds);
                }
            }
        }
        Ok(times.map(median))
    }
}

/// Whether each of two devices reaches the other's memory.
fn are_peers(one: u16, other: u16) -> bool {
    let reaches = |from, to| alloc_cuda::can_access_peer(from, to).unwrap_or(false);
    reaches(one, other) && reaches(other, one)
}
