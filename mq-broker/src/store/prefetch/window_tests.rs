//! What is requested from the disk ahead of several readers of the journal, and what happens at the change of
//! segments.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::store::Settings;
use crate::store::prefetch::shared::STRETCH_BYTES;
use crate::store::test_journal::Written;

/// So large that two batches of a queue, with those of the others in between, are requested separately.
const LARGE: usize = 50_000;
const QUEUES: u32 = 8;

/// A batch of each queue in turn, this many times.
fn interleaved(written: &mut Written, batches: Range<u64>) {
    let large = "x".repeat(LARGE);
    for offset in batches {
        for queue in 0..QUEUES {
            written.append(queue, offset, &[&large]);
        }
    }
}

/// Reads one batch; returns what was requested from the disk for it. `None` = the read would block.
fn read(written: &Written, access: Access, queue: u32, (from, end): (u64, u64)) -> Option<Vec<(u64, u64)>> {
    let queue = QueueKey(queue);
    match written
        .store
        .fetch_by(access, queue, Offset(from), Offset(end), 1)
    {
        Ok(found) => assert_eq!(found.len(), 1),
        Err(ReadError::WouldBlock) => return None,
        Err(error) => panic!("{error}"),
    }
    Some(written.disk.take_hints())
}

/// Some of the queues are read in turn from their starts, this many batches of each; returns all that is
/// requested from the disk.
fn read_in_turn(written: &Written, access: Access, queues: Range<u32>, batches: u64) -> Vec<(u64, u64)> {
    let mut hints = Vec::new();
    for from in 0..batches {
        for queue in queues.clone() {
            hints.extend(read(written, access, queue, (from, batches)).unwrap());
        }
    }
    hints
}

fn is_stretch(hint: &(u64, u64)) -> bool {
    let stretch = u64::from(STRETCH_BYTES);
    hint.0.is_multiple_of(stretch) && hint.1 == stretch
}

fn bytes_of(hints: &[(u64, u64)]) -> u64 {
    hints.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn readers_of_most_of_a_segment_ask_for_its_stretches_each_once() {
    const BATCHES: u64 = 60;
    for access in [Access::Blocking, Access::CacheOnly] {
        let mut written = Written::new(0);
        interleaved(&mut written, 0..BATCHES);
        let segment_bytes = u64::from(written.position);
        written.seal();
        written.store.segments.forget_footers();
        // Its file is open and its index in memory, for reads that must not block.
        read(&written, Access::BlockingNoPrefetch, 0, (BATCHES - 1, BATCHES)).unwrap();
        let hints = read_in_turn(&written, access, 0..QUEUES, BATCHES);
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for (position, _) in hints.iter().filter(|hint| is_stretch(hint)) {
            *times.entry(*position).or_default() += 1;
        }
        let stretches = segment_bytes.div_ceil(u64::from(STRETCH_BYTES));
        assert!(times.len() as u64 >= stretches - 1, "{access:?}: {times:?}");
        assert!(times.values().all(|times| *times == 1), "{access:?}: {times:?}");
        // Before half of the readers were known to continue, each requested its own batches.
        let asked = bytes_of(&hints);
        assert!(
            asked < segment_bytes * 3 / 2,
            "{access:?}: {asked} of {segment_bytes}"
        );
    }
}

#[test]
fn readers_of_less_than_half_of_a_segment_ask_for_no_bytes_of_others() {
    const BATCHES: u64 = 40;
    for readers in [1, 3] {
        let mut written = Written::new(0);
        interleaved(&mut written, 0..BATCHES);
        let segment_bytes = u64::from(written.position);
        written.seal();
        let hints = read_in_turn(&written, Access::Blocking, 0..readers, BATCHES);
        let own_bytes = segment_bytes / u64::from(QUEUES) * u64::from(readers);
        let asked = bytes_of(&hints);
        assert!(asked <= own_bytes, "{readers}: {asked} of {own_bytes}");
        assert!(asked > own_bytes / 2, "{readers}: {asked} of {own_bytes}");
    }
}

#[test]
fn who_spares_the_disk_brings_nothing_for_others() {
    const BATCHES: u64 = 20;
    let mut written = Written::new(0);
    interleaved(&mut written, 0..BATCHES);
    let segment_bytes = u64::from(written.position);
    written.seal();
    written.store.segments.forget_footers();
    let hints = read_in_turn(&written, Access::BlockingNoPrefetch, 0..QUEUES, BATCHES);
    assert!(!hints.iter().any(is_stretch), "{hints:?}");
    assert!(bytes_of(&hints) <= segment_bytes);
    let hints = read_in_turn(&written, Access::CacheOnlyNoPrefetch, 0..QUEUES, BATCHES);
    assert_eq!(hints, []);
}

#[test]
fn the_index_of_the_segment_behind_the_next_one_is_asked_for_once() {
    let mut written = Written::new(0);
    let mut ends = Vec::new();
    for segment in 0..3 {
        interleaved(&mut written, segment * 4..segment * 4 + 4);
        let path = written.path();
        written.seal();
        ends.push(written.disk.content(&path).unwrap().len() as u64);
    }
    let index = |hint: &&(u64, u64)| hint.0 + hint.1 == ends[2];
    written.store.segments.forget_footers();
    read(&written, Access::Blocking, 0, (0, 12)).unwrap();
    let hints = read(&written, Access::Blocking, 0, (1, 12)).unwrap();
    assert_eq!(hints.iter().filter(index).count(), 1, "{hints:?}");
    let hints = read(&written, Access::Blocking, 0, (2, 12)).unwrap();
    assert_eq!(hints.iter().filter(index).count(), 0, "{hints:?}");
}

#[test]
fn a_reader_that_comes_to_an_index_which_is_not_in_memory_waits_for_it_once_and_ahead_of_time() {
    let mut written = Written::with(Settings {
        tail_bytes: 0,
        ..Settings::default()
    });
    interleaved(&mut written, 0..6);
    written.seal();
    interleaved(&mut written, 6..12);
    written.seal();
    written.store.segments.forget_footers();
    read(&written, Access::BlockingNoPrefetch, 0, (0, 12)).unwrap();
    let hints = read(&written, Access::CacheOnly, 0, (1, 12)).unwrap();
    assert_eq!(hints.len(), 4, "the rest of the first segment: {hints:?}");
    assert_eq!(read(&written, Access::CacheOnly, 0, (2, 12)), None);
    let hints = read(&written, Access::Blocking, 0, (2, 12)).unwrap();
    assert_eq!(hints.len(), 6, "all of the second one: {hints:?}");
    for from in 3..12 {
        assert_eq!(
            read(&written, Access::CacheOnly, 0, (from, 12)),
            Some(Vec::new()),
            "{from}"
        );
    }
}

#[test]
fn the_system_is_told_once_a_file_not_to_read_ahead_by_itself() {
    let mut written = Written::new(0);
    interleaved(&mut written, 0..4);
    written.seal();
    assert_eq!(written.disk.jumps(), 0);
    for from in 0..4 {
        read(&written, Access::BlockingNoPrefetch, 0, (from, 4)).unwrap();
    }
    assert_eq!(written.disk.jumps(), 1);
}
