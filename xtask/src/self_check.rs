//! `cargo xtask self-check`: the commands, CI and the documentation still say the same.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use clap::CommandFactory;

use crate::workspace::{Package, Workspace};
use crate::{Cli, features};

/// Files that a person who opens the repository expects.
const EXPECTED_FILES: [&str; 9] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "deny.toml",
    "Cargo.lock",
    "docs/architecture.md",
    "docs/guide.md",
    "docs/benchmarks.md",
];

/// Files that each package that is published has beside its manifest.
const PUBLISHED_FILES: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Checks what ties the parts of the repository together.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let root = workspace.root();
    let mut problems = Vec::new();
    for path in EXPECTED_FILES {
        if !root.join(path).is_file() {
            problems.push(format!("{path} is missing"));
        }
    }
    problems.extend(incomplete(workspace.packages()));
    let readme = read(root, "README.md")?;
    let names: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    problems.extend(undocumented(&readme, &names));
    problems.extend(unmentioned(&readme, workspace.packages().iter().map(|package| package.name.as_str())));
    problems.extend(unexplained(&readme, workspace.packages()));
    problems.extend(ci(&read(root, ".ci/run")?, &read(root, ".github/workflows/ci.yml")?));
    if !is_executable(&root.join(".ci/run")) {
        problems.push(".ci/run cannot be executed".to_owned());
    }
    problems.extend(toolchain(&read(root, "rust-toolchain.toml")?, &read(root, "Cargo.toml")?)?);
    problems.extend(alias(&read(root, ".cargo/config.toml")?));
    for entry in features::stale_entries(workspace) {
        problems.push(format!("xtask/src/features.rs speaks of {entry}, which does not exist"));
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    println!("{} commands, {} packages, CI and documentation agree", names.len(), workspace.packages().len());
    Ok(())
}

fn read(root: &Path, path: &str) -> anyhow::Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// What a package that is published lacks to be complete by itself. The licences may be links: cargo packages what is
/// behind them.
fn incomplete(packages: &[Package]) -> Vec<String> {
    let published = packages.iter().filter(|package| package.is_published());
    let missing = published.flat_map(|package| {
        let files = PUBLISHED_FILES.map(|name| package.manifest_path.with_file_name(name));
        files.into_iter().filter(|path| !path.is_file()).map(|path| format!("{} is missing", path.display()))
    });
    missing.collect()
}

/// Commands that the README does not show.
fn undocumented(readme: &str, commands: &[String]) -> Vec<String> {
    let is_shown = |name: &String| readme.contains(&format!("cargo xtask {name}"));
    commands.iter().filter(|name| !is_shown(name)).map(|name| format!("README.md lacks `cargo xtask {name}`")).collect()
}

/// Packages that the README's map does not name.
fn unmentioned<'a>(readme: &str, packages: impl Iterator<Item = &'a str>) -> Vec<String> {
    packages
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .map(|name| format!("README.md does not mention `{name}`"))
        .collect()
}

/// Features that the README's table does not name.
fn unexplained(readme: &str, packages: &[Package]) -> Vec<String> {
    let features = packages.iter().flat_map(|package| {
        package
            .features
            .keys()
            .filter(|feature| *feature != "default")
            .map(|feature| format!("{}/{feature}", package.name))
    });
    features
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .map(|name| format!("README.md does not explain the feature `{name}`"))
        .collect()
}

/// What CI on a machine and CI on the forge have to have in common.
fn ci(script: &str, workflow: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !script.contains("cargo xtask test") {
        problems.push(".ci/run does not run `cargo xtask test`".to_owned());
    }
    for part in [".ci/run", "cargo-deny", "--only loom"] {
        if !workflow.contains(part) {
            problems.push(format!(".github/workflows/ci.yml does not run `{part}`"));
        }
    }
    problems
}

/// The pinned toolchain has to be the version that the packages promise to build with.
fn toolchain(toolchain: &str, manifest: &str) -> anyhow::Result<Option<String>> {
    let toolchain: toml::Table = toolchain.parse().context("rust-toolchain.toml")?;
    let manifest: toml::Table = manifest.parse().context("Cargo.toml")?;
    let text = |value: Option<&toml::Value>| value.and_then(|value| value.as_str()).map(str::to_owned);
    let pinned = text(toolchain.get("toolchain").and_then(|t| t.get("channel"))).context("no channel is pinned")?;
    let package = manifest.get("workspace").and_then(|workspace| workspace.get("package"));
    let promised = text(package.and_then(|package| package.get("rust-version"))).context("no rust-version")?;
    let agrees = pinned == promised || pinned.strip_prefix(&promised).is_some_and(|rest| rest.starts_with('.'));
    Ok((!agrees).then(|| format!("the toolchain is {pinned}, but rust-version is {promised}")))
}

fn alias(config: &str) -> Option<String> {
    let has_alias = config.parse::<toml::Table>().is_ok_and(|config| {
        config.get("alias").and_then(|alias| alias.get("xtask")).and_then(|alias| alias.as_str()).is_some()
    });
    (!has_alias).then(|| ".cargo/config.toml has no alias `xtask`".to_owned())
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_can_fail() -> anyhow::Result<()> {
        assert_eq!(undocumented("run `cargo xtask test`", &["test".to_owned(), "bench".to_owned()]).len(), 1);
        assert_eq!(unmentioned("the crate `one`", ["one", "two"].into_iter()), ["README.md does not mention `two`"]);
        let packages: Vec<Package> = serde_json::from_str(
            r#"[{"name": "p", "version": "1.0.0", "license": null, "features": {"default": [], "extra": []},
                "manifest_path": "nowhere/Cargo.toml"}]"#,
        )?;
        assert_eq!(incomplete(&packages).len(), PUBLISHED_FILES.len());
        let private = Package { publish: Some(Vec::new()), ..packages[0].clone() };
        assert!(incomplete(&[private]).is_empty());
        assert_eq!(unexplained("`p`", &packages), ["README.md does not explain the feature `p/extra`"]);
        assert!(unexplained("`p/extra`", &packages).is_empty());
        assert!(ci("cargo xtask test", ".ci/run cargo-deny --only loom").is_empty());
        assert_eq!(ci("cargo test", "").len(), 4);
        let manifest = "[workspace.package]\nrust-version = \"1.9\"";
        assert_eq!(toolchain("[toolchain]\nchannel = \"1.9.2\"", manifest)?, None);
        assert!(toolchain("[toolchain]\nchannel = \"1.95.0\"", manifest)?.is_some());
        assert!(toolchain("", manifest).is_err());
        assert!(alias("[alias]\nxtask = \"run\"").is_none());
        assert!(alias("[alias]\nother = \"run\"").is_some());
        Ok(())
    }
}
