//! `cargo xtask bench`: the trace replay, the synthetic benches in short, or a criterion bench, all
//! built with optimisation.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::bundle;
use crate::workspace::{Package, Workspace};
use crate::{cargo, features, peers};

/// What to measure, and how.
#[derive(Args, Debug)]
#[command(
    disable_help_flag = true,
    override_usage = "cargo xtask bench [--no-jemalloc] [REPLAY OPTIONS]\n       \
                      cargo xtask bench micro [--no-jemalloc] [MICRO OPTIONS]\n       \
                      cargo xtask bench criterion [BENCH] [CRITERION OPTIONS]\n       \
                      cargo xtask bench --cuda [copies|devices] [OPTIONS]\n       \
                      cargo xtask bench [--cuda] peers [--quick] [--bench NAME]... [--traces DIR] [--out FILE]"
)]
pub struct Options {
    /// Passed on; `--no-jemalloc` leaves jemalloc out, which is compared wherever `make` is installed
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// A binary of the package with these arguments.
    Binary { name: &'static str, arguments: Vec<OsString> },
    /// These criterion benches, each with these arguments.
    Criterion { benches: Vec<String>, arguments: Vec<OsString> },
}

/// Builds and runs what the arguments ask for.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if let (false, arguments) = without_flag(&options.arguments, "--cuda") {
        return bundle::bench(workspace, &arguments);
    }
    if let Some((first, arguments)) = options.arguments.split_first()
        && first == "peers"
    {
        return peers::bench(workspace, false, arguments);
    }
    let benches = workspace.packages().iter().find(|package| package.name == "benches");
    let benches = benches.context("this workspace has no package `benches`")?;
    let (with_jemalloc, arguments) = without_flag(&options.arguments, "--no-jemalloc");
    let mut selected = features::buildable(benches);
    // The GPU has benches of its own.
    selected.retain(|feature| !["cuda", "devices"].contains(feature));
    if !with_jemalloc {
        selected.retain(|feature| *feature != "jemalloc");
    } else if !selected.contains(&"jemalloc") {
        eprintln!("jemalloc is not compared: building it needs `make`, which is not installed");
    }
    let mut command = match request(benches, arguments)? {
        Request::Binary { name, arguments } => {
            command(workspace, &["run", "--release"], &["--bin", name], &selected, &arguments)?
        }
        Request::Criterion { benches, arguments } => {
            // Not `--benches`: that takes in the unit tests of the library and the programs, which know no option of
            // criterion's and end it all.
            let targets: Vec<&str> = benches.iter().flat_map(|name| ["--bench", name.as_str()]).collect();
            command(workspace, &["bench"], &targets, &selected, &arguments)?
        }
    };
    cargo::run(&mut command)
}

/// The command that runs a program of the package `benches`. Relative paths among the arguments are meant from where the
/// caller stands.
///
/// # Errors
/// If the current folder is gone.
pub fn command(
    workspace: &Workspace,
    verb: &[&str],
    target: &[&str],
    features: &[&str],
    arguments: &[OsString],
) -> anyhow::Result<Command> {
    let mut command = cargo::cargo(workspace);
    command.current_dir(env::current_dir().context("the current folder is not to be had")?);
    command.args(verb).arg("--manifest-path").arg(workspace.root().join("Cargo.toml"));
    command.args(["--package", "benches"]).args(target);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    command.arg("--").args(arguments);
    Ok(command)
}

fn without_flag(arguments: &[OsString], flag: &str) -> (bool, Vec<OsString>) {
    let rest: Vec<OsString> = arguments.iter().filter(|argument| *argument != flag).cloned().collect();
    (rest.len() == arguments.len(), rest)
}

fn request(benches: &Package, mut arguments: Vec<OsString>) -> anyhow::Result<Request> {
    match arguments.first().and_then(|argument| argument.to_str()) {
        Some("micro") => {
            arguments.remove(0);
            return Ok(Request::Binary { name: "micro", arguments });
        }
        Some("criterion") => arguments.remove(0),
        _ => return Ok(Request::Binary { name: "replay", arguments }),
    };
    let known: Vec<&str> = benches.targets_of_kind("bench").collect();
    let chosen = match arguments.first().and_then(|argument| argument.to_str()) {
        Some(name) if !name.starts_with('-') => {
            if !known.contains(&name) {
                bail!("there is no criterion bench `{name}`; there are: {}", known.join(", "));
            }
            let name = name.to_owned();
            arguments.remove(0);
            vec![name]
        }
        _ => known.into_iter().map(str::to_owned).collect(),
    };
    Ok(Request::Criterion { benches: chosen, arguments })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::workspace::Target;

    fn benches() -> Package {
        Package {
            name: "benches".to_owned(),
            version: "0.1.0".to_owned(),
            license: None,
            manifest_path: PathBuf::new(),
            publish: None,
            features: BTreeMap::new(),
            dependencies: Vec::new(),
            targets: [("benches", "lib"), ("churn", "bench"), ("micro", "bin"), ("pair", "bench")]
                .map(|(name, kind)| Target { name: name.to_owned(), kind: vec![kind.to_owned()] })
                .into(),
        }
    }

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn arguments_reach_the_programs_as_they_are() -> anyhow::Result<()> {
        let arguments = words(&["--trace", "a b.csv", "--json"]);
        let replay = Request::Binary { name: "replay", arguments: arguments.clone() };
        assert_eq!(request(&benches(), arguments)?, replay);
        let micro = Request::Binary { name: "micro", arguments: words(&["--quick"]) };
        assert_eq!(request(&benches(), words(&["micro", "--quick"]))?, micro);
        assert_eq!(without_flag(&words(&["--no-jemalloc", "--json"]), "--no-jemalloc"), (false, words(&["--json"])));
        assert_eq!(without_flag(&words(&["--json"]), "--no-jemalloc"), (true, words(&["--json"])));
        Ok(())
    }

    #[test]
    fn criterion_benches_are_chosen_by_name() -> anyhow::Result<()> {
        let chosen = request(&benches(), words(&["criterion", "churn", "--quick"]))?;
        let criterion = |benches: &[&str]| Request::Criterion {
            benches: benches.iter().map(|name| (*name).to_owned()).collect(),
            arguments: words(&["--quick"]),
        };
        assert_eq!(chosen, criterion(&["churn"]));
        // The benches, and no library or program, whose test harness would refuse the options.
        let all = request(&benches(), words(&["criterion", "--quick"]))?;
        assert_eq!(all, criterion(&["churn", "pair"]));
        assert!(request(&benches(), words(&["criterion", "chrun"])).is_err());
        Ok(())
    }
}
