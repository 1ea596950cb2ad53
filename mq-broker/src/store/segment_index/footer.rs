//! The bytes of the `Placed` footer of a sealed segment; pure. Rows sorted by queue and base offset, and at
//! the very end of the file a trailer with their position. It records what `apply` decided, with a checksum
//! of its own, outside the chain of frames. `docs/store.md` has the tables.

use bytes::{Buf, Bytes};
use mq_common::ids::{Lsn, Offset, Term, Timestamp};

use crate::ids::QueueKey;
use crate::log::entry::{Broken, FORMAT_VERSION, block_checksum, check_block};
use crate::store::{Location, PlacedRow, SegmentId};

/// Bytes of a row.
pub const ROW_BYTES: usize = 64;
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 64;

const TRAILER_MAGIC: [u8; 8] = *b"hcmq-plc";

/// The last bytes of a sealed segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The segment.
    pub segment: SegmentId,
    /// Its last entry.
    pub last: Lsn,
    /// The last entry that was synced when this was written.
    pub synced: Lsn,
    /// The checksum of its last frame.
    pub chain: u32,
    /// Position after its last frame.
    pub frames_end: u32,
    /// Position of the rows.
    pub rows_at: u32,
    /// Number of rows.
    pub rows: u32,
    /// CRC-32C of the rows.
    pub rows_checksum: u32,
}

impl Trailer {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        out[16..24].copy_from_slice(&self.segment.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.last.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.synced.0.to_be_bytes());
        out[40..44].copy_from_slice(&self.chain.to_be_bytes());
        out[44..48].copy_from_slice(&self.frames_end.to_be_bytes());
        out[48..52].copy_from_slice(&self.rows_at.to_be_bytes());
        out[52..56].copy_from_slice(&self.rows.to_be_bytes());
        out[56..60].copy_from_slice(&self.rows_checksum.to_be_bytes());
        let crc = block_checksum(&out);
        out[12..16].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads the trailer from the last bytes of a file.
    ///
    /// # Errors
    /// [`Broken::Version`] for an intact trailer of another version, else [`Broken::Header`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Broken> {
        let block = bytes.last_chunk::<TRAILER_BYTES>().ok_or(Broken::End)?;
        let version = check_block(block, &TRAILER_MAGIC)?;
        if version != FORMAT_VERSION {
            return Err(Broken::Version(version));
        }
        let mut rest = &block[16..];
        Ok(Self {
            segment: SegmentId(rest.get_u64()),
            last: Lsn(rest.get_u64()),
            synced: Lsn(rest.get_u64()),
            chain: rest.get_u32(),
            frames_end: rest.get_u32(),
            rows_at: rest.get_u32(),
            rows: rest.get_u32(),
            rows_checksum: rest.get_u32(),
        })
    }

    /// Bytes of its rows.
    #[must_use]
    pub const fn rows_bytes(&self) -> usize {
        self.rows as usize * ROW_BYTES
    }
}

/// The rows' bytes.
#[must_use]
pub fn encode_rows(rows: &[PlacedRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * ROW_BYTES);
    for row in rows {
        out.extend_from_slice(&row.encode());
    }
    out
}

impl PlacedRow {
    /// Its bytes, in the footer and in the checkpoint.
    #[must_use]
    pub fn encode(&self) -> [u8; ROW_BYTES] {
        let mut out = [0; ROW_BYTES];
        out[..4].copy_from_slice(&self.queue.0.to_be_bytes());
        out[4..8].copy_from_slice(&self.count.to_be_bytes());
        out[8..16].copy_from_slice(&self.base_offset.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.lsn.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.term.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.time.0.to_be_bytes());
        out[40..48].copy_from_slice(&self.location.segment.0.to_be_bytes());
        out[48..52].copy_from_slice(&self.location.position.to_be_bytes());
        out[52..56].copy_from_slice(&self.location.bytes.to_be_bytes());
        out[56..60].copy_from_slice(&self.checksum.to_be_bytes());
        out[60..62].copy_from_slice(&self.flags.to_be_bytes());
        out
    }

    /// Reads a row.
    #[must_use]
    pub fn decode(bytes: &[u8; ROW_BYTES]) -> Self {
        let mut rest = &bytes[..];
        let queue = QueueKey(rest.get_u32());
        let count = rest.get_u32();
        Self {
            queue,
            count,
            base_offset: Offset(rest.get_u64()),
            lsn: Lsn(rest.get_u64()),
            term: Term(rest.get_u64()),
            time: Timestamp(rest.get_u64()),
            location: Location {
                segment: SegmentId(rest.get_u64()),
                position: rest.get_u32(),
                bytes: rest.get_u32(),
            },
            checksum: rest.get_u32(),
            flags: rest.get_u16(),
        }
    }

