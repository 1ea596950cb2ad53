//! A fetch: from (queue, offset) to batches, through memory, the rows of the journal, or a queue file.

use std::time::Instant;

use mq_common::ids::Offset;

use super::index::RowLocation;
use super::io::spans::{first_reads, is_one_read};
use super::prefetch::readers::Reader;
use super::prefetch::window::asked_bytes_max;
use super::queue_files::View;
use super::{Access, Found, PlacedRow, ReadError, Store};
use crate::ids::QueueKey;

/// A fetch restarts when its messages were moved or removed meanwhile. Each time it gets further.
pub(super) const FETCHES_MAX: usize = 5;

impl Store {
    /// Batches from `from` on (the first one contains it): at most `bytes_max` bytes of them but at least one
    /// batch, and none that begins at or after `end`, the visible end of the queue. There may be more than it
    /// returns; empty = nothing is stored before `end`. May read files: call it where blocking is allowed,
    /// unless [`Store::in_memory`] says that it will not.
    ///
    /// # Errors
    /// [`ReadError`]; damaged batches are no error but a [`Found::Hole`].
    pub fn fetch(
        &self,
        queue: QueueKey,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        self.fetch_by(Access::BlockingNoPrefetch, queue, from, end, bytes_max)
    }

    /// The same, reading as `access` allows.
    ///
    /// # Errors
    /// [`ReadError::WouldBlock`] only if `access` does not block; otherwise as [`Store::fetch`].
    pub fn fetch_by(
        &self,
        access: Access,
        queue: QueueKey,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        if from >= end {
            return Ok(Vec::new());
        }
        let mut tries = 1;
        loop {
            match self.fetch_once(access, queue, from, end, bytes_max) {
                Err(error) if error.may_have_moved() && tries < FETCHES_MAX => tries += 1,
                found => return found,
            }
        }
    }

    fn fetch_once(
        &self,
        access: Access,
        queue: QueueKey,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let rows = {
            let inner = self.lock();
            let found = match access {
                Access::BypassCache => Vec::new(),
                _ => inner.tail.fetch(queue, from, end, bytes_max),
            };
            if !found.is_empty() {
                return Ok(found);
            }
            match inner.index.locate(queue, from) {
                None => return Err(ReadError::NotStored { queue, offset: from }),
                Some(RowLocation::File(view)) => {
                    drop(inner);
                    return self.fetch_file(access, &view, (from, end), bytes_max);
                }
                Some(RowLocation::Unsealed) => {
                    let rows = inner.index.unsealed_from(queue, from).map(Ok);
                    take_run(rows, queue, end, bytes_max)?
                }
                Some(RowLocation::Sealed { segment, until }) => {
                    drop(inner);
                    let run = self.with_rows(access, segment, |rows| {
                        let run = take_run(rows.from(queue, from)?, queue, end, bytes_max)?;
                        match rows.damage() {
                            // The rebuilt rows lack the queue.
                            Some(damage) if run.is_empty() => Err(damage),
                            damage => Ok((run, damage)),
                        }
                    });
                    match run {
                        Ok((run, damage)) => {
                            // Those of other queues are missing as before, while the disk fails.
                            if !damage.is_some_and(|damage| damage.is_loss()) {
                                self.lost.rows_were_read(segment);
                            }
                            run
                        }
                        Err(error) => {
                            return self.without_rows(segment, (from, until.unwrap_or(end)), error);
                        }
                    }
                }
            }
        };
        match rows.first() {
            Some(first) if first.base_offset <= from => self.fetch_rows(access, &rows, (from, end)),
            _ => Err(ReadError::NotStored { queue, offset: from }),
        }
    }

    /// Reads batches of a queue file.
    fn fetch_file(
        &self,
        access: Access,
        view: &View,
        (from, end): (Offset, Offset),
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let mut reader = self.reader(access, view.queue, from)?;
        let found = self.read_file_around(access, view, (from, end), bytes_max)?;
        self.look_ahead_in_files(access, &mut reader, view, &found);
        self.read_ahead.note(from, reader, Instant::now());
        Ok(found)
    }

    /// Reads batches of the journal. Batches of other queues are between those of one queue; read one by one,
    /// each would wait for the disk separately, so they are requested together.
    fn fetch_rows(
        &self,
        access: Access,
        rows: &[PlacedRow],
        (from, end): (Offset, Offset),
    ) -> Result<Vec<Found>, ReadError> {
        let rows = first_reads(access, rows);
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let mut reader = self.reader(access, first.queue, from)?;
        let found = if access.may_block() {
            // After a large read the system reads further ahead by itself, except where the bytes had been
            // requested.
            if !access.may_prefetch() || !is_one_read(rows) {
                let asked = rows.partition_point(|row| row.end() <= reader.asked);
                self.ask_for(access, &reader, &rows[asked..], asked_bytes_max(access));
            }
            reader.reads_rows(rows);
            self.look_ahead_in_journal(access, &mut reader, end);
            self.read_around(access, rows)?
        } else {
            let found = self.read_around(access, rows)?;
            reader.reads_rows(&rows[..found.len().min(rows.len())]);
            self.look_ahead_in_journal(access, &mut reader, end);
            found
        };
        self.read_ahead.note(from, reader, Instant::now());
        Ok(found)
    }

    /// The read-ahead state of the reader at this offset.
    ///
    /// # Errors
    /// [`ReadError::WouldBlock`] for a reader that is stuck, if `access` prefetches but does not block.
    fn reader(&self, access: Access, queue: QueueKey, from: Offset) -> Result<Reader, ReadError> {
        let reader = self.read_ahead.reader(queue, from);
        match access {
            Access::CacheOnly if reader.is_stuck => Err(ReadError::WouldBlock),
            _ => Ok(reader),
        }
    }
}

/// Rows of the queue without a gap, from those that begin before `end`: up to `bytes_max` bytes but at least
/// one. They end before a row that cannot be read.
pub(super) fn take_run(
    rows: impl Iterator<Item = Result<PlacedRow, ReadError>>,
    queue: QueueKey,
    end: Offset,
    bytes_max: usize,
) -> Result<Vec<PlacedRow>, ReadError> {
    let mut run: Vec<PlacedRow> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(error) if run.is_empty() => return Err(error),
            Err(_) => break,
        };
        let size = row.location.bytes as usize;
        let continues = run.last().is_none_or(|last| last.end() == row.base_offset);
        let fits = run.is_empty() || bytes + size <= bytes_max;
        if row.queue != queue || row.base_offset >= end || !continues || !fits {
            break;
        }
        bytes += size;
        run.push(row);
    }
    Ok(run)
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
