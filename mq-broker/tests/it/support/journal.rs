//! A journal on a test disk, with an applier that understands four simple commands, a store, and a checkpoint
//! kept in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mq_broker::ids::{BatchAt, QueueKey};
use mq_broker::log::{
    Applier, Command, Completion, Entry, FreeError, Log, OpenError, PlacedRow, Poisoned, SegmentId, Settings,
    Solo, Ticket, Want,
};
use mq_broker::state::{Placement, Source};
use mq_broker::store::disk::TestDisk;
use mq_broker::store::{self, Dead, Folder, Found, Rows, Store, Update, layout};
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{Durability, Lsn, Offset, Term, Timestamp};

/// The data folder on the test disk.
pub(crate) const DATA: &str = "data";

/// A batch with one record of this many pseudo-random bytes.
pub(crate) fn batch(seed: u64, bytes: usize) -> Batch {
    let mut random = fastrand::Rng::with_seed(seed);
    let payload: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(&payload, Timestamp(1000))).unwrap();
    builder.finish().unwrap()
}

/// Places its batches in a queue.
pub(crate) fn append(queue: u32, batches: Vec<Batch>) -> Command {
    Command::new(meta(b'A', queue, BatchAt::default(), &batches), batches)
}

/// Stores its batches as half messages.
pub(crate) fn half(batches: Vec<Batch>) -> Command {
    Command::new(meta(b'H', 0, BatchAt::default(), &batches), batches).with_own_lsn()
}

/// Places half messages in a queue: those from `first` on.
pub(crate) fn commit(queue: u32, first: BatchAt, counts: &[u32]) -> Command {
    let mut meta = BytesMut::from(&meta(b'C', queue, first, &[])[..]);
    for count in counts {
        meta.put_u32(*count);
    }
    Command::new(meta.freeze(), vec![])
}

/// Deletes a queue.
pub(crate) fn delete(queue: u32) -> Command {
    Command::new(meta(b'D', queue, BatchAt::default(), &[]), vec![])
}

/// Ends the validity of all that a queue holds.
pub(crate) fn trim(queue: u32) -> Command {
    Command::new(meta(b'T', queue, BatchAt::default(), &[]), vec![])
}

fn meta(kind: u8, queue: u32, first: BatchAt, batches: &[Batch]) -> Bytes {
    let mut meta = BytesMut::new();
    meta.put_u8(kind);
    meta.put_u32(queue);
    meta.put_u64(first.lsn.0);
    meta.put_u32(first.index);
    for batch in batches {
        meta.put_u32(batch.record_count());
    }
    meta.freeze()
}

/// An entry as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) lsn: Lsn,
    pub(crate) term: Term,
    /// Metas, and bodies: `None` is a hole.
    pub(crate) commands: Vec<(Bytes, Vec<Option<Bytes>>)>,
}

/// The applier of the tests.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) store: Arc<Store>,
    pub(crate) applied: Vec<Applied>,
    pub(crate) ends: BTreeMap<u32, u64>,
    pub(crate) starts: BTreeMap<u32, u64>,
    time: Timestamp,
}

impl Recorder {
    /// Which of these segments nothing needs any longer.
    pub(crate) fn dead(&self, sealed: &[SegmentId]) -> Dead {
        self.store.dead(sealed, |queue| {
            let end = *self.ends.get(&queue.0)?;
            let start = self.starts.get(&queue.0).copied().unwrap_or(0);
            Some((Offset(start), Offset(end)))
        })
    }

    fn place(&mut self, queue: u32, counts: &[u8], source: impl Fn(u32) -> Source) -> Vec<Placement> {
        let end = self.ends.entry(queue).or_default();
        let mut placements = Vec::new();
        for (index, count) in counts.chunks(4).enumerate() {
            let count = u32::from_be_bytes(count.try_into().unwrap());
            placements.push(Placement {
                queue: QueueKey(queue),
                base_offset: Offset(*end),
                records: count,
                source: source(u32::try_from(index).unwrap()),
                visible_at: Durability::Memory,
            });
            *end += u64::from(count);
        }
        placements
    }
}

/// Applies nothing: for tests of the files alone.
#[derive(Debug)]
pub(crate) struct Ignoring;

impl Applier for Ignoring {
    type Result = ();

    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<()>) {
        results.extend(entry.parts.iter().map(|_| ()));
    }

    fn rows(&self, _segment: SegmentId) -> usize {
        0
    }

    fn seal(&mut self, _segment: SegmentId) -> Vec<PlacedRow> {
        Vec::new()
    }
}

