//! The output of `mq`: results on stdout (aligned columns, tab-separated, or JSON lines), remarks and
//! progress on stderr.

mod escape;
mod progress;
mod record;

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

pub(crate) use escape::visible;
pub(crate) use progress::Progress;
pub(crate) use record::Record;
use record::of_one_width;

use crate::args::Format;

/// Writes results to stdout.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    terminal: bool,
    stdout: BufWriter<Stdout>,
    /// Column widths so far of a table that is printed row by row.
    widths: Vec<usize>,
}

impl Output {
    /// Writes to stdout in this format.
    pub(crate) fn new(format: Format) -> Self {
        let stdout = io::stdout();
        Self {
            format,
            terminal: stdout.is_terminal(),
            stdout: BufWriter::with_capacity(64 * 1024, stdout),
            widths: Vec::new(),
        }
    }

    /// The format.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Writes a whole list; on a terminal with aligned columns, or `empty` as a remark if there are no
    /// records.
    pub(crate) fn list(&mut self, records: &[Record], empty: &str) -> io::Result<()> {
        let records = &of_one_width(records);
        if self.format == Format::Table && self.terminal {
            if records.is_empty() {
                remark(empty);
            }
            self.aligned(records)?;
        } else {
            records.iter().try_for_each(|record| self.line(record))?;
        }
        self.flush()
    }

    /// Writes one row of a list that is printed row by row; see [`Output::header`].
    pub(crate) fn line(&mut self, record: &Record) -> io::Result<()> {
        match self.format {
            Format::Json => serde_json::to_writer(&mut self.stdout, record)?,
            Format::Table => {
                let cells: Vec<String> = record.cells().collect();
                let text = if self.terminal {
                    padded(&mut self.widths, &cells)
                } else {
                    cells.join("\t")
                };
                self.stdout.write_all(text.as_bytes())?;
            }
        }
        self.stdout.write_all(b"\n")
    }

    /// Writes one value as a line of JSON, whatever the format.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.stdout, value)?;
        self.stdout.write_all(b"\n")
    }

    /// Writes the header of a list that is printed row by row, on a terminal only.
    pub(crate) fn header(&mut self, names: &[&str]) -> io::Result<()> {
        if self.format == Format::Table && self.terminal {
            let names: Vec<_> = names.iter().map(|name| name.to_uppercase()).collect();
            let text = padded(&mut self.widths, &names);
            writeln!(self.stdout, "{text}")?;
        }
        Ok(())
    }

    /// Passes everything to the operating system.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }

    fn aligned(&mut self, records: &[Record]) -> io::Result<()> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        // A column that lacks a value in some row may still be numeric.
        let mut numeric: Vec<bool> = first.numeric().collect();
        for record in records {
            for (column, is_number) in numeric.iter_mut().zip(record.numeric()) {
                *column |= is_number;
            }
        }
        let mut rows = vec![first.names().map(str::to_uppercase).collect::<Vec<String>>()];
        rows.extend(records.iter().map(|record| record.cells().collect()));
        let widths: Vec<usize> = (0..numeric.len())
            .map(|column| {
                rows.iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in &rows {
            let mut line = String::new();
            for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
                let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (left, right) = if *numeric {
                    (gap.as_str(), "")
                } else {
                    ("", gap.as_str())
                };
                line.extend([left, cell.as_str(), right, "  "]);
            }
            writeln!(self.stdout, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A row of a table that is printed row by row: each cell as wide as the widest one so far, the last one as
/// it is.
fn padded(widths: &mut Vec<usize>, cells: &[String]) -> String {
    widths.resize(widths.len().max(cells.len()), 0);
    let mut line = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths.iter_mut()).enumerate() {
        let own = cell.chars().count();
        line.push_str(cell);
        if index + 1 < cells.len() {
            *width = own.max(*width);
            line.extend(std::iter::repeat_n(' ', *width - own + 2));
        }
    }
    line
}

/// Writes a remark for people to stderr.
#[expect(
    clippy::print_stderr,
    reason = "remarks go to stderr, so that stdout stays the result"
)]
pub(crate) fn remark(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_endless_table_stand_below_each_other() {
        let mut widths = Vec::new();
        let mut row = |cells: [&str; 3]| padded(&mut widths, &cells.map(str::to_owned));
        assert_eq!(row(["TOPIC", "OFFSET", "BODY"]), "TOPIC  OFFSET  BODY");
        assert_eq!(
            row(["t", "1234567", "a long body"]),
            "t      1234567  a long body"
        );
        assert_eq!(row(["t", "1", "x"]), "t      1        x");
    }
}
