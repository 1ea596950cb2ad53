//! The state's rows in the form of the tables, and the statements that write them. Pure.
//!
//! Many rows are sent at a time, as a JSON list that the statement unpacks: a round trip per row would cost
//! more than the row itself.

use mq_common::api::group::GroupMode;
use mq_common::ids::TransactionNumber;
use serde::Serialize;

use crate::state::rows::{Changes, Rows};

/// Rows of one statement. Statements have a time limit, so their size must not grow with the number of rows.
const CHUNK: usize = 2000;

/// A statement whose parameters are the broker and a JSON list.
pub(super) type Statement = (&'static str, String);

const TOPICS: &str = "INSERT INTO projected_topics \
    SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(topic text, topic_id bigint, version bigint, \
    durability text, deleted integer, queues bigint, authority text, retention_ms bigint, retention_bytes bigint, \
    consumed integer, hold_ms bigint, message_bytes_max bigint, compact integer) \
    ON CONFLICT (broker, topic) DO UPDATE SET (topic_id, version, durability, deleted, queues, authority, \
    retention_ms, retention_bytes, consumed, hold_ms, message_bytes_max, compact) = \
    ROW (excluded.topic_id, excluded.version, excluded.durability, excluded.deleted, excluded.queues, \
    excluded.authority, excluded.retention_ms, excluded.retention_bytes, excluded.consumed, excluded.hold_ms, \
    excluded.message_bytes_max, excluded.compact)";

const QUEUES: &str = "INSERT INTO projected_queues \
    SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(queue_key bigint, topic text, queue bigint, \
    start_offset bigint, end_offset bigint, bytes bigint) \
    ON CONFLICT (broker, queue_key) DO UPDATE SET (topic, queue, start_offset, end_offset, bytes) = \
    ROW (excluded.topic, excluded.queue, excluded.start_offset, excluded.end_offset, excluded.bytes)";

const GROUPS: &str = "INSERT INTO projected_groups \
    SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(group_key bigint, consumer_group text, topic text, \
    mode text, since_ms bigint) \
    ON CONFLICT (broker, group_key) DO UPDATE SET (consumer_group, topic, mode, since_ms) = \
    ROW (excluded.consumer_group, excluded.topic, excluded.mode, excluded.since_ms)";

const CURSORS: &str = "INSERT INTO projected_cursors \
    SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(group_key bigint, queue_key bigint, next_offset bigint, \
    lost bigint) \
    ON CONFLICT (broker, group_key, queue_key) DO UPDATE SET (next_offset, lost) = \
    ROW (excluded.next_offset, excluded.lost)";

const TRANSACTIONS: &str = "INSERT INTO projected_transactions \
    SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(number bigint, parked_because text, producer_group text, \
    app_key text, since_ms bigint, asked bigint, messages bigint) \
    ON CONFLICT (broker, number) DO UPDATE SET (parked_because, producer_group, app_key, since_ms, asked, messages) = \
    ROW (excluded.parked_because, excluded.producer_group, excluded.app_key, excluded.since_ms, excluded.asked, \
    excluded.messages)";

/// Deleting a topic also deletes its queues and their cursors, deleting a group its cursors.
const GONE: [&str; 5] = [
    "DELETE FROM projected_cursors WHERE broker = $1 AND group_key IN \
     (SELECT value::text::bigint FROM json_array_elements($2::text::json))",
    "DELETE FROM projected_groups WHERE broker = $1 AND group_key IN \
     (SELECT value::text::bigint FROM json_array_elements($2::text::json))",
    "DELETE FROM projected_cursors WHERE broker = $1 AND queue_key IN \
     (SELECT value::text::bigint FROM json_array_elements($2::text::json))",
    "DELETE FROM projected_queues WHERE broker = $1 AND queue_key IN \
     (SELECT value::text::bigint FROM json_array_elements($2::text::json))",
    "DELETE FROM projected_transactions WHERE broker = $1 AND number IN \
     (SELECT value::text::bigint FROM json_array_elements($2::text::json))",
];

/// Rows just written have no statistics yet. Without this setting the server may read and sort all remaining
/// rows at each step of [`ALL_GONE`], although following the primary key suffices. (Sorting stays enabled:
/// disabled, it has so high an estimated cost where it is needed that the server compiles the statement
/// first.)
pub(super) const ALONG_THE_KEY: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";

/// Removes all rows of a broker: for each table a statement, and a key below all others. The statement
/// removes [`CHUNK`] rows after the key `$2` and returns the last key removed, where the next call continues;
/// no row = all are removed.
pub(super) const ALL_GONE: [(&str, &str); 5] = [
    (CURSORS_GONE, "-9223372036854775808,-9223372036854775808"),
    (GROUPS_GONE, "-9223372036854775808"),
    (QUEUES_GONE, "-9223372036854775808"),
    (TOPICS_GONE, ""),
    (TRANSACTIONS_GONE, "-9223372036854775808"),
];

const CURSORS_GONE: &str = "WITH gone AS (DELETE FROM projected_cursors WHERE ctid = ANY (ARRAY ( \
    SELECT ctid FROM projected_cursors WHERE broker = $1 AND (group_key, queue_key) > \
    (split_part($2, ',', 1)::bigint, split_part($2, ',', 2)::bigint) \
    ORDER BY broker, group_key, queue_key LIMIT 2000)) RETURNING group_key, queue_key) \
    SELECT group_key || ',' || queue_key FROM gone ORDER BY group_key DESC, queue_key DESC LIMIT 1";

const GROUPS_GONE: &str = "WITH gone AS (DELETE FROM projected_groups WHERE ctid = ANY (ARRAY ( \
    SELECT ctid FROM projected_groups WHERE broker = $1 AND group_key > $2::text::bigint \
    ORDER BY broker, group_key LIMIT 2000)) RETURNING group_key) \
    SELECT group_key::text FROM gone ORDER BY gone.group_key DESC LIMIT 1";

const QUEUES_GONE: &str = "WITH gone AS (DELETE FROM projected_queues WHERE ctid = ANY (ARRAY ( \
    SELECT ctid FROM projected_queues WHERE broker = $1 AND queue_key > $2::text::bigint \
    ORDER BY broker, queue_key LIMIT 2000)) RETURNING queue_key) \
    SELECT queue_key::text FROM gone ORDER BY gone.queue_key DESC LIMIT 1";

const TOPICS_GONE: &str = "WITH gone AS (DELETE FROM projected_topics WHERE ctid = ANY (ARRAY ( \
    SELECT ctid FROM projected_topics WHERE broker = $1 AND topic > $2 \
    ORDER BY broker, topic LIMIT 2000)) RETURNING topic) \
    SELECT topic FROM gone ORDER BY topic DESC LIMIT 1";

const TRANSACTIONS_GONE: &str = "WITH gone AS (DELETE FROM projected_transactions WHERE ctid = ANY (ARRAY ( \
    SELECT ctid FROM projected_transactions WHERE broker = $1 AND number > $2::text::bigint \
    ORDER BY broker, number LIMIT 2000)) RETURNING number) \
    SELECT number::text FROM gone ORDER BY gone.number DESC LIMIT 1";

/// Counts a broker's rows: topics, queues, groups, cursors, transactions.
pub(super) const COUNTS: &str = "SELECT (SELECT count(*) FROM projected_topics WHERE broker = $1), \
    (SELECT count(*) FROM projected_queues WHERE broker = $1), \
    (SELECT count(*) FROM projected_groups WHERE broker = $1), \
    (SELECT count(*) FROM projected_cursors WHERE broker = $1), \
    (SELECT count(*) FROM projected_transactions WHERE broker = $1)";

#[derive(Serialize)]
struct Topic<'a> {
    topic: &'a str,
    topic_id: i64,
    version: i64,
    durability: String,
    deleted: u8,
    queues: usize,
    authority: Option<&'a str>,
    retention_ms: Option<i64>,
    retention_bytes: Option<i64>,
    consumed: u8,
    hold_ms: Option<i64>,
    message_bytes_max: Option<u32>,
    compact: u8,
}

