//! Writes rows, all within one transaction.
//!
//! Many rows are passed to SQLite at a time, as a JSON list that the statement unpacks: a round trip to
//! SQLite's thread for each of a hundred thousand rows would cost more than the rows.

use mq_common::api::TopicSettings;
use mq_common::api::group::GroupMode;
use mq_common::ids::{Lsn, TransactionNumber};
use serde::Serialize;
use sqlx::{SqliteConnection, query};

use super::error::Fault;
use super::placed;
use crate::state::rows::{Changes, Counters, PauseRow, Rows};
use crate::store::{self, PlacedRow, Reference, SegmentId};

/// Rows of one statement.
const CHUNK: usize = 1000;

/// Deletes rows first, then writes rows.
pub(super) async fn state(connection: &mut SqliteConnection, dirty: &Changes) -> Result<(), Fault> {
    gone(connection, dirty).await?;
    tables(connection, &dirty.rows).await?;
    transactions(connection, &dirty.rows).await?;
    pauses(connection, &dirty.rows.pauses).await?;
    counters(connection, &dirty.rows.counters).await
}

async fn gone(connection: &mut SqliteConnection, dirty: &Changes) -> Result<(), Fault> {
    let groups: Vec<u32> = dirty.groups_gone.iter().map(|key| key.0).collect();
    let queues: Vec<u32> = dirty.queues_gone.iter().map(|key| key.0).collect();
    let sql = "DELETE FROM cursors WHERE group_key IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &groups).await?;
    let sql = "DELETE FROM groups WHERE group_key IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &groups).await?;
    let sql = "DELETE FROM queues WHERE queue_key IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &queues).await?;
    let sql = "DELETE FROM transactions WHERE number IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &transaction_numbers(&dirty.transactions_gone)).await?;
    let sql = "DELETE FROM decisions WHERE number IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &transaction_numbers(&dirty.decisions_gone)).await
}