impl Applier for Recorder {
    type Result = u64;

    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<u64>) {
        if let Some(last) = self.applied.last() {
            assert_eq!(entry.lsn.0, last.lsn.0 + 1, "each entry once, in order");
        }
        assert!(entry.time >= self.time, "time never goes back");
        self.time = entry.time;
        let mut placements = Vec::new();
        let mut halves: Vec<Range<u32>> = Vec::new();
        let mut decided = Vec::new();
        let mut deleted = Vec::new();
        let mut commands = Vec::new();
        for (index, command) in entry.commands().enumerate() {
            results.push(entry.lsn.0 * 1000 + index as u64);
            let first = command.first_batch;
            let queue = u32::from_be_bytes(command.meta[1..5].try_into().unwrap());
            let lsn = Lsn(u64::from_be_bytes(command.meta[5..13].try_into().unwrap()));
            let first_half = u32::from_be_bytes(command.meta[13..17].try_into().unwrap());
            let counts = &command.meta[17..];
            match command.meta[0] {
                b'A' => placements.extend(self.place(queue, counts, |batch| Source::Here(first + batch))),
                b'H' => halves.push(first..first + u32::try_from(command.batches.len()).unwrap()),
                b'C' => {
                    placements.extend(self.place(queue, counts, |index| {
                        Source::Half(BatchAt {
                            lsn,
                            index: first_half + index,
                        })
                    }));
                    decided.push(lsn);
                }
                b'D' => {
                    self.ends.remove(&queue);
                    deleted.push(QueueKey(queue));
                }
                b'T' => {
                    let end = self.ends.get(&queue).copied().unwrap_or(0);
                    self.starts.insert(queue, end);
                }
                other => panic!("command {other}"),
            }
            let bodies = command.batches.iter().map(|stored| {
                let batch = stored.batch.as_ref()?;
                assert_eq!(batch.checksum(), stored.checksum);
                Some(Bytes::copy_from_slice(batch.bytes()))
            });
            commands.push((Bytes::copy_from_slice(command.meta), bodies.collect()));
        }
        let effects = Update {
            placements: &placements,
            halves: &halves,
            released_halves: &decided,
            deleted: &deleted,
            ..Update::default()
        };
        self.store.apply(entry, &effects);
        self.applied.push(Applied {
            lsn: entry.lsn,
            term: entry.term,
            commands,
        });
    }

    fn rows(&self, segment: SegmentId) -> usize {
        self.store.unsealed_rows(segment)
    }

    fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow> {
        self.store.seal(segment)
    }
}

/// What the checkpoint holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saved {
    pub(crate) lsn: Lsn,
    ends: BTreeMap<u32, u64>,
    pub(crate) starts: BTreeMap<u32, u64>,
    rows: Rows,
    /// What may be freed once this is on the disk.
    pub(crate) dead: Dead,
}

impl Saved {
    /// Merges what changed, as the checkpoint's database does.
    fn merge(&mut self, changes: Rows) {
        let rows = &mut self.rows;
        rows.segments.extend(changes.segments);
        rows.placed
            .retain(|(segment, _)| !changes.sealed.contains(segment));
        rows.placed.extend(changes.placed);
        rows.halves.extend(changes.halves);
        rows.halves
            .retain(|half| !changes.released_halves.contains(&half.at.lsn));
        rows.segments
            .retain(|row| !changes.deleted.contains(&row.queue) && !changes.freed.contains(&row.segment));
        rows.placed
            .retain(|(_, row)| !changes.deleted.contains(&row.queue));
    }
}

/// A disk with a journal, and its settings.
#[derive(Debug, Clone)]
pub(crate) struct Rig {
    pub(crate) disk: TestDisk,
    pub(crate) settings: Settings,
    pub(crate) store_settings: store::Settings,
    pub(crate) saved: Saved,
    pub(crate) now: u64,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) log: Solo<u64>,
    pub(crate) recorder: Recorder,
    pub(crate) now: u64,
}

impl Rig {
    pub(crate) fn new(segment_bytes: u32) -> Self {
        Self {
            disk: TestDisk::default(),
            settings: Settings {
                segment_bytes,
                segment_rows_max: usize::MAX,
                segments_ahead: 0,
                spares_max: 0,
                zeros_ahead_bytes: 0,
                waiting_bytes_max: 1 << 20,
                idle: Duration::from_secs(1),
                full_bytes: 0,
                full_percent: 0,
                chain_start: 7,
            },
            store_settings: store::Settings::default(),
            saved: Saved::default(),
            now: 1_000_000,
        }
    }

    /// The same, on a disk of its own.
    pub(crate) fn fork(&self) -> Self {
        Self {
            disk: self.disk.fork(),
            ..self.clone()
        }
    }

