//! Batches that a pass takes apart; it copies the others as they are.

use bytes::Bytes;
use mq_common::batch::{Batch, Records};

/// A batch that can be taken apart: all its records can be read and written again.
pub(super) struct Opened {
    pub(super) batch: Batch,
    pub(super) records: Records,
}

impl Opened {
    /// `None` also for a batch whose producer misstated its records, or made one larger than any may be.
    pub(super) fn new(region: Bytes) -> Option<Self> {
        let batch = Batch::parse_trusted(region).ok().filter(Batch::can_be_split)?;
        let records = batch.records().ok()?;
        records
            .iter()
            .all(|record| record.is_ok_and(|record| record.check().is_ok()))
            .then_some(Self { batch, records })
    }
}
