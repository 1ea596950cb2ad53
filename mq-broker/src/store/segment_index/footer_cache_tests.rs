//! Rows that are searched in their files, and damaged footers.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use mq_common::ids::Offset;
use proptest::prelude::*;

use super::*;
use crate::ids::QueueKey;
use crate::store::disk::TestDisk;
use crate::store::test_journal::{DATA, Written};
use crate::store::{Rebuild, Rebuilt, Settings, Span, layout};

/// Batches of each segment, so small that their rows are most of it.
const BATCHES: u64 = 2000;
const ONE: SegmentId = SegmentId(1);

/// Two sealed segments of queue 1, as after a start.
fn two_segments(settings: Settings) -> Written {
    let mut written = Written::with(settings);
    for segment in 0..2 {
        for base in (0..BATCHES).step_by(100) {
            let texts: Vec<_> = (base..base + 100).map(|at| format!("{segment}-{at}")).collect();
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            written.append(1, segment * BATCHES + base, &texts);
        }
        written.seal();
    }
    written.store.segments.forget_footers();
    written
}

fn settings(footer_bytes: usize) -> Settings {
    Settings {
        tail_bytes: 0,
        footer_bytes,
        ..Settings::default()
    }
}

fn one(written: &Written, offset: u64) -> Result<String, (u64, u64)> {
    let mut found = written.fetch(1, offset, offset + 1);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn readers_of_several_segments_read_no_footer_twice() {
    let footer_bytes = usize::try_from(BATCHES).unwrap() * 64;
    // Room for less than the rows of one.
    let written = two_segments(settings(footer_bytes / 4));
    assert_eq!(one(&written, 0), Ok("0-0".into()));
    assert_eq!(one(&written, BATCHES), Ok("1-0".into()));
    let before = written.disk.bytes_read();
    let fetches = 40;
    for at in (0..BATCHES).step_by(usize::try_from(BATCHES / (fetches / 2)).unwrap()) {
        assert_eq!(one(&written, at), Ok(format!("0-{at}")));
        assert_eq!(one(&written, BATCHES + at), Ok(format!("1-{at}")));
    }
    let read = written.disk.bytes_read() - before;
    let allowed = fetches * (BLOCK_BYTES as u64 + 200);
    assert!(
        read <= allowed,
        "{read} bytes for {fetches} fetches, {allowed} are enough"
    );
}

#[test]
fn who_must_not_wait_finds_rows_in_memory_or_leaves_them_to_others() {
    let written = two_segments(settings(1 << 20));
    let at_once = |offset| {
        let (from, end) = (Offset(offset), Offset(offset + 1));
        let found = written
            .store
            .fetch_by(Access::CacheOnly, QueueKey(1), from, end, 1);
        found.map(|found| found.len())
    };
    assert!(
        matches!(at_once(0), Err(ReadError::WouldBlock)),
        "nothing is known of the footer"
    );
    assert_eq!(one(&written, 0), Ok("0-0".into()));
    assert_eq!(
        at_once(BATCHES - 1).unwrap(),
        1,
        "another block, which the page cache has"
    );
    written.disk.set_cold(true);
    assert!(matches!(at_once(BATCHES / 2), Err(ReadError::WouldBlock)));
}

/// Returns the rows that it was given, or that it cannot; and counts.
#[derive(Debug)]
struct Counting {
    rows: Option<Vec<PlacedRow>>,
    asked: Arc<AtomicUsize>,
}

impl Rebuild for Counting {
    fn rows(&self, segment: SegmentId, _: &[Span]) -> Result<Rebuilt, ReadError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let rows = self.rows.clone().ok_or_else(|| changed(segment))?;
        Ok(rows.into())
    }
}

/// Two segments whose rows can be rebuilt (or not), and how often that was tried.
fn with_rebuild(settings: Settings, can: bool) -> (Written, Arc<AtomicUsize>) {
    let mut written = two_segments(settings);
    let rows = written.store.segments.footer(ONE).unwrap();
    let rows = (0..rows.len()).filter_map(|at| rows.get(at)).collect();
    let asked = Arc::new(AtomicUsize::new(0));
    written.store = written.store.rebuilt_by(Arc::new(Counting {
        rows: can.then_some(rows),
        asked: Arc::clone(&asked),
    }));
    (written, asked)
}

fn path() -> std::path::PathBuf {
    layout::segment_file(Path::new(DATA), ONE)
}

/// One bit of a row, 100 rows from the end.
fn damage(disk: &TestDisk) {
    let mut bytes = disk.content(&path()).unwrap();
    let at = bytes.len() - 100 * 64;
    bytes[at] ^= 1;
    disk.set_content(&path(), bytes);
}

