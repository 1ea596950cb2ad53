//! `mq consume`: a member of a consumer group that prints what it gets, and acks what was printed.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use mq_client::{Client, Delivery};
use mq_common::api::group::StartAt;
use mq_common::ids::{Offset, Timestamp};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::args::{Format, duration};
use crate::fail::{Failure, Outcome};
use crate::output::{Output, Record, visible};

const EXAMPLES: &str = "\
Examples:
  mq consume orders --group billing                              # until Ctrl-C
  mq consume orders --group billing --count 100 --timeout 10s    # exit 1 if fewer than 100 came
  mq consume orders --group audit --from 2026-01-01T00:00:00Z --output json

A message is acknowledged after its line was written; what was printed and not acknowledged when the
command was killed comes again.";

/// What to receive, and when to stop.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The topic.
    topic: String,
    /// The consumer group; its members share the topic's queues.
    #[arg(long, value_name = "G")]
    group: String,
    /// How the group shares messages.
    #[arg(long, value_enum, default_value = "stream")]
    mode: Mode,
    /// Stop after this many messages; fewer is a failure.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Where a new group starts: earliest, latest, an offset, or a time as in 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = start_at)]
    from: StartAt,
    /// Stop when nothing came for this long.
    #[arg(long, value_name = "D", value_parser = duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Each queue has one owner; strict order in each queue.
    Stream,
}

fn start_at(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => return Ok(StartAt::Earliest),
        "latest" => return Ok(StartAt::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse() {
        return Ok(StartAt::Offset(Offset(offset)));
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| {
        format!("`{text}` is no place to start; expected `earliest`, `latest`, an offset, or a time as in `2026-01-31T12:00:00Z`")
    })?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| format!("`{text}` lies before 1970"))?;
    Ok(StartAt::Time(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
}

/// The names of a line.
const NAMES: [&str; 7] = ["topic", "queue", "offset", "key", "tag", "attempt", "body"];

/// Runs it.
pub(crate) async fn run(arguments: Arguments, client: &Client, output: &mut Output) -> Outcome {
    let Mode::Stream = arguments.mode;
    let mut subscription =
        client.consumer(&arguments.topic, &arguments.group)?.start(arguments.from).subscribe().await?;
    output.header(&NAMES)?;
    output.flush()?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut idle_since = Instant::now();
    let outcome = loop {
        if left == 0 {
            break Ok(());
        }
        let idle_end = arguments.timeout.map(|timeout| idle_since + timeout);
        let polled = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => break Ok(()),
            polled = subscription.poll() => polled,
            () = wait_until(idle_end) => break Ok(()),
        };
        let chunk = match polled {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Err(Failure::new("the consumer was stopped")),
            Err(error) => break Err(error.into()),
        };
        match print(&chunk, &mut left, output) {
            Ok(last) => subscription.ack(last),
            Err(failure) => break Err(failure),
        }
        idle_since = Instant::now();
    };
    // Tells the broker what was printed, and leaves, so that the queues are free at once.
    let closed = subscription.close().await;
    outcome?;
    closed?;
    match arguments.count {
        Some(count) if left > 0 => {
            Err(Failure::new(format!("{} of {count} messages came", count - left)))
        }
        _ => Ok(()),
    }
}