async fn tables(connection: &mut SqliteConnection, rows: &Rows) -> Result<(), Fault> {
    let topics: Vec<_> = rows
        .topics
        .iter()
        .map(|topic| {
            let (id, version) = (topic.id.0.cast_signed(), topic.version.cast_signed());
            let durability = topic.durability.to_string();
            let deleted = u8::from(topic.deleted);
            (
                &topic.name,
                id,
                version,
                durability,
                deleted,
                &topic.shards,
                &topic.homes,
                settings(&topic.settings),
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO topics (name, topic_id, version, durability, deleted, shards, homes, retention_ms, \
               retention_bytes, consumed, hold_ms, message_bytes_max, compact) SELECT value ->> 0, value ->> 1, value ->> 2, \
               value ->> 3, value ->> 4, value -> 5, value -> 6, value ->> '$[7][0]', value ->> '$[7][1]', \
               value ->> '$[7][2]', value ->> '$[7][3]', value ->> '$[7][4]', value ->> '$[7][5]' FROM json_each(?)";
    bulk(connection, sql, &topics).await?;

    let queues: Vec<_> = rows
        .queues
        .iter()
        .map(|queue| {
            let (start, end) = (queue.start.0.cast_signed(), queue.end.0.cast_signed());
            (
                queue.key.0,
                &*queue.topic,
                queue.number.0,
                start,
                end,
                queue.bytes.cast_signed(),
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO queues SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
               value ->> 5 FROM json_each(?)";
    bulk(connection, sql, &queues).await?;

    let groups: Vec<_> = rows
        .groups
        .iter()
        .map(|group| {
            (
                group.key.0,
                &group.name,
                &group.topic,
                mode_word(group.mode),
                group.since.0.cast_signed(),
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO groups SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 \
               FROM json_each(?)";
    bulk(connection, sql, &groups).await?;

    let cursors: Vec<_> = rows
        .cursors
        .iter()
        .map(|cursor| {
            let (next, lost) = (cursor.next.0.cast_signed(), cursor.lost.cast_signed());
            (cursor.group.0, cursor.queue.0, next, lost)
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO cursors (group_key, queue_key, next_offset, lost) SELECT value ->> 0, value ->> 1, \
               value ->> 2, value ->> 3 FROM json_each(?)";
    bulk(connection, sql, &cursors).await
}

fn settings(settings: &TopicSettings) -> (Option<u64>, Option<u64>, u8, Option<u64>, Option<u32>, u8) {
    let TopicSettings {
        retention_ms,
        retention_bytes,
        consumed,
        hold_ms,
        message_bytes_max,
        compact,
    } = *settings;
    (
        retention_ms,
        retention_bytes,
        u8::from(consumed),
        hold_ms,
        message_bytes_max,
        u8::from(compact),
    )
}

async fn transactions(connection: &mut SqliteConnection, rows: &Rows) -> Result<(), Fault> {
    let open: Vec<_> = rows
        .transactions
        .iter()
        .map(|row| {
            let parts: Vec<_> = row
                .parts
                .iter()
                .map(|part| (part.queue.0, part.records, part.bytes))
                .collect();
            (
                row.number.0.cast_signed(),
                row.first.lsn.0.cast_signed(),
                row.first.index,
                &row.producer_group,
                row.key.as_deref(),
                row.checksum.cast_signed(),
                row.since.0.cast_signed(),
                row.check_after_ms,
                row.asked,
                row.parked.map(|reason| reason.as_str()),
                parts,
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO transactions SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, \
               value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value -> 10 FROM json_each(?)";
    bulk(connection, sql, &open).await?;

    let decisions: Vec<_> = rows
        .decisions
        .iter()
        .map(|row| {
            let placed: Vec<_> = row
                .placed
                .iter()
                .map(|(queue, base)| (queue.0, base.0.cast_signed()))
                .collect();
            (
                row.number.0.cast_signed(),
                row.order.cast_signed(),
                u8::from(row.committed),
                row.lsn.0.cast_signed(),
                row.time.0.cast_signed(),
                &row.producer_group,
                row.key.as_deref(),
                row.checksum.cast_signed(),
                placed,
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO decisions SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
               value ->> 5, value ->> 6, value ->> 7, value -> 8 FROM json_each(?)";
    bulk(connection, sql, &decisions).await
}

/// Writes all pauses each time: there are few of them, and usually none.
async fn pauses(connection: &mut SqliteConnection, pauses: &[PauseRow]) -> Result<(), Fault> {
    query("DELETE FROM pauses").execute(&mut *connection).await?;
    let rows: Vec<_> = pauses
        .iter()
        .map(|pause| (pause.from.0.cast_signed(), pause.to.0.cast_signed()))
        .collect();
    let sql = "INSERT INTO pauses SELECT value ->> 0, value ->> 1 FROM json_each(?)";
    bulk(connection, sql, &rows).await
}

async fn counters(connection: &mut SqliteConnection, counters: &Counters) -> Result<(), Fault> {
    query(
        "UPDATE meta SET lsn = ?, term = ?, time_ms = ?, next_queue = ?, next_group = ?, last_transaction = ?, decisions = ?",
    )
    .bind(counters.lsn.0.cast_signed())
    .bind(counters.term.0.cast_signed())
    .bind(counters.time.0.cast_signed())
    .bind(counters.next_queue.0)
    .bind(counters.next_group.0)
    .bind(counters.last_transaction.0.cast_signed())
    .bind(counters.decisions.cast_signed())
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// The store's rows. Here new rows are written first and rows deleted after that: since the last checkpoint a
/// segment may have been filled and sealed, a transaction opened and decided.
pub(super) async fn store(
    connection: &mut SqliteConnection,
    lsn: Lsn,
    rows: &store::Rows,
) -> Result<(), Fault> {
    let segments: Vec<_> = rows
        .segments
        .iter()
        .map(|row| {
            (
                row.queue.0,
                row.segment.0.cast_signed(),
                row.first_offset.0.cast_signed(),
            )
        })
        .collect();
    let sql =
        "INSERT OR REPLACE INTO segment_rows SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)";
    bulk(connection, sql, &segments).await?;
    let references: Vec<_> = rows.references.iter().flat_map(references).collect();
    let sql = "INSERT OR REPLACE INTO segment_references SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 \
               FROM json_each(?)";
    bulk(connection, sql, &references).await?;
    for (segment, packed) in by_segment(rows) {
        query("INSERT OR REPLACE INTO placed_rows VALUES (?, ?, ?)")
            .bind(segment.0.cast_signed())
            .bind(lsn.0.cast_signed())
            .bind(packed)
            .execute(&mut *connection)
            .await?;
    }
    let halves: Vec<_> = rows
        .halves
        .iter()
        .map(|row| {
            let location = &row.location;
            (
                row.at.lsn.0.cast_signed(),
                row.at.index,
                location.segment.0.cast_signed(),
                location.position,
                location.bytes,
                row.checksum,
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO half_rows SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
               value ->> 5 FROM json_each(?)";
    bulk(connection, sql, &halves).await?;

    let sealed: Vec<i64> = rows
        .sealed
        .iter()
        .map(|segment| segment.0.cast_signed())
        .collect();
    let sql = "DELETE FROM placed_rows WHERE segment IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &sealed).await?;
    let sql = "DELETE FROM half_rows WHERE lsn IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &lsns(&rows.released_halves)).await?;
    let deleted: Vec<u32> = rows.deleted.iter().map(|queue| queue.0).collect();
    let sql = "DELETE FROM segment_rows WHERE queue_key IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &deleted).await?;
    let freed: Vec<i64> = rows.freed.iter().map(|segment| segment.0.cast_signed()).collect();
    let sql = "DELETE FROM segment_rows WHERE segment IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &freed).await?;
    let sql = "DELETE FROM segment_references WHERE segment IN (SELECT value FROM json_each(?))";
    bulk(connection, sql, &freed).await?;
    files(connection, rows).await
}

/// The manifest of queue files. A file that was created and removed since the last checkpoint occurs twice:
/// the later row wins.
async fn files(connection: &mut SqliteConnection, rows: &store::Rows) -> Result<(), Fault> {
    let files: Vec<_> = rows
        .files
        .iter()
        .map(|row| {
            (
                row.queue.0,
                row.first.0.cast_signed(),
                row.segment.end.0.cast_signed(),
                row.segment.bytes,
                row.segment.planned_bytes,
                &*row.name.topic,
                row.name.topic_id.0.cast_signed(),
                row.name.number.0,
                u8::from(row.is_gone),
                row.generation,
            )
        })
        .collect();
    let sql = "INSERT OR REPLACE INTO queue_files SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
               value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9 FROM json_each(?)";
    bulk(connection, sql, &files).await?;
    let removed: Vec<_> = rows
        .files_removed
        .iter()
        .map(|(queue, first, generation)| (queue.0, first.0.cast_signed(), generation))
        .collect();
    let sql = "DELETE FROM queue_files WHERE (queue_key, first_offset, generation) IN \
               (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))";
    bulk(connection, sql, &removed).await
}

/// The rows for what a segment needs from older ones: one for each, and one that marks them as complete.
fn references((segment, all): &(SegmentId, Box<[Reference]>)) -> Vec<(i64, i64, u32, i64)> {
    let own = segment.0.cast_signed();
    let each = all.iter().map(|reference| {
        (
            own,
            reference.segment.0.cast_signed(),
            reference.queue.0,
            reference.end.0.cast_signed(),
        )
    });
    std::iter::once((own, own, 0, 0)).chain(each).collect()
}

/// The placed rows of segments that are still unsealed, packed.
fn by_segment(rows: &store::Rows) -> Vec<(SegmentId, Vec<u8>)> {
    let mut segments: Vec<SegmentId> = rows.placed.iter().map(|(segment, _)| *segment).collect();
    segments.sort_unstable();
    segments.dedup();
    segments.retain(|segment| !rows.sealed.contains(segment));
    let of = |wanted: SegmentId| -> Vec<&PlacedRow> {
        let own = rows.placed.iter().filter(|(segment, _)| *segment == wanted);
        own.map(|(_, row)| row).collect()
    };
    segments
        .into_iter()
        .map(|segment| (segment, placed::pack(of(segment))))
        .collect()
}

async fn bulk<T: Serialize>(
    connection: &mut SqliteConnection,
    sql: &'static str,
    rows: &[T],
) -> Result<(), Fault> {
    for chunk in rows.chunks(CHUNK) {
        query(sql).bind(json(chunk)).execute(&mut *connection).await?;
    }
    Ok(())
}

fn transaction_numbers(numbers: &[TransactionNumber]) -> Vec<i64> {
    numbers.iter().map(|number| number.0.cast_signed()).collect()
}

fn lsns(lsns: &[Lsn]) -> Vec<i64> {
    lsns.iter().map(|lsn| lsn.0.cast_signed()).collect()
}

fn mode_word(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Stream => "stream",
        other => unreachable!("no state holds a group of mode {other:?}, which this version does not know"),
    }
}

fn json<T: Serialize>(rows: &[T]) -> String {
    serde_json::to_string(rows).expect("lists of numbers and names have a JSON form")
}