    /// The offset after its last record.
    #[must_use]
    pub const fn end(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(self.count as u64))
    }
}

/// The checked rows of a footer, searched without being decoded.
#[derive(Debug, Clone)]
pub struct FooterRows {
    rows: Bytes,
    rebuilt: bool,
}

impl FooterRows {
    /// Rows that never left this process.
    pub(in crate::store) const fn new(rows: Bytes) -> Self {
        Self { rows, rebuilt: false }
    }

    /// Rows that were rebuilt: they may lack queues.
    pub(in crate::store) const fn rebuilt(rows: Bytes) -> Self {
        Self { rows, rebuilt: true }
    }

    /// Whether they were rebuilt.
    pub(in crate::store) const fn are_rebuilt(&self) -> bool {
        self.rebuilt
    }

    /// The rows of a trailer; `None` if their checksum does not match.
    #[must_use]
    pub fn check(trailer: &Trailer, rows: Bytes) -> Option<Self> {
        let whole = rows.len() == trailer.rows_bytes() && crc32c::crc32c(&rows) == trailer.rows_checksum;
        whole.then_some(Self::new(rows))
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / ROW_BYTES
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rows.len()
    }

    /// One row.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<PlacedRow> {
        let bytes = self.rows.get(index * ROW_BYTES..)?;
        bytes.first_chunk::<ROW_BYTES>().map(PlacedRow::decode)
    }

    /// Index of the row of this queue that contains the offset, or else of the first one after it.
    #[must_use]
    pub fn find(&self, queue: QueueKey, offset: Offset) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let before = self
                .get(middle)
                .is_some_and(|row| (row.queue, row.end()) <= (queue, offset));
            if before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(queue: u32, base: u64, count: u32) -> PlacedRow {
        PlacedRow {
            queue: QueueKey(queue),
            base_offset: Offset(base),
            count,
            location: Location {
                segment: SegmentId(7),
                position: 64,
                bytes: 100,
            },
            checksum: 0x0102_0304,
            lsn: Lsn(12),
            term: Term(3),
            time: Timestamp(99),
            flags: 1,
        }
    }

    fn trailer(rows: &[PlacedRow]) -> (Trailer, Bytes) {
        let bytes = encode_rows(rows);
        let trailer = Trailer {
            segment: SegmentId(7),
            last: Lsn(12),
            synced: Lsn(11),
            chain: 5,
            frames_end: 1000,
            rows_at: 1000,
            rows: u32::try_from(rows.len()).unwrap(),
            rows_checksum: crc32c::crc32c(&bytes),
        };
        (trailer, bytes.into())
    }

    #[test]
    fn rows_and_trailer_come_back() {
        let rows = [row(1, 0, 5), row(1, 5, 1), row(4, 10, 10)];
        let (trailer, bytes) = trailer(&rows);
        assert_eq!(Trailer::decode(&trailer.encode()), Ok(trailer));
        let found = FooterRows::check(&trailer, bytes).unwrap();
        let found: Vec<_> = (0..found.len()).map(|index| found.get(index).unwrap()).collect();
        assert_eq!(found, rows);
    }

    #[test]
    fn s6_every_flipped_bit_of_a_footer_is_detected() {
        let (trailer, bytes) = trailer(&[row(1, 0, 5), row(1, 5, 1)]);
        let block = trailer.encode();
        for bit in 0..block.len() * 8 {
            let mut damaged = block;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&damaged).is_err(), "bit {bit}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FooterRows::check(&trailer, damaged.into()).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn find_gives_the_row_that_contains_the_offset_or_the_next() {
        let (trailer, bytes) = trailer(&[row(1, 0, 5), row(1, 5, 1), row(1, 8, 2), row(4, 10, 10)]);
        let rows = FooterRows::check(&trailer, bytes).unwrap();
        for (queue, offset, index) in [
            (0, 0, 0),
            (1, 0, 0),
            (1, 4, 0),
            (1, 5, 1),
            (1, 6, 2),
            (1, 9, 2),
            (1, 10, 3),
            (2, 0, 3),
            (4, 0, 3),
            (4, 19, 3),
            (4, 20, 4),
        ] {
            assert_eq!(
                rows.find(QueueKey(queue), Offset(offset)),
                index,
                "{queue} {offset}"
            );
        }
    }
}
