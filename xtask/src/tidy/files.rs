//! The text files of the workspace.

use std::fs;
use std::path::Path;

use anyhow::Context;

const EXTENSIONS: [&str; 13] = ["rs", "toml", "md", "yml", "yaml", "sh", "txt", "html", "h", "hpp", "c", "cpp", "py"];

/// A file, with its path from the root of the workspace, `/` between the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl SourceFile {
    /// A file by its parts.
    #[cfg(test)]
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// Whether the name ends in `.extension`.
    pub fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == extension)
    }

    /// The name without the folders.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The folder, without a slash at its end; empty for files in the root.
    pub fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The lines, counted from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// All text files beneath `root` that people write: nothing that is built, nothing of git.
pub fn collect(root: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    visit(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn visit(folder: &Path, prefix: &str, files: &mut Vec<SourceFile>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().with_context(|| format!("cannot look at {path}"))?;
        if kind.is_dir() {
            let is_built = name == ".git" || name == "bundle" || name == "target" || name.starts_with("target-");
            if !is_built {
                visit(&entry.path(), &format!("{path}/"), files)?;
            }
        } else if kind.is_file() && is_text(&path) {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
            files.push(SourceFile { path, text });
        }
    }
    Ok(())
}

fn is_text(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) || path.starts_with(".ci/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_files_and_binary_files_are_passed_over() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        for (path, text) in [
            ("a/b.rs", "one"),
            ("target/c.rs", "two"),
            ("target-x/c.rs", "three"),
            ("d.zst", "four"),
            (".ci/run", "five"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().context("no parent")?)?;
            fs::write(path, text)?;
        }
        let files = collect(root.path())?;
        assert_eq!(files, [SourceFile::new(".ci/run", "five"), SourceFile::new("a/b.rs", "one")]);
        Ok(())
    }

    #[test]
    fn a_path_has_parts() {
        let file = SourceFile::new("a/b/c.rs", "x\ny\n");
        assert_eq!((file.folder(), file.name(), file.has_extension("rs")), ("a/b", "c.rs", true));
        assert_eq!(SourceFile::new("c.rs", "").folder(), "");
        assert_eq!(file.lines().collect::<Vec<_>>(), [(1, "x"), (2, "y")]);
    }
}
