//! Rereads data that is otherwise not read: sealed journal segments and queue files, a slice at a time, so
//! that bit rot is found while there may still be a copy elsewhere. How fast, and when, is up to the caller
//! (`mq-broker/src/background/scrub.rs`).
//!
//! Damage is reported. It is a hole for every reader, since each of them checks what it reads; everything
//! around it stays readable. Nothing is remembered: if the disk can read it later after all, it is served,
//! and moved with the rest. What the disk cannot read counts as damaged, too.

use std::collections::{HashMap, HashSet};

use mq_common::ids::{Lsn, Offset};

use super::disk::{DiskFile, read_up_to_at};
use super::found::check;
use super::io::throttled::{Pause, Throttled};
use super::io::unreadable::Around;
use super::queue_files::View;
use super::segment_index::footer::ROW_BYTES;
use super::segment_index::footer_file::{Footer, read_footer};
use super::stamped::{Expected, StampedInspection, StampedPiece};
use super::{Access, Location, PlacedRow, ReadError, SegmentId, Store};
use crate::ids::QueueKey;
use crate::log::{Inspection, Piece, segment_header};

/// A file that can be scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A sealed segment of the journal.
    Segment(SegmentId),
    /// A queue file, by its queue and first offset.
    QueueFile(QueueKey, Offset),
}

/// Damaged bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotten {
    /// Bytes before it in the file.
    pub position: u32,
    /// Position after it.
    pub end: u32,
    /// The queue and offsets of the lost messages; `None` = no messages that anybody could read.
    pub messages: Option<(QueueKey, Offset, Offset)>,
    /// What is wrong.
    pub what: &'static str,
}

/// The progress of scrubbing one file.
#[derive(Debug)]
pub struct Scrubbing {
    target: Target,
    at: At,
    /// Unreadable bytes have been reported up to here.
    unreadable_to: u64,
}

#[derive(Debug)]
enum At {
    Begin,
    /// In a segment whose header is damaged: the next row of its footer.
    Rows(usize),
    Segment {
        inspection: Inspection,
        frames_end: Option<u32>,
    },
    QueueFile {
        inspection: StampedInspection,
        /// The generation of the file; it may be replaced by another one.
        generation: u32,
        /// Start of a damaged place whose end is only known at the next batch.
        open: Option<Rotten>,
    },
    End,
}

impl Scrubbing {
    /// From the beginning of a file.
    #[must_use]
    pub const fn begin(target: Target) -> Self {
        Self {
            target,
            at: At::Begin,
            unreadable_to: 0,
        }
    }

    /// Whether all of it has been read.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.at, At::End)
    }
}

impl Store {
    /// What can be scrubbed now: these sealed segments, and all queue files.
    #[must_use]
    pub fn scrub_targets(&self, sealed: &[SegmentId]) -> Vec<Target> {
        let files = self.lock().index.files.views();
        let files = files
            .into_iter()
            .map(|view| Target::QueueFile(view.queue, view.first));
        let segments = sealed.iter().map(|segment| Target::Segment(*segment));
        segments.chain(files).collect()
    }

    /// Reads the next part of a file: about `bytes_max` bytes, or one entry or batch if that is more, or
    /// everything between damage and the next intact bytes. Damaged or unreadable bytes are appended to
    /// `rotten`. A file that was freed or removed meanwhile is done.
    ///
    /// `pause` is called whenever twice `bytes_max` bytes were read, so that the caller can keep a rate;
    /// returns the number of bytes that were read since its last call.
    ///
    /// # Errors
    /// [`ReadError`]: the disk failed at more than a few places of the file; or `pause` returned false.
    /// Damage found before that is in `rotten`.
    pub fn scrub(
        &self,
        scrubbing: &mut Scrubbing,
        bytes_max: u32,
        rotten: &mut Vec<Rotten>,
        pause: Pause<'_>,
    ) -> Result<u32, ReadError> {
        match self.scrub_slice(scrubbing, bytes_max, rotten, pause) {
            Err(error) if error.may_have_moved() => {
                scrubbing.at = At::End;
                Ok(0)
            }
            done => done,
        }
    }

