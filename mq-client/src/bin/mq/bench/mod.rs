//! `mq bench produce | consume | latency`: the tool's own load, with figures that can be compared between runs.

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
        "The group `mq-bench-..` stays with the topic and goes when that is deleted: measure with a topic of its own."
    };
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send messages in batches, as fast as they are acknowledged.
    #[command(
        after_help = "Examples:\n  mq bench produce load --messages 1000000 --size 1KiB\n  mq bench produce load --single --in-flight 1024             # 1024 sends at once, each of one message\n  mq bench produce load --keys 10000                          # each message to the queue of its key"
    )]
    Produce {
        /// The topic; it must exist.
        topic: TopicName,
        /// Messages in all.
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        messages: u64,
        /// Bytes of each message.
        #[arg(long, value_name = "B", default_value = "1KiB", value_parser = byte_count)]
        size: usize,
        /// Durability to reach: memory or fsynced; the topic's own by default.
        #[arg(long, value_name = "L")]
        durability: Option<Durability>,
        /// Bytes of a batch at most.
        #[arg(long, value_name = "B", default_value = "256KiB", value_parser = byte_count)]
        batch_bytes: usize,
        /// Send each message by itself, as an application that does not collect them; `--in-flight` of them at once, 1024
        /// by default.
        #[arg(long)]
        single: bool,
        /// Messages of a batch at most. Of one queue up to 16 batches are under way at once, in one call: 2 MiB, or a share of
        /// that where others have something to send, but at least 256 KiB.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        batch_records: Option<u32>,
        /// Give messages one of so many keys, at random; the key decides the queue.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        keys: Option<u64>,
        /// Messages without a receipt at once; 16 MiB of them by default. 1 sends each one alone and awaits it.
        #[arg(long, value_name = "N", value_parser = at_least_one)]
        in_flight: Option<usize>,
    },
    /// Read what the topic holds, from its beginning, with a consumer group made for this run.
    #[command(after_help = concat!("Example:\n  mq bench consume load --messages 1000000\n\n", group_stays!()))]
    Consume {
        /// The topic; it must hold the messages already.
        topic: TopicName,
        /// Messages to read.
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        messages: u64,
    },
    /// Send at a fixed rate and measure the way from send to consumer; a late send counts as late.
    #[command(after_help = concat!(
        "Example:\n  mq bench latency load --rate 10000 --duration 20s --size 100\n\n",
        group_stays!()
    ))]
    Latency {
        /// The topic; it must exist.
        topic: TopicName,
        /// Messages a second.
        #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        rate: u64,
        /// For how long.
        #[arg(long, value_name = "D", default_value = "10s", value_parser = duration)]
        duration: Duration,
        /// Bytes of each message, at least 8.
        #[arg(long, value_name = "B", default_value = "100", value_parser = byte_count)]
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

/// A group of this run alone.
fn own_group() -> String {
    format!("mq-bench-{:08x}", fastrand::u32(..))
}

/// Bytes without a pattern, so that nothing along the way can make them smaller.
fn payload(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut payload = vec![0; bytes];
    random.fill(&mut payload);
    payload
}
