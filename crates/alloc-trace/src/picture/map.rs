//! The map of memory: each run of addresses as rows of pieces, all at one scale.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

use alloc_core::{Address, ArenaSnapshot, Run, Snapshot};

use super::spans::{self, Look, Span};
use super::text::{Bytes, Escaped, Grouped};

/// The most rows of a map, and how many parts of a row are told apart: together they bound the size of the page.
const ROWS: u64 = 96;
const CELLS: u64 = 512;
/// A unit of placement in the width of a cell: finer than that there is nothing to see.
const LEAST_CELL: u64 = 512;
/// All addresses in some hundred rows.
const MOST_CELL: u64 = 1 << 50;
/// The last half of the rows are for runs of their own only if these have this part of all bytes.
const LEAST_PART: u64 = 16;
/// In units of the drawing.
const LEFT: u64 = 130;
const CELL_WIDTH: u64 = 2;
const ROW_HEIGHT: u64 = 12;
const ROW_GAP: u64 = 3;

/// How much a row is, and which runs there are rows for.
#[derive(Clone, Debug)]
struct Scale {
    cell: u64,
    /// By address.
    shown: BTreeSet<Address>,
}

impl Scale {
    /// The finest by which all runs fit, or, if there are too many, the largest of them.
    fn of(snapshot: &Snapshot) -> Self {
        let sized = |run: &Run| run.address().map(|address| (run.bytes(), Reverse(address)));
        let mut sizes: Vec<_> = runs(snapshot).filter_map(sized).collect();
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        sizes.truncate(rows_for_runs(&sizes));
        let shown = sizes.iter().map(|(_, Reverse(address))| *address).collect();
        let mut scale = Self { cell: LEAST_CELL, shown };
        while scale.cell < MOST_CELL && sizes.iter().map(|(bytes, _)| scale.rows(*bytes)).sum::<u64>() > ROWS {
            scale.cell *= 2;
        }
        scale
    }

    fn row_bytes(&self) -> u64 {
        self.cell * CELLS
    }

    fn rows(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.row_bytes())
    }

    fn shows(&self, run: &Run) -> bool {
        run.address().is_some_and(|address| self.shown.contains(&address))
    }
}

/// How many of the runs, the largest first, have rows. Where each row is one run's, the largest has no more than one: so the last half of
/// the rows are not for runs that have next to nothing between them.
fn rows_for_runs<T>(sizes: &[(u64, T)]) -> usize {
    let sum = |sizes: &[(u64, T)]| sizes.iter().fold(0_u64, |sum, (bytes, _)| sum.saturating_add(*bytes));
    let (most, half) = (sizes.len().min(ROWS as usize), ROWS as usize / 2);
    let is_dust = sizes.get(half..most).is_some_and(|last| sum(last) < sum(sizes) / LEAST_PART);
    if is_dust { half } else { most }
}

fn runs(snapshot: &Snapshot) -> impl Iterator<Item = &Run> {
    snapshot.arenas.iter().flat_map(|arena| &arena.runs)
}

/// Writes the map of a snapshot.
pub(super) fn write(to: &mut impl Write, snapshot: &Snapshot, caption: &str) -> fmt::Result {
    let scale = Scale::of(snapshot);
    writeln!(to, "<section><h2>{}</h2>", Escaped(caption))?;
    write_legend(to, snapshot)?;
    let left_out = runs(snapshot).filter(|run| !scale.shows(run));
    let (count, bytes) = left_out.fold((0, 0_u64), |(count, sum), run| (count + 1, sum.saturating_add(run.bytes())));
    writeln!(to, "<p>A full row is {}.", Bytes(scale.row_bytes()))?;
    if count > 0 {
        writeln!(to, "{} runs of addresses, the smallest, are left out: {}.", Grouped(count), Bytes(bytes))?;
    }
    writeln!(to, "</p>")?;
    for arena in snapshot.arenas.iter().filter(|arena| arena.runs.iter().any(|run| scale.shows(run))) {
        write_arena(to, arena, &scale)?;
    }
    writeln!(to, "</section>")
}

/// What the colours mean, and how much there is of each.
fn write_legend(to: &mut impl Write, snapshot: &Snapshot) -> fmt::Result {
    let mut sums = Look::ALL.map(|look| (look, 0_u64));
    for span in runs(snapshot).flat_map(spans::of) {
        if let Some((_, sum)) = sums.iter_mut().find(|(look, _)| *look == span.look) {
            *sum = sum.saturating_add(span.bytes);
        }
    }
    writeln!(to, "<ul class=\"legend\">")?;
    for (look, bytes) in sums {
        writeln!(to, "<li><i class=\"{}\"></i>{}: {}</li>", look.class(), look.name(), Bytes(bytes))?;
    }
    for (bytes, name) in [(snapshot.unplaced, "free, at no address"), (snapshot.lost, "lost")] {
        if bytes > 0 {
            writeln!(to, "<li>{name}: {}</li>", Bytes(bytes))?;
        }
    }
    writeln!(to, "</ul>")
}

