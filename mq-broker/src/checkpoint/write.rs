//! Writing rows, all within one transaction.

use mq_common::api::group::GroupMode;
use mq_common::ids::Lsn;
use sqlx::{SqliteConnection, query};

use super::error::Fault;
use super::placed;
use crate::state::rows::{Counters, DecisionRow, Dirty, TopicRow, TransactionRow};
use crate::store::{self, PlacedRow, SegmentId};

/// What was deleted goes first, then what was written.
pub(super) async fn state(connection: &mut SqliteConnection, dirty: &Dirty) -> Result<(), Fault> {
    gone(connection, dirty).await?;
    let rows = &dirty.rows;
    for topic in &rows.topics {
        self::topic(connection, topic).await?;
    }
    for queue in &rows.queues {
        query("INSERT OR REPLACE INTO queues VALUES (?, ?, ?, ?, ?, ?)")
            .bind(queue.key.0)
            .bind(queue.topic.as_str())
            .bind(queue.number.0)
            .bind(queue.start.0.cast_signed())
            .bind(queue.end.0.cast_signed())
            .bind(queue.bytes.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for group in &rows.groups {
        query("INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?, ?)")
            .bind(group.key.0)
            .bind(group.name.as_str())
            .bind(group.topic.as_str())
            .bind(mode_word(group.mode))
            .bind(group.since.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for cursor in &rows.cursors {
        query("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)")
            .bind(cursor.group.0)
            .bind(cursor.queue.0)
            .bind(cursor.next.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for row in &rows.transactions {
        transaction(connection, row).await?;
    }
    for row in &rows.decisions {
        decision(connection, row).await?;
    }
    counters(connection, &rows.counters).await
}

async fn gone(connection: &mut SqliteConnection, dirty: &Dirty) -> Result<(), Fault> {
    for key in &dirty.groups_gone {
        query("DELETE FROM cursors WHERE group_key = ?")
            .bind(key.0)
            .execute(&mut *connection)
            .await?;
        query("DELETE FROM groups WHERE group_key = ?")
            .bind(key.0)
            .execute(&mut *connection)
            .await?;
    }
    for key in &dirty.queues_gone {
        query("DELETE FROM queues WHERE queue_key = ?")
            .bind(key.0)
            .execute(&mut *connection)
            .await?;
    }
    for number in &dirty.transactions_gone {
        query("DELETE FROM transactions WHERE number = ?")
            .bind(number.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for number in &dirty.decisions_gone {
        query("DELETE FROM decisions WHERE number = ?")
            .bind(number.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn topic(connection: &mut SqliteConnection, topic: &TopicRow) -> Result<(), Fault> {
    query("INSERT OR REPLACE INTO topics VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(topic.name.as_str())
        .bind(topic.id.0.cast_signed())
        .bind(topic.version.cast_signed())
        .bind(topic.durability.to_string())
        .bind(topic.deleted)
        .bind(json(&topic.shards))
        .bind(json(&topic.homes))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn transaction(connection: &mut SqliteConnection, row: &TransactionRow) -> Result<(), Fault> {
    let parts: Vec<(u32, u32, u32)> = row
        .parts
        .iter()
        .map(|part| (part.queue.0, part.records, part.bytes))
        .collect();
    query("INSERT OR REPLACE INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(row.number.0.cast_signed())
        .bind(row.first.lsn.0.cast_signed())
        .bind(row.first.index)
        .bind(row.producer_group.as_str())
        .bind(row.key.as_deref())
        .bind(row.checksum.cast_signed())
        .bind(row.since.0.cast_signed())
        .bind(row.check_after_ms)
        .bind(row.asked)
        .bind(row.parked.map(|reason| reason.as_str()))
        .bind(json(&parts))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn decision(connection: &mut SqliteConnection, row: &DecisionRow) -> Result<(), Fault> {
    let placed: Vec<(u32, u64)> = row.placed.iter().map(|(queue, base)| (queue.0, base.0)).collect();
    query("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(row.number.0.cast_signed())
        .bind(row.order.cast_signed())
        .bind(row.committed)
        .bind(row.lsn.0.cast_signed())
        .bind(row.time.0.cast_signed())
        .bind(row.producer_group.as_str())
        .bind(row.key.as_deref())
        .bind(row.checksum.cast_signed())
        .bind(json(&placed))
        .execute(&mut *connection)
        .await?;
    Ok(())
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

/// The store's rows. Here what is new goes first: a segment may have been filled and sealed since the last checkpoint,
/// a transaction opened and decided.
pub(super) async fn store(
    connection: &mut SqliteConnection,
    lsn: Lsn,
    rows: &store::Rows,
) -> Result<(), Fault> {
    for row in &rows.segments {
        query("INSERT OR REPLACE INTO segment_rows VALUES (?, ?, ?)")
            .bind(row.queue.0)
            .bind(row.segment.0.cast_signed())
            .bind(row.first_offset.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for (segment, packed) in by_segment(rows) {
        query("INSERT OR REPLACE INTO placed_rows VALUES (?, ?, ?)")
            .bind(segment.0.cast_signed())
            .bind(lsn.0.cast_signed())
            .bind(packed)
            .execute(&mut *connection)
            .await?;
    }
    for row in &rows.halves {
        query("INSERT OR REPLACE INTO half_rows VALUES (?, ?, ?, ?, ?, ?)")
            .bind(row.at.lsn.0.cast_signed())
            .bind(row.at.index)
            .bind(row.location.segment.0.cast_signed())
            .bind(row.location.position)
            .bind(row.location.bytes)
            .bind(row.checksum)
            .execute(&mut *connection)
            .await?;
    }
    for segment in &rows.sealed {
        query("DELETE FROM placed_rows WHERE segment = ?")
            .bind(segment.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for lsn in &rows.decided {
        query("DELETE FROM half_rows WHERE lsn = ?")
            .bind(lsn.0.cast_signed())
            .execute(&mut *connection)
            .await?;
    }
    for queue in &rows.deleted {
        query("DELETE FROM segment_rows WHERE queue_key = ?")
            .bind(queue.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
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

pub(super) fn mode_word(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Stream => "stream",
        other => unreachable!("no state holds a group of mode {other:?}, which this version does not know"),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("lists of numbers and names have a JSON form")
}
