//! The producer: queues messages, collects them into batches, sends the batches, and reports the outcome of
//! each message.
//!
//! partitioner (which queue) -> batcher (which batch) -> sender (which call). The first two are pure. All
//! batches of a queue that are in flight are in one call, so its messages keep the order in which they were
//! pushed.

mod batcher;
mod oneway;
mod partitioner;
mod sender;
mod shared;
mod state;
pub mod transaction;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mq_common::batch::Compression;
use mq_common::ids::{Durability, InvalidName, Offset, QueueNumber, TopicName};
use rpc_core::invoker::CallbackSlot;
use tokio::sync::{TryAcquireError, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use oneway::ProducerStats;
pub use writer::{BatchWriter, PushError, WriterSummary};

use crate::client::{Inner, wall_clock};
use crate::config::ProducerConfig;
use crate::error::SendError;
use crate::message::Message;
use crate::route::TopicRoute;
use batcher::{Class, Entry};
use shared::Shared;
use writer::WriterState;

/// Bytes of the budget that a message takes in addition to its own size.
const MESSAGE_OVERHEAD: usize = 64;

/// A broker's confirmation that it appended a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendReceipt {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// The message's offset; in a receipt for a batch of several messages, the offset of the first one.
    pub base_offset: Offset,
    /// The durability that the message had reached when the broker answered.
    pub durability: Durability,
}

/// The recipient of the outcome of a batch or of a message in it.
pub(crate) enum Waiter {
    /// A task that awaits its message.
    Reply(oneshot::Sender<Result<SendReceipt, SendError>>),
    /// A closure for the responseCallback pool.
    Callback(
        CallbackSlot,
        Box<dyn FnOnce(Result<SendReceipt, SendError>) + Send>,
    ),
    /// A writer that counts whole batches, with the time when this one was started.
    Writer(Arc<WriterState>, std::time::Instant),
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reply(_) => "Reply",
            Self::Callback(..) => "Callback",
            Self::Writer(..) => "Writer",
        })
    }
}

impl Waiter {
    /// Reports the outcome of a batch with this many records.
    fn tell(self, outcome: Result<SendReceipt, SendError>, records: u32) {
        match self {
            // The task may have stopped waiting.
            Self::Reply(reply) => drop(reply.send(outcome)),
            Self::Callback(place, callback) => place.run(move || callback(outcome)),
            Self::Writer(state, since) => state.concluded(outcome, records, since),
        }
    }
}

/// Configures a [`Producer`].
#[derive(Debug)]
#[must_use]
pub struct ProducerBuilder {
    client: Arc<Inner>,
    config: ProducerConfig,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Arc<Inner>) -> Self {
        Self {
            client,
            config: ProducerConfig::default(),
        }
    }

    /// Replaces all settings.
    pub fn config(mut self, config: ProducerConfig) -> Self {
        self.config = config;
        self
    }

    /// See [`ProducerConfig::linger`].
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// See [`ProducerConfig::batch_bytes`].
    pub const fn batch_bytes(mut self, bytes: usize) -> Self {
        self.config.batch_bytes = bytes;
        self
    }

    /// See [`ProducerConfig::batch_records`].
    pub const fn batch_records(mut self, records: u32) -> Self {
        self.config.batch_records = records;
        self
    }

    /// See [`ProducerConfig::in_flight_bytes`].
    pub const fn in_flight_bytes(mut self, bytes: usize) -> Self {
        self.config.in_flight_bytes = bytes;
        self
    }

    /// See [`ProducerConfig::calls_per_broker`].
    pub const fn calls_per_broker(mut self, calls: usize) -> Self {
        self.config.calls_per_broker = calls;
        self
    }

    /// See [`ProducerConfig::durability`].
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = Some(durability);
        self
    }

    /// See [`ProducerConfig::compression`].
    pub const fn compression(mut self, compression: Compression) -> Self {
        self.config.compression = compression;
        self
    }

    /// See [`ProducerConfig::timeout`].
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.config.timeout = timeout;
        self
    }

    /// Builds the producer. Call it within a tokio runtime, which then runs the producer's tasks.
    pub fn build(self) -> Producer {
        let shared = Arc::new(Shared::new(self.client, self.config));
        let gone = CancellationToken::new();
        let alive = Arc::new(gone.clone().drop_guard());
        drop(shared.client.tasks.spawn(Arc::clone(&shared).keep_time(gone)));
        Producer { shared, alive }
    }
}

