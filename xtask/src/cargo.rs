//! How this program starts cargo, and what it finds on the machine.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace::Workspace;

/// The cargo that runs this program, so that the pinned toolchain stays the same throughout.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace.root());
    command
}

/// A command as a person would type it, with the variables that it sets.
pub fn display(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), quote(&value?.to_string_lossy()))));
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| quote(&argument.to_string_lossy()));
    variables.chain([program]).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$&|;<>*".contains(c)) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.to_owned()
    }
}

/// Runs a command with the streams of this program; a failure is an error.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {}", display(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", display(command));
    }
    Ok(())
}

/// Whether a program stands in one of the folders of `PATH`.
pub fn is_installed(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// `RUSTFLAGS` or `RUSTDOCFLAGS` as it stands, with more behind it.
pub fn flags_with(variable: &str, more: &str) -> String {
    match env::var(variable) {
        Ok(flags) if !flags.trim().is_empty() => format!("{} {more}", flags.trim()),
        _ => more.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_so_that_they_can_be_typed_again() {
        let mut command = Command::new("some/where/cargo");
        command.env("RUSTFLAGS", "--cfg loom").args(["test", "-p", "a", "--", "it's"]);
        assert_eq!(display(&command), r"RUSTFLAGS='--cfg loom' cargo test -p a -- 'it'\''s'");
    }

    #[test]
    fn a_program_that_nobody_has_is_not_found() {
        assert!(!is_installed("a-program-that-nobody-has"));
    }
}