fn write_arena(to: &mut impl Write, arena: &ArenaSnapshot, scale: &Scale) -> fmt::Result {
    let shown = || arena.runs.iter().filter(|run| scale.shows(run));
    let rows: u64 = shown().map(|run| scale.rows(run.bytes())).sum();
    let (width, height) = (LEFT + CELLS * CELL_WIDTH, rows * (ROW_HEIGHT + ROW_GAP));
    let bytes = arena.runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.bytes()));
    writeln!(to, "<h3>Arena {}: {} in {} runs</h3>", arena.index, Bytes(bytes), Grouped(arena.runs.len() as u64))?;
    writeln!(to, "<svg class=\"map\" viewBox=\"0 0 {width} {height}\" role=\"img\">")?;
    let mut row = 0;
    for run in shown() {
        write_run(to, run, scale, row)?;
        row += scale.rows(run.bytes());
    }
    writeln!(to, "</svg>")
}

/// What lies in a cell that is not all of one span.
#[derive(Debug, Default)]
struct Mixed {
    sums: [u64; Look::ALL.len()],
    spans: u64,
    /// Of the first one.
    description: String,
}

impl Mixed {
    fn add(&mut self, span: &Span<'_>, bytes: u64) {
        if self.spans == 0 {
            self.description = span.describe();
        }
        self.spans += 1;
        if let Some(place) = Look::ALL.iter().position(|look| *look == span.look) {
            self.sums[place] = self.sums[place].saturating_add(bytes);
        }
    }

    /// What most of it is, and what is said of it.
    fn take(&mut self) -> Option<(Look, String)> {
        let mixed = std::mem::take(self);
        let (look, _) = Look::ALL.iter().zip(mixed.sums).max_by_key(|(_, sum)| *sum)?;
        match mixed.spans {
            0 => None,
            1 => Some((*look, mixed.description)),
            pieces => {
                let parts = Look::ALL.iter().zip(mixed.sums).filter(|(_, sum)| *sum > 0);
                let parts: Vec<String> = parts.map(|(look, sum)| format!("{} {}", Bytes(sum), look.name())).collect();
                Some((*look, format!("{pieces} pieces: {}", parts.join(", "))))
            }
        }
    }
}

/// Draws a run: spans that fill cells as they are, and what lies in between cell by cell.
fn write_run(to: &mut impl Write, run: &Run, scale: &Scale, first_row: u64) -> fmt::Result {
    let Some(start) = run.address().map(|address| address.get()) else { return Ok(()) };
    for row in 0..scale.rows(run.bytes()) {
        let y = (first_row + row) * (ROW_HEIGHT + ROW_GAP) + ROW_HEIGHT - 2;
        writeln!(to, "<text x=\"0\" y=\"{y}\">{:#x}</text>", start.saturating_add(row * scale.row_bytes()))?;
    }
    let mut mixed = Mixed::default();
    let mut end = 0_u64;
    for span in spans::of(run) {
        let mut from = end;
        end = end.saturating_add(span.bytes);
        while from < end {
            let (cell, within) = (from / scale.cell, from % scale.cell);
            let whole = (end - from) / scale.cell;
            if within == 0 && whole > 0 {
                write_cells(to, first_row, (cell, whole), span.look, &span.describe())?;
                from += whole * scale.cell;
                continue;
            }
            let bytes = (scale.cell - within).min(end - from);
            mixed.add(&span, bytes);
            from += bytes;
            if from.is_multiple_of(scale.cell)
                && let Some((look, text)) = mixed.take()
            {
                write_cells(to, first_row, (cell, 1), look, &text)?;
            }
        }
    }
    let last = run.bytes() / scale.cell;
    mixed.take().map_or(Ok(()), |(look, text)| write_cells(to, first_row, (last, 1), look, &text))
}

/// Draws so many cells from one on, on as many rows as they take.
fn write_cells(
    to: &mut impl Write,
    first_row: u64,
    (mut cell, mut count): (u64, u64),
    look: Look,
    text: &str,
) -> fmt::Result {
    while count > 0 {
        let (row, column) = (first_row + cell / CELLS, cell % CELLS);
        let here = count.min(CELLS - column);
        let (x, y) = (LEFT + column * CELL_WIDTH, row * (ROW_HEIGHT + ROW_GAP));
        writeln!(
            to,
            "<rect class=\"{}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{ROW_HEIGHT}\"><title>{}</title></rect>",
            look.class(),
            here * CELL_WIDTH,
            Escaped(text)
        )?;
        cell += here;
        count -= here;
    }
    Ok(())
}
