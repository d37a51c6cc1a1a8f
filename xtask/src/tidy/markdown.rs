//! Rules for Markdown: links within the repository lead somewhere, and the changelog awaits the next release.

use std::collections::BTreeSet;

use super::Problem;
use super::files::SourceFile;

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.has_extension("md")) {
        for (line, target) in links(&file.text) {
            if let Some(message) = broken(file, &target, files) {
                problems.push(Problem::new(file, line, message));
            }
        }
        if file.path == "CHANGELOG.md" && !has_unreleased(&file.text) {
            problems.push(Problem::new(file, 0, "`## [Unreleased]` with what has changed is missing"));
        }
    }
    problems
}

/// What is wrong with a link, if anything; addresses elsewhere are not followed.
fn broken(file: &SourceFile, target: &str, files: &[SourceFile]) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { file.path.clone() } else { resolve(file.folder(), path)? };
    let found = files.iter().find(|other| other.path == path);
    let folder = format!("{path}/");
    let is_folder = path.is_empty() || files.iter().any(|other| other.path.starts_with(&folder));
    // Licence files have no extension and are not among the text files; the self-check looks after them.
    if found.is_none() && !is_folder && !path.starts_with("LICENSE-") {
        return Some(format!("the link `{target}` leads nowhere"));
    }
    let is_known = anchor.is_empty()
        || found.is_none_or(|other| !other.has_extension("md") || anchors(&other.text).contains(anchor));
    (!is_known).then(|| format!("{path} has no heading `#{anchor}`"))
}

/// A relative path from the root of the workspace; `None` if it leads out of it.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The targets of all links outside code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            links.push((number, target.to_owned()));
        }
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]: ")
        {
            links.push((number, target.split(' ').next().unwrap_or_default().to_owned()));
        }
    }
    links
}

/// The lines outside fenced code, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((index + 1, line))
    })
}

/// A line without what stands between backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// What headings are called in links: lower case, blanks as hyphens, no punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Whether the section of what is not released yet is there and says something.
fn has_unreleased(text: &str) -> bool {
    let section = text.split("\n## ").find(|section| section.starts_with("[Unreleased]"));
    section.is_some_and(|section| section.lines().any(|line| line.starts_with("- ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> usize {
        let others = [
            SourceFile::new("docs/guide.md", "# Guide\n\n## Write a back-end, `now`!\n"),
            SourceFile::new("a/b.rs", ""),
        ];
        let mut files = vec![SourceFile::new("docs/page.md", text)];
        files.extend(others);
        check(&files).len()
    }

    #[test]
    fn links_lead_somewhere() {
        for fine in [
            "[a](guide.md) and [b](../a/b.rs) and [c](../a)",
            "[a](https://example.org/x)",
            "# Here\n[a](#here)",
            "[a](guide.md#write-a-back-end-now)",
            "```text\n[a](nowhere.md)\n```",
            "`[a](nowhere.md)`",
            "[mit](../LICENSE-MIT)",
            "[a]: guide.md",
        ] {
            assert_eq!(problems(fine), 0, "{fine}");
        }
        for bad in ["[a](nowhere.md)", "[a](guide.md#gone)", "[a](#gone)", "[a]: nowhere.md", "`x` ![b](no.png) `y`"] {
            assert_eq!(problems(bad), 1, "{bad}");
        }
    }

    #[test]
    fn the_changelog_awaits_a_release() {
        let count = |text: &str| check(&[SourceFile::new("CHANGELOG.md", text)]).len();
        assert_eq!(count("# Changelog\n\n## [Unreleased]\n\n- News.\n"), 0);
        assert_eq!(count("# Changelog\n\n## [Unreleased]\n\n## [0.1.0]\n\n- Old news.\n"), 1);
        assert_eq!(count("# Changelog\n"), 1);
    }
}