/// Sends messages; cheap to clone and meant to be shared. When the last clone and the last writer are
/// dropped, queued messages are still sent, and then its tasks end.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    alive: Arc<DropGuard>,
}

impl Producer {
    /// Sends one message and waits for its receipt.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::outcome`] tells whether the message may still have been appended.
    ///
    /// # Cancel safety
    /// Once the message is queued, it is sent even if the future is dropped; before that, it is not sent.
    pub async fn send(&self, message: Message) -> Result<SendReceipt, SendError> {
        let receipt = self.enqueue(&message).await?;
        receipt.await.unwrap_or(Err(SendError::Closed))
    }

    /// Sends messages and waits for all outcomes, which are returned in the order of the messages.
    ///
    /// # Cancel safety
    /// Messages that are queued when the future is dropped are still sent; the others are not.
    pub async fn send_all(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Result<SendReceipt, SendError>> {
        let mut queued = Vec::new();
        for message in messages {
            queued.push(self.enqueue(&message).await);
        }
        let mut receipts = Vec::with_capacity(queued.len());
        for receipt in queued {
            receipts.push(match receipt {
                Ok(receipt) => receipt.await.unwrap_or(Err(SendError::Closed)),
                Err(error) => Err(error),
            });
        }
        receipts
    }

    /// Queues one message and returns. It is sent in the background, at most once; only [`Producer::stats`]
    /// counts its outcome.
    ///
    /// # Errors
    /// [`SendError::Overloaded`] if the producer's byte budget is used up; [`SendError::Route`] if the topic
    /// is unknown or cannot be looked up (the first send to a topic waits for the lookup);
    /// [`SendError::Message`] if the message breaks a limit; [`SendError::Closed`] if the client was shut
    /// down. The message was not queued.
    ///
    /// # Cancel safety
    /// Nothing is queued until it returns.
    pub async fn send_oneway(&self, message: Message) -> Result<(), SendError> {
        let deadline = Instant::now() + self.shared.config.timeout;
        let route = self.shared.client.routes.topic(&message.topic, deadline).await?;
        let cost = self.cost(&message);
        self.take_budget(cost)?;
        self.push(&route, &message, Class::Oneway, None, cost)
    }

    /// Queues one message and returns; `callback` gets its outcome on the invoker's `responseCallback` pool,
    /// where it may block. After `Ok` it is called exactly once. The order of callbacks is not guaranteed.
    ///
    /// # Errors
    /// [`SendError::Overloaded`] if the producer's byte budget is used up, [`SendError::Rpc`] with
    /// [`Code::Overloaded`] if the callback pool has no free slot, [`SendError::Route`] if the topic is
    /// unknown or cannot be looked up, [`SendError::Message`] if the message breaks a limit,
    /// [`SendError::Closed`] if the client was shut down. Nothing was queued, and `callback` is dropped
    /// without being called.
    ///
    /// [`Code::Overloaded`]: rpc_core::Code::Overloaded
    ///
    /// # Cancel safety
    /// Nothing is queued until it returns.
    pub async fn send_callback<F>(&self, message: Message, callback: F) -> Result<(), SendError>
    where
        F: FnOnce(Result<SendReceipt, SendError>) + Send + 'static,
    {
        let deadline = Instant::now() + self.shared.config.timeout;
        let route = self.shared.client.routes.topic(&message.topic, deadline).await?;
        let place = self
            .shared
            .client
            .invoker
            .reserve_callback()
            .map_err(SendError::Rpc)?;
        let cost = self.cost(&message);
        self.take_budget(cost)?;
        let waiter = Waiter::Callback(place, Box::new(callback));
        self.push(&route, &message, Class::Confirmed, Some(waiter), cost)
    }

    /// A writer for many small messages to one topic, without a future, an allocation or a clock read for
    /// each of them. Each writer collects its own batches; all writers share the producer's budget and calls.
    ///
    /// # Errors
    /// `Name` if the topic's name is invalid; `Send` with `Route` if the topic is unknown or cannot be looked
    /// up.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn writer(&self, topic: impl Into<String> + Send) -> Result<BatchWriter, WriterError> {
        let topic = TopicName::new(topic)?;
        let deadline = Instant::now() + self.shared.config.timeout;
        let route = self
            .shared
            .client
            .routes
            .topic(&topic, deadline)
            .await
            .map_err(SendError::from)?;
        Ok(BatchWriter::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.alive),
            route,
        ))
    }

    /// Sends all queued messages without lingering, and waits until nothing is queued or in flight.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait only.
    pub async fn flush(&self) {
        loop {
            let idle = self.shared.idle.notified();
            self.shared.flush();
            if self.shared.is_idle() {
                return;
            }
            idle.await;
        }
    }

    /// How many of its messages had which outcome so far.
    #[must_use]
    pub fn stats(&self) -> ProducerStats {
        self.shared.counters.stats()
    }

    /// Queues one message as soon as the budget has room for it; the receiver gets its outcome.
    async fn enqueue(
        &self,
        message: &Message,
    ) -> Result<oneshot::Receiver<Result<SendReceipt, SendError>>, SendError> {
        let timeout = self.shared.config.timeout;
        let deadline = Instant::now() + timeout;
        let route = self.shared.client.routes.topic(&message.topic, deadline).await?;
        let cost = self.cost(message);
        let permits = self.shared.budget.acquire_many(permits(cost));
        match tokio::time::timeout_at(deadline, permits).await {
            Ok(Ok(permit)) => permit.forget(),
            Ok(Err(_)) => return Err(SendError::Closed),
            Err(_) => {
                return Err(SendError::TimedOut {
                    after: timeout,
                    reason: "the bytes queued and in flight stayed at their limit".to_owned(),
                });
            }
        }
        let (reply, receipt) = oneshot::channel();
        self.push(
            &route,
            message,
            Class::Confirmed,
            Some(Waiter::Reply(reply)),
            cost,
        )?;
        Ok(receipt)
    }

    fn push(
        &self,
        route: &Arc<TopicRoute>,
        message: &Message,
        class: Class,
        waiter: Option<Waiter>,
        cost: usize,
    ) -> Result<(), SendError> {
        let place = match partitioner::place(route, message) {
            Ok(place) => place,
            Err(error) => {
                self.shared.budget.add_permits(cost);
                return Err(error.into());
            }
        };
        let entry = Entry {
            record: message.record(wall_clock()),
            waiter,
            cost,
            pinned: place != partitioner::Place::Free,
        };
        self.shared.push(route, class, place, entry)
    }

    /// The bytes of the budget that the message takes; one larger than the budget takes all of it.
    fn cost(&self, message: &Message) -> usize {
        let bytes = message.record(mq_common::ids::Timestamp(0)).bytes() + MESSAGE_OVERHEAD;
        bytes.min(self.shared.config.in_flight_bytes)
    }

    fn take_budget(&self, cost: usize) -> Result<(), SendError> {
        match self.shared.budget.try_acquire_many(permits(cost)) {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(TryAcquireError::Closed) => Err(SendError::Closed),
            Err(TryAcquireError::NoPermits) => Err(SendError::Overloaded {
                limit: self.shared.config.in_flight_bytes,
            }),
        }
    }
}

/// Why a writer could not be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    /// The topic's name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The topic's queues could not be located.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// The budget never exceeds `u32::MAX`, and no cost exceeds the budget.
fn permits(cost: usize) -> u32 {
    u32::try_from(cost).unwrap_or(u32::MAX)
}
