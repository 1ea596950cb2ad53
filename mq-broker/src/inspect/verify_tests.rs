//! Segments that a running broker frees while they are checked.

use std::fs;

use super::*;

/// As it was written by a broker of format 1.
const SEGMENT: &[u8] = include_bytes!("../../tests/golden/segment-v1.journal");

fn journal(data: &Path, runs: bool) -> JournalFolder<'_> {
    fs::create_dir_all(layout::journal_folder(data)).unwrap();
    fs::write(path(data), SEGMENT).unwrap();
    JournalFolder::list(data, runs).unwrap()
}

fn path(data: &Path) -> std::path::PathBuf {
    layout::segment_file(data, SegmentId(1))
}

/// What a file that is open is found to be.
fn standing(journal: &JournalFolder<'_>, file: &dyn DiskFile) -> Option<Standing> {
    let around = Around {
        segment: SegmentId(1),
        before: None,
        has_successor: true,
        checkpoint: Lsn(0),
        is_written: false,
    };
    let checked = journal.check_one(file, around, &Progress::new(0)).unwrap();
    checked.map(|checked| checked.report.standing)
}

#[test]
fn a_segment_that_is_freed_and_filled_anew_while_it_is_checked_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path(), true);
    let file = journal.open(SegmentId(1)).unwrap().unwrap();
    assert_eq!(standing(&journal, &*file), Some(Standing::Ok));
    let freed = path(folder.path()).with_extension("filling");
    fs::rename(path(folder.path()), &freed).unwrap();
    assert_eq!(
        standing(&journal, &*file),
        Some(Standing::Ok),
        "its bytes are still there"
    );
    // The same file: no new one.
    let filled = fs::OpenOptions::new().write(true).open(&freed).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&filled, &vec![0; SEGMENT.len()], 0).unwrap();
    assert_eq!(standing(&journal, &*file), None);
}

#[test]
fn a_segment_that_is_damaged_and_still_there_is_told_beside_a_broker_too() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path(), true);
    let mut damaged = SEGMENT.to_vec();
    damaged[200] ^= 1;
    fs::write(path(folder.path()), damaged).unwrap();
    let file = journal.open(SegmentId(1)).unwrap().unwrap();
    assert_eq!(standing(&journal, &*file), Some(Standing::Damaged));
}
