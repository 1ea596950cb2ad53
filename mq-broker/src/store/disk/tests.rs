//! Both disks keep the same promises; the test disk keeps no more.

use std::io::IoSlice;
use std::path::Path;

use super::*;

fn check_promises(disk: &dyn Disk, folder: &Path) {
    disk.create_folder(folder).unwrap();
    let path = folder.join("a");
    let file = disk.open(&path, Mode::CreateNew).unwrap();
    assert_eq!(
        disk.open(&path, Mode::CreateNew).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    write_all_at(
        &*file,
        &mut [IoSlice::new(b""), IoSlice::new(b"hello "), IoSlice::new(b"world")],
        3,
    )
    .unwrap();
    file.sync_data().unwrap();
    disk.sync_folder(folder).unwrap();
    assert_eq!(file.bytes().unwrap(), 14);
    assert_eq!(read_up_to_at(&*file, 100, 0).unwrap(), b"\0\0\0hello world");
    assert_eq!(read_exact_at(&*file, 5, 3).unwrap(), b"hello");
    assert_eq!(
        read_exact_at(&*file, 5, 10).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    // Just written, so in memory; a file system may still not be able to say so.
    match try_read_up_to_at(&*file, 100, 3) {
        Ok(read) => assert_eq!(read, b"hello world"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
    file.will_read(0, 1 << 30);
    file.set_bytes(5).unwrap();
    file.set_bytes(7).unwrap();
    assert_eq!(read_up_to_at(&*file, 100, 3).unwrap(), b"he\0\0");
    assert_eq!(file.links().unwrap(), 1);
    let other = folder.join("b");
    disk.link(&path, &other).unwrap();
    assert_eq!(file.links().unwrap(), 2);
    assert_eq!(
        disk.link(&path, &other).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    disk.remove(&other).unwrap();
    file.allocate(4096).unwrap();
    assert_eq!(file.bytes().unwrap(), 7);
    let space = disk.space(folder).unwrap();
    assert!(0 < space.free && space.free <= space.total, "{space:?}");
    disk.rename(&path, &other).unwrap();
    assert_eq!(disk.list(folder).unwrap(), ["b"]);
    assert!(disk.open(&path, Mode::Read).is_err());
    let reader = disk.open(&other, Mode::Read).unwrap();
    assert!(reader.write_at(&[IoSlice::new(b"x")], 0).is_err());
    disk.remove(&other).unwrap();
    assert!(disk.list(folder).unwrap().is_empty());
    check_folders(disk, folder);
    let lock = disk.lock(&folder.join("lock")).unwrap();
    assert_eq!(
        disk.lock(&folder.join("lock")).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    drop(lock);
    drop(disk.lock(&folder.join("lock")).unwrap());
}

/// Folders in one that has nothing in it.
fn check_folders(disk: &dyn Disk, folder: &Path) {
    assert_eq!(disk.list_folders(folder).unwrap(), [""; 0]);
    let inner = folder.join("of a topic/3");
    disk.create_folder(&inner).unwrap();
    let file = disk.open(&inner.join("c"), Mode::CreateNew).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"bytes")], 0).unwrap();
    assert_eq!(disk.list_folders(folder).unwrap(), ["of a topic"]);
    assert_eq!(disk.list_folders(&folder.join("of a topic")).unwrap(), ["3"]);
    assert_eq!(disk.list(folder).unwrap(), [""; 0]);
    file.start_write_back(0, 5).unwrap();
    file.start_write_back(0, 0).unwrap();
    assert_eq!(
        read_up_to_at(&*file, 9, 0).unwrap(),
        b"bytes",
        "they stay readable"
    );
    match disk.begin_filesystem_sync(folder).unwrap() {
        Some(sync) => sync.finish().unwrap(),
        None => {
            file.sync_data().unwrap();
            disk.sync_folder(&inner).unwrap();
        }
    }
    let full = disk.remove_folder(&inner).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::DirectoryNotEmpty);
    disk.remove(&inner.join("c")).unwrap();
    disk.remove_folder(&inner).unwrap();
    assert!(disk.free_bytes(folder).unwrap() > 0);
}

fn check_handles(disk: &dyn Disk, folder: &Path) {
    disk.create_folder(folder).unwrap();
    disk.create_folder(folder).unwrap();
    let (a, b) = (folder.join("a"), folder.join("b"));
    for mode in [Mode::Read, Mode::Write] {
        assert_eq!(disk.open(&a, mode).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    assert_eq!(disk.remove(&a).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.rename(&a, &b).unwrap_err().kind(), io::ErrorKind::NotFound);
    // Two handles of one file see the same bytes.
    let one = disk.open(&a, Mode::CreateNew).unwrap();
    let two = disk.open(&a, Mode::Write).unwrap();
    write_all_at(&*one, &mut [IoSlice::new(b"abcdef")], 0).unwrap();
    write_all_at(&*two, &mut [IoSlice::new(b"XY")], 2).unwrap();
    assert_eq!(read_up_to_at(&*one, 100, 0).unwrap(), b"abXYef");
    assert_eq!(two.bytes().unwrap(), 6);
    // What was in the buffer stays in front; the end of the file reads as nothing.
    let mut buffer = b"kept".to_vec();
    assert!(one.read_at(&mut buffer, 3, 4).unwrap() <= 3);
    assert!(b"keptef".starts_with(&buffer), "{buffer:?}");
    assert_eq!(one.read_at(&mut buffer, 3, 6).unwrap(), 0);
    assert_eq!(one.read_at(&mut buffer, 3, 1 << 40).unwrap(), 0);
    // A handle stays with its file when the name goes to another one, and when the file has none any more.
    let other = disk.open(&b, Mode::CreateNew).unwrap();
    write_all_at(&*other, &mut [IoSlice::new(b"other")], 0).unwrap();
    disk.rename(&a, &b).unwrap();
    assert_eq!(disk.list(folder).unwrap(), ["b"]);
    assert_eq!(read_up_to_at(&*other, 100, 0).unwrap(), b"other");
    let found = disk.open(&b, Mode::Read).unwrap();
    assert_eq!(read_up_to_at(&*found, 100, 0).unwrap(), b"abXYef");
    disk.remove(&b).unwrap();
    assert_eq!(read_up_to_at(&*found, 100, 0).unwrap(), b"abXYef");
    one.sync_data().unwrap();
    disk.sync_folder(folder).unwrap();
}

fn check_lengths(disk: &dyn Disk, folder: &Path) {
    disk.create_folder(folder).unwrap();
    let file = disk.open(&folder.join("a"), Mode::CreateNew).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(&[7; 3000])], 0).unwrap();
    file.sync_data().unwrap();
    // What was cut off is not there when the file grows again, by its length or by a write.
    file.set_bytes(100).unwrap();
    file.set_bytes(2000).unwrap();
    file.set_bytes(150).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(&[9; 10])], 2500).unwrap();
    file.sync_data().unwrap();
    let mut expected = vec![7; 100];
    expected.resize(2500, 0);
    expected.resize(2510, 9);
    assert_eq!(read_up_to_at(&*file, 5000, 0).unwrap(), expected);
    disk.sync_folder(folder).unwrap();
}

