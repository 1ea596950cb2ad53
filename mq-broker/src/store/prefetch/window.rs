//! Prefetching for a sequential reader: what it will want next is requested from the system while it is
//! served, across segments and files. A file that is not open, or whose index is not in memory, can only be
//! requested by a thread that may block. A reader that reaches such a file without one is *stuck*: its next
//! fetch is left to a thread that may block, while what was requested before is still ahead of it.

use std::time::Instant;

use mq_common::batch::STAMPED_HEADER_BYTES;
use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::fetch::take_run;
use crate::store::index::RowLocation;
use crate::store::prefetch::readers::{AHEAD_BYTES, DUE_BYTES, Reader};
use crate::store::queue_files::View;
use crate::store::segment_index::footer_cache::Footer;
use crate::store::{Access, Found, PlacedRow, ReadError, SegmentId, Store};

/// Bytes requested by a fetch that must not block, some tenths of a millisecond in which the system allocates
/// memory: twice what it reads, so that it gets ahead.
const AT_ONCE_AHEAD_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// Bytes requested at once by any other fetch, including what is between the batches of a queue.
const ASKED_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Segments covered by one look ahead.
const SEGMENTS_AHEAD_MAX: usize = 2;
/// Queue files covered by one look ahead: a queue's first ones are small.
const FILES_AHEAD_MAX: usize = 4;

impl Store {
    /// Requests what a reader of the journal will want next, if it is a sequential one.
    pub(in crate::store) fn look_ahead_in_journal(&self, access: Access, reader: &mut Reader, end: Offset) {
        reader.is_stuck = false;
        let queue = reader.queue;
        let in_memory = self.lock().tail.first(queue);
        let end = in_memory.map_or(end, |first| first.min(end));
        for _ in 0..SEGMENTS_AHEAD_MAX {
            let next = reader.asked;
            let Some(bytes) = due_bytes(access, reader).filter(|_| next < end) else {
                break;
            };
            let rows = match self.rows_ahead(access, queue, (next, end), bytes) {
                Ok(rows) => rows,
                Err(error) => {
                    reader.is_stuck = matches!(error, ReadError::WouldBlock);
                    break;
                }
            };
            let asked = self.ask_for(access, reader, &rows, asked_bytes_max(access));
            if asked == 0 {
                // The read will report what is wrong with its file, or another thread has to open it.
                reader.is_stuck = !access.may_block() && !rows.is_empty();
                break;
            }
            reader.asks(&rows[..asked]);
        }
        if access.may_block() && access.may_prefetch() && reader.is_sequential {
            self.ask_for_next_index(reader);
        }
    }

    /// Rows of the journal from an offset on. Rows that cannot be read are not rebuilt for this.
    fn rows_ahead(
        &self,
        access: Access,
        queue: QueueKey,
        (from, end): (Offset, Offset),
        bytes_max: usize,
    ) -> Result<Vec<PlacedRow>, ReadError> {
        let inner = self.lock();
        match inner.index.locate(queue, from) {
            Some(RowLocation::Unsealed) => {
                let rows = inner.index.unsealed_from(queue, from).map(Ok);
                take_run(rows, queue, end, bytes_max)
            }
            Some(RowLocation::Sealed { segment, .. }) => {
                drop(inner);
                let mut rows = self.segments.rows(access, segment)?;
                take_run(rows.from(queue, from)?, queue, end, bytes_max)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Prefetches the index that a reader needs next, so that it is in memory when the reader gets there.
    fn ask_for_next_index(&self, reader: &mut Reader) {
        let mut from = reader.asked;
        for _ in 0..SEGMENTS_AHEAD_MAX {
            let place = self.lock().index.locate(reader.queue, from);
            let Some(RowLocation::Sealed { segment, until }) = place else {
                return;
            };
            if self
                .segments
                .footer_by(Access::CacheOnlyNoPrefetch, segment)
                .is_err()
            {
                if segment > reader.index_asked {
                    reader.index_asked = segment;
                    self.segments.ask_for_footer(segment);
                }
                return;
            }
            let Some(until) = until else { return };
            from = until;
        }
    }

    /// Whether whole stretches of a segment are to be requested: most of it is being read by several queues'
    /// readers, this one among them, and others do not need the disk more.
    pub(in crate::store) fn is_shared(
        &self,
        access: Access,
        reader: &Reader,
        segment: SegmentId,
        now: Instant,
    ) -> bool {
        if !access.may_prefetch() || !reader.is_sequential {
            return false;
        }
        let queues = self.read_ahead.queues_near(segment, reader.queue, now);
        if queues.len() < 2 {
            return false;
        }
        // The segment sealed last is in the page cache.
        match self.segments.footer_by(Access::CacheOnlyNoPrefetch, segment) {
            Ok(Footer::InFile(rows)) => rows.shares().are_most(&queues),
            _ => false,
        }
    }

    /// The same within queue files, from the end of what was found in one.
    pub(in crate::store) fn look_ahead_in_files(
        &self,
        access: Access,
        reader: &mut Reader,
        view: &View,
        found: &[Found],
    ) {
        reader.is_stuck = false;
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
        let Some(mut position) = behind else { return };
        let Some(mut due) = due_bytes(access, reader) else {
            return;
        };
        let (mut view, mut ahead) = (view.clone(), reader.ahead_bytes);
        for _ in 0..FILES_AHEAD_MAX {
            let left = (view.segment.bytes as usize).saturating_sub(position);
            let passed = ahead.min(left);
            let asked = due.min(left - passed);
            if asked > 0 && !self.files.ask_for(access, &view, position + passed, asked) {
                reader.is_stuck = !access.may_block();
                return;
            }
            reader.ahead_bytes += asked;
            (ahead, due) = (ahead - passed, due - asked);
            if due == 0 {
                return;
            }
            let Some(behind) = self.lock().index.files.find(view.queue, view.segment.end) else {
                // No more than there is.
                reader.ahead_bytes -= ahead.min(reader.ahead_bytes);
                return;
            };
            (view, position) = (behind, 0);
        }
    }
}

/// How much more is to be requested ahead of a reader.
fn due_bytes(access: Access, reader: &Reader) -> Option<usize> {
    let missing = AHEAD_BYTES.saturating_sub(reader.ahead_bytes);
    let due = reader.is_sequential && access.may_prefetch() && missing >= DUE_BYTES;
    due.then(|| missing.min(asked_bytes_max(access) as usize))
}

pub(in crate::store) const fn asked_bytes_max(access: Access) -> u32 {
    if access.may_block() {
        ASKED_BYTES_MAX
    } else {
        AT_ONCE_AHEAD_BYTES_MAX
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
