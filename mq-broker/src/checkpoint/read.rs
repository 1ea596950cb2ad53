//! Reads all rows. Values that a broker cannot have written count as damage.

use std::future::poll_fn;
use std::sync::Arc;

use mq_common::api::TopicSettings;
use mq_common::api::group::GroupMode;
use mq_common::ids::{
    Durability, Lsn, Offset, QueueNumber, Term, Timestamp, TopicId, TopicName, TransactionNumber,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, query};

use super::error::Fault;
use super::placed;
use crate::ids::{BatchAt, GroupKey, QueueKey};
use crate::state::ParkReason;
use crate::state::command::Part;
use crate::state::rows::{
    Counters, CursorRow, DecisionRow, GroupRow, PauseRow, QueueRow, Rows, TopicRow, TransactionRow,
};
use crate::store::{
    self, FileRow, FileSegment, HalfRow, Location, PlacedRow, QueueName, Reference, SegmentId, SegmentRow,
};

/// The checkpoint's broker, and the counters, which are neither rows nor derived from rows.
pub(super) async fn meta(connection: &mut SqliteConnection) -> Result<(String, Counters), Fault> {
    let row = query("SELECT * FROM meta").fetch_one(&mut *connection).await?;
    let counters = Counters {
        lsn: Lsn(number(&row, "lsn")?),
        term: Term(number(&row, "term")?),
        time: Timestamp(number(&row, "time_ms")?),
        next_queue: QueueKey(row.try_get("next_queue")?),
        next_group: GroupKey(row.try_get("next_group")?),
        last_transaction: TransactionNumber(number(&row, "last_transaction")?),
        decisions: number(&row, "decisions")?,
    };
    Ok((row.try_get("shard")?, counters))
}

pub(super) async fn transactions_from(connection: &mut SqliteConnection) -> Result<u64, Fault> {
    let row = query("SELECT transactions_from FROM meta")
        .fetch_one(connection)
        .await?;
    number(&row, "transactions_from")
}

pub(super) async fn state(connection: &mut SqliteConnection) -> Result<Rows, Fault> {
    Ok(Rows {
        decisions: all(connection, "SELECT * FROM decisions ORDER BY taken", decision).await?,
        pauses: all(connection, "SELECT * FROM pauses ORDER BY from_ms", pause).await?,
        ..catalog(connection).await?
    })
}

/// The state without decisions and pauses, which the catalog does not show.
pub(super) async fn catalog(connection: &mut SqliteConnection) -> Result<Rows, Fault> {
    let (_, counters) = meta(connection).await?;
    let mut names = Names::default();
    Ok(Rows {
        topics: all(connection, "SELECT * FROM topics ORDER BY name", topic).await?,
        queues: all(connection, "SELECT * FROM queues ORDER BY queue_key", |row| {
            queue(row, &mut names)
        })
        .await?,
        groups: all(connection, "SELECT * FROM groups ORDER BY group_key", group).await?,
        cursors: all(
            connection,
            "SELECT * FROM cursors ORDER BY group_key, queue_key",
            cursor,
        )
        .await?,
        transactions: all(
            connection,
            "SELECT * FROM transactions ORDER BY number",
            transaction,
        )
        .await?,
        decisions: Vec::new(),
        pauses: Vec::new(),
        counters,
    })
}

pub(super) async fn store(connection: &mut SqliteConnection) -> Result<store::Rows, Fault> {
    let packed = all(
        connection,
        "SELECT * FROM placed_rows ORDER BY segment, lsn",
        |row| {
            let bytes: Vec<u8> = row.try_get("rows")?;
            let rows = placed::unpack(&bytes)
                .filter(|rows| rows.iter().all(is_possible))
                .ok_or_else(|| not_allowed("rows"))?;
            Ok((SegmentId(number(row, "segment")?), rows))
        },
    )
    .await?;
    let placed = packed
        .into_iter()
        .flat_map(|(segment, rows)| rows.into_iter().map(move |row| (segment, row)));
    let segments = "SELECT * FROM segment_rows ORDER BY segment, queue_key";
    let mut names = Names::default();
    Ok(store::Rows {
        segments: all(connection, segments, segment_row).await?,
        references: references(connection).await?,
        placed: placed.collect(),
        halves: all(
            connection,
            "SELECT * FROM half_rows ORDER BY lsn, batch",
            half_row,
        )
        .await?,
        files: all(
            connection,
            "SELECT * FROM queue_files ORDER BY queue_key, first_offset",
            |row| file_row(row, &mut names),
        )
        .await?,
        ..store::Rows::default()
    })
}

