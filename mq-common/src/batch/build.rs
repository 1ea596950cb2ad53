//! Building a batch: records are encoded as they arrive, into one buffer, without an allocation per record.

use bytes::BytesMut;

use super::compress::Compression;
use super::header::{self, Header, Producer, REGION_HEADER_BYTES};
use super::record::{self, Record};
use super::{Batch, BatchError};
use crate::ids::Timestamp;
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};

/// How a batch is built.
#[derive(Debug, Clone, Copy)]
pub struct BuilderOptions {
    /// The compression of its records; they are stored plain if compression does not make them shorter.
    pub compression: Compression,
    /// The largest batch in bytes, before compression; at most [`BATCH_BYTES_MAX`].
    pub bytes_max: usize,
    /// The most records; at most [`BATCH_RECORDS_MAX`].
    pub records_max: u32,
    /// Initial capacity in bytes. The buffer grows beyond it if needed.
    pub capacity: usize,
}

impl Default for BuilderOptions {
    fn default() -> Self {
        Self {
            compression: Compression::None,
            bytes_max: BATCH_BYTES_MAX,
            records_max: BATCH_RECORDS_MAX,
            capacity: 4096,
        }
    }
}

/// Collects records into one batch; [`Builder::finish`] leaves it empty, ready for the next one.
#[derive(Debug)]
pub struct Builder {
    options: BuilderOptions,
    /// Space for the header, then the plain records.
    buffer: BytesMut,
    record_count: u32,
    producer: Producer,
    base_time: Timestamp,
    latest: Timestamp,
    bloom: u64,
}

impl Builder {
    /// An empty builder. Limits above those of the format are lowered to them.
    #[must_use]
    pub fn new(mut options: BuilderOptions) -> Self {
        options.bytes_max = options.bytes_max.min(BATCH_BYTES_MAX);
        options.records_max = options.records_max.min(BATCH_RECORDS_MAX);
        Self {
            options,
            buffer: BytesMut::new(),
            record_count: 0,
            producer: Producer::default(),
            base_time: Timestamp(0),
            latest: Timestamp(0),
            bloom: 0,
        }
    }

    /// Appends one record.
    ///
    /// # Errors
    /// `Full`: it does not fit in addition to the records already there (or, in an empty builder, within
    /// `bytes_max`); finish the batch and push it again. `TooLarge`, `TooManyProperties`: it fits into no
    /// batch. The builder is unchanged.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), BatchError> {
        if self.record_count == 0 {
            self.begin(record.time);
        }
        if self.record_count == self.options.records_max {
            return Err(BatchError::Full);
        }
        record::encode(record, self.base_time, self.options.bytes_max, &mut self.buffer)?;
        self.record_count += 1;
        self.latest = self.latest.max(record.time);
        if let Some(tag) = record.tag {
            self.bloom |= header::tag_bits(tag);
        }
        Ok(())
    }

    /// Sets the producer of the following batches.
    pub const fn set_producer(&mut self, producer: Producer) {
        self.producer = producer;
    }

    /// Records pushed so far.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes of the batch so far, including the header, before compression; 0 if it is empty.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.record_count == 0 {
            0
        } else {
            self.buffer.len()
        }
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Compresses and checksums the pushed records, and starts an empty batch.
    ///
    /// # Errors
    /// `Empty` if nothing was pushed.
    pub fn finish(&mut self) -> Result<Batch, BatchError> {
        if self.record_count == 0 {
            return Err(BatchError::Empty);
        }
        let unpacked = self.buffer.len() - REGION_HEADER_BYTES;
        let mut region = self.buffer.split();
        let mut compression = Compression::None;
        if self.options.compression != Compression::None {
            let mut packed = BytesMut::zeroed(REGION_HEADER_BYTES);
            if self
                .options
                .compression
                .pack(&region[REGION_HEADER_BYTES..], &mut packed)
            {
                region = packed;
                compression = self.options.compression;
            }
        }
        let span = self.latest.0.saturating_sub(self.base_time.0);
        let mut header = Header {
            compression,
            checksum: 0,
            region_bytes: length(region.len()),
            record_count: self.record_count,
            producer: self.producer,
            base_time: self.base_time,
            bloom: self.bloom,
            time_span_ms: u32::try_from(span).unwrap_or(u32::MAX),
            unpacked_bytes: length(unpacked),
            extension_bytes: 0,
        };
        region[..REGION_HEADER_BYTES].copy_from_slice(&header.encode());
        header.checksum = header::compute_checksum(&region);
        region[..REGION_HEADER_BYTES].copy_from_slice(&header.encode());
        self.record_count = 0;
        Ok(Batch::from_parts(header, region.freeze()))
    }

    fn begin(&mut self, time: Timestamp) {
        self.buffer.clear();
        self.buffer
            .reserve(REGION_HEADER_BYTES.max(self.options.capacity));
        self.buffer.resize(REGION_HEADER_BYTES, 0);
        self.base_time = time;
        self.latest = time;
        self.bloom = 0;
    }
}

/// A length that the limits keep far below `u32::MAX`.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a batch is at most 8 MiB")
}
