//! `mq bench latency`: an open loop. Messages are due at fixed times regardless of the broker, and each one's
//! time is measured from when it was due, so a stall is not hidden by the messages that it delayed.
//!
//! A separate thread keeps the schedule: the runtime's timer has a resolution of milliseconds, which is as
//! long as a message takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use mq_client::{Client, Message, Subscription};
use mq_common::api::group::StartAt;
use mq_common::ids::TopicName;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::figures::{Figures, Times};
use super::{own_group, payload};
use crate::fail::{Failure, Outcome};
use crate::output::Progress;

/// The load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) rate: u64,
    pub(super) duration: Duration,
    pub(super) size: usize,
}

/// The first bytes of a message contain when it was due, in nanoseconds since the start.
const STAMP_BYTES: usize = 8;
/// The step of the schedule: all messages due by then are sent together. At 10,000 messages per second it is
/// one per step.
const STEP: Duration = Duration::from_micros(100);
/// Messages still missing this long after the last one was sent count as errors.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Runs it.
pub(super) async fn run(topic: &TopicName, load: &Load, client: &Client) -> Outcome<Figures> {
    if load.size < STAMP_BYTES {
        return Err(Failure::Usage(format!(
            "a message needs {STAMP_BYTES} bytes for its timestamp; `--size {}` is less",
            load.size
        )));
    }
    let mut subscription = client
        .consumer(topic.clone(), own_group())?
        .start_at(StartAt::Latest)
        .subscribe()
        .await?;
    wait_for_queues(client, topic, &subscription).await?;

    let total = u64::try_from(load.duration.as_micros())
        .unwrap_or(u64::MAX)
        .saturating_mul(load.rate)
        / 1_000_000;
    let failed = Arc::new(AtomicU64::new(0));
    let progress = Progress::new("latency", Some(total));
    let begun = Instant::now();
    let sender = Sending {
        client: client.clone(),
        topic: topic.clone(),
        load: *load,
        total,
        begun,
        failed: Arc::clone(&failed),
    };
    let runtime = Handle::current();
    let (keep_on, stop) = sync_channel(1);
    let sending = tokio::task::spawn_blocking(move || sender.run(&runtime, &stop));
    let mut times = Times::new()?;
    let deadline = begun + load.duration + LAST_WAIT;
    let mut count = 0;
    while count + failed.load(Ordering::Relaxed) < total {
        let Ok(Some(chunk)) = tokio::time::timeout_at(deadline.into(), subscription.poll()).await else {
            break;
        };
        let arrived = begun.elapsed();
        let before = count;
        let read = chunk.for_each(|_, record| {
            if let Some((due, _)) = record.payload.split_first_chunk::<STAMP_BYTES>() {
                times.record(
                    arrived.saturating_sub(Duration::from_nanos(u64::from_be_bytes(*due))),
                    1,
                );
                count += 1;
            }
        });
        if read.is_err() || subscription.ack_chunk(&chunk).is_err() {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        progress.add(count - before);
    }
    let elapsed = begun.elapsed();
    progress.finish();
    drop(keep_on);
    let receipts = sending.await.map_err(|error| Failure::new(error.to_string()))?;
    receipts.join_all().await;
    subscription.close().await?;
    let errors = total.saturating_sub(count);
    Ok(Figures {
        messages: count,
        size: load.size as f64,
        elapsed,
        times,
        errors,
        first_error: (errors > 0).then(|| format!("{count} of {total} messages came")),
    })
}

/// Waits until the consumer owns every queue: messages sent before that would be late.
async fn wait_for_queues(client: &Client, topic: &TopicName, subscription: &Subscription) -> Outcome {
    let described = client.admin().describe_topic(topic.clone()).await?;
    let queues = described
        .items
        .first()
        .map_or(0, |topic| topic.topic.queues.len());
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let deadline = Instant::now() + LAST_WAIT;
    while subscription.assigned().len() < queues {
        if Instant::now() > deadline {
            let owned = subscription.assigned().len();
            return Err(Failure::new(format!(
                "only {owned} of {queues} queues were assigned within {LAST_WAIT:?}"
            )));
        }
        tick.tick().await;
    }
    Ok(())
}

struct Sending {
    client: Client,
    topic: TopicName,
    load: Load,
    total: u64,
    begun: Instant,
    failed: Arc<AtomicU64>,
}

impl Sending {
    /// Blocks until the last message is sent or the receiver has stopped; receipts may still be outstanding.
    fn run(self, runtime: &Handle, stop: &Receiver<()>) -> JoinSet<()> {
        let entered = runtime.enter();
        let producer = self.client.producer().build();
        let filling = payload(self.load.size - STAMP_BYTES);
        let mut receipts = JoinSet::new();
        let mut sent = 0;
        while sent < self.total && stop.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
            let due = self.due(self.begun.elapsed()).min(self.total);
            let messages: Vec<Message> = (sent..due).map(|index| self.message(index, &filling)).collect();
            sent = due;
            if !messages.is_empty() {
                let (producer, failed) = (producer.clone(), Arc::clone(&self.failed));
                receipts.spawn(async move {
                    let outcomes = producer.send_all(messages).await;
                    let count = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                    failed.fetch_add(count as u64, Ordering::Relaxed);
                });
            }
            while receipts.try_join_next().is_some() {}
        }
        drop(entered);
        receipts
    }

    /// How many messages are due after this time.
    fn due(&self, elapsed: Duration) -> u64 {
        let due = elapsed.as_nanos() * u128::from(self.load.rate) / 1_000_000_000;
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    fn message(&self, index: u64, filling: &[u8]) -> Message {
        let due = u128::from(index) * 1_000_000_000 / u128::from(self.load.rate);
        let mut body = Vec::with_capacity(self.load.size);
        body.extend_from_slice(&u64::try_from(due).unwrap_or(u64::MAX).to_be_bytes());
        body.extend_from_slice(filling);
        Message::to(self.topic.clone(), body)
    }
}
