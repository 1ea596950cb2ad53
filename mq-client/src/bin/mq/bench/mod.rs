//! `mq bench produce | consume | latency`: generated load, with figures that can be compared between runs.

mod consume;
mod figures;
mod latency;
mod produce;

use std::time::Duration;

use clap::Subcommand;
use mq_client::Client;
use mq_common::ids::{Durability, TopicName};

use crate::args::{at_least_one, byte_count, duration};
use crate::fail::Outcome;
use crate::output::Output;

macro_rules! group_stays {
    () => {
        "It creates a consumer group `mq-bench-..`, which exists until the topic is deleted: use a topic only for measuring."
    };
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send messages as fast as they are acknowledged: in full batches, or with --single one message per
    /// send.
    #[command(
        after_help = "Examples:\n  mq bench produce load --messages 1000000 --size 1KiB\n  mq bench produce load --single --in-flight 1024             # 1024 concurrent sends of one message each\n  mq bench produce load --keys 10000                          # each message goes to the queue of its key"
    )]
    Produce {
        /// The topic; it must exist.
        topic: TopicName,
        /// Number of messages.
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        messages: u64,
        /// Bytes of each message.
        #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = byte_count)]
        size: usize,
        /// Durability a message must reach: memory or fsynced; by default that of the topic.
        #[arg(long, value_name = "DURABILITY")]
        durability: Option<Durability>,
        /// Largest batch in bytes.
        #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = byte_count)]
        batch_bytes: usize,
        /// Await each send, with `--in-flight` sends at once (1024 by default), as an application with many
        /// tasks does; the producer batches the messages that are queued meanwhile.
        #[arg(long)]
        single: bool,
        /// Largest number of messages in a batch; up to 16 batches of a queue are in flight at once.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        batch_records: Option<u32>,
        /// Give each message a random key out of this many; the key determines the queue.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        keys: Option<u64>,
        /// Messages in flight at once (default: as many as fit in 16 MiB); 1 awaits each send.
        #[arg(long, value_name = "N", value_parser = at_least_one)]
        in_flight: Option<usize>,
    },
    /// Read the topic from its beginning, with a consumer group created for this run.
    #[command(after_help = concat!("Example:\n  mq bench consume load --messages 1000000\n\n", group_stays!()))]
    Consume {
        /// The topic; it must already contain the messages.
        topic: TopicName,
        /// Number of messages to read.
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        messages: u64,
    },
    /// Send at a fixed rate and measure the time from when each message was due to be sent until it is
    /// received.
    #[command(after_help = concat!(
        "Example:\n  mq bench latency load --rate 10000 --duration 20s --size 100\n\n",
        group_stays!()
    ))]
    Latency {
        /// The topic; it must exist.
        topic: TopicName,
        /// Messages per second.
        #[arg(long, value_name = "RATE", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        rate: u64,
        /// How long to send.
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
        duration: Duration,
        /// Bytes of each message, at least 8.
        #[arg(long, value_name = "SIZE", default_value = "100", value_parser = byte_count)]
        size: usize,
    },
}

/// Runs it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Outcome {
    let figures = match command {
        Command::Produce {
            topic,
            messages,
            size,
            durability,
            single,
            batch_bytes,
            batch_records,
            keys,
            in_flight,
        } => {
            let load = produce::Load {
                messages,
                size,
                durability,
                single,
                batch_bytes,
                batch_records,
                keys,
                in_flight,
            };
            produce::run(&topic, &load, client).await?
        }
        Command::Consume { topic, messages } => consume::run(&topic, messages, client).await?,
        Command::Latency {
            topic,
            rate,
            duration,
            size,
        } => latency::run(&topic, &latency::Load { rate, duration, size }, client).await?,
    };
    output.list(&[figures.record()], "")?;
    figures.verdict()
}

/// A new group for this run.
fn own_group() -> String {
    format!("mq-bench-{:08x}", fastrand::u32(..))
}

/// Random bytes, so that nothing on the way can compress them.
fn payload(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut payload = vec![0; bytes];
    random.fill(&mut payload);
    payload
}
