//! What a round moves, and how it is served.

use std::path::Path;

use super::*;
use crate::store::Access;

#[test]
fn what_was_moved_is_served_byte_for_byte_and_its_segments_are_dead() {
    let (written, mut image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    let before = everything(&store, &ENDS);
    assert_eq!(before.len(), 31);
    let sealed = [SegmentId(1), SegmentId(2), SegmentId(3)];
    let ends = |queue: QueueKey| {
        let (_, end) = ENDS.iter().find(|(of, _)| *of == queue.0)?;
        Some((Offset(0), Offset(*end)))
    };
    assert_eq!(
        store.dead(&sealed, ends).unknown,
        [],
        "nothing is dead, nothing is asked"
    );
    store.learn(SegmentId(3)).unwrap();
    let moved = compact(&store, &[1, 2]);
    assert_eq!((moved.segments, moved.batches, moved.holes), (2, 25, 0));
    assert_eq!(everything(&store, &ENDS), before);
    assert_eq!(store.dead(&sealed, ends).segments, [SegmentId(1), SegmentId(2)]);
    image.save(store.take_rows());
    for segment in [SegmentId(1), SegmentId(2)] {
        assert!(store.free(segment));
        disk.remove(&layout::segment_file(Path::new(DATA), segment))
            .unwrap();
    }
    assert_eq!(
        everything(&store, &ENDS),
        before,
        "without the journal's segments"
    );
    image.save(store.take_rows());
    disk.crash(Crash::LoseUnsynced);
    let store = image.open(&disk);
    assert_eq!(everything(&store, &ENDS), before, "after a power loss");
    assert_eq!(store.missing(ends).unwrap(), None);
    let moved = compact(&store, &[3]);
    assert_eq!((moved.segments, moved.batches), (1, 2));
    assert_eq!(everything(&store, &ENDS), before, "behind what was there");
    assert_eq!(store.dead(&sealed, ends).segments, sealed);
}

#[test]
fn a_reader_that_goes_on_in_a_queue_file_asks_for_the_rest_of_it_and_of_those_behind_it_once() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    compact(&store, &[1, 2, 3]);
    let files: Vec<FileRow> = store.take_rows().files;
    let mut of_one: Vec<_> = files.iter().filter(|row| row.queue == QueueKey(1)).collect();
    of_one.sort_by_key(|row| row.first);
    let [first, behind @ ..] = &of_one[..] else {
        panic!("{of_one:?}")
    };
    assert!(behind.len() > 1, "{of_one:?}");
    let mut next = first.first;
    let mut asked = |access| {
        match store.fetch_by(access, QueueKey(1), next, Offset(20), 1) {
            Ok(found) => next = found.last()?.end(),
            Err(ReadError::WouldBlock) => return None,
            Err(error) => panic!("{error}"),
        }
        Some(disk.take_hints())
    };
    assert_eq!(asked(Access::Blocking), Some(vec![]), "one read is no sequence");
    let hints = asked(Access::CacheOnly).unwrap();
    let (position, bytes) = hints[0];
    let end = u64::from(first.segment.bytes);
    assert_eq!((hints.len(), position + bytes), (1, end), "the rest of its file");
    assert!(position > 0, "not what was read");
    assert_eq!(asked(Access::CacheOnly), None, "the next file is not open");
    let all: Vec<_> = behind
        .iter()
        .map(|row| (0, u64::from(row.segment.bytes)))
        .collect();
    assert_eq!(asked(Access::Blocking), Some(all));
    while let Some(hints) = asked(Access::CacheOnly) {
        assert_eq!(hints, [], "all is asked for");
    }
}

#[test]
fn who_must_not_wait_gets_what_memory_has_of_a_queue_file_in_front_of_what_needs_the_disk() {
    let mut written = Written::new(0);
    let large = "x".repeat(5000);
    for offset in 0..6 {
        written.append(1, offset, &[&large]);
    }
    written.seal();
    compact(&written.store, &[1]);
    let read = |from| {
        let (queue, end) = (QueueKey(1), Offset(6));
        let found = written
            .store
            .fetch_by(Access::CacheOnly, queue, Offset(from), end, 1 << 20);
        found.map(|found| found.len())
    };
    written.store.fetch(QueueKey(1), Offset(0), Offset(1), 1).unwrap();
    // In the third batch.
    written.disk.set_cold_from(Some(12_000));
    assert_eq!(read(0).unwrap(), 2);
    assert_eq!(read(1).unwrap(), 1);
    assert!(matches!(read(2), Err(ReadError::WouldBlock)));
    written.disk.set_cold(false);
    assert_eq!(read(2).unwrap(), 4);
}

#[test]
fn a_queue_file_is_what_is_served_and_the_next_one_is_larger() {
    let (written, _) = filled();
    let before = everything(&written.store, &[(1, 20)]);
    compact(&written.store, &[1, 2, 3]);
    let rows: Vec<FileRow> = written.store.take_rows().files;
    let of_one: Vec<_> = rows.iter().filter(|row| row.queue == QueueKey(1)).collect();
    assert!(of_one.len() > 2, "{of_one:?}");
    let mut planned_bytes = 600;
    let mut served = Vec::new();
    for row in &of_one {
        assert_eq!(row.segment.planned_bytes, planned_bytes);
        assert!(row.segment.bytes <= planned_bytes);
        planned_bytes = (planned_bytes * 2).min(2400);
        let path = layout::queue_data_file(Path::new(DATA), &row.name, row.first, row.generation);
        assert!(path.starts_with("d/queues/orders-7/101"), "{path:?}");
        let disk = written.store.folder.disk();
        let file = disk.open(&path, Mode::Read).unwrap();
        let bytes = crate::store::disk::read_up_to_at(&*file, 1 << 20, 0).unwrap();
        assert_eq!(bytes.len(), row.segment.bytes as usize);
        let mut bytes = bytes::Bytes::from(bytes);
        while let Some(stamped) = split_stamped(&mut bytes).unwrap() {
            let stamp = stamped.stamp;
            assert_eq!(stamp.queue, QueueNumber(101));
            served.push(Ok((
                stamp.base_offset.0,
                stamped.batch.record_count(),
                stamp.lsn,
                stamp.epoch,
                stamp.append_time,
                stamp.flags,
                stamped.batch.bytes().clone(),
            )));
        }
    }
    assert_eq!(served, before);
}

