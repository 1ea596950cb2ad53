//! The settings of producers and consumers, with their defaults.

use std::time::Duration;

use mq_common::api::group::StartAt;
use mq_common::batch::Compression;
use mq_common::ids::Durability;

/// The settings of a producer.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// How long an open batch waits for more messages. Default 0: it is sent at once; messages that arrive
    /// while their queue's previous batch is in flight are batched together.
    pub linger: Duration,
    /// The largest batch in bytes, before compression; a larger message gets a batch of its own. Default 256
    /// KiB.
    pub batch_bytes: usize,
    /// The largest number of messages in a batch. Default 65,536.
    pub batch_records: u32,
    /// The byte budget for messages that are queued or in flight; when it is used up, sends wait, and oneway
    /// and callback sends are refused. Default 16 MiB.
    pub in_flight_bytes: usize,
    /// Concurrent calls to one broker. Default 5.
    pub calls_per_broker: usize,
    /// The durability a message must reach before its receipt is sent; `None` = the topic's floor.
    pub durability: Option<Durability>,
    /// The compression of batches. Default none.
    pub compression: Compression,
    /// The timeout of a send, including the time it is queued and its retries. Default 10 s.
    pub timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: Duration::ZERO,
            batch_bytes: 256 * 1024,
            batch_records: 65_536,
            in_flight_bytes: 16 * 1024 * 1024,
            calls_per_broker: 5,
            durability: None,
            compression: Compression::None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What a consumer does when its cursor lies outside the offsets of its queue (those messages were deleted,
/// or never existed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfRange {
    /// Continues at the nearest existing offset, and reports the gap as an event. The default.
    GoOn,
    /// Stops the consumer with an error.
    Stop,
}

/// The settings of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Where a new group starts; a group that has cursors continues at them. Default: the first message
    /// retained.
    pub start: StartAt,
    /// Polling tasks per broker: tasks of the runtime, not threads of their own. Each queue belongs to one of
    /// them, which also runs the handler for it, so its messages stay in order. Default 4.
    pub threads: usize,
    /// Approximate largest response to one poll, in bytes. Each polling task holds up to two responses.
    /// Default 1 MiB.
    pub fetch_bytes: u32,
    /// How long a poll waits at the broker when there are no messages. Default 20 s.
    pub fetch_wait: Duration,
    /// How often acks are sent to the broker. After a crash of the consumer, what it handled within this time
    /// may be delivered again. Default 20 ms.
    pub ack_interval: Duration,
    /// What to do when the cursor lies outside the queue. Default: continue.
    pub out_of_range: OutOfRange,
    /// The pause before a message whose handler failed is handed to it again; it doubles with each attempt,
    /// up to `retry_max`. Default 1 s.
    pub retry_first: Duration,
    /// The longest pause between two attempts; see `retry_first`. Default 10 minutes.
    pub retry_max: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            start: StartAt::Earliest,
            threads: 4,
            fetch_bytes: 1024 * 1024,
            fetch_wait: Duration::from_secs(20),
            ack_interval: Duration::from_millis(20),
            out_of_range: OutOfRange::GoOn,
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
        }
    }
}
