//! From what a poll brought to the application: decoded, in order, one message of a queue at a time. A message is done
//! when its handler says so; one whose handler failed stays where it is and is handed over again.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mq_common::batch::{BatchError, Record, Stamp, StampedBatch};
use mq_common::ids::{Offset, QueueNumber, Timestamp, TopicName};
use tokio::sync::mpsc;

use super::engine::Engine;
use super::event::ConsumerEvent;
use super::owned::Owned;
use crate::message::owned as owned_properties;
use crate::route::lock;

/// One message as it reaches the application. Cloning copies no payload.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// Its place in the queue.
    pub offset: Offset,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its tag.
    pub tag: Option<String>,
    /// The producer's own pairs.
    pub properties: Vec<(String, String)>,
    /// The message itself.
    pub payload: Bytes,
    /// When the producer made it.
    pub time: Timestamp,
    /// When the broker appended it.
    pub append_time: Timestamp,
    /// It became visible by the commit of a transaction.
    pub transactional: bool,
    /// How often this process was given it, from 1.
    pub attempt: u32,
    pub(crate) source: Arc<Owned>,
}

impl Delivery {
    fn new(
        topic: &TopicName,
        source: &Arc<Owned>,
        stamp: &Stamp,
        offset: Offset,
        whole: &Bytes,
        record: &Record<'_>,
    ) -> Self {
        Self {
            topic: topic.clone(),
            queue: stamp.queue,
            offset,
            key: record.key.map(|key| whole.slice_ref(key)),
            tag: record.tag.map(str::to_owned),
            properties: owned_properties(record.properties),
            payload: whole.slice_ref(record.payload),
            time: record.time,
            append_time: stamp.append_time,
            transactional: stamp.flags & Stamp::TRANSACTIONAL != 0,
            attempt: 1,
            source: Arc::clone(source),
        }
    }

    /// Whether it deletes its key in a topic that compacts: a key and no payload.
    #[must_use]
    pub const fn is_tombstone(&self) -> bool {
        self.key.is_some() && self.payload.is_empty()
    }

    /// The owner's epoch, as a fencing token for the application's own store: `(term, counter)`, later owners are greater.
    #[must_use]
    pub fn owner_epoch(&self) -> mq_common::ids::OwnerEpoch {
        self.source.epoch
    }
}

/// Why a handler failed, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError(pub String);

impl HandlerError {
    /// The result of a handler with whatever error it has.
    ///
    /// # Errors
    /// The same error in words.
    pub fn of<E: fmt::Display>(result: Result<(), E>) -> Result<(), Self> {
        result.map_err(|error| Self(error.to_string()))
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What messages are handed to. `Ok` = done, it is acked; `Err` or a panic = it is handed over again after a wait, and
/// the messages behind it wait. A handler is not interrupted by a stop: it is waited for.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Works on one message.
    async fn handle(&self, message: &Delivery) -> Result<(), HandlerError>;
}

/// A closure as a handler.
pub(crate) struct FnHandler<F>(pub(crate) F);

#[async_trait]
impl<F, R, E> Handler for FnHandler<F>
where
    F: Fn(Delivery) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), E>> + Send,
    E: fmt::Display + Send,
{
    async fn handle(&self, message: &Delivery) -> Result<(), HandlerError> {
        (self.0)(message.clone())
            .await
            .map_err(|error| HandlerError(error.to_string()))
    }
}

/// What one poll brought of one queue; the batches are checked but not decoded.
#[derive(Debug)]
pub struct Chunk {
    pub(crate) owned: Arc<Owned>,
    pub(crate) topic: TopicName,
    pub(crate) from: Offset,
    pub(crate) next: Offset,
    pub(crate) end: Offset,
    pub(crate) batches: Vec<StampedBatch>,
}

impl Chunk {
    /// The topic.
    #[must_use]
    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> QueueNumber {
        self.owned.queue
    }

