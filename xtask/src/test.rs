//! `cargo xtask test`: everything that CI runs, on a machine with only Rust.

use std::process::Command;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::bundle;
use crate::step::{self, Action, Step};
use crate::workspace::{Package, Workspace};
use crate::{cargo, doc, features, licences, self_check, tidy};

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Runs the tests of the CUDA backend on this machine's GPU instead; fails if there is none
    #[arg(long, conflicts_with_all = ["quick", "only", "skip", "fail_fast", "list"])]
    cuda: bool,
    /// Leaves out what takes long: feature sets other than the default, doc tests, docs and loom
    #[arg(long)]
    quick: bool,
    /// Runs only these groups of steps; may be given several times
    #[arg(long, value_name = "GROUP")]
    only: Vec<Group>,
    /// Leaves these groups of steps out; may be given several times
    #[arg(long, value_name = "GROUP")]
    skip: Vec<Group>,
    /// Stops at the first step that fails
    #[arg(long)]
    fail_fast: bool,
    /// Prints the steps and runs none
    #[arg(long)]
    list: bool,
}

/// The groups of steps, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Group {
    /// The house rules
    Tidy,
    /// Whether commands, CI and documentation fit together
    SelfCheck,
    /// The licences of the dependencies
    Licences,
    /// The format of the code
    Fmt,
    /// Clippy with warnings denied, over every feature set
    Clippy,
    /// Unit and integration tests
    Unit,
    /// The examples in the documentation
    Doctest,
    /// The documentation, warnings denied
    Doc,
    /// Model checks of the lock-free code
    Loom,
}

impl Options {
    fn wants(&self, group: Group) -> bool {
        let quick = !matches!(group, Group::Doctest | Group::Doc | Group::Loom);
        (self.only.is_empty() || self.only.contains(&group))
            && !self.skip.contains(&group)
            && (quick || !self.quick || self.only.contains(&group))
    }
}

/// Runs the steps and fails if one of them does.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if options.cuda {
        return bundle::test(workspace, &[]);
    }
    let steps: Vec<Step> = plan(workspace, options);
    if steps.is_empty() {
        bail!("these options leave no step to run");
    }
    if options.list {
        for step in &steps {
            match &step.action {
                Action::Command(command) | Action::Tests(command) => {
                    println!("{}\n    {}", step.name, cargo::display(command));
                }
                Action::Builtin(_) => println!("{}", step.name),
            }
        }
        return Ok(());
    }
    let planned = steps.len();
    let outcomes = step::run_all(workspace, steps, options.fail_fast);
    step::summarise(&outcomes, planned, &features::left_out(workspace))
}

fn plan(workspace: &Workspace, options: &Options) -> Vec<Step> {
    let mut steps = Vec::new();
    for group in Group::value_variants().iter().filter(|group| options.wants(**group)) {
        match group {
            Group::Tidy => steps.push(builtin("tidy", tidy::run)),
            Group::SelfCheck => steps.push(builtin("self-check", self_check::run)),
            Group::Licences => steps.push(builtin("licences", licences::run)),
            Group::Fmt => steps.push(command("fmt", cargo_with(workspace, &["fmt", "--all", "--check"]))),
            Group::Clippy => steps.extend(clippy(workspace, options.quick)),
            Group::Unit => steps.extend(unit_tests(workspace, options.quick)),
            Group::Doctest => steps.push(doc_tests(workspace)),
            Group::Doc => steps.push(command("doc", doc::command(workspace))),
            Group::Loom => steps.extend(workspace.packages().iter().flat_map(|package| loom(workspace, package))),
        }
    }
    steps
}

fn builtin(name: &str, function: fn(&Workspace) -> anyhow::Result<()>) -> Step {
    Step { name: name.to_owned(), action: Action::Builtin(function) }
}

fn command(name: impl Into<String>, command: Command) -> Step {
    Step { name: name.into(), action: Action::Command(command) }
}

fn cargo_with(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = cargo::cargo(workspace);
    command.args(arguments);
    command
}

/// The whole workspace once with the features that the tests use, then each package with each other feature set.
/// Only the package's own code is built for a set, as a user of that set gets it: its tests may ask for features of
/// their own and so hide what is missing.
fn clippy(workspace: &Workspace, quick: bool) -> Vec<Step> {
    let mut whole = cargo_with(workspace, &["clippy", "--workspace", "--all-targets"]);
    whole.args(features::all_of_workspace(workspace)).args(["--", "-D", "warnings"]);
    let mut steps = vec![command("clippy workspace: all targets, all features", whole)];
    if quick {
        return steps;
    }
    for package in workspace.packages() {
        for set in features::sets(package) {
            let mut one = cargo_with(workspace, &["clippy", "--package", &package.name]);
            one.args(&set.arguments).args(["--", "-D", "warnings"]);
            steps.push(command(format!("clippy {}: {}", package.name, set.label), one));
        }
    }
    steps
}

