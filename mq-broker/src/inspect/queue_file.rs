//! Checks one queue file, from its first batch to its last.

use std::io;

use mq_common::ids::Offset;

use super::progress::Progress;
use super::report::{Damage, Report};
use crate::store::FileRow;
use crate::store::disk::DiskFile;
use crate::store::stamped::{Expected, StampedInspection, StampedPiece};

/// Checks the valid part of a queue file, as the checkpoint lists it.
pub(super) fn check(
    file: &dyn DiskFile,
    name: String,
    row: &FileRow,
    progress: &Progress,
) -> io::Result<Report> {
    let bytes = file.bytes()?;
    let mut report = Report::new(name, bytes);
    let whole = Damages { row };
    // Offsets missing from a file that key compaction wrote are not lost.
    let has_gaps = row.generation > 0;
    let expected = Expected {
        bytes: Some(row.segment.bytes),
        queue: Some(row.name.number),
        end: Some(row.segment.end),
    };
    let mut inspection = StampedInspection::begin(row.first, expected);
    // Offsets up to here are accounted for.
    let mut next = row.first;
    // Damage whose last offset is known only from the next batch.
    let mut open: Option<Damage> = None;
    let mut done = 0;
    while let Some(piece) = inspection.next(file)? {
        progress.add(u64::from(inspection.position() - done));
        done = inspection.position();
        match piece {
            StampedPiece::Damaged { position, end } => {
                let damage =
                    open.get_or_insert_with(|| whole.at(position, end, next, "the bytes are not a batch"));
                damage.end = u64::from(end);
            }
            StampedPiece::Batch {
                position,
                header,
                records,
            } => {
                report.batches += 1;
                let base = header.stamp.base_offset;
                if let Some(damage) = open.take() {
                    report.damaged(closed(damage, base));
                } else if next < base && !has_gaps {
                    let what = "left out when the messages were moved here: they were damaged in the journal";
                    report.damaged(closed(whole.at(position, position, next, what), base));
                }
                let end = inspection.position();
                if records.is_none() {
                    open = Some(whole.at(position, end, base, "a batch is damaged"));
                }
                next = inspection.next_offset();
            }
        }
    }
    if let Some(damage) = open {
        report.damaged(closed(damage, row.segment.end));
    } else if bytes < u64::from(row.segment.bytes) {
        let at = u32::try_from(bytes).unwrap_or(u32::MAX);
        let damage = whole.at(at, row.segment.bytes, next, "the file is cut short");
        report.damaged(closed(damage, row.segment.end));
    } else if next < row.segment.end && !has_gaps {
        let what = "left out when the messages were moved here: they were damaged in the journal";
        report.damaged(closed(whole.at(done, done, next, what), row.segment.end));
    }
    report.note = format!("offsets {}..{}", row.first, row.segment.end);
    if has_gaps {
        report.note += ", compacted by keys";
    }
    Ok(report)
}

struct Damages<'a> {
    row: &'a FileRow,
}

impl Damages<'_> {
    fn at(&self, position: u32, end: u32, first: Offset, what: &str) -> Damage {
        Damage {
            position: u64::from(position),
            end: u64::from(end),
            topic: Some(self.row.name.topic.to_string()),
            queue: Some(self.row.name.number.0),
            first_offset: Some(first.0),
            what: what.to_owned(),
            ..Damage::default()
        }
    }
}

fn closed(mut damage: Damage, end: Offset) -> Damage {
    damage.end_offset = Some(end.0);
    damage
}
