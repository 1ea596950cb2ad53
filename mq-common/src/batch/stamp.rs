//! The stamp: what the broker knows about a batch and its producer did not. It is never in the journal; it is
//! created when a batch is served or copied into a queue file. The served form is `[u32 bytes of stamp and
//! region][stamp][producer region]`.
//!
//! The stamp's checksum also covers the length before it and the checksum of its batch: a stamp in front of
//! another batch is detected without reading that batch.

use bytes::{Buf, Bytes, BytesMut};

use super::{Batch, BatchError, FORMAT_VERSION, REGION_HEADER_BYTES, checksum_of};
use crate::ids::{Lsn, Offset, QueueNumber, Term, Timestamp};
use crate::limits::BATCH_BYTES_MAX;

/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 44;
const STAMP_LENGTH: u32 = 44;
/// Bytes before a served producer region: the length and the stamp.
pub const STAMPED_HEADER_BYTES: usize = 4 + STAMP_BYTES;

/// Where and when a batch was appended. Offsets of its records are dense from the base offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its queue.
    pub queue: QueueNumber,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// The log entry that made it visible.
    pub lsn: Lsn,
    /// The broker's time of that entry.
    pub append_time: Timestamp,
    /// The term of the log in which that entry was written ([`Term`]). The format calls this field the
    /// stamp's epoch; it is not an owner's epoch ([`OwnerEpoch`](crate::ids::OwnerEpoch)).
    pub epoch: Term,
    /// See the constants. Bits 0 to 7 must be understood by a reader, bits 8 to 15 may be ignored.
    pub flags: u16,
}

impl Stamp {
    /// It became visible by the commit of a transaction.
    pub const TRANSACTIONAL: u16 = 1;

    const MUST_UNDERSTAND: u16 = 0x00ff;

    /// The stamp's bytes after its checksum.
    fn encode_body(&self) -> [u8; STAMP_BYTES - 4] {
        let mut out = [0; STAMP_BYTES - 4];
        out[0] = FORMAT_VERSION;
        out[2..4].copy_from_slice(&self.flags.to_be_bytes());
        out[4..8].copy_from_slice(&self.queue.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.base_offset.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.lsn.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.append_time.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_be_bytes());
        out
    }

    fn decode_body(body: &[u8; STAMP_BYTES - 4]) -> Result<Self, BatchError> {
        let mut rest = body.as_slice();
        let version = rest.get_u8();
        if version != FORMAT_VERSION {
            return Err(BatchError::UnsupportedVersion {
                what: "the stamp",
                version,
            });
        }
        if rest.get_u8() != 0 {
            return Err(BatchError::Malformed("byte 5 of the stamp is not zero"));
        }
        let flags = rest.get_u16();
        if flags & Self::MUST_UNDERSTAND & !Self::TRANSACTIONAL != 0 {
            return Err(BatchError::Malformed(
                "the stamp has flags that this program does not know",
            ));
        }
        Ok(Self {
            flags,
            queue: QueueNumber(rest.get_u32()),
            base_offset: Offset(rest.get_u64()),
            lsn: Lsn(rest.get_u64()),
            append_time: Timestamp(rest.get_u64()),
            epoch: Term(rest.get_u64()),
        })
    }

    /// Appends `[u32 length][stamp]` for a region of `region_bytes` bytes with this checksum to `out`.
    pub fn encode(&self, region_bytes: u32, batch_checksum: u32, out: &mut BytesMut) {
        out.extend_from_slice(&stamp_header(self, region_bytes, batch_checksum));
    }
}

/// `[u32 length][stamp]`, which is sent or written in front of an unchanged producer region.
#[must_use]
pub fn stamp_header(stamp: &Stamp, region_bytes: u32, batch_checksum: u32) -> [u8; STAMPED_HEADER_BYTES] {
    let length = (region_bytes + STAMP_LENGTH).to_be_bytes();
    let body = stamp.encode_body();
    let mut out = [0; STAMPED_HEADER_BYTES];
    out[..4].copy_from_slice(&length);
    out[4..8].copy_from_slice(&compute_checksum(length, &body, batch_checksum).to_be_bytes());
    out[8..].copy_from_slice(&body);
    out
}

/// A batch as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedBatch {
    /// Its stamp.
    pub stamp: Stamp,
    /// The batch as its producer wrote it.
    pub batch: Batch,
}

impl StampedBatch {
    /// The offset after its last record.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(
            self.stamp
                .base_offset
                .0
                .saturating_add(u64::from(self.batch.record_count())),
        )
    }
}