#[test]
fn s12_rows_that_rot_after_they_were_checked_are_made_again_once() {
    let (written, asked) = with_rebuild(settings(4000), true);
    assert_eq!(one(&written, 0), Ok("0-0".into()));
    damage(&written.disk);
    for _ in 0..3 {
        for at in [BATCHES - 100, 5, BATCHES - 1] {
            assert_eq!(one(&written, at), Ok(format!("0-{at}")));
            assert_eq!(one(&written, BATCHES + at), Ok(format!("1-{at}")), "beside it");
        }
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn s12_rows_that_could_not_be_made_again_are_not_tried_at_each_fetch() {
    for (patience, tries) in [(Duration::from_secs(600), 1), (Duration::ZERO, 3)] {
        let settings = Settings {
            unreadable_patience: patience,
            ..settings(4000)
        };
        let (written, asked) = with_rebuild(settings, false);
        damage(&written.disk);
        let before = written.disk.bytes_read();
        for _ in 0..3 {
            assert_eq!(one(&written, 0), Err((0, BATCHES)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), tries);
        let footers = (written.disk.bytes_read() - before) / (BATCHES * 64);
        assert_eq!(footers, tries as u64, "nor is the footer read again");
    }
}

#[test]
fn a_row_that_the_disk_cannot_read_is_no_hole_at_once_though_others_were_made_again() {
    let (mut written, asked) = with_rebuild(settings(4000), true);
    written.store = {
        let rows = written.store.take_rows();
        let store = crate::store::Store::open(&written.folder, settings(4000), rows);
        let asked = Arc::clone(&asked);
        store.rebuilt_by(Arc::new(Counting {
            rows: Some(Vec::new()),
            asked,
        }))
    };
    let bytes = written.disk.content(&path()).unwrap().len() as u64;
    written.disk.set_unreadable(&path(), bytes - 4096..bytes - 2048);
    let fetch = || written.store.fetch(QueueKey(1), Offset(0), Offset(1), 1);
    let error = fetch().unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn a_damaged_footer_is_looked_at_again_after_a_while_and_its_rows_stay_until_it_holds() {
    let footers = FooterCache::new(1 << 20, Duration::from_secs(5), Clock::default());
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    footers.damaged(
        ONE,
        &changed(ONE),
        Made::Whole(FooterRows::rebuilt(vec![0; 128].into())),
        start,
    );
    let rows = |now| match footers.known(ONE, now) {
        Some(Ok(Footer::Rebuilt(rows, _))) => Some(rows.len()),
        None => None,
        known => panic!("{known:?}"),
    };
    assert_eq!([at(0), at(4), at(5)].map(rows), [Some(2), Some(2), None]);
    let made = |now| {
        footers
            .made_again(ONE, now)
            .map(|made| made.map(|(rows, _)| rows.len()))
    };
    assert!(matches!(made(at(5)), Some(Ok(2))));
    assert_eq!([at(9), at(10)].map(rows), [Some(2), None]);
    footers.damaged(ONE, &changed(ONE), Made::Nothing, at(10));
    assert!(matches!(
        footers.known(ONE, at(14)),
        Some(Err(ReadError::Footer { .. }))
    ));
    assert!(matches!(made(at(14)), Some(Err(ReadError::Footer { .. }))));
    assert!(made(at(15)).is_none(), "it is tried again");
    let sparse = Arc::new(Making::default().finish(&trailer_of(&[])).unwrap());
    footers.checked(ONE, &sparse);
    assert!(
        matches!(footers.known(ONE, at(11)), Some(Ok(Footer::InFile(_)))),
        "it holds after all"
    );
}

fn trailer_of(rows: &[u8]) -> Trailer {
    Trailer {
        segment: ONE,
        last: mq_common::ids::Lsn(1),
        synced: mq_common::ids::Lsn(1),
        chain: 0,
        frames_end: 0,
        rows_at: 0,
        rows: u32::try_from(rows.len() / 64).unwrap(),
        rows_checksum: crc32c::crc32c(rows),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rows_in_a_file_are_found_as_rows_in_memory_are(
        counts in proptest::collection::vec((0..4_u32, 1..4_u32, 0..2_u64), 1..600),
        wanted in proptest::collection::vec((0..120_u32, 0..40_u64), 50),
    ) {
        let template = PlacedRow {
            queue: QueueKey(0),
            base_offset: Offset(0),
            count: 0,
            location: crate::store::Location::default(),
            checksum: 0,
            lsn: mq_common::ids::Lsn(1),
            term: mq_common::ids::Term(1),
            time: mq_common::ids::Timestamp(1),
            flags: 0,
        };
        let (mut queue, mut next, mut rows) = (0, 0, Vec::new());
        for (turn, count, gap) in counts {
            if turn == 0 {
                (queue, next) = (queue + 1, 0);
            }
            let base_offset = Offset(next + gap);
            let row = PlacedRow { queue: QueueKey(queue), base_offset, count, ..template };
            next = row.end().0;
            rows.push(row);
        }
        let bytes = encode_rows(&rows);
        let trailer = trailer_of(&bytes);
        let disk = TestDisk::default();
        disk.set_content(&path(), [&bytes[..], &trailer.encode()].concat());
        let folder = crate::store::Folder::open(Arc::new(disk), Path::new(DATA)).unwrap();
        let segments = SegmentFiles::new(&folder, FooterCache::new(1 << 16, Duration::ZERO, Clock::default()));
        let whole = segments.footer(ONE).unwrap();
        let mut found = segments.rows(Access::Blocking, ONE).unwrap();
        prop_assert_eq!(found.all().collect::<Vec<_>>(), rows);
        for (queue, offset) in wanted {
            let (queue, offset) = (QueueKey(queue), Offset(offset));
            prop_assert_eq!(found.find(queue, offset).unwrap(), whole.find(queue, offset));
        }
    }
}
