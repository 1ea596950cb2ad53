//! Key compaction against a plain model: any history of messages with few keys, moves, passes, trims, starts
//! and crashes leaves of each key the last one, unchanged and at its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mq_common::batch::{Batch, Builder, BuilderOptions, Compression, Producer, Properties, Record};
use proptest::prelude::*;

use super::*;
use crate::state::Placement;
use crate::store::{HoleKind, KeySettings};

pub(super) const QUEUE: QueueKey = QueueKey(1);

/// A message: its key, and its value; none deletes the key.
pub(super) type Message = (Option<u8>, Option<u16>);

/// A message as it must be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) message: Message,
    appended: Timestamp,
    flags: u16,
}

/// A journal and a store, and what was written into them.
pub(super) struct Rig {
    pub(super) written: Written,
    pub(super) image: Image,
    pub(super) settings: Settings,
    pub(super) all: Vec<Expected>,
    pub(super) start: u64,
    /// What lies below is in queue files.
    pub(super) moved: u64,
    pub(super) unsealed: bool,
    /// The time before which tombstones may have gone.
    pub(super) cutoff: u64,
}

fn time(offset: u64) -> Timestamp {
    Timestamp(1_000_000 + (offset * 7919) % 1000)
}

fn payload(value: Option<u16>) -> Vec<u8> {
    value.map_or_else(Vec::new, |value| {
        format!("{value:05}")
            .repeat(usize::from(value % 9) + 1)
            .into_bytes()
    })
}

/// A batch of these messages from this offset on.
pub(super) fn batch_of(messages: &[Message], base: u64, lz4: bool) -> Batch {
    let mut builder = Builder::new(BuilderOptions {
        compression: if lz4 { Compression::Lz4 } else { Compression::None },
        ..BuilderOptions::default()
    });
    builder.set_producer(Producer {
        id: 5,
        epoch: 1,
        first_sequence: base,
    });
    for ((key, value), offset) in messages.iter().zip(base..) {
        let tag = format!("tag{}", offset % 3);
        let record = Record {
            key: key.as_ref().map(std::slice::from_ref),
            tag: (offset % 2 == 0).then_some(tag.as_str()),
            properties: Properties::Borrowed(if offset % 5 == 0 { &[("a", "b")] } else { &[] }),
            payload: &payload(*value),
            time: time(offset),
        };
        builder.push(&record).unwrap();
    }
    builder.finish().unwrap()
}

