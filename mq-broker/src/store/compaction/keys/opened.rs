//! Batches that a pass takes apart; it copies the others as they are.

use bytes::Bytes;
use mq_common::batch::{Batch, Records};
use mq_common::ids::Offset;

use super::offsets;
use crate::store::PlacedRow;

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

/// Whether a batch contains a tombstone from `start` on.
pub(super) fn has_tombstone(row: &PlacedRow, region: Bytes, start: Offset) -> bool {
    let Some(batch) = Opened::new(region) else {
        return false;
    };
    let mut records = offsets(row).zip(&batch.records);
    records.any(|(offset, record)| {
        start <= offset && record.is_ok_and(|record| record.key.is_some() && record.payload.is_empty())
    })
}
