//! The peers' bench: `cargo xtask bench --cuda peers` on this machine's GPU, `cargo xtask bench peers` on the host, and
//! what a bundle takes along of it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::bundle::{self, Part, copy, make_executable};
use crate::cargo;
use crate::workspace::Workspace;

/// The pool's own program.
pub const OURS: Part = Part {
    arguments: &["build", "--package", "benches", "--features", "cuda", "--bin", "peers"],
    files: &[("peers", "bin", "peers/ours")],
};

const SOURCES: &str = "benches/peers";
const SCRIPT: &str = "run.sh";

/// What is taken of RMM's unpacked wheels: folders, and files, beneath the folder that they were unpacked to. The
/// headers of Thrust and CUB, half of all, are not needed.
const OF_RMM: [&str; 8] = [
    "librmm/VERSION",
    "librmm/include/rmm",
    "librmm/include/nvtx3",
    "librmm/include/rapids/cuda",
    "librmm/include/rapids/nv",
    "librmm/lib64/librmm.so",
    "rapids_logger/include",
    "rapids_logger/lib64/librapids_logger.so",
];

/// Builds the pool's program and runs the script that builds and runs the peers' programs.
///
/// # Errors
/// If something can't be built, or the pool's own program fails.
pub fn bench(workspace: &Workspace, with_gpu: bool, arguments: &[OsString]) -> anyhow::Result<()> {
    let built = bundle::build(workspace, &OURS)?;
    let ours = built.get(&("peers".to_owned(), "bin".to_owned())).context("cargo made no program named peers")?;
    let build = ours.parent().unwrap_or(workspace.root()).join("peers-build");
    let mut command = Command::new("sh");
    command.arg(workspace.root().join(SOURCES).join(SCRIPT)).args(arguments);
    if !with_gpu {
        command.arg("--cpu");
    }
    cargo::run(command.env("PEERS_OURS", ours).env("PEERS_BUILD", build))
}

/// Puts the sources of the peers' programs, and RMM if its unpacked wheels are given, into the folder.
///
/// # Errors
/// What the file system reports, and what is missing of RMM.
pub fn bundle(workspace: &Workspace, rmm: Option<&Path>, out: &Path) -> anyhow::Result<()> {
    copy_all(&workspace.root().join(SOURCES), out)?;
    make_executable(&out.join(SCRIPT))?;
    let Some(rmm) = rmm else { return Ok(()) };
    for part in OF_RMM {
        let (from, to) = (rmm.join(part), out.join("rmm").join(part));
        ensure!(from.exists(), "{} is missing: --rmm names a folder of unpacked wheels", from.display());
        copy_all(&from, &to)?;
    }
    Ok(())
}

/// Copies a file, or a folder with all that is in it but what was built there.
fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_file() {
        let folder: PathBuf = to.parent().map(Path::to_path_buf).unwrap_or_default();
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        return copy(from, to);
    }
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_name() != "build" {
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_what_is_needed_of_rmm_are_copied() -> anyhow::Result<()> {
        let workspace = Workspace::load()?;
        let folder = tempfile::tempdir()?;
        let (rmm, out) = (folder.path().join("wheels"), folder.path().join("out"));
        assert!(bundle(&workspace, Some(&rmm), &out).is_err(), "there is no RMM");
        for part in OF_RMM {
            let file = if part.ends_with(".so") || part.ends_with("VERSION") {
                rmm.join(part)
            } else {
                rmm.join(part).join("a.hpp")
            };
            fs::create_dir_all(file.parent().context("no parent")?)?;
            fs::write(file, "x")?;
        }
        bundle(&workspace, Some(&rmm), &out)?;
        for file in [SCRIPT, "torch.cpp", "rmm.cpp", "workloads.hpp", "rmm/librmm/lib64/librmm.so"] {
            assert!(out.join(file).is_file(), "{file}");
        }
        assert!(out.join("rmm/librmm/include/rapids/cuda/a.hpp").is_file());
        Ok(())
    }
}
