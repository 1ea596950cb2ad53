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

#[test]
fn s6_a_bad_sector_of_the_journal_is_a_hole_of_what_it_held_and_all_others_are_served() {
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = open(&disk, &image, Duration::ZERO);
    let of_one = store.segments.footer(SegmentId(1)).unwrap().get(3).unwrap();
    let at = u64::from(of_one.location.position) + 10;
    disk.set_unreadable(&segment_path(1), at..at + 1);
    for (queue, end) in ENDS {
        let all = everything(&written.store, &[(queue, end)]);
        are_the_same_but_for_holes(&everything(&store, &[(queue, end)]), &all);
    }
    let lost = holes(&everything(&store, &ENDS));
    assert_eq!(lost, [(of_one.base_offset.0, of_one.end().0)]);
    // Nothing is remembered against the disk for long.
    disk.set_unreadable(&segment_path(1), 0..0);
    store.pass(Duration::from_secs(60));
    assert_eq!(everything(&store, &ENDS), all);
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
    let mut written = Written::new(0);
    let texts: Vec<String> = (0..30).map(|n| format!("message {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    written.append(1, 0, &texts);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let disk = written.disk.fork();
    let store = open(&disk, &image, patience);
    let rows = store.segments.footer(SegmentId(1)).unwrap();
    let position = |at: usize| u64::from(rows.get(at).unwrap().location.position);
    let read = |from: u64| store.fetch(QueueKey(1), Offset(from), Offset(30), 1 << 20);
    disk.set_unreadable(&segment_path(1), position(5)..position(25));
    assert_eq!(read(0).unwrap().len(), 5);
    assert!(read(5).is_err());
    // Read successfully once in between: it starts again.
    disk.set_unreadable(&segment_path(1), 0..0);
    assert_eq!(read(5).unwrap().len(), 25);
    store.pass(patience);
    disk.set_unreadable(&segment_path(1), position(5)..position(25));
    assert!(read(5).is_err());
    store.pass(patience);
    let holes = |found: &[Found]| found.iter().filter(|found| found.is_damage()).count();
    let all = read(5).unwrap();
    assert_eq!(
        (all.len(), holes(&all)),
        (25, 20),
        "at once, not one after the other"
    );
    let reads = disk.reads();
    for _ in 0..3 {
        assert_eq!(holes(&read(5).unwrap()), 20);
    }
    assert!(disk.reads() - reads <= 3 * 5, "only what can be read");
    store.pass(Duration::from_secs(60));
    disk.set_unreadable(&segment_path(1), 0..0);
    assert_eq!(
        holes(&read(5).unwrap()),
        0,
        "nothing is remembered against the disk"
    );
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
