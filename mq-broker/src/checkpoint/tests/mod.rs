//! The checkpoint against a real SQLite file in a temporary folder.

use std::path::PathBuf;

use mq_common::api::group::GroupMode;
use mq_common::ids::{Offset, Term, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::ids::{BatchAt, QueueKey};
use crate::state::tests::{History, shard};
use crate::state::{Limits, State};
use crate::store::{HalfRow, Location, PlacedRow, SegmentId, SegmentRow};

mod files;
mod formats;
mod numbers;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state.db")
    }

    async fn open(&self, journal_exists: bool) -> Result<Checkpoint, Error> {
        Checkpoint::open(&self.path(), &shard(), journal_exists).await
    }
}

fn location(segment: u64, position: u32) -> Location {
    Location {
        segment: SegmentId(segment),
        position,
        bytes: 100,
    }
}

fn placed(queue: u32, base: u64, segment: u64) -> (SegmentId, PlacedRow) {
    let row = PlacedRow {
        queue: QueueKey(queue),
        base_offset: Offset(base),
        count: 3,
        location: location(segment, 4096),
        checksum: 0xdead_beef,
        lsn: Lsn(u64::MAX),
        term: Term(7),
        time: Timestamp(1_700_000_000_000),
        flags: 0x8001,
    };
    (SegmentId(segment), row)
}

fn half(lsn: u64, index: u32) -> HalfRow {
    HalfRow {
        at: BatchAt { lsn: Lsn(lsn), index },
        location: location(3, 512),
        checksum: 42,
    }
}

fn segment_row(queue: u32, segment: u64) -> SegmentRow {
    SegmentRow {
        segment: SegmentId(segment),
        queue: QueueKey(queue),
        first_offset: Offset(segment * 10),
    }
}

#[tokio::test]
async fn new_folder_gets_an_empty_checkpoint() {
    let folder = Folder::new();
    let saved = folder.open(false).await.unwrap().load().await.unwrap();
    assert!(saved.transactions_from > 0, "{saved:?}");
    let nothing = Saved {
        transactions_from: saved.transactions_from,
        ..Saved::default()
    };
    assert_eq!(saved, nothing);
}

#[tokio::test]
async fn what_was_saved_is_loaded_after_every_step_of_a_history() {
    let folder = Folder::new();
    let mut history = History::new(7);
    for _ in 0..20 {
        for _ in 0..15 {
            history.step();
        }
        let mut checkpoint = folder.open(false).await.unwrap();
        let dirty = history.state.take_changes();
        checkpoint
            .save(&dirty, &store::Rows::default(), dirty.rows.counters.lsn)
            .await
            .unwrap();
        let saved = checkpoint.load().await.unwrap();
        assert_eq!(saved.rows, history.state.rows());
        State::load(shard(), history.state.limits().clone(), saved.rows).unwrap();
        checkpoint.close().await.unwrap();
    }
}

