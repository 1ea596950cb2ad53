//! Single cases of key compaction.

use std::cell::Cell;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use mq_common::batch::{Batch, REGION_HEADER_BYTES};
use mq_common::limits::RECORD_BYTES_MAX;

use super::keyed::{Message, QUEUE, Rig, batch_of, compacting};
use super::*;
use crate::store::disk::DiskFile;
use crate::store::{HoleKind, KeySettings};

/// Tombstones never go.
fn forever() -> KeySettings {
    KeySettings {
        tombstone_ms: u64::MAX,
        ..KeySettings::default()
    }
}

/// Tombstones go at once.
fn at_once() -> KeySettings {
    KeySettings {
        tombstone_ms: 0,
        ..KeySettings::default()
    }
}

const fn value(key: u8, value: u16) -> Message {
    (Some(key), Some(value))
}

const fn tombstone(key: u8) -> Message {
    (Some(key), None)
}

/// First offset, end and generation of each file.
fn files(rig: &Rig) -> Vec<(u64, u64, u32)> {
    let views: Vec<View> = rig.written.store.lock().index.files.of(QUEUE).collect();
    let files = views.iter();
    files
        .map(|view| (view.first.0, view.segment.end.0, view.generation))
        .collect()
}

/// The holes from the start to the end.
fn holes(rig: &Rig) -> Vec<(u64, u64, HoleKind)> {
    let (mut next, end) = (Offset(rig.start), Offset(rig.end()));
    let mut holes = Vec::new();
    while next < end {
        let found = rig.written.store.fetch(QUEUE, next, end, 1 << 20).unwrap();
        next = found.last().unwrap().end();
        holes.extend(found.into_iter().filter_map(|found| match found {
            Found::Hole { from, end, kind, .. } => Some((from.0, end.0, kind)),
            Found::Batch { .. } => None,
        }));
    }
    holes
}

/// Three keys in many batches and files, with values, tombstones and a message without a key.
fn filled() -> Rig {
    let mut rig = Rig::new(forever());
    for n in 0..40_u16 {
        let key = u8::try_from(n % 3).unwrap();
        let third = if n % 10 == 9 {
            tombstone(key)
        } else {
            (None, Some(n))
        };
        rig.append(&[value(key, n), value(1, n), third], n % 2 == 0, n % 7 == 0);
        if n % 15 == 14 {
            rig.move_all();
        }
    }
    rig.move_all();
    rig
}

fn data_file(first: u64, generation: u32) -> PathBuf {
    let name = planned(QUEUE, 0).name;
    layout::queue_data_file(Path::new(DATA), &name, Offset(first), generation)
}

#[test]
fn s18_a_crash_after_any_step_of_a_pass_leaves_the_old_or_the_new() {
    let mut rig = filled();
    rig.save();
    let whole = rig.written.disk.fork();
    let store = rig.image.open(&whole);
    let before = everything(&store, &[(1, rig.end())]);
    let pass = |store: &Store| {
        let plan = store.plan_passes(&[QUEUE], Timestamp(0), |key| Some(compacting(key, 0)));
        store.compact(&plan.unwrap(), &mut Unhurried)
    };
    let first = whole.operations();
    pass(&store).unwrap();
    let steps = whole.operations() - first;
    let after = everything(&store, &[(1, rig.end())]);
    assert!(steps > 5 && after != before, "{steps}");
    for step in 1..=steps + 1 {
        for crash in [Crash::LoseUnsynced, Crash::KeepAll, Crash::Random(step)] {
            let disk = rig.written.disk.fork();
            let store = rig.image.open(&disk);
            disk.set_faults(Faults {
                dead_from_operation: disk.operations() + step,
                ..Faults::default()
            });
            let done = pass(&store);
            let mut saved = rig.image.clone();
            saved.save(store.take_rows());
            disk.crash(crash);
            if done.is_ok() {
                let store = saved.open(&disk.fork());
                assert_eq!(
                    everything(&store, &[(1, rig.end())]),
                    after,
                    "{step}, {crash:?}, saved"
                );
            }
            let store = rig.image.open(&disk);
            assert_eq!(everything(&store, &[(1, rig.end())]), before, "{step}, {crash:?}");
            pass(&store).unwrap();
            let mut saved = rig.image.clone();
            saved.save(store.take_rows());
            disk.crash(Crash::LoseUnsynced);
            let store = saved.open(&disk);
            assert_eq!(
                everything(&store, &[(1, rig.end())]),
                after,
                "{step}, {crash:?}, again"
            );
        }
    }
}

