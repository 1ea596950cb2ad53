//! The scrub of the store alone, on a disk that loses what a test chooses.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use mq_broker::log::{SegmentId, Want};
use mq_broker::store::{Found, Rotten, Scrubbing, Target};

use crate::support::journal::{Live, Rig, append, batch};

const SEGMENT_BYTES: u32 = 1 << 16;

/// Two sealed segments and a begun one, with messages of a kilobyte each.
fn sealed() -> (Rig, Live) {
    let mut rig = Rig::new(SEGMENT_BYTES);
    // Nothing is served from memory.
    rig.store_settings.tail_bytes = 0;
    rig.store_settings.unreadable_patience = Duration::ZERO;
    let mut live = rig.open().unwrap();
    let mut seed = 0;
    while rig.disk.content(&rig.segment(3)).is_none() {
        live.write(append(0, vec![batch(seed, 1000)]), Want::Synced);
        seed += 1;
    }
    (rig, live)
}

/// Scrubs the first segment, a little at a time.
fn scrub(live: &Live) -> Vec<Rotten> {
    let mut scrubbing = Scrubbing::begin(Target::Segment(SegmentId(1)));
    let mut rotten = Vec::new();
    while !scrubbing.is_done() {
        live.recorder
            .store
            .scrub(&mut scrubbing, 3000, &mut rotten, &mut |_| true)
            .unwrap();
    }
    rotten
}

/// The first segment's file, and where it has each batch, with its offset.
fn batches(rig: &Rig, live: &Live) -> (PathBuf, Vec<(u64, Range<u64>)>) {
    let found = live.read_queue(0, 1 << 20);
    let rows = found.iter().map(|found| match found {
        Found::Batch { row, .. } => row,
        Found::Hole { .. } => panic!("a hole: {found:?}"),
    });
    let places = rows
        .filter(|row| row.location.segment == SegmentId(1))
        .map(|row| {
            let from = u64::from(row.location.position);
            (row.base_offset.0, from..from + u64::from(row.location.bytes))
        });
    (rig.segment(1), places.collect())
}

/// The offsets that the scrub says are lost.
fn lost(rotten: &[Rotten]) -> Vec<u64> {
    let messages = rotten.iter().filter_map(|rotten| rotten.messages);
    messages.flat_map(|(_, from, end)| from.0..end.0).collect()
}

/// The offsets that are holes for a reader.
fn holes(live: &Live) -> Vec<u64> {
    let found = live.read_queue(0, 1 << 20);
    let holes = found.iter().filter_map(|found| match found {
        Found::Hole { from, end, .. } => Some(from.0..end.0),
        Found::Batch { .. } => None,
    });
    holes.flatten().collect()
}

#[test]
fn s6_scrub_goes_on_behind_a_bad_sector_and_names_what_it_held() {
    let (rig, live) = sealed();
    let (path, batches) = batches(&rig, &live);
    // Damage after it is found, too.
    let (last, place) = batches.last().unwrap().clone();
    let mut bytes = rig.segment_bytes(1);
    bytes[usize::try_from(place.start + 100).unwrap()] ^= 1;
    rig.disk.set_content(&path, bytes);
    rig.disk.set_unreadable(&path, 20_000..20_100);
    let rotten = scrub(&live);
    let unreadable: Vec<_> = rotten
        .iter()
        .filter(|rotten| rotten.what.contains("cannot read"))
        .map(|rotten| u64::from(rotten.position)..u64::from(rotten.end))
        .collect();
    // A block is what a disk reads at once; of it, what the scrub wanted.
    assert_eq!(unreadable.len(), 1, "{rotten:?}");
    assert!(unreadable[0].start <= 20_000, "{rotten:?}");
    assert_eq!(unreadable[0].end, 20_480, "{rotten:?}");
    let touched = batches
        .iter()
        .filter(|(_, place)| place.start < 20_480 && 20_000 < place.end);
    let mut expected: Vec<u64> = touched.map(|(offset, _)| *offset).collect();
    assert!(!expected.is_empty(), "{batches:?}");
    expected.push(last);
    assert_eq!(lost(&rotten), expected, "{rotten:?}");
    assert_eq!(holes(&live), expected);
    // Nothing is given up for good: the disk may read it later, and after a start it is tried at once.
    rig.disk.set_unreadable(&path, 0..0);
    drop(live);
    assert_eq!(holes(&rig.open().unwrap()), [last]);
}

