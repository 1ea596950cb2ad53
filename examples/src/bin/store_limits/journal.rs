//! The broker's journal and store without any network: groups of commands through log and store, over few and
//! many queues.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use mq_broker::ids::QueueKey;
use mq_broker::log::{Applier, Command, Entry, Log, PlacedRow, Purpose, SegmentId, Settings, Solo, Want};
use mq_broker::state::{Placement, Source};
use mq_broker::store::disk::StdDisk;
use mq_broker::store::{Folder, Store, Update};
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{Durability, Lsn, Offset, Timestamp};
use serde_json::{Value, json};

use super::{Failure, megabytes, micros, rate};

/// The load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Payload bytes of a record.
    pub(super) record_bytes: usize,
    /// Records of a batch; each command has one batch.
    pub(super) records: usize,
    /// Commands of a turn.
    pub(super) commands: u64,
    /// Queues in turn.
    pub(super) queues: usize,
    pub(super) want: Want,
}

/// A journal with its store, and the end of each queue.
pub(super) struct Journal {
    pub(super) placing: Placing,
    log: Solo<()>,
    _folder: Arc<Folder>,
    started: Instant,
}

impl Journal {
    /// A new one in `data`, with this many bytes of memory for the newest batches.
    pub(super) fn create(data: &Path, queues: usize, tail_bytes: usize) -> Result<Self, Failure> {
        let folder = Folder::open(Arc::new(StdDisk), data)?;
        let mut placing = Placing::new(&folder, queues, tail_bytes);
        let log = Solo::open(&folder, Settings::default(), Lsn(0), Timestamp(0), &mut placing)?;
        Ok(Self {
            placing,
            log,
            _folder: folder,
            started: Instant::now(),
        })
    }

    /// One turn with these commands, until all of them are answered.
    pub(super) fn append(&mut self, batch: &Batch, commands: u64, want: Want) -> Result<(), Failure> {
        let meta = Bytes::from_static(&[0; 16]);
        for _ in 0..commands {
            let command = Command::new(meta.clone(), vec![batch.clone()]);
            self.log.propose(command, want)?;
        }
        let mut missing = commands;
        while missing > 0 {
            let now = Timestamp(u64::try_from(self.started.elapsed().as_millis())?);
            self.log.turn(now, &mut self.placing)?;
            missing -= self.log.completions().count() as u64;
        }
        Ok(())
    }

    /// Seals the segment that is being written, even if it is nearly empty.
    pub(super) fn seal(&mut self) -> Result<(), Failure> {
        match self.log.seal_segment(&mut self.placing, Purpose::Frees)? {
            None => Ok(()),
            Some(refused) => Err(refused.into()),
        }
    }
}

/// Appends for some time; the figure.
pub(super) fn journal(folder: &Path, load: Load, time: Duration) -> Result<Value, Failure> {
    let data = folder.join("journal");
    let mut journal = Journal::create(&data, load.queues, 64 * 1024 * 1024)?;
    let batch = batch(load.record_bytes, load.records)?;
    let mut latency = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < time {
        let begun = Instant::now();
        journal.append(&batch, load.commands, load.want)?;
        done += load.commands;
        latency.record(micros(begun.elapsed()))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(journal);
    std::fs::remove_dir_all(&data)?;
    let messages = done * load.records as u64;
    Ok(json!({
        "figure": "journal", "record_bytes": load.record_bytes, "records": load.records, "group": load.commands,
        "queues": load.queues, "synced": load.want == Want::Synced,
        "msgs_per_s": rate(messages, seconds), "commands_per_s": rate(done, seconds),
        "turns_per_s": rate(latency.len(), seconds),
        "mb_per_s": megabytes(usize::try_from(messages)? * load.record_bytes, seconds),
        "p50_us": latency.value_at_quantile(0.5), "p99_us": latency.value_at_quantile(0.99),
    }))
}

/// A batch of random bytes, so that it cannot be compressed.
pub(super) fn batch(record_bytes: usize, records: usize) -> Result<Batch, Failure> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut builder = Builder::new(BuilderOptions::default());
    for _ in 0..records {
        let body: Vec<u8> = (0..record_bytes).map(|_| random.u8(..)).collect();
        builder.push(&Record::new(&body, Timestamp(0)))?;
    }
    Ok(builder.finish()?)
}

/// Places each batch in the next queue.
pub(super) struct Placing {
    pub(super) store: Store,
    /// The end of each queue.
    pub(super) ends: Vec<u64>,
    next: usize,
    placements: Vec<Placement>,
}

impl Placing {
    fn new(folder: &Arc<Folder>, queues: usize, tail_bytes: usize) -> Self {
        let settings = mq_broker::store::Settings {
            tail_bytes,
            ..Default::default()
        };
        Self {
            store: Store::open(folder, settings, Default::default()),
            ends: vec![0; queues.max(1)],
            next: 0,
            placements: Vec::new(),
        }
    }
}

impl Applier for Placing {
    type Result = ();

    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<()>) {
        self.placements.clear();
        for command in entry.commands() {
            self.next = (self.next + 1) % self.ends.len();
            let queue = u32::try_from(self.next).map_or(QueueKey(0), QueueKey);
            let count = entry
                .batches
                .get(command.first_batch as usize)
                .and_then(|stored| stored.batch.as_ref())
                .map_or(1, |batch| batch.header().record_count);
            let end = &mut self.ends[self.next];
            self.placements.push(Placement {
                queue,
                base_offset: Offset(*end),
                records: count,
                source: Source::Here(command.first_batch),
                visible_at: Durability::Memory,
            });
            *end += u64::from(count);
            results.push(());
        }
        let effects = Update {
            placements: &self.placements,
            ..Update::default()
        };
        self.store.apply(entry, &effects);
    }

    fn rows(&self, segment: SegmentId) -> usize {
        self.store.unsealed_rows(segment)
    }

    fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow> {
        let rows = self.store.seal(segment);
        // What a checkpoint does: without it the changes would pile up.
        drop(self.store.take_rows());
        rows
    }
}
