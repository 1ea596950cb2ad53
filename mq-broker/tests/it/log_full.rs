//! A disk that fills up under the journal: refused commands were never written, answered ones survive, and
//! the log continues by itself when there is space again.

use std::time::{Duration, Instant};

use mq_broker::log::{Command, Completion, Level, Log, OpenError, Refused, Ticket, Want};
use mq_broker::store::disk::{Crash, Faults};
use proptest::prelude::*;

use crate::support::journal::{Applied, Live, Rig, append, batch, delete, trim};

const SEGMENT_BYTES: u32 = 4096;

/// Proposes one command and turns: whether it was applied, or why not.
fn try_write(live: &mut Live, command: Command) -> Result<(), Refused> {
    let ticket: Ticket = live.log.propose(command, Want::Synced)?;
    live.turn().unwrap();
    match &live.completions()[..] {
        [(of, Completion::Applied { .. })] if *of == ticket => Ok(()),
        [(of, Completion::Refused(refused))] if *of == ticket => Err(refused.clone()),
        other => panic!("{other:?}"),
    }
}

/// The metas of all commands, in order.
fn metas(applied: &[Applied]) -> Vec<Vec<u8>> {
    let commands = applied.iter().flat_map(|entry| &entry.commands);
    commands.map(|(meta, _)| meta.to_vec()).collect()
}

fn wait_for_spares(live: &Live, spares: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while live.log.recycler().spares() < spares {
        assert!(Instant::now() < deadline, "no spare was made");
        std::thread::yield_now();
    }
}

#[test]
fn s5_a_write_without_space_is_refused_and_the_log_goes_on() {
    let rig = Rig::new(SEGMENT_BYTES);
    let mut live = rig.open().unwrap();
    let number = |n: u64| append(0, vec![batch(n, 10)]);
    (0..10).for_each(|n| try_write(&mut live, number(n)).unwrap());
    rig.disk.set_faults(Faults {
        full_from_write: rig.disk.writes() + 1,
        ..Faults::default()
    });
    let refused = try_write(&mut live, append(1, vec![batch(10, 10)])).unwrap_err();
    assert!(matches!(refused, Refused::DiskFull { .. }), "{refused}");
    let again = try_write(&mut live, append(1, vec![batch(10, 10)])).unwrap_err();
    assert!(matches!(again, Refused::DiskFull { .. }), "at once: {again}");
    rig.disk.set_faults(Faults::default());
    assert_eq!(live.log.space().look().level, Level::Open);
    try_write(&mut live, number(11)).unwrap();
    let applied = metas(&live.recorder.applied);
    assert_eq!(applied.len(), 11);
    rig.disk.crash(Crash::LoseUnsynced);
    assert_eq!(metas(&rig.open().unwrap().recorder.applied), applied);
}

/// Where no blocks can be reserved, the lack of space shows when the first of two is written.
#[test]
fn s5_what_waits_for_the_next_segment_is_refused_with_what_was_to_be_written_before_it() {
    let rig = Rig::new(SEGMENT_BYTES);
    let mut live = rig.open().unwrap();
    let faults = Faults {
        no_reserve: true,
        ..Faults::default()
    };
    rig.disk.set_faults(Faults {
        full_from_write: rig.disk.writes() + 1,
        ..faults
    });
    let tickets = [1, 2].map(|n| live.propose(append(0, vec![batch(n, 3000)]), Want::Synced));
    live.turn().unwrap();
    rig.disk.set_faults(faults);
    assert_eq!(live.log.space().look().level, Level::Open);
    live.turn().unwrap();
    let ends = live.completions();
    assert!(
        ends.iter().all(|(_, end)| matches!(end, Completion::Refused(_))),
        "{ends:?}"
    );
    let ended: Vec<Ticket> = ends.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(ended, tickets);
    assert!(metas(&live.recorder.applied).is_empty());
}

