//! A page of HTML that shows what a recorded program did with its memory, and what a pool makes of that.

use std::fs;
use std::path::PathBuf;

use alloc_trace::{Policy, Trace};
use anyhow::Context;
use clap::Parser;

/// A recorded trace as a page of HTML.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask picture", bin_name = "cargo xtask picture")]
struct Options {
    /// The recording: RMM's CSV, plain, .gz or .zst
    file: PathBuf,

    /// The page (default: beside where you stand, by the recording's name)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let name = options.file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    let out = options.out.unwrap_or_else(|| PathBuf::from(format!("{stem}.html")));
    let trace = Trace::load(&options.file, Policy::Lenient)?;
    let page = benches::picture::page(&name, &trace)?;
    fs::write(&out, &page).with_context(|| out.display().to_string())?;
    println!("{}: {} operations in {} KiB", out.display(), trace.operations().len(), page.len() / 1024);
    Ok(())
}
