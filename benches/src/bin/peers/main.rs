//! The workloads of the peers' bench through this workspace's pool, one JSON object a line; and the table of what this
//! program and those of the peers have written.

mod backends;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use backends::{Cuda, Host};
use benches::peers::comparison::Comparison;
use benches::peers::{Bench, PeerRecord, Suite, golden};
use benches::record::print_json;
use benches::traces::{self, NamedTrace};
use clap::{Parser, ValueEnum};

/// Runs the workloads of the peers' bench through this workspace's pool in its default configuration.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Options {
    /// Which memory the pool has
    #[arg(long, value_enum, default_value_t = Memory::Cuda)]
    backend: Memory,

    /// The device
    #[arg(long, default_value_t = 0)]
    device: u16,

    /// Run only these workloads
    #[arg(long = "bench", value_name = "NAME", value_enum)]
    benches: Vec<Bench>,

    /// Replay these recordings (RMM's CSV, plain, gzip or zstd) instead of those that come with the workspace
    #[arg(long = "trace", value_name = "FILE", num_args = 1..)]
    traces: Vec<PathBuf>,

    /// Short rounds, few threads, and the first 20,000 rows of each recording: to see that everything works
    #[arg(long)]
    quick: bool,

    /// Write the recordings as plain CSV, which the peers' programs read, into this folder, and run nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["table", "golden"])]
    write_csv: Option<PathBuf>,

    /// Print the table of these results, and what holds of the bars, and run nothing
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "golden")]
    table: Vec<PathBuf>,

    /// Print the fingerprints of all drawn sequences, and run nothing
    #[arg(long)]
    golden: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Memory {
    /// That of a GPU
    Cuda,
    /// That of the host
    Cpu,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.golden {
        return write(&golden::lines());
    }
    if !options.table.is_empty() {
        return write(&Comparison::of(&read(&options.table)?).to_string());
    }
    let traces = if options.traces.is_empty() { traces::shipped()? } else { options.traces };
    let benches = if options.benches.is_empty() { Bench::value_variants().to_vec() } else { options.benches };
    let suite = Suite { benches, traces, is_quick: options.quick };
    if let Some(folder) = options.write_csv {
        return write_csv(&suite, &folder);
    }
    let mut outcome = Outcome::default();
    match options.backend {
        Memory::Cuda => suite.run(&Cuda::new(options.device)?, |record| outcome.note(&record)),
        Memory::Cpu => suite.run(&Host::new(), |record| outcome.note(&record)),
    }
    outcome.result()
}

/// What has been written so far.
#[derive(Debug, Default)]
struct Outcome {
    failed: u32,
    unwritten: Option<std::io::Error>,
}

impl Outcome {
    fn note(&mut self, record: &PeerRecord) {
        self.failed += u32::from(record.error.is_some());
        if let Err(error) = print_json(record) {
            self.unwritten.get_or_insert(error);
        }
    }

    fn result(self) -> anyhow::Result<()> {
        if let Some(error) = self.unwritten {
            return Err(error).context("standard output");
        }
        if self.failed > 0 {
            bail!("{} workloads failed; their records say why", self.failed);
        }
        Ok(())
    }
}

fn write(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("standard output")
}

fn write_csv(suite: &Suite, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for path in &suite.traces {
        let trace = NamedTrace::load(path, suite.extent())?;
        let file = folder.join(format!("{}.csv", trace.name));
        ensure!(!file.exists(), "{} is there already: each recording needs a name of its own", file.display());
        trace.trace.save(file)?;
    }
    Ok(())
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<PeerRecord>> {
    let mut records = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let record = serde_json::from_str(line);
            records.push(record.with_context(|| format!("{}, line {}", path.display(), index + 1))?);
        }
    }
    Ok(records)
}
