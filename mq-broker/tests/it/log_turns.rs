//! Turns: groups, durability reached, refusals, sealing, empty entries, clean stop.

use mq_broker::log::{Completion, Log, Refused, Role, SegmentId, Want};
use mq_broker::store::Found;
use mq_broker::store::disk::{Crash, Faults};
use mq_common::ids::{Durability, Lsn, Offset, Term, Timestamp};

use crate::support::journal::{Live, Rig, append, batch, commit, half};

fn lsns(live: &mut Live) -> Vec<(u64, Lsn, Durability)> {
    let applied = |completion| match completion {
        Completion::Applied { result, lsn, reached } => (result, lsn, reached),
        other => panic!("{other:?}"),
    };
    live.completions()
        .into_iter()
        .map(|(_, completion)| applied(completion))
        .collect()
}

#[test]
fn a_group_is_one_entry_one_write_and_at_most_one_sync() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    let (writes, syncs) = (rig.disk.writes(), rig.disk.syncs());
    for n in 0..100 {
        let want = if n == 50 { Want::Synced } else { Want::Flushed };
        live.propose(append(u32::try_from(n).unwrap(), vec![batch(n, 100)]), want);
    }
    live.turn().unwrap();
    assert_eq!((rig.disk.writes() - writes, rig.disk.syncs() - syncs), (1, 1));
    let done = lsns(&mut live);
    assert_eq!(done.len(), 100);
    let last = (2050, Lsn(2), Durability::Fsynced);
    assert_eq!(
        done[99], last,
        "after the others, which did not wait for the sync"
    );
    for (index, done) in done[..99].iter().enumerate() {
        let nth = index as u64 + u64::from(index >= 50);
        assert_eq!(*done, (2000 + nth, Lsn(2), Durability::Memory));
    }
    live.propose(append(1, vec![]), Want::Flushed);
    live.turn().unwrap();
    assert_eq!((rig.disk.writes() - writes, rig.disk.syncs() - syncs), (2, 1));
    assert_eq!(lsns(&mut live), [(3000, Lsn(3), Durability::Memory)]);
    let marks = live.marks();
    assert_eq!(
        (marks.appended, marks.flushed, marks.synced),
        (Lsn(3), Lsn(3), Lsn(2))
    );
}

#[test]
fn those_who_want_no_sync_do_not_wait_for_it() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    let synced = live.propose(append(0, vec![]), Want::Synced);
    let flushed = live.propose(append(0, vec![]), Want::Flushed);
    assert!(live.log.write(Timestamp(live.now), &mut live.recorder).unwrap());
    assert_eq!(live.completions()[0].0, flushed);
    assert_eq!(live.recorder.applied.len(), 2, "applied once flushed");
    rig.disk.set_faults(Faults {
        fail_sync: rig.disk.syncs() + 1,
        ..Faults::default()
    });
    live.log.sync().unwrap_err();
    assert_eq!(live.completions(), [(synced, Completion::Unknown)]);
}

#[test]
fn commands_that_need_their_own_lsn_share_the_write_but_not_the_entry() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    let writes = rig.disk.writes();
    for n in 0..3 {
        live.propose(append(0, vec![batch(n, 10)]), Want::Synced);
        live.propose(half(vec![batch(n, 10)]), Want::Synced);
    }
    live.turn().unwrap();
    assert_eq!(rig.disk.writes() - writes, 1);
    let done: Vec<_> = lsns(&mut live).into_iter().map(|(_, lsn, _)| lsn.0).collect();
    assert_eq!(done, [2, 2, 2, 3, 3, 4]);
}

#[test]
fn a_start_is_an_empty_entry_with_a_higher_term_already_synced() {
    let rig = Rig::new(1 << 20);
    for start in 1..4 {
        let live = rig.open().unwrap();
        assert_eq!(live.log.role(), Role::Leader { term: Term(start) });
        assert_eq!(live.marks().synced, Lsn(start));
        assert_eq!(live.recorder.applied.len() as u64, start);
        drop(live);
        rig.disk.crash(Crash::LoseUnsynced);
    }
}

#[test]
fn an_idle_log_covers_its_last_entry_once() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    assert_eq!(live.log.wake_at(), None, "the entry of the start covers all");
    live.write(append(0, vec![batch(1, 10)]), Want::Flushed);
    let due = live.log.wake_at().unwrap();
    assert_eq!(due, Timestamp(live.now + 1000));
    live.now += 999;
    live.turn().unwrap();
    assert_eq!(live.marks().appended, Lsn(2));
    live.now += 1;
    live.turn().unwrap();
    assert_eq!((live.marks().appended, live.marks().synced), (Lsn(3), Lsn(3)));
    live.now += 10_000;
    live.turn().unwrap();
    assert_eq!(live.marks().appended, Lsn(3));
    assert_eq!(live.log.wake_at(), None);
}

