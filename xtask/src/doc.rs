//! `cargo xtask doc`: the documentation of every package with every feature, warnings denied.

use std::process::Command;

use clap::Args;

use crate::workspace::Workspace;
use crate::{cargo, features};

/// What to do with the documentation.
#[derive(Args, Debug)]
pub struct Options {
    /// Shows it in the browser
    #[arg(long)]
    open: bool,
}

/// Builds the documentation.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let mut command = command(workspace);
    if options.open {
        command.arg("--open");
    }
    cargo::run(&mut command)
}

/// The command that builds it.
pub fn command(workspace: &Workspace) -> Command {
    let mut command = cargo::cargo(workspace);
    command.args(["doc", "--workspace", "--no-deps"]).args(features::all_of_workspace(workspace));
    command.env("RUSTDOCFLAGS", cargo::flags_with("RUSTDOCFLAGS", "-D warnings"));
    command
}