/// Takes the first stamped batch off `bytes` and checks stamp and batch, CRCs included; `None` when there are
/// no bytes.
///
/// # Errors
/// What is wrong with it. If the stamp is intact and only the batch is damaged, `bytes` starts after it, so
/// that the caller can continue with the next one; otherwise `bytes` is emptied, because it is unknown where
/// the next one starts.
pub fn split_stamped(bytes: &mut Bytes) -> Result<Option<StampedBatch>, BatchError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (stamp, region) = match split_stamp(bytes) {
        Ok(split) => split,
        Err(error) => {
            bytes.clear();
            return Err(error);
        }
    };
    let batch = Batch::parse(region)?;
    Ok(Some(StampedBatch { stamp, batch }))
}

fn split_stamp(bytes: &mut Bytes) -> Result<(Stamp, Bytes), BatchError> {
    let header = StampedHeader::read(bytes)?;
    let stated = STAMP_BYTES + header.region_bytes as usize;
    if stated > bytes.len() - 4 {
        return Err(BatchError::Length {
            what: "a stamped batch",
            stated: stated as u64,
            actual: (bytes.len() - 4) as u64,
        });
    }
    let mut frame = bytes.split_to(4 + stated);
    frame.advance(STAMPED_HEADER_BYTES);
    Ok((header.stamp, frame))
}

/// The length and stamp in front of a stored or served region, checked without reading more of the region
/// than its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampedHeader {
    /// The batch's stamp.
    pub stamp: Stamp,
    /// Bytes of the region after it.
    pub region_bytes: u32,
    /// The checksum that the region states.
    pub checksum: u32,
}

impl StampedHeader {
    /// Bytes that [`StampedHeader::read`] looks at: the length, the stamp, and the header of the region.
    pub const READ_BYTES: usize = STAMPED_HEADER_BYTES + REGION_HEADER_BYTES;

    /// Reads the header at the beginning of `bytes`. It is valid if its own checksum is right, which also
    /// covers the length and binds it to its batch; the region itself is not checked.
    ///
    /// # Errors
    /// What is wrong with it. It is then unknown where the next batch starts.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        let checksum = bytes.get(STAMPED_HEADER_BYTES..).and_then(checksum_of);
        let (Some(head), Some(checksum)) = (bytes.first_chunk::<STAMPED_HEADER_BYTES>(), checksum) else {
            return Err(BatchError::Truncated {
                what: "a stamped batch",
                expected: STAMPED_HEADER_BYTES + REGION_HEADER_BYTES,
                actual: bytes.len(),
            });
        };
        let stamp = read_stamp(head, checksum)?;
        let stated = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        Ok(Self {
            stamp,
            region_bytes: stated - STAMP_LENGTH,
            checksum,
        })
    }

    /// Bytes of length, stamp and region together.
    #[must_use]
    pub const fn whole_bytes(&self) -> usize {
        STAMPED_HEADER_BYTES + self.region_bytes as usize
    }
}

/// The stamp in a header whose length is possible and whose checksum is right.
fn read_stamp(head: &[u8; STAMPED_HEADER_BYTES], batch_checksum: u32) -> Result<Stamp, BatchError> {
    let length = [head[0], head[1], head[2], head[3]];
    let stated = u32::from_be_bytes(length) as usize;
    if stated > STAMP_BYTES + BATCH_BYTES_MAX {
        return Err(BatchError::TooLarge {
            what: "a stamped batch",
            limit: STAMP_BYTES + BATCH_BYTES_MAX,
            actual: stated,
        });
    }
    if stated < STAMP_BYTES + REGION_HEADER_BYTES {
        return Err(BatchError::Length {
            what: "a stamped batch",
            stated: stated as u64,
            actual: (STAMP_BYTES + REGION_HEADER_BYTES) as u64,
        });
    }
    let mut body = [0; STAMP_BYTES - 4];
    body.copy_from_slice(&head[8..]);
    let stored = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let computed = compute_checksum(length, &body, batch_checksum);
    if stored != computed {
        return Err(BatchError::Checksum {
            what: "the stamp",
            stored,
            computed,
        });
    }
    Stamp::decode_body(&body)
}

/// CRC-32C of the length, the stamp after its checksum, and the checksum of the batch.
fn compute_checksum(length: [u8; 4], body: &[u8; STAMP_BYTES - 4], batch_checksum: u32) -> u32 {
    let mut covered = [0; 4 + STAMP_BYTES - 4 + 4];
    covered[..4].copy_from_slice(&length);
    covered[4..STAMP_BYTES].copy_from_slice(body);
    covered[STAMP_BYTES..].copy_from_slice(&batch_checksum.to_be_bytes());
    crc32c::crc32c(&covered)
}
