//! Tombstones of topics that are no longer written to are removed when their time is over.

use super::keyed::{QUEUE, Rig, compacting};
use super::*;
use crate::store::KeySettings;

/// How long a tombstone stays; time is the number of the entry here.
const STAYS: u64 = 50;

fn rig() -> Rig {
    Rig::new(KeySettings {
        tombstone_ms: STAYS,
        ..KeySettings::default()
    })
}

/// Queues that are worth a pass at this time.
fn dirty(rig: &Rig, now: u64) -> Vec<QueueKey> {
    let dirty = rig.written.store.compaction_candidates(Timestamp(now), |_| true);
    dirty.iter().map(|dirty| dirty.queue).collect()
}

/// A round that does what is worth it at this time, and the checkpoint behind it.
fn pass(rig: &mut Rig, now: u64) -> Moved {
    let store = &rig.written.store;
    let plan = store.plan_passes(&dirty(rig, now), Timestamp(now), |key| Some(compacting(key, 0)));
    let plan = plan.unwrap();
    let moved = store.compact(&plan, &mut Unhurried).unwrap();
    drop(plan);
    rig.cutoff = rig.cutoff.max(now.saturating_sub(STAYS));
    let ends = (Offset(0), Offset(rig.end()));
    let dead = store.dead(&[], |_| Some(ends));
    rig.save();
    for row in &dead.files {
        rig.written.store.remove_file(row).unwrap();
    }
    moved
}

#[test]
fn a_tombstone_goes_when_its_time_is_over_though_nothing_else_is_to_be_done() {
    let mut rig = rig();
    rig.append(&[(Some(1), Some(1)), (Some(2), Some(2))], false, false);
    rig.append(&[(Some(1), None)], false, false);
    let appended = rig.written.lsn;
    rig.move_all();
    rig.pass();
    assert!(rig.check_all().contains(&2), "it is young");
    assert_eq!(dirty(&rig, appended + STAYS), []);
    assert_eq!(dirty(&rig, appended + STAYS + 1), [QUEUE]);
    let moved = pass(&mut rig, appended + STAYS + 1);
    assert_eq!((moved.passes, moved.let_go), (1, 1));
    assert_eq!(rig.check_all().into_iter().collect::<Vec<_>>(), [1]);
    // What the pass wrote is searched once more, in vain, and then never again.
    let later = appended + 3 * STAYS;
    assert_eq!(dirty(&rig, later), []);
    assert_eq!(dirty(&rig, later + STAYS), [QUEUE]);
    assert_eq!(pass(&mut rig, later + STAYS).passes, 0);
    assert_eq!(dirty(&rig, u64::MAX), []);
}

#[test]
fn a_search_that_finds_no_old_tombstone_writes_nothing() {
    let mut rig = rig();
    rig.append(&[(Some(1), Some(1)), (Some(1), Some(2))], false, false);
    rig.move_all();
    let now = rig.written.lsn;
    assert_eq!(dirty(&rig, now), [], "too little of it");
    assert_eq!(dirty(&rig, now + STAYS), [QUEUE]);
    let before = rig.image.files.clone();
    let moved = pass(&mut rig, now + STAYS);
    assert_eq!((moved.passes, moved.rewritten, moved.bytes), (0, 0, 0));
    assert_eq!(rig.image.files, before);
    assert_eq!(dirty(&rig, u64::MAX), []);
}

#[test]
fn a_start_remembers_no_tombstone_and_looks_for_it() {
    let mut rig = rig();
    rig.append(&[(Some(1), Some(1)), (Some(1), None)], false, false);
    let appended = rig.written.lsn;
    rig.move_all();
    rig.pass();
    rig.reopen();
    rig.checkpoint();
    let now = appended + 10 * STAYS;
    assert_eq!(dirty(&rig, now), []);
    assert_eq!(dirty(&rig, now + STAYS), [QUEUE]);
    assert_eq!(pass(&mut rig, now + STAYS).let_go, 1);
    assert_eq!(rig.check_all().len(), 0);
}

#[test]
fn a_queue_with_a_file_that_cannot_be_searched_is_not_searched_again_at_once() {
    let mut rig = rig();
    rig.append(&[(Some(1), Some(1)), (Some(1), None)], false, false);
    let appended = rig.written.lsn;
    rig.move_all();
    rig.pass();
    let (file, row) = rig.image.files.iter().next().unwrap();
    let path = layout::queue_data_file(Path::new(DATA), &row.name, file.1, file.2);
    let mut bytes = rig.written.disk.content(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    rig.written.disk.set_content(&path, bytes);
    rig.reopen();
    rig.checkpoint();
    let now = appended + 10 * STAYS;
    assert_eq!(dirty(&rig, now), []);
    assert_eq!(pass(&mut rig, now + STAYS).left_alone, 1);
    assert_eq!(dirty(&rig, now + STAYS + 1), []);
}
