//! What a consumer reports apart from its messages.

use mq_common::ids::{Offset, QueueNumber, ShardName};

/// Something that happened to a consumer's queues. A consumer without an observer logs them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// A queue was assigned to it; it continues at the group's cursor.
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
    /// A queue was reassigned to another member; what was not acked is delivered there again.
    Reassigned {
        /// The queue.
        queue: QueueNumber,
    },
    /// The group's cursor lies outside the queue: these offsets are skipped. If `to` is above `from`, the
    /// messages between them were deleted before they were read.
    Gap {
        /// The queue.
        queue: QueueNumber,
        /// The group's cursor.
        from: Offset,
        /// Where it continues.
        to: Offset,
    },
    /// This many offsets of one response are empty because key compaction removed their messages in favour of
    /// later messages with the same keys: nothing is missing.
    Compacted {
        /// The queue.
        queue: QueueNumber,
        /// The number of offsets.
        offsets: u64,
    },
    /// Offsets whose messages are damaged and cannot be delivered.
    Hole {
        /// The queue.
        queue: QueueNumber,
        /// The first of them.
        from: Offset,
        /// The first offset after them.
        to: Offset,
    },
    /// A batch was damaged between the broker's disk and this consumer; it is fetched again until it is
    /// intact, or the broker reports it as a hole.
    Corrupt {
        /// The queue.
        queue: QueueNumber,
        /// The offset that was requested.
        offset: Offset,
        /// What is wrong with the batch.
        reason: String,
    },
    /// A broker that has queues of the topic has been unreachable for longer than a restart takes; messages
    /// in its queues are not received. It is retried until it answers.
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
        /// How often it was handed to the handler.
        attempt: u32,
        /// The handler's error.
        reason: String,
    },
}

impl ConsumerEvent {
    /// Logs it, for consumers without an observer.
    pub(crate) fn log(&self) {
        match self {
            Self::Assigned { queue, offset } => tracing::info!(%queue, %offset, "queue assigned"),
            Self::Revoked { queue } => tracing::info!(%queue, "queue given back"),
            Self::Reassigned { queue } => tracing::warn!(%queue, "queue was reassigned to another member"),
            Self::Gap { queue, from, to } => {
                tracing::error!(%queue, %from, %to, "messages were deleted before they were consumed");
            }
            Self::Compacted { queue, offsets } => {
                tracing::debug!(%queue, offsets, "skipped offsets removed by key compaction");
            }
            Self::Hole { queue, from, to } => tracing::error!(%queue, %from, %to, "skipped damaged messages"),
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
