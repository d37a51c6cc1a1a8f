//! Rules for Rust files: a doc at the top, a bounded length, nothing unfinished, no test or example switched off. C++
//! files keep the first two.

use super::Problem;
use super::files::SourceFile;
use super::lexer;

/// A file that grows beyond this has more than one subject.
const MAX_LINES: usize = 600;

/// C++ files: a comment at the top says what they are about, and they have one subject too.
pub(super) fn check_cpp(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !file.text.starts_with("// ") {
        problems.push(Problem::new(file, 1, "a file starts with what it is about, in a comment"));
    }
    problems.extend(too_long(file));
    problems
}

pub(super) fn check(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    // The file above a `tests.rs` says what is tested.
    if file.name() != "tests.rs" && !starts_with_doc(&file.text) {
        problems.push(Problem::new(file, 1, "a file starts with its doc: `//!` and what it is about"));
    }
    problems.extend(too_long(file));
    problems.extend(unfinished(file));
    problems.extend(examples_not_compiled(file));
    problems
}

fn too_long(file: &SourceFile) -> Option<Problem> {
    let lines = file.text.lines().count();
    (lines > MAX_LINES).then(|| Problem::new(file, 0, format!("{lines} lines; a file has at most {MAX_LINES}")))
}

/// Whether the first thing that is neither blank, nor an attribute, nor a plain comment is an inner doc comment.
fn starts_with_doc(text: &str) -> bool {
    let is_passed_over = |line: &&str| {
        line.is_empty()
            || (line.starts_with("#!") && !line.starts_with("#![doc = include_str!"))
            || (line.starts_with("//") && !line.starts_with("//!"))
    };
    let first = text.lines().map(str::trim).find(|line| !is_passed_over(line));
    first.is_some_and(|line| {
        line.starts_with("#![doc = ") || line.strip_prefix("//!").is_some_and(|doc| !doc.trim().is_empty())
    })
}

fn unfinished(file: &SourceFile) -> Vec<Problem> {
    let code = lexer::code_only(&file.text);
    let mut problems = Vec::new();
    for name in ["todo", "unimplemented", "dbg"] {
        for line in lexer::lines_with_word(&code, &format!("{name}!")) {
            problems.push(Problem::new(file, line, format!("`{name}!` is left over")));
        }
    }
    for ((number, line), code) in file.lines().zip(code.lines()) {
        if code.trim_start().starts_with("#[ignore") && !is_run_by_another(line, &file.text) {
            problems.push(Problem::new(file, number, "a test that is switched off"));
        }
    }
    problems
}

/// Whether an ignored test names a test of the same file that runs it: some need a process of their own.
fn is_run_by_another(attribute: &str, text: &str) -> bool {
    let runner = attribute.split_once("run by `").and_then(|(_, rest)| rest.split_once('`'));
    runner.is_some_and(|(name, _)| text.contains(&format!("#[test]\nfn {name}()")))
}

/// Examples in doc comments that the compiler never sees.
fn examples_not_compiled(file: &SourceFile) -> Vec<Problem> {
    let is_fence = |line: &str| {
        let doc = line.trim_start().strip_prefix("///").or_else(|| line.trim_start().strip_prefix("//!"));
        doc.and_then(|doc| doc.trim_start().strip_prefix("```"))
            .is_some_and(|info| info.split(',').any(|word| word.trim() == "ignore"))
    };
    let lines = file.lines().filter(|(_, line)| is_fence(line));
    lines.map(|(line, _)| Problem::new(file, line, "an example that is not compiled: use `no_run` or `text`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<(usize, String)> {
        check(&SourceFile::new("a.rs", text)).into_iter().map(|problem| (problem.line, problem.message)).collect()
    }

    #[test]
    fn a_doc_at_the_top_is_asked_for() {
        for fine in
            ["//! About.\n", "// Licence.\n\n#![forbid(unsafe_code)]\n//! About.\n", "#![doc = include_str!(\"x\")]\n"]
        {
            assert!(messages(fine).is_empty(), "{fine}");
        }
        assert!(check(&SourceFile::new("a/tests.rs", "use super::*;\n")).is_empty());
        for bad in ["", "use x;\n//! About.\n", "//!\n", "/// About.\nfn f() {}\n"] {
            assert_eq!(messages(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn long_files_are_named() {
        let text = format!("//! About.\n{}", "\n".repeat(MAX_LINES - 1));
        assert!(messages(&text).is_empty());
        assert_eq!(messages(&format!("{text}\n")).len(), 1);
    }

    #[test]
    fn a_cpp_file_says_what_it_is_about() {
        let count = |text: &str| check_cpp(&SourceFile::new("a.hpp", text)).len();
        assert_eq!(count("// About.\n#pragma once\n"), 0);
        assert_eq!(count("#pragma once\n"), 1);
        assert_eq!(count(&format!("// About.\n{}", "\n".repeat(MAX_LINES))), 1);
    }

    #[test]
    fn what_is_unfinished_or_switched_off_is_named() {
        for bad in [
            "fn f() { todo!() }",
            "unimplemented!(\"x\");",
            "dbg!(x)",
            "#[ignore]",
            "  #[ignore = \"slow\"]",
            "/// ```ignore",
            "//! ```rust,ignore",
        ] {
            let problems = messages(&format!("//! About.\n{bad}\n"));
            assert!(matches!(problems.as_slice(), [(2, _)]), "{bad}: {problems:?}");
        }
    }

    #[test]
    fn a_test_may_be_run_by_another() {
        let ignored = "//! About.\n#[test]\n#[ignore = \"run by `parent`\"]\nfn child() {}\n";
        assert_eq!(messages(ignored).len(), 1);
        assert!(messages(&format!("{ignored}#[test]\nfn parent() {{}}\n")).is_empty());
    }

    #[test]
    fn words_in_comments_and_strings_are_free() {
        for fine in ["// todo!()", "let x = \"#[ignore]\";", "/// ```no_run", "/// ```text", "method_todo()"] {
            assert!(messages(&format!("//! About.\n{fine}\n")).is_empty(), "{fine}");
        }
    }
}
