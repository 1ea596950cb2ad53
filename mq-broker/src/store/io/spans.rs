//! Reading batches from the journal's segments: those that are close together in one read, of which each is a
//! slice.

use std::io;
use std::time::Instant;

use bytes::Bytes;

use crate::store::disk::{read_up_to_at, try_read_up_to_at};
use crate::store::found::{check, hole};
use crate::store::prefetch::readers::Reader;
use crate::store::{Access, Found, Location, PlacedRow, ReadError, Store};

/// Two batches with at most this many bytes between them are read at once.
const GAP_BYTES_MAX: u32 = 4096;
/// Two batches with at most this many bytes between them are requested at once: the disk passes over those in
/// about the time of another request.
const ASKED_GAP_BYTES_MAX: u32 = 32 * 1024;
/// Bytes from which on a request is large enough.
const SPAN_BYTES_MAX: u32 = 1024 * 1024;
/// Requests made at once.
const ASKED_MAX: usize = 128;
/// Reads of one fetch that may block on the disk: each may be a seek, and others wait for the slot.
pub(super) const READS_MAX: usize = 1024;
/// The same for a fetch on a thread that others wait for: about a millisecond.
const AT_ONCE_READS_MAX: usize = 256;

impl Store {
    /// Reads the regions of rows, several at once where they are close together. A read that must not block
    /// returns the first ones, those that are in memory.
    pub(in crate::store) fn read(&self, access: Access, rows: &[PlacedRow]) -> Result<Vec<Found>, ReadError> {
        let mut found = Vec::with_capacity(rows.len());
        let runs = rows.chunk_by(|one, next| are_close(one, next, GAP_BYTES_MAX));
        for run in runs.flat_map(short) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            if first.location == Location::default() {
                // Never stored: see [`Index::place`].
                found.extend(
                    run.iter()
                        .map(|row| hole(row.base_offset, row.end(), &"the batch was never stored")),
                );
                continue;
            }
            let start = first.location.position;
            let place = Location {
                bytes: (last.location.position - start).saturating_add(last.location.bytes),
                ..first.location
            };
            let span = match self.read_span(access, place) {
                // The rest is left to a thread that may block.
                Err(ReadError::WouldBlock) if !found.is_empty() => break,
                span => span?,
            };
            let wanted: usize = run.iter().map(|row| row.location.bytes as usize).sum();
            // Slices would keep the bytes between them in memory.
            let apart = 2 * wanted < span.len();
            for row in run {
                let from = ((row.location.position - start) as usize).min(span.len());
                let region =
                    span.slice(from..(from.saturating_add(row.location.bytes as usize)).min(span.len()));
                let region = match check(&region, row.checksum) {
                    Some(()) if apart => Some(Bytes::copy_from_slice(&region)),
                    Some(()) => Some(region),
                    None => self.read_anew(access, row)?,
                };
                found.push(match region {
                    Some(region) => Found::Batch { row: *row, region },
                    None => hole(row.base_offset, row.end(), &"the stored bytes are damaged"),
                });
            }
        }
        Ok(found)
    }

    /// A damaged batch, read once more bypassing the page cache: that can be wrong, too, and what a
    /// compaction round leaves out as damaged is lost. `None` = it is damaged on the disk as well.
    pub(in crate::store) fn read_anew(
        &self,
        access: Access,
        row: &PlacedRow,
    ) -> Result<Option<Bytes>, ReadError> {
        if !access.may_block() {
            return Err(ReadError::WouldBlock);
        }
        let region = self.read_span(Access::BypassCache, row.location)?;
        Ok(check(&region, row.checksum).map(|()| region))
    }

    /// The bytes of a location; fewer if the file ends before.
    pub(in crate::store) fn read_span(&self, access: Access, place: Location) -> Result<Bytes, ReadError> {
        let segment = place.segment;
        let (bytes, position) = (place.bytes as usize, u64::from(place.position));
        let file = self.segments.file_by(access, segment)?;
        if access == Access::BypassCache {
            file.forget(position, bytes as u64);
        }
        let read = if access.may_block() {
            read_up_to_at(&*file, bytes, position)
        } else {
            try_read_up_to_at(&*file, bytes, position)
        };
        let read = read.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => ReadError::WouldBlock,
            _ => ReadError::Io { segment, source },
        })?;
        Ok(read.into())
    }

    /// Requests the regions of rows, each alone or with others near it, so that the disk fetches them
    /// together; or the whole stretches that cover them, where those are being read by others, too. At most
    /// this many bytes, including what is between the regions. Returns for how many rows, in order.
    pub(in crate::store) fn ask_for(
        &self,
        access: Access,
        reader: &Reader,
        rows: &[PlacedRow],
        bytes_max: u32,
    ) -> usize {
        let now = Instant::now();
        let (mut asked, mut left) = (0, bytes_max);
        let mut shared = None;
        for _ in 0..ASKED_MAX {
            let Some((place, count)) = first_span(&rows[asked..]) else {
                break;
            };
            if left == 0 {
                break;
            }
            // A batch that was never stored has no location.
            if place != Location::default() {
                // The read will report what is wrong with it, or that another thread must open it.
                let Ok(file) = self.segments.file_by(access, place.segment) else {
                    break;
                };
                let (_, is_shared) = match shared {
                    Some(known @ (segment, _)) if segment == place.segment => known,
                    _ => *shared.insert((place.segment, self.is_shared(access, reader, place.segment, now))),
                };
                for ask in self.read_ahead.to_ask(place, is_shared, now) {
                    file.will_read(u64::from(ask.position), u64::from(ask.bytes));
                    left = left.saturating_sub(ask.bytes);
                }
            }
            asked += count;
        }
        asked
    }
}

