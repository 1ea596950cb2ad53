//! Checks one segment of the journal, from its header to its footer.

use std::io;

use mq_common::ids::Lsn;

use super::progress::Progress;
use super::report::{Damage, Report, Standing};
use crate::log::entry::{Broken, ChainPoint, SegmentHeader};
use crate::log::{Inspection, Piece, SegmentId, segment_header};
use crate::store::disk::{DiskFile, read_up_to_at};
use crate::store::segment_index::footer::{TRAILER_BYTES, Trailer};
use crate::store::segment_index::footer_file::{Footer, read_footer};

/// What other files tell about a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    pub(super) segment: SegmentId,
    /// The end of the previous segment's chain, if that segment was read.
    pub(super) before: Option<ChainPoint>,
    /// A later segment exists: this one was sealed.
    pub(super) has_successor: bool,
    /// The checkpoint holds everything up to this entry, so all of it was synced.
    pub(super) checkpoint: Lsn,
    /// A running broker is writing to it.
    pub(super) is_written: bool,
}

/// The outcome of checking a segment.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) report: Report,
    /// The end of its chain; `None` = its header is damaged.
    pub(super) point: Option<ChainPoint>,
}

/// Checks the whole content of a segment's file.
pub(super) fn check(
    file: &dyn DiskFile,
    name: String,
    around: Around,
    progress: &Progress,
) -> io::Result<Checked> {
    let bytes = file.bytes()?;
    let mut report = Report::new(name, bytes);
    let header = match segment_header(file)? {
        Ok(header) if header.segment == around.segment => header,
        Ok(header) => return Ok(misnamed(report, header.segment)),
        Err(Broken::Version(version)) => return Ok(later(report, version)),
        Err(broken) => {
            let Some(guessed) = guess(file, around)? else {
                return Ok(headless(report, around, &broken));
            };
            report.damaged(whole_header(&broken));
            guessed
        }
    };
    if around.before.is_some_and(|before| before != header.point) {
        report.damaged(Damage {
            end: 64,
            lsn: Some(header.point.next.0),
            what: "it does not continue the segment before it".to_owned(),
            ..Damage::default()
        });
    }
    let footer = read_footer(file, around.segment)?;
    if let Footer::Version(version) = footer {
        return Ok(later(report, version));
    }
    let trailer = match &footer {
        Footer::Whole(trailer, _) | Footer::Rows(trailer) => Some(*trailer),
        _ => None,
    };
    let mut walked = walk(file, &header, trailer.as_ref(), &mut report, progress)?;
    judge_footer(&footer, around, bytes, &mut report);
    if trailer.is_none() && !around.has_successor {
        judge_tail(file, around, &mut walked, &mut report)?;
    } else if trailer.is_none() && !around.is_written {
        // Sealed, so all of it was synced.
        report_all(std::mem::take(&mut walked.broken_batches), &mut report);
    }
    report.first_lsn = (walked.entries > 0).then_some(header.point.next.0);
    report.last_lsn = (walked.entries > 0).then(|| walked.inspection.point().next.0.saturating_sub(1));
    report
        .note
        .push_str(if trailer.is_some() { "sealed" } else { "not sealed" });
    Ok(Checked {
        report,
        point: Some(walked.inspection.point()),
    })
}

/// The header of a segment whose own is damaged: the end of the previous segment's chain suffices to read the
/// frames.
fn guess(file: &dyn DiskFile, around: Around) -> io::Result<Option<SegmentHeader>> {
    let Some(point) = around.before else {
        return Ok(None);
    };
    let header = SegmentHeader {
        segment: around.segment,
        point,
        segment_bytes: 0,
    };
    let first = Inspection::begin(header).next(file, None)?;
    Ok(first.is_some().then_some(header))
}

struct Walked {
    inspection: Inspection,
    entries: u64,
    /// Damaged batches that are not yet known to have been synced.
    broken_batches: Vec<Damage>,
}

