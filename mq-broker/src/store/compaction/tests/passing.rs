//! Read errors that the disk gets over, and bits that were read wrong once: no round takes them for the loss
//! of a message.

use super::*;
use crate::store::{Scrubbing, Target};

fn segment_path(segment: u64) -> PathBuf {
    layout::segment_file(Path::new(DATA), SegmentId(segment))
}

#[test]
fn s6_what_the_disk_reads_again_after_the_scrub_could_not_is_moved_whole() {
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = image.open(&disk);
    disk.set_unreadable(&segment_path(1), 64..1000);
    let (mut scrubbing, mut rotten) = (Scrubbing::begin(Target::Segment(SegmentId(1))), Vec::new());
    while !scrubbing.is_done() {
        store
            .scrub(&mut scrubbing, 4096, &mut rotten, &mut |_| true)
            .unwrap();
    }
    assert!(
        rotten.iter().any(|rotten| rotten.messages.is_some()),
        "{rotten:?}"
    );
    disk.set_unreadable(&segment_path(1), 0..0);
    let moved = compact(&store, &[1, 2, 3]);
    assert_eq!((moved.segments, moved.holes), (3, 0));
    assert_eq!(everything(&store, &ENDS), all);
}

#[test]
fn s6_what_the_disk_cannot_read_stays_in_the_journal_until_it_can() {
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = image.open(&disk);
    disk.set_unreadable(&segment_path(1), 64..1000);
    let moved = compact(&store, &[1]);
    assert_eq!((moved.segments, moved.holes), (0, 0));
    disk.set_unreadable(&segment_path(1), 0..0);
    let first = [SegmentId(1)];
    let again = |store: &Store| store.plan(&first, 1, &[], |key| Some(planned(key, 0)));
    assert!(again(&store).is_none(), "not at once");
    store.rounds().stuck.wait_is_over();
    assert!(again(&store).is_some());
    let moved = compact(&store, &[1]);
    assert_eq!((moved.segments, moved.holes), (1, 0));
    assert_eq!(everything(&store, &ENDS), all);
}

#[test]
fn a_bit_that_was_read_wrong_once_is_no_damage_whichever_read_it_was() {
    let (written, mut image) = filled();
    let all = everything(&written.store, &ENDS);
    let with = |read, image: &Image, disk: &TestDisk| {
        let disk = disk.fork();
        let store = image.open(&disk);
        disk.set_faults(Faults {
            garble_read: read,
            ..Faults::default()
        });
        let moved = compact(&store, &[1, 2, 3]);
        disk.set_faults(Faults::default());
        assert_eq!((moved.holes, moved.batches > 0), (0, true), "read {read}");
        assert_eq!(everything(&store, &ENDS), all, "read {read}");
        (disk, store)
    };
    // Nothing is read so often in a round.
    for read in 1..60 {
        with(read, &image, &written.disk);
    }
    // Of queue files: by a reader.
    let (disk, store) = with(0, &image, &written.disk);
    image.save(store.take_rows());
    for read in 1..120 {
        let disk = disk.fork();
        let store = image.open(&disk);
        disk.set_faults(Faults {
            garble_read: read,
            ..Faults::default()
        });
        assert_eq!(everything(&store, &ENDS), all, "read {read}");
    }
}

