//! Reading batches from a queue file. The result consists of slices of the bytes read, unchanged. Damaged
//! batches are holes, and so are offsets that the file skips: in a file compacted by keys they are missing on
//! purpose.

use std::io;

use bytes::Bytes;
use mq_common::batch::{Batch, STAMPED_HEADER_BYTES, StampedHeader};
use mq_common::ids::Offset;
use mq_common::limits::BATCH_BYTES_MAX;

use super::marks::{INTERVAL_BYTES, Marks};
use super::walk::{Step, Walk, behind};
use super::{Files, View};
use crate::store::disk::{AtOnce, DiskFile};
use crate::store::found::{check, compacted, hole};
use crate::store::io::unreadable::Around;
use crate::store::{Access, Found, Location, PlacedRow, ReadError, SegmentId};

/// The most bytes read beyond what was requested.
const AHEAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A request to read a file, with the limits of [`crate::store::Store::fetch`].
#[derive(Debug, Clone, Copy)]
struct Wanted {
    from: Offset,
    end: Offset,
    bytes_max: usize,
}

impl Files {
    /// Batches of a segment from `from` on, which is in it, reading as `access` allows.
    ///
    /// # Errors
    /// [`ReadError::QueueFile`]; [`ReadError::WouldBlock`] if `access` does not block.
    pub(in super::super) fn read_by(
        &self,
        access: Access,
        view: &View,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        if access == Access::BypassCache {
            let file = self.file(view)?;
            let marks = self.marks(view, &*file)?;
            let (position, bytes) = read_next(&marks, from, bytes_max);
            file.forget(position, bytes);
        }
        if access.may_block() {
            return self.read(view, from, end, bytes_max);
        }
        let (file, marks) = self.known(view).ok_or(ReadError::WouldBlock)?;
        let file = AtOnce(&*file);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock => ReadError::WouldBlock,
            _ => self.failed(view, source),
        };
        // An index that does not match is rebuilt by a read that may block.
        let start = seek(&file, view, &marks, from)
            .map_err(failed)?
            .ok_or(ReadError::WouldBlock)?;
        let wanted = Wanted { from, end, bytes_max };
        let found = collect(&file, view, &marks, start, wanted).map_err(failed)?;
        // A read that may block rereads damaged batches once.
        if found.iter().any(Found::is_damage) {
            return Err(ReadError::WouldBlock);
        }
        Ok(found)
    }

    /// The same in a file that the disk cannot read everywhere: unreadable bytes are damage.
    ///
    /// # Errors
    /// [`ReadError::QueueFile`]: almost nothing of it can be read.
    pub(in super::super) fn read_around(
        &self,
        view: &View,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let file = self.file(view)?;
        // In small reads, because each unreadable block may take the disk seconds.
        let bytes_max = bytes_max.min(INTERVAL_BYTES as usize);
        self.read_in(&Around::new(&*file), view, Wanted { from, end, bytes_max })
    }

    /// Batches of a segment from `from` on, which is in it. Reads files.
    ///
    /// # Errors
    /// [`ReadError::QueueFile`].
    pub(in super::super) fn read(
        &self,
        view: &View,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let file = self.file(view)?;
        self.read_in(&*file, view, Wanted { from, end, bytes_max })
    }

    fn read_in(&self, file: &dyn DiskFile, view: &View, wanted: Wanted) -> Result<Vec<Found>, ReadError> {
        let mut marks = self.marks(view, file)?;
        let failed = |source| self.failed(view, source);
        let mut start = seek(file, view, &marks, wanted.from).map_err(failed)?;
        if start.is_none() {
            marks = self.make_again(view, file, &marks)?;
            start = seek(file, view, &marks, wanted.from).map_err(failed)?;
        }
        collect(file, view, &marks, start.unwrap_or((0, view.first)), wanted).map_err(failed)
    }

    /// Prefetches bytes of a segment that will be read soon; false = its file is not open, or its index not
    /// in memory.
    pub(in super::super) fn ask_for(
        &self,
        access: Access,
        view: &View,
        position: usize,
        bytes: usize,
    ) -> bool {
        if access.may_block()
            && let Ok(file) = self.file(view)
            && let Err(error) = self.marks(view, &*file)
        {
            // The read that follows will meet it again.
            tracing::debug!(%error, "no read-ahead");
        }
        let known = self.known(view);
        if let Some((file, _)) = &known {
            file.will_read(position as u64, bytes as u64);
        }
        known.is_some()
    }
}

