//! What readers get of places that the disk cannot read, and of files that are gone.

use super::*;

fn segment_path(segment: u64) -> PathBuf {
    layout::segment_file(Path::new(DATA), SegmentId(segment))
}

/// The store of an image, whose readers wait so long for a disk that gets over it.
fn open(disk: &TestDisk, image: &Image, patience: Duration) -> Store {
    let folder = Folder::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
    let settings = Settings {
        unreadable_patience: patience,
        ..settings()
    };
    Store::open(&folder, settings, image.rows())
}

fn holes(served: &[Served]) -> Vec<(u64, u64)> {
    served.iter().filter_map(|served| served.clone().err()).collect()
}

/// What is served lies at its place and is what it was; what is a hole is nothing else; there is nothing but
/// these.
fn are_the_same_but_for_holes(served: &[Served], all: &[Served]) {
    let whole = served.iter().filter(|served| served.is_ok());
    let expected = all.iter().filter(|one| {
        let Ok((offset, ..)) = one else { return false };
        !holes(served)
            .iter()
            .any(|(from, end)| (from..end).contains(&offset))
    });
    assert!(whole.eq(expected), "{served:?}");
}

/// Queues 1 and 2, in turn, with so many messages of about these bytes in one sealed segment; and a store of it.
fn one_segment(messages: usize, bytes: usize, patience: Duration) -> (Written, TestDisk, Store) {
    let texts: Vec<String> = (0..messages)
        .map(|n| format!("{n:04} {}", "x".repeat(bytes)))
        .collect();
    let mut written = Written::new(0);
    for (base, text) in (0..).zip(&texts) {
        written.append(1, base, &[text]);
        written.append(2, base, &[text]);
    }
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let disk = written.disk.fork();
    let store = open(&disk, &image, patience);
    (written, disk, store)
}

/// The messages of a queue that bytes of the first segment hold a part of.
fn lie_in(store: &Store, queue: u32, bytes: &Range<u64>) -> Vec<(u64, u64)> {
    let rows = store.segments.footer(SegmentId(1)).unwrap();
    let rows = (0..rows.len()).filter_map(|at| rows.get(at));
    rows.filter(|row| {
        let from = u64::from(row.location.position);
        let end = from + u64::from(row.location.bytes);
        row.queue == QueueKey(queue) && from < bytes.end && bytes.start < end
    })
    .map(|row| (row.base_offset.0, row.end().0))
    .collect()
}

#[test]
fn s6_a_bad_block_of_the_journal_is_a_hole_of_what_lies_in_it_and_all_others_are_served() {
    let (written, disk, store) = one_segment(30, 500, Duration::ZERO);
    let ends = [(1, 30), (2, 30)];
    let bad = 3 * 4096..4 * 4096;
    disk.set_unreadable(&segment_path(1), bad.clone());
    for (queue, end) in ends {
        let all = everything(&written.store, &[(queue, end)]);
        let served = everything(&store, &[(queue, end)]);
        are_the_same_but_for_holes(&served, &all);
        let expected = lie_in(&written.store, queue, &bad);
        assert!(expected.len() > 2, "{expected:?}");
        assert_eq!(holes(&served), expected);
    }
    // Nothing is remembered against the disk for long.
    disk.set_unreadable(&segment_path(1), 0..0);
    store.pass(Duration::from_secs(60));
    assert_eq!(everything(&store, &ends), everything(&written.store, &ends));
}

#[test]
fn s6_a_bad_place_full_of_small_messages_takes_few_reads_that_fail_however_long_each_takes() {
    for each in [Duration::ZERO, Duration::from_secs(1)] {
        let patience = Duration::from_secs(30);
        let (written, disk, store) = one_segment(1000, 100, patience);
        let bad = 2 * 4096..82 * 4096;
        let blocks = 80;
        let expected = lie_in(&written.store, 1, &bad);
        let (first, behind) = (expected[0].0, expected.last().unwrap().1);
        assert!(expected.len() > 500 && behind < 1000, "{}", expected.len());
        let fetch = |from| store.fetch(QueueKey(1), Offset(from), Offset(1000), 1 << 20);
        disk.set_unreadable(&segment_path(1), bad);
        assert!(fetch(first).is_err());
        store.pass(patience);
        disk.set_failing_takes(store.segments.footers.clock.clone(), each);
        let (mut next, mut lost) = (first, Vec::new());
        let begun = disk.failed_reads();
        while next < behind {
            let before = disk.failed_reads();
            let found = fetch(next).unwrap();
            let failed = disk.failed_reads() - before;
            assert!(failed <= if each.is_zero() { 33 } else { 3 }, "{failed}");
            next = found.last().expect("it goes on").end().0;
            lost.extend(
                found
                    .iter()
                    .filter(|found| found.is_damage())
                    .map(|found| (found.from().0, found.end().0)),
            );
        }
        assert_eq!(lost, expected);
        let failed = disk.failed_reads() - begun;
        assert!(failed <= 2 * blocks + 2, "{failed} for {blocks} blocks");
    }
}

