//! The broker's own, typed errors: a stable code for programs, a sentence for people, and whether the outcome is known.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong. The names cross the wire and are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No such topic at this broker.
    UnknownTopic,
    /// A topic of that name exists with other properties.
    TopicExists,
    /// The topic has no such queue, or it lies on another shard.
    UnknownQueue,
    /// No such consumer group.
    UnknownGroup,
    /// No such transaction, or its decision is no longer remembered.
    UnknownTransaction,
    /// The transaction was already decided the other way.
    TransactionConflict,
    /// The topic has open transactions.
    OpenTransactions,
    /// The same transaction key came with other messages.
    TransactionKeyReused,
    /// A field has a value that is not allowed.
    InvalidArgument,
    /// A batch is damaged or not of this format.
    CorruptBatch,
    /// A record, batch or request exceeds its limit.
    TooLarge,
    /// Less durability than the topic's floor was asked for.
    DurabilityBelowFloor,
    /// The offset is below the queue's start or beyond its end.
    OffsetOutOfRange,
    /// The data at this offset is damaged.
    DataCorrupt,
    /// The sender is not (or no longer) a member of the group: join again.
    NotMember,
    /// The queue has a later owner.
    Fenced,
    /// The group has another mode, topic or filter.
    SubscriptionMismatch,
    /// Another broker leads this shard.
    NotLeader,
    /// A limit was reached; nothing was started. Try again later.
    Overloaded,
    /// The broker's disk is nearly full: it takes no messages; everything else goes on. Definite.
    DiskFull,
    /// The broker takes no writes.
    ReadOnly,
    /// The broker is shutting down.
    ShuttingDown,
    /// It may have happened or not: the connection or the disk failed in between.
    OutcomeUnknown,
    /// No token, or a wrong one.
    Unauthenticated,
    /// This version cannot do that.
    Unsupported,
    /// The broker's own fault; see its log.
    Internal,
}

/// An error of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was wrong, what was expected, what to do.
    pub message: String,
    /// With [`ErrorCode::OffsetOutOfRange`]: first offset and end of the queue.
    pub range: Option<(u64, u64)>,
    /// With [`ErrorCode::DiskFull`], and [`ErrorCode::ReadOnly`] for lack of space: how the broker's disk stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskShortage>,
}

/// A disk on which there is too little space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShortage {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that must be free before messages are taken.
    pub needed: u64,
}

impl Error {
    /// An error.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            range: None,
            disk: None,
        }
    }

    /// Whether it is known that nothing happened.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        !matches!(self.code, ErrorCode::OutcomeUnknown)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
