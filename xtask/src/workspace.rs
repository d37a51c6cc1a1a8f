//! The workspace as `cargo metadata` describes it.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::cargo;

/// The root folder and the packages of this workspace.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

/// One package, of this workspace or beneath it.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression.
    pub license: Option<String>,
    /// Its `Cargo.toml`.
    #[serde(default)]
    pub manifest_path: PathBuf,
    /// The registries that it may be published in: none named means any.
    #[serde(default)]
    pub publish: Option<Vec<String>>,
    /// Its features, and what each of them turns on.
    #[serde(default)]
    pub features: BTreeMap<String, Vec<String>>,
    /// What it depends on, on any platform.
    #[serde(default)]
    pub dependencies: Vec<Dependency>,
    /// What cargo can build of it.
    #[serde(default)]
    pub targets: Vec<Target>,
}

/// A dependency as the manifest names it.
#[derive(Clone, Debug, Deserialize)]
pub struct Dependency {
    /// The name of the package.
    pub name: String,
}

/// A library, binary, test, bench or example of a package.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, `bench`, `example`, ...
    pub kind: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

impl Workspace {
    /// Asks cargo for the packages of the workspace that this program belongs to.
    pub fn load() -> anyhow::Result<Self> {
        // Set by `cargo run`; the path known at build time serves when the program is started by hand.
        let manifest_folder =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_folder.parent().context("xtask has no parent folder")?.to_path_buf();
        let mut workspace = Self { root, target_directory: PathBuf::new(), packages: Vec::new() };
        let metadata = workspace.metadata(&["--no-deps"])?;
        workspace.target_directory = metadata.target_directory;
        workspace.packages = metadata.packages;
        workspace.packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(workspace)
    }

    /// The packages of this workspace and all that they depend on, on any platform and with every feature.
    pub fn packages_with_dependencies(&self) -> anyhow::Result<Vec<Package>> {
        Ok(self.metadata(&["--all-features", "--locked"])?.packages)
    }

    /// The folder that holds the root `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo builds.
    pub fn target_directory(&self) -> &Path {
        &self.target_directory
    }

    /// The packages of this workspace, by name.
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    fn metadata(&self, arguments: &[&str]) -> anyhow::Result<Metadata> {
        let mut command: Command = cargo::cargo(self);
        command.args(["metadata", "--format-version", "1"]).args(arguments).stderr(Stdio::inherit());
        let output = command.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("`{}` ended with {}", cargo::display(&command), output.status);
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata answered something unexpected")
    }
}

impl Package {
    /// Whether it is for a registry.
    pub fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }

    /// The names of the targets of one kind.
    pub fn targets_of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.targets.iter().filter(move |target| target.kind.iter().any(|k| k == kind)).map(|target| &*target.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_knows_its_packages() -> anyhow::Result<()> {
        let workspace = Workspace::load()?;
        let xtask = workspace.packages().iter().find(|p| p.name == "xtask").context("no xtask")?;
        assert_eq!(xtask.targets_of_kind("bin").collect::<Vec<_>>(), ["xtask"]);
        assert!(!xtask.is_published());
        assert!(workspace.packages().iter().any(|p| p.name == "alloc-core" && p.is_published()));
        assert!(workspace.root().join("Cargo.toml").is_file());
        Ok(())
    }
}