#[derive(Serialize)]
struct Queue<'a> {
    queue_key: u32,
    topic: &'a str,
    queue: u32,
    start_offset: u64,
    end_offset: u64,
    bytes: i64,
}

#[derive(Serialize)]
struct Group<'a> {
    group_key: u32,
    consumer_group: &'a str,
    topic: &'a str,
    mode: GroupMode,
    since_ms: i64,
}

#[derive(Serialize)]
struct Cursor {
    group_key: u32,
    queue_key: u32,
    next_offset: i64,
    lost: i64,
}

#[derive(Serialize)]
struct Transaction<'a> {
    number: i64,
    parked_because: Option<&'static str>,
    producer_group: &'a str,
    app_key: Option<String>,
    since_ms: i64,
    asked: u32,
    messages: u64,
}

/// The statements that remove deleted rows, then those that write changed ones.
pub(super) fn changed(dirty: &Changes) -> Vec<Statement> {
    let groups: Vec<u32> = dirty.groups_gone.iter().map(|key| key.0).collect();
    let queues: Vec<u32> = dirty.queues_gone.iter().map(|key| key.0).collect();
    let transactions: Vec<i64> = dirty.transactions_gone.iter().copied().map(signed).collect();
    let mut statements = Vec::new();
    for sql in &GONE[..2] {
        statements.extend(chunks(sql, &groups, |key| *key));
    }
    for sql in &GONE[2..4] {
        statements.extend(chunks(sql, &queues, |key| *key));
    }
    statements.extend(chunks(GONE[4], &transactions, |number| *number));
    statements.extend(written(&dirty.rows));
    statements
}

