//! Reads a queue file batch by batch, also after damage: for checking or showing what is stored. Needs no
//! index, reads one batch at a time, and changes nothing.

use std::io;

use bytes::Bytes;
use mq_common::batch::{Batch, STAMPED_HEADER_BYTES, StampedHeader};
use mq_common::ids::{Offset, QueueNumber};

use super::disk::{DiskFile, read_up_to_at};

/// Bytes searched at once for the next batch.
const SEARCH_BYTES: usize = 1 << 20;

/// What a file should hold, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// Number of its bytes that are in use; all if unknown.
    pub bytes: Option<u32>,
    /// The queue of its batches.
    pub queue: Option<QueueNumber>,
    /// The offset after its last one.
    pub end: Option<Offset>,
}

/// Something found in a queue file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StampedPiece {
    /// A batch whose stamp is intact.
    Batch {
        /// Bytes before it in the file.
        position: u32,
        /// The stamp and header before its region.
        header: StampedHeader,
        /// Its records; `None` = its region is damaged.
        records: Option<u32>,
    },
    /// Bytes that are no batch.
    Damaged {
        /// Their first position.
        position: u32,
        /// The position after them.
        end: u32,
    },
}

/// The position of the reader in the file.
#[derive(Debug, Clone, Copy)]
pub struct StampedInspection {
    expected: Expected,
    position: u32,
    next: Offset,
}

impl StampedInspection {
    /// From the first batch on; `first` is the file's first offset.
    #[must_use]
    pub const fn begin(first: Offset, expected: Expected) -> Self {
        Self {
            expected,
            position: 0,
            next: first,
        }
    }

    /// Its position: after the last piece.
    #[must_use]
    pub const fn position(&self) -> u32 {
        self.position
    }

    /// No batch after the last piece begins below this offset. After an intact batch, it is that batch's end.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.next
    }

    /// The next piece; `None` = the rest of the file is not in use.
    ///
    /// # Errors
    /// As the disk says; ask again, or go on elsewhere.
    pub fn next(&mut self, file: &dyn DiskFile) -> io::Result<Option<StampedPiece>> {
        let limit = match self.expected.bytes {
            Some(bytes) => bytes,
            None => u32::try_from(file.bytes()?).unwrap_or(u32::MAX),
        };
        if self.position >= limit {
            return Ok(None);
        }
        let position = self.position;
        let head = read_up_to_at(file, StampedHeader::READ_BYTES, u64::from(position))?;
        let Some(header) = self.header(&head, limit - position) else {
            let end = self.find(file, limit)?.unwrap_or(limit);
            self.position = end;
            return Ok(Some(StampedPiece::Damaged { position, end }));
        };
        let region_at = u64::from(position) + STAMPED_HEADER_BYTES as u64;
        let region = read_up_to_at(file, header.region_bytes as usize, region_at)?;
        let batch = Batch::parse(Bytes::from(region)).ok();
        let records = batch
            .filter(|batch| batch.checksum() == header.checksum)
            .map(|batch| batch.record_count());
        self.position = position.saturating_add(u32::try_from(header.whole_bytes()).unwrap_or(u32::MAX));
        let least = records.unwrap_or(1);
        self.next = Offset(header.stamp.base_offset.0.saturating_add(u64::from(least)));
        Ok(Some(StampedPiece::Batch {
            position,
            header,
            records,
        }))
    }

    /// The header, if it is intact and can belong to this file, of which this many bytes are left.
    fn header(&self, bytes: &[u8], left: u32) -> Option<StampedHeader> {
        let header = StampedHeader::read(bytes).ok()?;
        let base = header.stamp.base_offset;
        let fits = header.whole_bytes() <= left as usize
            && base >= self.next
            && self.expected.end.is_none_or(|end| base < end)
            && self
                .expected
                .queue
                .is_none_or(|queue| header.stamp.queue == queue);
        fits.then_some(header)
    }

    /// The next position of an intact header.
    fn find(&self, file: &dyn DiskFile, limit: u32) -> io::Result<Option<u32>> {
        let mut from = self.position + 1;
        while from < limit {
            let wanted = (SEARCH_BYTES + StampedHeader::READ_BYTES).min((limit - from) as usize);
            let bytes = read_up_to_at(file, wanted, u64::from(from))?;
            let windows = (from..limit).zip(bytes.windows(StampedHeader::READ_BYTES));
            // Lengths begin with a zero byte, since batches are at most 8 MiB, and their stamps with version
            // 1: the cheap check first.
            let mut possible = windows.filter(|(_, window)| window[0] == 0 && window[8] == 1);
            let found = possible.find(|(at, window)| self.header(window, limit - at).is_some());
            if let Some((at, _)) = found {
                return Ok(Some(at));
            }
            if bytes.len() < wanted {
                break;
            }
            from = from.saturating_add(u32::try_from(SEARCH_BYTES).unwrap_or(u32::MAX));
        }
        Ok(None)
    }
}
