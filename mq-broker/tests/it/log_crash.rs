//! Crashes and failed syncs: acknowledged entries survive, the surviving entries are a prefix, and old ones
//! never reappear.

use mq_broker::log::{Completion, Log, OpenError, Refused, Want};
use mq_broker::store::disk::{Crash, Faults};
use mq_broker::store::layout;
use mq_common::ids::Lsn;
use std::path::Path;

use crate::support::journal::{Applied, DATA, Live, Rig, append, batch};

/// The commands of entries, without terms: a start adds empty entries in between.
fn commands(applied: &[Applied]) -> Vec<&Applied> {
    applied
        .iter()
        .filter(|entry| !entry.commands.is_empty())
        .collect()
}

/// Writes `synced` entries that are acknowledged, then `unsynced` ones in one turn each.
fn written(rig: &Rig, synced: u64, unsynced: u64) -> Live {
    let mut live = rig.open().unwrap();
    for n in 0..synced {
        live.write(append(0, vec![batch(n, 60), batch(n + 1000, 10)]), Want::Synced);
    }
    for n in 0..unsynced {
        live.write(append(1, vec![batch(n + 2000, 90)]), Want::Flushed);
    }
    live
}

#[test]
fn s1_a_tail_torn_at_any_byte_is_cut_and_nothing_else() {
    let rig = Rig::new(1 << 16);
    let all = written(&rig, 3, 1).recorder.applied;
    let bytes = rig.segment_bytes(1);
    // The last frame goes from here to the end of what was written.
    let mut before = rig.fork();
    before.disk.crash(Crash::KeepAll);
    let torn_from = {
        let rig = Rig::new(1 << 16);
        drop(written(&rig, 3, 0));
        rig.segment_bytes(1).len()
    };
    assert!(torn_from < bytes.len());
    before.now += 10;
    for cut in torn_from..=bytes.len() {
        for zeros_behind in [false, true] {
            let rig = before.fork();
            let mut torn = bytes[..cut].to_vec();
            if zeros_behind {
                torn.resize(1 << 16, 0);
            }
            rig.disk.set_content(&rig.segment(1), torn);
            let kept = if cut == bytes.len() {
                all.len()
            } else {
                all.len() - 1
            };
            let live = rig.open().unwrap();
            assert_eq!(live.recorder.applied[..kept], all[..kept], "cut at {cut}");
            assert_eq!(
                live.marks().appended,
                Lsn(kept as u64 + 1),
                "one empty entry of the start, cut at {cut}"
            );
            drop(live);
            let after_first = rig.segment_bytes(1);
            rig.disk.crash(Crash::LoseUnsynced);
            assert_eq!(rig.segment_bytes(1), after_first, "recovery is durable");
            let live = rig.open().unwrap();
            assert_eq!(live.recorder.applied[..kept], all[..kept], "cut at {cut}");
        }
    }
}

#[test]
fn s2_any_subset_of_the_unsynced_sectors_leaves_a_prefix_with_everything_acknowledged() {
    let mut base = Rig::new(1 << 15);
    let mut live = written(&base, 5, 0);
    // One turn of several entries too, and batches over several sectors.
    for n in 0..10 {
        live.propose(append(2, vec![batch(n, 900)]), Want::Flushed);
        live.propose(crate::support::journal::half(vec![batch(n, 30)]), Want::Flushed);
    }
    live.turn().unwrap();
    assert_eq!(live.completions().len(), 20);
    for n in 0..5 {
        live.write(append(1, vec![batch(n, 1500)]), Want::Flushed);
    }
    base.now += 10;
    let all = live.recorder.applied.clone();
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let rig = base.fork();
        rig.disk.crash(Crash::Random(seed));
        let live = rig.open().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let kept = live.recorder.applied.len() - 1;
        assert!(kept >= 6, "seed {seed}: acknowledged entries are lost: {kept}");
        assert_eq!(live.recorder.applied[..kept], all[..kept], "seed {seed}");
        lengths.insert(kept);
        drop(live);
        rig.disk.crash(Crash::LoseUnsynced);
        let again = rig.open().unwrap();
        assert_eq!(
            again.recorder.applied[..kept],
            all[..kept],
            "seed {seed}, second start"
        );
    }
    assert!(lengths.len() > 5, "the crashes are of many kinds: {lengths:?}");
}

