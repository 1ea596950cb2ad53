//! Segments that nothing needs any longer: their files return as spares, no crash on the way loses anything,
//! and their old content is never taken for new entries.

use std::time::{Duration, Instant};

use mq_broker::log::{FreeError, SegmentId, Want};
use mq_broker::store::Found;
use mq_broker::store::disk::{Crash, Faults};
use mq_broker::store::layout;
use mq_common::ids::Lsn;
use proptest::prelude::*;
use std::path::Path;

use crate::support::journal::{DATA, Live, Rig, append, batch, commit, delete, half};

const SEGMENT_BYTES: u32 = 4096;

fn rig(spares_max: usize) -> Rig {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.settings.spares_max = spares_max;
    rig.store_settings.tail_bytes = 0;
    rig
}

/// Fills about `segments` segments with entries of one queue.
fn fill(live: &mut Live, queue: u32, segments: usize) {
    let until = live.log.recycler().sealed().len() + segments;
    let mut n = 0;
    while live.log.recycler().sealed().len() < until {
        live.write(append(queue, vec![batch(n, 300)]), Want::Synced);
        n += 1;
    }
}

/// Queue 0 in the first segments, then queue 1, then queue 0 again; queue 1 is deleted.
fn deleted_in_the_middle(rig: &Rig) -> Live {
    let mut live = rig.open().unwrap();
    fill(&mut live, 0, 2);
    fill(&mut live, 1, 6);
    fill(&mut live, 0, 1);
    live.write(delete(1), Want::Synced);
    live
}

fn wait_for_spares(live: &Live, spares: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while live.log.recycler().spares() < spares {
        assert!(Instant::now() < deadline, "no spare was made");
        std::thread::yield_now();
    }
}

#[test]
fn segments_of_a_deleted_queue_are_freed_and_everything_else_is_served_after_a_restart() {
    let mut rig = rig(0);
    let mut live = deleted_in_the_middle(&rig);
    let expected = live.read_queue(0, 10_000);
    let (before, _) = rig.files();
    let freed = rig.reclaim(&mut live).unwrap();
    assert!(freed >= 5, "{freed} of {before}");
    assert_eq!(rig.files(), (before - freed, 0));
    assert_eq!(live.read_queue(0, 10_000), expected);
    assert_eq!(rig.reclaim(&mut live).unwrap(), 0, "each once");
    for crash in [Crash::LoseUnsynced, Crash::KeepAll] {
        let mut rig = rig.fork();
        rig.disk.crash(crash);
        rig.now += 10;
        let mut live = rig.open().unwrap();
        assert_eq!(live.read_queue(0, 10_000), expected);
        assert_eq!(rig.reclaim(&mut live).unwrap(), 0);
    }
}

#[test]
fn nothing_is_freed_before_the_checkpoint_knows_of_the_deletion() {
    let mut rig = rig(0);
    let mut live = rig.open().unwrap();
    fill(&mut live, 1, 3);
    rig.save(&mut live);
    live.write(delete(1), Want::Synced);
    assert!(rig.saved.dead.segments.is_empty(), "at the checkpoint");
    rig.save(&mut live);
    assert_eq!(rig.saved.dead.segments.len(), 3);
}

#[test]
fn a_segment_stays_for_a_half_message_and_for_what_a_later_segment_places_of_it() {
    let mut rig = rig(0);
    let mut live = rig.open().unwrap();
    let lsn = live.write(half(vec![batch(1, 50), batch(2, 60)]), Want::Synced);
    let first = mq_broker::ids::BatchAt { lsn, index: 0 };
    fill(&mut live, 1, 2);
    live.write(delete(1), Want::Synced);
    assert_eq!(
        rig.reclaim(&mut live).unwrap(),
        1,
        "all but the one with the half"
    );
    assert_eq!(live.log.recycler().sealed(), [SegmentId(1)]);
    live.write(commit(0, first, &[1, 1]), Want::Synced);
    assert_eq!(rig.reclaim(&mut live).unwrap(), 0, "the row is in no footer yet");
    fill(&mut live, 2, 1);
    live.write(delete(2), Want::Synced);
    assert_eq!(
        rig.reclaim(&mut live).unwrap(),
        0,
        "the commit's segment needs it"
    );
    // After a restart the footer has to be read.
    rig.disk.crash(Crash::LoseUnsynced);
    rig.now += 10;
    let mut live = rig.open().unwrap();
    fill(&mut live, 2, 1);
    live.write(delete(2), Want::Synced);
    rig.save(&mut live);
    assert!(!rig.saved.dead.unknown.is_empty());
    assert_eq!(rig.reclaim(&mut live).unwrap(), 1, "what was filled just now");
    assert_eq!(live.read_queue(0, 1000).len(), 2);
    live.write(delete(0), Want::Synced);
    rig.reclaim(&mut live).unwrap();
    assert_eq!(live.log.recycler().sealed(), []);
}

