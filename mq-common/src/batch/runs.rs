//! What is left of a batch when some of its records go. Offsets are dense within a batch, so it is one batch for each run
//! of records that stay side by side; nobody who reads batches has to know of it.
//!
//! The one invariant: a record that stays keeps its offset, its sequence and every byte of key, tag, properties and
//! payload. How it is stored may differ: its time counts from the first record of its run.

use super::header::has_optional_attributes;
use super::{Batch, BatchError, Builder, BuilderOptions, Producer, Record, Records, RecordsIter};

/// The batches of the records that stay, each with the index of its first record in the old one.
#[derive(Debug)]
pub struct Runs<'a> {
    records: std::iter::Enumerate<RecordsIter<'a>>,
    keep: &'a [bool],
    /// Read, and too much for the run before it.
    waiting: Option<(usize, Record<'a>)>,
    producer: Producer,
    builder: Builder,
}

impl Batch {
    /// Whether nothing but its records and what [`Batch::runs`] makes anew is in it: neither an extension nor an
    /// attribute that a reader may ignore, of which nobody can say what becomes of it when records go.
    #[must_use]
    pub fn can_be_split(&self) -> bool {
        self.header().extension_bytes == 0 && !has_optional_attributes(self.bytes())
    }

    /// The batches of those of its `records` for which `keep` says so; records beyond the end of `keep` go. They keep
    /// producer and codec; a run that packing does not shorten is stored plain.
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
            // There may be very many short ones.
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
                // Times that go back and forth may take more room when they count from another record.
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
