//! The fixed header of the producer region, and its checksum. Big-endian.

use super::compress::Compression;
use super::{BatchError, FORMAT_VERSION, extension, record};
use crate::ids::Timestamp;
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};

/// Bytes of the fixed header.
pub const REGION_HEADER_BYTES: usize = 64;

/// Bits of the attributes that name the codec.
const ATTRIBUTES_CODEC: u16 = 0b111;
/// Attribute bits a reader may ignore when it does not know them; the others it must understand.
const ATTRIBUTES_OPTIONAL: u16 = 0xf000;
/// The position of the checksum: the only bytes that it does not cover.
const CHECKSUM_AT: usize = 4;

/// The producer of a batch and the batch's position among its others, so that the broker can recognise a
/// repeated one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Producer {
    /// Assigned by the shard; 0 = none, and repetitions are not recognised.
    pub id: u64,
    /// Increases when the producer restarts with the same id.
    pub epoch: u32,
    /// Number of the batch's first record among this producer's records in this queue.
    pub first_sequence: u64,
}

/// The header's fields. The record count is a claim until the records were walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The compression of the records.
    pub compression: Compression,
    /// CRC-32C of all bytes of the region but these four.
    pub checksum: u32,
    /// Bytes of the whole region.
    pub region_bytes: u32,
    /// Records in it, at least 1.
    pub record_count: u32,
    /// Its producer.
    pub producer: Producer,
    /// Time of the first record; the others' times are deltas to it.
    pub base_time: Timestamp,
    /// Bloom filter of the tags, 64 bits, two per tag; see [`Header::may_contain`].
    pub bloom: u64,
    /// How much later than the base time the latest record is, milliseconds, at most `u32::MAX`.
    pub time_span_ms: u32,
    /// Bytes of the uncompressed records.
    pub unpacked_bytes: u32,
    /// Bytes of the extension block.
    pub extension_bytes: u32,
}

impl Header {
    /// False if no record of the batch has this tag; true if one may have it.
    #[must_use]
    pub fn may_contain(&self, tag: &str) -> bool {
        let bits = tag_bits(tag);
        self.bloom & bits == bits
    }

    /// The header as bytes, with the checksum from `self`.
    pub(super) fn encode(&self) -> [u8; REGION_HEADER_BYTES] {
        let mut out = [0; REGION_HEADER_BYTES];
        out[0] = FORMAT_VERSION;
        out[2..4].copy_from_slice(&self.compression.number().to_be_bytes());
        out[4..8].copy_from_slice(&self.checksum.to_be_bytes());
        out[8..12].copy_from_slice(&self.region_bytes.to_be_bytes());
        out[12..16].copy_from_slice(&self.record_count.to_be_bytes());
        out[16..24].copy_from_slice(&self.producer.id.to_be_bytes());
        out[24..32].copy_from_slice(&self.producer.first_sequence.to_be_bytes());
        out[32..36].copy_from_slice(&self.producer.epoch.to_be_bytes());
        out[36..40].copy_from_slice(&self.time_span_ms.to_be_bytes());
        out[40..48].copy_from_slice(&self.base_time.0.to_be_bytes());
        out[48..56].copy_from_slice(&self.bloom.to_be_bytes());
        out[56..60].copy_from_slice(&self.unpacked_bytes.to_be_bytes());
        out[60..64].copy_from_slice(&self.extension_bytes.to_be_bytes());
        out
    }

    /// Reads and checks the header of `region`, which is the whole region: every field against every other
    /// and against the limits. The checksum is not computed.
    pub(super) fn decode(region: &[u8]) -> Result<Self, BatchError> {
        let Some(head) = region.first_chunk::<REGION_HEADER_BYTES>() else {
            return Err(BatchError::Truncated {
                what: "a batch",
                expected: REGION_HEADER_BYTES,
                actual: region.len(),
            });
        };
        if head[0] != FORMAT_VERSION {
            return Err(BatchError::UnsupportedVersion {
                what: "the batch",
                version: head[0],
            });
        }
        if head[1] != 0 {
            return Err(BatchError::Malformed("byte 1 of the batch is not zero"));
        }
        let header = Self {
            compression: compression_of(u16::from_be_bytes([head[2], head[3]]))?,
            checksum: u32_at(head, CHECKSUM_AT),
            region_bytes: u32_at(head, 8),
            record_count: u32_at(head, 12),
            producer: Producer {
                id: u64_at(head, 16),
                first_sequence: u64_at(head, 24),
                epoch: u32_at(head, 32),
            },
            time_span_ms: u32_at(head, 36),
            base_time: Timestamp(u64_at(head, 40)),
            bloom: u64_at(head, 48),
            unpacked_bytes: u32_at(head, 56),
            extension_bytes: u32_at(head, 60),
        };
        header.check_lengths(region)?;
        extension::check(&region[REGION_HEADER_BYTES..header.records_at()])?;
        Ok(header)
    }