#[tokio::test]
async fn rows_of_the_store_come_and_go() {
    let folder = Folder::new();
    let mut checkpoint = folder.open(false).await.unwrap();
    let mut state = State::new(shard(), Limits::default());
    let mut save_at = |lsn: u64| {
        let at = crate::state::Moment {
            lsn: Lsn(lsn),
            term: Term(1),
            time: Timestamp(1),
        };
        state.apply(at, [], &mut crate::state::Effects::default());
        state.take_changes()
    };
    let first = store::Rows {
        segments: vec![segment_row(1, 1), segment_row(2, 1)],
        placed: vec![placed(1, 0, 2), placed(2, 5, 2)],
        halves: vec![half(9, 0), half(9, 1), half(10, 0)],
        ..store::Rows::default()
    };
    checkpoint.save(&save_at(1), &first, Lsn(1)).await.unwrap();
    assert_eq!(checkpoint.load().await.unwrap().store, first);

    // Segment 2 is sealed, 3 was filled and sealed within one checkpoint, 4 is new; one transaction is
    // decided, one opened and decided meanwhile; queue 2 is deleted.
    let second = store::Rows {
        segments: vec![segment_row(1, 2), segment_row(1, 3)],
        placed: vec![placed(1, 30, 3), placed(1, 40, 4)],
        sealed: vec![SegmentId(2), SegmentId(3)],
        halves: vec![half(11, 0)],
        released_halves: vec![Lsn(9), Lsn(11)],
        deleted: vec![QueueKey(2)],
        ..store::Rows::default()
    };
    checkpoint.save(&save_at(2), &second, Lsn(5)).await.unwrap();
    // And more of segment 4.
    let third = store::Rows {
        placed: vec![placed(1, 43, 4)],
        ..store::Rows::default()
    };
    checkpoint.save(&save_at(3), &third, Lsn(5)).await.unwrap();
    let expected = store::Rows {
        segments: vec![segment_row(1, 1), segment_row(1, 2), segment_row(1, 3)],
        placed: vec![placed(1, 40, 4), placed(1, 43, 4)],
        halves: vec![half(10, 0)],
        ..store::Rows::default()
    };
    assert_eq!(checkpoint.load().await.unwrap().store, expected);

    // Segments 1 and 3 are freed.
    let fourth = store::Rows {
        freed: vec![SegmentId(1), SegmentId(3)],
        ..store::Rows::default()
    };
    checkpoint.save(&save_at(4), &fourth, Lsn(5)).await.unwrap();
    let left = checkpoint.load().await.unwrap().store.segments;
    assert_eq!(left, [segment_row(1, 2)]);
}

#[tokio::test]
async fn missing_or_empty_file_beside_segments_is_refused_and_not_created() {
    let folder = Folder::new();
    let error = folder.open(true).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(error.to_string().contains("mq-broker restore"), "{error}");
    assert!(!folder.path().exists());

    std::fs::write(folder.path(), b"").unwrap();
    let wal = folder.0.path().join("state.db-wal");
    std::fs::write(&wal, b"what is left").unwrap();
    assert!(matches!(folder.open(true).await, Err(Error::Missing { .. })));
    assert_eq!(std::fs::read(&wal).unwrap(), b"what is left");
}

#[tokio::test]
async fn damaged_file_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let mut history = History::new(3);
    for _ in 0..300 {
        history.step();
    }
    let mut checkpoint = folder.open(false).await.unwrap();
    let dirty = history.state.take_changes();
    checkpoint
        .save(&dirty, &store::Rows::default(), dirty.rows.counters.lsn)
        .await
        .unwrap();
    checkpoint.close().await.unwrap();
    let whole = std::fs::read(folder.path()).unwrap();

    for damage in [0..16, 4096..4196, whole.len() - 4096..whole.len() - 3000] {
        let mut bytes = whole.clone();
        bytes[damage.clone()].fill(0xa5);
        std::fs::write(folder.path(), &bytes).unwrap();
        let error = match folder.open(true).await {
            Err(error) => error,
            Ok(mut checkpoint) => checkpoint.load().await.unwrap_err(),
        };
        assert!(matches!(error, Error::Damaged { .. }), "{damage:?}: {error}");
        assert!(error.to_string().contains("mq-broker restore"), "{error}");
        assert_eq!(std::fs::read(folder.path()).unwrap(), bytes);
    }

    std::fs::write(folder.path(), &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(folder.open(true).await, Err(Error::Damaged { .. })));

    std::fs::write(folder.path(), &whole).unwrap();
    let saved = folder.open(true).await.unwrap().load().await.unwrap();
    assert_eq!(saved.rows, history.state.rows());
}

