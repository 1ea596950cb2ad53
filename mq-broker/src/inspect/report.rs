//! The findings about a file, and their output: a table for people, JSON lines for scripts.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// The form of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, for people.
    #[default]
    Table,
    /// One JSON object per line, for scripts.
    Json,
}

/// The verdict on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// No damage.
    Ok,
    /// It ends with invalid data that is not known to have been synced: the next start truncates it. Data
    /// acknowledged in the last second before the broker was killed, and damaged since, looks the same.
    TornTail,
    /// A later version wrote it.
    LaterVersion,
    /// The file is needed, but missing.
    Missing,
    /// Something that was synced is damaged.
    Damaged,
}

impl Standing {
    /// Its name in the output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::TornTail => "torn_tail",
            Self::LaterVersion => "later_version",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }

    /// Whether a person should act.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Missing | Self::Damaged | Self::LaterVersion)
    }
}

/// One damaged place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Position of its first byte in the file.
    pub position: u64,
    /// Position after its last byte.
    pub end: u64,
    /// The journal entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<u64>,
    /// The topic whose messages are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The queue's number in the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// First offset of the lost messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<u64>,
    /// Offset after the last lost message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// The findings about one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file, below the data folder.
    pub file: String,
    /// The verdict.
    pub standing: Standing,
    /// Size of the file.
    pub bytes: u64,
    /// Its first entry, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_lsn: Option<u64>,
    /// Its last entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_lsn: Option<u64>,
    /// Number of batches in it.
    pub batches: u64,
    /// More about it, for people.
    pub note: String,
    /// Every damaged place.
    pub damage: Vec<Damage>,
}

impl Report {
    /// A report without findings.
    #[must_use]
    pub const fn new(file: String, bytes: u64) -> Self {
        Self {
            file,
            standing: Standing::Ok,
            bytes,
            first_lsn: None,
            last_lsn: None,
            batches: 0,
            note: String::new(),
            damage: Vec::new(),
        }
    }

    /// Adds a damaged place.
    pub fn damaged(&mut self, damage: Damage) {
        self.standing = Standing::Damaged;
        self.damage.push(damage);
    }
}

/// Writes all reports.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(out: &mut dyn Write, output: Output, reports: &[Report]) -> io::Result<()> {
    if output == Output::Json {
        for report in reports {
            serde_json::to_writer(&mut *out, report)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    let width = reports.iter().map(|report| report.file.len()).max().unwrap_or(0);
    for report in reports {
        let entries = match (report.first_lsn, report.last_lsn) {
            (Some(first), Some(last)) => format!("entries {first}..={last}, {} batches", report.batches),
            _ => String::new(),
        };
        let parts = [entries.as_str(), report.note.as_str()];
        let about: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let line = format!(
            "{:<width$}  {:<13}  {:>12} bytes  {}",
            report.file,
            report.standing.as_str(),
            report.bytes,
            about.join("; ")
        );
        writeln!(out, "{}", line.trim_end())?;
        for damage in &report.damage {
            writeln!(out, "  {}", tell(damage))?;
        }
    }
    Ok(())
}

fn tell(damage: &Damage) -> String {
    let entry = damage
        .lsn
        .map_or_else(String::new, |lsn| format!(", entry {lsn}"));
    let queue = match (&damage.topic, damage.queue) {
        (Some(topic), Some(queue)) => format!(", topic {topic} queue {queue}"),
        _ => String::new(),
    };
    let offsets = match (damage.first_offset, damage.end_offset) {
        (Some(first), Some(end)) => format!(" offsets {first}..{end}"),
        _ => String::new(),
    };
    let Damage {
        position, end, what, ..
    } = damage;
    let place = match (*position, *end) {
        // The damage has no place in the file.
        (0, 0) => String::new(),
        (position, end) => format!("bytes {position}..{end}"),
    };
    let about = format!("{place}{entry}{queue}{offsets}");
    format!("{}: {what}", about.trim_start_matches(", "))
}
