//! `cargo xtask tidy`: the house rules that no other tool checks, one module a subject.

mod environment;
mod files;
mod included;
mod layers;
mod lexer;
mod manifest;
mod markdown;
mod source;
mod text;
mod unsafe_code;

use std::fmt;

use anyhow::bail;

use crate::workspace::Workspace;
use files::SourceFile;

/// A breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    /// Counted from 1; 0 where the whole file is meant.
    line: usize,
    message: String,
}

impl Problem {
    fn new(file: &SourceFile, line: usize, message: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks every text file of the workspace.
pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let files = files::collect(workspace.root())?;
    let problems = check(&files);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} house rules are broken", problems.len());
    }
    println!("{} files are tidy", files.len());
    Ok(())
}

fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        problems.extend(text::check(file));
        if file.has_extension("rs") {
            problems.extend(source::check(file));
            problems.extend(included::check(file));
        }
        if file.has_extension("cpp") || file.has_extension("hpp") {
            problems.extend(source::check_cpp(file));
        }
    }
    problems.extend(unsafe_code::check(files));
    problems.extend(manifest::check(files));
    problems.extend(layers::check(files));
    problems.extend(markdown::check(files));
    problems.extend(environment::check(files));
    problems.sort();
    problems.dedup();
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_asked() {
        let file = |path: &str, text: &str| SourceFile::new(path, text);
        let problems = check(&[
            file("a.md", "[x](nowhere.md)\nblanks \n"),
            file("crates/b/Cargo.toml", "[package]\nname = \"b\"\n"),
            file("crates/b/src/c.rs", "fn f() { unsafe { g(include_str!(\"../../d\")) } }\n"),
            file("xtask/unsafe-allowed.txt", ""),
        ]);
        let messages: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        for word in [
            "leads nowhere",
            "at the end of the line",
            "[lints]",
            "no place",
            "starts with its doc",
            "does not list",
            "not in this package",
        ] {
            assert!(messages.contains(word), "{word} is not in:\n{messages}");
        }
    }

    #[test]
    fn a_problem_says_where_it_is() {
        let file = SourceFile::new("a/b.rs", "");
        assert_eq!(Problem::new(&file, 3, "bad").to_string(), "a/b.rs:3: bad");
        assert_eq!(Problem::new(&file, 0, "bad").to_string(), "a/b.rs: bad");
    }
}