impl Rig {
    pub(super) fn new(keys: KeySettings) -> Self {
        let mut written = Written::new(0);
        let settings = Settings { keys, ..settings() };
        written.store = Store::open(&written.folder, settings.clone(), Rows::default());
        Self {
            written,
            image: Image::default(),
            settings,
            all: Vec::new(),
            start: 0,
            moved: 0,
            unsealed: false,
            cutoff: 0,
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.all.len() as u64
    }

    /// Appends a batch; a half one is committed at once.
    pub(super) fn append(&mut self, messages: &[Message], lz4: bool, half: bool) {
        let batch = batch_of(messages, self.end(), lz4);
        self.append_batch(batch, messages, half);
    }

    pub(super) fn append_batch(&mut self, batch: Batch, messages: &[Message], half: bool) {
        let base = self.end();
        let place = |source| {
            [Placement {
                queue: QUEUE,
                base_offset: Offset(base),
                records: batch.record_count(),
                source,
                visible_at: Durability::Memory,
            }]
        };
        if half {
            let held = 0..1;
            let lsn = self
                .written
                .entry(std::slice::from_ref(&batch), false, |store, entry| {
                    let effects = Update {
                        halves: std::slice::from_ref(&held),
                        ..Update::default()
                    };
                    store.apply(entry, &effects);
                });
            let placements = place(Source::Half(BatchAt { lsn, index: 0 }));
            self.written.entry(&[], false, |store, entry| {
                let effects = Update {
                    placements: &placements,
                    released_halves: &[lsn],
                    ..Update::default()
                };
                store.apply(entry, &effects);
            });
        } else {
            let placements = place(Source::Here(0));
            self.written
                .entry(std::slice::from_ref(&batch), false, |store, entry| {
                    let effects = Update {
                        placements: &placements,
                        ..Update::default()
                    };
                    store.apply(entry, &effects);
                });
        }
        self.unsealed = true;
        let (appended, flags) = (Timestamp(self.written.lsn), u16::from(half));
        self.all.extend(messages.iter().map(|message| Expected {
            message: *message,
            appended,
            flags,
        }));
    }

    /// Moves all into queue files.
    pub(super) fn move_all(&mut self) {
        if self.unsealed {
            self.written.seal();
            self.unsealed = false;
            self.save();
        }
        let sealed: Vec<_> = (1..self.written.segment.0).map(SegmentId).collect();
        let start = self.start;
        let planned = self
            .written
            .store
            .plan(&sealed, 100, &[], |key| Some(compacting(key, start)));
        if let Some(plan) = planned {
            self.written.store.compact(&plan, &mut Unhurried).unwrap();
            drop(plan);
            self.checkpoint();
        }
        self.moved = self.end();
    }

    /// What is in the journal and in the checkpoint is on the disk.
    pub(super) fn save(&mut self) {
        self.image.save(self.written.store.take_rows());
        let sync = self.written.disk.begin_filesystem_sync(Path::new(DATA)).unwrap();
        sync.unwrap().finish().unwrap();
    }

    /// As upkeep does it: what is dead goes once that is saved.
    pub(super) fn checkpoint(&mut self) {
        let ends = (Offset(self.start), Offset(self.end()));
        let dead = self.written.store.dead_of_all(&[], |_| Some(ends));
        self.save();
        for row in &dead.files {
            self.written.store.remove_file(row).unwrap();
        }
        self.image.save(self.written.store.take_rows());
    }

    pub(super) fn plan(&mut self) -> Option<Plan> {
        let now = Timestamp(self.written.lsn);
        let start = self.start;
        let known = |key| Some(compacting(key, start));
        let tombstone_ms = self.settings.keys.tombstone_ms;
        self.cutoff = self.cutoff.max(now.0.saturating_sub(tombstone_ms));
        self.written.store.plan_passes(&[QUEUE], now, known)
    }

    /// One pass, and the checkpoint behind it.
    pub(super) fn pass(&mut self) -> Moved {
        let plan = self.plan().expect("no round runs");
        let moved = self.written.store.compact(&plan, &mut Unhurried).unwrap();
        drop(plan);
        self.checkpoint();
        moved
    }

    /// A start on what is on the disk.
    pub(super) fn reopen(&mut self) {
        self.image.save(self.written.store.take_rows());
        self.written.store = Store::open(&self.written.folder, self.settings.clone(), self.image.rows());
    }

    /// Everything that is served from the start to the end: each message is what was written there, and
    /// nothing is missing without a reason. Answers the offsets there are.
    pub(super) fn served(&self) -> BTreeSet<u64> {
        let mut there = BTreeSet::new();
        let (mut next, end) = (Offset(self.start), Offset(self.end()));
        while next < end {
            let found = self.written.store.fetch(QUEUE, next, end, 100).unwrap();
            for found in found {
                match &found {
                    Found::Hole { from, end, kind, .. } => {
                        assert_eq!(*kind, HoleKind::Compacted, "{found:?}");
                        assert!(*from == next && *from < *end, "{found:?} at {next}");
                        assert!(end.0 <= self.moved, "{found:?}");
                    }
                    Found::Batch { row, region } => {
                        assert!(row.base_offset <= next && next < row.end(), "{row:?} at {next}");
                        self.check(row, region, &mut there);
                    }
                }
                next = found.end();
            }
        }
        there.retain(|offset| *offset >= self.start);
        there
    }

    fn check(&self, row: &PlacedRow, region: &bytes::Bytes, there: &mut BTreeSet<u64>) {
        let batch = Batch::parse(region.clone()).unwrap();
        let expected = Producer {
            id: 5,
            epoch: 1,
            first_sequence: row.base_offset.0,
        };
        assert_eq!(batch.producer(), expected);
        assert_eq!(batch.record_count(), row.count);
        for (record, offset) in batch.records().unwrap().iter().zip(row.base_offset.0..) {
            let expected = &self.all[usize::try_from(offset).unwrap()];
            assert_eq!(
                (row.time, row.flags),
                (expected.appended, expected.flags),
                "{offset}"
            );
            let alone = batch_of(&[expected.message], offset, false).records().unwrap();
            let alone = alone.iter().next().unwrap().unwrap();
            assert_eq!(record.unwrap(), alone, "{offset}");
            there.insert(offset);
        }
    }

    /// The last message of each key.
    fn last(&self) -> BTreeMap<u8, u64> {
        let from = usize::try_from(self.start).unwrap();
        let keys = self.all.iter().zip(0..).skip(from);
        keys.filter_map(|(one, offset)| Some((one.message.0?, offset)))
            .collect()
    }

    fn is_old_tombstone(&self, offset: u64) -> bool {
        let one = &self.all[usize::try_from(offset).unwrap()];
        one.message.1.is_none() && one.appended.0 < self.cutoff
    }

    /// What must be there at least is, and nothing came back that a tombstone deleted.
    pub(super) fn check_all(&self) -> BTreeSet<u64> {
        let there = self.served();
        let last = self.last();
        for offset in self.start..self.end() {
            let keyless = self.all[usize::try_from(offset).unwrap()].message.0.is_none();
            assert!(
                there.contains(&offset) || !(keyless || offset >= self.moved),
                "{offset} went"
            );
        }
        for (key, last) in &last {
            let of_key = |offset: &&u64| self.all[usize::try_from(**offset).unwrap()].message.0 == Some(*key);
            let found = there.iter().rev().find(of_key);
            match found {
                Some(found) => assert_eq!(found, last, "of key {key}"),
                None => assert!(self.is_old_tombstone(*last), "key {key} went, {last}"),
            }
        }
        there
    }

    /// As after a pass over all that lies in queue files: of each key one is there at most.
    pub(super) fn check_exactly(&self) {
        let there = self.check_all();
        let mut last: BTreeMap<u8, u64> = BTreeMap::new();
        for offset in self.start..self.moved {
            if let Some(key) = self.all[usize::try_from(offset).unwrap()].message.0 {
                last.insert(key, offset);
            }
        }
        for offset in self.start..self.moved {
            let stays = match self.all[usize::try_from(offset).unwrap()].message.0 {
                Some(key) => last[&key] == offset && !self.is_old_tombstone(offset),
                None => true,
            };
            assert_eq!(there.contains(&offset), stays, "{offset} of {last:?}");
        }
    }
}

pub(super) fn compacting(key: QueueKey, start: u64) -> PlannedQueue {
    PlannedQueue {
        compacts: true,
        ..planned(key, start)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(Vec<Message>, bool, bool),
    Move,
    Pass,
    Trim(u8),
    Reopen,
    /// In the step of a pass.
    Crash(u64, Crash),
    /// One file cannot be read for as long as the process lives.
    Stick(u8),
}

fn message() -> impl Strategy<Value = Message> {
    let key = prop::option::weighted(0.9, 0..6_u8);
    (key, prop::option::weighted(0.75, any::<u16>()))
}

fn op() -> impl Strategy<Value = Op> {
    let crash = prop_oneof![
        Just(Crash::LoseUnsynced),
        Just(Crash::KeepAll),
        any::<u64>().prop_map(Crash::Random),
    ];
    prop_oneof![
        8 => (prop::collection::vec(message(), 1..9), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(messages, lz4, half)| Op::Append(messages, lz4, half)),
        4 => Just(Op::Move),
        4 => Just(Op::Pass),
        1 => (0..100_u8).prop_map(Op::Trim),
        1 => Just(Op::Reopen),
        2 => (1..60_u64, crash).prop_map(|(step, crash)| Op::Crash(step, crash)),
        1 => any::<u8>().prop_map(Op::Stick),
    ]
}

fn run(rig: &mut Rig, op: &Op) {
    match op {
        Op::Append(messages, lz4, half) => rig.append(messages, *lz4, *half),
        Op::Move => rig.move_all(),
        Op::Pass => drop(rig.pass()),
        Op::Trim(percent) => {
            rig.start += (rig.end() - rig.start) * u64::from(*percent) / 100;
            rig.checkpoint();
        }
        Op::Reopen => rig.reopen(),
        Op::Crash(step, crash) => {
            if rig.unsealed {
                rig.move_all();
            }
            rig.save();
            let plan = rig.plan();
            rig.written.disk.set_faults(Faults {
                dead_from_operation: rig.written.disk.operations() + step,
                ..Faults::default()
            });
            drop(plan.map(|plan| rig.written.store.compact(&plan, &mut Unhurried)));
            rig.written.disk.crash(*crash);
            rig.written.disk.set_faults(Faults::default());
            let rows = rig.image.rows();
            rig.written.store = Store::open(&rig.written.folder, rig.settings.clone(), rows);
        }
        Op::Stick(which) => {
            let files: Vec<_> = rig.written.store.lock().index.files.of(QUEUE).collect();
            if !files.is_empty() {
                let view = &files[usize::from(*which) % files.len()];
                rig.written.store.rounds().stuck_files.insert((QUEUE, view.first));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leaves_of_each_key_the_last_message_at_its_place(
        ops in prop::collection::vec(op(), 1..40),
        few_keys: bool,
        tombstone_ms in prop_oneof![Just(0_u64), Just(5), Just(u64::MAX)],
    ) {
        // Room for 7 keys or for one.
        let map_bytes = if few_keys { 25 } else { 8 * 25 };
        let mut rig = Rig::new(KeySettings { map_bytes, tombstone_ms, ..KeySettings::default() });
        for op in &ops {
            run(&mut rig, op);
            rig.check_all();
        }
        // A start: nothing is left alone any longer. As many passes as it takes.
        rig.move_all();
        rig.reopen();
        let mut passes = 0;
        while rig.pass().passes > 0 {
            rig.check_all();
            passes += 1;
            prop_assert!(passes < 2 + rig.end(), "each pass comes further");
        }
        rig.reopen();
        if tombstone_ms > 0 {
            rig.check_all();
        } else {
            rig.check_exactly();
        }
        let before = rig.served();
        prop_assert_eq!(rig.pass(), Moved { round: rig.pass().round - 1, ..Moved::default() }, "nothing is left to do");
        prop_assert_eq!(rig.served(), before);
    }
}
