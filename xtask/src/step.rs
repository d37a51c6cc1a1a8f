//! Steps of `cargo xtask test`: running them one after the other, and the summary at the end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cargo;
use crate::workspace::Workspace;

/// What a step does.
#[derive(Debug)]
pub enum Action {
    /// Runs a command that has to end with success.
    Command(Command),
    /// Runs a command that has to end with success after at least one test.
    Tests(Command),
    /// Calls a function of this program.
    Builtin(fn(&Workspace) -> anyhow::Result<()>),
}

/// One thing that is checked.
#[derive(Debug)]
pub struct Step {
    /// The name for people, such as `clippy alloc-core: no features`.
    pub name: String,
    /// What happens.
    pub action: Action,
}

/// What the tests of a step said, in the words of their own result lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that did not run.
    pub ignored: u64,
    /// The names of those that failed.
    pub failures: Vec<String>,
}

/// How a step ended.
#[derive(Debug)]
pub struct Outcome {
    name: String,
    time: Duration,
    tally: Tally,
    error: Option<anyhow::Error>,
}

impl Tally {
    /// Takes in a line that a test binary wrote.
    fn read(&mut self, line: &str) {
        if let Some(results) = line.strip_prefix("test result: ") {
            self.passed += count(results, "passed");
            self.failed += count(results, "failed");
            self.ignored += count(results, "ignored");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures.iter().cloned());
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; 0 ignored; ...`.
fn count(results: &str, word: &str) -> u64 {
    results
        .split([';', '.'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// Runs the steps in order and shows what they say; `fail_fast` stops at the first that fails.
pub fn run_all(workspace: &Workspace, steps: Vec<Step>, fail_fast: bool) -> Vec<Outcome> {
    let total = steps.len();
    let mut outcomes = Vec::with_capacity(total);
    for (index, step) in steps.into_iter().enumerate() {
        eprintln!("\n=== [{}/{total}] {}", index + 1, step.name);
        let outcome = run_one(workspace, step);
        if let Some(error) = &outcome.error {
            eprintln!("=== FAILED: {}: {error:#}", outcome.name);
        }
        let stop = fail_fast && outcome.error.is_some();
        outcomes.push(outcome);
        if stop {
            break;
        }
    }
    outcomes
}

fn run_one(workspace: &Workspace, step: Step) -> Outcome {
    let start = Instant::now();
    let mut tally = Tally::default();
    let result = match step.action {
        Action::Builtin(function) => function(workspace),
        Action::Command(mut command) => cargo::run(&mut command),
        Action::Tests(mut command) => run_tests(&mut command, &mut tally),
    };
    Outcome { name: step.name, time: start.elapsed(), tally, error: result.err() }
}

/// Runs a command, passes its output on and counts the tests in it.
fn run_tests(command: &mut Command, tally: &mut Tally) -> anyhow::Result<()> {
    let shown = cargo::display(command);
    eprintln!("$ {shown}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("the output of the tests is not to be had")?;
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of the tests")?;
        tally.read(&String::from_utf8_lossy(&line));
        stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n")).context("cannot write to standard output")?;
    }
    stdout.flush().context("cannot write to standard output")?;
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    if tally.passed == 0 {
        bail!("`{shown}` ran no test");
    }
    Ok(())
}

/// Writes what ran, how it ended and how long it took; an error if a step failed or, unforeseen, none ran.
pub fn summarise(outcomes: &[Outcome], planned: usize, left_out: &[String]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let width = outcomes.iter().map(|outcome| outcome.name.chars().count()).max().unwrap_or(0);
    let mut total = Tally::default();
    writeln!(out, "\n=== summary")?;
    for outcome in outcomes {
        let verdict = if outcome.error.is_none() { "ok" } else { "FAILED" };
        let tests = match (outcome.tally.passed, outcome.tally.failed) {
            (0, 0) => String::new(),
            (passed, 0) => format!("  {passed} tests"),
            (passed, failed) => format!("  {passed} tests passed, {failed} failed"),
        };
        let time = outcome.time.as_secs_f64();
        writeln!(out, "{verdict:>6}  {:width$}  {time:>7.1} s{tests}", outcome.name)?;
        total.add(&outcome.tally);
    }
    for reason in left_out {
        writeln!(out, "not built here: {reason}")?;
    }
    writeln!(out, "tests: {} passed, {} failed, {} ignored", total.passed, total.failed, total.ignored)?;
    for name in &total.failures {
        writeln!(out, "failed test: {name}")?;
    }
    let time: Duration = outcomes.iter().map(|outcome| outcome.time).sum();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.error.is_some()).collect();
    for outcome in &failed {
        if let Some(error) = &outcome.error {
            writeln!(out, "failed step: {}: {error:#}", outcome.name)?;
        }
    }
    if planned > outcomes.len() {
        writeln!(out, "{} steps were not run", planned - outcomes.len())?;
    }
    out.flush()?;
    match (outcomes.len(), failed.len()) {
        (0, _) => bail!("no step ran"),
        (all, 0) => writeln!(out, "all {all} steps passed in {:.0} s", time.as_secs_f64()).map_err(Into::into),
        (all, failed) => bail!("{failed} of {all} steps failed after {:.0} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(error: Option<anyhow::Error>) -> Outcome {
        Outcome { name: "a step".to_owned(), time: Duration::ZERO, tally: Tally::default(), error }
    }

    #[test]
    fn result_lines_are_summed() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s");
        tally.read("test pool::release ... FAILED");
        tally.read("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.read("a line about 7 passed; tests");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (14, 1, 1));
        assert_eq!(tally.failures, ["pool::release"]);
    }

    #[test]
    fn a_failed_step_fails_the_whole() {
        assert!(summarise(&[outcome(None)], 1, &[]).is_ok());
        assert!(summarise(&[outcome(None), outcome(Some(anyhow::anyhow!("broken")))], 2, &[]).is_err());
        assert!(summarise(&[], 0, &[]).is_err());
    }

    #[test]
    fn a_command_that_fails_or_tests_nothing_is_an_error() {
        assert!(run_tests(&mut Command::new("false"), &mut Tally::default()).is_err());
        assert!(run_tests(&mut Command::new("true"), &mut Tally::default()).is_err());
        let mut tally = Tally::default();
        let mut echo = Command::new("echo");
        echo.arg("test result: ok. 2 passed; 0 failed; 0 ignored");
        assert!(run_tests(&mut echo, &mut tally).is_ok());
        assert_eq!(tally.passed, 2);
    }
}