/// The first rows, those that one fetch reads: small batches of a queue between those of others take a read
/// each.
pub(in crate::store) fn first_reads(access: Access, rows: &[PlacedRow]) -> &[PlacedRow] {
    let max = if access.may_block() {
        READS_MAX
    } else {
        AT_ONCE_READS_MAX
    };
    let runs = rows.chunk_by(|one, next| are_close(one, next, GAP_BYTES_MAX));
    let count: usize = runs.take(max).map(<[_]>::len).sum();
    &rows[..count]
}

/// Whether one read returns all of them.
pub(in crate::store) fn is_one_read(rows: &[PlacedRow]) -> bool {
    rows.windows(2)
        .all(|pair| are_close(&pair[0], &pair[1], GAP_BYTES_MAX))
}

fn are_close(one: &PlacedRow, next: &PlacedRow, gap_bytes_max: u32) -> bool {
    let end = one.location.position.saturating_add(one.location.bytes);
    let gap = next.location.position.checked_sub(end);
    one.location.segment == next.location.segment && gap.is_some_and(|gap| gap <= gap_bytes_max)
}

/// The first rows that are requested at once, as one location, and their number.
fn first_span(rows: &[PlacedRow]) -> Option<(Location, usize)> {
    let first = rows.first()?;
    let (mut last, mut count) = (first, 1);
    let mut bytes = first.location.bytes;
    for row in &rows[1..] {
        if bytes >= SPAN_BYTES_MAX || !are_close(last, row, ASKED_GAP_BYTES_MAX) {
            break;
        }
        bytes = (row.location.position - first.location.position).saturating_add(row.location.bytes);
        (last, count) = (row, count + 1);
    }
    let place = Location {
        bytes,
        ..first.location
    };
    Some((place, count))
}

/// Groups batches that are close together so that none of the reads is too long: the bytes between them must
/// not take more memory than is accounted for. One large batch may be longer.
fn short(run: &[PlacedRow]) -> impl Iterator<Item = &[PlacedRow]> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let start = rest.first()?.location.position;
        let end = |row: &PlacedRow| row.location.position.saturating_add(row.location.bytes);
        let fits = |row: &&PlacedRow| end(row).saturating_sub(start) <= SPAN_BYTES_MAX;
        let (piece, behind) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = behind;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::QueueKey;
    use crate::store::SegmentId;
    use mq_common::ids::Offset;

    fn row(position: u32, bytes: u32) -> PlacedRow {
        PlacedRow {
            queue: QueueKey(1),
            base_offset: Offset(position.into()),
            count: 1,
            location: Location {
                segment: SegmentId(1),
                position,
                bytes,
            },
            checksum: 0,
            lsn: Default::default(),
            term: Default::default(),
            time: Default::default(),
            flags: 0,
        }
    }

    #[test]
    fn reads_are_short_but_for_one_large_batch_and_nothing_is_left_out() {
        let mut rows: Vec<_> = (0..1000).map(|number| row(number * 4000, 100)).collect();
        rows.push(row(4_000_000, 3_000_000));
        rows.push(row(7_000_100, 50));
        let pieces: Vec<_> = rows
            .chunk_by(|one, next| are_close(one, next, GAP_BYTES_MAX))
            .flat_map(short)
            .collect();
        assert!(pieces.len() >= 5, "{}", pieces.len());
        assert_eq!(pieces.concat(), rows);
        for piece in pieces {
            let (first, last) = (piece.first().unwrap().location, piece.last().unwrap().location);
            let span = last.position + last.bytes - first.position;
            assert!(span <= SPAN_BYTES_MAX || piece.len() == 1, "{span}");
        }
    }

    #[test]
    fn one_fetch_makes_so_many_reads_however_small_the_batches() {
        let rows = |apart: u32| (0..2000).map(|at| row(at * apart, 100)).collect::<Vec<_>>();
        let (near, far) = (rows(200), rows(10_000));
        assert_eq!(
            first_reads(Access::Blocking, &near).len(),
            2000,
            "one read brings all"
        );
        assert_eq!(first_reads(Access::Blocking, &far).len(), READS_MAX);
        assert_eq!(first_reads(Access::CacheOnly, &far).len(), AT_ONCE_READS_MAX);
    }
}