#[test]
fn nothing_stays_unsynced_longer_than_the_idle_time_under_load() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    for n in 0..25 {
        live.write(append(0, vec![batch(n, 10)]), Want::Flushed);
        live.now += 100;
    }
    assert!(
        live.marks().flushed.0 - live.marks().synced.0 <= 10,
        "{:?}",
        live.marks()
    );
}

#[test]
fn a_clean_stop_writes_what_waits_covers_it_and_takes_no_more() {
    let rig = Rig::new(1 << 20);
    let mut live = rig.open().unwrap();
    live.propose(append(0, vec![batch(1, 10)]), Want::Flushed);
    live.stop().unwrap();
    assert_eq!(lsns(&mut live), [(2000, Lsn(2), Durability::Memory)]);
    assert_eq!(live.marks().synced, Lsn(3));
    let refused = live.log.propose(append(0, vec![]), Want::Flushed);
    assert_eq!(refused, Err(Refused::ReadOnly));
}

#[test]
fn more_than_may_wait_is_refused_and_room_comes_back_with_a_turn() {
    let mut rig = Rig::new(1 << 20);
    rig.settings.waiting_bytes_max = 10_000;
    let mut live = rig.open().unwrap();
    let mut taken = 0;
    let refused = loop {
        match live
            .log
            .propose(append(0, vec![batch(taken, 1000)]), Want::Flushed)
        {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert!((5..10).contains(&taken), "{taken}");
    assert!(matches!(
        refused,
        Refused::Overloaded {
            bytes_max: 10_000,
            ..
        }
    ));
    live.turn().unwrap();
    assert_eq!(live.log.bytes_waiting(), 0);
    assert_eq!(live.completions().len() as u64, taken);
    live.write(append(0, vec![batch(1, 1000)]), Want::Flushed);
}

#[test]
fn s15_a_command_as_large_as_a_segment_allows_fits_and_one_byte_more_is_refused() {
    let rig = Rig::new(4096);
    let mut live = rig.open().unwrap();
    let small = append(0, vec![batch(1, 1)]).bytes();
    let (mut low, mut high) = (1, 5000);
    while low + 1 < high {
        let middle = usize::midpoint(low, high);
        let mut probe = rig.fork().open().unwrap();
        let taken = probe
            .log
            .propose(append(0, vec![batch(1, middle)]), Want::Flushed);
        if taken.is_ok() {
            probe.turn().unwrap();
            assert_eq!(probe.completions().len(), 1);
            assert_eq!(probe.read_queue(0, 1).len(), 1);
            low = middle;
        } else {
            high = middle;
        }
    }
    assert!(low > 3000 && low + small < 4096, "{low}");
    let refused = live.log.propose(append(0, vec![batch(1, high)]), Want::Flushed);
    assert!(matches!(refused, Err(Refused::TooLarge { .. })), "{refused:?}");
}

#[test]
fn s15_settings_that_cannot_work_are_refused() {
    for segment_bytes in [0, 1023, (1 << 30) + 1, u32::MAX] {
        let error = Rig::new(segment_bytes).open().unwrap_err();
        assert!(error.to_string().contains(&segment_bytes.to_string()), "{error}");
    }
}

#[test]
fn queues_are_read_over_many_segments_from_memory_and_from_files() {
    let mut rig = Rig::new(4096);
    let mut live = rig.open().unwrap();
    let mut written = vec![Vec::new(); 3];
    for n in 0..200_u64 {
        let queue = u32::try_from(n % 3).unwrap();
        let one = batch(n, 200);
        written[queue as usize].push(one.bytes().clone());
        live.write(append(queue, vec![one]), Want::Flushed);
    }
    assert!(rig.disk.names().len() > 15);
    let check = |live: &Live| {
        for (queue, written) in written.iter().enumerate() {
            for bytes_max in [1, 1000, 1 << 20] {
                let found = live.read_queue(u32::try_from(queue).unwrap(), bytes_max);
                let regions = found.into_iter().map(|found| match found {
                    Found::Batch { region, row } => {
                        assert_eq!(row.term, Term(1));
                        region
                    }
                    Found::Hole { .. } => panic!("{found:?}"),
                });
                assert_eq!(regions.collect::<Vec<_>>(), *written);
            }
        }
    };
    check(&live);
    rig.save(&mut live);
    drop(live);
    rig.disk.crash(Crash::LoseUnsynced);
    let live = rig.open().unwrap();
    assert_eq!(
        live.recorder.applied.len(),
        1,
        "the checkpoint covers all but the new entry"
    );
    check(&live);
}

#[test]
fn a_segment_that_has_its_rows_is_sealed_and_an_empty_one_takes_any_command() {
    let mut rig = Rig::new(1 << 20);
    rig.settings.segment_rows_max = 10;
    let mut live = rig.open().unwrap();
    for n in 0..25 {
        live.propose(append(0, vec![batch(n, 10)]), Want::Flushed);
    }
    let mut rows = Vec::new();
    for _ in 0..3 {
        live.turn().unwrap();
        let sealed = live.log.recycler().sealed().len() as u64;
        rows.push((sealed, live.recorder.store.unsealed_rows(SegmentId(sealed + 1))));
    }
    assert_eq!(rows, [(0, 10), (1, 10), (2, 5)]);
    assert_eq!(live.completions().len(), 25);
    let many = (0..30).map(|n| batch(n, 10)).collect();
    live.write(append(0, many), Want::Flushed);
    assert_eq!(live.recorder.store.unsealed_rows(SegmentId(4)), 30);
    live.write(append(0, vec![batch(1, 10)]), Want::Flushed);
    assert_eq!(live.recorder.store.unsealed_rows(SegmentId(5)), 1);
    assert_eq!(live.read_queue(0, 1 << 20).len(), 56);
}

#[test]
fn a_committed_half_is_served_from_the_older_segment_that_holds_it() {
    let mut rig = Rig::new(4096);
    let mut live = rig.open().unwrap();
    let halves = vec![batch(1, 300), batch(2, 20_000 / 100)];
    let lsn = live.write(half(halves.clone()), Want::Synced);
    for n in 0..50 {
        live.write(append(9, vec![batch(n, 300)]), Want::Flushed);
    }
    rig.save(&mut live);
    drop(live);
    rig.disk.crash(Crash::LoseUnsynced);
    let mut live = rig.open().unwrap();
    let at = mq_broker::ids::BatchAt { lsn, index: 1 };
    let (_, question) = live.recorder.store.half(at).unwrap().unwrap();
    assert_eq!(question, halves[1].bytes());
    live.write(
        commit(5, mq_broker::ids::BatchAt { lsn, index: 0 }, &[1, 1]),
        Want::Synced,
    );
    assert_eq!(live.recorder.store.half(at).unwrap(), None);
    let check = |live: &Live| {
        let found = live.read_queue(5, 1 << 20);
        for (found, half) in found.iter().zip(&halves) {
            let Found::Batch { row, region } = found else {
                panic!("{found:?}")
            };
            assert_eq!(region, half.bytes());
            assert_eq!(row.flags, mq_common::batch::Stamp::TRANSACTIONAL);
            assert!(row.lsn > lsn);
        }
        assert_eq!(found.len(), 2);
    };
    check(&live);
    rig.disk.crash(Crash::LoseUnsynced);
    check(&rig.open().unwrap());
}

#[test]
fn s19_short_and_interrupted_writes_make_the_same_journal() {
    let rig = Rig::new(4096);
    let other = rig.fork();
    other.disk.set_faults(Faults {
        short_write_bytes: 7,
        ..Faults::default()
    });
    for rig in [&rig, &other] {
        let mut live = rig.open().unwrap();
        for n in 0..40 {
            live.write(append(0, vec![batch(n, 100), batch(n, 50)]), Want::Synced);
        }
    }
    assert_eq!(rig.disk.names(), other.disk.names());
    for path in rig.disk.names() {
        assert_eq!(
            rig.disk.content(&path),
            other.disk.content(&path),
            "{}",
            path.display()
        );
    }
}

#[test]
fn s19_short_and_interrupted_reads_find_the_same_journal_and_serve_the_same() {
    let mut rig = Rig::new(4096);
    let mut live = rig.open().unwrap();
    for n in 0..40 {
        live.write(append(0, vec![batch(n, 100), batch(n + 100, 50)]), Want::Synced);
        if n == 20 {
            rig.save(&mut live);
        }
    }
    drop(live);
    rig.disk.crash(Crash::LoseUnsynced);
    let other = rig.fork();
    let whole = rig.open().unwrap();
    other.disk.set_faults(Faults {
        short_read_bytes: 7,
        ..Faults::default()
    });
    let short = other.open().unwrap();
    assert_eq!(short.recorder.applied, whole.recorder.applied);
    let served = whole.read_queue(0, 1 << 20);
    assert_eq!(served.last().map(Found::end), Some(Offset(80)));
    assert_eq!(short.read_queue(0, 1 << 20), served);
    assert_eq!(short.read_queue(0, 300), served, "a little at a time");
}
