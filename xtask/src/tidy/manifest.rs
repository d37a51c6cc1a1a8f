//! Rules for `Cargo.toml`: what packages inherit from the workspace, what a registry wants of those that are published,
//! dependencies, and features that explain themselves.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::Problem;
use super::files::SourceFile;

const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "license"];

/// The most keywords that crates.io takes.
const MOST_KEYWORDS: usize = 5;

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
        if !package.and_then(|package| package.get(field)).is_some_and(inherits) {
            add(field, format!("`{field}.workspace = true` is missing under [package]"));
        }
    }
    let description = package.and_then(|package| package.get("description")).and_then(Value::as_str);
    if description.is_none_or(|text| text.trim().is_empty()) {
        add("description", "a package has a description".to_owned());
    }
    if let Some(package) = package {
        published(file, package).into_iter().for_each(|(key, message)| add(key, message));
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

/// What is missing for a registry: the libraries are for it, and nothing else is.
fn published(file: &SourceFile, package: &Table) -> Vec<(&'static str, String)> {
    if package.get("publish").and_then(Value::as_bool) == Some(false) {
        return Vec::new();
    }
    if !file.path.starts_with("crates/") {
        return vec![("publish", "no library for others: `publish = false` is missing under [package]".to_owned())];
    }
    let mut missing = Vec::new();
    if package.get("readme").and_then(Value::as_str) != Some("README.md") {
        missing.push(("readme", "`readme = \"README.md\"` is missing under [package]".to_owned()));
    }
    let keywords = package.get("keywords").and_then(Value::as_array).map_or(0, Vec::len);
    if keywords == 0 || keywords > MOST_KEYWORDS {
        missing.push(("keywords", format!("a published package has 1 to {MOST_KEYWORDS} keywords")));
    }
    if !package.contains_key("categories") {
        missing.push(("categories", "a published package has categories".to_owned()));
    }
    missing
}

fn workspace(file: &SourceFile, manifest: &Table, used: &BTreeSet<String>) -> Vec<Problem> {
    let shared =
        manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")).and_then(Value::as_table);
    let own = manifest.get("workspace").and_then(|workspace| workspace.get("package"));
    let version = own.and_then(|package| package.get("version"));
    let mut problems = Vec::new();
    for (name, dependency) in shared.into_iter().flatten() {
        let mut add = |message: String| problems.push(Problem::new(file, line_of(file, name), message));
        // A crate of ours may be a leaf that programs outside use.
        if !used.contains(name) && dependency.get("path").is_none() {
            add(format!("no package depends on `{name}`"));
        }
        // A package that is published depends on the others by their versions.
        if dependency.get("path").is_some() && (version.is_none() || dependency.get("version") != version) {
            add(format!("`{name}` is of this workspace, but not named with its version"));
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
        edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\nreadme = \"README.md\"\n\
        keywords = [\"memory\"]\ncategories.workspace = true\n\n\
        [lints]\nworkspace = true\n\n[features]\ndefault = []\n# Why.\nextra = []\n\n[dependencies]\n\
        libc = { workspace = true }\n";

    fn messages(text: &str) -> Vec<String> {
        check(&[SourceFile::new("crates/p/Cargo.toml", text)]).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_good_manifest_passes() {
        assert!(messages(GOOD).is_empty(), "{:?}", messages(GOOD));
    }

    #[test]
    fn each_rule_can_be_broken() {
        for (from, to, word) in [
            ("license.workspace = true", "license = \"MIT\"", "license"),
            ("readme = \"README.md\"\n", "", "readme"),
            ("\"memory\"", "", "keywords"),
            ("\"memory\"", "\"a\", \"b\", \"c\", \"d\", \"e\", \"f\"", "keywords"),
            ("categories.workspace = true\n", "", "categories"),
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
    fn what_is_no_library_for_others_is_not_published() {
        let count = |path: &str, text: &str| check(&[SourceFile::new(path, text)]).len();
        assert_eq!(count("tool/Cargo.toml", GOOD), 1);
        let private = GOOD.replace("readme = \"README.md\"\n", "publish = false\n");
        assert_eq!(count("tool/Cargo.toml", &private), 0);
        assert_eq!(count("crates/p/Cargo.toml", &private), 0);
    }

    #[test]
    fn shared_dependencies_are_used_and_come_from_a_registry() {
        let check_root = |dependencies: &str| {
            let root = format!(
                "[workspace]\nmembers = []\n[workspace.package]\nversion = \"0.1.0\"\n[workspace.dependencies]\n{dependencies}\n"
            );
            check(&[SourceFile::new("Cargo.toml", root), SourceFile::new("crates/p/Cargo.toml", GOOD)]).len()
        };
        assert_eq!(check_root("libc = \"0.2\""), 0);
        assert_eq!(check_root("libc = \"0.2\"\nother = \"1\""), 1);
        assert_eq!(check_root("libc = \"0.2\"\nleaf = { version = \"0.1.0\", path = \"crates/leaf\" }"), 0);
        assert_eq!(check_root("libc = \"0.2\"\nleaf = { path = \"crates/leaf\" }"), 1);
        assert_eq!(check_root("libc = \"0.2\"\nleaf = { version = \"0.2.0\", path = \"crates/leaf\" }"), 1);
        assert_eq!(check_root("libc = { git = \"https://example.org/libc\" }"), 1);
    }
}