/// What each segment needs from older ones, for the segments for which that is known.
async fn references(connection: &mut SqliteConnection) -> Result<Vec<(SegmentId, Box<[Reference]>)>, Fault> {
    let sql = "SELECT * FROM segment_references ORDER BY segment, older_segment, queue_key";
    let rows = all(connection, sql, |row| {
        let reference = Reference {
            queue: QueueKey(row.try_get("queue_key")?),
            end: Offset(number(row, "end_offset")?),
            segment: SegmentId(number(row, "older_segment")?),
        };
        Ok((SegmentId(number(row, "segment")?), reference))
    })
    .await?;
    let of_segments = rows.chunk_by(|(one, _), (other, _)| one == other);
    let known = of_segments.filter_map(|rows| {
        let segment = rows.first()?.0;
        let (own, others): (Vec<Reference>, _) = rows
            .iter()
            .map(|(_, row)| *row)
            .partition(|row| row.segment == segment);
        (!own.is_empty()).then_some((segment, others.into_boxed_slice()))
    });
    Ok(known.collect())
}

fn is_possible(row: &PlacedRow) -> bool {
    row.base_offset.0 <= NUMBER_MAX && row.location.segment.0 <= NUMBER_MAX
}

/// Reads row by row: in SQLite's form, a million rows take most of a gigabyte.
async fn all<T>(
    connection: &mut SqliteConnection,
    sql: &'static str,
    mut read: impl FnMut(&SqliteRow) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut rows = query(sql).fetch(&mut *connection);
    let mut all = Vec::new();
    while let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await {
        all.push(read(&row?)?);
    }
    Ok(all)
}

/// The topic of the previous row, which is usually the topic of the next one too: rows share one name.
#[derive(Debug, Default)]
struct Names(Option<Arc<TopicName>>);

impl Names {
    fn topic(&mut self, row: &SqliteRow) -> Result<Arc<TopicName>, Fault> {
        let text: &str = row.try_get("topic")?;
        if let Some(last) = self.0.as_ref().filter(|last| last.as_str() == text) {
            return Ok(Arc::clone(last));
        }
        let name = Arc::new(parsed(row, "topic")?);
        Ok(Arc::clone(self.0.insert(name)))
    }
}

/// More than any counter of a broker reaches, so that additions to what was read cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// More than the batches of any entry.
const BATCH_MAX: u32 = 1 << 30;

fn number(row: &SqliteRow, column: &'static str) -> Result<u64, Fault> {
    match bits(row, column)? {
        number if number <= NUMBER_MAX => Ok(number),
        _ => Err(not_allowed(column)),
    }
}

/// A bit pattern rather than a number: every bit may be set.
fn bits(row: &SqliteRow, column: &'static str) -> Result<u64, Fault> {
    Ok(row.try_get::<i64, _>(column)?.cast_unsigned())
}

fn batch(row: &SqliteRow) -> Result<u32, Fault> {
    match row.try_get("batch")? {
        batch if batch <= BATCH_MAX => Ok(batch),
        _ => Err(not_allowed("batch")),
    }
}

/// A text column that parses.
fn parsed<T: TryFrom<String>>(row: &SqliteRow, column: &'static str) -> Result<T, Fault> {
    let text: String = row.try_get(column)?;
    T::try_from(text).map_err(|_| not_allowed(column))
}

fn json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T, Fault> {
    let text: &str = row.try_get(column)?;
    serde_json::from_str(text).map_err(|_| not_allowed(column))
}

fn not_allowed(column: &'static str) -> Fault {
    Fault::Damaged(format!("a `{column}` has a value that is not allowed"))
}

fn topic(row: &SqliteRow) -> Result<TopicRow, Fault> {
    let topic = TopicRow {
        name: parsed(row, "name")?,
        id: TopicId(number(row, "topic_id")?),
        version: number(row, "version")?,
        durability: durability(row.try_get("durability")?)?,
        deleted: row.try_get("deleted")?,
        settings: settings(row)?,
        shards: json(row, "shards")?,
        homes: json(row, "homes")?,
    };
    if topic
        .homes
        .iter()
        .any(|home| usize::from(*home) >= topic.shards.len())
    {
        return Err(not_allowed("homes"));
    }
    Ok(topic)
}

fn settings(row: &SqliteRow) -> Result<TopicSettings, Fault> {
    let settings = TopicSettings {
        retention_ms: optional(row, "retention_ms")?,
        retention_bytes: optional(row, "retention_bytes")?,
        consumed: row.try_get("consumed")?,
        hold_ms: optional(row, "hold_ms")?,
        message_bytes_max: row.try_get("message_bytes_max")?,
        compact: row.try_get("compact")?,
    };
    settings
        .check()
        .map_err(|error| Fault::Damaged(error.to_string()))?;
    Ok(settings)
}

/// A number or NULL.
fn optional(row: &SqliteRow, column: &'static str) -> Result<Option<u64>, Fault> {
    let is_set = row.try_get::<Option<i64>, _>(column)?.is_some();
    is_set.then(|| number(row, column)).transpose()
}

fn durability(text: &str) -> Result<Durability, Fault> {
    if let Ok(durability) = text.parse() {
        return Ok(durability);
    }
    text.strip_prefix("replicated_fsynced(")
        .and_then(|rest| rest.strip_suffix(')')?.parse().ok())
        .map(Durability::ReplicatedFsynced)
        .ok_or_else(|| not_allowed("durability"))
}

