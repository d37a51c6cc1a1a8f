//! Where `unsafe` may stand: in the files and folders that `xtask/unsafe-allowed.txt` lists, each with its reason, and
//! in tests. The signature of an unsafe function and the declaration of an unsafe trait are free, as they do nothing by
//! themselves; what a body does is not, nor is the implementation of such a trait.

use std::collections::BTreeMap;

use super::Problem;
use super::files::SourceFile;
use super::lexer;

const LIST: &str = "xtask/unsafe-allowed.txt";
const FORBIDS: [&str; 2] = ["#![forbid(unsafe_code)]", "#![cfg_attr(not(test), forbid(unsafe_code))]"];

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let Some(list) = files.iter().find(|file| file.path == LIST) else { return Vec::new() };
    let (allowed, mut problems) = read(list);
    let mut is_used: BTreeMap<&str, bool> = allowed.keys().map(|path| (*path, false)).collect();
    let mut free_crates: BTreeMap<&str, bool> = BTreeMap::new();
    for file in files.iter().filter(|file| file.has_extension("rs") && !is_test(&file.path)) {
        let code = lexer::without_unit_tests(&lexer::code_only(&file.text));
        *free_crates.entry(crate_folder(&file.path)).or_insert(true) &=
            lexer::lines_with_word(&code, "unsafe").is_empty();
        let Some(line) = first_unsafe_act(&code) else { continue };
        match allowed.keys().find(|entry| covers(entry, &file.path)) {
            Some(entry) => {
                is_used.insert(entry, true);
            }
            None => problems.push(Problem::new(file, line, format!("`unsafe` in a file that {LIST} does not list"))),
        }
    }
    for (path, _) in is_used.iter().filter(|(_, is_used)| !**is_used) {
        let line = allowed.get(path).copied().unwrap_or_default();
        problems.push(Problem::new(list, line, format!("{path} does not exist or has no `unsafe` any more")));
    }
    for root in files.iter().filter(|file| is_crate_root(&file.path)) {
        let is_free = free_crates.get(crate_folder(&root.path)).copied().unwrap_or(false);
        if is_free && !FORBIDS.iter().any(|line| root.text.contains(line)) {
            problems.push(Problem::new(root, 1, format!("a crate without `unsafe` says so: `{}`", FORBIDS[0])));
        }
    }
    problems
}

/// The first line with `unsafe` that is more than a signature, or an attribute.
fn first_unsafe_act(code: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let act = code.match_indices("unsafe").find(|(at, word)| {
        let (before, after) = (&code[..*at], &code[at + word.len()..]);
        let is_alone = !before.ends_with(is_word) && !after.starts_with(is_word);
        let next = after.trim_start().split(|c: char| !is_word(c)).next();
        let is_signature = matches!(next, Some("fn" | "extern" | "trait"));
        is_alone && !is_signature && !before.ends_with("#[")
    });
    act.map(|(at, _)| code[..at].matches('\n').count() + 1)
}

/// Whether an entry of the list, a file or a folder with a slash at its end, speaks of a file.
fn covers(entry: &str, path: &str) -> bool {
    entry == path || (entry.ends_with('/') && path.starts_with(entry))
}

/// The part of a path before `/src/`.
fn crate_folder(path: &str) -> &str {
    path.split_once("/src/").map_or(path, |(folder, _)| folder)
}

/// The paths in the list with their lines, and what is wrong with the list.
fn read(list: &SourceFile) -> (BTreeMap<&str, usize>, Vec<Problem>) {
    let mut allowed = BTreeMap::new();
    let mut problems = Vec::new();
    for (number, line) in list.lines().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(": ") {
            Some((path, reason)) if !reason.trim().is_empty() => {
                if allowed.insert(path, number).is_some() {
                    problems.push(Problem::new(list, number, format!("{path} is listed twice")));
                }
            }
            _ => problems.push(Problem::new(list, number, "a line is `path: reason`")),
        }
    }
    (allowed, problems)
}