    pub(crate) fn open(&self) -> Result<Live, OpenError> {
        let folder = Folder::open(Arc::new(self.disk.clone()), Path::new(DATA)).expect("the folder is free");
        let store = Store::open(&folder, self.store_settings.clone(), self.saved.rows.clone());
        let mut recorder = Recorder {
            store: Arc::new(store),
            applied: Vec::new(),
            ends: self.saved.ends.clone(),
            starts: self.saved.starts.clone(),
            time: Timestamp(0),
        };
        let log = Solo::open(
            &folder,
            self.settings.clone(),
            self.saved.lsn,
            Timestamp(self.now),
            &mut recorder,
        )?;
        Ok(Live {
            log,
            recorder,
            now: self.now,
        })
    }

    pub(crate) fn segment(&self, id: u64) -> PathBuf {
        layout::segment_file(Path::new(DATA), SegmentId(id))
    }

    pub(crate) fn segment_bytes(&self, id: u64) -> Vec<u8> {
        self.disk
            .content(&self.segment(id))
            .expect("the segment is there")
    }

    /// Takes a checkpoint.
    pub(crate) fn save(&mut self, live: &mut Live) {
        live.log.request_sync();
        live.turn().unwrap();
        self.saved.dead = live.recorder.dead(&live.log.recycler().sealed());
        self.saved.merge(live.recorder.store.take_rows());
        self.saved.lsn = live.marks().synced;
        self.saved.ends = live.recorder.ends.clone();
        self.saved.starts = live.recorder.starts.clone();
    }
}

impl Rig {
    /// Checkpoints, and frees what they say is dead, until nothing is left to learn; how many.
    pub(crate) fn reclaim(&mut self, live: &mut Live) -> Result<usize, FreeError> {
        let mut freed = 0;
        loop {
            self.save(live);
            for segment in &self.saved.dead.segments {
                assert!(live.recorder.store.free(*segment), "nobody reads");
                live.log.recycler().free(*segment)?;
                freed += 1;
            }
            for segment in &self.saved.dead.unknown {
                live.recorder.store.learn(*segment).unwrap();
            }
            if self.saved.dead.unknown.is_empty() {
                return Ok(freed);
            }
        }
    }

    /// How many segments and how many spares have a file.
    pub(crate) fn files(&self) -> (usize, usize) {
        let count = |extension: &str| {
            let names = self.disk.names();
            names
                .iter()
                .filter(|name| name.extension().is_some_and(|found| found == extension))
                .count()
        };
        (count("journal"), count("spare"))
    }
}

impl Live {
    pub(crate) fn marks(&self) -> mq_broker::log::Watermarks {
        self.log.watermarks()
    }

    pub(crate) fn propose(&mut self, command: Command, want: Want) -> Ticket {
        self.log.propose(command, want).expect("taken")
    }

    pub(crate) fn turn(&mut self) -> Result<(), Poisoned> {
        self.log.turn(Timestamp(self.now), &mut self.recorder)
    }

    pub(crate) fn stop(&mut self) -> Result<(), Poisoned> {
        self.log.stop(Timestamp(self.now), &mut self.recorder)
    }

    pub(crate) fn completions(&mut self) -> Vec<(Ticket, Completion<u64>)> {
        self.log.completions().collect()
    }

    /// Proposes one command and turns; its lsn.
    pub(crate) fn write(&mut self, command: Command, want: Want) -> Lsn {
        let ticket = self.propose(command, want);
        self.turn().unwrap();
        match &self.completions()[..] {
            [(of, Completion::Applied { lsn, reached, .. })] if *of == ticket => {
                assert!(want == Want::Flushed || *reached == Durability::Fsynced);
                *lsn
            }
            other => panic!("{other:?}"),
        }
    }

    /// Everything in a queue up to its end, fetched in pieces.
    pub(crate) fn read_queue(&self, queue: u32, bytes_max: usize) -> Vec<Found> {
        let end = self.recorder.ends.get(&queue).copied().unwrap_or(0);
        let mut next = self.recorder.starts.get(&queue).copied().unwrap_or(0);
        let mut all = Vec::new();
        while next < end {
            let found = self
                .recorder
                .store
                .fetch(QueueKey(queue), Offset(next), Offset(end), bytes_max)
                .unwrap();
            assert!(!found.is_empty(), "nothing at {next} of {end}");
            for one in found {
                let (from, to) = match &one {
                    Found::Batch { row, .. } => (row.base_offset, row.end()),
                    Found::Hole { from, end, .. } => (*from, *end),
                };
                assert_eq!(from.0, next, "no gap");
                next = to.0;
                all.push(one);
            }
        }
        all
    }
}
