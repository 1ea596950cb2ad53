//! What is no longer needed is removed, and when.

use std::path::Path;

use mq_common::batch::{Builder, BuilderOptions, Record};

use super::*;
use crate::state::Placement;

#[test]
fn files_below_the_starts_and_of_deleted_queues_go_after_the_checkpoint() {
    let (written, mut image) = filled();
    let store = &written.store;
    compact(store, &[1, 2, 3]);
    image.save(store.take_rows());
    let ends = |queue: QueueKey| match queue.0 {
        1 => Some((Offset(19), Offset(22))),
        2 => Some((Offset(5), Offset(7))),
        _ => None,
    };
    let dead = store.dead_of_all(&[], ends);
    let of = |queue| {
        dead.files
            .iter()
            .filter(move |row| row.queue == QueueKey(queue))
            .count()
    };
    let listed = |queue| {
        image
            .files
            .values()
            .filter(|row| row.queue == QueueKey(queue))
            .count()
    };
    assert_eq!((of(1), of(2), of(3)), (listed(1) - 1, listed(2), 1));
    image.save(store.take_rows());
    // A crash before they are removed: the next start knows what is left to do.
    let again = Store::open(&store.folder, settings(), image.rows());
    let mut left = again.dead_of_all(&[], ends).files;
    left.sort_by_key(|row| (row.queue, row.first));
    let mut expected = dead.files;
    expected.sort_by_key(|row| (row.queue, row.first));
    assert_eq!(left, expected);
    for row in &left {
        again.remove_file(row).unwrap();
        again.remove_file(row).unwrap();
    }
    image.save(again.take_rows());
    assert_eq!(image.files.len(), 1);
    let disk = store.folder.disk();
    for (queue, files) in [(1, 3), (2, 0), (3, 0)] {
        let folder = layout::queue_folder(Path::new(DATA), &planned(QueueKey(queue), 0).name);
        assert_eq!(disk.list(&folder).unwrap().len(), files, "queue {queue}");
    }
    assert_eq!(everything_from(&again, 1, 19, 22), 3);
}

#[test]
fn no_file_goes_while_a_round_runs_and_there_is_one_round_at_a_time() {
    let (written, _) = filled();
    let store = &written.store;
    compact(store, &[1]);
    let running = plan(store, &[2, 3], 0);
    let second = store.plan(&[SegmentId(3)], 1, &[], |key| Some(planned(key, 0)));
    assert!(second.is_none());
    assert!(store.dead_of_all(&[], |_| None).files.is_empty());
    drop(running);
    assert!(!store.dead_of_all(&[], |_| None).files.is_empty());
}

