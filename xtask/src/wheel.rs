//! `cargo xtask wheel`: the Python package with the shared library inside, as one wheel.
//!
//! A wheel is a zip file with a list of its files and their hashes. The library needs nothing of Python, so the wheel
//! serves every version of it; of the system it needs the C library that it was linked with, and the wheel's name says so.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Args;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

use crate::cargo;
use crate::workspace::Workspace;

const PACKAGE: &str = "device_memory";
const LIBRARY: &str = "libdevice_memory.so";
const SUMMARY: &str = "PyTorch, CuPy and Python programs on pools of device memory that move pages before they grow";

/// Where the wheel goes, and what is in it.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// The folder [default: target/wheels]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Leaves CUDA out
    #[arg(long)]
    pub without_cuda: bool,
}

/// Builds the library and packs it.
///
/// # Errors
/// What cargo and the file system report.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let wheel = build(workspace, options)?;
    println!("{}", wheel.display());
    Ok(())
}

/// The same; where the wheel is.
///
/// # Errors
/// As [`run`].
pub fn build(workspace: &Workspace, options: &Options) -> anyhow::Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "wheels are made on Linux");
    let library = fs::read(library(workspace, !options.without_cuda)?).context("the library")?;
    let version = version(workspace)?;
    let tag = format!("py3-none-{}", platform(&library)?);
    let files = files(workspace.root(), library)?;
    let out = options.out.clone().unwrap_or_else(|| workspace.target_directory().join("wheels"));
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let path = out.join(format!("{PACKAGE}-{version}-{tag}.whl"));
    let readme = fs::read_to_string(workspace.root().join("python/README.md")).context("python/README.md")?;
    fs::write(&path, pack(files, &version, &tag, &readme)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn library(workspace: &Workspace, cuda: bool) -> anyhow::Result<PathBuf> {
    let mut command = cargo::cargo(workspace);
    command.args(["build", "--release", "--package", "alloc-capi", "--lib"]);
    if cuda {
        command.args(["--features", "cuda"]);
    }
    cargo::run(command.env("CARGO_PROFILE_RELEASE_STRIP", "symbols"))?;
    Ok(workspace.target_directory().join("release").join(LIBRARY))
}

fn version(workspace: &Workspace) -> anyhow::Result<String> {
    let package = workspace.packages().iter().find(|package| package.name == "alloc-capi");
    package.map(|package| package.version.clone()).context("there is no package alloc-capi")
}

/// The platform that a library needs: the newest version of the C library whose symbols it asks for.
fn platform(library: &[u8]) -> anyhow::Result<String> {
    let architecture = std::env::consts::ARCH;
    let newest = versions(library, b"GLIBC_2.").max();
    newest.map(|minor| format!("manylinux_2_{minor}_{architecture}")).context("the library asks for no C library")
}

/// The numbers that follow a text wherever it stands.
fn versions<'a>(bytes: &'a [u8], before: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    bytes.windows(before.len()).enumerate().filter(move |(_, window)| *window == before).filter_map(move |(at, _)| {
        let digits: Vec<u8> = bytes[at + before.len()..].iter().copied().take_while(u8::is_ascii_digit).collect();
        std::str::from_utf8(&digits).ok()?.parse().ok()
    })
}

/// The files of the package: their names in the wheel, and what is in them.
fn files(root: &Path, library: Vec<u8>) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = root.join("python").join(PACKAGE);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        // The second says to checkers of types that the package has them.
        if path.extension().is_some_and(|extension| extension == "py" || extension == "typed") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((format!("{PACKAGE}/{name}"), fs::read(&path)?));
        }
    }
    if files.is_empty() {
        bail!("there is no Python in {}", folder.display());
    }
    let header = root.join("crates/alloc-capi/include/device_memory.h");
    files
        .push((format!("{PACKAGE}/device_memory.h"), fs::read(&header).with_context(|| header.display().to_string())?));
    files.push((format!("{PACKAGE}/{LIBRARY}"), library));
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        files.push((format!("{PACKAGE}-licences/{licence}"), fs::read(root.join(licence)).context(licence)?));
    }
    files.sort();
    Ok(files)
}

