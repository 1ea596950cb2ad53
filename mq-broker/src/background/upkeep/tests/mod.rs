//! Checkpoints that could not be saved at once, alongside compaction rounds.

use std::path::Path;

use bytes::Bytes;
use mq_common::api::TopicSettings;
use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::transaction::Decision;
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{
    Durability, GroupName, Offset, QueueNumber, Timestamp, TopicId, TopicName, TransactionNumber,
};
use tempfile::TempDir;

use super::backup_stage::StageError;
use super::*;
use crate::checkpoint::Saved;
use crate::compaction::Limits;
use crate::config::Config;
use crate::core::{Answer, Parts, Published, StartError};
use crate::ids::QueueKey;
use crate::log::{self, Command, Refused, Want};
use crate::state::command::{Part, SendHalf};
use crate::state::tests::shard;
use crate::state::{self, Declaration, State};
use crate::store::disk::{Crash, Disk as _, Faults, TestDisk};
use crate::store::{self, Found, Moved, Pace, Plan, Store};
use crate::volatile;

mod failing;

/// An idle machine needs milliseconds for what is awaited.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
const QUEUE: QueueKey = QueueKey(0);
const SEGMENT_BYTES: u32 = 4096;

struct Unhurried;

impl Pace for Unhurried {
    fn pause(&mut self, _took: Duration) -> bool {
        true
    }
}

pub(crate) fn start(disk: &TestDisk, saved: Saved) -> Result<(Arc<Core>, Metrics), StartError> {
    let folder = store::Folder::open(Arc::new(disk.clone()), Path::new("d")).unwrap();
    let store = Arc::new(Store::open(&folder, store::Settings::default(), saved.store));
    let (volatile, schedule) = (volatile::Settings::default(), volatile::Schedule::default());
    let (metrics, _) = Metrics::new();
    let core = Core::open(Parts {
        folder,
        state: State::load(shard(), state::Limits::default(), saved.rows).unwrap(),
        published: Arc::new(Published::new(Arc::clone(&store), volatile, schedule)),
        store,
        settings: log::Settings {
            segment_bytes: SEGMENT_BYTES,
            segments_ahead: 0,
            spares_max: 0,
            zeros_ahead_bytes: 0,
            ..log::Settings::default()
        },
        inbox_bytes_max: 1 << 26,
        metrics: metrics.clone(),
    });
    Ok((core?, metrics))
}

fn is_done(answers: &[Answer]) -> bool {
    let [Answer::Applied { result: outcome, .. }] = answers else {
        return false;
    };
    !matches!(outcome, state::Outcome::Refused(_))
}

/// A broker with one queue, whose checkpoint is saved as soon as something changed.
struct Kept {
    disk: TestDisk,
    upkeep: Upkeep,
    folder: TempDir,
    appended: u64,
}

impl Kept {
    /// Its journal is compacted once it has this many segments.
    async fn new(budget_segments: u64) -> Self {
        let (disk, folder) = (TestDisk::default(), tempfile::tempdir().unwrap());
        let mut checkpoint = Checkpoint::open(&folder.path().join("state.db"), &shard(), false)
            .await
            .unwrap();
        let (core, metrics) = start(&disk, checkpoint.load().await.unwrap()).unwrap();
        let mut config = Config::merge(&[]).unwrap();
        config.journal.segment_bytes = u64::from(SEGMENT_BYTES);
        config.journal.budget_bytes = budget_segments * u64::from(SEGMENT_BYTES);
        let limits = Limits::new(&config, 0, 0);
        let compactor = Compactor::new(Arc::clone(&core), limits, metrics.clone());
        let settings = config::Checkpoint {
            every_bytes: 0,
            every_ms: u64::MAX,
        };
        let upkeep = Upkeep::new(core, checkpoint, settings, metrics, compactor, Lsn(0));
        let kept = Self {
            disk,
            upkeep,
            folder,
            appended: 0,
        };
        kept.create("orders", 7).await;
        kept
    }

    async fn create(&self, name: &str, id: u64) {
        let declared = Declaration::new(&Topic {
            name: TopicName::new(name).unwrap(),
            id: TopicId(id),
            version: 0,
            durability: Durability::Fsynced,
            queues: vec![QueueHome {
                queue: QueueNumber(0),
                shard: shard(),
            }],
            deleted: false,
            settings: TopicSettings::default(),
        });
        let create = state::Command::CreateTopic(declared.unwrap());
        self.change(create, Vec::new()).await;
    }

    async fn change(&self, command: state::Command, batches: Vec<Batch>) {
        let command = Command::new(command.encode(), batches);
        let answers = self.upkeep.core.propose(vec![(command, Want::Synced)]).await;
        assert!(is_done(&answers), "{answers:?}");
    }