fn queue(row: &SqliteRow, names: &mut Names) -> Result<QueueRow, Fault> {
    Ok(QueueRow {
        key: QueueKey(row.try_get("queue_key")?),
        topic: names.topic(row)?,
        number: QueueNumber(row.try_get("number")?),
        start: Offset(number(row, "start_offset")?),
        end: Offset(number(row, "end_offset")?),
        bytes: number(row, "bytes")?,
    })
}

fn group(row: &SqliteRow) -> Result<GroupRow, Fault> {
    let mode = match row.try_get("mode")? {
        "stream" => GroupMode::Stream,
        _ => return Err(not_allowed("mode")),
    };
    Ok(GroupRow {
        key: GroupKey(row.try_get("group_key")?),
        name: parsed(row, "name")?,
        topic: parsed(row, "topic")?,
        mode,
        since: Timestamp(number(row, "since_ms")?),
    })
}

fn cursor(row: &SqliteRow) -> Result<CursorRow, Fault> {
    Ok(CursorRow {
        group: GroupKey(row.try_get("group_key")?),
        queue: QueueKey(row.try_get("queue_key")?),
        next: Offset(number(row, "next_offset")?),
        lost: number(row, "lost")?,
    })
}

fn pause(row: &SqliteRow) -> Result<PauseRow, Fault> {
    Ok(PauseRow {
        from: Timestamp(number(row, "from_ms")?),
        to: Timestamp(number(row, "to_ms")?),
    })
}

fn transaction(row: &SqliteRow) -> Result<TransactionRow, Fault> {
    let parts: Vec<(u32, u32, u32)> = json(row, "parts")?;
    let parked: Option<&str> = row.try_get("parked")?;
    let parked = match parked {
        None => None,
        Some(word) => Some(ParkReason::parse(word).ok_or_else(|| not_allowed("parked"))?),
    };
    Ok(TransactionRow {
        number: TransactionNumber(number(row, "number")?),
        first: BatchAt {
            lsn: Lsn(number(row, "lsn")?),
            index: batch(row)?,
        },
        producer_group: parsed(row, "producer_group")?,
        key: row.try_get("app_key")?,
        checksum: bits(row, "checksum")?,
        since: Timestamp(number(row, "since_ms")?),
        check_after_ms: row.try_get("check_after_ms")?,
        asked: row.try_get("asked")?,
        parked,
        parts: parts
            .into_iter()
            .map(|(queue, records, bytes)| Part {
                queue: QueueKey(queue),
                records,
                bytes,
            })
            .collect(),
    })
}

fn decision(row: &SqliteRow) -> Result<DecisionRow, Fault> {
    let placed: Vec<(u32, u64)> = json(row, "placed")?;
    Ok(DecisionRow {
        number: TransactionNumber(number(row, "number")?),
        order: number(row, "taken")?,
        committed: row.try_get("committed")?,
        lsn: Lsn(number(row, "lsn")?),
        time: Timestamp(number(row, "time_ms")?),
        producer_group: parsed(row, "producer_group")?,
        key: row.try_get("app_key")?,
        checksum: bits(row, "checksum")?,
        placed: placed
            .into_iter()
            .map(|(queue, base)| (QueueKey(queue), Offset(base)))
            .collect(),
    })
}

fn segment_row(row: &SqliteRow) -> Result<SegmentRow, Fault> {
    Ok(SegmentRow {
        segment: SegmentId(number(row, "segment")?),
        queue: QueueKey(row.try_get("queue_key")?),
        first_offset: Offset(number(row, "first_offset")?),
    })
}

fn half_row(row: &SqliteRow) -> Result<HalfRow, Fault> {
    Ok(HalfRow {
        at: BatchAt {
            lsn: Lsn(number(row, "lsn")?),
            index: batch(row)?,
        },
        location: Location {
            segment: SegmentId(number(row, "segment")?),
            position: row.try_get("position")?,
            bytes: row.try_get("bytes")?,
        },
        checksum: row.try_get("checksum")?,
    })
}

fn file_row(row: &SqliteRow, names: &mut Names) -> Result<FileRow, Fault> {
    let first = Offset(number(row, "first_offset")?);
    let segment = FileSegment {
        end: Offset(number(row, "end_offset")?),
        bytes: row.try_get("bytes")?,
        planned_bytes: row.try_get("planned_bytes")?,
    };
    if segment.end < first {
        return Err(not_allowed("end_offset"));
    }
    Ok(FileRow {
        queue: QueueKey(row.try_get("queue_key")?),
        first,
        generation: row.try_get("generation")?,
        segment,
        name: QueueName {
            topic: names.topic(row)?,
            topic_id: TopicId(number(row, "topic_id")?),
            number: QueueNumber(row.try_get("number")?),
        },
        is_gone: row.try_get("gone")?,
    })
}