#[test]
fn small_files_become_few_and_each_pass_raises_the_generation() {
    let mut rig = filled();
    let before = files(&rig);
    let moved = rig.pass();
    assert_eq!((moved.passes, moved.rewritten), (1, before.len()));
    let after = files(&rig);
    assert!(
        before.len() > 3 && after.len() < before.len(),
        "{before:?} {after:?}"
    );
    assert!(after.iter().all(|file| file.2 == 1), "{after:?}");
    let tiled = after.windows(2).all(|two| two[0].1 == two[1].0);
    assert!(
        tiled && after[0].0 == 0 && after.last().unwrap().1 == rig.end(),
        "{after:?}"
    );
    rig.check_exactly();
    // What comes now begins a file of its own, and the next pass takes both.
    let end = rig.end();
    rig.append(&[value(0, 7), value(5, 8)], false, false);
    rig.move_all();
    assert_eq!(files(&rig).last(), Some(&(end, end + 2, 0)));
    rig.pass();
    assert!(files(&rig).iter().all(|file| file.2 == 2));
    rig.check_exactly();
    let known = rig.written.store.lock().index.files.gone().len();
    assert_eq!(known, 0, "the old ones were removed");
}

#[test]
fn offsets_that_were_compacted_are_told_from_damage_also_after_a_start() {
    let mut rig = Rig::new(forever());
    rig.append(
        &[value(1, 1), value(2, 2), value(1, 3), value(3, 4)],
        false,
        false,
    );
    rig.append(&[value(1, 5)], false, false);
    rig.move_all();
    rig.pass();
    let expected = [(0, 1, HoleKind::Compacted), (2, 3, HoleKind::Compacted)];
    assert_eq!(holes(&rig), expected);
    rig.reopen();
    assert_eq!(holes(&rig), expected);
    // A batch that rots in the journal leaves a hole of the other kind behind.
    let path = rig.written.path();
    let position = usize::try_from(rig.written.position).unwrap();
    rig.append(&[value(1, 6)], false, false);
    rig.append(&[value(1, 7)], false, false);
    rig.save();
    let mut bytes = rig.written.disk.content(&path).unwrap();
    bytes[position + 70] ^= 1;
    rig.written.disk.set_content(&path, bytes);
    rig.move_all();
    let with = [&expected[..], &[(5, 6, HoleKind::Damaged)]].concat();
    assert_eq!(holes(&rig), with);
    rig.reopen();
    assert_eq!(holes(&rig), with);
}

#[test]
fn a_damaged_file_is_left_alone_and_nothing_that_a_tombstone_deleted_comes_back() {
    let mut rig = Rig::new(at_once());
    rig.append(&[value(1, 1), value(2, 2)], false, false);
    rig.move_all();
    // The last file is full with one batch, so that the next one is another.
    rig.append(&(0..80).map(|n| value(9, n)).collect::<Vec<_>>(), false, false);
    rig.move_all();
    rig.append(
        &[value(1, 7), tombstone(1), tombstone(2), value(3, 3)],
        false,
        false,
    );
    rig.append(&[value(3, 4)], false, false);
    rig.move_all();
    let before = files(&rig);
    assert!(before.len() >= 3, "{before:?}");
    let first = data_file(0, 0);
    let whole = rig.written.disk.content(&first).unwrap();
    let mut rotten = whole.clone();
    rotten[60] ^= 1;
    rig.written.disk.set_content(&first, rotten);
    rig.reopen();
    let moved = rig.pass();
    assert_eq!((moved.passes, moved.left_alone), (0, 1));
    assert_eq!(files(&rig), before);
    let moved = rig.pass();
    assert_eq!((moved.passes, moved.left_alone), (1, 0));
    assert_eq!(files(&rig)[0], before[0]);
    // The rot goes away, as when the disk answers rightly once more: the tombstones are still there.
    rig.written.disk.set_content(&first, whole);
    rig.reopen();
    let there = rig.check_all();
    assert!(there.contains(&83) && there.contains(&84), "{there:?}");
    rig.append(&[value(4, 4)], false, false);
    rig.move_all();
    rig.pass();
    rig.check_exactly();
    assert!(!rig.served().contains(&84), "it has done its work");
}

#[test]
fn a_damaged_batch_of_a_compacted_file_is_damage_and_rewriting_does_not_hide_it() {
    let mut rig = filled();
    rig.pass();
    let generation = files(&rig)[0].2;
    let path = data_file(0, generation);
    let mut bytes = rig.written.disk.content(&path).unwrap();
    bytes[STAMPED_TEST_AT] ^= 1;
    rig.written.disk.set_content(&path, bytes);
    rig.reopen();
    let of = |rig: &Rig, kind| holes(rig).iter().filter(|hole| hole.2 == kind).count();
    assert_eq!(of(&rig, HoleKind::Damaged), 1);
    let plan = rig
        .written
        .store
        .plan(&[], 0, &[(QUEUE, Offset(0))], |key| Some(compacting(key, 1)));
    let moved = rig.written.store.compact(&plan.unwrap(), &mut Unhurried).unwrap();
    assert_eq!(moved.rewritten, 0);
    assert_eq!(of(&rig, HoleKind::Damaged), 1);
}

