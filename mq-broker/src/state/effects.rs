//! What applying an entry did: outcomes for the callers that proposed its commands, effects for the layers
//! around the state. Pure.

use std::fmt::Display;

use mq_common::api::admin::Topic;
use mq_common::api::group::GroupMode;
use mq_common::api::transaction::TransactionState;
use mq_common::ids::{Durability, Lsn, Offset, ShardName, TopicName, TransactionId, TransactionNumber};
use mq_common::{Error, ErrorCode};

use crate::ids::{BatchAt, GroupKey, QueueKey};

/// The effects of one or more entries, in order. The core clears and reuses it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Effects {
    /// Batches that got their offsets.
    pub placements: Vec<Placement>,
    /// New queues.
    pub queues_created: Vec<QueueKey>,
    /// Queues of deleted topics: nothing of them is served any longer, and their bytes are garbage.
    pub queues_dropped: Vec<QueueKey>,
    /// Queues whose start moved forward: messages below it are no longer served, and their bytes are garbage.
    pub trimmed: Vec<Trimmed>,
    /// Topics that are new, changed or deleted.
    pub topics: Vec<TopicName>,
    /// What happened to groups.
    pub groups: Vec<GroupChange>,
    /// What happened to transactions.
    pub transactions: Vec<TransactionChange>,
}

impl Effects {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.placements.clear();
        self.queues_created.clear();
        self.queues_dropped.clear();
        self.trimmed.clear();
        self.topics.clear();
        self.groups.clear();
        self.transactions.clear();
    }
}

/// A queue's start moved forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trimmed {
    /// The queue.
    pub queue: QueueKey,
    /// Where it started before.
    pub from: Offset,
    /// Where it starts now.
    pub to: Offset,
}

/// A batch got its offsets. Placements of one queue come in order and without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The queue.
    pub queue: QueueKey,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Its records.
    pub records: u32,
    /// The batch.
    pub source: Source,
    /// Consumers may see it once the log has reached this durability: the topic's floor, for a transaction
    /// the strictest floor of its topics. Until then it also holds back everything after it in its queue.
    pub visible_at: Durability,
}

impl Placement {
    /// First offset after it.
    #[must_use]
    pub const fn end(&self) -> Offset {
        Offset(self.base_offset.0 + self.records as u64)
    }
}

/// Where a placed batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the entry that is being applied: its index among that entry's batches.
    Here(u32),
    /// In an earlier entry (or an earlier command of this one), as a half message.
    Half(BatchAt),
}

/// The batches of a transaction, which are consecutive in one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    /// Its first batch.
    pub first: BatchAt,
    /// How many there are.
    pub batches: u32,
}

/// A change of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionChange {
    /// It is new. The store keeps the places of its batches until it is decided.
    Opened {
        /// Its number.
        number: TransactionNumber,
        /// Its batches.
        half: Half,
    },
    /// Its half messages were moved. The store keeps their new places instead of the old ones.
    Moved {
        /// Its number.
        number: TransactionNumber,
        /// Where they were.
        from: Half,
        /// Where they are.
        to: Half,
    },
    /// A question was counted.
    Asked {
        /// Its number.
        number: TransactionNumber,
    },
    /// It was parked and is resumed; its producers are asked again.
    Resumed {
        /// Its number.
        number: TransactionNumber,
    },
    /// It was parked: its producers are no longer asked.
    Parked {
        /// Its number.
        number: TransactionNumber,
    },
    /// It is decided. If committed, its batches are among the placements; the store no longer has to keep
    /// their places as halves.
    Decided {
        /// Its number.
        number: TransactionNumber,
        /// Its batches.
        half: Half,
        /// How.
        committed: bool,
    },
}

/// A change of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupChange {
    /// It is new.
    Created(GroupKey),
    /// A queue was added to its topic.
    Queues(GroupKey),
    /// A cursor moved.
    Progress(GroupKey, QueueKey, Offset),
    /// Messages were deleted before it acknowledged them; its cursor moved over them.
    Lost {
        /// The group.
        group: GroupKey,
        /// The queue.
        queue: QueueKey,
        /// Where it stood.
        from: Offset,
        /// The queue's new start, where it is now.
        to: Offset,
    },
    /// It is gone, with its topic.
    Deleted(GroupKey),
}

