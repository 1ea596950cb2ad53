//! The state as rows: what a checkpoint saves and a start loads. Pure.

use std::sync::Arc;

use mq_common::api::group::GroupMode;
use mq_common::ids::{GroupName, Lsn, Offset, QueueNumber, Term, Timestamp, TopicName, TransactionNumber};

pub use super::decisions::Decided as DecisionRow;
pub use super::declaration::Declaration as TopicRow;
pub use super::pauses::Pause as PauseRow;
pub use super::transactions::Transaction as TransactionRow;
use crate::ids::{GroupKey, QueueKey};

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    /// Its key.
    pub key: QueueKey,
    /// Its topic.
    pub topic: Arc<TopicName>,
    /// Its number in the topic.
    pub number: QueueNumber,
    /// First valid offset.
    pub start: Offset,
    /// First offset not assigned.
    pub end: Offset,
    /// Bytes appended since its creation.
    pub bytes: u64,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// Its key.
    pub key: GroupKey,
    /// Its name.
    pub name: GroupName,
    /// Its topic.
    pub topic: TopicName,
    /// Its mode.
    pub mode: GroupMode,
    /// When it was created.
    pub since: Timestamp,
}

/// One cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorRow {
    /// The group.
    pub group: GroupKey,
    /// The queue.
    pub queue: QueueKey,
    /// First offset not acked.
    pub next: Offset,
    /// Messages that were deleted before they were acked.
    pub lost: u64,
}

/// Values that are neither rows of a table nor derivable from rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Last entry applied.
    pub lsn: Lsn,
    /// Its term.
    pub term: Term,
    /// Its time.
    pub time: Timestamp,
    /// Key of the next queue.
    pub next_queue: QueueKey,
    /// Key of the next group.
    pub next_group: GroupKey,
    /// Highest number given to a transaction.
    pub last_transaction: TransactionNumber,
    /// Decisions taken so far.
    pub decisions: u64,
}

/// A whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Topics, tombstones too.
    pub topics: Vec<TopicRow>,
    /// Queues, in order of their keys.
    pub queues: Vec<QueueRow>,
    /// Groups, in order of their keys.
    pub groups: Vec<GroupRow>,
    /// Cursors, in order of groups and queues.
    pub cursors: Vec<CursorRow>,
    /// Undecided transactions, in order of their numbers.
    pub transactions: Vec<TransactionRow>,
    /// Remembered decisions, in the order they were taken.
    pub decisions: Vec<DecisionRow>,
    /// Long periods without an entry, oldest first; always the complete list.
    pub pauses: Vec<PauseRow>,
    /// The rest.
    pub counters: Counters,
}

/// What changed since the last checkpoint: rows to write, keys to delete. Deleting comes first, then writing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rows to write.
    pub rows: Rows,
    /// Queues to delete, with their cursors.
    pub queues_gone: Vec<QueueKey>,
    /// Groups to delete, with their cursors.
    pub groups_gone: Vec<GroupKey>,
    /// Transactions that are no longer open.
    pub transactions_gone: Vec<TransactionNumber>,
    /// Decisions that were forgotten.
    pub decisions_gone: Vec<TransactionNumber>,
}

/// Rows that no state can have written: the checkpoint is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint contradicts itself: {table} row {row} {reason}")]
pub struct LoadError {
    /// The table.
    pub table: &'static str,
    /// The row.
    pub row: String,
    /// What is wrong with it.
    pub reason: &'static str,
}
