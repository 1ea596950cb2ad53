//! The whole core, crashed at every single change of its disk: after each write, sync, new file, rename and
//! removal, with everything kept, with nothing kept that was not synced, and with random parts of it; each
//! with every checkpoint that the database may hold at that moment. The next start must find what the plain
//! model held after some of the requested changes: all that were acknowledged, in their order, and none that
//! was not requested.
//!
//! `CRASH_SEEDS=n` tries n works of each kind and n random parts of each moment, `CRASH_SEED=x` begins with
//! another one. Each test states what its work must reach: where it no longer does, another seed has to be
//! the first.

use fastrand::Rng;
use mq_broker::log::Want;
use mq_broker::store::disk::{Crash, Faults, Recorded, TestDisk};

use crate::support::model::{Change, View};
use crate::support::variable;
use crate::support::whole::{Progress, Reached, Shape, Whole, compact, pass, served, start};
use crate::support::workload::{MIXED, Step, Weights};

const STEPS: usize = 120;

/// Works for a while, with each change of the disk recorded.
async fn work(weights: &Weights, spares: usize, seed: u64) -> (Whole, Vec<Recorded>) {
    let mut random = Rng::with_seed(seed);
    let mut whole = Whole::new(Shape::new(spares, random.bool())).await;
    whole.disk.record();
    for _ in 0..STEPS {
        let step = Step::next(whole.model(), weights, &mut random);
        if !whole.step(step).await {
            break;
        }
    }
    let pictures = whole.disk.take_recorded();
    (whole, pictures)
}

/// One crash at one moment: what was found, and whether another power cut leaves the same.
async fn check(
    whole: &Whole,
    picture: &Recorded,
    progress: &Progress,
    checkpoint: usize,
    crash: Crash,
) -> Result<(), String> {
    let disk = picture.disk.fork();
    disk.crash(crash);
    let least = if crash == Crash::KeepAll {
        progress.flushed
    } else {
        progress.synced
    };
    let found = start_and_look(whole, &disk, checkpoint, false).await?;
    let at = whole.find(&found, least, progress.issued)?;
    disk.crash(Crash::LoseUnsynced);
    let again = start_and_look(whole, &disk, checkpoint, true).await?;
    if !whole.views[at].is_shown_by(&again) {
        return Err("the second start has not what the first one served".to_owned());
    }
    Ok(())
}

/// What a start finds, and whether a round of compaction, or passes over keys, leave it so.
async fn start_and_look(
    whole: &Whole,
    disk: &TestDisk,
    checkpoint: usize,
    by_keys: bool,
) -> Result<View, String> {
    // A start looks at its spares on a thread of its own, which would still be there at the next crash.
    let mut shape = whole.shape.clone();
    shape.log.spares_max = 0;
    let started = start(disk, &shape, &whole.saved[checkpoint]);
    let (core, _) = started.map_err(|error| format!("no start: {error}"))?;
    let found = served(&core).await;
    // The remains of an earlier round do not count, and are in no one's way.
    if by_keys {
        if pass(&core, &found.compacting).await.is_some() && !found.is_shown_by(&served(&core).await) {
            return Err("passes over keys changed what is served".to_owned());
        }
        return Ok(found);
    }
    if compact(&core, 2).await.is_some() && served(&core).await != found {
        return Err("a round of compaction changed what is served".to_owned());
    }
    Ok(found)
}

#[expect(clippy::print_stderr, reason = "what was tried, and the seed of a failed run")]
async fn crash_at_every_change(kind: &str, weights: Weights, spares: usize) -> Reached {
    let seeds = variable("CRASH_SEEDS", 1);
    let first = variable("CRASH_SEED", 51);
    let mut reached = Reached::default();
    for seed in first..first + seeds {
        let (whole, pictures) = work(&weights, spares, seed).await;
        let (mut states, mut cut) = (0, 0);
        for (number, picture) in pictures.iter().enumerate() {
            let progress = &whole.progress[usize::try_from(picture.mark).unwrap()];
            let random = (0..seeds).map(|n| Crash::Random(seed ^ (number as u64) << 20 ^ n << 50));
            for crash in [Crash::LoseUnsynced, Crash::KeepAll].into_iter().chain(random) {
                for checkpoint in &progress.checkpoints {
                    let checked = check(&whole, picture, progress, *checkpoint, crash).await;
                    if let Err(reason) = checked {
                        panic!(
                            "{kind}: seed {seed}, change {number} of the disk, {crash:?}, checkpoint {checkpoint}: {reason}"
                        );
                    }
                    states += 1;
                    cut += usize::from(progress.synced < progress.issued);
                }
            }
        }
        eprintln!(
            "{kind}, seed {seed}: {} changes of the disk, {states} crashes, {:?}",
            pictures.len(),
            whole.reached
        );
        reached += whole.reached;
        assert!(pictures.len() > STEPS && cut > STEPS, "the work was no work");
    }
    reached
}