    fn scrub_slice(
        &self,
        scrubbing: &mut Scrubbing,
        bytes_max: u32,
        rotten: &mut Vec<Rotten>,
        pause: Pause<'_>,
    ) -> Result<u32, ReadError> {
        let at = &mut scrubbing.at;
        let slice_bytes = bytes_max.saturating_mul(2);
        match scrubbing.target {
            Target::Segment(segment) => {
                // Pinned only during this slice: the segment may be freed between two.
                let file = self.segments.file(segment)?;
                let file = Around::new(&*file);
                let paced = Throttled::new(&file, slice_bytes, pause);
                let (mut bad, before) = (Vec::new(), rotten.len());
                let done = self.scrub_segment(&paced, segment, at, bytes_max, (&mut bad, rotten));
                let told = self.tell(&paced, segment, &bad, rotten);
                rotten[before..].sort_by_key(|rotten| rotten.position);
                let done = done.and(told);
                tell_unreadable(&file, &mut scrubbing.unreadable_to, rotten);
                done.map(|()| paced.unpaid())
            }
            Target::QueueFile(queue, first) => {
                let Some(view) = self.lock().index.files.get(queue, first) else {
                    *at = At::End;
                    return Ok(0);
                };
                let file = self.files.file(&view)?;
                let file = Around::new(&*file);
                let paced = Throttled::new(&file, slice_bytes, pause);
                let done = self.scrub_file(&paced, &view, at, bytes_max, rotten);
                tell_unreadable(&file, &mut scrubbing.unreadable_to, rotten);
                done.map(|()| paced.unpaid())
            }
        }
    }

