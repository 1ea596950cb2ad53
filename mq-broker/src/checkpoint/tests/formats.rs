//! Files of earlier formats, and what only later ones hold.

use mq_common::api::TopicSettings;
use sqlx::{ConnectOptions as _, Connection as _};

use super::*;

/// A file as a broker of format 1 left it.
const FORMAT_1: &str = "
    INSERT INTO meta VALUES (1, 'here', 9, 1, 1000, 1, 1, 0, 0);
    INSERT INTO topics VALUES ('t', 5, 1, 'memory', 0, '[\"here\"]', '[0]');
    INSERT INTO queues VALUES (0, 't', 0, 0, 30, 3000);
    INSERT INTO groups VALUES (0, 'g', 't', 'stream', 900);
    INSERT INTO cursors VALUES (0, 0, 12);
    PRAGMA application_id = 0x68636d71;
    PRAGMA user_version = 1;";

#[tokio::test]
async fn format_1_is_read_and_its_topics_keep_everything() {
    let folder = Folder::new();
    let mut old = options(&folder.path(), true).connect().await.unwrap();
    sqlx::raw_sql(include_str!("../schema/0001_state.sql"))
        .execute(&mut old)
        .await
        .unwrap();
    sqlx::raw_sql(FORMAT_1).execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let mut checkpoint = folder.open(true).await.unwrap();
    let saved = checkpoint.load().await.unwrap();
    let state = State::load(shard(), Limits::default(), saved.rows.clone()).unwrap();
    let topic = state.topics().next().unwrap();
    assert_eq!(topic.declaration.settings, TopicSettings::default());
    assert!(!topic.declaration.settings.deletes());
    let (_, group) = state.groups().next().unwrap();
    assert_eq!(group.cursors, [(QueueKey(0), Offset(12))]);
    assert_eq!(group.lost(QueueKey(0)), 0);
    checkpoint.close().await.unwrap();
    // And again, now in the latest format.
    let again = folder.open(true).await.unwrap().load().await.unwrap();
    assert_eq!(again, saved);
}

#[tokio::test]
async fn settings_starts_and_losses_are_in_the_catalog() {
    let folder = Folder::new();
    let (mut checkpoint, state) = filled(&folder).await;
    type Settings = (
        String,
        Option<i64>,
        Option<i64>,
        bool,
        Option<i64>,
        Option<u32>,
        bool,
    );
    let topics: Vec<Settings> = rows(
        &mut checkpoint,
        "SELECT topic, retention_ms, retention_bytes, consumed, hold_ms, message_bytes_max, compact FROM catalog_topics \
         ORDER BY topic",
    )
    .await;
    let signed = |number: Option<u64>| number.map(u64::cast_signed);
    let expected: Vec<Settings> = state
        .topics()
        .map(|topic| {
            let settings = &topic.declaration.settings;
            (
                topic.declaration.name.to_string(),
                signed(settings.retention_ms),
                signed(settings.retention_bytes),
                settings.consumed,
                signed(settings.hold_ms),
                settings.message_bytes_max,
                settings.compact,
            )
        })
        .collect();
    assert_eq!(topics, expected);

    let lost: Vec<(String, i64)> = rows(
        &mut checkpoint,
        "SELECT consumer_group, sum(lost) FROM catalog_cursors GROUP BY consumer_group ORDER BY consumer_group",
    )
    .await;
    let groups: Vec<(String, i64)> = rows(
        &mut checkpoint,
        "SELECT consumer_group, lost FROM catalog_groups WHERE consumer_group IN (SELECT consumer_group FROM catalog_cursors) \
         ORDER BY consumer_group",
    )
    .await;
    assert_eq!(lost, groups);
    for (name, lost) in lost {
        let (_, group) = state
            .groups()
            .find(|(_, group)| group.name.as_str() == name)
            .unwrap();
        assert_eq!(lost.cast_unsigned(), group.lost.values().sum::<u64>());
    }
}
