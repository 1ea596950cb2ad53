//! The store with a journal written by hand.

use std::io::IoSlice;
use std::path::Path;

use mq_common::batch::Stamp;

use super::*;
use crate::store::disk::{Disk as _, Mode, read_up_to_at, write_all_at};
use crate::store::test_journal::{DATA, Written, batch, ok, placement, text};
use crate::store::{Found, SegmentRow, layout};

#[test]
fn a_fetch_goes_through_sealed_segments_the_unsealed_one_and_memory() {
    for tail_bytes in [0, 1 << 24] {
        let mut written = Written::new(tail_bytes);
        written.append(1, 0, &["a", "b"]);
        written.append(2, 0, &["x"]);
        written.seal();
        written.append(1, 2, &["c"]);
        written.seal();
        written.append(2, 1, &["y", "z"]);
        assert_eq!(written.store.in_memory(QueueKey(1), Offset(0)), tail_bytes > 0);
        if tail_bytes > 0 {
            assert_eq!(written.fetch(1, 0, 3), ok(&["a", "b", "c"]));
        } else {
            assert_eq!(written.fetch(1, 0, 3), ok(&["a", "b"]), "one segment at a time");
            assert_eq!(written.fetch(1, 2, 3), ok(&["c"]));
            assert_eq!(written.fetch(1, 1, 2), ok(&["b"]));
        }
        assert_eq!(written.fetch(2, 1, 3), ok(&["y", "z"]));
        assert_eq!(written.fetch(2, 1, 2), ok(&["y"]), "not beyond the visible end");
        assert_eq!(written.fetch(2, 3, 3), ok(&[]));
        let nothing = written.store.fetch(QueueKey(3), Offset(0), Offset(1), 10);
        assert!(matches!(nothing, Err(ReadError::NotStored { .. })));
        let beyond = written.store.fetch(QueueKey(1), Offset(3), Offset(9), 10);
        assert!(matches!(beyond, Err(ReadError::NotStored { .. })), "{beyond:?}");
    }
}

#[test]
fn s9_bytes_of_another_batch_at_the_place_are_a_hole() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b", "c"]);
    let rows = written.store.take_rows();
    let places: Vec<_> = rows.placed.iter().map(|(_, row)| row.location).collect();
    let file = written.disk.open(&written.path(), Mode::Write).unwrap();
    let misdirected = read_up_to_at(&*file, places[2].bytes as usize, u64::from(places[2].position)).unwrap();
    write_all_at(
        &*file,
        &mut [IoSlice::new(&misdirected)],
        u64::from(places[1].position),
    )
    .unwrap();
    assert_eq!(
        written.fetch(1, 0, 3),
        [Ok("a".into()), Err((1, 2)), Ok("c".into())]
    );
}

#[test]
fn s12_a_damaged_footer_is_a_hole_up_to_what_another_segment_holds() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b"]);
    written.append(2, 0, &["x"]);
    let first = written.path();
    written.seal();
    written.append(1, 2, &["c"]);
    written.seal();
    let mut bytes = written.disk.content(&first).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    written.disk.set_content(&first, bytes);
    assert_eq!(written.fetch(1, 0, 3), [Err((0, 2))]);
    assert_eq!(written.fetch(1, 2, 3), ok(&["c"]));
    assert_eq!(written.fetch(2, 0, 1), [Err((0, 1))]);
}

#[test]
fn a_file_that_ends_too_early_is_a_hole_and_a_missing_one_an_error() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b"]);
    let path = written.path();
    let mut bytes = written.disk.content(&path).unwrap();
    bytes.truncate(bytes.len() - 1);
    written.disk.set_content(&path, bytes);
    assert_eq!(written.fetch(1, 0, 2), [Ok("a".into()), Err((1, 2))]);
    let mut missing = Written::new(0);
    missing.append(1, 0, &["a"]);
    missing.disk.remove(&missing.path()).unwrap();
    let error = missing
        .store
        .fetch(QueueKey(1), Offset(0), Offset(1), 10)
        .unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }), "{error}");
}

