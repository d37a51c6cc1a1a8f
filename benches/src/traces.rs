//! The traces that come with the workspace, and others.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use alloc_trace::{Action, Anomalies, Policy, Reader, Row, Trace};
use anyhow::{Context, ensure};

/// A trace with its name.
#[derive(Debug)]
pub struct NamedTrace {
    /// The file's name without its extensions; [`names`] has what tells several files apart.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub trace: Trace,
    /// The most bytes that live at one time.
    pub peak_live: u64,
    /// The number of rows that were read, if the file has more.
    pub cut_at: Option<usize>,
}

/// How much of a trace is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// At most this many rows.
    Rows(usize),
    /// Rows up to this many bytes allocated, all together.
    Bytes(u64),
}

impl NamedTrace {
    /// Loads a trace, or the beginning of it. Rows that contradict each other are repaired.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(path: &Path, extent: Extent) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        let mut cut_at = None;
        let mut allocated = 0_u64;
        for row in Reader::open(path)? {
            let row: Row = row?;
            if row.action == Action::Allocate {
                allocated = allocated.saturating_add(row.bytes);
            }
            let within = match extent {
                Extent::Whole => true,
                Extent::Rows(most) => rows.len() < most,
                // One block at least, so that what can never fit is seen and left out.
                Extent::Bytes(most) => allocated <= most || rows.is_empty(),
            };
            if !within {
                cut_at = Some(rows.len());
                break;
            }
            rows.push(row);
        }
        let trace =
            Trace::from_rows(rows.into_iter().map(Ok), Policy::Lenient).with_context(|| path.display().to_string())?;
        let peak_live = trace.live().map(|point| point.live_bytes).max().unwrap_or(0);
        Ok(Self { name: name_of(path), path: path.to_path_buf(), trace, peak_live, cut_at })
    }

    /// What was repaired.
    pub fn anomalies(&self) -> &Anomalies {
        self.trace.anomalies()
    }
}

/// The folder of the traces that come with the workspace.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("traces")
}

/// The traces that come with the workspace, by name.
///
/// # Errors
/// If the folder can't be read or has none.
pub fn shipped() -> anyhow::Result<Vec<PathBuf>> {
    let folder = folder();
    let missing = || format!("the traces in {} (name others with --trace)", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).with_context(missing)? {
        let path = entry.with_context(missing)?.path();
        if path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.ends_with(".csv.zst")) {
            paths.push(path);
        }
    }
    ensure!(!paths.is_empty(), "there is none of {}", missing());
    paths.sort();
    Ok(paths)
}

/// A name for each of these files, no two alike: the file's name without its extensions, as in [`NamedTrace`]. Files
/// that share one, such as RMM's `log.dev0.csv` and `log.dev1.csv`, go by their whole names, and if these are the same by
/// their paths. A file that is there again is passed over.
pub fn names(paths: &[PathBuf]) -> Vec<(String, &Path)> {
    let mut distinct: Vec<&Path> = Vec::new();
    for path in paths {
        if !distinct.contains(&path.as_path()) {
            distinct.push(path);
        }
    }
    let whole = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let named = distinct.iter().map(|&path| {
        let is_shared = |name: &dyn Fn(&Path) -> String| distinct.iter().filter(|p| name(p) == name(path)).count() > 1;
        let name = match (is_shared(&name_of), is_shared(&whole)) {
            (false, _) => name_of(path),
            (true, false) => whole(path),
            (true, true) => path.display().to_string(),
        };
        (name, path)
    });
    named.collect()
}

/// The file's name up to its first point.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    match name.split_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => name.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_share_a_name_are_told_apart() {
        let paths = ["a/x.csv", "log.dev0.csv", "log.dev1.csv", "b/run.csv", "a/run.csv", "a/x.csv"].map(PathBuf::from);
        let names: Vec<(String, &Path)> = names(&paths);
        let expected = ["x", "log.dev0.csv", "log.dev1.csv", "b/run.csv", "a/run.csv"];
        assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), expected);
        assert!(names.iter().map(|(_, path)| *path).eq(paths[..5].iter().map(PathBuf::as_path)));
    }
}
