//! How much memory this process may have.

use std::fs;
use std::path::{Path, PathBuf};

/// Physical memory of the machine or the control group's limit, whichever is less, in bytes.
pub(crate) fn total_memory() -> Option<u64> {
    let machine = meminfo("MemTotal:");
    match (machine, control_group_limit()) {
        (Some(machine), Some(limit)) => Some(machine.min(limit)),
        (machine, limit) => machine.or(limit),
    }
}

/// What the kernel thinks it could give to programs now, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Option<u64> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?, key)
}

fn parse_meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn control_group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_files(&groups).iter().filter_map(|file| parse_limit(&fs::read_to_string(file).ok()?)).min()
}

/// The files that may hold a limit: those of the process's group and of all groups above it, in both versions of the
/// interface. In a container the group's path may be the host's, of which only the root is visible.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let places: &[(&str, &str)] = if controllers.is_empty() {
            &[("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/unified", "memory.max")]
        } else if controllers.split(',').any(|name| name == "memory") {
            &[("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        } else {
            continue;
        };
        for (root, file) in places {
            let mut group = Some(Path::new(path.trim_start_matches('/')));
            while let Some(at) = group {
                files.push(Path::new(root).join(at).join(file));
                group = at.parent();
            }
        }
    }
    files
}

/// A limit in bytes; `max` (version 2) and numbers next to 2^63 (version 1) say that there is none.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|&limit| limit < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24591068 kB\nMemFree:        1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(parse_meminfo(text, "MemTotal:"), Some(24_591_068 << 10));
        assert_eq!(parse_meminfo(text, "MemAvailable:"), Some(23_000_000 << 10));
        assert_eq!(parse_meminfo(text, "SwapTotal:"), None);
        assert_eq!(parse_meminfo("MemTotal: soon kB", "MemTotal:"), None);
    }

    #[test]
    fn limits_are_looked_for_up_to_the_root() {
        let files = limit_files("4:memory:/a/b\n1:cpu:/x\n0::/c\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/c/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/unified/c/memory.max",
            "/sys/fs/cgroup/unified/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
    }

    #[test]
    fn no_limit_is_no_number() {
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("1073741824\n"), Some(1 << 30));
    }

    #[test]
    fn this_machine_has_memory() {
        let total = total_memory().expect("Linux says how much memory it has");
        assert!(total > 1 << 20 && available_memory().is_some_and(|free| free > 0));
    }
}
