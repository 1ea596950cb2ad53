//! The batch: one format on the wire, in the journal, in queue files and at the consumer. `docs/store.md` has
//! the table.
//!
//! A batch is the *producer region*, never changed after the producer wrote it. When the broker serves or moves
//! a batch, it adds a [`Stamp`]. Pure: no clock, no task, no file; bytes from a peer or a disk never panic and
//! never allocate before a limit was checked.
//!
//! ```
//! use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
//! use mq_common::ids::Timestamp;
//!
//! let mut builder = Builder::new(BuilderOptions::default());
//! builder.push(&Record::new(b"hello", Timestamp(1_700_000_000_000)))?;
//! let batch = builder.finish()?;
//! let received = Batch::parse(batch.bytes().clone())?;
//! let records = received.records()?;
//! assert_eq!(records.iter().next().unwrap()?.payload, b"hello");
//! # Ok::<(), mq_common::batch::BatchError>(())
//! ```

mod build;
mod compress;
mod extension;
mod header;
mod record;
mod runs;
mod stamp;
mod view;

pub use build::{Builder, BuilderOptions};
pub use compress::{Compression, InvalidCompression};
pub use extension::{Extension, Extensions};
pub use header::{Header, Producer, REGION_HEADER_BYTES, checksum_of};
pub use record::{EncodedProperties, Properties, PropertiesIter, Record};
pub use runs::Runs;
pub use stamp::{
    STAMP_BYTES, STAMPED_HEADER_BYTES, Stamp, StampedBatch, StampedHeader, split_stamped, stamp_header,
};
pub use view::{Batch, Records, RecordsIter};

use crate::error::{Error, ErrorCode};

/// The version of the format this code writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;

/// Why bytes are not a batch, or why a record cannot be added to one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// There are fewer bytes than the structure has.
    #[error("{actual} bytes are too short for {what}; expected at least {expected}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes it has at least.
        expected: usize,
        /// Bytes there are.
        actual: usize,
    },
    /// A version this code does not know.
    #[error("{what} has format version {version}, this program reads version {known}; update it", known = FORMAT_VERSION)]
    UnsupportedVersion {
        /// Batch or stamp.
        what: &'static str,
        /// The version found.
        version: u8,
    },
    /// Attribute bits this code does not know and must not ignore.
    #[error("the batch needs features 0x{unknown:04x} that this program does not have; update it")]
    UnknownAttributes {
        /// The unknown bits.
        unknown: u16,
    },
    /// An extension this code does not know and must not ignore.
    #[error("the batch needs extension 0x{kind:04x} that this program does not have; update it")]
    UnknownExtension {
        /// Its type.
        kind: u16,
    },
    /// The bytes are not those that were written.
    #[error("{what} is damaged: checksum {computed:08x}, expected {stored:08x}")]
    Checksum {
        /// Batch or stamp.
        what: &'static str,
        /// As stored.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A length field contradicts the bytes there are.
    #[error("{what} states {stated} bytes, {actual} are there")]
    Length {
        /// Which length.
        what: &'static str,
        /// As stated.
        stated: u64,
        /// What is there.
        actual: u64,
    },
    /// The record count is zero, or more than the length allows, or not what the records add up to.
    #[error("the batch states {stated} records, but its {bytes} bytes of records cannot contain that many")]
    RecordCount {
        /// As stated.
        stated: u32,
        /// Bytes of the records, unpacked.
        bytes: u32,
    },
    /// The content breaks the format.
    #[error("{0}")]
    Malformed(&'static str),
    /// A limit is exceeded.
    #[error("{what} has {actual} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// What was found.
        actual: usize,
    },
    /// A record has more properties than allowed.
    #[error("a record has {actual} properties, the limit is {limit}")]
    TooManyProperties {
        /// The limit.
        limit: usize,
        /// What was found.
        actual: usize,
    },
    /// The builder has no room for this record: finish the batch and begin another.
    #[error("the batch is full")]
    Full,
    /// A batch has at least one record.
    #[error("the batch is empty")]
    Empty,
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        let code = match error {
            BatchError::TooLarge { .. } | BatchError::TooManyProperties { .. } | BatchError::Full => {
                ErrorCode::TooLarge
            }
            BatchError::UnsupportedVersion { .. }
            | BatchError::UnknownAttributes { .. }
            | BatchError::UnknownExtension { .. } => ErrorCode::Unsupported,
            _ => ErrorCode::CorruptBatch,
        };
        Self::new(code, error.to_string())
    }
}
