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
    file.set_bytes(5).unwrap();
    file.set_bytes(7).unwrap();
    assert_eq!(read_up_to_at(&*file, 100, 3).unwrap(), b"he\0\0");
    assert_eq!(file.links().unwrap(), 1);
    let other = folder.join("b");
    disk.rename(&path, &other).unwrap();
    assert_eq!(disk.list(folder).unwrap(), ["b"]);
    assert!(disk.open(&path, Mode::Read).is_err());
    let reader = disk.open(&other, Mode::Read).unwrap();
    assert!(reader.write_at(&[IoSlice::new(b"x")], 0).is_err());
    disk.remove(&other).unwrap();
    assert!(disk.list(folder).unwrap().is_empty());
    let lock = disk.lock(&folder.join("lock")).unwrap();
    assert_eq!(
        disk.lock(&folder.join("lock")).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    drop(lock);
    drop(disk.lock(&folder.join("lock")).unwrap());
}

#[test]
fn both_disks_keep_the_same_promises() {
    let folder = tempfile::tempdir().unwrap();
    check_promises(&StdDisk, &folder.path().join("x/y"));
    check_promises(&TestDisk::default(), Path::new("x/y"));
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
