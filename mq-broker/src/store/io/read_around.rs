//! Reading for consumers around regions that the disk cannot read: the batches before such a region are
//! returned first, then an error, and a hole once [`super::unreadable_regions`] says that the failure has
//! lasted long enough.

use std::io;
use std::time::Duration;

use mq_common::ids::Offset;

use super::spans::READS_MAX;
use super::unreadable::{BLOCK_BYTES, is_rot};
use super::unreadable_regions::{Region, Unread};
use crate::store::found::hole;
use crate::store::queue_files::View;
use crate::store::{Access, Found, Location, PlacedRow, ReadError, SegmentId, Store};

/// An answer that is not empty ends after this many failed reads ..
const FAILING_READS_MAX: usize = 32;
/// .. or after this time, apart from the last read.
const TIME_MAX: Duration = Duration::from_millis(250);

/// What reading one answer has shown about the disk.
#[derive(Debug, Default)]
struct Failing {
    reads: usize,
    /// The last block that could not be read, and the system's error code.
    block: Option<(SegmentId, u64, i32)>,
}

impl Failing {
    /// Notes a batch that could not be read. If it spans blocks, it is unknown which of them fails.
    fn note(&mut self, location: Location, error: &ReadError) {
        if self.fails(location).is_some() {
            return;
        }
        let last = u64::from(location.position) + u64::from(location.bytes).saturating_sub(1);
        if let ReadError::Io { source, .. } = error
            && let Some(code) = source.raw_os_error().filter(|_| is_rot(source))
        {
            self.reads += 1;
            if last / BLOCK_BYTES == block_of(location) {
                self.block = Some((location.segment, block_of(location), code));
            }
        }
    }

    /// The error of a batch that begins in the block that has just failed.
    fn fails(&self, location: Location) -> Option<ReadError> {
        let segment = location.segment;
        let (.., code) = self
            .block
            .filter(|(of, block, _)| (*of, *block) == (segment, block_of(location)))?;
        let source = io::Error::from_raw_os_error(code);
        Some(ReadError::Io { segment, source })
    }
}

/// The block of its segment in which a batch begins.
fn block_of(location: Location) -> u64 {
    u64::from(location.position) / BLOCK_BYTES
}

/// A hole for what could not be read a moment ago.
fn still_a_hole(from: Offset, end: Offset) -> Found {
    hole(from, end, &"the disk could not read it a moment ago, and before")
}

