//! `cargo xtask picture`: a recorded trace as a page of HTML.

use std::ffi::OsString;

use clap::Args;

use crate::workspace::Workspace;
use crate::{bench, cargo};

/// Which recording, and where its page goes.
#[derive(Args, Debug)]
#[command(disable_help_flag = true, override_usage = "cargo xtask picture FILE [--out PAGE]")]
pub struct Options {
    /// Passed on: the recording, and `--out` with the page
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Builds the program that draws, and runs it.
///
/// # Errors
/// If either fails.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let target = ["--bin", "picture"];
    cargo::run(&mut bench::command(workspace, &["run", "--release"], &target, &[], &options.arguments)?)
}