#[test]
fn s3_entries_of_an_earlier_life_never_pass_in_a_reused_file() {
    // A file full of valid entries from another position of the same log, provided as a spare.
    let mut rig = Rig::new(4096);
    let mut live = written(&rig, 30, 0);
    live.stop().unwrap();
    let old = rig.segment_bytes(2);
    assert_eq!(old.len(), 4096);
    drop(live);
    rig.disk
        .set_content(&layout::spare_file(Path::new(DATA), 1, true), old.clone());
    rig.now += 10;
    let mut live = rig.open().unwrap();
    let first = rig.disk.names().len();
    // Roll into the reused file, write less than it held, and crash.
    let mut n = 0;
    while rig
        .disk
        .content(&layout::spare_file(Path::new(DATA), 1, true))
        .is_some()
    {
        live.write(append(3, vec![batch(n, 100)]), Want::Synced);
        n += 1;
    }
    assert_eq!(rig.disk.names().len(), first, "the spare became the segment");
    let last = rig
        .disk
        .names()
        .iter()
        .filter(|name| name.extension().is_some_and(|e| e == "journal"))
        .count();
    live.write(append(3, vec![batch(1, 100)]), Want::Synced);
    live.write(append(3, vec![batch(2, 300)]), Want::Flushed);
    let reused = rig.segment_bytes(last as u64);
    assert_eq!(
        reused[2500..4000],
        old[2500..4000],
        "there are leftovers after the tail"
    );
    let all = live.recorder.applied.clone();
    let synced = usize::try_from(live.marks().synced.0).unwrap();
    rig.now += 10;
    for seed in 0..100 {
        let rig = rig.fork();
        rig.disk.crash(if seed == 0 {
            Crash::KeepAll
        } else {
            Crash::Random(seed)
        });
        let live = rig.open().unwrap();
        let kept = live.recorder.applied.len() - 1;
        assert!(kept >= synced, "seed {seed}");
        assert_eq!(live.recorder.applied[..kept], all[..kept], "seed {seed}");
    }
}

#[test]
fn s3_what_was_cut_stays_cut_when_shorter_entries_follow_and_the_power_fails() {
    for seed in 0..100 {
        let mut rig = Rig::new(1 << 15);
        let mut live = written(&rig, 2, 0);
        for n in 0..6 {
            live.write(append(1, vec![batch(n, 700)]), Want::Flushed);
        }
        let cut_away = live.recorder.applied.clone();
        rig.disk.crash(Crash::Random(seed));
        rig.now += 10;
        let mut live = rig.open().unwrap();
        let kept = live.recorder.applied.len() - 1;
        live.write(append(4, vec![batch(9, 5)]), Want::Flushed);
        let all = live.recorder.applied.clone();
        rig.disk.crash(Crash::Random(seed + 1));
        rig.now += 10;
        let live = rig.open().unwrap();
        let now_kept = live.recorder.applied.len() - 1;
        assert!(now_kept > kept, "the entry of the second start was synced");
        assert_eq!(live.recorder.applied[..now_kept], all[..now_kept], "seed {seed}");
        for old in &commands(&cut_away)[..] {
            let came_back = live.recorder.applied[kept..]
                .iter()
                .any(|entry| entry.commands == old.commands);
            assert!(!came_back, "seed {seed}: a cut entry came back");
        }
    }
}

#[test]
fn s4_after_a_failed_sync_nothing_is_acknowledged_and_everything_before_stays() {
    let syncs = {
        let rig = Rig::new(4096);
        drop(written(&rig, 40, 0));
        rig.disk.syncs()
    };
    assert!(syncs > 50, "{syncs}: sealing too");
    for failing in 1..=syncs {
        let mut rig = Rig::new(4096);
        rig.disk.set_faults(Faults {
            fail_sync: failing,
            ..Faults::default()
        });
        let mut acknowledged = Vec::new();
        if let Ok(mut live) = rig.open() {
            for n in 0..40 {
                let ticket = live.propose(append(0, vec![batch(n, 60), batch(n + 1000, 10)]), Want::Synced);
                let turned = live.turn();
                let completions = live.completions();
                assert_eq!(completions.len(), 1);
                assert_eq!(completions[0].0, ticket);
                match (&completions[0].1, turned) {
                    (Completion::Applied { lsn, .. }, Ok(())) => acknowledged.push(*lsn),
                    (Completion::Unknown, Err(_)) => break,
                    other => panic!("sync {failing}: {other:?}"),
                }
            }
            assert!(acknowledged.len() < 40, "sync {failing} did not fail");
            assert!(live.turn().is_err(), "poison is final");
            assert!(live.stop().is_err());
            let refused = live.log.propose(append(0, vec![]), Want::Flushed);
            assert_eq!(refused, Err(Refused::ReadOnly));
            assert_eq!(live.log.wake_at(), None);
        }
        rig.now += 10;
        for crash in [Crash::LoseUnsynced, Crash::KeepAll, Crash::Random(failing)] {
            let rig = rig.fork();
            rig.disk.crash(crash);
            let live = rig
                .open()
                .unwrap_or_else(|error| panic!("sync {failing}, {crash:?}: {error}"));
            let found: Vec<_> = commands(&live.recorder.applied)
                .iter()
                .map(|entry| entry.lsn)
                .collect();
            assert!(
                found.starts_with(&acknowledged),
                "sync {failing}, {crash:?}: {acknowledged:?} {found:?}"
            );
        }
    }
}

