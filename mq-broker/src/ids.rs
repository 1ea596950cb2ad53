//! Numbers that the broker's layers use internally. None of them leaves the broker.

use mq_common::ids::Lsn;

/// A message queue of this broker, for all layers below the services: dense from 0 in order of creation,
/// never reused, not even for a queue of a topic with the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(pub u32);

/// A consumer group of this broker: dense from 0 in order of creation, never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey(pub u32);

/// One batch of the log: the entry, and the batch's index among all batches of all commands of that entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchAt {
    /// The entry.
    pub lsn: Lsn,
    /// Index among the entry's batches.
    pub index: u32,
}
