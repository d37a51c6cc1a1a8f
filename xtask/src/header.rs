//! `cargo xtask header`: makes the C header of `alloc-capi` again, with the program cbindgen.
//!
//! cbindgen is no dependency, as its licence is not on the allow list of `deny.toml`, and the header is committed. That
//! header and library agree, the tests of `alloc-capi` see to.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

use crate::cargo;
use crate::workspace::Workspace;

const CRATE: &str = "crates/alloc-capi";
const HEADER: &str = "include/device_memory.h";

/// What to do with the header.
#[derive(Args, Debug)]
pub struct Options {
    /// Fails if the header that is there is another, and leaves it alone
    #[arg(long)]
    check: bool,
}

/// Makes the header, or compares it.
///
/// # Errors
/// If cbindgen is not installed or fails, and with `--check` if the header is another.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    ensure!(cargo::is_installed("cbindgen"), "cbindgen is not installed: cargo install cbindgen");
    let folder = workspace.root().join(CRATE);
    let made = workspace.target_directory().join("device_memory.h");
    let mut command = Command::new("cbindgen");
    command.args(["--quiet", "--config", "cbindgen.toml", "--crate", "alloc-capi", "--output"]).arg(&made).arg(".");
    cargo::run(command.current_dir(&folder))?;
    let header = folder.join(HEADER);
    let (new, old) = (fs::read(&made).with_context(|| made.display().to_string())?, fs::read(&header).ok());
    if old.as_ref() == Some(&new) {
        println!("{CRATE}/{HEADER} is as it should be");
        return Ok(());
    }
    ensure!(!options.check, "{CRATE}/{HEADER} is not what cbindgen makes of the sources");
    fs::write(&header, new).with_context(|| header.display().to_string())?;
    println!("{CRATE}/{HEADER} was made again");
    Ok(())
}
