//! Every environment variable that a library reads stands in the guide, and the guide names no other.

use std::collections::BTreeMap;

use super::Problem;
use super::files::SourceFile;

const GUIDE: &str = "docs/guide.md";
/// What the names of our variables begin with.
const PREFIX: &str = concat!("ALLOC", "_");

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let Some(guide) = files.iter().find(|file| file.path == GUIDE) else { return Vec::new() };
    let is_library = |file: &&SourceFile| file.path.starts_with("crates/") && file.path.contains("/src/");
    let mut read = BTreeMap::new();
    for file in files.iter().filter(is_library) {
        for (line, name) in names_between(file, '"') {
            read.entry(name).or_insert((file, line));
        }
    }
    let documented: BTreeMap<String, usize> = names_between(guide, '`').map(|(line, name)| (name, line)).collect();
    let missing = read.iter().filter(|(name, _)| !documented.contains_key(*name));
    let missing = missing.map(|(name, (file, line))| Problem::new(file, *line, format!("{GUIDE} lacks `{name}`")));
    let stale = documented.iter().filter(|(name, _)| !read.contains_key(*name));
    let stale = stale.map(|(name, line)| Problem::new(guide, *line, format!("no library reads `{name}`")));
    missing.chain(stale).collect()
}

/// The names in a file that stand between two marks, with their lines.
fn names_between(file: &SourceFile, mark: char) -> impl Iterator<Item = (usize, String)> {
    file.lines().flat_map(move |(number, line)| {
        line.split(mark)
            .skip(1)
            .step_by(2)
            .filter(|word| word.strip_prefix(PREFIX).is_some_and(is_name))
            .map(move |word| (number, word.to_owned()))
    })
}

fn is_name(rest: &str) -> bool {
    !rest.is_empty() && rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(source: &str, guide: &str) -> Vec<String> {
        let files = [SourceFile::new("crates/a/src/lib.rs", source), SourceFile::new(GUIDE, guide)];
        check(&files).into_iter().map(|problem| problem.to_string()).collect()
    }

    #[test]
    fn source_and_guide_name_the_same_variables() {
        let source = format!("let x = read(\"{PREFIX}A_LIMIT\");");
        assert!(problems(&source, &format!("| `{PREFIX}A_LIMIT` |")).is_empty());
        let missing = problems(&source, "");
        assert!(matches!(missing.as_slice(), [one] if one.starts_with("crates/a/src/lib.rs:1:")), "{missing:?}");
        let stale = problems("", &format!("| `{PREFIX}A_LIMIT` |"));
        assert!(matches!(stale.as_slice(), [one] if one.starts_with("docs/guide.md:1:")), "{stale:?}");
    }

    #[test]
    fn other_words_are_no_variables() {
        assert!(problems(&format!("\"{PREFIX}\" \"{PREFIX}lower\" {PREFIX}BARE"), "").is_empty());
    }
}