    /// First offset behind it.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.next
    }

    /// End of the queue when it was served.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.end
    }

    /// Calls `f` with offset and record of each message, in order, without copying any.
    ///
    /// # Errors
    /// A record cannot be read; those before it were given to `f`.
    pub fn for_each(&self, mut f: impl FnMut(Offset, &Record<'_>)) -> Result<(), BatchError> {
        for batch in &self.batches {
            let records = batch.batch.records()?;
            for (offset, record) in (batch.stamp.base_offset.0..).zip(&records) {
                let record = record?;
                if offset >= self.from.0 {
                    f(Offset(offset), &record);
                }
            }
        }
        Ok(())
    }

    /// The messages of one of its batches.
    fn decode(&self, batch: &StampedBatch) -> Result<VecDeque<Delivery>, BatchError> {
        let records = batch.batch.records()?;
        let mut deliveries = VecDeque::with_capacity(batch.batch.record_count().min(4096) as usize);
        for (offset, record) in (batch.stamp.base_offset.0..).zip(&records) {
            let (record, offset) = (record?, Offset(offset));
            if offset >= self.from {
                let whole = records.bytes();
                deliveries.push_back(Delivery::new(
                    &self.topic,
                    &self.owned,
                    &batch.stamp,
                    offset,
                    whole,
                    &record,
                ));
            }
        }
        Ok(deliveries)
    }

    /// The messages of its first batch, which it then no longer has; those that cannot be read are reported and empty.
    pub(crate) fn next_batch(&mut self, engine: &Engine) -> Option<VecDeque<Delivery>> {
        if self.batches.is_empty() {
            return None;
        }
        let batch = self.batches.remove(0);
        let decoded = self.decode(&batch);
        Some(decoded.unwrap_or_else(|error| {
            // Its checksum held, so its producer wrote it so: fetching it again would not mend it.
            engine.event(ConsumerEvent::Hole {
                queue: self.queue(),
                from: batch.stamp.base_offset,
                to: batch.end(),
            });
            tracing::error!(queue = %self.queue(), offset = %batch.stamp.base_offset, %error, "a batch cannot be read");
            VecDeque::new()
        }))
    }
}

/// Where chunks go.
pub(crate) enum Sink {
    /// To a handler, within the polling task.
    Handler(Arc<dyn Handler>),
    /// To a subscription that asks for them.
    Subscription(Mutex<Option<mpsc::Sender<Chunk>>>),
}

impl Sink {
    pub(crate) async fn take(&self, engine: &Engine, chunk: Chunk) {
        match self {
            Self::Handler(handler) => work(engine, handler.as_ref(), chunk).await,
            Self::Subscription(sender) => {
                let Some(sender) = lock(sender).clone() else {
                    return;
                };
                // A full channel holds this poller up, and nobody else.
                tokio::select! {
                    sent = sender.send(chunk) => if sent.is_err() {
                        engine.stop.cancel();
                    },
                    () = engine.stop.cancelled() => {}
                }
            }
        }
    }

    /// Nothing comes any more.
    pub(crate) fn close(&self) {
        if let Self::Subscription(sender) = self {
            lock(sender).take();
        }
    }
}

/// Hands a chunk's messages to the handler, until one must not be.
async fn work(engine: &Engine, handler: &dyn Handler, mut chunk: Chunk) {
    while let Some(batch) = chunk.next_batch(engine) {
        for message in batch {
            if !work_on(engine, handler, message).await {
                return;
            }
        }
    }
    // Behind holes at its end, too.
    chunk.owned.done(chunk.next);
}

/// One message, as often as it takes; false if the queue is going or the consumer stops.
async fn work_on(engine: &Engine, handler: &dyn Handler, mut message: Delivery) -> bool {
    let source = Arc::clone(&message.source);
    let mut wait = engine.config.retry_first;
    loop {
        if engine.stop.is_cancelled() || !source.begin(message.offset) {
            return false;
        }
        let handled = without_panic(handler.handle(&message)).await;
        let Err(error) = handled else {
            let kept = source.done(Offset(message.offset.0 + 1));
            source.end();
            return kept;
        };
        source.end();
        engine.event(ConsumerEvent::HandlerFailed {
            queue: message.queue,
            offset: message.offset,
            attempt: message.attempt,
            reason: error.0,
        });
        let jitter = 0.8 + 0.4 * fastrand::f64();
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
            () = engine.stop.cancelled() => return false,
            () = source.ended.cancelled() => return false,
        }
        message.attempt += 1;
        wait = wait
            .saturating_mul(2)
            .min(engine.config.retry_max.max(Duration::from_millis(1)));
    }
}

/// Runs a handler's future; a panic is an error like any other.
async fn without_panic(future: impl Future<Output = Result<(), HandlerError>>) -> Result<(), HandlerError> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(HandlerError("the handler panicked".to_owned()))))
    })
    .await
}
