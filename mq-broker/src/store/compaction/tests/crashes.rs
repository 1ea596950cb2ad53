//! Crashes after each step of a round.

use std::path::Path;

use super::*;

#[test]
fn s18_a_crash_after_any_step_of_a_round_loses_nothing() {
    let (written, image) = filled();
    let before = everything(&written.store, &ENDS);
    for no_filesystem_sync in [false, true] {
        let faults = Faults {
            no_filesystem_sync,
            ..Faults::default()
        };
        let whole = written.disk.fork();
        let store = image.open(&whole);
        whole.set_faults(faults);
        let first = whole.operations();
        compact(&store, &[1, 2, 3]);
        let steps = whole.operations() - first;
        assert!(steps > 20, "{steps}");
        for step in 1..=steps + 1 {
            for crash in [
                Crash::LoseUnsynced,
                Crash::KeepAll,
                Crash::Random(step),
                Crash::Random(step + 1000),
            ] {
                let disk = written.disk.fork();
                let store = image.open(&disk);
                disk.set_faults(Faults {
                    dead_from_operation: disk.operations() + step,
                    ..faults
                });
                let done = store.compact(&plan(&store, &[1, 2, 3], 0), &mut Unhurried);
                assert!(done.is_ok() || step <= steps, "{done:?}");
                let mut after = image.clone();
                after.save(store.take_rows());
                disk.crash(crash);
                if done.is_ok() {
                    let store = after.open(&disk.fork());
                    assert_eq!(everything(&store, &ENDS), before, "{crash:?}, saved after");
                }
                // The checkpoint was not saved.
                let again = image.open(&disk);
                assert_eq!(everything(&again, &ENDS), before, "step {step}, {crash:?}");
                compact(&again, &[1, 2, 3]);
                assert_eq!(everything(&again, &ENDS), before, "step {step}, {crash:?}, again");
                let mut after = image.clone();
                after.save(again.take_rows());
                disk.crash(Crash::LoseUnsynced);
                assert_eq!(
                    everything(&after.open(&disk), &ENDS),
                    before,
                    "step {step}, {crash:?}, at last"
                );
            }
        }
    }
}

#[test]
fn a_round_that_was_cut_short_leaves_no_file_behind_when_starts_have_moved() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    disk.set_faults(Faults {
        fail_sync: disk.syncs() + 1,
        ..Faults::default()
    });
    let failed = store.compact(&plan(&store, &[1, 2, 3], 0), &mut Unhurried);
    assert!(matches!(failed, Err(RoundError::Sync(_))), "{failed:?}");
    disk.crash(Crash::KeepAll);
    let store = image.open(&disk);
    store
        .compact(&plan(&store, &[1, 2, 3], 5), &mut Unhurried)
        .unwrap();
    let listed: Vec<_> = store.take_rows().files;
    let data = Path::new(DATA);
    let expected = listed
        .iter()
        .filter(|row| row.queue == QueueKey(1))
        .flat_map(|row| {
            [
                layout::queue_data_file(data, &row.name, row.first, row.generation),
                layout::queue_index_file(data, &row.name, row.first, row.generation),
            ]
        });
    let mut expected: Vec<_> = expected.collect();
    expected.sort();
    let folder = layout::queue_folder(data, &listed[0].name);
    let mut there = disk.names();
    there.retain(|name| name.starts_with(&folder) && !name.ends_with("queue_stat.txt"));
    assert_eq!(there, expected);
    assert!(matches!(
        store.fetch(QueueKey(1), Offset(4), Offset(9), 100),
        Err(ReadError::NotStored { .. })
    ));
    assert_eq!(everything_from(&store, 1, 5, 22), 17);
}

#[test]
fn a_write_back_that_failed_and_was_told_to_somebody_else_fails_the_round() {
    for no_filesystem_sync in [false, true] {
        fail_each_write_back(no_filesystem_sync);
    }
}

fn fail_each_write_back(no_filesystem_sync: bool) {
    let (written, image) = filled();
    let before = everything(&written.store, &ENDS);
    let mut failed = 0;
    for number in 1.. {
        let disk = written.disk.fork();
        let store = image.open(&disk);
        disk.set_faults(Faults {
            fail_write_back: number,
            no_filesystem_sync,
            ..Faults::default()
        });
        let done = store.compact(&plan(&store, &[1, 2, 3], 0), &mut Unhurried);
        let mut after = image.clone();
        after.save(store.take_rows());
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(
            everything(&after.open(&disk), &ENDS),
            before,
            "write-back {number}"
        );
        match done {
            Ok(_) => break,
            Err(RoundError::Sync(_)) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(failed > 2, "{failed} write-backs");
}

#[test]
fn s25_a_round_that_finds_no_file_descriptor_is_done_again_whole() {
    let (written, image) = filled();
    let before = everything(&written.store, &ENDS);
    for no_filesystem_sync in [false, true] {
        let mut failed = 0;
        for look in 1.. {
            let disk = written.disk.fork();
            let store = image.open(&disk);
            // So that one of the files was there before.
            compact(&store, &[1]);
            let faults = Faults {
                no_filesystem_sync,
                ..Faults::default()
            };
            disk.set_faults(Faults {
                no_descriptors_from: disk.looks() + look,
                ..faults
            });
            let done = store.compact(&plan(&store, &[2, 3], 0), &mut Unhurried);
            disk.set_faults(faults);
            assert_eq!(everything(&store, &ENDS), before, "look {look}");
            match done {
                Ok(moved) => assert_eq!(moved.segments, 2, "look {look}"),
                // Nothing is poisoned: no sync failed.
                Err(RoundError::Queue { .. } | RoundError::Write(_) | RoundError::Read(_)) => {
                    failed += 1;
                    assert_eq!(compact(&store, &[2, 3]).segments, 2, "look {look}");
                    assert_eq!(everything(&store, &ENDS), before, "look {look}, again");
                    continue;
                }
                Err(error) => panic!("look {look}: {error}"),
            }
            break;
        }
        assert!(failed > 4, "{failed}");
    }
}