#[tokio::test]
async fn s1_s10_appends_and_checkpoints() {
    let weights = Weights {
        half: 0,
        end: 0,
        ..MIXED
    };
    crash_at_every_change("appends", weights, 0).await;
}

#[tokio::test]
async fn s14_transactions_over_segments_and_checkpoints() {
    let weights = Weights {
        append: 4,
        half: 8,
        end: 8,
        ..MIXED
    };
    crash_at_every_change("transactions", weights, 0).await;
}

#[tokio::test]
async fn s18_topics_deleted_and_their_segments_freed_and_used_again() {
    let weights = Weights {
        create: 4,
        delete: 4,
        checkpoint: 12,
        stops: (3, 9),
        ..MIXED
    };
    let reached = crash_at_every_change("topics", weights, 2).await;
    assert!(reached.segments_freed > 0, "{reached:?}");
}

#[tokio::test]
async fn s18_trims_and_rounds_of_compaction_and_what_they_free() {
    let weights = Weights {
        append: 30,
        half: 2,
        end: 2,
        create: 0,
        delete: 0,
        group: 1,
        ack: 1,
        checkpoint: 40,
        compact: 40,
        compacting_percent: 0,
        trim: 16,
        seal: 1,
        backup: 2,
        fetch: 6,
        look: 1,
        stops: (3, 9),
        harm_one_in: 12,
    };
    let reached = crash_at_every_change("compaction", weights, 2).await;
    let all = reached.batches_moved > 0 && reached.segments_freed > 0 && reached.files_removed > 0;
    assert!(all && reached.files_rewritten > 0, "{reached:?}");
}

#[tokio::test]
async fn s18_passes_over_keys_and_what_they_free() {
    let weights = Weights {
        append: 30,
        half: 2,
        end: 2,
        create: 0,
        delete: 0,
        group: 0,
        ack: 0,
        checkpoint: 60,
        compact: 60,
        compacting_percent: 100,
        stops: (5, 10),
        harm_one_in: 20,
        ..MIXED
    };
    let reached = crash_at_every_change("keys", weights, 2).await;
    assert!(reached.let_go > 0 && reached.files_removed > 0, "{reached:?}");
}

/// The check itself is checked: on a disk that answers a sync without doing it, an acknowledged message is
/// missed.
#[tokio::test]
async fn a_disk_that_lies_about_syncs_is_found_out() {
    let mut whole = Whole::new(Shape::new(0, true)).await;
    let name = "t".to_owned();
    let create = Change::CreateTopic {
        name,
        queues: 1,
        compacts: false,
    };
    assert!(whole.change(&[(create, Want::Synced)]).await);
    whole.disk.set_faults(Faults {
        ignore_syncs: true,
        ..Faults::default()
    });
    let batch = crate::support::batch(&["x"]);
    let append = Change::Append { queue: 0, batch };
    assert!(whole.change(&[(append, Want::Synced)]).await);
    whole.disk.record();
    whole.disk.picture();
    let pictures = whole.disk.take_recorded();
    let progress = whole.progress.last().unwrap();
    assert_eq!(
        check(&whole, &pictures[0], progress, 0, Crash::KeepAll).await,
        Ok(())
    );
    let missed = check(&whole, &pictures[0], progress, 0, Crash::LoseUnsynced).await;
    assert_eq!(
        missed,
        Err("found is what there was after Some(1) changes, expected 2 to 2".to_owned())
    );
}
