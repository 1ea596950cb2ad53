//! What producers and consumers can be told, with the values they have otherwise.

use std::time::Duration;

use mq_common::api::group::StartAt;
use mq_common::batch::Compression;
use mq_common::ids::Durability;

/// How a producer sends.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// How long a batch waits for company before it is sent. Default 0: it is sent at once, and what comes while its
    /// queue's last batch is under way goes together.
    pub linger: Duration,
    /// Bytes of a batch at most, before packing; a larger message gets a batch of its own. Default 256 KiB.
    pub batch_bytes: usize,
    /// Messages of a batch at most. Default 65,536.
    pub batch_records: u32,
    /// Bytes of messages that are queued or under way; beyond that sends wait and oneway sends are refused. Default
    /// 16 MiB.
    pub in_flight_bytes: usize,
    /// Calls under way to one broker at once. Default 5.
    pub calls_per_broker: usize,
    /// The durability to reach before a send is done; `None` = the topic's floor.
    pub durability: Option<Durability>,
    /// How batches are packed. Default none.
    pub compression: Compression,
    /// How long a send may take in all, its waiting and its retries included. Default 10 s.
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

/// What a consumer does when its cursor lies outside of what its queue has (the messages are gone, or never were).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfRange {
    /// Goes on at the nearest offset there is, and reports the gap as an event. The default.
    GoOn,
    /// Stops the consumer with an error.
    Stop,
}

/// How a consumer works.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Where a new group starts; a group that has cursors goes on at them. Default: the first message there is.
    pub start: StartAt,
    /// Polling tasks at each broker; each queue belongs to one of them, so its messages stay in order. Default 4.
    pub threads: usize,
    /// Bytes that one poll brings at most, about. Each polling task holds up to two polls. Default 1 MiB.
    pub fetch_bytes: u32,
    /// How long a poll waits at the broker when there is nothing. Default 20 s.
    pub fetch_wait: Duration,
    /// How often progress is told to the broker; also the most that is delivered again after a crash. Default 20 ms.
    pub ack_interval: Duration,
    /// What to do when the cursor lies outside of the queue.
    pub out_of_range: OutOfRange,
    /// Wait before a message whose handler failed is handed to it again: doubled each time, up to `retry_max`. Default
    /// 1 s.
    pub retry_first: Duration,
    /// See `retry_first`. Default 10 minutes.
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