#[test]
fn freed_segments_become_spares_up_to_the_maximum_and_are_written_again() {
    let mut rig = rig(2);
    let mut live = deleted_in_the_middle(&rig);
    let freed = rig.reclaim(&mut live).unwrap();
    assert!(freed > 2);
    wait_for_spares(&live, 2);
    assert_eq!(rig.files().1, 2, "the others were unlinked");
    for number in 1..100 {
        let spare = layout::spare_file(Path::new(DATA), number, true);
        if let Some(bytes) = rig.disk.content(&spare) {
            assert_eq!(bytes, vec![0; SEGMENT_BYTES as usize], "{}", spare.display());
        }
    }
    let expected = live.read_queue(0, 10_000).len();
    fill(&mut live, 0, 2);
    assert_eq!(rig.files().1, 0, "both are segments now");
    rig.disk.crash(Crash::LoseUnsynced);
    rig.now += 10;
    let live = rig.open().unwrap();
    assert!(live.read_queue(0, 10_000).len() > expected);
}

#[test]
fn a_crash_at_any_sync_while_segments_are_freed_and_reused_loses_nothing() {
    let mut failures = 0;
    for sync in 1.. {
        let mut rig = rig(2);
        let mut live = deleted_in_the_middle(&rig);
        let mut expected = live.read_queue(0, 10_000);
        rig.save(&mut live);
        rig.disk.set_faults(Faults {
            fail_sync: rig.disk.syncs() + sync,
            ..Faults::default()
        });
        let done = free_and_reuse(&mut rig, &mut live, &mut expected);
        rig.now += 10;
        for seed in 0..8 {
            let rig = rig.fork();
            rig.disk.crash(match seed {
                0 => Crash::LoseUnsynced,
                1 => Crash::KeepAll,
                seed => Crash::Random(seed),
            });
            let live = rig
                .open()
                .unwrap_or_else(|error| panic!("sync {sync}, seed {seed}: {error}"));
            let found = live.read_queue(0, 10_000);
            // What was in flight when the sync failed may survive or not.
            assert!(found.len() >= expected.len(), "sync {sync}, seed {seed}: lost");
            assert_eq!(found[..expected.len()], expected, "sync {sync}, seed {seed}");
        }
        match done {
            Ok(()) => break,
            Err(_) => failures += 1,
        }
    }
    assert!(failures > 8, "{failures} syncs were tried");
}

/// Frees what the checkpoint showed to be dead, waits for spares, and writes into them; adds what was
/// acknowledged to `expected`.
fn free_and_reuse(rig: &mut Rig, live: &mut Live, expected: &mut Vec<Found>) -> Result<(), String> {
    for segment in &rig.saved.dead.segments {
        assert!(live.recorder.store.free(*segment));
        match live.log.recycler().free(*segment) {
            Ok(_) => {}
            Err(FreeError::Poisoned(poisoned)) => return Err(poisoned.to_string()),
            Err(error) => panic!("{error}"),
        }
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while live.log.recycler().spares() < 2 {
        live.turn().map_err(|poisoned| poisoned.to_string())?;
        assert!(Instant::now() < deadline, "neither a spare nor a failure");
    }
    for n in 0..24 {
        let ticket = live.propose(append(0, vec![batch(n, 300)]), Want::Synced);
        live.turn().map_err(|poisoned| poisoned.to_string())?;
        assert_eq!(live.completions()[0].0, ticket);
        *expected = live.read_queue(0, 10_000);
    }
    Ok(())
}

/// Valid frames from other positions of the same journal, at any position.
fn leftovers() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    let piece = (0..6_usize, 0..4096_usize, 0..4096_usize);
    prop::collection::vec(piece, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Zeros are only the first guard: recovery finds the right entries even among any leftovers of earlier
    /// segments.
    #[test]
    fn s3_leftovers_of_any_kind_never_pass(pieces in leftovers(), entries in 0..8_u64, keep_all in any::<bool>()) {
        let mut rig = rig(0);
        let mut live = rig.open().unwrap();
        fill(&mut live, 0, 6);
        let old: Vec<Vec<u8>> = (1..=6).map(|id| rig.segment_bytes(id)).collect();
        let mut spare = old[0].clone();
        for (segment, from, at) in pieces {
            let end = spare.len();
            let piece = &old[segment][from..];
            let count = piece.len().min(end - at);
            spare[at..at + count].copy_from_slice(&piece[..count]);
        }
        // Found by the next start.
        live.stop().unwrap();
        drop(live);
        rig.disk.set_content(&layout::spare_file(Path::new(DATA), 9, true), spare);
        rig.now += 10;
        let mut live = rig.open().unwrap();
        fill(&mut live, 0, 1);
        prop_assert_eq!(rig.files().1, 0, "the spare is the segment being written");
        for n in 0..entries {
            live.write(append(1, vec![batch(n, 100)]), Want::Synced);
        }
        live.write(append(1, vec![batch(77, 200)]), Want::Flushed);
        let all = live.recorder.applied.clone();
        let Lsn(synced) = live.marks().synced;
        rig.now += 10;
        rig.disk.crash(if keep_all { Crash::KeepAll } else { Crash::LoseUnsynced });
        let again = rig.open().unwrap();
        let kept = again.recorder.applied.len() - 1;
        // The first start's entries are not replayed into `all` twice: both lists begin with entry 1.
        prop_assert!(kept as u64 >= synced, "{} of {}", kept, synced);
        prop_assert_eq!(&again.recorder.applied[..kept], &all[..kept]);
    }
}
