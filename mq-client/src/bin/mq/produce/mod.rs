//! `mq produce`: sends lines or a file as messages.

mod input;
mod tally;
mod transaction;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use mq_client::{Client, Message, Producer, SendError, SendReceipt};
use mq_common::ids::{Durability, TopicName};
use tokio::sync::mpsc;

use crate::fail::{Failure, Outcome};
use crate::output::{Output, Progress, remark};
use tally::Tally;

const EXAMPLES: &str = "\
Examples:
  printf 'first\\nsecond\\n' | mq produce orders
  mq produce orders --file order.json                  # the whole file as one message
  mq produce orders --file orders.txt --lines -v       # a receipt for each line
  printf 'k1:one\\nk2:two\\n' | mq produce orders --key-separator :
  mq produce orders --mode transaction < orders.txt    # all lines become visible at once, or none
  printf 'k1:\\n' | mq produce prices --key-separator :  # an empty body deletes k1 in a topic with --compact

Messages without a key go to one queue until its batch is full or in flight, then to the next, so a few
lines may all end up in one queue. Lines with the same key go to the same queue, in order.

Exit status 0 means that every message was acknowledged (with `--mode oneway`: handed over).";

/// Flags of `mq produce`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The topic.
    topic: TopicName,
    /// Read this file instead of stdin; without `--lines` the whole file is one message.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Send each line of the file as a message (always the case for stdin).
    #[arg(long, requires = "file")]
    lines: bool,
    /// Use the text before this separator in each line as its key; lines with the same key go to the same
    /// queue, in order.
    #[arg(long, value_name = "SEP", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// A tag for every message.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// How to send.
    #[arg(long, value_enum, default_value = "sync")]
    mode: Mode,
    /// Durability a message must reach before it is acknowledged: memory or fsynced; by default that of the
    /// topic.
    #[arg(long, value_name = "DURABILITY")]
    durability: Option<Durability>,
    /// Print a receipt for each message: topic, queue, offset, durability.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Wait for receipts before reading more input.
    Sync,
    /// Send without receipts; messages lost on the way are not sent again.
    Oneway,
    /// Continue at once; receipts arrive in the background.
    Callback,
    /// Send the whole input in one transaction, committed at its end; at most 8 MiB.
    Transaction,
}

/// Runs it.
pub(crate) async fn run(arguments: Arguments, client: &Client, output: &mut Output) -> Outcome {
    let mut builder = client.producer();
    if let Some(durability) = arguments.durability {
        builder = builder.durability(durability);
    }
    let producer = Arc::new(builder.build());
    let mut chunks = chunks(&arguments)?;
    match (arguments.verbose, arguments.mode) {
        (false, _) => {}
        (true, Mode::Oneway) => {
            remark("mq: there are no receipts to print with `--mode oneway`");
        }
        (true, _) => output.header(&tally::RECEIPT_NAMES)?,
    }
    // No progress bar if receipts are printed, or if a person types the lines.
    let piped = arguments.file.is_some() || !std::io::stdin().is_terminal();
    let progress = (piped && !arguments.verbose).then(|| Progress::new("sent", None));
    let mut tally = Tally::new(arguments.verbose);
    let outcome = match arguments.mode {
        Mode::Sync => {
            sync(
                &arguments,
                &producer,
                &mut chunks,
                &mut tally,
                output,
                progress.as_ref(),
            )
            .await
        }
        Mode::Oneway => oneway(&arguments, &producer, &mut chunks, &mut tally, progress.as_ref()).await,
        Mode::Callback => callback(&arguments, &producer, &mut chunks, &mut tally, output).await,
        Mode::Transaction => transaction::run(&arguments, client, &mut chunks, &mut tally, output).await,
    };
    if let Some(progress) = progress {
        progress.finish();
    }
    if outcome.is_ok() && tally.is_empty() {
        // Nothing was sent, but a wrong topic is an error even without input.
        client.admin().describe_topic(arguments.topic.as_str()).await?;
    }
    outcome.and(tally.summary(output))?;
    let done = match arguments.mode {
        Mode::Oneway => tally.none_failed(),
        _ => tally.all_acked(),
    };
    if done { Ok(()) } else { Err(Failure::Said) }
}

type Chunks = mpsc::Receiver<Result<input::Chunk, String>>;

fn chunks(arguments: &Arguments) -> Outcome<Chunks> {
    match &arguments.file {
        Some(file) if !arguments.lines => {
            let body = input::whole(file).map_err(Failure::new)?;
            let (sender, receiver) = mpsc::channel(1);
            // The channel has room for it, and its receiver exists.
            drop(sender.try_send(Ok(vec![body])));
            Ok(receiver)
        }
        file => input::lines(file.as_deref()).map_err(Failure::new),
    }
}

impl Arguments {
    fn message(&self, line: Bytes) -> Message {
        let separator = self.key_separator.as_deref().unwrap_or_default().as_bytes();
        let at = (!separator.is_empty())
            .then(|| {
                line.windows(separator.len())
                    .position(|window| window == separator)
            })
            .flatten();
        let message = match at {
            Some(at) => {
                Message::to(self.topic.clone(), line.slice(at + separator.len()..)).key(line.slice(..at))
            }
            None => Message::to(self.topic.clone(), line),
        };
        match &self.tag {
            Some(tag) => message.tag(tag.as_str()),
            None => message,
        }
    }
}

