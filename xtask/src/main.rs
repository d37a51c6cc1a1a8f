//! The commands of this workspace: `cargo xtask help` lists them. One file a command.
#![forbid(unsafe_code)]

mod bench;
mod bundle;
mod cargo;
mod doc;
mod features;
mod header;
mod licences;
mod peers;
mod picture;
mod self_check;
mod step;
mod test;
mod tidy;
mod wheel;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The commands of this workspace", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything that CI runs: tidy, format, clippy over every feature set, tests, doc tests, docs, loom
    #[command(visible_alias = "ci")]
    Test(test::Options),
    /// The trace replay; `bench micro` and `bench criterion` for single operations; arguments are passed on
    Bench(bench::Options),
    /// A recorded trace as a page: its timeline, and the map of a pool's memory at the peak
    Picture(picture::Options),
    /// The house rules that no other tool checks
    Tidy,
    /// GPU tests, benches and examples in one folder, for a machine that has a driver and nothing else
    Bundle(bundle::Options),
    /// The Python package with the library inside, as one wheel
    Wheel(wheel::Options),
    /// The C header of alloc-capi, made again by cbindgen
    Header(header::Options),
    /// The documentation, built as CI builds it
    Doc(doc::Options),
    /// The licences of all dependencies against the allow list in deny.toml
    Licences,
    /// Whether the commands, CI and the documentation still fit together
    SelfCheck,
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let workspace = Workspace::load()?;
    match cli.command {
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Picture(options) => picture::run(&workspace, &options),
        Command::Bundle(options) => bundle::run(&workspace, &options),
        Command::Wheel(options) => wheel::run(&workspace, &options),
        Command::Header(options) => header::run(&workspace, &options),
        Command::Tidy => tidy::run(&workspace),
        Command::Doc(options) => doc::run(&workspace, &options),
        Command::Licences => licences::run(&workspace),
        Command::SelfCheck => self_check::run(&workspace),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