/// Within the first batch of a file.
const STAMPED_TEST_AT: usize = 80;

#[test]
fn a_rewrite_below_the_start_keeps_what_is_known_of_a_compacted_file() {
    let mut rig = filled();
    rig.pass();
    let (first, end, generation) = files(&rig)[0];
    let start = end - 9;
    let plan = rig.written.store.plan(&[], 0, &[(QUEUE, Offset(first))], |key| {
        Some(compacting(key, start))
    });
    let moved = rig.written.store.compact(&plan.unwrap(), &mut Unhurried).unwrap();
    assert_eq!(moved.rewritten, 1);
    rig.start = start;
    rig.checkpoint();
    let after = files(&rig)[0];
    assert!(
        after.0 > first && (after.1, after.2) == (end, generation),
        "{after:?}"
    );
    rig.reopen();
    rig.check_exactly();
}

#[test]
fn batches_that_cannot_be_taken_apart_stay_whole_and_tombstones_above_them_too() {
    let messages = [value(1, 1), value(2, 2), value(1, 3)];
    let whole = batch_of(&messages, 0, false);
    // One more than there are.
    let lying = edited(&whole, |bytes| bytes[15] += 1);
    let with_attribute = edited(&whole, |bytes| bytes[2] |= 0x80);
    let with_extension = edited(&whole, |bytes| {
        let (head, records) = bytes.split_at(REGION_HEADER_BYTES);
        let extension = [&[0, 9, 0, 0, 0, 1, 7], records].concat();
        let mut all = [head, &extension].concat();
        all[63] = 7;
        *bytes = BytesMut::from(&all[..]);
    });
    // No builder makes such a record; nobody keeps others from it.
    let with_large = edited(&whole, |bytes| {
        bytes.truncate(REGION_HEADER_BYTES);
        for (key, payload) in [(1, RECORD_BYTES_MAX), (2, 1), (1, 1)] {
            let mut length = payload + 4;
            while length >= 0x80 {
                bytes.extend_from_slice(&[u8::try_from(length & 0x7f).unwrap() | 0x80]);
                length >>= 7;
            }
            bytes.extend_from_slice(&[u8::try_from(length).unwrap(), 1, 0, 1, key]);
            bytes.resize(bytes.len() + payload, b'x');
        }
        let unpacked = u32::try_from(bytes.len() - REGION_HEADER_BYTES).unwrap();
        bytes[56..60].copy_from_slice(&unpacked.to_be_bytes());
    });
    for (batch, records) in [
        (lying, 4),
        (with_attribute, 3),
        (with_extension, 3),
        (with_large, 3),
    ] {
        let mut rig = Rig::new(at_once());
        let mut messages = messages.to_vec();
        messages.resize(records, (None, None));
        rig.append_batch(batch.clone(), &messages, false);
        rig.append(&[tombstone(1), value(3, 3), value(3, 4)], false, false);
        rig.append(&[(None, Some(1))], false, false);
        rig.move_all();
        rig.pass();
        let found = rig.written.store.fetch(QUEUE, Offset(0), Offset(1), 1).unwrap();
        assert!(matches!(&found[..], [Found::Batch { region, .. }] if region == batch.bytes()));
        let end = rig.end();
        let next = end - 4;
        let behind = rig
            .written
            .store
            .fetch(QUEUE, Offset(next), Offset(end), 1 << 20)
            .unwrap();
        let found: Vec<_> = behind
            .iter()
            .map(|found| matches!(found, Found::Batch { .. }))
            .collect();
        assert_eq!(
            found,
            [true, false, true, true],
            "only the tombstone's value could come back"
        );
        assert_eq!(behind[0].end().0, next + 1);
    }
}

/// The batch with other bytes, and lengths and checksum to match.
fn edited(batch: &Batch, edit: impl FnOnce(&mut BytesMut)) -> Batch {
    let mut bytes = BytesMut::from(&batch.bytes()[..]);
    edit(&mut bytes);
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &bytes[8..]);
    bytes[4..8].copy_from_slice(&checksum.to_be_bytes());
    Batch::parse(Bytes::from(bytes)).unwrap()
}

