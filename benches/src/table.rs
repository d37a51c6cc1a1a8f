//! Tables that people can read.

use std::fmt;

/// A table: its first column to the left, all others to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    title: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Clone, Debug)]
enum Row {
    Cells(Vec<String>),
    Rule,
}

impl Table {
    /// A table with a title line and column names.
    pub fn new(title: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut table = Self { title: title.into(), rows: Vec::new(), notes: Vec::new() };
        table.row(columns);
        table.rule();
        table
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(Row::Cells(cells.into_iter().map(Into::into).collect()));
    }

    /// Adds a line across.
    pub fn rule(&mut self) {
        self.rows.push(Row::Rule);
    }

    /// Adds a line of text below.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            for (at, cell) in cells.iter().enumerate() {
                if at == widths.len() {
                    widths.push(0);
                }
                widths[at] = widths[at].max(cell.chars().count());
            }
        }
        writeln!(f, "{}", self.title)?;
        for row in &self.rows {
            match row {
                Row::Rule => {
                    let width = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
                    writeln!(f, "{}", "-".repeat(width))?;
                }
                Row::Cells(cells) => {
                    let mut line = String::new();
                    for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                        if at == 0 {
                            line.push_str(&format!("{cell:<width$}"));
                        } else {
                            line.push_str(&format!("  {cell:>width$}"));
                        }
                    }
                    writeln!(f, "{}", line.trim_end())?;
                }
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// The geometric mean; `None` of nothing.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new("Title", ["a", "bb"]);
        table.row(["long name", "1"]);
        table.note("note");
        assert_eq!(table.to_string(), "Title\na          bb\n-------------\nlong name   1\nnote\n");
    }

    #[test]
    fn the_geometric_mean_is_that_of_ratios() {
        assert!((geometric_mean([2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }
}
