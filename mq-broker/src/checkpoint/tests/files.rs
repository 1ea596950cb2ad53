//! The manifest of queue files in the checkpoint.

use std::sync::Arc;

use mq_common::ids::{QueueNumber, TopicId, TopicName};

use super::*;
use crate::store::{FileRow, FileSegment, QueueName};

fn file(queue: u32, first: u64, end: u64) -> FileRow {
    FileRow {
        queue: QueueKey(queue),
        first: Offset(first),
        generation: 0,
        segment: FileSegment {
            end: Offset(end),
            bytes: 123,
            planned_bytes: 1 << 20,
        },
        name: QueueName {
            topic: Arc::new(TopicName::new("orders").unwrap()),
            topic_id: TopicId(9),
            number: QueueNumber(queue),
        },
        is_gone: false,
    }
}

fn gone(row: &FileRow) -> FileRow {
    FileRow {
        is_gone: true,
        ..row.clone()
    }
}

async fn save(checkpoint: &mut Checkpoint, rows: store::Rows) -> Vec<FileRow> {
    let dirty = State::new(shard(), Limits::default()).take_changes();
    checkpoint.save(&dirty, &rows, Lsn(0)).await.unwrap();
    checkpoint.load().await.unwrap().store.files
}

#[tokio::test]
async fn queue_files_grow_wait_for_their_removal_and_are_forgotten() {
    let folder = Folder::new();
    let mut checkpoint = folder.open(false).await.unwrap();
    let first = store::Rows {
        files: vec![file(1, 0, 10), file(2, 0, 5)],
        ..store::Rows::default()
    };
    assert_eq!(save(&mut checkpoint, first.clone()).await, first.files);
    // One grows, one is created and removed at once, one is removed.
    let made = file(3, 7, 8);
    let second = store::Rows {
        files: vec![file(1, 0, 30), made.clone(), gone(&made), gone(&file(2, 0, 5))],
        ..store::Rows::default()
    };
    let left = [file(1, 0, 30), gone(&file(2, 0, 5)), gone(&made)];
    assert_eq!(save(&mut checkpoint, second).await, left);
    let shown: Vec<(String, u32, i64, i64, i64)> = rows(
        &mut checkpoint,
        "SELECT topic, queue, first_offset, end_offset, messages FROM catalog_queue_files",
    )
    .await;
    assert_eq!(
        shown,
        [("orders".to_owned(), 1, 0, 30, 30)],
        "what only waits is not shown"
    );
    let third = store::Rows {
        files_removed: vec![file(2, 0, 5).key(), made.key()],
        ..store::Rows::default()
    };
    assert_eq!(save(&mut checkpoint, third).await, [file(1, 0, 30)]);
}

#[tokio::test]
async fn a_file_takes_the_place_of_one_of_an_earlier_generation_that_waits_for_its_removal() {
    let folder = Folder::new();
    let mut checkpoint = folder.open(false).await.unwrap();
    let old = file(1, 0, 10);
    let new = FileRow {
        generation: 1,
        ..old.clone()
    };
    let only = |files: Vec<FileRow>| store::Rows {
        files,
        ..store::Rows::default()
    };
    save(&mut checkpoint, only(vec![old.clone()])).await;
    let both = save(&mut checkpoint, only(vec![gone(&old), new.clone()])).await;
    assert_eq!(both, [gone(&old), new.clone()]);
    let removed = store::Rows {
        files_removed: vec![old.key()],
        ..store::Rows::default()
    };
    assert_eq!(save(&mut checkpoint, removed).await, [new]);
}

/// As the version before queue files left it.
async fn at_format_one(folder: &Folder) {
    let mut old = options(&folder.path(), true).connect().await.unwrap();
    sqlx::raw_sql(include_str!("../schema/0001_state.sql"))
        .execute(&mut old)
        .await
        .unwrap();
    sqlx::query("INSERT INTO meta VALUES (1, ?, 5, 1, 9, 0, 0, 0, 0)")
        .bind(shard().as_str())
        .execute(&mut old)
        .await
        .unwrap();
    sqlx::raw_sql("PRAGMA application_id = 0x68636d71; PRAGMA user_version = 1;")
        .execute(&mut old)
        .await
        .unwrap();
    old.close().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_from_before_queue_files_is_upgraded_and_keeps_its_content() {
    let folder = Folder::new();
    at_format_one(&folder).await;
    let mut checkpoint = folder.open(true).await.unwrap();
    let saved = checkpoint.load().await.unwrap();
    assert_eq!(saved.rows.counters.lsn, Lsn(5));
    assert_eq!(saved.store, store::Rows::default());
    let format: Vec<(i64,)> = rows(&mut checkpoint, "PRAGMA user_version").await;
    assert_eq!(format, [(schema::LATEST,)]);
}
