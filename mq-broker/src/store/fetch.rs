//! A fetch: from (queue, offset) to batches, through memory, the rows of the journal, or a queue file. What a fetch that
//! goes on where an earlier one ended will ask for next is asked of the system meanwhile.

use mq_common::batch::STAMPED_HEADER_BYTES;
use mq_common::ids::Offset;

use super::index::Place;
use super::queue_files::View;
use super::read_ahead::{AHEAD_BYTES, DUE_BYTES, Reader};
use super::spans::{first_reads, is_one_read};
use super::{Access, Found, PlacedRow, ReadError, Store};
use crate::ids::QueueKey;

/// A fetch begins again when what it found was moved or removed meanwhile. Each time it has come further.
pub(super) const FETCHES_MAX: usize = 5;
/// Asked for by a fetch that must not wait, some tenths of a millisecond in which the system finds memory: twice what it
/// reads, so that it gets ahead.
const AT_ONCE_AHEAD_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// Asked for at once by any other, what lies between the batches of a queue included.
const ASKED_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Segments that one look ahead goes through.
const SEGMENTS_AHEAD_MAX: usize = 2;

impl Store {
    /// Batches from `from` on (the first one contains it), at most `bytes_max` bytes of them but at least one, none
    /// that begins at or behind `end`, the visible end of the queue. There may be more than it answers; empty = there is nothing before
    /// `end`. May read files: call it where blocking is allowed, unless [`Store::in_memory`] says it will not.
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
        self.fetch_by(Access::WaitsSparing, queue, from, end, bytes_max)
    }

    /// The same, reading as `access` allows.
    ///
    /// # Errors
    /// [`ReadError::Waits`] only if `access` does not wait; else as [`Store::fetch`].
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
                Access::Anew => Vec::new(),
                _ => inner.tail.fetch(queue, from, end, bytes_max),
            };
            if !found.is_empty() {
                return Ok(found);
            }
            match inner.index.locate(queue, from) {
                None => return Err(ReadError::NotStored { queue, offset: from }),
                Some(Place::File(view)) => {
                    drop(inner);
                    return self.fetch_file(access, &view, (from, end), bytes_max);
                }
                Some(Place::Unsealed) => {
                    let rows = inner.index.unsealed_from(queue, from).map(Ok);
                    take_run(rows, queue, end, bytes_max)?
                }
                Some(Place::Sealed { segment, until }) => {
                    drop(inner);
                    let run = self.with_rows(access, segment, |rows| {
                        let run = take_run(rows.from(queue, from)?, queue, end, bytes_max)?;
                        match rows.damage() {
                            // What was made again lacks the queue.
                            Some(damage) if run.is_empty() => Err(damage),
                            _ => Ok(run),
                        }
                    });
                    match run {
                        Ok(run) => {
                            self.lost.rows_were_read(segment);
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
        let found = self.read_file_around(access, view, (from, end), bytes_max)?;
        let mut reader = self.read_ahead.reader(view.queue, from);
        self.look_ahead_in_file(access, &mut reader, view, &found);
        self.read_ahead.note(from, reader);
        Ok(found)
    }

    /// Reads batches of the journal. Between those of one queue lie those of others: read one after the other, each
    /// would wait for the disk by itself, so they are asked for together.
    fn fetch_rows(
        &self,
        access: Access,
        rows: &[PlacedRow],
        (from, end): (Offset, Offset),
    ) -> Result<Vec<Found>, ReadError> {
        let rows = first_reads(access, rows);
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Ok(Vec::new());
        };
        let mut reader = self.read_ahead.reader(first.queue, from);
        let found = if access.may_wait() {
            // A large read the system follows with more; what was asked for it leaves alone.
            if access.spares() || !is_one_read(rows) {
                let asked = rows.partition_point(|row| row.end() <= reader.asked);
                self.ask_for(access, &rows[asked..], asked_bytes_max(access));
            }
            reader.reads(last.end(), bytes_of(rows));
            self.look_ahead_in_journal(access, &mut reader, end);
            self.read_around(access, rows)?
        } else {
            let found = self.read_around(access, rows)?;
            let read = &rows[..found.len().min(rows.len())];
            if let Some(last) = read.last() {
                reader.reads(last.end(), bytes_of(read));
            }
            self.look_ahead_in_journal(access, &mut reader, end);
            found
        };
        self.read_ahead.note(from, reader);
        Ok(found)
    }

    /// Asks for what a reader will want next, if it is a sequential one.
    fn look_ahead_in_journal(&self, access: Access, reader: &mut Reader, end: Offset) {
        let queue = reader.queue;
        let in_memory = self.lock().tail.first(queue);
        let end = in_memory.map_or(end, |first| first.min(end));
        for _ in 0..SEGMENTS_AHEAD_MAX {
            let Some(bytes) = due_bytes(access, reader) else {
                return;
            };
            let next = reader.asked;
            if next >= end {
                return;
            }
            let rows = self.rows_ahead(access, queue, (next, end), bytes);
            let rows = &rows[..self.ask_for(access, &rows, asked_bytes_max(access))];
            let Some(last) = rows.last() else { return };
            reader.asked = last.end();
            reader.ahead_bytes += bytes_of(rows);
        }
    }

    /// Rows of the journal from an offset on. Nothing is made again for them that cannot be read.
    fn rows_ahead(
        &self,
        access: Access,
        queue: QueueKey,
        (from, end): (Offset, Offset),
        bytes_max: usize,
    ) -> Vec<PlacedRow> {
        let inner = self.lock();
        let rows = match inner.index.locate(queue, from) {
            Some(Place::Unsealed) => {
                let rows = inner.index.unsealed_from(queue, from).map(Ok);
                take_run(rows, queue, end, bytes_max)
            }
            Some(Place::Sealed { segment, .. }) => {
                drop(inner);
                let rows = self.segments.rows(access, segment);
                rows.and_then(|mut rows| take_run(rows.from(queue, from)?, queue, end, bytes_max))
            }
            _ => Ok(Vec::new()),
        };
        rows.unwrap_or_default()
    }

    /// The same within a queue file, from behind what was found.
    fn look_ahead_in_file(&self, access: Access, reader: &mut Reader, view: &View, found: &[Found]) {
        let Some(next) = found.last().map(Found::end) else {
            return;
        };
        let batches = found.iter().filter_map(|found| match found {
            Found::Batch { row, .. } => Some(row.location),
            Found::Hole { .. } => None,
        });
        let (mut bytes, mut behind) = (0, None);
        for place in batches {
            let whole = STAMPED_HEADER_BYTES + place.bytes as usize;
            bytes += whole;
            behind = Some(place.position as usize + whole);
        }
        reader.reads(next, bytes);
        let Some(behind) = behind else { return };
        let left = (view.segment.bytes as usize).saturating_sub(behind);
        reader.ahead_bytes = reader.ahead_bytes.min(left);
        let Some(due) = due_bytes(access, reader) else {
            return;
        };
        let due = due.min(left - reader.ahead_bytes);
        if due > 0 && self.files.ask_for(view, behind + reader.ahead_bytes, due) {
            reader.ahead_bytes += due;
        }
    }
}

/// How much more is to be asked for ahead of a reader.
fn due_bytes(access: Access, reader: &Reader) -> Option<usize> {
    let missing = AHEAD_BYTES.saturating_sub(reader.ahead_bytes);
    let due = reader.is_sequential && !access.spares() && missing >= DUE_BYTES;
    due.then(|| missing.min(asked_bytes_max(access) as usize))
}

const fn asked_bytes_max(access: Access) -> u32 {
    if access.may_wait() {
        ASKED_BYTES_MAX
    } else {
        AT_ONCE_AHEAD_BYTES_MAX
    }
}

fn bytes_of(rows: &[PlacedRow]) -> usize {
    rows.iter().map(|row| row.location.bytes as usize).sum()
}

/// Rows of the queue, without a gap, that begin before `end`, up to `bytes_max` bytes but at least one. Where a further one
/// cannot be read they end.
fn take_run(
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
