//! Rules for every text file: whitespace, marks of unfinished work, and paths of somebody's machine.

use super::Problem;
use super::files::SourceFile;
use super::lexer;

/// Marks of unfinished work. Put together here, so that this file keeps its own rule.
const MARKS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// Folders that exist on one machine and not on the next.
const MACHINE_PATHS: [&str; 6] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/tm", "p/"),
    concat!("C:", "\\"),
];

pub(super) fn check(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in file.lines() {
        let mut add = |message: String| problems.push(Problem::new(file, number, message));
        if line.ends_with([' ', '\t']) {
            add("blanks at the end of the line".to_owned());
        }
        if line.contains('\t') {
            add("a tab; blanks indent here".to_owned());
        }
        for mark in MARKS {
            if !lexer::lines_with_word(line, mark).is_empty() {
                add(format!("{mark}: finish it, or write an issue"));
            }
        }
        for path in MACHINE_PATHS {
            if names_path(line, path) {
                add(format!("a path of one machine: {path}"));
            }
        }
    }
    if file.text.contains('\r') {
        problems.push(Problem::new(file, 0, "carriage returns"));
    }
    if !file.text.is_empty() && (!file.text.ends_with('\n') || file.text.ends_with("\n\n")) {
        problems.push(Problem::new(file, file.text.lines().count(), "a file ends with one newline"));
    }
    problems
}

/// Whether an absolute path starts with `path`, and not merely some other path or address goes on with it.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.~/}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        check(&SourceFile::new("a.md", text)).len()
    }

    #[test]
    fn whitespace_is_checked() {
        assert_eq!(count("one\n\ntwo\n"), 0);
        assert_eq!(count(""), 0);
        for bad in ["one \n", "one\ttwo\n", "one", "one\n\n", "one\r\n"] {
            assert_eq!(count(bad), 1, "{bad:?}");
        }
    }

    #[test]
    fn marks_and_machine_paths_are_found() {
        for mark in MARKS {
            assert_eq!(count(&format!("// {mark}: later\n")), 1);
            assert_eq!(count(&format!("the word {mark}S is another\n")), 0);
        }
        for path in MACHINE_PATHS {
            assert_eq!(count(&format!("see `{path}me/file`\n")), 1);
            assert_eq!(count(&format!("{path}me/file\n")), 1);
            assert_eq!(count(&format!("https://example.org{path}page\n")), 0);
        }
    }
}
