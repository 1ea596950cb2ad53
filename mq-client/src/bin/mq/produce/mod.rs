//! `mq produce`: lines or a file become messages.

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
  printf 'k1:\\n' | mq produce prices --key-separator :  # nothing behind a key: in a topic that compacts, it deletes k1

Messages without a key go to one queue until its batch is full or under way, then to the next, so a few
lines may all lie in one queue; lines of a key stay together in the queue of the key.

Exit status 0 means that every message was acknowledged (with `--mode oneway`: handed over).";

/// What to send, where and how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The topic.
    topic: TopicName,
    /// Read this file instead of stdin; without `--lines` it is one message.
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Each line of the file is a message (stdin is always read so).
    #[arg(long, requires = "file")]
    lines: bool,
    /// What stands before this text in a line is its key; lines of one key go to one queue, in order.
    #[arg(long, value_name = "S", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// A tag for every message.
    #[arg(long, value_name = "T")]
    tag: Option<String>,
    /// How to send.
    #[arg(long, value_enum, default_value = "sync")]
    mode: Mode,
    /// Durability to reach before a message counts as acknowledged: memory or fsynced; the topic's own by default.
    #[arg(long, value_name = "L")]
    durability: Option<Durability>,
    /// Print a receipt for each message: topic, queue, offset, durability.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Waits for the receipts of what was read before it sends more.
    Sync,
    /// Sends and asks for no receipt; what is lost on the way stays lost.
    Oneway,
    /// Goes on at once; receipts come in the background.
    Callback,
    /// All of the input in one transaction, committed at its end; at most 8 MiB.
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
            remark("mq: `--mode oneway` asks for no receipts, so there are none to print");
        }
        (true, _) => output.header(&tally::RECEIPT_NAMES)?,
    }
    // Receipts and a bar would share the screen, and a person who types needs none.
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
        // Nothing was sent that could have told: a wrong name is a mistake without input too.
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
            // The channel has a place for it, and its receiver is alive.
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

/// What was read together is sent together, and its receipts awaited.
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
        // All of them were sent: all are counted, also behind one that ends the command.
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
                // The producer is full: a file can wait, so that nothing is dropped here.
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

/// Outcomes that wait to be counted. The callback pool's threads wait when it is full.
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
    // What is under way has an outcome all the same.
    while waiting.under_way > 0 {
        sent = sent.and(waiting.count_one(tally, output).await);
    }
    sent
}

type SendOutcome = Result<SendReceipt, SendError>;

/// Outcomes that are still to come.
struct Waiting<'a> {
    receiver: &'a mut mpsc::Receiver<SendOutcome>,
    under_way: usize,
}

impl Waiting<'_> {
    async fn count_one(&mut self, tally: &mut Tally, output: &mut Output) -> Outcome {
        // The sender outlives this: a message comes, or the callback was dropped uncalled, which it never is.
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
                // Nobody listens any more only when the command has failed already.
                drop(sender.blocking_send(outcome));
            });
            match sent.await {
                Ok(()) => break,
                // No place in the producer or in the callback pool: take a receipt, try again.
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
