//! The database's formats: one SQL file for each step from one format to the next, never edited once
//! released.
//!
//! `application_id` marks the file as a broker's checkpoint, `user_version` is its format.

use std::time::{SystemTime, UNIX_EPOCH};

use mq_common::ids::ShardName;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, raw_sql};

use super::error::Fault;

/// `hcmq`.
const APPLICATION_ID: i64 = 0x6863_6d71;

/// For each format, the step to it from the previous one.
const STEPS: [&str; 8] = [
    include_str!("schema/0001_state.sql"),
    include_str!("schema/0002_queue_files.sql"),
    include_str!("schema/0003_retention.sql"),
    include_str!("schema/0004_pauses.sql"),
    include_str!("schema/0005_generations.sql"),
    include_str!("schema/0006_compact.sql"),
    include_str!("schema/0007_transactions_from.sql"),
    include_str!("schema/0008_references.sql"),
];

/// The latest format.
pub(super) const LATEST: i64 = 8;

/// The format of a file.
pub(super) enum Found {
    /// It is empty.
    Empty,
    /// A format that this version knows.
    Format(i64),
    /// A later format.
    Unknown(i64),
}

pub(super) async fn find(connection: &mut SqliteConnection) -> Result<Found, Fault> {
    let (application,): (i64,) = sqlx::query_as("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await?;
    let (version,): (i64,) = sqlx::query_as("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await?;
    let (tables,): (i64,) = sqlx::query_as("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await?;
    match (application, version, tables) {
        (0, 0, 0) => Ok(Found::Empty),
        (APPLICATION_ID, version, _) if version > LATEST => Ok(Found::Unknown(version)),
        (APPLICATION_ID, version, _) if version >= 1 => Ok(Found::Format(version)),
        _ => Err(Fault::Damaged(
            "it is a database, but not a checkpoint of a broker".to_owned(),
        )),
    }
}

/// Creates the tables in an empty file, for this broker. Its transactions are numbered from the current time
/// in microseconds, because an earlier broker with this name has written fewer entries than that.
pub(super) async fn create(connection: &mut SqliteConnection, shard: &ShardName) -> Result<(), Fault> {
    let mut transaction = connection.begin().await?;
    climb(&mut transaction, 0).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sql = "INSERT INTO meta (id, shard, lsn, term, time_ms, next_queue, next_group, last_transaction, decisions, \
               transactions_from) VALUES (1, ?, 0, 0, 0, 0, 0, 0, 0, ?)";
    sqlx::query(sql)
        .bind(shard.as_str())
        .bind(i64::try_from(now.as_micros()).unwrap_or_default())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// Upgrades the file from an earlier format to the latest.
pub(super) async fn migrate(connection: &mut SqliteConnection, from: i64) -> Result<(), Fault> {
    if from == LATEST {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    climb(&mut transaction, from).await?;
    transaction.commit().await?;
    Ok(())
}

async fn climb(connection: &mut SqliteConnection, from: i64) -> Result<(), Fault> {
    let done = usize::try_from(from).unwrap_or_default();
    for step in &STEPS[done..] {
        raw_sql(*step).execute(&mut *connection).await?;
    }
    let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LATEST};");
    raw_sql(AssertSqlSafe(marks)).execute(connection).await?;
    Ok(())
}
