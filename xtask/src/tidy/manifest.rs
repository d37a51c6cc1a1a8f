//! Rules for `Cargo.toml`: what packages inherit from the workspace, dependencies, and features that explain themselves.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::Problem;
use super::files::SourceFile;

const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let mut root = None;
    for file in files.iter().filter(|file| file.name() == "Cargo.toml") {
        match file.text.parse::<Table>() {
            Err(error) => problems.push(Problem::new(file, 0, format!("not TOML: {}", error.message()))),
            Ok(manifest) if manifest.contains_key("workspace") => root = Some((file, manifest)),
            Ok(manifest) => {
                problems.extend(package(file, &manifest));
                used.extend(dependencies(&manifest).map(|(name, _)| name.to_owned()));
            }
        }
    }
    if let Some((file, manifest)) = root {
        problems.extend(workspace(file, &manifest, &used));
    }
    problems
}

fn package(file: &SourceFile, manifest: &Table) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |key: &str, message: String| problems.push(Problem::new(file, line_of(file, key), message));
    let package = manifest.get("package").and_then(Value::as_table);
    for field in INHERITED {
        let value = package.and_then(|package| package.get(field));
        let is_private = field == "publish" && value.and_then(Value::as_bool) == Some(false);
        if !is_private && !value.is_some_and(inherits) {
            add(field, format!("`{field}.workspace = true` is missing under [package]"));
        }
    }
    let description = package.and_then(|package| package.get("description")).and_then(Value::as_str);
    if description.is_none_or(|text| text.trim().is_empty()) {
        add("description", "a package has a description".to_owned());
    }
    if !manifest.get("lints").is_some_and(inherits) {
        add("[lints]", "`workspace = true` is missing under [lints]".to_owned());
    }
    for (name, dependency) in dependencies(manifest) {
        if !inherits(dependency) {
            add(name, format!("the dependency `{name}` does not come from the workspace"));
        }
    }
    for feature in manifest.get("features").and_then(Value::as_table).into_iter().flat_map(Table::keys) {
        if feature != "default" && !is_commented(file, feature) {
            add(feature, format!("the feature `{feature}` has no comment above it"));
        }
    }
    let default = manifest.get("features").and_then(|features| features.get("default")).and_then(Value::as_array);
    if default.is_some_and(|default| default.iter().any(|feature| feature.as_str() == Some("cuda"))) {
        add("default", "`cuda` is off by default".to_owned());
    }
    problems
}

fn workspace(file: &SourceFile, manifest: &Table, used: &BTreeSet<String>) -> Vec<Problem> {
    let shared =
        manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")).and_then(Value::as_table);
    let mut problems = Vec::new();
    for (name, dependency) in shared.into_iter().flatten() {
        let mut add = |message: String| problems.push(Problem::new(file, line_of(file, name), message));
        // A crate of ours may be a leaf that programs outside use.
        if !used.contains(name) && dependency.get("path").is_none() {
            add(format!("no package depends on `{name}`"));
        }
        if dependency.get("git").is_some() || dependency.as_str() == Some("*") {
            add(format!("`{name}` has no version of a registry"));
        }
    }
    problems
}

/// The dependencies of every kind and platform.
pub(super) fn dependencies(manifest: &Table) -> impl Iterator<Item = (&str, &Value)> {
    kinds(manifest, &["dependencies", "dev-dependencies", "build-dependencies"])
}

/// The dependencies that come with the package: those of its tests left out.
pub(super) fn shipped_dependencies(manifest: &Table) -> impl Iterator<Item = (&str, &Value)> {
    kinds(manifest, &["dependencies", "build-dependencies"])
}

fn kinds<'a>(manifest: &'a Table, kinds: &'static [&'static str]) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let platforms = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = platforms.filter_map(Value::as_table).chain([manifest]);
    tables
        .flat_map(move |table| kinds.iter().filter_map(move |kind| table.get(*kind)))
        .filter_map(Value::as_table)
        .flat_map(|table| table.iter().map(|(name, value)| (name.as_str(), value)))
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

fn line_of(file: &SourceFile, key: &str) -> usize {
    file.lines().find(|(_, line)| starts_with_key(line, key)).map_or(0, |(number, _)| number)
}

fn starts_with_key(line: &str, key: &str) -> bool {
    line.strip_prefix(key).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-' || c == '_'))
}

/// Whether a comment stands on the line above the feature.
fn is_commented(file: &SourceFile, feature: &str) -> bool {
    let mut above = "";
    let mut in_features = false;
    for (_, line) in file.lines() {
        if line.starts_with('[') {
            in_features = line.trim() == "[features]";
        } else if in_features && starts_with_key(line, feature) {
            return above.starts_with('#');
        }
        above = line;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"p\"\ndescription = \"What it is\"\nversion.workspace = true\n\
        edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n\n\
        [lints]\nworkspace = true\n\n[features]\ndefault = []\n# Why.\nextra = []\n\n[dependencies]\n\
        libc = { workspace = true }\n";

    fn messages(text: &str) -> Vec<String> {
        check(&[SourceFile::new("p/Cargo.toml", text)]).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_good_manifest_passes() {
        assert!(messages(GOOD).is_empty(), "{:?}", messages(GOOD));
    }

    #[test]
    fn each_rule_can_be_broken() {
        for (from, to, word) in [
            ("license.workspace = true", "license = \"MIT\"", "license"),
            ("publish.workspace = true\n", "", "publish"),
            ("description = \"What it is\"\n", "", "description"),
            ("[lints]\nworkspace = true", "[lints]\nworkspace = false", "[lints]"),
            ("libc = { workspace = true }", "libc = \"0.2\"", "libc"),
            ("# Why.\n", "", "extra"),
            ("default = []", "default = [\"cuda\"]", "cuda"),
            ("[dependencies]", "[dev-dependencies]\nx = \"1\"\n[dependencies]", "`x`"),
            ("[dependencies]", "[target.\"cfg(unix)\".dependencies]\ny = \"1\"\n[dependencies]", "`y`"),
            ("[package]", "[package", "TOML"),
        ] {
            let problems = messages(&GOOD.replace(from, to));
            assert!(matches!(problems.as_slice(), [one] if one.contains(word)), "{word}: {problems:?}");
        }
    }

    #[test]
    fn shared_dependencies_are_used_and_come_from_a_registry() {
        let check_root = |dependencies: &str| {
            let root = format!("[workspace]\nmembers = []\n[workspace.dependencies]\n{dependencies}\n");
            check(&[SourceFile::new("Cargo.toml", root), SourceFile::new("p/Cargo.toml", GOOD)]).len()
        };
        assert_eq!(check_root("libc = \"0.2\""), 0);
        assert_eq!(check_root("libc = \"0.2\"\nother = \"1\""), 1);
        assert_eq!(check_root("libc = \"0.2\"\nleaf = { path = \"crates/leaf\" }"), 0);
        assert_eq!(check_root("libc = { git = \"https://example.org/libc\" }"), 1);
    }
}
