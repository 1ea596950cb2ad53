//! Non-blocking reads, prefetching, and that results are slices of what was read.

use bytes::Bytes;

use super::*;
use crate::ids::BatchAt;
use crate::state::Source;
use crate::store::Update;
use crate::store::test_journal::{Written, batch, ok, placement};

/// The regions that are read at once; `None` = the read would block on the disk.
fn at_once(written: &Written, queue: u32, from: u64, end: u64) -> Option<Vec<Bytes>> {
    let (queue, from, end) = (QueueKey(queue), Offset(from), Offset(end));
    match written
        .store
        .fetch_by(Access::CacheOnly, queue, from, end, 1 << 20)
    {
        Ok(found) => Some(regions(found)),
        Err(ReadError::WouldBlock) => None,
        Err(error) => panic!("{error}"),
    }
}

fn regions(found: Vec<Found>) -> Vec<Bytes> {
    let region = |found| match found {
        Found::Batch { region, .. } => region,
        Found::Hole { reason, .. } => panic!("{reason}"),
    };
    found.into_iter().map(region).collect()
}

#[test]
fn what_needs_the_disk_is_left_to_those_who_may_wait() {
    let mut written = Written::new(0);
    written.append(1, 0, &["a", "b"]);
    written.seal();
    written.append(1, 2, &["c"]);
    written.store.segments.forget_footers();
    assert_eq!(at_once(&written, 1, 0, 3), None, "its footer is not in memory");
    assert_eq!(written.fetch(1, 0, 3), ok(&["a", "b"]));
    assert_eq!(
        at_once(&written, 1, 0, 3).unwrap().len(),
        2,
        "the page cache has it"
    );
    assert_eq!(at_once(&written, 1, 2, 3), None, "its file is not open");
    assert_eq!(written.fetch(1, 2, 3), ok(&["c"]));
    assert_eq!(at_once(&written, 1, 2, 3).unwrap().len(), 1);
    written.disk.set_cold(true);
    assert_eq!(at_once(&written, 1, 0, 3), None);
    assert_eq!(at_once(&written, 1, 2, 3), None);
    assert_eq!(written.fetch(1, 2, 3), ok(&["c"]));
}

#[test]
fn batches_that_were_read_together_are_slices_of_one_buffer() {
    let mut written = Written::new(0);
    written.append(1, 0, &["first", "second", "third"]);
    let found = written
        .store
        .fetch(QueueKey(1), Offset(0), Offset(3), 1 << 20)
        .unwrap();
    let regions = regions(found);
    assert_eq!(regions.len(), 3);
    for pair in regions.windows(2) {
        let (one, next) = (pair[0].as_ptr_range(), pair[1].as_ptr_range());
        // As far apart as in the file, where 60 bytes lie between two batches.
        assert_eq!(one.end.wrapping_add(60), next.start);
    }
}

#[test]
fn batches_in_memory_are_served_without_a_copy() {
    let mut written = Written::new(1 << 24);
    let large = "x".repeat(20_000);
    let batch = batch(&large);
    written.entry(std::slice::from_ref(&batch), false, |store, entry| {
        let placements = [placement(1, 0, Source::Here(0))];
        store.apply(
            entry,
            &Update {
                placements: &placements,
                ..Update::default()
            },
        );
    });
    written.disk.set_cold(true);
    let served = at_once(&written, 1, 0, 1).unwrap();
    assert_eq!(served[0].as_ptr(), batch.bytes().as_ptr());
}