/// Position and length of all that a read may touch: what others read of the file stays in the page cache.
fn read_next(marks: &Marks, from: Offset, bytes_max: usize) -> (u64, u64) {
    let position = marks.at_or_before(from).map_or(0, |mark| mark.position);
    let bytes = bytes_max.max(BATCH_BYTES_MAX) as u64;
    (u64::from(position), 2 * u64::from(INTERVAL_BYTES) + bytes)
}

/// Position and base offset of the last batch that begins at or before `from`, or those of the beginning of
/// the file. `None` = the index points to a position without such a batch.
pub(super) fn seek(
    file: &dyn DiskFile,
    view: &View,
    marks: &Marks,
    from: Offset,
) -> io::Result<Option<(u32, Offset)>> {
    let mut walk = Walk::new(file, view, marks, INTERVAL_BYTES as usize);
    let Some(mark) = marks.at_or_before(from) else {
        return Ok(Some((0, view.first)));
    };
    let header = walk.header(mark.position, view.first)?;
    if header.is_none_or(|header| header.stamp.base_offset != mark.offset) {
        return Ok(None);
    }
    let mut found = (mark.position, mark.offset);
    let mut position = mark.position;
    loop {
        match walk.step(position, found.1)? {
            Step::Batch(header) if header.stamp.base_offset <= from => {
                found = (position, header.stamp.base_offset);
                position = behind(position, &header);
            }
            Step::Damage(Some(mark)) if mark.offset <= from => position = mark.position,
            _ => return Ok(Some(found)),
        }
    }
}

/// A read that must not block returns what comes before the bytes that need the disk.
fn collect(
    file: &dyn DiskFile,
    view: &View,
    marks: &Marks,
    start: (u32, Offset),
    wanted: Wanted,
) -> io::Result<Vec<Found>> {
    let ahead = wanted.bytes_max.saturating_add(STAMPED_HEADER_BYTES * 64);
    let mut walk = Walk::new(file, view, marks, ahead.min(AHEAD_BYTES_MAX));
    let mut answer = Answer::new(wanted);
    match fill(&mut answer, &mut walk, view, start) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !answer.found.is_empty() => {}
        filled => filled?,
    }
    Ok(answer.found)
}

fn fill(
    answer: &mut Answer,
    walk: &mut Walk<'_>,
    view: &View,
    (mut position, mut next): (u32, Offset),
) -> io::Result<()> {
    while next < answer.wanted.end {
        match walk.step(position, next)? {
            Step::End => {
                answer.passed_over(view, next, view.segment.end);
                break;
            }
            Step::Damage(resume) => {
                let (to, at) = resume.map_or((view.segment.end, view.segment.bytes), |mark| {
                    (mark.offset, mark.position)
                });
                answer.hole(next, to, &"the stored bytes are damaged");
                (next, position) = (to, at);
            }
            Step::Batch(header) => {
                let base = header.stamp.base_offset;
                if next < base {
                    answer.passed_over(view, next, base);
                    next = base;
                    continue;
                }
                let whole = header.whole_bytes();
                if answer.is_full(whole, walk.has(position, whole)) {
                    break;
                }
                next = take(walk, view, position, &header, answer)?;
                position = behind(position, &header);
            }
        }
    }
    Ok(())
}

