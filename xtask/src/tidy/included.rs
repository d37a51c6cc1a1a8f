//! A rule for libraries: their sources take in no file from outside of the package, which would be missing once it is
//! published.

use super::Problem;
use super::files::SourceFile;

/// What has a path behind it that cargo reads, relative to the file that says so.
const READERS: [&str; 4] = ["include_str!(\"", "include_bytes!(\"", "include!(\"", "#[path = \""];

pub(super) fn check(file: &SourceFile) -> Vec<Problem> {
    // `crates`, the package, `src`, and the folders within.
    let Some(folders) = file.folder().strip_prefix("crates/").map(|rest| rest.split('/').count()) else {
        return Vec::new();
    };
    if file.folder().split('/').nth(2) != Some("src") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (number, line) in file.lines() {
        for path in READERS.iter().flat_map(|reader| line.split(reader).skip(1)) {
            let path = path.split('"').next().unwrap_or_default();
            // With one less it leads to the package's own folder at the most.
            if path.starts_with('/') || path.matches("../").count() >= folders {
                problems.push(Problem::new(file, number, format!("`{path}` is not in this package")));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&SourceFile::new(path, text)).len()
    }

    #[test]
    fn what_is_taken_in_is_in_the_package() {
        for text in ["include_str!(\"style.css\")", "include_str!(\"../README.md\")", "#[path = \"a.rs\"]"] {
            assert_eq!(count("crates/p/src/lib.rs", text), 0, "{text}");
        }
        assert_eq!(count("crates/p/src/a/b.rs", "include_bytes!(\"../../README.md\")"), 0);
        for text in ["include_str!(\"../../README.md\")", "#[path = \"../../q/src/a.rs\"]", "include!(\"/a.rs\")"] {
            assert_eq!(count("crates/p/src/lib.rs", text), 1, "{text}");
        }
        assert_eq!(count("crates/p/src/a/b.rs", "include_bytes!(\"../../../README.md\")"), 1);
    }

    #[test]
    fn tests_and_what_is_not_published_may_look_around() {
        assert_eq!(count("crates/p/tests/it/main.rs", "#[path = \"../../../q/tests/a.rs\"]"), 0);
        assert_eq!(count("docs/src/lib.rs", "include_str!(\"../../README.md\")"), 0);
    }
}
