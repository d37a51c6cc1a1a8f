//! The timeline: live bytes, and those that were reserved for them, over the operations of a trace.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::text::{Bytes, Grouped};
use crate::{LivePoint, Profile, Trace};

/// How many points a line has at most, and how many places of it say their figures to whoever points there.
const POINTS: usize = 2000;
const TOLD: usize = 250;
/// In units of the drawing.
const LEFT: f64 = 90.0;
const WIDTH: f64 = 1060.0;
const TOP: f64 = 16.0;
const HEIGHT: f64 = 280.0;
/// How many of the sizes at the peak are listed.
const SIZES: usize = 24;

/// Where something is drawn.
#[derive(Clone, Copy, Debug)]
struct Axes {
    operations: u32,
    most: u64,
}

impl Axes {
    fn x(self, operation: u32) -> f64 {
        LEFT + WIDTH * f64::from(operation) / f64::from(self.operations.saturating_sub(1).max(1))
    }

    fn y(self, bytes: u64) -> f64 {
        TOP + HEIGHT - HEIGHT * (bytes as f64 / self.most.max(1) as f64).min(1.0)
    }
}

/// The most of each part, as [`Trace::timeline`] divides the operations: what was said holds until the next is said.
fn highest(points: &BTreeMap<u32, u64>, operations: u32, parts: usize) -> Vec<(u32, u64)> {
    let part = operations.div_ceil(parts.max(1) as u32).max(1);
    let mut points = points.iter().map(|(operation, bytes)| (*operation, *bytes)).peekable();
    let mut now = 0;
    let highest = |start: u32| {
        let end = start.saturating_add(part).min(operations);
        // What held before, unless something is said of the first operation.
        let mut most = points.peek().is_none_or(|(operation, _)| *operation > start).then_some((start, now));
        while let Some(said) = points.next_if(|(operation, _)| *operation < end) {
            now = said.1;
            most = most.filter(|most| most.1 >= now).or(Some(said));
        }
        most.unwrap_or((start, now))
    };
    (0..operations).step_by(part as usize).map(highest).collect()
}

/// Writes the timeline of a trace with the figures of its peak. `reserved` has what was reserved after which operation.
pub(super) fn write(to: &mut impl Write, trace: &Trace, reserved: &BTreeMap<u32, u64>) -> fmt::Result {
    let profile = Profile::of(trace);
    let operations = trace.operations().len() as u32;
    writeln!(to, "<section><h2>Live bytes over {} operations</h2>", Grouped(operations.into()))?;
    let Some(peak) = trace.live().nth(profile.peak_operation as usize) else {
        return writeln!(to, "<p>Nothing was allocated.</p></section>");
    };
    // What is said of operations that there are not is not drawn, and counts for nothing.
    let most_reserved = reserved.range(..operations).map(|(_, bytes)| *bytes).max().unwrap_or(0);
    let axes = Axes { operations, most: profile.peak_live_bytes.max(most_reserved) };
    writeln!(to, "<svg class=\"time\" viewBox=\"0 0 1170 {}\" role=\"img\">", TOP + HEIGHT + 24.0)?;
    write_grid(to, trace, axes)?;
    let live = trace.timeline(POINTS);
    write!(to, "<path class=\"live\" d=\"M{LEFT:.1} {:.1}", axes.y(0))?;
    live.iter().try_for_each(|point| write!(to, "L{:.1} {:.1}", axes.x(point.operation), axes.y(point.live_bytes)))?;
    writeln!(to, "L{:.1} {:.1}Z\"/>", axes.x(operations.saturating_sub(1)), axes.y(0))?;
    if !reserved.is_empty() {
        let points = highest(reserved, operations, POINTS);
        write!(to, "<path class=\"reserved\" d=\"")?;
        for (place, (operation, bytes)) in points.into_iter().enumerate() {
            let step = if place == 0 { 'M' } else { 'L' };
            write!(to, "{step}{:.1} {:.1}", axes.x(operation), axes.y(bytes))?;
        }
        writeln!(to, "\"/>")?;
    }
    write_peak(to, &peak, axes)?;
    write_told(to, trace, reserved, axes)?;
    writeln!(to, "</svg>")?;
    write_figures(to, &profile, &peak, most_reserved)?;
    write_sizes(to, trace, &profile)?;
    writeln!(to, "</section>")
}