    /// Appends messages of 1000 bytes, three to a segment.
    async fn append(&mut self, messages: u64) {
        for _ in 0..messages {
            let (part, batch) = self.next();
            self.change(state::Command::Append(part), vec![batch]).await;
            self.appended += 1;
        }
    }

    /// Sends a half message of 1000 bytes; returns the number of its transaction.
    async fn half(&self) -> TransactionNumber {
        let (part, batch) = self.next();
        let half = state::Command::SendHalf(SendHalf {
            producer_group: GroupName::new("producers").unwrap(),
            key: None,
            check_after_ms: 60_000,
            checksum: 0,
            parts: vec![part],
        });
        let half = Command::new(half.encode(), vec![batch]).with_own_lsn();
        let answers = self.upkeep.core.propose(vec![(half, Want::Synced)]).await;
        let [
            Answer::Applied {
                result: state::Outcome::Half { number, .. },
                ..
            },
        ] = answers[..]
        else {
            panic!("{answers:?}");
        };
        number
    }

    async fn commit(&self, number: TransactionNumber) {
        let decision = Decision::Commit;
        self.change(state::Command::EndTransaction { number, decision }, Vec::new())
            .await;
    }

    /// Runs checks, while nothing else happens, until the journal has at most this many sealed segments.
    async fn look_until(&mut self, sealed: usize) {
        let begun = Instant::now();
        while self.upkeep.core.recycler().sealed().len() > sealed {
            assert!(begun.elapsed() < PATIENCE, "too many are left");
            self.look().await;
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    fn next(&self) -> (Part, Batch) {
        let mut builder = Builder::new(BuilderOptions::default());
        let payload = [u8::try_from(self.appended % 251).unwrap(); 1000];
        builder.push(&Record::new(&payload[..], Timestamp(5))).unwrap();
        let batch = builder.finish().unwrap();
        let part = Part {
            queue: QUEUE,
            records: 1,
            bytes: u32::try_from(batch.len()).unwrap(),
        };
        (part, batch)
    }

    async fn plan(&self) -> Option<Plan> {
        let core = &self.upkeep.core;
        let planned = core.visit(|holder, core| holder.plan_round(core, 100, &[]));
        planned.await.unwrap()
    }

    /// A round from its beginning to its end.
    async fn compact(&mut self) -> Moved {
        let plan = self.plan().await.unwrap();
        let moved = self.upkeep.core.published().store.compact(&plan, &mut Unhurried);
        drop(plan);
        let moved = moved.unwrap();
        self.upkeep.compactor.conclude(Ok(Ok(moved)));
        moved
    }

    /// Whether checkpoints can be saved.
    async fn saves(&self, works: bool) {
        let mut options = sqlx::sqlite::SqliteConnectOptions::new();
        options = options.filename(self.folder.path().join("state.db"));
        let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
        let change = if works {
            "DROP TRIGGER refuse"
        } else {
            "CREATE TRIGGER refuse BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'refused'); END"
        };
        sqlx::raw_sql(change).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
    }

    /// One check, whatever the time of the last one; returns whether everything is saved.
    async fn look(&mut self) -> bool {
        self.upkeep.schedule.not_before = Instant::now();
        assert!(self.upkeep.look().await);
        self.upkeep.unsaved.is_none()
    }

    /// How many queue files the checkpoint lists.
    async fn files(&mut self) -> usize {
        let files = self.upkeep.checkpoint.store_rows().await.unwrap().files;
        files.iter().filter(|row| !row.is_gone).count()
    }

    /// The messages from this offset on after the process dies, each as its one byte.
    async fn after_a_crash(&mut self, from: u64) -> Vec<Bytes> {
        self.upkeep.compactor.stop().await;
        self.disk.crash(Crash::KeepAll);
        let saved = self.upkeep.checkpoint.load().await.unwrap();
        let (core, _) = start(&self.disk, saved).unwrap();
        let (mut next, end) = (Offset(from), Offset(self.appended));
        let mut regions = Vec::new();
        while next < end {
            let found = core.published().store.fetch(QUEUE, next, end, 1 << 20).unwrap();
            for found in found {
                next = found.end();
                let Found::Batch { region, .. } = found else {
                    panic!("{found:?}");
                };
                regions.push(region);
            }
        }
        regions
    }
}

#[tokio::test]
async fn a_round_that_ended_behind_a_checkpoint_that_is_saved_late_wants_another_one() {
    let mut kept = Kept::new(1000).await;
    kept.append(12).await;
    kept.saves(false).await;
    assert!(!kept.look().await, "it is refused");
    assert!(kept.compact().await.segments > 2);
    kept.saves(true).await;
    assert!(kept.look().await);
    assert_eq!(kept.files().await, 0, "it was taken before");
    assert!(kept.upkeep.compactor.tick(false).await, "a new one is wanted");
    assert!(kept.look().await);
    assert_eq!(kept.files().await, 1);
    assert!(!kept.upkeep.compactor.tick(false).await);
    assert_eq!(kept.after_a_crash(0).await.len(), 12);
}

#[tokio::test]
async fn a_queue_that_was_deleted_before_its_segment_was_sealed_stops_no_start() {
    let mut kept = Kept::new(1000).await;
    kept.append(1).await;
    assert!(kept.look().await);
    let name = TopicName::new("orders").unwrap();
    let deletion = state::Command::DeleteTopic {
        name,
        drop_transactions: false,
    };
    kept.change(deletion, Vec::new()).await;
    // As two backups do it, and nothing is placed meanwhile.
    for (topic, id) in [("a", 8), ("b", 9)] {
        let sealed = kept.upkeep.core.visit_for_upkeep(Holder::sealed_snapshot).await;
        kept.upkeep.save(sealed.unwrap().unwrap().0).await.unwrap();
        kept.create(topic, id).await;
    }
    kept.appended = 0;
    assert!(kept.after_a_crash(0).await.is_empty());
}

/// Nothing that its own entries placed is needed any longer, but a later segment placed a half message that
/// lies in it.
async fn misses_the_segment_of_a_half_message(is_sealed: bool) {
    let mut kept = Kept::new(1000).await;
    let number = kept.half().await;
    kept.append(6).await;
    kept.commit(number).await;
    if is_sealed {
        kept.append(6).await;
    }
    let starts = vec![(QUEUE, Offset(6))];
    kept.change(state::Command::Trim { starts }, Vec::new()).await;
    assert!(kept.look().await);
    kept.upkeep.compactor.stop().await;
    kept.disk.crash(Crash::KeepAll);
    let first = Path::new("d/journal/0000000000000001.journal");
    let whole = kept.disk.content(first).unwrap();
    kept.disk.remove(first).unwrap();
    let saved = kept.upkeep.checkpoint.load().await.unwrap();
    let refused = start(&kept.disk, saved);
    assert!(
        matches!(&refused, Err(StartError::Missing { path }) if path == first),
        "{refused:?}"
    );
    kept.disk.set_content(first, whole);
    kept.appended += 1;
    let left = usize::try_from(kept.appended - 6).unwrap();
    assert_eq!(
        kept.after_a_crash(6).await.len(),
        left,
        "with it everything is there"
    );
}

#[tokio::test]
async fn s22_a_start_misses_a_segment_that_only_a_committed_half_message_needs() {
    misses_the_segment_of_a_half_message(true).await;
    misses_the_segment_of_a_half_message(false).await;
}

#[tokio::test]
async fn upkeep_goes_on_however_many_requests_want_to_look_at_the_core() {
    let mut kept = Kept::new(1000).await;
    let core = Arc::clone(&kept.upkeep.core);
    let mut visits = Vec::new();
    loop {
        // Polled once: it waits for another task to run a turn.
        let mut visit = Box::pin(core.visit(|_, _| ()));
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        match visit.as_mut().poll(context) {
            std::task::Poll::Pending => visits.push(visit),
            std::task::Poll::Ready(refused) => {
                assert!(matches!(refused, Err(Refused::Overloaded { .. })), "{refused:?}");
                break;
            }
        }
    }
    assert!(kept.look().await);
    assert!(kept.upkeep.saved > Lsn(0));
}

#[tokio::test]
async fn a_sync_that_fails_for_a_checkpoint_ends_the_broker() {
    let mut kept = Kept::new(1000).await;
    assert!(kept.look().await);
    let part = kept.next();
    let command = Command::new(state::Command::Append(part.0).encode(), vec![part.1]);
    let answers = kept.upkeep.core.propose(vec![(command, Want::Flushed)]).await;
    assert!(is_done(&answers), "{answers:?}");
    kept.disk.set_faults(Faults {
        fail_sync: kept.disk.syncs() + 1,
        ..Faults::default()
    });
    assert!(!kept.upkeep.look().await);
    assert!(kept.upkeep.core.failed().is_cancelled());
}

#[tokio::test]
async fn no_round_begins_while_a_checkpoint_waits_to_be_saved() {
    let mut kept = Kept::new(8).await;
    kept.append(12).await;
    assert!(kept.compact().await.segments > 2);
    assert!(kept.look().await);
    assert_eq!(kept.files().await, 1);
    // All of the queue's only file is trimmed, in a checkpoint that is refused.
    let starts = vec![(QUEUE, Offset(12))];
    kept.append(3).await;
    kept.change(state::Command::Trim { starts }, Vec::new()).await;
    kept.saves(false).await;
    assert!(!kept.look().await);
    kept.append(60).await;
    for _ in 0..3 {
        assert!(!kept.look().await);
        assert!(kept.plan().await.is_some(), "none runs");
        assert!(!kept.upkeep.compactor.tick(false).await, "none ended");
    }
    kept.saves(true).await;
    // The rounds that it held back start now, one after another.
    let begun = Instant::now();
    while kept.files().await == 0 {
        assert!(begun.elapsed() < PATIENCE, "no round ended");
        kept.look().await;
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    assert_eq!(kept.after_a_crash(12).await.len(), 63);
}

#[tokio::test]
async fn what_the_checkpoint_of_a_failed_backup_left_dead_is_freed_without_another_change() {
    let mut kept = Kept::new(1000).await;
    kept.append(12).await;
    let starts = vec![(QUEUE, Offset(12))];
    kept.change(state::Command::Trim { starts }, Vec::new()).await;
    let (_asks, asked) = mpsc::channel(1);
    // There is no journal.
    kept.upkeep.backups = Some((kept.folder.path().to_owned(), asked));
    let failed = kept.upkeep.stage().await;
    assert!(matches!(failed, Err(StageError::Backup(_))), "{failed:?}");
    let sealed = kept.upkeep.core.recycler().sealed().len();
    assert!(sealed > 3, "{sealed}");
    assert!(kept.look().await);
    let left = kept.upkeep.core.recycler().sealed().len();
    assert!(left < sealed, "{left} of {sealed} are left");
}

#[tokio::test]
async fn half_messages_that_nobody_decides_do_not_keep_the_journal_above_its_budget() {
    const BUDGET: u8 = 8;
    let mut kept = Kept::new(BUDGET.into()).await;
    let mut open = Vec::new();
    for _ in 0..12 {
        open.push(kept.half().await);
        kept.append(3).await;
    }
    let sealed = kept.upkeep.core.recycler().sealed().len();
    assert!(sealed > 14, "{sealed}");
    kept.look_until(usize::from(BUDGET) - 1).await;
    // A start that has only the checkpoint and the journal.
    kept.upkeep.compactor.stop().await;
    kept.disk.crash(Crash::KeepAll);
    let saved = kept.upkeep.checkpoint.load().await.unwrap();
    (kept.upkeep.core, _) = start(&kept.disk, saved).unwrap();
    let still = kept.upkeep.core.visit(|holder, _| {
        let open = holder.state().transactions();
        open.map(|open| open.number).collect::<Vec<_>>()
    });
    assert_eq!(still.await.unwrap(), open, "nobody decided them");
    for number in open {
        kept.commit(number).await;
        kept.appended += 1;
    }
    let there = kept.after_a_crash(0).await;
    assert_eq!(there.len(), 48);
}

#[tokio::test]
async fn what_was_committed_last_does_not_keep_the_journal_of_an_idle_broker_above_its_budget() {
    // Above its budget and below its limit, with what holds two segments in the one that is being written.
    const BUDGET: u8 = 2;
    let mut kept = Kept::new(BUDGET.into()).await;
    let first = kept.half().await;
    kept.append(6).await;
    let second = kept.half().await;
    kept.append(12).await;
    for number in [first, second] {
        kept.commit(number).await;
        kept.appended += 1;
    }
    kept.look_until(usize::from(BUDGET) - 1).await;
    assert_eq!(kept.after_a_crash(0).await.len(), 20);
}

#[tokio::test]
async fn the_numbers_of_queue_files_are_those_of_the_last_change_when_the_broker_stops() {
    let mut kept = Kept::new(1000).await;
    kept.append(12).await;
    kept.compact().await;
    assert!(kept.look().await);
    let disk = kept.disk.clone();
    let numbers = || {
        let names = disk.names();
        let name = names
            .iter()
            .find(|name| name.ends_with("queue_stat.txt"))
            .unwrap();
        String::from_utf8(disk.content(name).unwrap()).unwrap()
    };
    let before = numbers();
    let starts = vec![(QUEUE, Offset(5))];
    kept.change(state::Command::Trim { starts }, Vec::new()).await;
    assert!(kept.look().await);
    assert_eq!(numbers(), before, "not a minute has passed");
    let moved = before
        .lines()
        .find_map(|line| line.strip_prefix("messages "))
        .unwrap();
    let moved: u64 = moved.parse().unwrap();
    kept.upkeep.finish().await.unwrap();
    let valid = format!("\nvalid_messages {}\n", moved - 5);
    assert!(numbers().contains(&valid), "{}", numbers());
}
