//! `mq consume`: a member of a consumer group that prints messages, and acks them once they are printed.

use std::future::{pending, ready};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use mq_client::consumer::ConsumerEvent;
use mq_client::{Client, Delivery, Subscription};
use mq_common::api::group::StartAt;
use mq_common::ids::{GroupName, Offset, Timestamp, TopicName};

use crate::args::{Format, duration};
use crate::fail::{Failure, Outcome};
use crate::output::{Output, Record, remark, visible};

const EXAMPLES: &str = "\
Examples:
  mq consume orders --group billing                              # until Ctrl-C
  mq consume orders --group billing --count 100 --timeout 10s    # exit status 1 if fewer than 100 came
  mq consume orders --group audit --from 2026-01-01T00:00:00Z --output json

A message is acknowledged after its line was written. Messages that were printed but not yet acknowledged
when the command was killed are delivered again.

Unreachable brokers of the topic are reported on stderr, and again when they return. With `--timeout`, exit
status 1 means that one was unreachable at the end: it may hold messages that were not received.";

/// Flags of `mq consume`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The topic.
    topic: TopicName,
    /// The consumer group; its members share the topic's queues.
    #[arg(long, value_name = "GROUP")]
    group: GroupName,
    /// How the group shares messages.
    #[arg(long, value_enum, default_value = "stream")]
    mode: Mode,
    /// Stop after this many messages; fewer is a failure.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Where a new group starts: earliest, latest, an offset, or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = start_at)]
    from: StartAt,
    /// Stop when no message arrived for this long.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Each queue has one owner and is consumed in strict order.
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
        format!("`{text}` is not a position to start at; expected `earliest`, `latest`, an offset, or a time such as `2026-01-31T12:00:00Z`")
    })?;
    let since = time
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|_| format!("`{text}` lies before 1970"))?;
    Ok(StartAt::Time(Timestamp(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    )))
}

/// The column names.
const NAMES: [&str; 7] = ["topic", "queue", "offset", "key", "tag", "attempt", "body"];

/// Lines written between two flushes (with acks) while messages keep coming.
const LINES_BETWEEN_FLUSHES: usize = 512;

/// Runs it.
pub(crate) async fn run(arguments: Arguments, client: &Client, output: &mut Output) -> Outcome {
    let Mode::Stream = arguments.mode;
    let member = client
        .consumer(arguments.topic, arguments.group)?
        .start_at(arguments.from);
    let compacted = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&compacted);
    let member = member.on_event(move |event| match event {
        ConsumerEvent::Compacted { offsets, .. } => {
            counted.fetch_add(offsets, Ordering::Relaxed);
        }
        event => report(event),
    });
    let mut subscription = member.subscribe().await?;
    output.header(&NAMES)?;
    output.flush()?;
    let mut printer = Printer {
        output,
        unacked: Vec::new(),
    };
    let wanted = arguments.count.unwrap_or(u64::MAX);
    let outcome = receive(&mut subscription, &mut printer, wanted, arguments.timeout).await;
    let silent = silent(&subscription);
    // Sends the last acks and leaves the group, so that its queues are free at once.
    let closed = subscription.close().await;
    let received = outcome?;
    closed?;
    match compacted.load(Ordering::Relaxed) {
        0 => {}
        offsets => remark(&format!(
            "mq: {offsets} offsets were removed by key compaction: later messages replaced them"
        )),
    }
    let printed = received.printed;
    match (arguments.count, silent) {
        (Some(count), silent) if printed < count => {
            let silent = silent.map_or_else(String::new, |silent| format!("; {silent}"));
            Err(Failure::new(format!(
                "{printed} of {count} messages came{silent}"
            )))
        }
        (_, Some(silent)) if received.idle => Err(Failure::new(format!("incomplete, {silent}"))),
        _ => Ok(()),
    }
}

/// The brokers of the topic that do not answer.
fn silent(subscription: &Subscription) -> Option<String> {
    let silent = subscription.silent();
    let names: Vec<_> = silent.iter().map(|shard| format!("`{shard}`")).collect();
    (!names.is_empty()).then(|| format!("no answer from broker {}", names.join(", ")))
}

/// How the receiving ended.
#[derive(Debug, Clone, Copy)]
struct Received {
    printed: u64,
    /// No message came within the timeout.
    idle: bool,
}