fn walk(
    file: &dyn DiskFile,
    header: &SegmentHeader,
    trailer: Option<&Trailer>,
    report: &mut Report,
    progress: &Progress,
) -> io::Result<Walked> {
    let mut inspection = Inspection::begin(*header);
    let (mut entries, mut broken_batches) = (0, Vec::new());
    let mut done = 0;
    while let Some(piece) = inspection.next(file, trailer.map(|trailer| trailer.frames_end))? {
        progress.add(u64::from(inspection.position() - done));
        done = inspection.position();
        match piece {
            Piece::Entry { header, batches, .. } => {
                entries += 1;
                report.batches += batches.len() as u64;
                let broken = batches.iter().filter(|stored| stored.batch.is_none());
                broken_batches.extend(broken.map(|stored| Damage {
                    position: u64::from(stored.location.position),
                    end: u64::from(stored.location.position) + u64::from(stored.location.bytes),
                    lsn: Some(header.lsn.0),
                    what: "a batch is damaged".to_owned(),
                    ..Damage::default()
                }));
            }
            Piece::Damaged {
                position,
                end,
                lsn,
                reason,
            } => report.damaged(Damage {
                position: u64::from(position),
                end: u64::from(end),
                lsn: Some(lsn.0),
                what: reason.to_string(),
                ..Damage::default()
            }),
        }
    }
    progress.add(report.bytes.saturating_sub(u64::from(done)));
    if let Some(trailer) = trailer {
        report_all(std::mem::take(&mut broken_batches), report);
        let point = inspection.point();
        if point.checksum != trailer.chain || point.next.0 != trailer.last.0 + 1 {
            report.damaged(Damage {
                position: u64::from(trailer.frames_end),
                end: u64::from(trailer.frames_end),
                lsn: Some(point.next.0),
                what: format!(
                    "the frames do not end with entry {}, as the footer records",
                    trailer.last
                ),
                ..Damage::default()
            });
        }
    }
    Ok(Walked {
        inspection,
        entries,
        broken_batches,
    })
}

fn report_all(damage: Vec<Damage>, report: &mut Report) {
    for damage in damage {
        report.damaged(damage);
    }
}

fn judge_footer(footer: &Footer, around: Around, bytes: u64, report: &mut Report) {
    let damage = |position: u64, end: u64, what: &str| Damage {
        position,
        end,
        what: what.to_owned(),
        ..Damage::default()
    };
    match footer {
        Footer::Rows(trailer) => {
            let from = u64::from(trailer.rows_at);
            let what = "the rows of the footer are damaged; a start or a fetch rebuilds them";
            report.damaged(damage(from, from + trailer.rows_bytes() as u64, what));
        }
        Footer::None if around.has_successor && !around.is_written => {
            let what = "the footer is damaged; a start or a fetch rebuilds it";
            report.damaged(damage(bytes.saturating_sub(TRAILER_BYTES as u64), bytes, what));
        }
        _ => {}
    }
}

/// Decides what follows the last frame of an unsealed segment: nothing, a torn tail, or damage.
fn judge_tail(
    file: &dyn DiskFile,
    around: Around,
    walked: &mut Walked,
    report: &mut Report,
) -> io::Result<()> {
    let inspection = &walked.inspection;
    let proven = inspection.proven().max(around.checkpoint);
    let next = inspection.point().next;
    let (rotten, torn): (Vec<_>, Vec<_>) = std::mem::take(&mut walked.broken_batches)
        .into_iter()
        .partition(|damage| damage.lsn.is_some_and(|lsn| lsn <= proven.0));
    report_all(rotten, report);
    let end = u64::from(inspection.position());
    if next <= proven {
        report.damaged(Damage {
            position: end,
            end: report.bytes,
            lsn: Some(next.0),
            what: format!("{}, but entry {proven} was synced", inspection.broken()),
            ..Damage::default()
        });
    } else if !around.is_written && report.standing == Standing::Ok {
        let from = torn.first().map_or(end, |damage| damage.position);
        if !torn.is_empty() || is_written(file, end, report.bytes)? {
            report.standing = Standing::TornTail;
            report.note = format!("invalid from byte {from}, not known to be synced; ");
        }
    }
    Ok(())
}

/// Whether these bytes contain anything but zeros.
fn is_written(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<bool> {
    const STEP: usize = 1 << 20;
    let mut at = from;
    while at < end {
        let bytes = read_up_to_at(file, STEP, at)?;
        if bytes.is_empty() {
            break;
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at += bytes.len() as u64;
    }
    Ok(false)
}

fn whole_header(broken: &Broken) -> Damage {
    Damage {
        end: 64,
        what: format!("the segment's header is damaged ({broken})"),
        ..Damage::default()
    }
}

/// The outcome for a segment without a valid header, whose frames cannot be read either.
fn headless(mut report: Report, around: Around, broken: &Broken) -> Checked {
    let is_torn = !around.has_successor
        && around
            .before
            .is_some_and(|before| before.next > around.checkpoint);
    if is_torn {
        // The header is durable before the first frame is written.
        report.standing = Standing::TornTail;
        report.note = "its creation was cut short; it holds no entries".to_owned();
    } else if !around.is_written {
        report.damaged(whole_header(broken));
    }
    Checked {
        report,
        point: around.before.filter(|_| is_torn),
    }
}

fn misnamed(mut report: Report, found: SegmentId) -> Checked {
    report.damaged(Damage {
        end: 64,
        what: format!("its header says that it is segment {}", found.0),
        ..Damage::default()
    });
    Checked { report, point: None }
}

fn later(mut report: Report, version: u16) -> Checked {
    report.standing = Standing::LaterVersion;
    report.note = format!("format version {version}: written by a later version of the broker");
    Checked { report, point: None }
}
