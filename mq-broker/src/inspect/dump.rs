//! `mq-broker dump`: the content of one file, from its first byte to its last. Damaged parts are reported and
//! skipped.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mq_common::ids::{Lsn, Offset};
use serde_json::{Value, json};

use super::report::Output;
use super::seed::Guessed;
use super::words::words;
use super::{Error, at, index_file, seed};
use crate::checkpoint::{self, Examined};
use crate::log::entry::{Header, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::{Inspection, Part, Piece, segment_header};
use crate::state::command::Command;
use crate::store::disk::{Disk, DiskFile, Mode, StdDisk, read_up_to_at};
use crate::store::io::unreadable::Around;
use crate::store::layout;
use crate::store::segment_index::footer::{FooterRows, Trailer};
use crate::store::segment_index::footer_file::{Footer, read_footer};
use crate::store::stamped::{Expected, StampedInspection, StampedPiece};

/// Writes the content of `file` to `out`; of a journal segment only the entries from `from` onwards. A
/// segment whose header is damaged is read as the successor of the segment `before` (default: the one before
/// it in its folder).
///
/// # Errors
/// [`Error`]: the file is not one of a broker, or it cannot be read. Damage is not an error, it is shown.
pub async fn dump(
    file: &Path,
    from: Option<u64>,
    before: Option<&Path>,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Error> {
    dump_on(&StdDisk, file, from, (before, output), out).await
}

/// [`dump`] on any disk.
pub(super) async fn dump_on(
    disk: &dyn Disk,
    file: &Path,
    from: Option<u64>,
    (before, output): (Option<&Path>, Output),
    out: &mut dyn Write,
) -> Result<(), Error> {
    let opened = disk.open(file, Mode::Read).map_err(at(file))?;
    let mut lines = Lines { output, out };
    let around = Around::new(&*opened);
    let head = read_up_to_at(&around, 16, 0).map_err(at(file))?;
    if head.starts_with(b"SQLite format 3\0") {
        return state(file, &mut lines).await;
    }
    show(file, &around, &head, (from, before), &mut lines)?;
    for range in around.unreadable() {
        let words = format!("bytes {}..{}: the disk cannot read them", range.start, range.end);
        let object = json!({"kind": "unreadable", "position": range.start, "end": range.end});
        lines.put(0, &words, &object)?;
    }
    Ok(())
}

/// Shows a file that starts with `head` and is not a database.
fn show(
    file: &Path,
    opened: &dyn DiskFile,
    head: &[u8],
    (from, before): (Option<u64>, Option<&Path>),
    lines: &mut Lines<'_>,
) -> Result<(), Error> {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if let Some((first, _)) = layout::parse_queue_file(name) {
        return if name.starts_with("queue_data.") {
            queue_file(file, opened, first, lines)
        } else {
            index_file::show(file, opened, first, lines)
        };
    }
    if !head.starts_with(b"hcmq-jnl") && layout::parse_segment(name).is_none() {
        return Err(Error::Unknown {
            path: file.to_owned(),
            reason: format!("it begins with {:02x?}", &head[..head.len().min(8)]),
        });
    }
    let header = match segment_header(opened).map_err(at(file))? {
        Ok(header) => header,
        Err(broken) => {
            let Guessed { header, of } = seed::guess(file, opened, before, &broken)?;
            let words = format!(
                "the header is DAMAGED ({broken}); read as the successor of `{}`",
                of.display()
            );
            let object = json!({"kind": "damage", "position": 0, "end": SEGMENT_HEADER_BYTES,
                "reason": broken.to_string(), "seed_from": of});
            lines.put(0, &words, &object)?;
            header
        }
    };
    let segment = Segment {
        path: file.to_owned(),
        file: opened,
        header,
        from: Lsn(from.unwrap_or(0)),
    };
    segment.show(lines)
}

/// Writes one line per finding, in words or as an object.
pub(super) struct Lines<'a> {
    output: Output,
    out: &'a mut dyn Write,
}

impl Lines<'_> {
    pub(super) fn put(&mut self, indent: usize, words: &str, object: &Value) -> Result<(), Error> {
        let done = match self.output {
            Output::Table => writeln!(self.out, "{:indent$}{words}", ""),
            Output::Json => writeln!(self.out, "{object}"),
        };
        done.map_err(Error::Output)
    }
}

struct Segment<'a> {
    path: PathBuf,
    file: &'a dyn DiskFile,
    header: SegmentHeader,
    from: Lsn,
}