#[test]
fn s6_a_damaged_batch_is_left_out_and_becomes_a_hole() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b", "c"]);
    written.append(2, 0, &["x"]);
    let path = written.path();
    written.seal();
    let mut bytes = written.disk.content(&path).unwrap();
    // In the second batch.
    let at = 64 + (batch("a").len() + 60) + batch("b").len() - 1;
    bytes[at] ^= 1;
    written.disk.set_content(&path, bytes);
    let moved = compact(&written.store, &[1]);
    assert_eq!((moved.batches, moved.holes), (3, 1));
    let expected = vec![Ok("a".into()), Err((1, 2)), Ok("c".into())];
    assert_eq!(written.fetch(1, 0, 3), expected);
    assert_eq!(written.fetch(1, 1, 3), expected[1..]);
    assert_eq!(written.fetch(2, 0, 1), ok(&["x"]));
}

#[test]
fn s12_a_segment_whose_index_is_damaged_stays_and_those_behind_it_move() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a"]);
    written.seal();
    written.append(1, 1, &["b"]);
    let path = written.path();
    written.seal();
    written.append(1, 2, &["c"]);
    written.seal();
    let mut bytes = written.disk.content(&path).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    written.disk.set_content(&path, bytes);
    written.store.segments.forget_footers();
    let moved = compact(&written.store, &[1, 2, 3]);
    assert_eq!((moved.segments, moved.batches), (2, 2));
    let all: Vec<_> = (0..3).flat_map(|from| written.fetch(1, from, from + 1)).collect();
    assert_eq!(all, [Ok("a".into()), Err((1, 2)), Ok("c".into())]);
    let sealed = [1, 2, 3].map(SegmentId);
    let dead = written.store.dead(&sealed, |_| Some((Offset(0), Offset(3))));
    assert_eq!(dead.segments, [SegmentId(1), SegmentId(3)]);
    let again = written.store.plan(&sealed, 9, &[], |key| Some(planned(key, 0)));
    assert!(again.is_none(), "it is not tried again and again");
}

#[test]
fn s18_who_found_rows_before_they_moved_is_served_from_the_queue_file() {
    let written = {
        let mut written = Written::new(0);
        written.append(1, 0, &["a", "b"]);
        written.seal();
        written
    };
    compact(&written.store, &[1]);
    // As if a reader stood between the look at the index and the file: the segment goes, the answer does not.
    assert!(written.store.free(SegmentId(1)));
    assert_eq!(written.fetch(1, 0, 2), ok(&["a", "b"]));
    assert_eq!(written.fetch(1, 1, 2), ok(&["b"]));
}

/// Two batches of one queue, as they were first written.
#[test]
fn the_golden_files_of_a_queue_are_written_and_read() {
    let mut written = Written::new(0);
    written.append(1, 0, &["first message", "second message"]);
    written.seal();
    compact(&written.store, &[1]);
    let name = planned(QueueKey(1), 0).name;
    let data = layout::queue_data_file(Path::new(DATA), &name, Offset(0), 0);
    let index = layout::queue_index_file(Path::new(DATA), &name, Offset(0), 0);
    let golden = |name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        std::fs::read(path).unwrap()
    };
    assert_eq!(written.disk.content(&data).unwrap(), golden("queue-v1.data"));
    assert_eq!(written.disk.content(&index).unwrap(), golden("queue-v1.index"));
}

#[test]
fn a_time_is_narrowed_to_what_lies_between_two_marks() {
    let mut written = Written::new(0);
    let text = "x".repeat(3000);
    for base in 0..60 {
        // The n-th entry has time n.
        written.append(1, base, &[&text]);
    }
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let wide = Settings {
        tail_bytes: 0,
        queue_segment_bytes: 40_000,
        ..Settings::default()
    };
    let store = Store::open(&written.folder, wide, image.rows());
    compact(&store, &[1]);
    assert!(store.take_rows().files.len() > 1);
    for time in 0..63 {
        let (low, high) = store.narrow(QueueKey(1), (Offset(0), Offset(60)), Timestamp(time));
        let wanted = time.saturating_sub(1).min(60);
        assert!(low.0 <= wanted && wanted <= high.0, "{time}: {low} to {high}");
        assert!(high.0 - low.0 <= 6, "{time}: {low} to {high}");
        let (low, high) = store.narrow(QueueKey(1), (Offset(20), Offset(30)), Timestamp(time));
        assert!(Offset(20) <= low && low <= high && high <= Offset(30));
    }
    assert_eq!(
        store.narrow(QueueKey(2), (Offset(3), Offset(9)), Timestamp(1)),
        (Offset(3), Offset(9))
    );
}