/// Sends what was read together, and awaits the receipts.
async fn sync(
    arguments: &Arguments,
    producer: &Producer,
    chunks: &mut Chunks,
    tally: &mut Tally,
    output: &mut Output,
    progress: Option<&Progress>,
) -> Outcome {
    while let Some(chunk) = chunks.recv().await {
        let messages: Vec<Message> = chunk
            .map_err(Failure::new)?
            .into_iter()
            .map(|line| arguments.message(line))
            .collect();
        let count = messages.len() as u64;
        tally.sent(count);
        // All of them were sent, so all are counted, even after an error that ends the command.
        let mut counted = Ok(());
        for outcome in producer.send_all(messages).await {
            counted = counted.and(tally.outcome(&outcome, output));
        }
        counted?;
        // A person who types lines wants to see each receipt at once.
        output.flush()?;
        if let Some(progress) = progress {
            progress.add(count);
        }
    }
    Ok(())
}

async fn oneway(
    arguments: &Arguments,
    producer: &Producer,
    chunks: &mut Chunks,
    tally: &mut Tally,
    progress: Option<&Progress>,
) -> Outcome {
    while let Some(chunk) = chunks.recv().await {
        for line in chunk.map_err(Failure::new)? {
            let message = arguments.message(line);
            tally.sent(1);
            let mut handed = producer.send_oneway(message.clone()).await;
            if matches!(handed, Err(SendError::Overloaded { .. })) {
                // The producer's budget is used up: wait instead of dropping the message.
                producer.flush().await;
                handed = producer.send_oneway(message).await;
            }
            if let Err(error) = handed {
                tally.dropped(1);
                return Err(Failure::new(tally::words(&error)));
            }
            if let Some(progress) = progress {
                progress.add(1);
            }
        }
    }
    producer.flush().await;
    tally.dropped(producer.stats().oneway_dropped);
    Ok(())
}

/// Outcomes that wait to be counted. The callback pool's threads wait while the channel is full.
const OUTCOMES_WAITING: usize = 4096;

async fn callback(
    arguments: &Arguments,
    producer: &Producer,
    chunks: &mut Chunks,
    tally: &mut Tally,
    output: &mut Output,
) -> Outcome {
    let (sender, mut receiver) = mpsc::channel(OUTCOMES_WAITING);
    let mut waiting = Waiting {
        receiver: &mut receiver,
        under_way: 0,
    };
    let mut sent = Ok(());
    while sent.is_ok() {
        let Some(chunk) = chunks.recv().await else { break };
        sent = match chunk {
            Ok(lines) => {
                let messages = lines.into_iter().map(|line| arguments.message(line));
                send_with_callback(messages, producer, &sender, &mut waiting, tally, output).await
            }
            Err(error) => Err(Failure::new(error)),
        };
    }
    // Messages in flight still have an outcome.
    while waiting.under_way > 0 {
        sent = sent.and(waiting.count_one(tally, output).await);
    }
    sent
}

type SendOutcome = Result<SendReceipt, SendError>;

/// Outcomes that have not arrived yet.
struct Waiting<'a> {
    receiver: &'a mut mpsc::Receiver<SendOutcome>,
    under_way: usize,
}

impl Waiting<'_> {
    async fn count_one(&mut self, tally: &mut Tally, output: &mut Output) -> Outcome {
        // The sender outlives this, and every callback is called, so an outcome comes.
        let Some(outcome) = self.receiver.recv().await else {
            self.under_way = 0;
            return Ok(());
        };
        self.under_way -= 1;
        tally.outcome(&outcome, output)
    }

    fn count_those_there(&mut self, tally: &mut Tally, output: &mut Output) -> Outcome {
        let mut counted = Ok(());
        while let Ok(outcome) = self.receiver.try_recv() {
            self.under_way -= 1;
            counted = counted.and(tally.outcome(&outcome, output));
        }
        counted
    }
}

async fn send_with_callback(
    messages: impl Iterator<Item = Message>,
    producer: &Producer,
    sender: &mpsc::Sender<SendOutcome>,
    waiting: &mut Waiting<'_>,
    tally: &mut Tally,
    output: &mut Output,
) -> Outcome {
    for message in messages {
        tally.sent(1);
        loop {
            let sender = sender.clone();
            let sent = producer.send_callback(message.clone(), move |outcome| {
                // The receiver is gone only if the command has already failed.
                drop(sender.blocking_send(outcome));
            });
            match sent.await {
                Ok(()) => break,
                // The producer's budget or the callback pool is full: wait for an outcome, then try again.
                Err(error) if is_full(&error) && waiting.under_way > 0 => {
                    if let Err(failure) = waiting.count_one(tally, output).await {
                        // Not handed over.
                        tally.dropped(1);
                        return Err(failure);
                    }
                }
                Err(error) => {
                    tally.dropped(1);
                    return Err(Failure::new(tally::words(&error)));
                }
            }
        }
        waiting.under_way += 1;
        waiting.count_those_there(tally, output)?;
    }
    Ok(())
}

fn is_full(error: &SendError) -> bool {
    match error {
        SendError::Overloaded { .. } => true,
        SendError::Rpc(error) => error.code == rpc_core::Code::Overloaded,
        _ => false,
    }
}