#[test]
fn s19_short_and_interrupted_reads_move_scrub_and_serve_the_same() {
    let (written, mut image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = image.open(&disk);
    let short = Faults {
        short_read_bytes: 7,
        ..Faults::default()
    };
    disk.set_faults(short);
    assert_eq!(everything(&store, &ENDS), all);
    let moved = compact(&store, &[1, 2, 3]);
    assert_eq!((moved.segments, moved.holes), (3, 0));
    assert_eq!(everything(&store, &ENDS), all);
    let mut rotten = Vec::new();
    for target in store.scrub_targets(&[1, 2, 3].map(SegmentId)) {
        let mut scrubbing = Scrubbing::begin(target);
        while !scrubbing.is_done() && matches!(target, Target::QueueFile(..)) {
            store
                .scrub(&mut scrubbing, 4096, &mut rotten, &mut |_| true)
                .unwrap();
        }
    }
    assert_eq!(rotten, []);
    image.save(store.take_rows());
    disk.crash(Crash::KeepAll);
    disk.set_faults(short);
    let store = image.open(&disk);
    assert_eq!(everything(&store, &ENDS), all, "after a start");
}

#[test]
fn a_passing_lack_of_something_fails_the_round_and_leaves_nothing_aside() {
    let lacks = ReadError::Io {
        segment: SegmentId(1),
        source: io::Error::from_raw_os_error(libc::EMFILE),
    };
    let rots = ReadError::Io {
        segment: SegmentId(1),
        source: io::Error::from_raw_os_error(libc::EIO),
    };
    assert!(lacks.is_passing() && !rots.is_passing());
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = image.open(&disk);
    disk.set_faults(Faults {
        opens_fail: libc::EMFILE,
        ..Faults::default()
    });
    let failed = store.compact(&plan(&store, &[1, 2, 3], 0), &mut Unhurried);
    assert!(
        matches!(&failed, Err(RoundError::Read(error)) if error.is_passing()),
        "{failed:?}"
    );
    disk.set_faults(Faults::default());
    assert_eq!(compact(&store, &[1, 2, 3]).segments, 3, "none is stuck");
    assert_eq!(everything(&store, &ENDS), all);
}

#[test]
fn a_folder_that_cannot_be_used_keeps_only_the_segments_of_its_queue_in_the_journal() {
    let (written, image) = filled();
    let all = everything(&written.store, &ENDS);
    let disk = written.disk.fork();
    let store = image.open(&disk);
    let folder = |queue| layout::queue_folder(Path::new(DATA), &planned(QueueKey(queue), 0).name);
    // Queue 3 is in the second segment only.
    disk.set_unusable(Some(&folder(3)));
    assert_eq!(compact(&store, &[1, 2, 3]).segments, 2);
    assert_eq!(everything(&store, &ENDS), all);
    let second = [SegmentId(2)];
    let again = |store: &Store| store.plan(&second, 1, &[], |key| Some(planned(key, 0)));
    assert!(again(&store).is_none(), "not at once");
    store.rounds().stuck.wait_is_over();
    let refused = store.compact(&again(&store).unwrap(), &mut Unhurried);
    assert!(
        matches!(&refused, Err(RoundError::Queue { path, .. }) if *path == folder(3)),
        "a round that comes to nothing says why: {refused:?}"
    );
    disk.set_unusable(None);
    store.rounds().stuck.wait_is_over();
    assert_eq!(compact(&store, &[2]).segments, 1);
    assert_eq!(everything(&store, &ENDS), all);
}

#[test]
fn a_compacted_file_with_damage_in_it_is_not_rewritten() {
    let mut written = Written::new(0);
    let texts: Vec<String> = (0..20).map(|n| format!("{n} {}", "x".repeat(50))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    written.append(1, 0, &texts);
    written.seal();
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let store = Store::open(&written.folder, settings(), image.rows());
    compact(&store, &[1]);
    image.save(store.take_rows());
    // As a pass over the keys names its files.
    let name = planned(QueueKey(1), 0).name;
    let files = std::mem::take(&mut image.files);
    for (_, mut row) in files {
        let of = |generation| {
            [layout::queue_data_file, layout::queue_index_file]
                .map(|path| path(Path::new(DATA), &name, row.first, generation))
        };
        for (from, to) in of(0).iter().zip(of(1)) {
            written.disk.rename(from, &to).unwrap();
        }
        row.generation = 1;
        image.files.insert(row.key(), row);
    }
    let store = Store::open(&written.folder, settings(), image.rows());
    let ends = |_| Some((Offset(18), Offset(20)));
    let sparse = store.dead_of_all(&[], ends).hints.sparse;
    assert_eq!(sparse.len(), 1);
    let path = layout::queue_data_file(Path::new(DATA), &name, sparse[0].1, 1);
    let mut bytes = written.disk.content(&path).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    written.disk.set_content(&path, bytes);
    let plan = store.plan(&[], 0, &sparse, |key| Some(planned(key, 18))).unwrap();
    let moved = store.compact(&plan, &mut Unhurried).unwrap();
    drop(plan);
    assert_eq!((moved.rewritten, moved.holes), (0, 0));
    let found = store.fetch(QueueKey(1), Offset(18), Offset(20), 1 << 20).unwrap();
    let lost: Vec<_> = found.iter().filter(|found| found.is_damage()).collect();
    assert!(
        matches!(lost[..], [Found::Hole { from: Offset(19), .. }]),
        "{found:?}"
    );
}
