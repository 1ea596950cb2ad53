//! The broker's typed errors: a stable code for programs, a message for people, and whether the outcome is
//! known.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of an error. The names are part of the wire format and never change.
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
    /// The transaction key was already used for other messages.
    TransactionKeyReused,
    /// A field has a value that is not allowed.
    InvalidArgument,
    /// A batch is damaged or not of this format.
    CorruptBatch,
    /// A record, batch or request exceeds its limit.
    TooLarge,
    /// The requested durability is below the topic's floor.
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
    /// The broker's disk is nearly full: it accepts no messages; everything else continues to work. Definite.
    DiskFull,
    /// The broker accepts no writes.
    ReadOnly,
    /// The broker is shutting down.
    ShuttingDown,
    /// It may or may not have happened: the connection or the disk failed meanwhile.
    OutcomeUnknown,
    /// No token, or a wrong one.
    Unauthenticated,
    /// Not supported by this version.
    Unsupported,
    /// An internal error of the broker; see its log.
    Internal,
}

/// An error of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was wrong, what was expected, what to do.
    pub message: String,
    /// With [`ErrorCode::OffsetOutOfRange`]: the first offset and the end of the queue.
    pub range: Option<(u64, u64)>,
    /// With [`ErrorCode::DiskFull`], and with [`ErrorCode::ReadOnly`] for lack of space: the state of the
    /// broker's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskShortage>,
}

/// A disk with too little free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShortage {
    /// Free bytes.
    pub free: u64,
    /// Bytes that must be free for messages to be accepted.
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