/// Adds a batch, or a hole instead of it; returns the offset after it.
fn take(
    walk: &mut Walk<'_>,
    view: &View,
    position: u32,
    header: &StampedHeader,
    answer: &mut Answer,
) -> io::Result<Offset> {
    let mut region = region(walk, position, header)?;
    if check(&region, header.checksum).is_none() {
        walk.forget(position, header.whole_bytes());
        region = self::region(walk, position, header)?;
    }
    let base = header.stamp.base_offset;
    if check(&region, header.checksum).is_some()
        && let Ok(batch) = Batch::parse(region.clone())
    {
        let row = PlacedRow {
            queue: view.queue,
            base_offset: base,
            count: batch.record_count(),
            location: Location {
                segment: SegmentId(0),
                position,
                bytes: header.region_bytes,
            },
            checksum: header.checksum,
            lsn: header.stamp.lsn,
            term: header.stamp.epoch,
            time: header.stamp.append_time,
            flags: header.stamp.flags,
        };
        let end = row.end();
        answer.batch(row, region);
        return Ok(end);
    }
    // Its number of records cannot be trusted; the start of the next batch can.
    let behind_it = Offset(base.0.saturating_add(1));
    let end = match walk.step(behind(position, header), behind_it)? {
        Step::Batch(next) => next.stamp.base_offset,
        Step::Damage(Some(mark)) => mark.offset,
        Step::Damage(None) | Step::End => view.segment.end,
    };
    answer.hole(base, end, &"the stored bytes are damaged");
    Ok(end)
}

fn region(walk: &mut Walk<'_>, position: u32, header: &StampedHeader) -> io::Result<Bytes> {
    let whole = walk.bytes(position, header.whole_bytes())?;
    Ok(whole.slice(STAMPED_HEADER_BYTES.min(whole.len())..))
}

struct Answer {
    wanted: Wanted,
    found: Vec<Found>,
    bytes: usize,
}

impl Answer {
    const fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            found: Vec::new(),
            bytes: 0,
        }
    }

    /// Whether a batch of this size no longer fits. The first one always does.
    fn is_full(&self, bytes: usize, is_read: bool) -> bool {
        !self.found.is_empty() && (self.bytes + bytes > self.wanted.bytes_max || !is_read)
    }

    fn batch(&mut self, row: PlacedRow, region: Bytes) {
        if row.end() > self.wanted.from {
            self.bytes += region.len();
            self.found.push(Found::Batch { row, region });
        }
    }

    /// Offsets that the file does not contain.
    fn passed_over(&mut self, view: &View, from: Offset, end: Offset) {
        if view.generation > 0 {
            self.without(from, end, compacted);
        } else {
            let reason = "the messages were damaged when they were moved here";
            self.hole(from, end, &reason);
        }
    }

    fn hole(&mut self, from: Offset, end: Offset, reason: &dyn std::fmt::Display) {
        self.without(from, end, |from, end| hole(from, end, reason));
    }

    fn without(&mut self, from: Offset, end: Offset, hole: impl FnOnce(Offset, Offset) -> Found) {
        let (from, end) = (from.max(self.wanted.from), end.min(self.wanted.end));
        if from < end {
            self.found.push(hole(from, end));
        }
    }
}

#[cfg(test)]
mod tests {
    use mq_common::ids::Timestamp;

    use super::super::marks::Mark;
    use super::*;

    #[test]
    fn what_is_read_anew_for_one_reader_is_what_it_reads_and_not_the_file() {
        let mut marks = Marks::default();
        for n in 0..10_000 {
            marks.note(Mark {
                offset: Offset(u64::from(n)),
                time: Timestamp(1),
                position: n * INTERVAL_BYTES,
            });
        }
        let interval = u64::from(INTERVAL_BYTES);
        let (position, bytes) = read_next(&marks, Offset(5000), 1000);
        assert_eq!(position, 5000 * interval);
        let largest = BATCH_BYTES_MAX as u64;
        assert!((largest..largest + 4 * interval).contains(&bytes), "{bytes}");
        assert_eq!(read_next(&Marks::default(), Offset(7), 1).0, 0);
    }
}