/// The wheel of these files.
fn pack(files: Vec<(String, Vec<u8>)>, version: &str, tag: &str, readme: &str) -> anyhow::Result<Vec<u8>> {
    let info = format!("{PACKAGE}-{version}.dist-info");
    let mut files: Vec<(String, Vec<u8>)> = files
        .into_iter()
        .map(|(name, bytes)| match name.strip_prefix(&format!("{PACKAGE}-licences/")) {
            Some(licence) => (format!("{info}/licenses/{licence}"), bytes),
            None => (name, bytes),
        })
        .collect();
    let metadata = format!(
        "Metadata-Version: 2.1\nName: device-memory\nVersion: {version}\nSummary: {SUMMARY}\n\
         License: MIT OR Apache-2.0\nRequires-Python: >=3.9\nDescription-Content-Type: text/markdown\n\n{readme}"
    );
    let wheel = format!("Wheel-Version: 1.0\nGenerator: cargo xtask wheel\nRoot-Is-Purelib: false\nTag: {tag}\n");
    files.push((format!("{info}/METADATA"), metadata.into_bytes()));
    files.push((format!("{info}/WHEEL"), wheel.into_bytes()));
    let mut record = String::new();
    for (name, bytes) in &files {
        let hash = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(bytes));
        record += &format!("{name},sha256={hash},{}\n", bytes.len());
    }
    record += &format!("{info}/RECORD,,\n");
    files.push((format!("{info}/RECORD"), record.into_bytes()));
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    // Without times the same files make the same wheel.
    let options = SimpleFileOptions::default().unix_permissions(0o644);
    for (name, bytes) in files {
        archive.start_file(name, options)?;
        archive.write_all(&bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_wheel_lists_what_is_in_it() -> anyhow::Result<()> {
        let files = vec![
            (format!("{PACKAGE}/__init__.py"), b"x = 1\n".to_vec()),
            (format!("{PACKAGE}-licences/LICENSE-MIT"), b"MIT".to_vec()),
        ];
        let wheel = pack(files, "1.2.3", "py3-none-any", "# About\n")?;
        let mut archive = zip::ZipArchive::new(Cursor::new(wheel))?;
        let names = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<anyhow::Result<Vec<_>>>()?;
        let mut record = String::new();
        archive.by_name("device_memory-1.2.3.dist-info/RECORD")?.read_to_string(&mut record)?;
        let listed: Vec<&str> = record.lines().filter_map(|line| line.split(',').next()).collect();
        assert_eq!(listed, names);
        // The digest of `x = 1` and a line break, as `sha256sum` has it.
        let hash = "sha256=nia_NpkRxFwkPGhBR7I_yeHc_PJX0pmhxjIBam_NM_Q";
        assert!(names.contains(&"device_memory-1.2.3.dist-info/licenses/LICENSE-MIT".to_owned()));
        assert!(record.contains(&format!("{PACKAGE}/__init__.py,{hash},6")), "{record}");
        Ok(())
    }

    #[test]
    fn the_newest_symbol_decides_the_platform() -> anyhow::Result<()> {
        let platform = platform(b"..GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0")?;
        assert!(platform.starts_with("manylinux_2_34_"), "{platform}");
        assert!(super::platform(b"nothing").is_err());
        Ok(())
    }

    #[test]
    fn the_package_is_said_to_have_types() -> anyhow::Result<()> {
        let files = files(Workspace::load()?.root(), Vec::new())?;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["__init__.py", "_library.py", "py.typed", "device_memory.h", LIBRARY] {
            assert!(names.contains(&format!("{PACKAGE}/{name}").as_str()), "{name} is not among {names:?}");
        }
        Ok(())
    }

    #[test]
    fn python_and_rust_have_one_version() -> anyhow::Result<()> {
        let workspace = Workspace::load()?;
        let init = fs::read_to_string(workspace.root().join("python/device_memory/__init__.py"))?;
        assert!(init.contains(&format!("__version__ = \"{}\"", version(&workspace)?)));
        Ok(())
    }
}