#[test]
fn who_reads_anew_gets_what_the_disk_has_though_memory_has_it_too() {
    let mut written = Written::new(1 << 24);
    written.append(1, 0, &["whole"]);
    let read = |access| {
        let before = written.disk.bytes_read();
        let found = written
            .store
            .fetch_by(access, QueueKey(1), Offset(0), Offset(1), 1);
        let bytes = written.disk.bytes_read() - before;
        (bytes > 0, crate::store::test_journal::text(&found.unwrap()[0]))
    };
    assert_eq!(read(Access::Blocking), (false, Ok("whole".into())));
    assert_eq!(read(Access::BypassCache), (true, Ok("whole".into())));
    // What memory holds does not hide what the disk lost.
    let mut bytes = written.disk.content(&written.path()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    written.disk.set_content(&written.path(), bytes);
    assert_eq!(read(Access::Blocking), (false, Ok("whole".into())));
    assert_eq!(read(Access::BypassCache), (true, Err((0, 1))));
}

/// So large that two batches with one in between are requested separately.
const LARGE: usize = 50_000;

/// Queue 1 with `batches` large batches, and between two of them one of queue 2.
fn interleaved(written: &mut Written, batches: std::ops::Range<u64>) {
    let large = "x".repeat(LARGE);
    for offset in batches {
        written.append(1, offset, &[&large]);
        written.append(2, offset, &[&large]);
    }
}

/// The requests to the disk for a fetch of one batch of queue 1, which has this many.
fn asked(written: &Written, access: Access, from: u64, end: u64) -> Vec<(u64, u64)> {
    let found = written
        .store
        .fetch_by(access, QueueKey(1), Offset(from), Offset(end), 1);
    assert_eq!(found.unwrap().len(), 1);
    written.disk.take_hints()
}

#[test]
fn batches_that_lie_apart_are_asked_for_together_and_those_between_them_are_not() {
    let mut written = Written::new(0);
    interleaved(&mut written, 0..3);
    written.append(1, 3, &["near"]);
    let regions = |access| {
        let found = written
            .store
            .fetch_by(access, QueueKey(1), Offset(0), Offset(4), 1 << 20);
        regions(found.unwrap())
    };
    let sizes: Vec<_> = regions(Access::BlockingNoPrefetch)
        .iter()
        .map(|region| region.len() as u64)
        .collect();
    let apart = 2 * (sizes[0] + 60);
    let hints = written.disk.take_hints();
    let expected: Vec<_> = (0..4)
        .map(|at| (64 + at * apart, sizes[usize::try_from(at).unwrap()]))
        .collect();
    assert_eq!(hints, expected, "also by who asks for nothing ahead");
    regions(Access::CacheOnly);
    assert_eq!(written.disk.take_hints(), [], "it is in memory");
}

#[test]
fn small_batches_with_small_gaps_are_asked_for_as_one() {
    let mut written = Written::new(0);
    for offset in 0..20 {
        written.append(1, offset, &["x"]);
        written.append(2, offset, &[&"y".repeat(9000)]);
    }
    let found = written.store.fetch(QueueKey(1), Offset(0), Offset(20), 1 << 20);
    assert_eq!(found.unwrap().len(), 20);
    let hints = written.disk.take_hints();
    assert_eq!(hints.len(), 1, "{hints:?}");
}

#[test]
fn a_reader_that_goes_on_asks_for_its_own_next_batches_each_once_through_segments() {
    for access in [Access::Blocking, Access::CacheOnly] {
        let mut written = Written::new(0);
        interleaved(&mut written, 0..20);
        written.seal();
        interleaved(&mut written, 20..40);
        let own = |hint: &(u64, u64)| ((hint.0 - 64) / (hint.1 + 60)).is_multiple_of(2);
        // Both files are open and the index is in memory, for reads that must not block.
        asked(&written, Access::BlockingNoPrefetch, 30, 40);
        asked(&written, Access::BlockingNoPrefetch, 0, 40);
        let mut hints = Vec::new();
        for from in 1..40 {
            hints.extend(asked(&written, access, from, 40));
            // All of both segments is less than should be ahead.
            assert_eq!(hints.len(), 38, "{access:?}, {from}: {hints:?}");
        }
        assert!(hints.iter().all(own), "{hints:?}");
    }
}

#[test]
fn a_reader_asks_neither_beyond_the_end_nor_for_what_memory_holds() {
    let mut written = Written::new(1 << 20);
    interleaved(&mut written, 0..30);
    // The newest are in memory.
    let in_memory = (0..30).find(|at| written.store.in_memory(QueueKey(1), Offset(*at)));
    let in_memory = in_memory.unwrap();
    assert!((4..28).contains(&in_memory), "{in_memory}");
    let at = |hints: &[(u64, u64)]| hints.last().map(|hint| (hint.0 - 64) / (hint.1 + 60) / 2);
    asked(&written, Access::Blocking, 0, 30);
    assert_eq!(at(&asked(&written, Access::Blocking, 1, 3)), Some(2));
    assert_eq!(at(&asked(&written, Access::Blocking, 2, 30)), Some(in_memory - 1));
}

#[test]
fn who_spares_the_disk_and_who_jumps_asks_for_nothing_ahead() {
    let mut written = Written::new(0);
    interleaved(&mut written, 0..30);
    for from in 0..4 {
        let hints = asked(&written, Access::BlockingNoPrefetch, from, 30);
        assert_eq!(hints.len(), 1, "what it reads: {hints:?}");
        assert_eq!(asked(&written, Access::CacheOnlyNoPrefetch, from, 30), []);
    }
    for from in [20, 8, 25] {
        assert_eq!(asked(&written, Access::Blocking, from, 30), []);
        assert_eq!(asked(&written, Access::CacheOnly, from - 3, 30), []);
    }
}

#[test]
fn who_must_not_wait_gets_what_comes_before_that_which_needs_the_disk() {
    let mut written = Written::new(0);
    let half = written.entry(&[batch("half"), batch("other")], false, |store, entry| {
        let effects = Update {
            halves: &[0..1, 1..2],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.seal();
    written.append(1, 0, &["a"]);
    let placements = [placement(1, 1, Source::Half(BatchAt { lsn: half, index: 0 }))];
    written.entry(&[], false, |store, entry| {
        let effects = Update {
            placements: &placements,
            released_halves: &[half],
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    written.store.segments.forget_footers();
    assert_eq!(written.fetch(1, 0, 1), ok(&["a"]));
    let now = at_once(&written, 1, 0, 2).unwrap();
    assert_eq!(now.len(), 1, "the file of the other one is not open");
    assert_eq!(at_once(&written, 1, 1, 2), None);
    assert_eq!(written.fetch(1, 1, 2), ok(&["half"]));
    assert_eq!(at_once(&written, 1, 0, 2).unwrap().len(), 2);
}