#[test]
fn both_disks_keep_the_same_promises() {
    for check in [check_promises, check_handles, check_lengths] {
        let folder = tempfile::tempdir().unwrap();
        check(&StdDisk, &folder.path().join("x/y"));
        check(&TestDisk::default(), Path::new("x/y"));
    }
    // And what was synced is what a crash leaves.
    let disk = TestDisk::default();
    check_lengths(&disk, Path::new("x/y"));
    let path = Path::new("x/y/a");
    let before = disk.content(path).unwrap();
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(disk.content(path).unwrap(), before);
}

#[test]
fn s10_names_of_each_folder_are_lost_from_some_change_on_and_never_others() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = TestDisk::default();
        let (f, g) = (Path::new("f"), Path::new("g"));
        for name in ["1", "2"] {
            disk.open(&f.join(name), Mode::CreateNew).unwrap();
            disk.open(&g.join(name), Mode::CreateNew).unwrap();
        }
        disk.rename(&f.join("2"), &f.join("3")).unwrap();
        disk.crash(Crash::Random(seed));
        let left = (disk.list(f).unwrap().concat(), disk.list(g).unwrap().concat());
        assert!(["", "1", "12", "13"].contains(&&*left.0), "{left:?}");
        assert!(["", "1", "12"].contains(&&*left.1), "{left:?}");
        seen.insert(left);
    }
    assert_eq!(seen.len(), 12, "every mixture comes: {seen:?}");
}

