//! Rare events for a journal: a write that lands elsewhere on the disk, a clock that jumps.

use std::collections::BTreeSet;

use mq_broker::log::{OpenError, Want};
use mq_broker::store::Found;
use mq_broker::store::disk::{Crash, Faults};

use crate::support::journal::{Applied, Rig, append, batch};

const DAY_MS: u64 = 86_400_000;

/// Forty acknowledged entries over several segments, and a clean stop, with one write landing this many bytes
/// too far.
fn written(misdirected_write: (u64, usize)) -> (Rig, Vec<Applied>, Vec<Found>) {
    let mut rig = Rig::new(4096);
    rig.disk.set_faults(Faults {
        misdirected_write,
        ..Faults::default()
    });
    let mut live = rig.open().unwrap();
    for n in 0..40 {
        live.write(append(0, vec![batch(n, 150)]), Want::Synced);
    }
    live.stop().unwrap();
    rig.now += 10;
    let batches = live.read_queue(0, 1 << 20);
    (rig, live.recorder.applied, batches)
}

fn commands(applied: &[Applied]) -> Vec<&Applied> {
    applied
        .iter()
        .filter(|entry| !entry.commands.is_empty())
        .collect()
}

#[test]
fn s9_a_write_that_landed_elsewhere_is_found_out_and_never_served_as_something_else() {
    let (rig, _, batches) = written((0, 0));
    let writes = rig.disk.writes();
    let mut seen = BTreeSet::new();
    for misdirected in 1..=writes {
        for by in [1, 64, 512, 4096] {
            let (rig, all, _) = written((misdirected, by));
            rig.disk.crash(Crash::LoseUnsynced);
            let live = match rig.open() {
                Ok(live) => live,
                Err(error) => {
                    assert!(!matches!(error, OpenError::Io { .. }), "{error}");
                    seen.insert("refused");
                    continue;
                }
            };
            let found = commands(&live.recorder.applied);
            let all = commands(&all);
            // None is missing either: the empty entry of the stop proves that all before it were synced.
            assert_eq!(found, all, "write {misdirected} by {by}");
            seen.insert("whole");
            for (found, expected) in live.read_queue(0, 700).iter().zip(&batches) {
                let (Found::Batch { region, .. }, Found::Batch { region: expected, .. }) = (found, expected)
                else {
                    panic!("write {misdirected} by {by}: {found:?}");
                };
                assert_eq!(region, expected);
            }
        }
    }
    assert_eq!(seen, BTreeSet::from(["refused", "whole"]));
}

#[test]
fn s16_a_clock_that_jumps_takes_no_entry_back_in_time_and_loses_nothing() {
    let mut rig = Rig::new(4096);
    let start = rig.now;
    let mut written = 0;
    for jump in [
        start + DAY_MS,
        start,
        start + 3650 * DAY_MS,
        start - 1000,
        0,
        start + 3650 * DAY_MS + 5,
    ] {
        rig.now = jump;
        // The tests' applier checks the time of every entry.
        let mut live = rig.open().unwrap();
        assert_eq!(commands(&live.recorder.applied).len(), written);
        for now in [jump, 0, jump + 3_600_000, jump] {
            live.now = now;
            live.write(append(0, vec![batch(7, 300)]), Want::Synced);
            written += 1;
        }
        rig.disk.crash(Crash::LoseUnsynced);
    }
    let live = rig.open().unwrap();
    assert_eq!(commands(&live.recorder.applied).len(), written);
    assert_eq!(live.read_queue(0, 1 << 20).len(), written);
}