/// The result of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of an append.
    Appended {
        /// Offset of the batch's first record.
        base_offset: Offset,
    },
    /// Of a command on a topic: the topic as it is now.
    Topic(Topic),
    /// Of a half.
    Half {
        /// The transaction's number.
        number: TransactionNumber,
        /// Its state; other than open only if its key was already known.
        state: TransactionState,
    },
    /// Of an end of a transaction.
    Ended(Ended),
    /// Of resuming a transaction.
    Resumed {
        /// It was not parked.
        already: bool,
    },
    /// Of creating a group: the new one, or an existing one that is the same.
    Group(GroupKey),
    /// Of counted checks, of progress, of a trim and of moved half messages.
    Done,
    /// Nothing happened, for certain.
    Refused(Refusal),
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its state.
    pub state: TransactionState,
    /// It already had this state before this command.
    pub already: bool,
    /// The entry of its decision; that of this command while it is undecided.
    pub lsn: Lsn,
    /// Queue and base offset of each of its batches, in order; empty unless committed.
    pub placed: Vec<(QueueKey, Offset)>,
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such topic.
    #[error("there is no topic `{0}` at this broker; create it with `mq topic create {0}`")]
    UnknownTopic(TopicName),
    /// Another topic has the name.
    #[error(
        "a topic `{name}` with {queues} queues and durability `{durability}` exists; choose another name or delete it first"
    )]
    TopicExists {
        /// The name.
        name: TopicName,
        /// Its queues.
        queues: usize,
        /// Its floor.
        durability: Durability,
    },
    /// The topic exists with other settings.
    #[error("topic `{0}` exists with other settings; change them with `mq topic alter {0}`")]
    OtherSettings(TopicName),
    /// Another shard numbers this topic's versions.
    #[error("shard `{authority}` declares the topic `{name}`, this one is `{here}`; ask `{authority}` first")]
    NotAuthority {
        /// The topic.
        name: TopicName,
        /// The shard that does.
        authority: ShardName,
        /// This shard.
        here: ShardName,
    },
    /// This shard knows a later declaration.
    #[error("topic `{name}` is known here with a later declaration than the one given (version {version})")]
    Outdated {
        /// The topic.
        name: TopicName,
        /// The version given.
        version: u64,
    },
    /// The queue was deleted with its topic.
    #[error("the queue is gone: its topic was deleted")]
    UnknownQueue,
    /// The topic has open transactions.
    #[error(
        "topic `{name}` has {open} open transactions; end them (`mq txn list`) or delete it with `--drop-transactions`"
    )]
    OpenTransactions {
        /// The topic.
        name: TopicName,
        /// How many.
        open: usize,
    },
    /// No room for another transaction.
    #[error(
        "the broker remembers {remembered} transactions and must not forget any of them yet; try again later"
    )]
    TransactionsFull {
        /// Open and decided ones.
        remembered: usize,
    },
    /// It never existed, or its decision was forgotten.
    #[error("{}", unknown_transaction(.0))]
    UnknownTransaction(TransactionNumber),
    /// Decided the other way.
    #[error("{}", conflict(.number, *.state))]
    Conflict {
        /// Its number.
        number: TransactionNumber,
        /// Its state.
        state: TransactionState,
    },
    /// The key was used for other messages.
    #[error("{}", key_reused(.0))]
    KeyReused(TransactionNumber),
    /// A topic of the transaction was deleted: it is parked, and nothing of it is lost.
    #[error("{}", target_gone(.0))]
    TargetGone(TransactionNumber),
    /// The group exists with another topic or mode.
    #[error(
        "the group reads topic `{topic}` in mode {mode:?}, which belongs to the group and not to its members; join with the same or use another group"
    )]
    SubscriptionMismatch {
        /// Its topic.
        topic: TopicName,
        /// Its mode.
        mode: GroupMode,
    },
    /// A value that is not allowed.
    #[error("{0}")]
    Invalid(&'static str),
}

const fn state_word(state: TransactionState) -> &'static str {
    match state {
        TransactionState::Open => "open",
        TransactionState::Parked => "parked",
        TransactionState::Committed => "committed",
        TransactionState::RolledBack => "rolled back",
    }
}

fn unknown_transaction(id: &dyn Display) -> String {
    format!(
        "transaction `{id}` is unknown here: it never existed, or it was decided more than 24 hours ago; `mq txn list` shows \
         the undecided ones"
    )
}

fn conflict(id: &dyn Display, state: TransactionState) -> String {
    let state = state_word(state);
    format!("transaction `{id}` is already {state}: the first decision wins")
}

fn key_reused(id: &dyn Display) -> String {
    format!(
        "the transaction key was used for other messages, in transaction `{id}`; use a new key for each transaction"
    )
}

fn target_gone(id: &dyn Display) -> String {
    format!(
        "a topic of transaction `{id}` was deleted: it can only be rolled back, and is parked until then (`mq txn \
         rollback {id}`)"
    )
}

impl Refusal {
    /// The error as it is sent to a client. The state names transactions by number; a client knows them by
    /// their full id, which contains this shard.
    #[must_use]
    pub fn to_error(&self, shard: &ShardName) -> Error {
        let id = |number: &TransactionNumber| TransactionId {
            shard: shard.clone(),
            number: *number,
        };
        let message = match self {
            Self::UnknownTransaction(number) => unknown_transaction(&id(number)),
            Self::Conflict { number, state } => conflict(&id(number), *state),
            Self::KeyReused(number) => key_reused(&id(number)),
            Self::TargetGone(number) => target_gone(&id(number)),
            other => other.to_string(),
        };
        Error::new(self.code(), message)
    }

    const fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownTopic(_) | Self::TargetGone(_) => ErrorCode::UnknownTopic,
            Self::TopicExists { .. } | Self::OtherSettings(_) => ErrorCode::TopicExists,
            Self::NotAuthority { .. } | Self::Outdated { .. } | Self::Invalid(_) => {
                ErrorCode::InvalidArgument
            }
            Self::UnknownQueue => ErrorCode::UnknownQueue,
            Self::OpenTransactions { .. } => ErrorCode::OpenTransactions,
            Self::TransactionsFull { .. } => ErrorCode::Overloaded,
            Self::UnknownTransaction(_) => ErrorCode::UnknownTransaction,
            Self::Conflict { .. } => ErrorCode::TransactionConflict,
            Self::KeyReused(_) => ErrorCode::TransactionKeyReused,
            Self::SubscriptionMismatch { .. } => ErrorCode::SubscriptionMismatch,
        }
    }
}
