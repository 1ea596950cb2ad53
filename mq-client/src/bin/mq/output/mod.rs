//! What `mq` writes: results on stdout (aligned columns, tab-separated, or JSON lines), remarks and progress on stderr.

mod escape;
mod progress;
mod record;

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

pub(crate) use escape::visible;
pub(crate) use progress::Progress;
pub(crate) use record::Record;

use crate::args::Format;

/// Writes results.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    terminal: bool,
    stdout: BufWriter<Stdout>,
}

impl Output {
    /// To stdout in the form asked for.
    pub(crate) fn new(format: Format) -> Self {
        let stdout = io::stdout();
        Self {
            format,
            terminal: stdout.is_terminal(),
            stdout: BufWriter::with_capacity(64 * 1024, stdout),
        }
    }

    /// The form.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// A whole list; on a terminal with aligned columns and `empty` in words when there is nothing.
    pub(crate) fn list(&mut self, records: &[Record], empty: &str) -> io::Result<()> {
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

    /// One line of an endless list: the header of a terminal is `header`'s job.
    pub(crate) fn line(&mut self, record: &Record) -> io::Result<()> {
        match self.format {
            Format::Json => serde_json::to_writer(&mut self.stdout, record)?,
            Format::Table => {
                let separator = if self.terminal { "  " } else { "\t" };
                let cells: Vec<String> = record.cells().collect();
                self.stdout.write_all(cells.join(separator).as_bytes())?;
            }
        }
        self.stdout.write_all(b"\n")
    }

    /// The names above an endless list, on a terminal only.
    pub(crate) fn header(&mut self, names: &[&str]) -> io::Result<()> {
        if self.format == Format::Table && self.terminal {
            writeln!(self.stdout, "{}", names.join("  ").to_uppercase())?;
        }
        Ok(())
    }

    /// Hands everything to the operating system.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }

    fn aligned(&mut self, records: &[Record]) -> io::Result<()> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        let numeric: Vec<bool> = first.numeric().collect();
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

/// A remark for people.
#[expect(
    clippy::print_stderr,
    reason = "remarks go to stderr, so that stdout stays the result"
)]
pub(crate) fn remark(text: &str) {
    eprintln!("{text}");
}
