//! What goes on while a round runs: queues are trimmed, and segments are freed under it.

use std::path::Path;

use super::*;

/// Does something once, at the first pause.
struct Once<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Pace for Once<F> {
    fn pause(&mut self, _took: Duration) -> bool {
        if let Some(act) = self.0.take() {
            act();
        }
        true
    }
}

/// Segment 1 holds nothing but a half message. It becomes the first one of queue 3 in segment 2, before
/// others of that queue and behind some of queue 1.
fn half_of_an_older_segment() -> (Written, Image) {
    let mut written = Written::new(0);
    let half = written.entry(&[batch("half")], false, |store, entry| {
        let held = 0..1;
        let effects = Update {
            halves: std::slice::from_ref(&held),
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    written.append(1, 0, &["a", "b"]);
    written.entry(&[], false, |store, entry| {
        let placements = [placement(3, 0, Source::Half(BatchAt { lsn: half, index: 0 }))];
        let effects = Update {
            placements: &placements,
            released_halves: &[half],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.append(3, 1, &["c", "d", "e"]);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let sync = written.disk.begin_filesystem_sync(Path::new(DATA)).unwrap();
    sync.unwrap().finish().unwrap();
    written.store = Store::open(&written.folder, settings(), image.rows());
    written.store.learn(SegmentId(2)).unwrap();
    (written, image)
}

fn free(written: &Written, segment: SegmentId) {
    assert!(written.store.free(segment));
    let path = layout::segment_file(Path::new(DATA), segment);
    written.disk.remove(&path).unwrap();
}

#[test]
fn a_segment_that_is_freed_under_a_round_takes_only_its_own_trimmed_messages_away() {
    let (mut written, image) = half_of_an_older_segment();
    let image = std::cell::RefCell::new(image);
    let mut freed = Vec::new();
    let sealed = [1, 2].map(SegmentId);
    let running = plan(&written.store, &[2], 0);
    let mut trims = Once(Some(|| {
        // Retention trims the half message, a checkpoint is saved, and what it left dead is freed.
        let ends = |queue: QueueKey| match queue.0 {
            3 => Some((Offset(1), Offset(4))),
            _ => Some((Offset(0), Offset(2))),
        };
        freed = written.store.dead(&sealed, ends).segments;
        image.borrow_mut().save(written.store.take_rows());
        freed.iter().for_each(|segment| free(&written, *segment));
    }));
    let moved = written.store.compact(&running, &mut trims).unwrap();
    drop(running);
    assert_eq!(freed, [SegmentId(1)]);
    assert_eq!((moved.segments, moved.batches, moved.holes), (1, 5, 0));
    image.borrow_mut().save(written.store.take_rows());
    free(&written, SegmentId(2));
    written.disk.crash(Crash::LoseUnsynced);
    written.store = image.borrow().open(&written.disk);
    assert_eq!(written.fetch(3, 1, 4), ok(&["c", "d", "e"]));
    assert_eq!(written.fetch(1, 0, 2), ok(&["a", "b"]));
}

#[test]
fn a_segment_whose_messages_were_freed_though_a_queue_has_them_stays() {
    let (written, _) = half_of_an_older_segment();
    let running = plan(&written.store, &[2], 0);
    let mut frees = Once(Some(|| free(&written, SegmentId(1))));
    let moved = written.store.compact(&running, &mut frees).unwrap();
    drop(running);
    assert_eq!((moved.segments, moved.batches, moved.holes), (0, 0, 0));
    assert_eq!(written.store.take_rows().files, []);
    assert_eq!(written.fetch(3, 1, 4), ok(&["c", "d", "e"]));
}

#[test]
fn of_a_queue_that_is_deleted_under_a_round_nothing_has_to_be_there() {
    let (written, _) = half_of_an_older_segment();
    let sealed = [1, 2].map(SegmentId);
    let running = plan(&written.store, &[2], 0);
    let mut deletes = Once(Some(|| {
        let ends = |queue: QueueKey| (queue.0 != 3).then_some((Offset(0), Offset(2)));
        let dead = written.store.dead(&sealed, ends);
        assert_eq!(dead.segments, [SegmentId(1)]);
        free(&written, SegmentId(1));
    }));
    let moved = written.store.compact(&running, &mut deletes).unwrap();
    assert_eq!((moved.segments, moved.holes), (1, 0));
    assert_eq!(written.fetch(1, 0, 2), ok(&["a", "b"]));
}

#[test]
fn offsets_that_an_index_passes_over_become_a_hole_that_is_counted() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b"]);
    written.append(1, 5, &["c"]);
    written.seal();
    let moved = compact(&written.store, &[1]);
    assert_eq!((moved.segments, moved.batches, moved.holes), (1, 3, 1));
    let expected = vec![Ok("a".into()), Ok("b".into()), Err((2, 5)), Ok("c".into())];
    assert_eq!(written.fetch(1, 0, 6), expected);
    assert_eq!(written.fetch(1, 3, 6), [Err((3, 5)), Ok("c".into())]);
}

#[test]
fn offsets_that_an_index_passes_over_below_the_start_are_no_hole() {
    let mut written = Written::new(0);
    written.append(2, 0, &["x"]);
    written.append(3, 0, &["a", "b"]);
    written.append(3, 5, &["c"]);
    written.seal();
    let running = plan(&written.store, &[1], 0);
    let mut trims = Once(Some(|| {
        let ends = |queue: QueueKey| Some((Offset(if queue.0 == 3 { 5 } else { 0 }), Offset(6)));
        assert_eq!(written.store.dead_of_all(&[], ends).files, []);
    }));
    let moved = written.store.compact(&running, &mut trims).unwrap();
    assert_eq!((moved.segments, moved.batches, moved.holes), (1, 4, 0));
    assert_eq!(written.fetch(3, 5, 6), ok(&["c"]));
}

#[test]
fn a_file_that_waits_for_its_removal_is_left_to_those_who_remove_it() {
    let (written, mut image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    compact(&store, &[1]);
    image.save(store.take_rows());
    // All of what was moved is trimmed, as a checkpoint has it that was saved; and the next start.
    let ends = |queue: QueueKey| Some((Offset(if queue.0 == 1 { 8 } else { 0 }), Offset(22)));
    let dead = store.dead_of_all(&[], ends).files;
    assert!(!dead.is_empty());
    image.save(store.take_rows());
    let store = Store::open(&store.folder, settings(), image.rows());
    compact(&store, &[2, 3]);
    let there = |row: &FileRow| {
        let path = layout::queue_data_file(Path::new(DATA), &row.name, row.first, row.generation);
        disk.content(&path).is_some()
    };
    assert!(dead.iter().all(there), "another checkpoint may need it");
    for row in &dead {
        store.remove_file(row).unwrap();
        assert!(!there(row));
    }
    assert_eq!(everything_from(&store, 1, 8, 22), 14);
}

#[test]
fn files_of_a_running_round_are_not_swept_with_the_last_one_that_is_listed() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    compact(&store, &[1]);
    let dead = store
        .dead_of_all(&[], |queue| (queue.0 != 1).then_some((Offset(0), Offset(7))))
        .files;
    assert!(!dead.is_empty());
    let running = plan(&store, &[2, 3], 0);
    // Behind queue 1, before the index knows of its new files.
    let mut removes = Once(Some(|| {
        dead.iter().for_each(|row| store.remove_file(row).unwrap());
    }));
    store.compact(&running, &mut removes).unwrap();
    drop(running);
    assert_eq!(everything_from(&store, 1, 8, 20), 12);
}