#[test]
fn a_pass_that_has_no_room_for_all_keys_leaves_the_rest_to_the_next_and_splits_a_file_for_it() {
    let mut rig = Rig::new(KeySettings {
        map_bytes: 8 * 25,
        ..forever()
    });
    // Seven keys have room: the eighth is the second message of the second batch.
    let keys = |keys: Range<u8>| keys.map(|key| value(key, 1)).collect::<Vec<_>>();
    rig.append(&keys(0..6), false, false);
    rig.append(&keys(6..9), false, false);
    rig.append(&keys(0..3), false, false);
    rig.move_all();
    assert_eq!(files(&rig), [(0, 12, 0)]);
    assert_eq!(rig.pass().let_go, 0);
    assert_eq!(files(&rig), [(0, 7, 1), (7, 12, 0)]);
    assert_eq!(rig.served().len(), 12);
    assert_eq!(rig.pass().let_go, 3);
    assert!(files(&rig).iter().all(|file| file.2 == 2));
    rig.check_exactly();
}

#[test]
fn readers_are_served_while_a_pass_runs_and_around_its_switch() {
    /// Reads everything at each pause.
    struct Reads<'a>(&'a Rig, Cell<usize>);
    impl Pace for Reads<'_> {
        fn pause(&mut self, _took: Duration) -> bool {
            assert_eq!(holes(self.0), []);
            self.1.set(self.1.get() + 1);
            true
        }
    }
    let mut rig = filled();
    let old: Vec<View> = rig.written.store.lock().index.files.of(QUEUE).collect();
    let plan = rig.plan().unwrap();
    let mut reads = Reads(&rig, Cell::new(0));
    rig.written.store.compact(&plan, &mut reads).unwrap();
    assert!(reads.1.get() > 1);
    drop(plan);
    // Who found a file before the switch reads it to its end, also when it is removed meanwhile.
    let read = |view: &View| {
        rig.written
            .store
            .files
            .read(view, view.first, view.segment.end, 1 << 20)
    };
    let files: Vec<Arc<dyn DiskFile>> = old
        .iter()
        .map(|view| rig.written.store.files.file(view).unwrap())
        .collect();
    assert!(old.iter().all(|view| read(view).is_ok()));
    rig.check_exactly();
    rig.checkpoint();
    assert!(files.iter().all(|file| file.bytes().unwrap() > 0));
    let gone = rig
        .written
        .store
        .files
        .read(&old[0], old[0].first, old[0].segment.end, 1)
        .unwrap_err();
    assert!(gone.is_gone(), "and then looks again: {gone}");
    rig.check_exactly();
}

#[test]
fn a_queue_is_worth_a_pass_when_enough_of_it_is_dirty_and_its_topic_wants_it() {
    let mut rig = Rig::new(KeySettings {
        dirty_percent: 40,
        ..forever()
    });
    let messages: Vec<_> = (0..60).map(|n| value(n, 40)).collect();
    rig.append(&messages[..1], false, false);
    rig.move_all();
    let dirty = |rig: &Rig| rig.written.store.compaction_candidates(Timestamp(0), |_| true);
    assert_eq!(dirty(&rig), [], "too little for a file");
    rig.append(&messages, false, false);
    rig.move_all();
    let [found] = dirty(&rig)[..] else {
        panic!("one queue")
    };
    assert_eq!((found.queue, found.bytes), (QUEUE, found.all_bytes));
    assert_eq!(
        rig.written.store.compaction_candidates(Timestamp(0), |_| false),
        []
    );
    rig.pass();
    assert_eq!(dirty(&rig), []);
    rig.append(&messages[..25], false, false);
    rig.move_all();
    assert_eq!(dirty(&rig), [], "a third of its bytes");
    rig.append(&messages[..40], false, false);
    rig.move_all();
    let [found] = dirty(&rig)[..] else {
        panic!("one queue")
    };
    assert!(
        found.bytes * 10 > found.all_bytes * 4 && found.bytes < found.all_bytes,
        "{found:?}"
    );
    // Files that cannot be compacted are no reason.
    let dirty_files = files(&rig).into_iter().filter(|file| file.2 == 0);
    for (first, ..) in dirty_files {
        let file = (QUEUE, Offset(first));
        rig.written.store.rounds().stuck_files.insert(file);
    }
    assert_eq!(dirty(&rig), []);
}

#[test]
fn a_queue_that_does_not_compact_or_is_gone_is_in_no_plan() {
    let rig = filled();
    let store = &rig.written.store;
    let plan = |known: fn(QueueKey) -> Option<PlannedQueue>| store.plan_passes(&[QUEUE], Timestamp(0), known);
    assert!(plan(|key| Some(planned(key, 0))).is_none());
    assert!(plan(|_| None).is_none());
    let running = plan(|key| Some(compacting(key, 0)));
    assert!(running.is_some());
    assert!(
        plan(|key| Some(compacting(key, 0))).is_none(),
        "one round at a time"
    );
    assert_eq!(store.compaction_candidates(Timestamp(0), |_| true), []);
}
