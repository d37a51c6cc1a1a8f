//! The feature sets that `cargo xtask test` looks at: for each package none, the default, each alone, and all.

use std::collections::BTreeSet;

use crate::cargo::is_installed;
use crate::workspace::{Package, Workspace};

/// Features that need more than Rust and a C compiler: package, feature, and the program that has to be there.
const NEEDS: &[(&str, &str, &str)] = &[("benches", "jemalloc", "make")];

/// Programs without which a test looks at less: the program, and what is left out.
const HELPFUL: &[(&str, &str)] = &[
    ("cc", "the example in C of alloc-capi"),
    ("c++", "how alloc-capi calls functions of C++"),
    ("python3", "the tests of the Python package"),
];

/// Features of one package that are switched on together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSet {
    /// What people call it: `default`, `no features`, the feature's name, or `all features`.
    pub label: String,
    /// The arguments for cargo.
    pub arguments: Vec<String>,
}

/// The features of a package that this machine can build; `default` is not among them.
pub fn buildable(package: &Package) -> Vec<&str> {
    selectable(package, is_installed)
}

fn selectable(package: &Package, is_installed: impl Fn(&str) -> bool) -> Vec<&str> {
    let needed = |feature: &str| NEEDS.iter().find(|(p, f, _)| *p == package.name && *f == feature);
    package
        .features
        .keys()
        .map(String::as_str)
        .filter(|feature| *feature != "default" && needed(feature).is_none_or(|(_, _, program)| is_installed(program)))
        .collect()
}

/// What this machine cannot build, and why; the summary of `cargo xtask test` says so.
pub fn left_out(workspace: &Workspace) -> Vec<String> {
    let packages = workspace.packages();
    let features = NEEDS
        .iter()
        .filter(|(p, f, program)| {
            packages.iter().any(|package| package.name == *p && package.features.contains_key(*f))
                && !is_installed(program)
        })
        .map(|(package, feature, program)| format!("{package}/{feature}: needs `{program}`, which is not installed"));
    let parts = HELPFUL.iter().filter(|(program, _)| !is_installed(program));
    features.chain(parts.map(|(program, part)| format!("{part}: needs `{program}`, which is not installed"))).collect()
}

/// Entries of the list above that name no feature of this workspace any more.
pub fn stale_entries(workspace: &Workspace) -> Vec<String> {
    NEEDS
        .iter()
        .filter(|(p, f, _)| !workspace.packages().iter().any(|k| k.name == *p && k.features.contains_key(*f)))
        .map(|(package, feature, _)| format!("{package}/{feature}"))
        .collect()
}

/// Every buildable feature of the workspace, as `--features package/feature,...`; nothing where there is none.
pub fn all_of_workspace(workspace: &Workspace) -> Vec<String> {
    let names: Vec<String> = workspace
        .packages()
        .iter()
        .flat_map(|package| buildable(package).into_iter().map(move |feature| format!("{}/{feature}", package.name)))
        .collect();
    if names.is_empty() { Vec::new() } else { vec!["--features".to_owned(), names.join(",")] }
}

/// The feature sets of a package, each different from the others.
pub fn sets(package: &Package) -> Vec<FeatureSet> {
    sets_of(package, &buildable(package))
}

fn sets_of(package: &Package, features: &[&str]) -> Vec<FeatureSet> {
    let mut seen: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
    let mut sets = Vec::new();
    let mut add = |label: &str, chosen: &[&'_ str], arguments: Vec<String>| {
        if seen.insert(closure(package, chosen)) {
            sets.push(FeatureSet { label: label.to_owned(), arguments });
        }
    };
    add("default", &["default"], Vec::new());
    add("no features", &[], vec!["--no-default-features".to_owned()]);
    for feature in features {
        add(feature, &[feature], only(&[feature]));
    }
    add("all features", features, only(features));
    sets
}

fn only(features: &[&str]) -> Vec<String> {
    vec!["--no-default-features".to_owned(), "--features".to_owned(), features.join(",")]
}

/// The features that are on when those of `chosen` are, `default` itself left out.
fn closure<'a>(package: &'a Package, chosen: &[&str]) -> BTreeSet<&'a str> {
    let mut on = BTreeSet::new();
    let mut open: Vec<&str> = chosen.to_vec();
    while let Some(feature) = open.pop() {
        if let Some((name, enables)) = package.features.get_key_value(feature)
            && on.insert(name.as_str())
        {
            open.extend(enables.iter().map(String::as_str));
        }
    }
    on.remove("default");
    on
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn package(name: &str, features: &[(&str, &[&str])]) -> Package {
        let features: BTreeMap<_, _> = features
            .iter()
            .map(|(name, enables)| ((*name).to_owned(), enables.iter().map(|e| (*e).to_owned()).collect()))
            .collect();
        Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            license: None,
            manifest_path: PathBuf::new(),
            publish: None,
            features,
            dependencies: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn labels(package: &Package, features: &[&str]) -> Vec<String> {
        sets_of(package, features).into_iter().map(|set| set.label).collect()
    }

    #[test]
    fn a_package_without_features_has_one_set() {
        assert_eq!(labels(&package("p", &[]), &[]), ["default"]);
        assert_eq!(labels(&package("p", &[("default", &[])]), &[]), ["default"]);
    }

    #[test]
    fn sets_that_turn_on_the_same_features_are_named_once() {
        let two = package("p", &[("default", &[]), ("a", &[]), ("b", &["dep:x"])]);
        assert_eq!(labels(&two, &["a", "b"]), ["default", "a", "b", "all features"]);
        let one = package("p", &[("default", &["a"]), ("a", &[])]);
        assert_eq!(labels(&one, &["a"]), ["default", "no features"]);
        let implied = package("p", &[("default", &[]), ("a", &["b"]), ("b", &[])]);
        assert_eq!(labels(&implied, &["a", "b"]), ["default", "a", "b"]);
    }

    #[test]
    fn a_feature_whose_tool_is_missing_is_left_out() {
        let benches = package("benches", &[("default", &[]), ("jemalloc", &["dep:tikv-jemallocator"])]);
        assert_eq!(selectable(&benches, |_| true), ["jemalloc"]);
        assert!(selectable(&benches, |_| false).is_empty());
    }

    #[test]
    fn arguments_name_features_and_nothing_else() {
        let two = package("p", &[("a", &[]), ("b", &[])]);
        let all = sets_of(&two, &["a", "b"]).pop().map(|set| set.arguments);
        assert_eq!(all, Some(vec!["--no-default-features".into(), "--features".into(), "a,b".into()]));
    }
}