    /// The position of the records.
    pub(super) const fn records_at(&self) -> usize {
        REGION_HEADER_BYTES + self.extension_bytes as usize
    }

    fn check_lengths(&self, region: &[u8]) -> Result<(), BatchError> {
        if self.region_bytes as usize != region.len() {
            return Err(BatchError::Length {
                what: "the batch",
                stated: u64::from(self.region_bytes),
                actual: region.len() as u64,
            });
        }
        for (what, actual) in [
            ("the batch", region.len()),
            ("the unpacked batch", self.unpacked_bytes as usize),
        ] {
            if actual > BATCH_BYTES_MAX {
                return Err(BatchError::TooLarge {
                    what,
                    limit: BATCH_BYTES_MAX,
                    actual,
                });
            }
        }
        let Some(stored) = region.len().checked_sub(self.records_at()) else {
            return Err(BatchError::Length {
                what: "the extension block of the batch",
                stated: u64::from(self.extension_bytes),
                actual: (region.len() - REGION_HEADER_BYTES) as u64,
            });
        };
        if !self.compression.can_hold(stored, self.unpacked_bytes as usize) {
            return Err(BatchError::Length {
                what: "the unpacked form of the records",
                stated: u64::from(self.unpacked_bytes),
                actual: stored as u64,
            });
        }
        let records_max = (self.unpacked_bytes / record::RECORD_BYTES_MIN).min(BATCH_RECORDS_MAX);
        if self.record_count == 0 || self.record_count > records_max {
            return Err(BatchError::RecordCount {
                stated: self.record_count,
                bytes: self.unpacked_bytes,
            });
        }
        Ok(())
    }
}

fn compression_of(attributes: u16) -> Result<Compression, BatchError> {
    let unknown = attributes & !(ATTRIBUTES_CODEC | ATTRIBUTES_OPTIONAL);
    if unknown != 0 {
        return Err(BatchError::UnknownAttributes { unknown });
    }
    let codec = attributes & ATTRIBUTES_CODEC;
    Compression::from_number(codec).ok_or(BatchError::UnknownAttributes { unknown: codec })
}

/// Whether the region, which has a whole header, has attributes that a reader may ignore.
pub(super) fn has_optional_attributes(region: &[u8]) -> bool {
    let attributes = region
        .get(2..4)
        .map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    attributes & ATTRIBUTES_OPTIONAL != 0
}

/// The checksum in a producer region, not compared with its bytes; `None` if the region is too short to have
/// one.
#[must_use]
pub fn checksum_of(region: &[u8]) -> Option<u32> {
    region
        .first_chunk::<REGION_HEADER_BYTES>()
        .map(|head| u32_at(head, CHECKSUM_AT))
}

/// CRC-32C of all bytes of the region but the checksum field. The region has a whole header.
pub(super) fn compute_checksum(region: &[u8]) -> u32 {
    let before = crc32c::crc32c(&region[..CHECKSUM_AT]);
    crc32c::crc32c_append(before, &region[CHECKSUM_AT + 4..])
}

/// The two bits of a tag in the Bloom filter: bits 0 to 5 and 6 to 11 of its xxh3-64.
pub(super) fn tag_bits(tag: &str) -> u64 {
    let hash = xxhash_rust::xxh3::xxh3_64(tag.as_bytes());
    (1 << (hash & 63)) | (1 << ((hash >> 6) & 63))
}

fn u32_at(head: &[u8; REGION_HEADER_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&head[at..at + 4]);
    u32::from_be_bytes(bytes)
}

fn u64_at(head: &[u8; REGION_HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&head[at..at + 8]);
    u64::from_be_bytes(bytes)
}
