//! Reading a batch: checked once, decoded lazily, without copying from uncompressed ones.

use bytes::Bytes;

use super::extension::Extensions;
use super::header::{self, Header, REGION_HEADER_BYTES};
use super::record::{self, Record};
use super::{BatchError, Compression, Producer};
use crate::ids::Timestamp;

/// A producer region with a valid header. Cloning copies no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    header: Header,
}

impl Batch {
    /// Checks everything but the records themselves: length, version, limits, extensions, and the CRC-32C of
    /// the whole region. Costs one pass of CRC and no allocation; never walks records.
    ///
    /// # Errors
    /// Any [`BatchError`] that says what is wrong with the bytes.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let batch = Self::parse_trusted(bytes)?;
        let computed = header::compute_checksum(&batch.bytes);
        if computed != batch.header.checksum {
            return Err(BatchError::Checksum {
                what: "the batch",
                stored: batch.header.checksum,
                computed,
            });
        }
        Ok(batch)
    }

    /// As [`Batch::parse`], but without the CRC: for bytes that were checked before and have not left this
    /// process.
    ///
    /// # Errors
    /// As [`Batch::parse`], but for the checksum.
    pub fn parse_trusted(bytes: Bytes) -> Result<Self, BatchError> {
        let header = Header::decode(&bytes)?;
        Ok(Self { bytes, header })
    }

    pub(super) const fn from_parts(header: Header, bytes: Bytes) -> Self {
        Self { bytes, header }
    }

    /// The producer region.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The producer region, by value.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Bytes of the producer region; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The header's fields.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// CRC-32C of the region.
    #[must_use]
    pub const fn checksum(&self) -> u32 {
        self.header.checksum
    }

    /// The number of records that its producer stated: at least 1, and not more than the length allows.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.header.record_count
    }

    /// Its producer.
    #[must_use]
    pub const fn producer(&self) -> Producer {
        self.header.producer
    }

    /// Time of its first record.
    #[must_use]
    pub const fn base_time(&self) -> Timestamp {
        self.header.base_time
    }

    /// The Bloom filter of its tags.
    #[must_use]
    pub const fn bloom(&self) -> u64 {
        self.header.bloom
    }

    /// The compression of its records.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.header.compression
    }

    /// Its extensions.
    #[must_use]
    pub fn extensions(&self) -> Extensions<'_> {
        Extensions::new(&self.bytes[REGION_HEADER_BYTES..self.header.records_at()])
    }

    /// The records, decompressed once; free for a plain batch.
    ///
    /// # Errors
    /// The compressed block is damaged or does not have the stated length.
    pub fn records(&self) -> Result<Records, BatchError> {
        let stored = self.bytes.slice(self.header.records_at()..);
        let unpacked = self.header.unpacked_bytes as usize;
        let bytes = self.header.compression.unpack(stored, unpacked)?;
        Ok(Records {
            bytes,
            base_time: self.header.base_time,
            count: self.header.record_count,
        })
    }
}

/// The uncompressed records of a batch.
#[derive(Debug, Clone)]
pub struct Records {
    bytes: Bytes,
    base_time: Timestamp,
    count: u32,
}

impl Records {
    /// The plain bytes that the records borrow from, for [`Bytes::slice_ref`].
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records in order; the n-th has the batch's base offset plus n. Ends after the first error, and
    /// with one if the stated count is not what the bytes hold.
    #[must_use]
    pub fn iter(&self) -> RecordsIter<'_> {
        RecordsIter {
            rest: &self.bytes,
            records: self,
            left: self.count,
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<Record<'a>, BatchError>;
    type IntoIter = RecordsIter<'a>;
    fn into_iter(self) -> RecordsIter<'a> {
        self.iter()
    }
}

/// Iterates over the records of a batch.
#[derive(Debug, Clone)]
pub struct RecordsIter<'a> {
    rest: &'a [u8],
    records: &'a Records,
    left: u32,
}

impl<'a> RecordsIter<'a> {
    fn fail(&mut self, error: BatchError) -> Option<Result<Record<'a>, BatchError>> {
        self.rest = &[];
        self.left = 0;
        Some(Err(error))
    }

    fn wrong_count(&self) -> BatchError {
        BatchError::RecordCount {
            stated: self.records.count,
            bytes: u32::try_from(self.records.bytes.len()).unwrap_or(u32::MAX),
        }
    }
}

impl<'a> Iterator for RecordsIter<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return if self.rest.is_empty() {
                None
            } else {
                self.fail(self.wrong_count())
            };
        }
        if self.rest.is_empty() {
            return self.fail(self.wrong_count());
        }
        match record::decode(self.rest, self.records.base_time) {
            Ok((record, rest)) => {
                self.rest = rest;
                self.left -= 1;
                Some(Ok(record))
            }
            Err(error) => self.fail(error),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize + 1))
    }
}