fn is_test(path: &str) -> bool {
    let mut folders = path.split('/').rev().skip(1);
    // The package `benches` at the root has sources like any other.
    folders.any(|folder| matches!(folder, "tests" | "examples"))
        || path.contains("/benches/")
        || path.ends_with("/tests.rs")
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: &str = "//! About.\n#![forbid(unsafe_code)]\n";

    fn messages(list: &str, files: &[(&str, &str)]) -> Vec<String> {
        let mut all = vec![SourceFile::new(LIST, list)];
        all.extend(files.iter().map(|(path, text)| SourceFile::new(*path, *text)));
        check(&all).into_iter().map(|problem| problem.to_string()).collect()
    }

    #[test]
    fn unsafe_code_stands_in_listed_files_only() {
        let files = [("a/src/lib.rs", FREE), ("a/src/m.rs", "fn f() {\n    unsafe { g() }\n}\n")];
        let problems = messages("", &files);
        assert!(matches!(problems.as_slice(), [one] if one.starts_with("a/src/m.rs:2:")), "{problems:?}");
        assert!(messages("# Why.\na/src/m.rs: forwards\n", &files).is_empty());
        assert!(messages("a/src/: forwards\n", &files).is_empty());
        assert_eq!(messages("b/src/: forwards\n", &files).len(), 2);
    }

    #[test]
    fn a_signature_does_nothing() {
        let acts = |code: &str| first_unsafe_act(&lexer::code_only(code));
        for free in [
            "unsafe fn f() {}",
            "pub unsafe fn f();",
            "pub unsafe trait T {}",
            "type F = unsafe extern \"C\" fn();",
            "#![deny(unsafe_code)]",
            "#[unsafe(no_mangle)]",
        ] {
            assert_eq!(acts(free), None, "{free}");
        }
        for act in [
            "\nunsafe { f() }",
            "\nlet x = g(unsafe { f() });",
            "\nunsafe impl Send for X {}",
            "\nunsafe{f()}",
            "\nunsafe\n{ f() }",
            "\nif !unsafe { f() } {}",
            "\nlet x = &mut *unsafe { f() };",
            "\nlet x = [unsafe { f() }];",
        ] {
            assert_eq!(acts(act), Some(2), "{act}");
        }
    }

    #[test]
    fn tests_are_free() {
        for path in ["a/tests/it/main.rs", "a/benches/b.rs", "a/examples/e.rs", "a/src/m/tests.rs"] {
            assert!(messages("", &[(path, "unsafe {}")]).is_empty(), "{path}");
        }
        assert_eq!(messages("", &[("benches/src/m.rs", "unsafe {}")]).len(), 1);
        assert!(messages("", &[("a/src/m.rs", "#[cfg(test)]\nmod tests { fn f() { unsafe {} } }")]).is_empty());
    }

    #[test]
    fn the_list_is_kept_current() {
        let files = [("a/src/m.rs", "fn f() {}\n")];
        assert_eq!(messages("a/src/m.rs: forwards\n", &files).len(), 1);
        assert_eq!(messages("a/src/gone.rs: forwards\n", &files).len(), 1);
        assert_eq!(messages("a/src/m.rs\n", &files).len(), 1);
        assert_eq!(messages("a/src/m.rs: one\na/src/m.rs: two\n", &[("a/src/m.rs", "unsafe {}")]).len(), 1);
    }

    #[test]
    fn a_crate_without_unsafe_says_so() {
        assert_eq!(messages("", &[("a/src/lib.rs", "//! About.\n")]).len(), 1);
        assert!(messages("", &[("a/src/lib.rs", FREE)]).is_empty());
        assert!(messages("", &[("a/src/lib.rs", "#![cfg_attr(not(test), forbid(unsafe_code))]")]).is_empty());
        let with = [("a/src/lib.rs", "//! About.\n"), ("a/src/m.rs", "unsafe {}")];
        assert!(messages("a/src/m.rs: forwards\n", &with).is_empty());
    }
}
