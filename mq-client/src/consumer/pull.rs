//! The pull form: the application asks for messages and acks them itself.

use std::collections::VecDeque;
use std::sync::Arc;

use mq_common::ids::{Offset, QueueNumber, ShardName};
use tokio::sync::mpsc;

use super::dispatch::{Chunk, Delivery};
use super::engine::Engine;
use super::owned::Owned;
use crate::error::ConsumeError;

/// Chunks that wait for the application; pollers wait behind a full channel.
pub(crate) const CHUNKS_MAX: usize = 4;

/// A member that the application pulls messages from. While it holds one (until the next [`Subscription::next`]) the
/// message's queue is not given back; a queue that is to be given back also waits three seconds for acks of what was
/// taken. Close it with [`Subscription::close`]; dropping it leaves the group in the background.
#[derive(Debug)]
pub struct Subscription {
    engine: Arc<Engine>,
    chunks: mpsc::Receiver<Chunk>,
    /// What `next` is in the middle of.
    chunk: Option<Chunk>,
    ready: VecDeque<Delivery>,
    /// The queue of the message that the application works on.
    working: Option<Arc<Owned>>,
}

impl Subscription {
    pub(crate) const fn new(engine: Arc<Engine>, chunks: mpsc::Receiver<Chunk>) -> Self {
        Self {
            engine,
            chunks,
            chunk: None,
            ready: VecDeque::new(),
            working: None,
        }
    }

    /// The next message, as soon as there is one; messages of one queue come in order. `None` when the subscription has
    /// ended: [`Subscription::close`] then says why.
    ///
    /// # Cancel safety
    /// Safe: no message is lost by dropping the future.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.rest();
        loop {
            while let Some(delivery) = self.ready.pop_front() {
                if delivery.source.begin(delivery.offset) {
                    self.working = Some(Arc::clone(&delivery.source));
                    return Some(delivery);
                }
            }
            if let Some(chunk) = &mut self.chunk {
                if let Some(ready) = chunk.next_batch(&self.engine) {
                    self.ready = ready;
                    continue;
                }
                chunk.owned.passed(chunk.next);
                self.chunk = None;
            }
            self.chunk = Some(self.chunks.recv().await?);
        }
    }

    /// What one poll brought of one queue, undecoded: for those who take many messages at once. Do not mix with
    /// [`Subscription::next`].
    ///
    /// # Cancel safety
    /// Safe: nothing is lost by dropping the future.
    pub async fn poll(&mut self) -> Option<Chunk> {
        self.rest();
        loop {
            let chunk = self.chunks.recv().await?;
            let last = Offset(chunk.next.0.saturating_sub(1));
            if chunk.owned.begin(last) {
                self.working = Some(Arc::clone(&chunk.owned));
                return Some(chunk);
            }
        }
    }

    /// Everything of the message's queue up to and with it is done. The broker is told in the background; see
    /// [`Subscription::commit`].
    ///
    /// # Errors
    /// `Lost`: the queue went to another member, which gets the message again.
    pub fn ack(&self, message: &Delivery) -> Result<(), ConsumeError> {
        Self::done(&message.source, Offset(message.offset.0 + 1))
    }

    /// Everything of the chunk's queue up to its end is done.
    ///
    /// # Errors
    /// As for [`Subscription::ack`].
    pub fn ack_chunk(&self, chunk: &Chunk) -> Result<(), ConsumeError> {
        Self::done(&chunk.owned, chunk.next)
    }

    /// Waits until every ack has reached its broker. Does not end while a broker is away: set a time for it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait only.
    pub async fn commit(&self) {
        self.engine.settle().await;
    }

    /// The queues that the member owns now, sorted.
    #[must_use]
    pub fn assigned(&self) -> Vec<QueueNumber> {
        self.engine.assigned()
    }

    /// The brokers that have queues of the topic and do not answer, sorted; see [`BrokerSilent`](super::ConsumerEvent::BrokerSilent).
    #[must_use]
    pub fn silent(&self) -> Vec<ShardName> {
        self.engine.silent()
    }

    /// Tells the last acks, leaves the group, and waits for that.
    ///
    /// # Errors
    /// Why the subscription had ended by itself, if it had.
    pub async fn close(mut self) -> Result<(), ConsumeError> {
        self.rest();
        self.chunks.close();
        self.engine.shut_down().await
    }

    /// Why it ended by itself, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<ConsumeError> {
        self.engine.failure()
    }

    fn done(owned: &Owned, next: Offset) -> Result<(), ConsumeError> {
        match owned.done(next) {
            true => Ok(()),
            false => Err(ConsumeError::Lost { queue: owned.queue.0 }),
        }
    }

    fn rest(&mut self) {
        if let Some(owned) = self.working.take() {
            owned.end();
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.rest();
        self.engine.stop.cancel();
    }
}