impl Segment<'_> {
    fn show(&self, lines: &mut Lines<'_>) -> Result<(), Error> {
        let io = |error: io::Error| at(&self.path)(error);
        let SegmentHeader {
            segment,
            point,
            segment_bytes,
        } = &self.header;
        let (first, seed) = (point.next, point.checksum);
        let words = format!(
            "segment {}: first entry {first}, term {}, time {} ms, seed {seed:08x}, {segment_bytes} bytes",
            segment.0, point.term, point.time.0
        );
        let object = json!({"kind": "segment", "segment": segment.0, "first_lsn": first.0, "term": point.term.0,
            "time_ms": point.time.0, "seed": seed, "segment_bytes": segment_bytes});
        lines.put(0, &words, &object)?;
        let footer = read_footer(self.file, *segment).map_err(io)?;
        let trailer = match &footer {
            Footer::Whole(trailer, _) | Footer::Rows(trailer) => Some(*trailer),
            Footer::Version(_) | Footer::None => None,
        };
        let mut inspection = Inspection::begin(self.header);
        while let Some(piece) = inspection
            .next(self.file, trailer.map(|trailer| trailer.frames_end))
            .map_err(io)?
        {
            self.piece(&piece, lines)?;
        }
        let (end, broken) = (inspection.position(), inspection.broken());
        if trailer.is_none() {
            let words = format!("end at byte {end}: {broken}; not sealed, or the footer is damaged");
            let object = json!({"kind": "end", "position": end, "reason": broken.to_string()});
            lines.put(0, &words, &object)?;
        }
        match footer {
            Footer::Whole(trailer, rows) => show_footer(&trailer, Some(&rows), lines),
            Footer::Rows(trailer) => show_footer(&trailer, None, lines),
            Footer::Version(version) => {
                let words = format!("footer of version {version}, which this version cannot read");
                lines.put(0, &words, &json!({"kind": "footer", "version": version}))
            }
            Footer::None => Ok(()),
        }?;
        if self.path.exists() {
            return Ok(());
        }
        let words =
            "the broker freed this segment while it was read: what seems damaged may have been overwritten";
        lines.put(0, words, &json!({"kind": "freed", "segment": segment.0}))
    }

    fn piece(&self, piece: &Piece, lines: &mut Lines<'_>) -> Result<(), Error> {
        match piece {
            Piece::Damaged {
                position,
                end,
                lsn,
                reason,
            } => {
                let words = format!("bytes {position}..{end}: DAMAGED, entry {lsn}: {reason}");
                let object = json!({"kind": "damage", "position": position, "end": end, "lsn": lsn.0,
                    "reason": reason.to_string()});
                lines.put(0, &words, &object)
            }
            Piece::Entry { header, .. } if header.lsn < self.from => Ok(()),
            Piece::Entry {
                position,
                header,
                parts,
                batches,
            } => {
                show_entry(*position, header, lines)?;
                let mut rest = batches.iter();
                for (index, part) in parts.iter().enumerate() {
                    show_command(header, index, part, lines)?;
                    for stored in rest.by_ref().take(part.batches as usize) {
                        let place = stored.location;
                        let records = stored.batch.as_ref().map(mq_common::batch::Batch::record_count);
                        let state =
                            records.map_or("DAMAGED".to_owned(), |records| format!("{records} records"));
                        let words = format!(
                            "batch at byte {}, {} bytes, checksum {:08x}: {state}",
                            place.position, place.bytes, stored.checksum
                        );
                        let object = json!({"kind": "batch", "lsn": header.lsn.0, "command": index,
                            "position": place.position, "bytes": place.bytes, "checksum": stored.checksum,
                            "records": records, "damaged": records.is_none()});
                        lines.put(4, &words, &object)?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn show_entry(position: u32, header: &Header, lines: &mut Lines<'_>) -> Result<(), Error> {
    let Header {
        lsn,
        term,
        time,
        synced,
        commands,
        batches,
        frame_bytes,
        ..
    } = header;
    let words = format!(
        "entry {lsn} at byte {position}: {frame_bytes} bytes, term {term}, time {} ms, synced up to {synced}, \
         {commands} commands, {batches} batches",
        time.0
    );
    let object = json!({"kind": "entry", "lsn": lsn.0, "position": position, "bytes": frame_bytes, "term": term.0,
        "time_ms": time.0, "synced_lsn": synced.0, "commands": commands, "batches": batches});
    lines.put(0, &words, &object)
}

fn show_command(header: &Header, index: usize, part: &Part, lines: &mut Lines<'_>) -> Result<(), Error> {
    let told = match Command::decode(&part.meta) {
        Ok(command) => words(&command),
        Err(error) => format!("unknown command of {} bytes: {error}", part.meta.len()),
    };
    let object = json!({"kind": "command", "lsn": header.lsn.0, "index": index, "command": told,
        "batches": part.batches});
    lines.put(2, &told, &object)
}

fn show_footer(trailer: &Trailer, rows: Option<&FooterRows>, lines: &mut Lines<'_>) -> Result<(), Error> {
    let state = if rows.is_some() { "" } else { ": DAMAGED" };
    let words = format!(
        "footer: last entry {}, frames end at byte {}, {} rows at byte {}{state}",
        trailer.last, trailer.frames_end, trailer.rows, trailer.rows_at
    );
    let object = json!({"kind": "footer", "last_lsn": trailer.last.0, "frames_end": trailer.frames_end,
        "rows": trailer.rows, "rows_at": trailer.rows_at, "damaged": rows.is_none()});
    lines.put(0, &words, &object)?;
    let Some(rows) = rows else { return Ok(()) };
    for row in (0..rows.len()).filter_map(|index| rows.get(index)) {
        let place = row.location;
        let words = format!(
            "queue key {} offsets {}..{}: entry {}, {} bytes at byte {} of segment {}",
            row.queue.0,
            row.base_offset,
            row.end(),
            row.lsn,
            place.bytes,
            place.position,
            place.segment.0
        );
        let object = json!({"kind": "placed", "queue_key": row.queue.0, "first_offset": row.base_offset.0,
            "end_offset": row.end().0, "lsn": row.lsn.0, "segment": place.segment.0, "position": place.position,
            "bytes": place.bytes, "checksum": row.checksum, "flags": row.flags});
        lines.put(2, &words, &object)?;
    }
    Ok(())
}

/// Shows a queue file batch by batch. Only the checkpoint knows how much of the file is valid; a crash may
/// have left incomplete batches after that.
fn queue_file(path: &Path, file: &dyn DiskFile, first: Offset, lines: &mut Lines<'_>) -> Result<(), Error> {
    let words = format!(
        "queue file: first offset {first}, {} bytes",
        file.bytes().map_err(at(path))?
    );
    lines.put(0, &words, &json!({"kind": "queue_file", "first_offset": first.0}))?;
    let mut inspection = StampedInspection::begin(first, Expected::default());
    while let Some(piece) = inspection.next(file).map_err(at(path))? {
        match piece {
            StampedPiece::Damaged { position, end } => {
                let words = format!("bytes {position}..{end}: DAMAGED, or left over from a crash");
                lines.put(
                    0,
                    &words,
                    &json!({"kind": "damage", "position": position, "end": end}),
                )?;
            }
            StampedPiece::Batch {
                position,
                header,
                records,
            } => {
                let stamp = header.stamp;
                let state = records.map_or("DAMAGED".to_owned(), |records| format!("{records} records"));
                let words = format!(
                    "queue {} offset {}: entry {}, term {}, time {} ms, {} bytes at byte {position}: {state}",
                    stamp.queue,
                    stamp.base_offset,
                    stamp.lsn,
                    stamp.epoch,
                    stamp.append_time.0,
                    header.region_bytes
                );
                let object = json!({"kind": "stamped", "queue": stamp.queue.0, "first_offset": stamp.base_offset.0,
                    "lsn": stamp.lsn.0, "term": stamp.epoch.0, "time_ms": stamp.append_time.0, "flags": stamp.flags,
                    "position": position, "bytes": header.region_bytes, "checksum": header.checksum,
                    "records": records, "damaged": records.is_none()});
                lines.put(2, &words, &object)?;
            }
        }
    }
    Ok(())
}

/// Shows a summary of the checkpoint; SQLite's own tools show the rest.
async fn state(path: &Path, lines: &mut Lines<'_>) -> Result<(), Error> {
    let Examined { shard, format, saved } = checkpoint::examine(path, false).await?;
    let words = format!("checkpoint of broker {shard}, format {format}");
    lines.put(
        0,
        &words,
        &json!({"kind": "checkpoint", "broker": shard, "format": format}),
    )?;
    let Some(saved) = saved else { return Ok(()) };
    let (rows, store) = (&saved.rows, &saved.store);
    let counters = &rows.counters;
    let words = format!(
        "at entry {}, term {}, time {} ms",
        counters.lsn, counters.term, counters.time.0
    );
    let object = json!({"kind": "standing", "lsn": counters.lsn.0, "term": counters.term.0,
        "time_ms": counters.time.0});
    lines.put(2, &words, &object)?;
    for (table, rows) in [
        ("topics", rows.topics.len()),
        ("queues", rows.queues.len()),
        ("groups", rows.groups.len()),
        ("cursors", rows.cursors.len()),
        ("transactions", rows.transactions.len()),
        ("decisions", rows.decisions.len()),
        ("segment_rows", store.segments.len()),
        ("placed_rows", store.placed.len()),
        ("half_rows", store.halves.len()),
    ] {
        let object = json!({"kind": "table", "table": table, "rows": rows});
        lines.put(2, &format!("{table}: {rows} rows"), &object)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn who_dumps_a_segment_that_is_freed_meanwhile_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0000000000000001.journal");
        fs::write(&path, include_bytes!("../../tests/golden/segment-v1.journal")).unwrap();
        let file = StdDisk.open(&path, Mode::Read).unwrap();
        let segment = Segment {
            path: path.clone(),
            header: segment_header(&*file).unwrap().unwrap(),
            file: &*file,
            from: Lsn(0),
        };
        let show = || {
            let mut out = Vec::new();
            let output = Output::Table;
            segment
                .show(&mut Lines {
                    output,
                    out: &mut out,
                })
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(!show().contains("freed"));
        fs::rename(&path, path.with_extension("filling")).unwrap();
        assert!(show().contains("the broker freed this segment"));
    }
}
