//! Delivers the messages of a poll to the application: decoded, in order, one message of a queue at a time. A
//! message is done when its handler returns `Ok`; one whose handler failed is handed to it again before the
//! next one of its queue.

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

/// A message as the application receives it. Cloning copies no payload.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// Its offset in the queue.
    pub offset: Offset,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its tag.
    pub tag: Option<String>,
    /// Name-value pairs set by the producer.
    pub properties: Vec<(String, String)>,
    /// The body.
    pub payload: Bytes,
    /// When the producer created it.
    pub time: Timestamp,
    /// When the broker appended it.
    pub append_time: Timestamp,
    /// Whether it became visible by the commit of a transaction.
    pub transactional: bool,
    /// How often it was delivered to this process, from 1.
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

    /// Whether it is a tombstone, which deletes its key in a topic with key compaction: a key and an empty
    /// payload.
    #[must_use]
    pub const fn is_tombstone(&self) -> bool {
        self.key.is_some() && self.payload.is_empty()
    }

    /// The epoch of the queue's owner, as a fencing token for the application's own store: `(term, counter)`;
    /// later owners have greater ones.
    #[must_use]
    pub fn owner_epoch(&self) -> mq_common::ids::OwnerEpoch {
        self.source.epoch
    }
}

/// Why a handler failed, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError(pub String);

impl HandlerError {
    /// Converts a handler's result, whatever its error type.
    ///
    /// # Errors
    /// The same error as text.
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

/// Receives messages. After `Ok` the message is acked. After `Err` or a panic it is handed to the handler
/// again after a pause, and the messages after it in its queue wait. Stopping the consumer does not interrupt
/// a handler: it waits for it.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles one message.
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

/// The messages of one queue in the response to one poll; the batches are checked but not decoded.
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

    /// The first offset after it.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.next
    }

    /// The end of the queue when the broker answered.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.end
    }

    /// Calls `f` with the offset and record of each message, in order, without copying them.
    ///
    /// # Errors
    /// A record cannot be read; `f` was called for those before it.
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

    /// Removes its first batch and returns the messages in it; none if the batch cannot be read, which is
    /// reported.
    pub(crate) fn next_batch(&mut self, engine: &Engine) -> Option<VecDeque<Delivery>> {
        if self.batches.is_empty() {
            return None;
        }
        let batch = self.batches.remove(0);
        let decoded = self.decode(&batch);
        Some(decoded.unwrap_or_else(|error| {
            // Its checksum is right, so the producer wrote it like this: fetching it again would not help.
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

/// The destination of chunks.
pub(crate) enum Sink {
    /// A handler, called in the polling task.
    Handler(Arc<dyn Handler>),
    /// A subscription that polls for them.
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
                // A full channel delays this poller only.
                tokio::select! {
                    sent = sender.send(chunk) => if sent.is_err() {
                        engine.stop.cancel();
                    },
                    () = engine.stop.cancelled() => {}
                }
            }
        }
    }

    /// No more chunks will come.
    pub(crate) fn close(&self) {
        if let Self::Subscription(sender) = self {
            lock(sender).take();
        }
    }
}

/// Hands a chunk's messages to the handler, until the queue is given back or the consumer stops.
async fn work(engine: &Engine, handler: &dyn Handler, mut chunk: Chunk) {
    while let Some(batch) = chunk.next_batch(engine) {
        for message in batch {
            if !work_on(engine, handler, message).await {
                return;
            }
        }
    }
    // Including holes at its end.
    chunk.owned.done(chunk.next);
}

/// Hands over one message until the handler succeeds; false if the queue is given back or the consumer stops
/// first.
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

/// Runs a handler's future; a panic becomes an error.
async fn without_panic(future: impl Future<Output = Result<(), HandlerError>>) -> Result<(), HandlerError> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(HandlerError("the handler panicked".to_owned()))))
    })
    .await
}