fn write_grid(to: &mut impl Write, trace: &Trace, axes: Axes) -> fmt::Result {
    let mut bytes: Vec<u64> = (0..=4).map(|quarter| (u128::from(axes.most) * quarter / 4) as u64).collect();
    bytes.dedup();
    for bytes in bytes {
        let y = axes.y(bytes);
        writeln!(to, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/>", LEFT + WIDTH)?;
        let (x, text) = (LEFT - 6.0, Bytes(bytes));
        writeln!(to, "<text class=\"end\" x=\"{x}\" y=\"{:.1}\">{text}</text>", y + 4.0)?;
    }
    let y = TOP + HEIGHT + 18.0;
    let (first, last) = (trace.operations().first(), trace.operations().last());
    for (operation, at) in [(first, LEFT), (last, LEFT + WIDTH)] {
        let Some(operation) = operation else { continue };
        let class = if at > LEFT { "end" } else { "start" };
        writeln!(to, "<text class=\"{class}\" x=\"{at}\" y=\"{y}\">{:.6} s</text>", operation.time.as_secs_f64())?;
    }
    Ok(())
}

fn write_peak(to: &mut impl Write, peak: &LivePoint, axes: Axes) -> fmt::Result {
    let (x, y) = (axes.x(peak.operation), axes.y(peak.live_bytes));
    writeln!(to, "<line class=\"peak\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{}\"/>", TOP + HEIGHT)?;
    writeln!(to, "<circle class=\"peak\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>")?;
    let (class, at) = if x > LEFT + WIDTH / 2.0 { ("end", x - 8.0) } else { ("start", x + 8.0) };
    writeln!(to, "<text class=\"{class}\" x=\"{at:.1}\" y=\"{:.1}\">peak {}</text>", TOP - 4.0, Bytes(peak.live_bytes))
}

/// Columns that cannot be seen, and say what is drawn there.
fn write_told(to: &mut impl Write, trace: &Trace, reserved: &BTreeMap<u32, u64>, axes: Axes) -> fmt::Result {
    let live = trace.timeline(TOLD);
    let reserved = highest(reserved, axes.operations, TOLD);
    let part = axes.operations.div_ceil(TOLD as u32).max(1);
    for (place, point) in live.iter().enumerate() {
        let start = place as u32 * part;
        let end = start.saturating_add(part).min(axes.operations);
        let (x, next) = (axes.x(start), axes.x(end).min(LEFT + WIDTH));
        let width = (next - x).max(1.0);
        write!(to, "<rect class=\"told\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{HEIGHT}\"><title>")?;
        write!(to, "operations {} to {}: at most ", Grouped(start.into()), Grouped(end.saturating_sub(1).into()))?;
        write!(to, "{} in {} blocks", Bytes(point.live_bytes), Grouped(point.live_blocks))?;
        if let Some((_, bytes)) = reserved.get(place).filter(|(_, bytes)| *bytes > 0) {
            write!(to, ", {} reserved", Bytes(*bytes))?;
        }
        writeln!(to, "</title></rect>")?;
    }
    Ok(())
}

fn write_figures(to: &mut impl Write, profile: &Profile, peak: &LivePoint, most_reserved: u64) -> fmt::Result {
    writeln!(to, "<table class=\"figures\">")?;
    let bytes = |bytes: u64| format!("{} ({} bytes)", Bytes(bytes), Grouped(bytes));
    let mut row = |name: &str, text: String| writeln!(to, "<tr><th>{name}</th><td>{text}</td></tr>");
    row("live at the peak", bytes(profile.peak_live_bytes))?;
    row("blocks at the peak", Grouped(peak.live_blocks).to_string())?;
    let when = format!("operation {}, at {:.6} s", Grouped(peak.operation.into()), peak.time.as_secs_f64());
    row("when", when)?;
    if most_reserved > 0 {
        let ratio = most_reserved as f64 / profile.peak_live_bytes.max(1) as f64;
        row("most reserved", format!("{}, {ratio:.3} of the peak", bytes(most_reserved)))?;
    }
    row("allocations", Grouped(profile.allocations).to_string())?;
    row("sizes", Grouped(profile.distinct_sizes).to_string())?;
    row("streams", Grouped(profile.streams.len() as u64).to_string())?;
    row(
        "never released",
        format!("{} blocks, {}", Grouped(profile.live_blocks_at_end), Bytes(profile.live_bytes_at_end)),
    )?;
    writeln!(to, "</table>")
}

/// The sizes that had most bytes at the peak.
fn write_sizes(to: &mut impl Write, trace: &Trace, profile: &Profile) -> fmt::Result {
    let at_peak = |released: Option<u32>| released.is_none_or(|released| released > profile.peak_operation);
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    for block in trace.blocks().iter().filter(|block| block.allocated <= profile.peak_operation) {
        if at_peak(block.released) {
            *sizes.entry(block.bytes).or_default() += 1;
        }
    }
    let mut sizes: Vec<(u64, u64, u64)> =
        sizes.into_iter().map(|(size, blocks)| (size.saturating_mul(blocks), size, blocks)).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    writeln!(to, "<h3>Largest sizes at the peak</h3><table class=\"sizes\">")?;
    writeln!(to, "<tr><th>size</th><th>blocks</th><th>together</th><th>of the peak</th></tr>")?;
    for (bytes, size, blocks) in sizes.iter().take(SIZES) {
        let part = 100.0 * *bytes as f64 / profile.peak_live_bytes.max(1) as f64;
        write!(to, "<tr><td>{}</td><td>{}</td><td>{}</td>", Grouped(*size), Grouped(*blocks), Bytes(*bytes))?;
        writeln!(to, "<td><i style=\"width:{part:.1}px\"></i>{part:.1} %</td></tr>")?;
    }
    writeln!(to, "</table>")?;
    let more = sizes.len().saturating_sub(SIZES);
    if more > 0 {
        let bytes = sizes[SIZES..].iter().fold(0_u64, |sum, (bytes, ..)| sum.saturating_add(*bytes));
        writeln!(to, "<p>{} more sizes have {} together.</p>", Grouped(more as u64), Bytes(bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_part_the_most_is_kept_and_what_was_said_holds() {
        let points = BTreeMap::from([(1, 10), (2, 50), (3, 20), (8, 5), (9, 30), (99, 1000)]);
        assert_eq!(highest(&points, 16, 4), [(2, 50), (4, 20), (9, 30), (12, 30)]);
        assert_eq!(highest(&points, 12, 100).len(), 12);
        assert_eq!(highest(&points, 12, 100)[..4], [(0, 0), (1, 10), (2, 50), (3, 20)]);
        assert_eq!(highest(&BTreeMap::from([(0, 7)]), 4, 2), [(0, 7), (2, 7)]);
        assert_eq!(highest(&BTreeMap::new(), 4, 2), [(0, 0), (2, 0)]);
        assert!(highest(&points, 0, 4).is_empty());
    }
}