#[test]
fn a_place_that_cannot_be_read_is_no_hole_at_once_and_what_is_before_it_is_served() {
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = open(&disk, &image, Duration::from_secs(3600));
    disk.set_unreadable(&segment_path(1), 500..501);
    let fetch = |from| store.fetch(QueueKey(1), Offset(from), Offset(22), 1 << 20);
    let before = fetch(0).unwrap();
    let next = before.last().unwrap().end();
    assert!(
        !before.iter().any(Found::is_damage) && next < Offset(8),
        "{before:?}"
    );
    for _ in 0..3 {
        let refused = fetch(next.0);
        assert!(matches!(&refused, Err(error) if error.is_loss()), "{refused:?}");
    }
    disk.set_unreadable(&segment_path(1), 0..0);
    assert_eq!(everything(&store, &ENDS), all);
}

#[test]
fn s12_a_footer_that_the_disk_cannot_read_is_made_again_or_a_hole_and_nothing_else_is_lost() {
    let (written, image) = filled();
    let all = everything(&written.store, &[(1, 22)]);
    let rows: Vec<PlacedRow> = {
        let footer = written.store.segments.footer(SegmentId(1)).unwrap();
        (0..footer.len()).map(|at| footer.get(at).unwrap()).collect()
    };
    let bytes = written.disk.content(&segment_path(1)).unwrap().len() as u64;
    let disk = written.disk.fork();
    disk.set_unreadable(&segment_path(1), bytes - 10..bytes);
    let store = open(&disk, &image, Duration::ZERO);
    let without = everything(&store, &[(1, 22)]);
    assert_eq!(holes(&without), [(0, 8)]);
    are_the_same_but_for_holes(&without, &all);
    let unknown = store.extent(QueueKey(1), Offset(3), Offset(22)).unwrap().unwrap();
    assert_eq!(
        (unknown.end, unknown.time),
        (Offset(8), None),
        "retention goes on"
    );
    let ends = (Offset(0), Offset(22));
    assert_eq!(
        store.bytes_behind(QueueKey(1), ends, u64::MAX).unwrap(),
        Offset(0)
    );
    let store = open(&disk.fork(), &image, Duration::ZERO).rebuilt_by(Arc::new(damage::Makes(rows)));
    assert_eq!(everything(&store, &[(1, 22)]), all);
}

#[test]
fn s6_all_that_lies_in_a_bad_place_is_a_hole_when_the_first_of_it_is_and_is_asked_of_the_disk_once_a_minute()
{
    let patience = Duration::from_secs(30);
    let (written, disk, store) = one_segment(30, 500, patience);
    let bad = 2 * 4096..6 * 4096;
    let expected = lie_in(&written.store, 1, &bad);
    let (first, behind) = (expected[0].0, expected.last().unwrap().1);
    let fetch = |from| store.fetch(QueueKey(1), Offset(from), Offset(30), 1 << 20);
    // To the end, in as many fetches as that takes, and no time.
    let lost = |from| {
        let (mut next, mut lost) = (from, Vec::new());
        while next < 30 {
            let found = fetch(next).unwrap();
            next = found.last().unwrap().end().0;
            let damaged = found.iter().filter(|found| found.is_damage());
            lost.extend(damaged.map(|found| (found.from().0, found.end().0)));
        }
        lost
    };
    disk.set_unreadable(&segment_path(1), bad.clone());
    let before = fetch(0).unwrap();
    let is_before = |found: &Found| !found.is_damage() && found.end() <= Offset(first);
    assert!(before.iter().all(is_before), "{before:?}");
    assert!(fetch(first).is_err());
    // Read well once between: anew.
    disk.set_unreadable(&segment_path(1), 0..0);
    assert_eq!(lost(first), []);
    store.pass(patience);
    disk.set_unreadable(&segment_path(1), bad);
    assert!(fetch(first).is_err());
    store.pass(patience);
    assert_eq!(lost(first), expected, "at once, not one after the other");
    let (reads, failed) = (disk.reads(), disk.failed_reads());
    for _ in 0..3 {
        assert_eq!(lost(first), expected);
    }
    assert_eq!(disk.failed_reads(), failed);
    assert!(disk.reads() - reads <= 3 * (30 - behind), "only what can be read");
    store.pass(Duration::from_secs(60));
    disk.set_unreadable(&segment_path(1), 0..0);
    assert_eq!(lost(first), [], "nothing is remembered against the disk");
}

