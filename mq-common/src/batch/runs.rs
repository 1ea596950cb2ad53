//! Removing records from a batch. Offsets are dense within a batch, so the result is one batch for each run
//! of consecutive retained records; readers of batches do not notice.
//!
//! The one invariant: a retained record keeps its offset, its sequence and every byte of key, tag, properties
//! and payload. Its encoding may differ: its time is relative to the first record of its run.

use super::header::has_optional_attributes;
use super::{Batch, BatchError, Builder, BuilderOptions, Producer, Record, Records, RecordsIter};

/// The batches of the retained records, each with the index of its first record in the original batch.
#[derive(Debug)]
pub struct Runs<'a> {
    records: std::iter::Enumerate<RecordsIter<'a>>,
    keep: &'a [bool],
    /// A record that was read, but did not fit into the previous run.
    waiting: Option<(usize, Record<'a>)>,
    producer: Producer,
    builder: Builder,
}

impl Batch {
    /// Whether it contains nothing but its records and what [`Batch::runs`] rebuilds: no extension and no
    /// ignorable attribute, since it is unknown what removing records would mean for these.
    #[must_use]
    pub fn can_be_split(&self) -> bool {
        self.header().extension_bytes == 0 && !has_optional_attributes(self.bytes())
    }

    /// The batches of those of its `records` for which `keep` is true; records beyond the end of `keep` are
    /// removed. The batches keep the producer and the codec; a run that compression does not shorten is stored
    /// plain.
    ///
    /// ```
    /// # use mq_common::batch::{Batch, BatchError, Builder, BuilderOptions, Record};
    /// # use mq_common::ids::Timestamp;
    /// let mut builder = Builder::new(BuilderOptions::default());
    /// for payload in ["a", "b", "c", "d"] {
    ///     builder.push(&Record::new(payload.as_bytes(), Timestamp(7)))?;
    /// }
    /// let batch = builder.finish()?;
    /// let records = batch.records()?;
    /// let runs: Vec<(u32, Batch)> = batch.runs(&records, &[true, false, true, true]).collect::<Result<_, _>>()?;
    /// assert_eq!((runs[0].0, runs[0].1.record_count()), (0, 1));
    /// assert_eq!((runs[1].0, runs[1].1.record_count()), (2, 2));
    /// # Ok::<(), BatchError>(())
    /// ```
    #[must_use]
    pub fn runs<'a>(&self, records: &'a Records, keep: &'a [bool]) -> Runs<'a> {
        let builder = Builder::new(BuilderOptions {
            compression: self.compression(),
            // There may be very many short runs.
            capacity: 0,
            ..BuilderOptions::default()
        });
        Runs {
            records: records.iter().enumerate(),
            keep,
            waiting: None,
            producer: self.producer(),
            builder,
        }
    }
}

impl Iterator for Runs<'_> {
    /// Fails once where the records end too early or do not hold.
    type Item = Result<(u32, Batch), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut first = None;
        loop {
            let (index, record) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match self.records.next() {
                    Some((index, Ok(record))) => (index, record),
                    Some((_, Err(error))) => return Some(Err(error)),
                    None => break,
                },
            };
            if !self.keep.get(index).copied().unwrap_or(false) {
                if first.is_some() {
                    break;
                }
                continue;
            }
            match self.builder.push(&record) {
                Ok(()) => _ = first.get_or_insert(index),
                // Times that are not monotonic may take more bytes relative to another record.
                Err(BatchError::Full) if first.is_some() => {
                    self.waiting = Some((index, record));
                    break;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        let first = u32::try_from(first?).expect("a batch has at most 2^20 records");
        self.builder.set_producer(Producer {
            first_sequence: self.producer.first_sequence.wrapping_add(u64::from(first)),
            ..self.producer
        });
        Some(self.builder.finish().map(|batch| (first, batch)))
    }
}
