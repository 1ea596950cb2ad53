//! Rounds over the test disk.

mod crashes;
mod damage;
mod garbage;
mod keyed;
mod keyed_cases;
mod keyed_tombstones;
mod keyed_two;
mod meanwhile;
mod moves;
mod passing;
mod retained;
mod swept;
mod unreadable;

use std::collections::BTreeMap;
use std::path::Path;

use mq_common::batch::split_stamped;
use mq_common::ids::{Durability, Lsn, QueueNumber, Term, Timestamp, TopicId, TopicName};

use super::*;
use crate::ids::BatchAt;
use crate::state::Source;
use crate::store::disk::{Crash, Disk as _, Faults, Mode, TestDisk};
use crate::store::queue_files::QueueName;
use crate::store::test_journal::{DATA, Written, batch, ok, placement};
use crate::store::{FileKey, FileRow, Folder, HalfRow, Rows, SegmentRow, Settings, Update, layout};

/// Never waits.
struct Unhurried;

impl Pace for Unhurried {
    fn pause(&mut self, _took: Duration) -> bool {
        true
    }
}

/// Small queue files, nothing in memory.
fn settings() -> Settings {
    Settings {
        tail_bytes: 0,
        footer_bytes: 1000,
        queue_segment_bytes: 600,
        queue_segment_bytes_max: 2400,
        ..Settings::default()
    }
}

/// What the checkpoint would hold.
#[derive(Debug, Clone, Default)]
struct Image {
    segments: BTreeMap<(QueueKey, SegmentId), SegmentRow>,
    placed: Vec<(SegmentId, PlacedRow)>,
    halves: BTreeMap<BatchAt, HalfRow>,
    files: BTreeMap<FileKey, FileRow>,
}

impl Image {
    /// In the order of `checkpoint/write.rs`.
    fn save(&mut self, rows: Rows) {
        let segments = rows.segments.into_iter();
        self.segments
            .extend(segments.map(|row| ((row.queue, row.segment), row)));
        self.placed.extend(rows.placed);
        self.halves
            .extend(rows.halves.into_iter().map(|row| (row.at, row)));
        self.placed.retain(|(segment, _)| !rows.sealed.contains(segment));
        self.halves
            .retain(|at, _| !rows.released_halves.contains(&at.lsn));
        self.segments
            .retain(|(queue, segment), _| !rows.deleted.contains(queue) && !rows.freed.contains(segment));
        let files = rows.files.into_iter();
        self.files.extend(files.map(|row| (row.key(), row)));
        self.files.retain(|key, _| !rows.files_removed.contains(key));
    }

    fn rows(&self) -> Rows {
        let mut segments: Vec<_> = self.segments.values().copied().collect();
        segments.sort_unstable();
        Rows {
            segments,
            placed: self.placed.clone(),
            halves: self.halves.values().copied().collect(),
            files: self.files.values().cloned().collect(),
            ..Rows::default()
        }
    }

    fn open(&self, disk: &TestDisk) -> Store {
        let folder = Folder::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
        Store::open(&folder, settings(), self.rows())
    }
}

fn planned(key: QueueKey, start: u64) -> PlannedQueue {
    PlannedQueue {
        name: QueueName {
            topic: Arc::new(TopicName::new("orders").unwrap()),
            topic_id: TopicId(7),
            number: QueueNumber(key.0 + 100),
        },
        start: Offset(start),
        compacts: false,
    }
}

fn plan(store: &Store, sealed: &[u64], start: u64) -> Plan {
    let sealed: Vec<_> = sealed.iter().copied().map(SegmentId).collect();
    let known = |key| Some(planned(key, start));
    store.plan(&sealed, 100, &[], known).unwrap()
}

/// Moves these segments.
fn compact(store: &Store, sealed: &[u64]) -> Moved {
    store.compact(&plan(store, sealed, 0), &mut Unhurried).unwrap()
}

/// A message as it is served, wherever it lies; or a hole.
type Served = Result<(u64, u32, Lsn, Term, Timestamp, u16, bytes::Bytes), (u64, u64)>;

/// Everything of these queues, each from 0 to its end.
fn everything(store: &Store, ends: &[(u32, u64)]) -> Vec<Served> {
    let mut all = Vec::new();
    for (queue, end) in ends {
        let mut next = Offset(0);
        while next < Offset(*end) {
            // Little at a time, so that many fetches begin within a file.
            let found = store.fetch(QueueKey(*queue), next, Offset(*end), 200).unwrap();
            next = found.last().expect("an answer before the end").end();
            all.extend(found.into_iter().map(|found| match found {
                Found::Hole { from, end, .. } => Err((from.0, end.0)),
                Found::Batch { row, region } => Ok((
                    row.base_offset.0,
                    row.count,
                    row.lsn,
                    row.term,
                    row.time,
                    row.flags,
                    region,
                )),
            }));
        }
    }
    all
}

const ENDS: [(u32, u64); 3] = [(1, 22), (2, 7), (3, 2)];

/// Queues 1 to 3 over three sealed segments and one that is not; a transaction begun in the first and
/// committed in the second.
fn filled() -> (Written, Image) {
    let mut written = Written::new(0);
    let texts: Vec<String> = (0..20)
        .map(|n| format!("message {n} {}", "x".repeat(n)))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    written.append(1, 0, &texts[..8]);
    written.append(2, 0, &texts[..3]);
    let half = written.entry(&[batch("half a"), batch("half b")], false, |store, entry| {
        let effects = Update {
            halves: &[0..1, 1..2],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    written.append(1, 8, &texts[8..20]);
    let placements = [0, 1].map(|index| {
        let at = BatchAt { lsn: half, index };
        placement(3, u64::from(index), Source::Half(at))
    });
    written.entry(&[], false, |store, entry| {
        let effects = Update {
            placements: &placements,
            released_halves: &[half],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    written.append(2, 3, &["y", "z"]);
    written.seal();
    written.append(1, 20, &["late", "later"]);
    written.append(2, 5, &["last", "very last"]);
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let sync = written.disk.begin_filesystem_sync(Path::new(DATA)).unwrap();
    sync.unwrap().finish().unwrap();
    written.store = image.open(&written.disk.fork());
    (written, image)
}

/// How many answers there are, one batch at a time.
fn everything_from(store: &Store, queue: u32, from: u64, end: u64) -> usize {
    let mut next = Offset(from);
    let mut count = 0;
    while next < Offset(end) {
        let found = store.fetch(QueueKey(queue), next, Offset(end), 1).unwrap();
        next = found.last().unwrap().end();
        count += found.len();
    }
    count
}
