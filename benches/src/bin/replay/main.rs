//! Replays allocation traces of real programs through several allocators and shows what each costs.
//!
//! Each allocator replays each trace in a process of its own, so that none inherits the heap that another left.

mod options;
mod summary;
mod worker;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use alloc_core::Device;
use anyhow::Context;
use benches::allocators::Peer;
use benches::record::{ReplayRecord, print_json};
use benches::traces::NamedTrace;
use benches::{memory, traces};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use options::Options;
use summary::Summary;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Some(peer) = options.worker {
        worker::work(peer, &options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let paths = if options.traces.is_empty() { traces::shipped()? } else { options.traces.clone() };
    let mut summary = Summary::new(&options);
    let mut loaded = Vec::new();
    for (name, path) in traces::names(&paths) {
        let trace = NamedTrace { name, ..NamedTrace::load(path, options.extent())? };
        let available = memory::available().unwrap_or(u64::MAX);
        if options.touch && trace.peak_live > available / 2 {
            let note = summary.leave_out(&trace, available);
            if options.json {
                eprintln!("{note}");
            }
        } else {
            loaded.push(trace);
        }
    }
    let jobs: Vec<(&NamedTrace, Peer)> =
        loaded.iter().flat_map(|trace| options.peers().into_iter().map(move |peer| (trace, peer))).collect();
    let bar = progress_bar(jobs.len() as u64);
    for (trace, peer) in jobs {
        bar.set_message(format!("{} through {peer}", trace.name));
        match worker::start(peer, &options, trace) {
            Ok(records) => {
                if options.json {
                    bar.suspend(|| records.iter().try_for_each(print_json)).context("standard output")?;
                }
                summary.add(trace, records);
            }
            Err(error) => {
                bar.suspend(|| eprintln!("{} through {peer}: {error:#}", trace.name));
                summary.fail(trace, peer);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if !options.json {
        write!(std::io::stdout().lock(), "{summary}").context("standard output")?;
    }
    Ok(if summary.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn progress_bar(jobs: u64) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(jobs), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} [{elapsed}] {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The device that is replayed on.
fn device() -> String {
    Device::CPU.to_string()
}

/// The records of a pass's reports, in the order of the passes.
fn records(peer: Peer, touch: bool, trace: &NamedTrace, reports: &[alloc_trace::PassReport]) -> Vec<ReplayRecord> {
    reports.iter().map(|report| ReplayRecord::new(peer, device(), touch, trace, report)).collect()
}