/// The whole workspace with every feature, then what a package's features could hide: its tests with the default, and without
/// what that turns on.
fn unit_tests(workspace: &Workspace, quick: bool) -> Vec<Step> {
    let targets = ["--lib", "--bins", "--tests", "--examples"];
    let mut whole = cargo_with(workspace, &["test", "--workspace", "--no-fail-fast"]);
    whole.args(targets).args(features::all_of_workspace(workspace));
    let mut steps = vec![Step { name: "tests: all features".to_owned(), action: Action::Tests(whole) }];
    let has_choice =
        |package: &&Package| package.features.keys().any(|feature| feature != "default") && package.name != "benches";
    for package in workspace.packages().iter().filter(has_choice).filter(|_| !quick) {
        let turns_on = package.features.get("default").is_some_and(|features| !features.is_empty());
        let sets: &[(&str, &[&str])] = &[("default features", &[]), ("no features", &["--no-default-features"])];
        for (label, arguments) in &sets[..if turns_on { 2 } else { 1 }] {
            let mut one = cargo_with(workspace, &["test", "--package", &package.name, "--no-fail-fast"]);
            one.args(targets).args(*arguments);
            steps.push(Step { name: format!("tests {}: {label}", package.name), action: Action::Tests(one) });
        }
    }
    steps
}

fn doc_tests(workspace: &Workspace) -> Step {
    let mut command = cargo_with(workspace, &["test", "--workspace", "--doc", "--no-fail-fast"]);
    command.args(features::all_of_workspace(workspace));
    Step { name: "doc tests".to_owned(), action: Action::Tests(command) }
}

/// The models of a package that depends on loom: its test named `loom` if there is one, else the unit tests with that
/// word in their path. They are built apart, as the flag reaches every crate, and optimised, as they walk through very
/// many interleavings; link-time optimisation would cost more than it gives.
fn loom(workspace: &Workspace, package: &Package) -> Option<Step> {
    if !package.dependencies.iter().any(|dependency| dependency.name == "loom") {
        return None;
    }
    let mut command = cargo_with(workspace, &["test", "--package", &package.name, "--release"]);
    if package.targets_of_kind("test").any(|name| name == "loom") {
        command.args(["--test", "loom"]);
    } else {
        command.args(["--lib", "--", "loom"]);
    }
    command
        .env("RUSTFLAGS", cargo::flags_with("RUSTFLAGS", "--cfg loom -Dwarnings"))
        .env("CARGO_TARGET_DIR", workspace.target_directory().join("loom"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    Some(Step { name: format!("loom {}", package.name), action: Action::Tests(command) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Ok(<Cli as clap::Parser>::try_parse_from([&["test"], arguments].concat())?.options)
    }

    fn options(arguments: &[&str]) -> Options {
        parse(arguments).unwrap_or_else(|error| error.exit())
    }

    fn names(arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        let workspace = Workspace::load()?;
        Ok(plan(&workspace, &options(arguments)).into_iter().map(|step| step.name).collect())
    }

    #[test]
    fn the_full_plan_covers_every_package_and_every_group() -> anyhow::Result<()> {
        let names = names(&[])?;
        for package in Workspace::load()?.packages() {
            assert!(names.contains(&format!("clippy {}: default", package.name)), "{names:?}");
        }
        for step in ["tidy", "self-check", "licences", "fmt", "tests: all features", "doc tests", "doc"] {
            assert!(names.iter().any(|name| name == step), "{step} is not in {names:?}");
        }
        assert!(names.contains(&"clippy alloc-core: tracking".to_owned()));
        assert!(names.contains(&"tests alloc-trace: no features".to_owned()));
        assert!(!names.contains(&"tests alloc-core: no features".to_owned()), "that is the default");
        assert!(names.contains(&"loom alloc-pool".to_owned()));
        Ok(())
    }

    #[test]
    fn options_choose_groups() -> anyhow::Result<()> {
        assert_eq!(names(&["--only", "fmt", "--only", "tidy"])?, ["tidy", "fmt"]);
        assert!(!names(&["--skip", "clippy"])?.iter().any(|name| name.starts_with("clippy")));
        let quick = names(&["--quick"])?;
        assert!(!quick.contains(&"doc".to_owned()) && quick.contains(&"tests: all features".to_owned()));
        assert_eq!(names(&["--quick", "--only", "doc"])?, ["doc"]);
        Ok(())
    }

    #[test]
    fn steps_are_not_chosen_of_a_gpus_tests() {
        assert!(parse(&["--cuda"]).is_ok_and(|options| options.cuda));
        for other in [&["--list"][..], &["--quick"], &["--fail-fast"], &["--only", "fmt"], &["--skip", "loom"]] {
            assert!(parse(&[&["--cuda"], other].concat()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn options_that_leave_nothing_are_an_error() -> anyhow::Result<()> {
        assert!(run(&Workspace::load()?, &options(&["--only", "fmt", "--skip", "fmt", "--list"])).is_err());
        Ok(())
    }
}