impl Store {
    /// Moves the store's clock forward.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: Duration) {
        self.lost.clock.pass(time);
    }

    /// Reads the regions of rows for a reader. The batches before an unreadable region are returned without
    /// it.
    ///
    /// # Errors
    /// [`ReadError`]: nothing before it could be read.
    pub(in crate::store) fn read_around(
        &self,
        access: Access,
        rows: &[PlacedRow],
    ) -> Result<Vec<Found>, ReadError> {
        let now = self.lost.now();
        let end_of = |row: &PlacedRow| self.lost.end_of(Unread::Batch(row.location), now);
        if !rows.iter().any(|row| end_of(row).is_some()) {
            match self.read(access, rows) {
                Err(error) if error.is_loss() => {}
                Err(error) => return Err(error),
                Ok(found) => {
                    self.lost.batches_were_read(rows);
                    return Ok(found);
                }
            }
        }
        if !access.may_block() {
            return Err(ReadError::WouldBlock);
        }
        self.read_one_by_one(rows)
    }

    /// The same, one row at a time. A failing disk may take seconds to report a failure, so rows that begin in
    /// a block that has just failed are not read, and the answer ends early.
    fn read_one_by_one(&self, rows: &[PlacedRow]) -> Result<Vec<Found>, ReadError> {
        let begun = self.lost.now();
        let mut found: Vec<Found> = Vec::new();
        let mut failing = Failing::default();
        for row in rows.iter().take(READS_MAX) {
            let now = self.lost.now();
            if self.lost.end_of(Unread::Batch(row.location), now).is_some() {
                found.push(still_a_hole(row.base_offset, row.end()));
                continue;
            }
            let known = failing.fails(row.location);
            let is_enough =
                failing.reads == FAILING_READS_MAX || now.saturating_duration_since(begun) >= TIME_MAX;
            if known.is_none() && is_enough && !found.is_empty() {
                break;
            }
            let read = match known {
                Some(error) => Err(error),
                None => self.read(Access::BlockingNoPrefetch, std::slice::from_ref(row)),
            };
            let what = (Region::of_batch(row.location), Unread::Batch(row.location));
            match read {
                Ok(one) => {
                    self.lost.batches_were_read(std::slice::from_ref(row));
                    found.extend(one);
                }
                Err(error) if error.is_loss() && self.lost.is(what, row.end(), &error, self.lost.now()) => {
                    found.push(hole(row.base_offset, row.end(), &error));
                    failing.note(row.location, &error);
                }
                Err(_) if !found.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Whether an error means that the bytes of a queue file are lost, rather than that it was rewritten or
    /// removed meanwhile.
    pub(in crate::store) fn is_lost(&self, view: &View, error: &ReadError) -> bool {
        let now = self.lock().index.files.get(view.queue, view.first);
        error.is_loss() && now.is_some_and(|now| now.key() == view.key())
    }

    /// Without the rows of a segment, the locations of its batches are unknown: a hole of everything it had
    /// of a queue.
    ///
    /// # Errors
    /// The given error, if it may be transient.
    pub(in crate::store) fn without_rows(
        &self,
        segment: SegmentId,
        (from, end): (Offset, Offset),
        error: ReadError,
    ) -> Result<Vec<Found>, ReadError> {
        let is_lost = match &error {
            ReadError::Footer { .. } => true,
            error => {
                let what = (Region::Rows(segment), Unread::Rows(segment));
                error.is_loss() && self.lost.is(what, end, error, self.lost.now())
            }
        };
        if is_lost {
            Ok(vec![hole(from, end, &error)])
        } else {
            Err(error)
        }
    }

    /// Batches of a queue file for a reader, from `from` on, which is in it.
    ///
    /// # Errors
    /// [`ReadError`]: there was nothing before what cannot be read, or the file is no longer the right one.
    pub(in crate::store) fn read_file_around(
        &self,
        access: Access,
        view: &View,
        (from, end): (Offset, Offset),
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let now = self.lost.now();
        if let Some(behind) = self.lost.end_of(Unread::File(view.key(), from), now) {
            return Ok(vec![still_a_hole(from, behind.min(view.segment.end))]);
        }
        let error = match self.files.read_by(access, view, from, end, bytes_max) {
            Err(error) if error.is_loss() => error,
            Err(error) => return Err(error),
            Ok(found) => {
                self.lost.file_was_read(view, &found);
                return Ok(found);
            }
        };
        if !access.may_block() {
            return Err(ReadError::WouldBlock);
        }
        if !self.is_lost(view, &error) {
            return Err(error);
        }
        let around = self.files.read_around(view, from, end, bytes_max);
        let mut found = match around {
            Ok(found) => found,
            Err(error) if error.is_loss() => vec![hole(from, end.min(view.segment.end), &error)],
            Err(error) => return Err(error),
        };
        let now = self.lost.now();
        let is_lost = |found: &Found| match found {
            Found::Hole { from, end, .. } if found.is_damage() => {
                let what = (Region::in_file(view, *from), Unread::File(view.key(), *from));
                self.lost.is(what, *end, &error, now)
            }
            _ => true,
        };
        // All of them are noted, so that their time-outs run together.
        let lost: Vec<bool> = found.iter().map(is_lost).collect();
        let Some(at) = lost.iter().position(|is_lost| !is_lost) else {
            return Ok(found);
        };
        found.truncate(at);
        if found.is_empty() { Err(error) } else { Ok(found) }
    }
}