#[test]
fn faults_of_reads_writes_and_syncs_come_when_they_were_asked_for() {
    let disk = TestDisk::default();
    let path = Path::new("f/a");
    let file = disk.open(path, Mode::CreateNew).unwrap();
    disk.set_faults(Faults {
        fail_read: disk.reads() + 2,
        misdirected_write: (disk.writes() + 2, 512),
        ignore_syncs: true,
        ..Faults::default()
    });
    for position in [0, 4, 8] {
        write_all_at(&*file, &mut [IoSlice::new(b"word")], position).unwrap();
    }
    let read = || read_up_to_at(&*file, 12, 0);
    assert_eq!(read().unwrap(), b"word\0\0\0\0word");
    assert!(read().is_err());
    assert_eq!(disk.content(path).unwrap()[516..], *b"word");
    file.sync_data().unwrap();
    disk.sync_folder(Path::new("f")).unwrap();
    disk.crash(Crash::LoseUnsynced);
    assert!(disk.names().is_empty(), "the disk lied");
}

#[test]
fn a_recorded_disk_has_a_picture_after_each_change() {
    let disk = TestDisk::default();
    let folder = Path::new("f");
    disk.record();
    disk.set_mark(1);
    let file = disk.open(&folder.join("a"), Mode::CreateNew).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"one")], 0).unwrap();
    disk.set_mark(2);
    file.sync_data().unwrap();
    disk.sync_folder(folder).unwrap();
    disk.rename(&folder.join("a"), &folder.join("b")).unwrap();
    file.set_bytes(1).unwrap();
    disk.remove(&folder.join("b")).unwrap();
    let pictures = disk.take_recorded();
    let marks: Vec<_> = pictures.iter().map(|picture| picture.mark).collect();
    assert_eq!(marks, [1, 1, 2, 2, 2, 2, 2]);
    // What a power cut leaves of each.
    let left = pictures.iter().map(|picture| {
        picture.disk.crash(Crash::LoseUnsynced);
        picture.disk.content(&folder.join("a")).map(|bytes| bytes.len())
    });
    assert_eq!(
        left.collect::<Vec<_>>(),
        [None, None, None, Some(3), Some(3), Some(3), Some(3)]
    );
}

#[test]
fn s19_short_and_interrupted_writes_leave_no_gap() {
    let disk = TestDisk::default();
    let path = Path::new("f/a");
    let file = disk.open(path, Mode::CreateNew).unwrap();
    disk.set_faults(Faults {
        short_write_bytes: 3,
        ..Faults::default()
    });
    let parts: Vec<Vec<u8>> = (0..5000_u32)
        .map(|n| n.to_be_bytes()[..(n % 5) as usize].to_vec())
        .collect();
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    write_all_at(&*file, &mut slices, 1).unwrap();
    assert_eq!(disk.content(path).unwrap()[1..], parts.concat());
}

#[test]
fn long_write_goes_in_pieces_and_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = StdDisk.open(&folder.path().join("a"), Mode::CreateNew).unwrap();
    let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let position = 32 * 1024 - 100;
    assert_eq!(file.write_at(&[IoSlice::new(&long)], position).unwrap(), 100);
    let mut slices = [&b"head"[..], &[], &long, b"tail"].map(IoSlice::new);
    write_all_at(&*file, &mut slices, position).unwrap();
    let whole = [&b"head"[..], &long, b"tail"].concat();
    assert_eq!(read_exact_at(&*file, whole.len(), position).unwrap(), whole);
}

#[test]
fn more_slices_than_one_call_takes_are_written_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = StdDisk.open(&folder.path().join("a"), Mode::CreateNew).unwrap();
    let parts: Vec<[u8; 3]> = (0..3000_u16)
        .map(|n| [1, n.to_be_bytes()[0], n.to_be_bytes()[1]])
        .collect();
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    write_all_at(&*file, &mut slices, 0).unwrap();
    assert_eq!(read_up_to_at(&*file, 100_000, 0).unwrap(), parts.concat());
}

