//! What was found in a file, and how it is told: a table for people, JSON lines for scripts.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How findings are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, for people.
    #[default]
    Table,
    /// One JSON object a line, for scripts.
    Json,
}

/// How a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// All of it holds.
    Ok,
    /// It ends in something of which nothing says that it was synced: the next start cuts it off. What was acknowledged in the
    /// last second before the broker was killed, and rotted since, looks the same.
    TornTail,
    /// A later version wrote it.
    LaterVersion,
    /// It is needed and not there.
    Missing,
    /// Something that was synced does not hold.
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

/// One place that does not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Bytes before it in the file.
    pub position: u64,
    /// Behind it.
    pub end: u64,
    /// The journal entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<u64>,
    /// Whose messages are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The queue's number in the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Their first offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<u64>,
    /// Behind their last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file, below the data folder.
    pub file: String,
    /// How it stands.
    pub standing: Standing,
    /// Its bytes.
    pub bytes: u64,
    /// Its first entry, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_lsn: Option<u64>,
    /// Its last entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_lsn: Option<u64>,
    /// Batches in it.
    pub batches: u64,
    /// More about it, for people.
    pub note: String,
    /// Every place that does not hold.
    pub damage: Vec<Damage>,
}

impl Report {
    /// Nothing found yet.
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

    /// Notes something that does not hold.
    pub fn damaged(&mut self, damage: Damage) {
        self.standing = Standing::Damaged;
        self.damage.push(damage);
    }
}

/// Writes all reports.
///
/// # Errors
/// As `out` says.
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
        // Nowhere in the file.
        (0, 0) => String::new(),
        (position, end) => format!("bytes {position}..{end}"),
    };
    let about = format!("{place}{entry}{queue}{offsets}");
    format!("{}: {what}", about.trim_start_matches(", "))
}
