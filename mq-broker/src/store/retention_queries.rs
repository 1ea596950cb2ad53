//! What retention asks the store: when an offset was appended, and from which offset on a queue holds a
//! number of bytes. Answered from rows and headers alone; no batch is read.

use mq_common::ids::{Offset, Timestamp};

use super::{Access, PlacedRow, ReadError, RowLocation, SealedRows, SegmentId, Store};
use crate::ids::QueueKey;
use crate::store::fetch::FETCHES_MAX;

/// A range of a queue: one batch, or offsets that a damaged index hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first offset.
    pub from: Offset,
    /// The offset after its last one.
    pub end: Offset,
    /// When it was appended; none if unknown.
    pub time: Option<Timestamp>,
    /// Bytes of its region; 0 if unknown.
    pub bytes: u32,
}

impl From<PlacedRow> for Extent {
    fn from(row: PlacedRow) -> Self {
        Self {
            from: row.base_offset,
            end: row.end(),
            time: Some(row.time),
            bytes: row.location.bytes,
        }
    }
}

/// Rows examined under one hold of the lock.
const ROWS_AT_ONCE: usize = 4096;

impl Store {
    /// The range that contains an offset below `end`; `None` if nothing is stored there. May read a footer.
    ///
    /// # Errors
    /// [`ReadError`], but not for a damaged footer.
    pub fn extent(&self, queue: QueueKey, offset: Offset, end: Offset) -> Result<Option<Extent>, ReadError> {
        again_if_moved(|| self.extent_once(queue, offset, end))
    }

    fn extent_once(&self, queue: QueueKey, offset: Offset, end: Offset) -> Result<Option<Extent>, ReadError> {
        let (segment, until) = {
            let inner = self.lock();
            match inner.index.locate(queue, offset) {
                None => return Ok(None),
                Some(RowLocation::Unsealed) => {
                    let row = inner.index.unsealed_from(queue, offset).next();
                    return Ok(row.filter(|row| row.base_offset <= offset).map(Extent::from));
                }
                Some(RowLocation::File(view)) => {
                    drop(inner);
                    let found = self.files.extent(&view, offset);
                    return match found {
                        Err(error) if self.is_lost(&view, &error) => {
                            Ok(Some(unknown(offset, view.segment.end)))
                        }
                        found => found.map(Some),
                    };
                }
                Some(RowLocation::Sealed { segment, until }) => (segment, until),
            }
        };
        let row = self.known_rows(segment, |rows| {
            let at = rows.find(queue, offset)?;
            rows.get(at)
        })?;
        let row = row
            .flatten()
            .filter(|row| row.queue == queue && row.base_offset <= offset);
        let hidden = unknown(offset, until.unwrap_or(end).max(Offset(offset.0 + 1)));
        Ok(Some(row.map_or(hidden, Extent::from)))
    }

    /// The last offset of a queue with at least this many bytes of whole batches between it and `end`;
    /// `start` if there are fewer. Ranges that a damaged index hides count nothing. In queue files the result
    /// is exact to 8 KiB, and stamps count, too. May read footers.
    ///
    /// # Errors
    /// [`ReadError`], but not for a damaged footer.
    pub fn bytes_behind(
        &self,
        queue: QueueKey,
        (start, end): (Offset, Offset),
        bytes: u64,
    ) -> Result<Offset, ReadError> {
        let mut from = end;
        let mut left = bytes;
        while from > start && left > 0 {
            let rows = again_if_moved(|| self.rows_before(queue, from))?;
            let before = from;
            for (base, size) in rows {
                if left == 0 {
                    break;
                }
                from = base;
                left = left.saturating_sub(u64::from(size));
            }
            if from == before {
                // Nothing is stored before it.
                return Ok(start);
            }
        }
        Ok(from.max(start))
    }

    /// Base offsets and bytes of some batches that begin below `from`, the last one first.
    fn rows_before(&self, queue: QueueKey, from: Offset) -> Result<Vec<(Offset, u32)>, ReadError> {
        let pair = |row: PlacedRow| (row.base_offset, row.location.bytes);
        let last = Offset(from.0 - 1);
        let (segment, first) = {
            let inner = self.lock();
            match inner.index.locate(queue, last) {
                None => return Ok(Vec::new()),
                Some(RowLocation::Unsealed) => {
                    let rows = inner.index.unsealed.range((queue, Offset(0))..=(queue, last));
                    let rows = rows.rev().take(ROWS_AT_ONCE).map(|(_, row)| pair(*row));
                    return Ok(rows.collect());
                }
                Some(RowLocation::File(view)) => {
                    drop(inner);
                    let found = self.files.runs_before(&view, from);
                    return match found {
                        Err(error) if self.is_lost(&view, &error) => Ok(vec![(view.first, 0)]),
                        found => found,
                    };
                }
                Some(RowLocation::Sealed { segment, .. }) => {
                    let first = inner.index.first_in(segment, queue);
                    (segment, first.unwrap_or_default())
                }
            }
        };
        let own = self.known_rows(segment, |rows| {
            let mut own = Vec::new();
            let behind = rows.find(queue, last)?;
            for at in (0..=behind).rev() {
                let Some(row) = rows.get(at)? else { continue };
                if row.queue < queue || own.len() == ROWS_AT_ONCE {
                    break;
                }
                if (row.queue, row.base_offset) <= (queue, last) {
                    own.push(pair(row));
                }
            }
            Ok(own)
        })?;
        let own = own.filter(|own| !own.is_empty());
        Ok(own.unwrap_or_else(|| vec![(first, 0)]))
    }

    /// Runs a look at the rows of a sealed segment, rebuilt if its footer is damaged; `None` if that is not
    /// possible.
    fn known_rows<T>(
        &self,
        segment: SegmentId,
        look: impl Fn(&mut SealedRows<'_>) -> Result<T, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        match self.with_rows(Access::BlockingNoPrefetch, segment, look) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.hides_rows() || error.is_loss() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A range of which nothing is known.
const fn unknown(from: Offset, end: Offset) -> Extent {
    Extent {
        from,
        end,
        time: None,
        bytes: 0,
    }
}

/// Retries when the messages were moved or removed meanwhile.
fn again_if_moved<T>(mut look: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    let mut tries = 1;
    loop {
        match look() {
            Err(error) if error.may_have_moved() && tries < FETCHES_MAX => tries += 1,
            found => return found,
        }
    }
}

#[cfg(test)]
#[path = "retention_queries_tests.rs"]
mod tests;
