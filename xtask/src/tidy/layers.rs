//! Which crate may depend on which: the arrows point one way, and nothing in the core or the engine knows a backend.

use toml::{Table, Value};

use super::Problem;
use super::files::SourceFile;
use super::manifest;

/// Each library and what it may ship with of this workspace. Packages that are absent here (commands, benches,
/// documentation) are nobody's dependency and may use all.
const LAYERS: &[(&str, &[&str])] = &[
    ("alloc-core", &[]),
    ("alloc-pool", &["alloc-core"]),
    ("alloc-trace", &["alloc-core"]),
    ("buffer", &["alloc-core"]),
    ("buffer-dlpack", &["alloc-core", "buffer"]),
    ("alloc-cpu", &["alloc-core", "alloc-pool"]),
    ("cuda-link", &[]),
    ("fake-cuda", &[]),
    ("alloc-cuda", &["alloc-core", "alloc-pool", "alloc-cpu", "buffer", "cuda-link"]),
    ("alloc-capi", &["alloc-core", "alloc-pool", "alloc-cpu", "alloc-cuda", "alloc-trace", "buffer", "buffer-dlpack"]),
];

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.name() == "Cargo.toml" && file.path.starts_with("crates/")) {
        let Ok(manifest) = file.text.parse::<Table>() else { continue };
        let name = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
        let name = name.unwrap_or_default();
        let Some((_, below)) = LAYERS.iter().find(|(package, _)| *package == name) else {
            problems.push(Problem::new(file, 0, format!("`{name}` has no place in xtask/src/tidy/layers.rs")));
            continue;
        };
        for (dependency, _) in manifest::shipped_dependencies(&manifest) {
            if LAYERS.iter().any(|(package, _)| *package == dependency) && !below.contains(&dependency) {
                problems.push(Problem::new(file, 0, format!("`{name}` must not depend on `{dependency}`")));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, dependencies: &str) -> usize {
        let text = format!("[package]\nname = \"{name}\"\n{dependencies}");
        check(&[SourceFile::new(format!("crates/{name}/Cargo.toml"), text)]).len()
    }

    #[test]
    fn arrows_point_one_way() {
        assert_eq!(count("alloc-pool", "[dependencies]\nalloc-core = { workspace = true }\nlibc = \"0.2\"\n"), 0);
        assert_eq!(count("alloc-pool", "[dependencies]\nalloc-cpu = { workspace = true }\n"), 1);
        assert_eq!(count("alloc-core", "[target.\"cfg(unix)\".dependencies]\nalloc-pool = { workspace = true }\n"), 1);
    }

    #[test]
    fn tests_may_use_any_crate() {
        assert_eq!(count("buffer", "[dev-dependencies]\nalloc-cpu = { workspace = true }\n"), 0);
    }

    #[test]
    fn a_crate_needs_a_place() {
        assert_eq!(count("alloc-new", ""), 1);
    }
}