#[test]
fn s13_what_a_start_served_survives_a_power_cut_even_after_a_failed_sync() {
    let mut rig = Rig::new(1 << 15);
    let mut live = written(&rig, 2, 3);
    // The kernel now considers the unsynced pages clean: they are not on the disk, and no sync will write
    // them.
    rig.disk.set_faults(Faults {
        fail_sync: rig.disk.syncs() + 1,
        ..Faults::default()
    });
    live.log.request_sync();
    live.turn().unwrap_err();
    rig.disk.crash(Crash::KeepAll);
    rig.now += 10;
    let served = rig.open().unwrap().recorder.applied;
    assert_eq!(commands(&served).len(), 5);
    rig.disk.crash(Crash::LoseUnsynced);
    let again = rig.open().unwrap().recorder.applied;
    assert_eq!(again[..served.len()], served);
}

#[test]
fn s10_a_segment_is_found_after_a_power_cut_as_soon_as_something_in_it_was_acknowledged() {
    for spare in [false, true] {
        let mut rig = Rig::new(4096);
        if spare {
            rig.disk
                .set_content(&layout::spare_file(Path::new(DATA), 1, true), vec![0; 4096]);
        }
        let mut live = rig.open().unwrap();
        rig.now += 10;
        for n in 0..60 {
            let lsn = live.write(append(0, vec![batch(n, 150)]), Want::Synced);
            let rig = rig.fork();
            rig.disk.crash(Crash::LoseUnsynced);
            let found = rig.open().unwrap().recorder.applied;
            assert!(found.len() as u64 > lsn.0, "{n}");
        }
    }
}

#[test]
fn s11_beginning_a_journal_may_be_cut_short_at_any_point() {
    let syncs = {
        let rig = Rig::new(4096);
        drop(rig.open().unwrap());
        rig.disk.syncs()
    };
    for failing in 1..=syncs {
        for seed in 0..50 {
            let rig = Rig::new(4096);
            rig.disk.set_faults(Faults {
                fail_sync: failing,
                ..Faults::default()
            });
            rig.open().unwrap_err();
            rig.disk.crash(Crash::Random(seed));
            let live = rig
                .open()
                .unwrap_or_else(|error| panic!("sync {failing}, seed {seed}: {error}"));
            assert!((1..=2).contains(&live.marks().synced.0));
        }
    }
}

#[test]
fn s17_a_start_that_is_itself_cut_short_is_finished_by_the_next() {
    let mut base = Rig::new(4096);
    drop(written(&base, 20, 6));
    base.now += 10;
    for first in 0..30 {
        let torn = base.fork();
        torn.disk.crash(Crash::Random(first));
        let begun = torn.disk.syncs();
        let expected = torn.fork().open().unwrap().recorder.applied;
        for failing in 1..=4 {
            let rig = torn.fork();
            rig.disk.set_faults(Faults {
                fail_sync: begun + failing,
                ..Faults::default()
            });
            let opened = rig.open();
            if let Err(error) = &opened {
                assert!(
                    matches!(error, OpenError::Io { .. } | OpenError::Poisoned(_)),
                    "{error}"
                );
            }
            drop(opened);
            rig.disk.crash(Crash::Random(first + failing));
            let found = rig
                .open()
                .unwrap_or_else(|error| panic!("{first} {failing}: {error}"))
                .recorder
                .applied;
            let kept = expected.len() - 1;
            // Of the entries that were never synced, the second cut may leave fewer than the first would
            // have, but never different ones.
            let common = kept.min(found.len() - 1);
            assert!(common >= 21, "{first} {failing}");
            assert_eq!(found[..common], expected[..common], "{first} {failing}");
        }
    }
}