#[test]
fn unsynced_bytes_and_names_are_lost_and_a_failed_sync_forgets() {
    let disk = TestDisk::default();
    let folder = Path::new("f");
    let a = disk.open(&folder.join("a"), Mode::CreateNew).unwrap();
    disk.sync_folder(folder).unwrap();
    let b = disk.open(&folder.join("b"), Mode::CreateNew).unwrap();
    write_all_at(&*a, &mut [IoSlice::new(b"one")], 0).unwrap();
    a.sync_data().unwrap();
    write_all_at(&*a, &mut [IoSlice::new(b"two")], 600).unwrap();
    disk.set_faults(Faults {
        fail_sync: disk.syncs() + 1,
        ..Faults::default()
    });
    assert!(a.sync_data().is_err());
    a.sync_data().unwrap();
    b.sync_data().unwrap();
    assert_eq!(disk.content(&folder.join("a")).unwrap().len(), 603);
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(disk.names(), [folder.join("a")]);
    let left = disk.content(&folder.join("a")).unwrap();
    assert_eq!(&left[..3], b"one");
    assert!(
        left[3..].iter().all(|byte| *byte == 0),
        "the failed sync's bytes must not be on the disk"
    );
    assert!(a.bytes().is_err(), "a handle of the dead process");
}

#[test]
fn a_sync_of_the_file_system_keeps_all_files_and_names_and_a_dead_process_changes_nothing_more() {
    let disk = TestDisk::default();
    let paths = [Path::new("f/a"), Path::new("f/g/b")];
    for path in paths {
        let file = disk.open(path, Mode::CreateNew).unwrap();
        write_all_at(&*file, &mut [IoSlice::new(b"one")], 0).unwrap();
    }
    let sync = disk.begin_filesystem_sync(Path::new("f")).unwrap().unwrap();
    sync.finish().unwrap();
    let file = disk.open(paths[0], Mode::Write).unwrap();
    disk.set_faults(Faults {
        dead_from_operation: disk.operations() + 2,
        ..Faults::default()
    });
    write_all_at(&*file, &mut [IoSlice::new(b"two")], 0).unwrap();
    assert!(write_all_at(&*file, &mut [IoSlice::new(b"more")], 3).is_err());
    assert!(disk.remove(paths[1]).is_err() && file.sync_data().is_err());
    disk.crash(Crash::LoseUnsynced);
    for path in paths {
        assert_eq!(disk.content(path).unwrap(), b"one");
    }
}

#[test]
fn read_that_must_not_wait_reads_nothing_from_a_cold_file() {
    let disk = TestDisk::default();
    let file = disk.open(Path::new("f/a"), Mode::CreateNew).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"abc")], 0).unwrap();
    assert_eq!(try_read_up_to_at(&*file, 9, 1).unwrap(), b"bc");
    disk.set_cold(true);
    let error = try_read_up_to_at(&*file, 9, 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(read_up_to_at(&*file, 9, 1).unwrap(), b"bc");
}

#[test]
fn files_of_a_disk_with_a_capacity_grow_up_to_it_and_what_is_reserved_stays_writable() {
    let disk = TestDisk::default();
    let folder = Path::new("d");
    disk.set_capacity(Some(1000));
    let file = disk.open(&folder.join("a"), Mode::CreateNew).unwrap();
    let other = disk.open(&folder.join("b"), Mode::CreateNew).unwrap();
    let bytes = [7; 700];
    write_all_at(&*file, &mut [IoSlice::new(&bytes)], 0).unwrap();
    assert_eq!(disk.space(folder).unwrap().free, 300);
    assert!(is_full(&other.allocate(301).unwrap_err()));
    other.allocate(200).unwrap();
    let error = write_all_at(&*file, &mut [IoSlice::new(&bytes)], 700).unwrap_err();
    assert!(is_full(&error), "{error}");
    assert_eq!(file.bytes().unwrap(), 800, "what fits was written");
    write_all_at(&*other, &mut [IoSlice::new(&bytes[..200])], 0).unwrap();
    file.set_bytes(100).unwrap();
    assert_eq!(disk.space(folder).unwrap().free, 700);
    disk.remove(&folder.join("a")).unwrap();
    assert_eq!(disk.used(), 200);
}