#[test]
fn s6_scrub_checks_all_batches_of_a_segment_whose_header_is_damaged() {
    let (rig, live) = sealed();
    let (path, batches) = batches(&rig, &live);
    let (offset, place) = batches[batches.len() / 2].clone();
    let mut bytes = rig.segment_bytes(1);
    bytes[20] ^= 1;
    bytes[usize::try_from(place.start + 100).unwrap()] ^= 1;
    rig.disk.set_content(&path, bytes);
    let rotten = scrub(&live);
    assert!(rotten[0].what.contains("header"), "{rotten:?}");
    assert_eq!(lost(&rotten), [offset], "{rotten:?}");
    assert_eq!(holes(&live), [offset]);
}

#[test]
fn scrub_keeps_its_rate_also_where_it_searches_behind_damage() {
    const RATE: u64 = 5 << 20;
    const SLICE: u64 = 2 * 3000;
    const INDEX: u64 = 64 * 64;
    let (rig, live) = sealed();
    let (path, _) = batches(&rig, &live);
    let mut bytes = rig.segment_bytes(1);
    bytes[10_000..50_000].fill(0xff);
    rig.disk.set_content(&path, bytes);
    let mut scrubbing = Scrubbing::begin(Target::Segment(SegmentId(1)));
    let (mut rotten, mut clock) = (Vec::new(), Duration::ZERO);
    let begun = rig.disk.bytes_read();
    // What was read at the rate by now; the last slice need not be waited for yet, nor the index that it is
    // checked by.
    let keeps_it = |clock: Duration| {
        let read = rig.disk.bytes_read() - begun;
        let allowed = clock.as_nanos() * u128::from(RATE) / 1_000_000_000;
        let ahead = u128::from(read).saturating_sub(allowed);
        assert!(ahead <= u128::from(SLICE + INDEX), "{read} of {allowed}");
    };
    let wait = |clock: &mut Duration, bytes: u32| {
        assert!(u64::from(bytes) <= SLICE, "{bytes} at once");
        keeps_it(*clock);
        *clock += Duration::from_nanos(u64::from(bytes) * 1_000_000_000 / RATE);
        true
    };
    while !scrubbing.is_done() {
        let mut pause = |bytes| wait(&mut clock, bytes);
        let store = &live.recorder.store;
        let left = store
            .scrub(&mut scrubbing, 3000, &mut rotten, &mut pause)
            .unwrap();
        wait(&mut clock, left);
    }
    assert!(lost(&rotten).len() > 30, "{rotten:?}");
    // The damage was read twice: for entries, and batch by batch.
    assert!(rig.disk.bytes_read() - begun > 90_000);
}

#[test]
fn scrub_that_is_told_to_stop_while_it_searches_stops_there() {
    let (rig, live) = sealed();
    let (path, _) = batches(&rig, &live);
    let mut bytes = rig.segment_bytes(1);
    bytes[10_000..50_000].fill(0xff);
    rig.disk.set_content(&path, bytes);
    let mut scrubbing = Scrubbing::begin(Target::Segment(SegmentId(1)));
    let begun = rig.disk.bytes_read();
    let store = &live.recorder.store;
    let stopped = store.scrub(&mut scrubbing, 20_000, &mut Vec::new(), &mut |_| false);
    assert!(stopped.is_err());
    assert!(rig.disk.bytes_read() - begun <= 40_000);
}
