//! Reading batches from the journal's segments: those that lie close together in one read, of which each is a slice.

use std::io;

use bytes::Bytes;

use super::disk::{read_up_to_at, try_read_up_to_at};
use super::found::{check, hole};
use super::{Access, Found, Location, PlacedRow, ReadError, Store};

/// Two batches with at most so many bytes between them are read at once.
const GAP_BYTES_MAX: u32 = 4096;

impl Store {
    /// Reads the regions of rows, several at once where they lie close together.
    pub(super) fn read(&self, access: Access, rows: &[PlacedRow]) -> Result<Vec<Found>, ReadError> {
        let mut found = Vec::with_capacity(rows.len());
        let runs = rows.chunk_by(|one, next| {
            let end = one.location.position.saturating_add(one.location.bytes);
            one.location.segment == next.location.segment
                && next
                    .location
                    .position
                    .checked_sub(end)
                    .is_some_and(|gap| gap <= GAP_BYTES_MAX)
        });
        for run in runs {
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
            let span = self.read_span(access, place)?;
            for row in run {
                let from = ((row.location.position - start) as usize).min(span.len());
                let region =
                    span.slice(from..(from.saturating_add(row.location.bytes as usize)).min(span.len()));
                let region = match check(&region, row.checksum) {
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

    /// A batch that did not hold, read once more and past the system's memory: that fails, too, and what a round of
    /// compaction leaves out as damaged is gone. `None` = it does not hold on the disk either.
    pub(super) fn read_anew(&self, access: Access, row: &PlacedRow) -> Result<Option<Bytes>, ReadError> {
        let Location {
            segment,
            position,
            bytes,
        } = row.location;
        if access == Access::AtOnce {
            return Err(ReadError::Waits);
        }
        self.segments
            .file(segment)?
            .forget(u64::from(position), u64::from(bytes));
        let region = self.read_span(Access::WaitsSparing, row.location)?;
        Ok(check(&region, row.checksum).map(|()| region))
    }

    /// The bytes of a place; fewer if the file ends before.
    pub(super) fn read_span(&self, access: Access, place: Location) -> Result<Bytes, ReadError> {
        let segment = place.segment;
        let (bytes, position) = (place.bytes as usize, u64::from(place.position));
        let file = self.segments.file_by(access, segment)?;
        let read = match access {
            Access::AtOnce => try_read_up_to_at(&*file, bytes, position),
            Access::Waits | Access::WaitsSparing => read_up_to_at(&*file, bytes, position),
        };
        let read = read.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => ReadError::Waits,
            _ => ReadError::Io { segment, source },
        })?;
        let end = position + read.len() as u64;
        let wanted = access != Access::WaitsSparing;
        if let Some(next) = self.read_ahead.next(segment, position..end, wanted) {
            file.will_read(next.start, next.end - next.start);
        }
        Ok(read.into())
    }
}