/// A load on a disk with this capacity: the log, and the commands that it answered with `Applied`.
fn load(rig: &Rig, capacity: usize) -> (Live, Vec<Vec<u8>>, usize) {
    let mut live = rig.open().unwrap();
    rig.disk.set_capacity(Some(capacity));
    let (mut applied, mut refused) = (Vec::new(), 0);
    for n in 0..60 {
        // Commands are refused for lack of space until the next check of the disk.
        live.log.space().look();
        let bytes = [20, 400, 90][n % 3];
        let command = match n % 4 {
            3 => trim(9),
            _ => append(u32::try_from(n).unwrap(), vec![batch(n as u64, bytes)]),
        };
        let meta = command.meta.to_vec();
        match try_write(&mut live, command) {
            Ok(()) => applied.push(meta),
            Err(Refused::DiskFull { .. } | Refused::ReserveUsed { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    (live, applied, refused)
}

#[test]
fn s5_whatever_the_capacity_refused_commands_are_nowhere_and_applied_ones_stay() {
    // From a disk on which nothing fits to one on which everything does: every byte of every frame is the
    // last one once.
    let full = whatever_the_capacity(
        127,
        Faults {
            short_write_bytes: 50,
            ..Faults::default()
        },
    );
    assert!(full > 120, "{full} disks were full");
}

#[test]
fn s5_the_same_where_no_blocks_can_be_reserved() {
    let faults = Faults {
        no_reserve: true,
        ..Faults::default()
    };
    let full = whatever_the_capacity(257, faults);
    assert!(full > 50, "{full} disks were full");
}

/// How many of the disks, each `step` bytes larger than the one before, were full.
fn whatever_the_capacity(step: usize, faults: Faults) -> usize {
    let mut full = 0;
    for capacity in (160..26_000).step_by(step) {
        let mut rig = Rig::new(SEGMENT_BYTES);
        rig.store_settings.tail_bytes = 0;
        rig.disk.set_faults(faults);
        let (live, applied, refused) = load(&rig, capacity);
        full += usize::from(refused > 0);
        assert_eq!(metas(&live.recorder.applied), applied, "{capacity}");
        for crash in [
            Crash::LoseUnsynced,
            Crash::KeepAll,
            Crash::Random(capacity as u64),
        ] {
            let mut rig = rig.fork();
            rig.disk.crash(crash);
            rig.now += 10;
            // On a full disk a start may find no space; it then changes nothing.
            match rig.open() {
                Ok(live) => assert_eq!(metas(&live.recorder.applied), applied, "{capacity} {crash:?}"),
                Err(OpenError::NoSpace(_) | OpenError::Io { .. }) => {}
                Err(other) => panic!("{capacity} {crash:?}: {other}"),
            }
            rig.disk.set_capacity(None);
            let mut live = rig.open().unwrap();
            assert_eq!(metas(&live.recorder.applied), applied, "{capacity} {crash:?}");
            for queue in live.recorder.ends.keys() {
                live.read_queue(*queue, 1000);
            }
            try_write(&mut live, append(0, vec![batch(1, 300)])).unwrap();
        }
    }
    full
}

#[test]
fn s5_messages_stop_at_the_mark_notes_in_the_reserve_and_what_frees_at_the_end() {
    let mut rig = Rig::new(SEGMENT_BYTES);
    let segment = SEGMENT_BYTES as usize;
    rig.settings.segments_ahead = 2;
    rig.settings.spares_max = 2;
    rig.settings.full_bytes = 4 * segment as u64;
    rig.disk.set_capacity(Some(16 * segment));
    let mut live = rig.open().unwrap();
    wait_for_spares(&live, 2);
    let fill = |live: &mut Live, command: &dyn Fn(u64) -> Command| {
        for n in 0.. {
            if let Err(refused) = try_write(live, command(n)) {
                return (n, refused);
            }
        }
        unreachable!("the disk has an end")
    };
    let message = |n: u64| append(0, vec![batch(n, 300)]);
    let (messages, refused) = fill(&mut live, &message);
    let Refused::DiskFull { free, needed } = refused else {
        panic!("{refused}")
    };
    assert!(
        messages > 40 && free < needed && needed == rig.settings.full_bytes,
        "{messages}"
    );
    wait_for_spares(&live, 2);
    // Another program takes the rest of the space.
    rig.disk.set_capacity(Some(rig.disk.used()));
    assert_eq!(live.log.space().look().level, Level::Full);
    let (notes, refused) = fill(&mut live, &|_| trim(7));
    assert!(
        matches!(refused, Refused::ReserveUsed { free: 0, .. }),
        "{refused}"
    );
    assert!(notes > 20, "{notes}");
    let (frees, refused) = fill(&mut live, &|_| delete(7).that_frees());
    assert!(
        matches!(refused, Refused::ReserveUsed { free: 0, .. }),
        "{refused}"
    );
    assert!(frees > 20, "{frees}");
    assert!(try_write(&mut live, message(0)).is_err());
    let expected = metas(&live.recorder.applied);
    assert_eq!(live.read_queue(0, 1000).len() as u64, messages, "reads go on");
    live.now += 5000;
    live.turn().unwrap();
    let due = live.log.wake_at().unwrap();
    assert!(due.0 > live.now, "what finds no space is not tried in every turn");
    drop(live);
    // There is space again.
    rig.disk.crash(Crash::LoseUnsynced);
    rig.disk.set_capacity(Some(40 * segment));
    let mut live = rig.open().unwrap();
    assert_eq!(metas(&live.recorder.applied), expected);
    try_write(&mut live, message(1)).unwrap();
}

#[test]
fn the_mark_opens_again_a_segment_above_it_without_a_restart() {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.settings.full_bytes = 3 * u64::from(SEGMENT_BYTES);
    let mut live = rig.open().unwrap();
    let room = |free: u32| rig.disk.set_capacity(Some(rig.disk.used() + free as usize));
    let mut levels = Vec::new();
    for free in [3, 2, 1, 3, 4, 3] {
        room(free * SEGMENT_BYTES);
        levels.push(live.log.space().look().level);
        let taken = try_write(&mut live, append(0, vec![batch(1, 30)]));
        assert_eq!(taken.is_ok(), levels.last() == Some(&Level::Open), "{taken:?}");
        try_write(&mut live, trim(0)).unwrap();
    }
    let words: Vec<_> = levels.iter().map(|level| level.word()).collect();
    assert_eq!(words, ["ok", "full", "full", "full", "ok", "ok"]);
    room(0);
    assert_eq!(live.log.space().look().level, Level::ReadOnly);
}

#[test]
fn s25_a_roll_that_the_system_refuses_is_answered_so_and_tried_again() {
    for (error, spares) in [
        (libc::EMFILE, 0),
        (libc::EACCES, 0),
        (libc::EROFS, 1),
        (libc::ENOSPC, 1),
    ] {
        let mut rig = Rig::new(SEGMENT_BYTES);
        rig.settings.segments_ahead = spares;
        rig.settings.spares_max = spares;
        let mut live = rig.open().unwrap();
        wait_for_spares(&live, spares);
        rig.disk.set_faults(Faults {
            names_fail: error,
            ..Faults::default()
        });
        let mut taken = 0;
        let refused = loop {
            match try_write(&mut live, append(0, vec![batch(taken, 300)])) {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
        };
        let typed = match error {
            libc::ENOSPC => matches!(refused, Refused::DiskFull { .. }),
            _ => matches!(refused, Refused::NoSegment { .. }) && refused.to_string().contains("journal"),
        };
        assert!(typed && taken > 5, "{error}: {refused}");
        assert_eq!(live.read_queue(0, 10_000).len() as u64, taken);
        rig.disk.set_faults(Faults::default());
        live.log.space().look();
        for n in 0..20 {
            try_write(&mut live, append(0, vec![batch(n, 300)])).unwrap();
        }
        let expected = metas(&live.recorder.applied);
        drop(live);
        rig.disk.crash(Crash::LoseUnsynced);
        assert_eq!(metas(&rig.open().unwrap().recorder.applied), expected, "{error}");
    }
}

#[test]
fn a_failed_sync_while_a_write_is_taken_back_ends_the_log() {
    let rig = Rig::new(SEGMENT_BYTES);
    let mut live = rig.open().unwrap();
    try_write(&mut live, append(0, vec![batch(0, 30)])).unwrap();
    rig.disk.set_faults(Faults {
        full_from_write: rig.disk.writes() + 1,
        fail_sync: rig.disk.syncs() + 1,
        ..Faults::default()
    });
    live.propose(append(0, vec![batch(1, 30)]), Want::Synced);
    let poisoned = live.turn().unwrap_err();
    assert_eq!(poisoned.operation, "sync");
    assert!(matches!(live.completions()[..], [(_, Completion::Unknown)]));
    rig.disk.crash(Crash::LoseUnsynced);
    assert_eq!(metas(&rig.open().unwrap().recorder.applied).len(), 1);
}

/// A log whose segment has no blocks reserved, with two spares, on a disk with `free` bytes free.
fn unreserved(free: usize) -> (Rig, Live) {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.settings.segments_ahead = 2;
    rig.settings.spares_max = 2;
    rig.disk.set_capacity(Some(1000));
    let live = rig.open().unwrap();
    rig.disk.set_capacity(None);
    let deadline = Instant::now() + Duration::from_secs(30);
    while live.log.recycler().spares() < 2 {
        assert!(Instant::now() < deadline, "no spare was made");
        // After a full disk, spares are made from the next check on.
        live.log.space().look();
        std::thread::yield_now();
    }
    rig.disk.set_capacity(Some(rig.disk.used() + free));
    (rig, live)
}

#[test]
fn what_stores_nothing_goes_on_in_a_spare_when_its_group_finds_no_space() {
    // With space for a footer, and without: then a spare is given up for it.
    for (free, spares) in [(500, 1), (0, 0)] {
        let (rig, mut live) = unreserved(free);
        let tickets = [
            live.propose(append(0, vec![batch(0, 2000)]), Want::Synced),
            live.propose(trim(7), Want::Synced),
            live.propose(delete(7).that_frees(), Want::Synced),
        ];
        while live.log.bytes_waiting() > 0 {
            live.turn().unwrap();
        }
        let mut answers = live.completions();
        answers.sort_by_key(|(ticket, _)| *ticket);
        let found: Vec<_> = answers.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(found, tickets);
        let [(_, stores), (_, notes), (_, frees)] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert!(
            matches!(stores, Completion::Refused(Refused::DiskFull { .. }))
                && matches!(notes, Completion::Applied { .. })
                && matches!(frees, Completion::Applied { .. }),
            "{free}: {answers:?}"
        );
        assert_eq!(live.log.recycler().spares(), spares);
        let expected = metas(&live.recorder.applied);
        drop(live);
        rig.disk.crash(Crash::LoseUnsynced);
        rig.disk.set_capacity(None);
        assert_eq!(metas(&rig.open().unwrap().recorder.applied), expected);
    }
}

#[test]
fn zeros_ahead_that_find_no_space_give_back_what_they_took() {
    let mut rig = Rig::new(SEGMENT_BYTES);
    rig.settings.zeros_ahead_bytes = 2048;
    rig.disk.set_capacity(Some(1000));
    let mut live = rig.open().unwrap();
    for n in 0..2 {
        try_write(&mut live, append(0, vec![batch(n, 40)])).unwrap();
    }
    let free = live.log.space().look().free;
    assert!(free > 100, "{free} bytes are free");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Space comes and goes between any two commands; groups hold several.
    #[test]
    fn s5_space_that_comes_and_goes_never_loses_nor_invents_a_command(
        steps in prop::collection::vec((0..6_u8, 0..900_usize, 0..9000_usize), 1..60),
        short in 0..200_usize,
        seed in any::<u64>(),
    ) {
        let mut rig = Rig::new(SEGMENT_BYTES);
        rig.settings.full_bytes = 0;
        rig.disk.set_faults(Faults { short_write_bytes: short, ..Faults::default() });
        let mut live = rig.open().unwrap();
        let mut pending = Vec::new();
        for (n, (kind, bytes, free)) in steps.into_iter().enumerate() {
            match kind {
                0 => rig.disk.set_capacity(Some(rig.disk.used() + free)),
                1 => { live.log.space().look(); }
                2 => live.turn().unwrap(),
                _ => {
                    let command = if kind == 3 { trim(1) } else { append(0, vec![batch(n as u64, bytes)]) };
                    let meta = command.meta.to_vec();
                    if let Ok(ticket) = live.log.propose(command, Want::Synced) {
                        pending.push((ticket, meta));
                    }
                }
            }
        }
        while live.log.bytes_waiting() > 0 {
            live.turn().unwrap();
        }
        live.turn().unwrap();
        let mut answers = live.completions();
        answers.sort_by_key(|(ticket, _)| *ticket);
        prop_assert_eq!(answers.len(), pending.len(), "one answer each");
        let mut expected = Vec::new();
        for ((ticket, completion), (of, meta)) in answers.into_iter().zip(pending) {
            prop_assert_eq!(ticket, of);
            match completion {
                Completion::Applied { .. } => expected.push(meta),
                Completion::Refused(_) => {}
                Completion::Unknown => prop_assert!(false, "unknown"),
            }
        }
        prop_assert_eq!(&metas(&live.recorder.applied), &expected);
        drop(live);
        rig.disk.crash(Crash::Random(seed));
        rig.disk.set_capacity(None);
        prop_assert_eq!(metas(&rig.open().unwrap().recorder.applied), expected);
    }
}