#[tokio::test]
async fn database_of_another_program_is_refused() {
    let folder = Folder::new();
    let mut other = options(&folder.path(), true).connect().await.unwrap();
    sqlx::raw_sql("CREATE TABLE theirs (id INTEGER)")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    assert!(matches!(folder.open(false).await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn later_format_is_refused() {
    let folder = Folder::new();
    let mut checkpoint = folder.open(false).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 1000")
        .execute(&mut checkpoint.connection)
        .await
        .unwrap();
    checkpoint.close().await.unwrap();
    let error = folder.open(true).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Format {
                found: 1000,
                known: schema::LATEST,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn folder_of_another_broker_is_refused() {
    let folder = Folder::new();
    folder.open(false).await.unwrap().close().await.unwrap();
    let other = ShardName::new("another").unwrap();
    let error = Checkpoint::open(&folder.path(), &other, true).await.unwrap_err();
    assert!(matches!(error, Error::OtherShard { .. }), "{error}");
}

#[tokio::test]
#[should_panic(expected = "while the log is synced to 0")]
async fn checkpoint_ahead_of_the_sync_is_a_broken_invariant() {
    let folder = Folder::new();
    let mut history = History::new(1);
    history.step();
    let mut checkpoint = folder.open(false).await.unwrap();
    let dirty = history.state.take_changes();
    drop(checkpoint.save(&dirty, &store::Rows::default(), Lsn(0)).await);
}

#[tokio::test]
async fn failed_save_changes_nothing_and_can_be_repeated() {
    let folder = Folder::new();
    let mut checkpoint = folder.open(false).await.unwrap();
    let mut history = History::new(5);
    for _ in 0..100 {
        history.step();
    }
    let dirty = history.state.take_changes();
    let lsn = dirty.rows.counters.lsn;
    // A trigger instead of a full disk: it fails after most rows were written.
    sqlx::raw_sql("CREATE TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT raise(ABORT, 'disk full'); END")
        .execute(&mut checkpoint.connection)
        .await
        .unwrap();
    let error = checkpoint
        .save(&dirty, &store::Rows::default(), lsn)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Database { .. }), "{error}");
    assert_eq!(checkpoint.load().await.unwrap().rows, Rows::default());
    sqlx::raw_sql("DROP TRIGGER full")
        .execute(&mut checkpoint.connection)
        .await
        .unwrap();
    checkpoint
        .save(&dirty, &store::Rows::default(), lsn)
        .await
        .unwrap();
    assert_eq!(checkpoint.load().await.unwrap().rows, history.state.rows());
}

/// A checkpoint with the state of a long history.
async fn filled(folder: &Folder) -> (Checkpoint, State) {
    let mut checkpoint = folder.open(false).await.unwrap();
    let mut history = History::new(11);
    for _ in 0..400 {
        history.step();
    }
    while history.state.groups().all(|(_, group)| group.cursors.is_empty()) {
        history.step();
    }
    let dirty = history.state.take_changes();
    let lsn = dirty.rows.counters.lsn;
    checkpoint
        .save(&dirty, &store::Rows::default(), lsn)
        .await
        .unwrap();
    (checkpoint, history.state)
}

#[tokio::test]
async fn saved_rows_are_in_the_database_file_itself() {
    let folder = Folder::new();
    let (checkpoint, state) = filled(&folder).await;
    // Without the write-ahead log, so only what was moved into the database is there.
    let copy = Folder::new();
    std::fs::copy(folder.path(), copy.path()).unwrap();
    let saved = copy.open(true).await.unwrap().load().await.unwrap();
    assert_eq!(saved.rows, state.rows());
    drop(checkpoint);
}

#[tokio::test]
async fn reading_the_catalog_does_not_stop_checkpoints() {
    let folder = Folder::new();
    let (mut checkpoint, mut state) = filled(&folder).await;
    let mut reader = options(&folder.path(), false).connect().await.unwrap();
    let mut reading = reader.begin().await.unwrap();
    let read = "SELECT lsn FROM catalog_brokers";
    let before: (i64,) = sqlx::query_as(read).fetch_one(&mut *reading).await.unwrap();
    for _ in 0..3 {
        let at = crate::state::Moment {
            lsn: Lsn(state.at().lsn.0 + 1),
            ..state.at()
        };
        state.apply(at, [], &mut crate::state::Effects::default());
        let dirty = state.take_changes();
        checkpoint
            .save(&dirty, &store::Rows::default(), at.lsn)
            .await
            .unwrap();
    }
    let still: (i64,) = sqlx::query_as(read).fetch_one(&mut *reading).await.unwrap();
    assert_eq!(
        still, before,
        "one view of everything while the transaction lasts"
    );
    drop(reading);
    assert_eq!(checkpoint.load().await.unwrap().rows, state.rows());
}

#[tokio::test]
async fn catalog_shows_brokers_topics_and_queues() {
    let folder = Folder::new();
    let (mut checkpoint, state) = filled(&folder).await;
    let lsn = state.at().lsn;

    let brokers: Vec<(String, i64)> = rows(&mut checkpoint, "SELECT broker, lsn FROM catalog_brokers").await;
    assert_eq!(brokers, [(shard().to_string(), lsn.0.cast_signed())]);

    let topics: Vec<(String, bool, u32, u32)> = rows(
        &mut checkpoint,
        "SELECT topic, deleted, queues, queues_here FROM catalog_topics ORDER BY topic",
    )
    .await;
    let expected: Vec<_> = state
        .topics()
        .map(|topic| {
            let declared = &topic.declaration;
            let count = |length: usize| u32::try_from(length).unwrap();
            (
                declared.name.to_string(),
                declared.deleted,
                count(declared.homes.len()),
                count(topic.here.len()),
            )
        })
        .collect();
    assert_eq!(topics, expected);

    let queues: Vec<(String, u32, i64)> = rows(
        &mut checkpoint,
        "SELECT topic, queue, messages FROM catalog_queues JOIN queues q USING (topic) WHERE q.number = queue ORDER BY q.queue_key",
    )
    .await;
    let expected: Vec<_> = state
        .queues()
        .map(|(_, queue)| {
            let messages = queue.end.0 - queue.start.0;
            (queue.topic.to_string(), queue.number.0, messages.cast_signed())
        })
        .collect();
    assert_eq!(queues, expected);
    assert!(!queues.is_empty());
}

#[tokio::test]
async fn catalog_shows_groups_cursors_and_transactions() {
    let folder = Folder::new();
    let (mut checkpoint, state) = filled(&folder).await;
    let cursors: Vec<(String, String, u32, i64, i64)> = rows(
        &mut checkpoint,
        "SELECT consumer_group, topic, queue, next_offset, lag FROM catalog_cursors ORDER BY consumer_group, queue",
    )
    .await;
    let lags: Vec<(String, i64)> = rows(
        &mut checkpoint,
        "SELECT consumer_group, lag FROM catalog_groups ORDER BY consumer_group",
    )
    .await;
    let mut expected = Vec::new();
    for (_, group) in state.groups() {
        assert_eq!(group.mode, GroupMode::Stream);
        for (key, next) in &group.cursors {
            let queue = state.queue(*key).unwrap();
            let lag = (queue.end.0 - next.0).cast_signed();
            expected.push((
                group.name.to_string(),
                group.topic.to_string(),
                queue.number.0,
                next.0.cast_signed(),
                lag,
            ));
        }
    }
    expected.sort();
    assert_eq!(cursors, expected);
    assert!(!cursors.is_empty());
    for (group, lag) in lags {
        let sum: i64 = cursors.iter().filter(|row| row.0 == group).map(|row| row.4).sum();
        assert_eq!(lag, sum);
    }

    let transactions: Vec<(String, String, i64)> = rows(
        &mut checkpoint,
        "SELECT transaction_id, state, messages FROM catalog_transactions ORDER BY since_ms, transaction_id",
    )
    .await;
    assert_eq!(transactions.len(), state.transactions().len());
    for (id, shown, messages) in transactions {
        let id: mq_common::ids::TransactionId = id.parse().unwrap();
        let open = state.transaction(id.number).unwrap();
        assert_eq!(shown == "parked", open.parked.is_some());
        assert_eq!(
            messages,
            open.parts.iter().map(|part| i64::from(part.records)).sum::<i64>()
        );
    }
}

async fn rows<T>(checkpoint: &mut Checkpoint, sql: &'static str) -> Vec<T>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow> + Send + Unpin,
{
    sqlx::query_as(sql)
        .fetch_all(&mut checkpoint.connection)
        .await
        .unwrap()
}
