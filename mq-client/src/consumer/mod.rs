//! Consumers of groups in `stream` mode: each queue has one owner, its messages are delivered in order, and a
//! cumulative cursor records the group's progress.
//!
//! member (heartbeats, acks, assignment; one per broker) -> poller (long polls; several per broker) ->
//! dispatch (handler) or pull (subscription). engine connects them.

mod dispatch;
mod engine;
mod event;
mod member;
mod owned;
mod poller;
mod pull;
mod registered;
mod silence;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_common::api::group::StartAt;
use mq_common::ids::{GroupName, QueueNumber, ShardName, TopicName};
use tokio::sync::mpsc;

pub use dispatch::{Chunk, Delivery, Handler, HandlerError};
pub use event::ConsumerEvent;
pub use pull::Subscription;
pub use registered::{ConsumerRecord, RunningConsumers};

use crate::client::Inner;
use crate::config::{ConsumerConfig, OutOfRange};
use crate::error::ConsumeError;
use dispatch::{FnHandler, Sink};
use engine::{Engine, Observer};

/// Configures a member of a consumer group. Start it with [`ConsumerBuilder::run`] (messages are handed to a
/// closure) or [`ConsumerBuilder::subscribe`] (the application asks for them).
#[must_use]
pub struct ConsumerBuilder {
    client: Arc<Inner>,
    topic: TopicName,
    group: GroupName,
    config: ConsumerConfig,
    observer: Option<Observer>,
}

impl fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Arc<Inner>, topic: TopicName, group: GroupName) -> Self {
        Self {
            client,
            topic,
            group,
            config: ConsumerConfig::default(),
            observer: None,
        }
    }

    /// Replaces all settings.
    pub const fn config(mut self, config: ConsumerConfig) -> Self {
        self.config = config;
        self
    }

    /// See [`ConsumerConfig::start`].
    pub const fn start_at(mut self, start: StartAt) -> Self {
        self.config.start = start;
        self
    }

    /// See [`ConsumerConfig::threads`].
    pub const fn threads(mut self, threads: usize) -> Self {
        self.config.threads = threads;
        self
    }

    /// See [`ConsumerConfig::fetch_bytes`].
    pub const fn fetch_bytes(mut self, bytes: u32) -> Self {
        self.config.fetch_bytes = bytes;
        self
    }

    /// See [`ConsumerConfig::out_of_range`].
    pub const fn out_of_range(mut self, policy: OutOfRange) -> Self {
        self.config.out_of_range = policy;
        self
    }

    /// See [`ConsumerConfig::retry_first`].
    pub const fn retry(mut self, first: Duration, max: Duration) -> Self {
        self.config.retry_first = first;
        self.config.retry_max = max;
        self
    }

    /// Passes the consumer's events to `observer` instead of the log. It is called from the consumer's tasks
    /// and must not block.
    pub fn on_event(mut self, observer: impl Fn(ConsumerEvent) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Joins the group and hands messages to `handler` until [`Consumer::stop`]. Messages of one queue are
    /// handled one after another, those of different queues concurrently, up to [`ConsumerConfig::threads`]
    /// per broker.
    ///
    /// # Errors
    /// [`ConsumeError`]: the topic is unknown, no broker answers, or a broker refuses the member.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was started; brokers where it had joined drop the member when its
    /// session expires.
    pub async fn run<F, R, E>(self, handler: F) -> Result<Consumer, ConsumeError>
    where
        F: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        self.run_handler(Arc::new(FnHandler(handler))).await
    }

    /// As [`ConsumerBuilder::run`], with a value that implements [`Handler`].
    ///
    /// # Errors
    /// As for [`ConsumerBuilder::run`].
    ///
    /// # Cancel safety
    /// Dropping the future stops what was started; brokers where it had joined drop the member when its
    /// session expires.
    pub async fn run_handler(self, handler: Arc<dyn Handler>) -> Result<Consumer, ConsumeError> {
        let engine = self.engine(Sink::Handler(handler));
        let guard = Stopper(Arc::clone(&engine));
        engine.start().await?;
        Ok(Consumer { guard })
    }

    /// Joins the group; the application polls for messages and acks them.
    ///
    /// # Errors
    /// As for [`ConsumerBuilder::run`].
    ///
    /// # Cancel safety
    /// Dropping the future stops what was started; brokers where it had joined drop the member when its
    /// session expires.
    pub async fn subscribe(self) -> Result<Subscription, ConsumeError> {
        let (sender, chunks) = mpsc::channel(pull::CHUNKS_MAX);
        let engine = self.engine(Sink::Subscription(Mutex::new(Some(sender))));
        let subscription = Subscription::new(Arc::clone(&engine), chunks);
        engine.start().await?;
        Ok(subscription)
    }

    fn engine(self, sink: Sink) -> Arc<Engine> {
        let names = (self.topic, self.group);
        Arc::new(Engine::new(self.client, self.config, names, sink, self.observer))
    }
}

/// Stops its consumer when it is dropped.
#[derive(Debug)]
struct Stopper(Arc<Engine>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.stop.cancel();
    }
}

/// A running consumer. Dropping it stops it in the background.
#[derive(Debug)]
#[must_use = "dropping it stops it"]
pub struct Consumer {
    guard: Stopper,
}

impl Consumer {
    /// Stops polling, waits for handlers that are working on a message, sends the last acks and leaves the
    /// group.
    ///
    /// # Errors
    /// Why the consumer had stopped by itself, if it had.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the stop: it continues in the background.
    pub async fn stop(self) -> Result<(), ConsumeError> {
        self.guard.0.shut_down().await
    }

    /// Waits until the consumer has stopped by itself, or the client was shut down.
    ///
    /// # Errors
    /// Why it stopped.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait only.
    pub async fn stopped(&self) -> Result<(), ConsumeError> {
        self.guard.0.stopped().await
    }

    /// The queues assigned to it now, sorted.
    #[must_use]
    pub fn assigned(&self) -> Vec<QueueNumber> {
        self.guard.0.assigned()
    }

    /// The brokers that have queues of the topic and do not answer, sorted; see
    /// [`ConsumerEvent::BrokerSilent`].
    #[must_use]
    pub fn silent(&self) -> Vec<ShardName> {
        self.guard.0.silent()
    }
}
