//! What is read without waiting, what is asked for ahead, and that answers are slices of what was read.

use super::*;

/// The regions that are read at once; `None` = the disk would have to be waited for.
fn at_once(written: &Written, queue: u32, from: u64, end: u64) -> Option<Vec<Bytes>> {
    let (queue, from, end) = (QueueKey(queue), Offset(from), Offset(end));
    match written.store.fetch_by(Access::AtOnce, queue, from, end, 1 << 20) {
        Ok(found) => Some(regions(found)),
        Err(ReadError::Waits) => None,
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
            &Effects {
                placements: &placements,
                ..Effects::default()
            },
        );
    });
    written.disk.set_cold(true);
    let served = at_once(&written, 1, 0, 1).unwrap();
    assert_eq!(served[0].as_ptr(), batch.bytes().as_ptr());
}

#[test]
fn only_who_may_ask_for_more_than_it_needs_reads_ahead() {
    let mut written = Written::new(0);
    for offset in 0..4 {
        written.append(1, offset, &["x"]);
    }
    let read = |access, from| {
        let (queue, end) = (QueueKey(1), Offset(from + 1));
        written
            .store
            .fetch_by(access, queue, Offset(from), end, 1)
            .unwrap();
        written.disk.take_hints()
    };
    assert_eq!(read(Access::Waits, 0), [], "one read is no sequence");
    assert_eq!(read(Access::WaitsSparing, 1), []);
    let hints = read(Access::Waits, 2);
    assert_eq!(hints.len(), 1, "{hints:?}");
    assert_eq!(read(Access::AtOnce, 3), [], "enough is asked for");
}
