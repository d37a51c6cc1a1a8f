//! `cargo xtask licences`: every dependency may be used under a licence that `deny.toml` allows. `cargo deny` checks
//! this and more; this command needs nothing but Rust.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, bail};
use spdx::{Expression, ParseMode};

use crate::workspace::{Package, Workspace};

/// Checks all packages of the lock file, on any platform and with every feature.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let allowed = allowed(workspace)?;
    let packages = workspace.packages_with_dependencies()?;
    let problems: Vec<String> = packages.iter().filter_map(|package| problem(package, &allowed)).collect();
    if !problems.is_empty() {
        bail!("licences that deny.toml does not allow:\n{}", problems.join("\n"));
    }
    println!("{} packages, each under one of: {}", packages.len(), allowed.into_iter().collect::<Vec<_>>().join(", "));
    Ok(())
}

fn allowed(workspace: &Workspace) -> anyhow::Result<BTreeSet<String>> {
    let path = workspace.root().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    allowed_in(&text).context("deny.toml")
}

fn allowed_in(text: &str) -> anyhow::Result<BTreeSet<String>> {
    let config: toml::Table = text.parse()?;
    let list = config.get("licenses").and_then(|licenses| licenses.get("allow")).and_then(|allow| allow.as_array());
    let names = list.context("no list `allow` under [licenses]")?.iter().map(|name| name.as_str().map(str::to_owned));
    names.collect::<Option<_>>().context("`allow` under [licenses] is not a list of strings")
}

fn problem(package: &Package, allowed: &BTreeSet<String>) -> Option<String> {
    let name = format!("{} {}", package.name, package.version);
    let Some(license) = &package.license else { return Some(format!("{name}: no licence is named")) };
    // Older packages write `MIT/Apache-2.0`.
    match Expression::parse_mode(license, ParseMode::LAX) {
        Ok(expression) => {
            let fits = expression.evaluate(|requirement| {
                requirement.addition.is_none() && allowed.contains(&requirement.license.to_string())
            });
            (!fits).then(|| format!("{name}: {license}"))
        }
        Err(error) => Some(format!("{name}: `{license}` is no SPDX expression: {}", error.reason)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn check(license: Option<&str>) -> Option<String> {
        let package = Package {
            name: "p".to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            manifest_path: PathBuf::new(),
            publish: None,
            features: BTreeMap::new(),
            dependencies: Vec::new(),
            targets: Vec::new(),
        };
        problem(&package, &["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into())
    }

    #[test]
    fn one_allowed_licence_of_several_is_enough() {
        for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR Zlib) AND Unicode-3.0"] {
            assert_eq!(check(Some(fine)), None, "{fine}");
        }
    }

    #[test]
    fn a_licence_outside_the_list_is_named() {
        for bad in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH LLVM-exception", "my own licence"] {
            assert!(check(Some(bad)).is_some_and(|problem| problem.contains(bad)), "{bad}");
        }
        assert!(check(None).is_some());
    }

    #[test]
    fn the_list_is_read_from_deny_toml() -> anyhow::Result<()> {
        assert!(allowed(&Workspace::load()?)?.contains("MIT"));
        assert!(allowed_in("[licenses]\nallow = [1]").is_err());
        assert!(allowed_in("[bans]").is_err());
        Ok(())
    }
}
