//! How much memory the machine has.

use std::fs;

/// All of it, in bytes, if the system says.
pub fn total() -> Option<u64> {
    meminfo("MemTotal")
}

/// What can be taken without swapping, in bytes, if the system says.
pub fn available() -> Option<u64> {
    meminfo("MemAvailable")
}

fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = ((u64::BITS - bytes.leading_zeros()).saturating_sub(1) / 10).min(4) as usize;
    if unit == 0 {
        return format!("{bytes} B");
    }
    format!("{:.2} {}", bytes as f64 / (1_u64 << (10 * unit)) as f64, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_unit_that_suits_them() {
        let shown = [0, 1023, 1024, 1_789_948_440, 1 << 50].map(human);
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "1.67 GiB", "1024.00 TiB"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_what_it_has() {
        let (total, available) = (total().unwrap(), available().unwrap());
        assert!(available <= total && total > 1 << 20);
    }
}