    /// Damaged batches are collected in `bad`; their queues are determined later, for all of a slice at once.
    fn scrub_segment(
        &self,
        file: &Throttled<'_>,
        segment: SegmentId,
        at: &mut At,
        bytes_max: u32,
        (bad, rotten): (&mut Vec<Location>, &mut Vec<Rotten>),
    ) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { segment, source };
        if matches!(at, At::Begin) {
            *at = begin_segment(file, segment, rotten).map_err(io)?;
        }
        if let At::Rows(next) = at {
            let bytes = self.scrub_rows(file, segment, next, bytes_max, bad)?;
            if bytes == 0 {
                *at = At::End;
            }
            return Ok(());
        }
        let At::Segment {
            inspection,
            frames_end,
        } = at
        else {
            return Ok(());
        };
        let from = inspection.position();
        while inspection.position() - from < bytes_max {
            let Some(piece) = inspection.next(file, *frames_end).map_err(io)? else {
                *at = At::End;
                return Ok(());
            };
            match piece {
                Piece::Entry { batches, .. } => {
                    let damaged = batches.iter().filter(|stored| stored.batch.is_none());
                    bad.extend(damaged.map(|stored| stored.location));
                }
                Piece::Damaged { position, end, .. } => {
                    rotten.push(Rotten {
                        position,
                        end,
                        messages: None,
                        what: "entries of the journal are damaged; their batches are served as far as they hold",
                    });
                    self.check_rows(file, segment, position..end, bad)?;
                }
            }
        }
        Ok(())
    }

    /// Reports the queues of a segment's damaged batches, if they are still damaged when they are read once
    /// more, bypassing the page cache.
    fn tell(
        &self,
        file: &Throttled<'_>,
        segment: SegmentId,
        bad: &[Location],
        rotten: &mut Vec<Rotten>,
    ) -> Result<(), ReadError> {
        if bad.is_empty() {
            return Ok(());
        }
        file.pay(0).map_err(|source| ReadError::Io { segment, source })?;
        let rows = self.placed_at(file, segment, bad)?;
        for location in bad {
            let row = rows.get(location);
            if let Some(row) = row {
                file.forget(u64::from(location.position), u64::from(location.bytes));
                if holds(file, row)? {
                    continue;
                }
            }
            let is_half = {
                let inner = self.lock();
                let mut halves = inner.index.halves.of(location.segment, Lsn(0));
                halves.any(|half| half.location == *location)
            };
            let what = match (row, is_half) {
                (Some(_), _) => "a batch is damaged; its offsets are a hole",
                (None, true) => "a half message of an open transaction is damaged",
                (None, false) => "a damaged batch is no longer needed",
            };
            rotten.push(Rotten {
                position: location.position,
                end: location.position.saturating_add(location.bytes),
                messages: row.map(|row| (row.queue, row.base_offset, row.end())),
                what,
            });
        }
        Ok(())
    }

    /// The rows that place these batches of a segment: its own, or those of later ones that committed them.
    /// The footers are read at the file's pace.
    fn placed_at(
        &self,
        file: &Throttled<'_>,
        segment: SegmentId,
        bad: &[Location],
    ) -> Result<HashMap<Location, PlacedRow>, ReadError> {
        let bad: HashSet<&Location> = bad.iter().collect();
        let inner = self.lock();
        let unsealed = inner.index.unsealed.values().copied();
        let unsealed = unsealed.filter(|row| bad.contains(&row.location));
        let mut found: HashMap<_, _> = unsealed.map(|row| (row.location, row)).collect();
        let segments: Vec<_> = inner.index.placing(segment).collect();
        drop(inner);
        for placing in segments {
            if found.len() == bad.len() {
                break;
            }
            let Ok(mut rows) = self.segments.rows(Access::BlockingNoPrefetch, placing) else {
                continue;
            };
            let told = |source| ReadError::Io { segment, source };
            file.pay(rows.len() * ROW_BYTES).map_err(told)?;
            let rows = rows.all().filter(|row| bad.contains(&row.location));
            found.extend(rows.map(|row| (row.location, row)));
        }
        Ok(found)
    }

    /// Checks the batches that a segment's own rows place within these bytes.
    fn check_rows(
        &self,
        file: &Throttled<'_>,
        segment: SegmentId,
        within: std::ops::Range<u32>,
        bad: &mut Vec<Location>,
    ) -> Result<(), ReadError> {
        let Ok(mut rows) = self.segments.rows(Access::BlockingNoPrefetch, segment) else {
            return Ok(());
        };
        let told = |source| ReadError::Io { segment, source };
        file.pay(rows.len() * ROW_BYTES).map_err(told)?;
        let places = rows.all().filter(|row| row.location.segment == segment);
        for row in places.filter(|row| within.contains(&row.location.position)) {
            if !holds(file, &row)? {
                bad.push(row.location);
            }
        }
        Ok(())
    }

    /// Checks the batches that a segment's own rows place in it, starting at one row; no bytes = there are no
    /// more.
    fn scrub_rows(
        &self,
        file: &Throttled<'_>,
        segment: SegmentId,
        next: &mut usize,
        bytes_max: u32,
        bad: &mut Vec<Location>,
    ) -> Result<u32, ReadError> {
        let mut rows = self.segments.rows(Access::BlockingNoPrefetch, segment)?;
        let mut bytes: u32 = 0;
        while bytes < bytes_max {
            let Some(row) = rows.get(*next)? else { break };
            *next += 1;
            if row.location.segment == segment {
                if !holds(file, &row)? {
                    bad.push(row.location);
                }
                bytes = bytes.saturating_add(row.location.bytes);
            }
        }
        Ok(bytes)
    }

    fn scrub_file(
        &self,
        file: &dyn DiskFile,
        view: &View,
        at: &mut At,
        bytes_max: u32,
        rotten: &mut Vec<Rotten>,
    ) -> Result<(), ReadError> {
        if matches!(at, At::Begin) {
            let expected = Expected {
                bytes: Some(view.segment.bytes),
                queue: Some(view.name.number),
                end: Some(view.segment.end),
            };
            *at = At::QueueFile {
                inspection: StampedInspection::begin(view.first, expected),
                generation: view.generation,
                open: None,
            };
        }
        let At::QueueFile {
            inspection,
            generation,
            open,
        } = at
        else {
            return Ok(());
        };
        if *generation != view.generation {
            // It was compacted meanwhile: the new file is scrubbed in the next pass.
            *at = At::End;
            return Ok(());
        }
        let from = inspection.position();
        while inspection.position() - from < bytes_max {
            let next = inspection.next_offset();
            let Some(piece) = inspection
                .next(file)
                .map_err(|source| self.files.failed(view, source))?
            else {
                rotten.extend(open.take().map(|rotten| until(rotten, view.segment.end)));
                *at = At::End;
                return Ok(());
            };
            let found = |position, end, first| Rotten {
                position,
                end,
                messages: Some((view.queue, first, first)),
                what: "a batch in a queue file is damaged; its offsets are a hole",
            };
            match piece {
                StampedPiece::Damaged { position, end } => {
                    open.get_or_insert_with(|| found(position, end, next)).end = end;
                }
                StampedPiece::Batch {
                    position,
                    header,
                    records,
                } => {
                    let base = header.stamp.base_offset;
                    rotten.extend(open.take().map(|rotten| until(rotten, base)));
                    if records.is_none() {
                        *open = Some(found(position, inspection.position(), base));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads the batch of a row from its segment's file; returns whether it is intact.
fn holds(file: &dyn DiskFile, row: &PlacedRow) -> Result<bool, ReadError> {
    let Location {
        segment,
        position,
        bytes,
    } = row.location;
    let region = read_up_to_at(file, bytes as usize, u64::from(position))
        .map_err(|source| ReadError::Io { segment, source })?;
    Ok(check(&region.into(), row.checksum).is_some())
}

fn begin_segment(file: &dyn DiskFile, segment: SegmentId, rotten: &mut Vec<Rotten>) -> std::io::Result<At> {
    let bytes = u32::try_from(file.bytes()?).unwrap_or(u32::MAX);
    let mut found = |position, end, what| {
        rotten.push(Rotten {
            position,
            end,
            messages: None,
            what,
        });
    };
    let (frames_end, has_rows) = match read_footer(file, segment)? {
        Footer::Whole(trailer, _) => (Some(trailer.frames_end), true),
        Footer::Rows(trailer) => {
            found(
                trailer.rows_at,
                bytes,
                "the index of a journal segment is damaged; its batches are found by its entries",
            );
            (Some(trailer.frames_end), false)
        }
        Footer::Version(_) | Footer::None => {
            found(
                bytes,
                bytes,
                "the end of a journal segment is damaged; its batches are found by its entries",
            );
            (None, false)
        }
    };
    match segment_header(file)? {
        Ok(header) if header.segment == segment => Ok(At::Segment {
            inspection: Inspection::begin(header),
            frames_end,
        }),
        _ => {
            found(
                0,
                64,
                "the header of a journal segment is damaged; its batches are served as far as they hold",
            );
            // Without its seed no frame can be recognized; the footer's rows contain the batches' locations.
            Ok(if has_rows { At::Rows(0) } else { At::End })
        }
    }
}

/// The unreadable bytes after `to`, which advances; a place that two slices read is reported once.
fn tell_unreadable(file: &Around<'_>, to: &mut u64, rotten: &mut Vec<Rotten>) {
    let place = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
    for range in file.unreadable() {
        let from = range.start.max(*to);
        if from < range.end {
            rotten.push(Rotten {
                position: place(from),
                end: place(range.end),
                messages: None,
                what: "the disk cannot read these bytes",
            });
            *to = range.end;
        }
    }
}

fn until(mut rotten: Rotten, end: Offset) -> Rotten {
    if let Some(messages) = &mut rotten.messages {
        messages.2 = end;
    }
    rotten
}