/// The statements that write these rows.
pub(super) fn written(rows: &Rows) -> impl Iterator<Item = Statement> {
    let topics = chunks(TOPICS, &rows.topics, |topic| Topic {
        topic: topic.name.as_str(),
        topic_id: topic.id.0.cast_signed(),
        version: topic.version.cast_signed(),
        durability: topic.durability.to_string(),
        deleted: u8::from(topic.deleted),
        queues: topic.homes.len(),
        authority: topic.shards.first().map(|shard| shard.as_str()),
        retention_ms: topic.settings.retention_ms.map(u64::cast_signed),
        retention_bytes: topic.settings.retention_bytes.map(u64::cast_signed),
        consumed: u8::from(topic.settings.consumed),
        hold_ms: topic.settings.hold_ms.map(u64::cast_signed),
        message_bytes_max: topic.settings.message_bytes_max,
        compact: u8::from(topic.settings.compact),
    });
    let queues = chunks(QUEUES, &rows.queues, |queue| Queue {
        queue_key: queue.key.0,
        topic: queue.topic.as_str(),
        queue: queue.number.0,
        start_offset: queue.start.0,
        end_offset: queue.end.0,
        bytes: queue.bytes.cast_signed(),
    });
    let groups = chunks(GROUPS, &rows.groups, |group| Group {
        group_key: group.key.0,
        consumer_group: group.name.as_str(),
        topic: group.topic.as_str(),
        mode: group.mode,
        since_ms: group.since.0.cast_signed(),
    });
    let cursors = chunks(CURSORS, &rows.cursors, |cursor| Cursor {
        group_key: cursor.group.0,
        queue_key: cursor.queue.0,
        next_offset: cursor.next.0.cast_signed(),
        lost: cursor.lost.cast_signed(),
    });
    let transactions = chunks(TRANSACTIONS, &rows.transactions, |transaction| Transaction {
        number: signed(transaction.number),
        parked_because: transaction.parked.map(|reason| reason.as_str()),
        producer_group: transaction.producer_group.as_str(),
        // A text in PostgreSQL cannot contain a zero byte.
        app_key: transaction.key.as_ref().map(|key| key.replace('\0', "\u{fffd}")),
        since_ms: transaction.since.0.cast_signed(),
        asked: transaction.asked,
        messages: transaction.parts.iter().map(|part| u64::from(part.records)).sum(),
    });
    topics
        .chain(queues)
        .chain(groups)
        .chain(cursors)
        .chain(transactions)
}

/// Lazy, so that a million rows are never in memory as JSON at once.
fn chunks<'a, R, S: Serialize>(
    sql: &'static str,
    rows: &'a [R],
    row: impl Fn(&'a R) -> S,
) -> impl Iterator<Item = Statement> {
    rows.chunks(CHUNK).map(move |chunk| {
        let list: Vec<S> = chunk.iter().map(&row).collect();
        let json = serde_json::to_string(&list).expect("lists of numbers and names have a JSON form");
        (sql, json)
    })
}

const fn signed(number: TransactionNumber) -> i64 {
    number.0.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_as_few_as_the_rows_allow_and_deleting_comes_first() {
        let dirty = Changes {
            transactions_gone: (0..4001).map(TransactionNumber).collect(),
            groups_gone: vec![crate::ids::GroupKey(3)],
            ..Changes::default()
        };
        let statements = changed(&dirty);
        assert_eq!(statements.len(), 2 + 3);
        assert_eq!(statements[0], (GONE[0], "[3]".to_owned()));
        assert!(statements[4].1.ends_with("4000]"));
        assert!(changed(&Changes::default()).is_empty());
    }
}