#[test]
fn rows_of_a_segment_that_a_round_moved_meanwhile_are_looked_for_elsewhere() {
    let (written, image) = filled();
    let store = image
        .open(&written.disk.fork())
        .rebuilt_by(Arc::new(damage::Makes(Vec::new())));
    compact(&store, &[1]);
    let damage = ReadError::Footer {
        segment: SegmentId(1),
        reason: "read before the round was done".to_owned(),
    };
    let again = store.rebuild(SegmentId(1), damage).unwrap_err();
    assert!(again.may_have_moved(), "and no hole of what it held: {again}");
}

/// Queue 1 with 60 messages of a kilobyte in the one queue file of this path, and one more in the journal.
fn long_file() -> (Written, Image, PathBuf) {
    let texts: Vec<String> = (0..60).map(|n| format!("{n:04} {}", "x".repeat(1000))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut written = Written::new(0);
    written.append(1, 0, &texts);
    written.seal();
    compact(&written.store, &[1]);
    written.append(1, 60, &["behind"]);
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let name = planned(QueueKey(1), 0).name;
    let path = layout::queue_data_file(Path::new(DATA), &name, Offset(0), 0);
    (written, image, path)
}

#[test]
fn s6_a_bad_sector_of_a_queue_file_is_a_hole_and_all_around_it_is_served() {
    let (written, image, path) = long_file();
    let all = everything(&open(&written.disk.fork(), &image, Duration::ZERO), &[(1, 61)]);
    assert_eq!((all.len(), holes(&all).len()), (61, 0));
    for block in [0, 4, 14] {
        written
            .disk
            .set_unreadable(&path, block * 4096..(block + 1) * 4096);
        let store = open(&written.disk.fork(), &image, Duration::ZERO);
        let served = everything(&store, &[(1, 61)]);
        are_the_same_but_for_holes(&served, &all);
        let lost: u64 = holes(&served).iter().map(|(from, end)| end - from).sum();
        assert!((1..20).contains(&lost), "{:?}", holes(&served));
        let ends = (Offset(0), Offset(61));
        assert!(store.extent(QueueKey(1), Offset(20), Offset(61)).is_ok());
        assert!(store.bytes_behind(QueueKey(1), ends, 30_000).is_ok());
        // Until it is lost for good, what is before it.
        let disk = written.disk.fork();
        let patient = open(&disk, &image, Duration::from_secs(3600));
        let (mut next, mut refused) = (0, None);
        while next < 61 && refused.is_none() {
            match patient.fetch(QueueKey(1), Offset(next), Offset(61), 1 << 20) {
                Ok(found) => {
                    assert!(!found.iter().any(Found::is_damage), "{found:?}");
                    next = found.last().unwrap().end().0;
                }
                Err(error) => refused = Some(error),
            }
        }
        assert_eq!(Some(next), holes(&served).first().map(|(from, _)| *from));
        assert!(refused.is_some_and(|error| error.is_loss()));
        // No round gives up what is only unreadable.
        disk.set_unreadable(&path, 0..0);
        assert_eq!(everything(&patient, &[(1, 61)]), all);
    }
}

#[test]
fn s22_a_queue_file_that_is_gone_or_wholly_unreadable_is_a_hole_and_what_is_behind_it_is_served() {
    for is_gone in [false, true] {
        let (written, image, path) = long_file();
        if is_gone {
            written.disk.remove(&path).unwrap();
        } else {
            written.disk.set_unreadable(&path, 0..u64::MAX);
        }
        let store = open(&written.disk.fork(), &image, Duration::ZERO);
        let served = everything(&store, &[(1, 61)]);
        let lost: u64 = holes(&served).iter().map(|(from, end)| end - from).sum();
        assert_eq!((lost, holes(&served).last().unwrap().1), (60, 60), "{served:?}");
        assert!(matches!(served.last(), Some(Ok((60, ..)))));
        let extent = store.extent(QueueKey(1), Offset(7), Offset(61)).unwrap().unwrap();
        assert_eq!((extent.end, extent.time), (Offset(60), None));
        let ends = (Offset(0), Offset(61));
        assert_eq!(
            store.bytes_behind(QueueKey(1), ends, u64::MAX).unwrap(),
            Offset(0)
        );
        let (low, high) = store.narrow(QueueKey(1), ends, Timestamp(1));
        assert!(low <= high);
        let patient = open(&written.disk.fork(), &image, Duration::from_secs(3600));
        let refused = patient.fetch(QueueKey(1), Offset(0), Offset(61), 100);
        assert!(matches!(&refused, Err(error) if error.is_loss()), "{refused:?}");
    }
}