#[test]
fn a_file_of_which_little_is_valid_is_rewritten() {
    let mut written = Written::new(0);
    let texts: Vec<String> = (0..20).map(|n| format!("{n} {}", "x".repeat(50))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    written.append(1, 0, &texts);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let folder = Arc::clone(&written.folder);
    let store = Store::open(&folder, settings(), image.rows());
    compact(&store, &[1]);
    let bytes_before = store.queue_file_bytes();
    // Of the last file, offsets up to the end, only the last two remain.
    let ends = |_| Some((Offset(18), Offset(20)));
    let dead = store.dead_of_all(&[], ends);
    for row in &dead.files {
        store.remove_file(row).unwrap();
    }
    assert_eq!(dead.hints.sparse.len(), 1, "{dead:?}");
    let plan = store
        .plan(&[], 0, &dead.hints.sparse, |key| Some(planned(key, 18)))
        .unwrap();
    let moved = store.compact(&plan, &mut Unhurried).unwrap();
    drop(plan);
    assert_eq!((moved.rewritten, moved.batches), (1, 2));
    assert!(store.queue_file_bytes() < bytes_before / 5);
    assert_eq!(everything_from(&store, 1, 18, 20), 2);
    let gone = store.dead_of_all(&[], ends);
    assert_eq!((gone.files.len(), gone.hints.sparse.len()), (1, 0));
    for row in &gone.files {
        store.remove_file(row).unwrap();
    }
    assert_eq!(everything_from(&store, 1, 18, 20), 2, "the old one is gone");
}

#[test]
fn a_file_that_cannot_be_read_does_not_keep_the_others_from_their_rewrite() {
    let mut written = Written::new(0);
    let texts: Vec<String> = (0..20).map(|n| format!("{n} {}", "x".repeat(50))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    written.append(1, 0, &texts);
    written.append(2, 0, &texts);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let store = Store::open(&written.folder, settings(), image.rows());
    compact(&store, &[1]);
    let ends = |_| Some((Offset(18), Offset(20)));
    let sparse = store.dead_of_all(&[], ends).hints.sparse;
    assert!(
        matches!(sparse[..], [(QueueKey(1), _), (QueueKey(2), _)]),
        "{sparse:?}"
    );
    let name = planned(QueueKey(1), 0).name;
    let lost = layout::queue_data_file(Path::new(DATA), &name, sparse[0].1, 0);
    let content = written.disk.content(&lost).unwrap();
    written.disk.remove(&lost).unwrap();
    image.save(store.take_rows());
    let store = Store::open(&written.folder, settings(), image.rows());
    let plan = store.plan(&[], 0, &sparse, |key| Some(planned(key, 18))).unwrap();
    let moved = store.compact(&plan, &mut Unhurried).unwrap();
    drop(plan);
    assert_eq!((moved.rewritten, moved.batches), (1, 2));
    assert_eq!(everything_from(&store, 2, 18, 20), 2);
    assert!(
        store.dead_of_all(&[], ends).hints.sparse.is_empty(),
        "it is not tried again"
    );
    // The next start does, and nothing of it was given up.
    let file = written.disk.open(&lost, Mode::CreateNew).unwrap();
    crate::store::disk::write_all_at(&*file, &mut [io::IoSlice::new(&content)], 0).unwrap();
    image.save(store.take_rows());
    let again = Store::open(&written.folder, settings(), image.rows());
    assert_eq!(again.dead_of_all(&[], ends).hints.sparse, sparse[..1]);
    assert_eq!(everything_from(&again, 1, 18, 20), 2);
}

#[test]
fn a_file_that_one_batch_fills_is_not_tried_again_before_its_queue_begins_elsewhere() {
    let mut written = Written::new(0);
    let mut builder = Builder::new(BuilderOptions::default());
    for _ in 0..20 {
        builder.push(&Record::new(&[b'x'; 50], Timestamp(5))).unwrap();
    }
    written.entry(&[builder.finish().unwrap()], false, |store, entry| {
        let placed = Placement {
            records: 20,
            ..placement(1, 0, Source::Here(0))
        };
        let effects = Update {
            placements: &[placed],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let store = Store::open(&written.folder, settings(), image.rows());
    compact(&store, &[1]);
    let starting_at = |start| move |_| Some((Offset(start), Offset(20)));
    for start in [18, 19] {
        let sparse = store.dead_of_all(&[], starting_at(start)).hints.sparse;
        assert_eq!(sparse, [(QueueKey(1), Offset(0))], "worth a try");
        let plan = store.plan(&[], 0, &sparse, |key| Some(planned(key, start)));
        let moved = store.compact(&plan.unwrap(), &mut Unhurried).unwrap();
        assert_eq!((moved.rewritten, moved.batches), (0, 0));
        assert!(store.dead_of_all(&[], starting_at(start)).hints.sparse.is_empty());
        assert!(store.dead_of_all(&[], starting_at(start)).hints.sparse.is_empty());
    }
}

#[test]
fn a_file_that_counts_is_never_made_anew() {
    let (written, _) = filled();
    let store = &written.store;
    compact(store, &[1, 2, 3]);
    let before = everything(store, &ENDS);
    let key = QueueKey(1);
    let listed: Vec<View> = store.lock().index.files.of(key).collect();
    let mut swept = HashSet::new();
    let bytes = store.queue_segment_bytes;
    let mut appends = Appends::new(&store.files, bytes, &mut swept, HashSet::new(), true);
    let name = planned(key, 0).name;
    let mut appender = appends.apart(key, &name, 0, &listed).unwrap();
    let refused = appender.hole(listed[0].first, Offset(1));
    assert!(matches!(refused, Err(AppendError::Counts { .. })), "{refused:?}");
    appends.tidy(false);
    assert_eq!(everything(store, &ENDS), before);
}

#[test]
fn a_round_that_is_told_to_stop_changes_nothing() {
    struct Stop;
    impl Pace for Stop {
        fn pause(&mut self, _took: Duration) -> bool {
            false
        }
    }
    let (written, _) = filled();
    let before = everything(&written.store, &ENDS);
    let stopped = written
        .store
        .compact(&plan(&written.store, &[1, 2, 3], 0), &mut Stop);
    assert!(matches!(stopped, Err(RoundError::Stopped)));
    assert_eq!(written.store.take_rows(), Rows::default());
    assert_eq!(everything(&written.store, &ENDS), before);
}

#[test]
fn s26_a_start_with_ten_thousand_queues_opens_no_queue_file() {
    let disk = TestDisk::default();
    let mut image = Image::default();
    for queue in 0..10_000 {
        let key = QueueKey(queue);
        let row = FileRow {
            queue: key,
            first: Offset(0),
            generation: 0,
            segment: crate::store::FileSegment {
                end: Offset(10),
                bytes: 1000,
                planned_bytes: 1 << 20,
            },
            name: planned(key, 0).name,
            is_gone: false,
        };
        image.files.insert(row.key(), row);
    }
    drop(Image::default().open(&disk));
    let without = disk.looks();
    let store = image.open(&disk);
    let ends = |_| Some((Offset(0), Offset(10)));
    assert_eq!(store.missing(ends).unwrap(), None);
    assert!(store.dead_of_all(&[], ends).files.is_empty());
    let with = disk.looks() - without;
    assert_eq!(with, without, "no more than without any queue");
    assert_eq!(store.queue_file_bytes(), 10_000_000);
}

#[test]
fn nothing_is_rewritten_in_a_round_that_may_append_to_the_same_file() {
    let mut written = Written::new(0);
    let texts = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    written.append(1, 0, &texts);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    // One file, which is the one that grows.
    let wide = Settings {
        queue_segment_bytes: 1 << 20,
        queue_segment_bytes_max: 1 << 20,
        ..settings()
    };
    written.store = Store::open(&written.folder, wide, image.rows());
    compact(&written.store, &[1]);
    written.append(1, 10, &["k"]);
    written.seal();
    let sparse = [(QueueKey(1), Offset(0))];
    let known = |key| Some(planned(key, 9));
    let plan = written.store.plan(&[SegmentId(2)], 9, &sparse, known).unwrap();
    assert_eq!((plan.segments.len(), plan.rewrites.len()), (1, 0));
    written.store.compact(&plan, &mut Unhurried).unwrap();
    drop(plan);
    assert_eq!(written.fetch(1, 9, 11), ok(&["j", "k"]));
    let plan = written.store.plan(&[SegmentId(2)], 9, &sparse, known).unwrap();
    let moved = written.store.compact(&plan, &mut Unhurried).unwrap();
    assert_eq!((moved.rewritten, moved.batches), (1, 2));
    assert_eq!(written.fetch(1, 9, 11), ok(&["j", "k"]));
}

#[test]
fn what_a_broken_round_left_goes_with_the_last_file_of_its_queue() {
    let (written, _) = filled();
    let store = &written.store;
    compact(store, &[1, 2, 3]);
    let folder = layout::queue_folder(Path::new(DATA), &planned(QueueKey(2), 0).name);
    let disk = store.folder.disk();
    let stray = folder.join("queue_data.00000000000000000777");
    disk.open(&stray, Mode::CreateNew).unwrap();
    let dead = store.dead_of_all(&[], |_| None);
    for row in &dead.files {
        store.remove_file(row).unwrap();
    }
    assert!(disk.list(&folder).unwrap().is_empty());
}

/// The files below `queues/`, with their bytes.
fn files(disk: &TestDisk) -> Vec<(PathBuf, usize)> {
    let names = disk.names().into_iter();
    names
        .filter(|name| {
            name.starts_with(layout::queues_folder(Path::new(DATA))) && !name.ends_with("queue_stat.txt")
        })
        .map(|name| {
            let bytes = disk.content(&name).unwrap().len();
            (name, bytes)
        })
        .collect()
}

#[test]
fn s5_a_round_that_finds_the_disk_full_gives_its_space_back_and_may_be_tried_again() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    let before = everything(&store, &ENDS);
    compact(&store, &[1]);
    let listed = files(&disk);
    assert!(!listed.is_empty());
    for writes in 1..6 {
        disk.set_faults(Faults {
            full_from_write: disk.writes() + writes,
            ..Faults::default()
        });
        let full = store.compact(&plan(&store, &[2, 3], 0), &mut Unhurried);
        assert!(matches!(full, Err(RoundError::Queue { .. })), "{full:?}");
        let data = |files: Vec<(PathBuf, usize)>| {
            let is_data = |name: &PathBuf| name.to_string_lossy().contains("queue_data");
            files
                .into_iter()
                .filter(|(name, _)| is_data(name))
                .collect::<Vec<_>>()
        };
        assert_eq!(data(files(&disk)), data(listed.clone()), "{writes}");
        assert_eq!(everything(&store, &ENDS), before);
    }
    disk.set_faults(Faults::default());
    compact(&store, &[2, 3]);
    assert_eq!(everything(&store, &ENDS), before);
}

#[test]
fn s6_a_segment_that_the_disk_cannot_read_stays_and_the_others_move() {
    let (written, image) = filled();
    let mut tried = 0;
    // Each read of the round in turn.
    for read in 1.. {
        let disk = written.disk.fork();
        let store = image.open(&disk);
        disk.set_faults(Faults {
            fail_read: disk.reads() + read,
            ..Faults::default()
        });
        let moved = store
            .compact(&plan(&store, &[1, 2, 3], 0), &mut Unhurried)
            .unwrap();
        disk.set_faults(Faults::default());
        let before = everything(&written.store, &ENDS);
        assert_eq!(everything(&store, &ENDS), before, "read {read}");
        if moved.segments == 3 {
            break;
        }
        assert_eq!(moved.segments, 2, "read {read}");
        // And once more, over what was left behind.
        let mut after = image.clone();
        after.save(store.take_rows());
        let store = after.open(&disk.fork());
        let left: Vec<u64> = after.segments.keys().map(|(_, segment)| segment.0).collect();
        compact(&store, &left[..1]);
        assert_eq!(everything(&store, &ENDS), before, "read {read}, again");
        tried += 1;
    }
    assert!(tried >= 6, "{tried}");
}

#[test]
fn numbers_of_queue_files_follow_the_last_round_of_a_burst_and_trims_without_another_round() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = &image.open(&disk);
    let path = layout::queue_stat_file(Path::new(DATA), &planned(QueueKey(1), 0).name);
    let number = |name: &str| -> u64 {
        let text = String::from_utf8(disk.content(&path).unwrap()).unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    };
    let mut now = Instant::now();
    let mut later = || {
        now += Duration::from_secs(61);
        store.write_stats(now);
    };
    compact(store, &[1]);
    let first = number("messages");
    compact(store, &[2]);
    compact(store, &[3]);
    assert_eq!(number("messages"), first, "at most once a minute");
    later();
    let all = number("messages");
    assert!(all > first, "{all}");
    assert_eq!(number("valid_messages"), all);
    store.lock().index.start_moved([QueueKey(1)]);
    drop(store.dead(&[], |_| Some((Offset(3), Offset(22)))));
    later();
    assert_eq!((number("messages"), number("valid_messages")), (all, all - 3));
}