#[test]
fn halves_are_kept_until_decided_and_placed_with_their_flag() {
    let mut written = Written::new(1 << 24);
    let halves = [batch("h0"), batch("h1")];
    let lsn = written.entry(&halves, false, |store, entry| {
        let effects = Update {
            halves: &[0..1, 1..2],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    let at = BatchAt { lsn, index: 1 };
    let (row, region) = written.store.half(at).unwrap().unwrap();
    assert_eq!((row.at, &region), (at, halves[1].bytes()));
    assert_eq!(written.store.take_rows().halves.len(), 2);
    let placements = [
        placement(7, 0, Source::Half(BatchAt { lsn, index: 0 })),
        placement(7, 1, Source::Half(at)),
        placement(
            7,
            2,
            Source::Half(BatchAt {
                lsn: Lsn(99),
                index: 0,
            }),
        ),
    ];
    written.entry(&[], false, |store, entry| {
        let effects = Update {
            placements: &placements,
            released_halves: &[lsn],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    assert_eq!(written.store.half(at).unwrap(), None);
    assert_eq!(written.store.take_rows().released_halves, [lsn]);
    let found = written
        .store
        .fetch(QueueKey(7), Offset(0), Offset(3), 1000)
        .unwrap();
    let texts: Vec<_> = found.iter().map(text).collect();
    assert_eq!(
        texts,
        [Ok("h0".into()), Ok("h1".into()), Err((2, 3))],
        "what was never stored is a hole"
    );
    for found in &found[..2] {
        let Found::Batch { row, .. } = found else { panic!() };
        assert_eq!(
            (row.flags, row.lsn, row.location.segment),
            (Stamp::TRANSACTIONAL, Lsn(2), SegmentId(1))
        );
    }
}

#[test]
fn a_deleted_queue_is_forgotten_everywhere() {
    let mut written = Written::new(1 << 24);
    written.append(1, 0, &["a"]);
    written.append(2, 0, &["b"]);
    written.entry(&[], false, |store, entry| {
        let effects = Update {
            deleted: &[QueueKey(1)],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    assert!(!written.store.in_memory(QueueKey(1), Offset(0)));
    assert!(
        written
            .store
            .fetch(QueueKey(1), Offset(0), Offset(1), 10)
            .is_err()
    );
    let rows = written.store.take_rows();
    assert_eq!(rows.deleted, [QueueKey(1)]);
    assert_eq!(rows.placed.len(), 1);
    assert_eq!(written.store.seal(SegmentId(1)).len(), 1);
    assert_eq!(written.fetch(2, 0, 1), ok(&["b"]));
}

#[test]
fn the_checkpoint_gets_each_row_once_and_brings_all_back() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a"]);
    let first = written.store.take_rows();
    assert_eq!(
        (first.placed.len(), first.segments.len(), first.sealed.len()),
        (1, 0, 0)
    );
    assert_eq!(written.store.take_rows(), Rows::default());
    written.append(1, 1, &["b"]);
    written.seal();
    written.append(1, 2, &["c"]);
    let second = written.store.take_rows();
    assert_eq!(second.sealed, [SegmentId(1)]);
    let row = SegmentRow {
        segment: SegmentId(1),
        queue: QueueKey(1),
        first_offset: Offset(0),
    };
    assert_eq!(second.segments, [row]);
    assert_eq!(second.placed.len(), 1, "only that of the unsealed segment");
    let settings = Settings {
        tail_bytes: 0,
        footer_bytes: 1000,
        ..Settings::default()
    };
    written.store = Store::open(&written.folder, settings, second);
    assert_eq!(written.fetch(1, 0, 3), ok(&["a", "b"]));
    assert_eq!(written.fetch(1, 2, 3), ok(&["c"]));
}

#[test]
fn replayed_batches_are_not_kept_in_memory() {
    let mut written = Written::new(1 << 24);
    written.entry(&[batch("a")], true, |store, entry| {
        let effects = Update {
            placements: &[placement(1, 0, Source::Here(0))],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    assert!(!written.store.in_memory(QueueKey(1), Offset(0)));
    assert_eq!(written.fetch(1, 0, 1), ok(&["a"]));
}

/// Queues 1 and 2 in one sealed segment, queue 2 alone in the next.
fn two_sealed() -> Written {
    let mut written = Written::new(0);
    written.append(1, 0, &["a"]);
    written.append(2, 0, &["b", "c"]);
    written.seal();
    written.append(2, 2, &["d"]);
    written.seal();
    written.append(2, 3, &["e"]);
    written
}

fn dead(written: &Written, ends: &[(u32, u64, u64)]) -> Vec<u64> {
    let sealed = [SegmentId(1), SegmentId(2)];
    let dead = written.store.dead(&sealed, |queue| {
        let found = ends.iter().find(|(of, ..)| *of == queue.0)?;
        Some((Offset(found.1), Offset(found.2)))
    });
    assert_eq!(dead.unknown, []);
    dead.segments.iter().map(|segment| segment.0).collect()
}

#[test]
fn a_segment_is_dead_when_all_it_holds_is_deleted_or_below_the_starts() {
    let written = two_sealed();
    assert_eq!(dead(&written, &[(1, 0, 1), (2, 0, 4)]), [0_u64; 0]);
    assert_eq!(dead(&written, &[(2, 1, 4)]), [0_u64; 0], "offset 1 lies there");
    assert_eq!(dead(&written, &[(2, 2, 4)]), [1]);
    assert_eq!(
        dead(&written, &[(1, 1, 1), (2, 2, 4)]),
        [1],
        "an empty queue needs nothing"
    );
    assert_eq!(dead(&written, &[(1, 0, 1), (2, 3, 4)]), [2], "in the middle too");
    assert_eq!(dead(&written, &[]), [1, 2]);
}

#[test]
fn a_segment_that_is_read_just_now_is_not_freed_and_a_freed_one_not_read() {
    let written = two_sealed();
    let reading = written.store.segments.pin(SegmentId(1)).unwrap();
    assert!(!written.store.free(SegmentId(1)));
    assert_eq!(written.fetch(2, 0, 2), ok(&["b", "c"]), "it is still there");
    drop(reading);
    assert!(written.store.free(SegmentId(1)));
    // A reader that found its rows before comes too late.
    let late = written.store.segments.file(SegmentId(1)).unwrap_err();
    assert!(matches!(late, ReadError::Freed { .. }), "{late}");
    let gone = written.store.fetch(QueueKey(2), Offset(0), Offset(4), 100);
    assert!(matches!(gone, Err(ReadError::NotStored { .. })), "{gone:?}");
    assert_eq!(written.fetch(2, 2, 4), ok(&["d"]));
    assert_eq!(written.store.take_rows().freed, [SegmentId(1)]);
}

#[test]
fn a_file_that_is_needed_and_gone_is_missed() {
    let written = two_sealed();
    let all = |_| Some((Offset(0), Offset(9)));
    assert_eq!(written.store.missing(all).unwrap(), None);
    written
        .disk
        .remove(&layout::segment_file(Path::new(DATA), SegmentId(2)))
        .unwrap();
    assert_eq!(written.store.missing(all).unwrap(), Some(SegmentId(2)));
    assert_eq!(written.store.missing(|_| None).unwrap(), None, "nothing needs it");
}

/// Knows the rows of queue 1 in segment 1, and nothing else.
#[derive(Debug)]
struct KnowsQueueOne(PlacedRow);

impl Rebuild for KnowsQueueOne {
    fn rows(&self, segment: SegmentId, spans: &[Span]) -> Result<Rebuilt, ReadError> {
        let nothing = |reason: &str| ReadError::Footer {
            segment,
            reason: reason.to_owned(),
        };
        let first = spans.first().ok_or_else(|| nothing("no queue"))?;
        assert_eq!(
            (first.queue, first.first, first.until),
            (QueueKey(1), Offset(0), None)
        );
        assert_eq!(spans.last().and_then(|span| span.until), Some(Offset(2)));
        (segment == SegmentId(1))
            .then(|| vec![self.0].into())
            .ok_or_else(|| nothing("unreadable"))
    }
}

#[test]
fn s12_what_cannot_be_made_again_is_a_hole_and_the_rest_is_served() {
    let mut written = two_sealed();
    let found = written
        .store
        .fetch(QueueKey(1), Offset(0), Offset(1), 100)
        .unwrap();
    let Found::Batch { row, .. } = &found[0] else {
        panic!()
    };
    written.store = written.store.rebuilt_by(Arc::new(KnowsQueueOne(*row)));
    let path = layout::segment_file(Path::new(DATA), SegmentId(1));
    let mut bytes = written.disk.content(&path).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    written.disk.set_content(&path, bytes);
    // Its footer is not in memory: another segment was sealed since.
    written.store.segments.forget_footers();
    assert_eq!(written.fetch(1, 0, 1), ok(&["a"]));
    assert_eq!(written.fetch(2, 0, 4), [Err((0, 2))]);
    assert_eq!(written.fetch(2, 2, 4), ok(&["d"]));
}
