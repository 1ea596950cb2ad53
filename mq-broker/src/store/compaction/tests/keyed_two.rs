//! Key compaction of two queues in one round: what keeps one of them does not keep the other.

use super::keyed::{Message, QUEUE, Rig, batch_of, compacting};
use super::*;
use crate::state::Placement;
use crate::store::KeySettings;

const OTHER: QueueKey = QueueKey(2);

/// Two queues with a key that comes twice, in queue files.
fn filled() -> Rig {
    let mut rig = Rig::new(KeySettings {
        dirty_percent: 0,
        ..KeySettings::default()
    });
    let messages: Vec<Message> = (0..40).map(|n| (Some(n % 7), Some(1))).collect();
    rig.append(&messages, false, false);
    let batch = batch_of(&messages, 0, false);
    let placements = [Placement {
        queue: OTHER,
        base_offset: Offset(0),
        records: batch.record_count(),
        source: Source::Here(0),
        visible_at: Durability::Memory,
    }];
    rig.written.entry(&[batch], false, |store, entry| {
        let effects = Update {
            placements: &placements,
            ..Update::default()
        };
        store.apply(entry, &effects);
    });
    rig.move_all();
    rig.reopen();
    rig
}

fn both(store: &Store) -> Plan {
    store
        .plan_passes(&[QUEUE, OTHER], Timestamp(0), |key| Some(compacting(key, 0)))
        .unwrap()
}

fn is_compacted(store: &Store, queue: QueueKey) -> bool {
    store.lock().index.files.of(queue).all(|view| view.generation > 0)
}

#[test]
fn a_queue_whose_folder_cannot_be_used_is_left_alone_and_the_other_is_compacted() {
    let rig = filled();
    let store = &rig.written.store;
    let folder = layout::queue_folder(Path::new(DATA), &planned(QUEUE, 0).name);
    rig.written.disk.set_unusable(Some(&folder));
    let moved = store.compact(&both(store), &mut Unhurried).unwrap();
    assert_eq!((moved.passes, moved.left_alone), (1, 1));
    assert!(is_compacted(store, OTHER) && !is_compacted(store, QUEUE));
    assert_eq!(
        store.compaction_candidates(Timestamp(0), |_| true),
        [],
        "it is not tried again at once"
    );
    rig.written.disk.set_unusable(None);
    store.rounds().stuck_queues.wait_is_over();
    assert_eq!(store.compaction_candidates(Timestamp(0), |_| true).len(), 1);
    assert_eq!(store.compact(&both(store), &mut Unhurried).unwrap().left_alone, 0);
    assert!(is_compacted(store, QUEUE));
    rig.check_exactly();
}

#[test]
fn a_passing_lack_of_something_ends_a_pass_and_leaves_no_queue_alone() {
    let rig = filled();
    let store = &rig.written.store;
    rig.written.disk.set_faults(Faults {
        opens_fail: libc::EMFILE,
        ..Faults::default()
    });
    let failed = store.compact(&both(store), &mut Unhurried);
    assert!(
        matches!(&failed, Err(RoundError::Read(error)) if error.is_passing()),
        "{failed:?}"
    );
    rig.written.disk.set_faults(Faults::default());
    let moved = store.compact(&both(store), &mut Unhurried).unwrap();
    assert_eq!((moved.passes, moved.left_alone), (2, 0));
}

/// From a pause on something else needs the disk; a later one ends the round.
struct GivesWay {
    pauses: u32,
    from: u32,
    ends_at: u32,
}

impl Pace for GivesWay {
    fn pause(&mut self, _took: Duration) -> bool {
        self.pauses += 1;
        self.pauses < self.ends_at
    }

    fn gives_way(&self) -> bool {
        self.pauses >= self.from
    }
}

#[test]
fn a_round_that_gives_way_ends_behind_the_queue_it_is_at_and_what_it_did_counts() {
    let mut pauses_of_first = 0;
    for from in 1.. {
        let rig = filled();
        let store = &rig.written.store;
        let mut pace = GivesWay {
            pauses: 0,
            from,
            ends_at: u32::MAX,
        };
        let moved = store.compact(&both(store), &mut pace).unwrap();
        assert!(is_compacted(store, QUEUE), "{from}");
        assert_eq!(is_compacted(store, OTHER), moved.passes == 2);
        rig.check_exactly();
        if moved.passes == 2 {
            pauses_of_first = from - 1;
            break;
        }
    }
    assert!(pauses_of_first > 1);
    for ends_at in [pauses_of_first, pauses_of_first + 1] {
        let rig = filled();
        let store = &rig.written.store;
        let mut pace = GivesWay {
            pauses: 0,
            from: ends_at,
            ends_at,
        };
        let done = store.compact(&both(store), &mut pace);
        let is_within_second = ends_at > pauses_of_first;
        assert_eq!(done.is_ok(), is_within_second, "{done:?}");
        assert_eq!(is_compacted(store, QUEUE), is_within_second);
        assert!(!is_compacted(store, OTHER));
    }
}

#[test]
fn a_queue_that_takes_longer_than_there_is_time_is_not_begun_again_at_once() {
    let rig = filled();
    let store = &rig.written.store;
    let offered = || -> Vec<QueueKey> {
        let found = store.compaction_candidates(Timestamp(0), |_| true);
        found.iter().map(|found| found.queue).collect()
    };
    let alone = || {
        store
            .plan_passes(&[QUEUE], Timestamp(0), |key| Some(compacting(key, 0)))
            .unwrap()
    };
    let stops = |from| GivesWay {
        pauses: 0,
        from,
        ends_at: 1,
    };
    store.lock().index.changed.extend([QUEUE, OTHER]);
    assert!(offered().contains(&QUEUE));
    let stopped = store.compact(&alone(), &mut stops(u32::MAX));
    assert!(matches!(stopped, Err(RoundError::Stopped)), "{stopped:?}");
    assert!(offered().contains(&QUEUE), "only the broker stops");
    let stopped = store.compact(&alone(), &mut stops(1));
    assert!(matches!(stopped, Err(RoundError::Stopped)), "{stopped:?}");
    assert_eq!(offered(), [OTHER], "the others are, and it is not");
    store.rounds().stuck_queues.wait_is_over();
    assert_eq!(offered().len(), 2, "once more after a while");
    store.compact(&alone(), &mut Unhurried).unwrap();
    assert!(is_compacted(store, QUEUE));
    assert!(
        store.rounds().stuck_queues.is_empty(),
        "that it failed is forgotten"
    );
    rig.check_exactly();
}

#[test]
fn what_a_killed_pass_left_goes_with_the_next_one() {
    let rig = filled();
    let store = &rig.written.store;
    let left = layout::queue_data_file(Path::new(DATA), &planned(QUEUE, 0).name, Offset(3), 7);
    rig.written.disk.set_content(&left, vec![1; 100]);
    store.compact(&both(store), &mut Unhurried).unwrap();
    assert_eq!(rig.written.disk.content(&left), None);
    rig.check_exactly();
}
