//! Numbers by which the broker's layers know things among themselves. None of them leaves the broker.

use mq_common::ids::Lsn;

/// A message queue of this broker, for everything below the service: dense from 0 in order of creation, never used
/// again, not even for a queue of the same topic name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(pub u32);

/// A consumer group of this broker: dense from 0 in order of creation, never used again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey(pub u32);

/// One batch of the log: the entry, and the batch's place among all batches of all commands of that entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchAt {
    /// The entry.
    pub lsn: Lsn,
    /// Index among the entry's batches.
    pub index: u32,
}