/// Prints up to `wanted` messages.
async fn receive(
    subscription: &mut Subscription,
    printer: &mut Printer<'_>,
    wanted: u64,
    timeout: Option<Duration>,
) -> Outcome<Received> {
    let mut printed = 0;
    let ended = |printed, idle| Ok(Received { printed, idle });
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    while printed < wanted {
        let next = if printer.unacked.is_empty() {
            tokio::select! {
                biased;
                _ = &mut interrupt => return ended(printed, false),
                next = subscription.next() => next,
                () = idle(timeout) => return ended(printed, true),
            }
        } else {
            // Messages that have already arrived are printed together; when there are none, the printed ones
            // are flushed and acked.
            tokio::select! {
                biased;
                next = subscription.next() => next,
                () = ready(()) => {
                    printer.flush_and_ack(subscription)?;
                    continue;
                }
            }
        };
        let Some(message) = next else {
            printer.flush_and_ack(subscription)?;
            return ended(printed, false);
        };
        printer.print(message)?;
        printed += 1;
        if printer.unacked.len() >= LINES_BETWEEN_FLUSHES || printed == wanted {
            printer.flush_and_ack(subscription)?;
        }
    }
    ended(printed, false)
}

async fn idle(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => pending().await,
    }
}

/// Prints messages, and acks them once they are flushed.
struct Printer<'a> {
    output: &'a mut Output,
    unacked: Vec<Delivery>,
}

impl Printer<'_> {
    fn print(&mut self, message: Delivery) -> Outcome {
        self.output.line(&record(&message, self.output.format()))?;
        self.unacked.push(message);
        Ok(())
    }

    fn flush_and_ack(&mut self, subscription: &Subscription) -> Outcome {
        self.output.flush()?;
        for message in self.unacked.drain(..) {
            if subscription.ack(&message).is_err() {
                remark(&format!(
                    "mq: queue {} was reassigned to another member of the group, which gets its messages from offset {} on again",
                    message.queue, message.offset
                ));
            }
        }
        Ok(())
    }
}

/// Reports events that the user should know about.
fn report(event: ConsumerEvent) {
    match event {
        ConsumerEvent::Gap { queue, from, to } => remark(&match to.0.checked_sub(from.0) {
            Some(lost) => format!(
                "mq: queue {queue}: {lost} messages from offset {from} on were deleted before they were read; continuing at {to}"
            ),
            None => format!("mq: queue {queue}: there is no offset {from}; continuing at {to}"),
        }),
        ConsumerEvent::Hole { queue, from, to } => {
            remark(&format!(
                "mq: queue {queue}: offsets {from} to {to} are damaged and cannot be read"
            ));
        }
        ConsumerEvent::Corrupt {
            queue,
            offset,
            reason,
        } => {
            remark(&format!(
                "mq: queue {queue}: a batch at offset {offset} arrived damaged and is fetched again: {reason}"
            ));
        }
        ConsumerEvent::BrokerSilent {
            shard,
            queues,
            reason,
        } => {
            let queues = match queues.as_slice() {
                [queue] => format!("queue {queue}"),
                queues => format!("{} queues", queues.len()),
            };
            remark(&format!(
                "mq: broker `{shard}` is silent: {reason}; messages in its {queues} of the topic will be received when it is back"
            ));
        }
        ConsumerEvent::BrokerBack { shard } => remark(&format!("mq: broker `{shard}` is back")),
        _ => {}
    }
}

fn record(message: &Delivery, format: Format) -> Record {
    let record = Record::new()
        .with("topic", message.topic.as_str())
        .with("queue", message.queue.0)
        .with("offset", message.offset.0);
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    if format == Format::Table {
        return record
            .with("key", message.key.as_deref().map(visible))
            .with("tag", message.tag.as_deref())
            .with("attempt", message.attempt)
            .with("body", visible(&message.payload));
    }
    let record = match message.key.as_deref() {
        Some(key) if text(key).is_none() => record.with("key_base64", BASE64_STANDARD.encode(key)),
        key => record.with("key", key.and_then(text)),
    };
    let record = record
        .with("tag", message.tag.as_deref())
        .with("attempt", message.attempt);
    match text(&message.payload) {
        Some(body) => record.with("body", body),
        None => record.with("body_base64", BASE64_STANDARD.encode(&message.payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_start_are_understood() {
        assert_eq!(start_at("earliest"), Ok(StartAt::Earliest));
        assert_eq!(start_at("latest"), Ok(StartAt::Latest));
        assert_eq!(start_at("120"), Ok(StartAt::Offset(Offset(120))));
        assert_eq!(
            start_at("1970-01-01T00:00:01Z"),
            Ok(StartAt::Time(Timestamp(1000)))
        );
        assert!(start_at("yesterday").is_err());
    }
}
