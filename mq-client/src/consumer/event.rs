//! What a consumer reports beside its messages.

use mq_common::ids::{Offset, QueueNumber, ShardName};

/// Something that happened to a consumer's queues. A consumer without an observer logs them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// It owns a queue now, and goes on at the group's cursor.
    Assigned {
        /// The queue.
        queue: QueueNumber,
        /// The cursor.
        offset: Offset,
    },
    /// It gives a queue back.
    Revoked {
        /// The queue.
        queue: QueueNumber,
    },
    /// A queue went to another member; what was not acked is delivered there again.
    Lost {
        /// The queue.
        queue: QueueNumber,
    },
    /// What comes next lies outside of the queue: these offsets are skipped. With `to` above `from` the messages between
    /// them were deleted before they were read.
    Gap {
        /// The queue.
        queue: QueueNumber,
        /// Where the group stood.
        from: Offset,
        /// Where it goes on.
        to: Offset,
    },
    /// So many offsets of one answer hold nothing since later messages of the same keys took their place: nothing is
    /// missing.
    Compacted {
        /// The queue.
        queue: QueueNumber,
        /// How many.
        offsets: u64,
    },
    /// Offsets that hold nothing because what was there is damaged.
    Hole {
        /// The queue.
        queue: QueueNumber,
        /// First of them.
        from: Offset,
        /// First behind them.
        to: Offset,
    },
    /// A batch did not survive its way from the disk to here; it is fetched again until it does, or is a named hole.
    Corrupt {
        /// The queue.
        queue: QueueNumber,
        /// The offset that was wanted.
        offset: Offset,
        /// What is wrong.
        reason: String,
    },
    /// A broker that has queues of the topic is not reached, for so long that it is more than a restart; what it has is
    /// not received. It is tried again until it answers.
    BrokerSilent {
        /// The broker.
        shard: ShardName,
        /// The topic's queues there.
        queues: Vec<QueueNumber>,
        /// Why.
        reason: String,
    },
    /// A broker that was silent answers again.
    BrokerBack {
        /// The broker.
        shard: ShardName,
    },
    /// The handler failed; the message is handed to it again.
    HandlerFailed {
        /// The queue.
        queue: QueueNumber,
        /// The message.
        offset: Offset,
        /// How often it was handed over.
        attempt: u32,
        /// What the handler said.
        reason: String,
    },
}

impl ConsumerEvent {
    /// For consumers without an observer.
    pub(crate) fn log(&self) {
        match self {
            Self::Assigned { queue, offset } => tracing::info!(%queue, %offset, "queue assigned"),
            Self::Revoked { queue } => tracing::info!(%queue, "queue given back"),
            Self::Lost { queue } => tracing::warn!(%queue, "queue lost to another member"),
            Self::Gap { queue, from, to } => {
                tracing::error!(%queue, %from, %to, "messages are gone before they were consumed");
            }
            Self::Compacted { queue, offsets } => {
                tracing::debug!(%queue, offsets, "passed over what was compacted away");
            }
            Self::Hole { queue, from, to } => tracing::error!(%queue, %from, %to, "offsets hold nothing"),
            Self::Corrupt {
                queue,
                offset,
                reason,
            } => {
                tracing::error!(%queue, %offset, %reason, "a batch is damaged, fetching it again");
            }
            Self::BrokerSilent {
                shard,
                queues,
                reason,
            } => tracing::warn!(%shard, queues = queues.len(), reason, "a broker of the topic is silent"),
            Self::BrokerBack { shard } => tracing::info!(%shard, "the broker answers again"),
            Self::HandlerFailed {
                queue,
                offset,
                attempt,
                reason,
            } => tracing::warn!(%queue, %offset, attempt, %reason, "the handler failed"),
        }
    }
}
