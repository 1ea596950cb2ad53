//! Pull consumers: the application polls for messages and acks them itself.

use std::collections::VecDeque;
use std::sync::Arc;

use mq_common::ids::{Offset, QueueNumber, ShardName};
use tokio::sync::mpsc;

use super::dispatch::{Chunk, Delivery};
use super::engine::Engine;
use super::owned::Owned;
use crate::error::ConsumeError;

/// Chunks that wait for the application; pollers wait while the channel is full.
pub(crate) const CHUNKS_MAX: usize = 4;

/// A member of a group from which the application pulls messages. While the application works on a message
/// (until the next [`Subscription::next`]), the message's queue is not given back; a queue that is to be
/// given back also waits three seconds for acks of the messages taken. Close it with [`Subscription::close`];
/// dropping it leaves the group in the background.
#[derive(Debug)]
pub struct Subscription {
    engine: Arc<Engine>,
    chunks: mpsc::Receiver<Chunk>,
    /// The chunk that `next` is reading.
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

    /// Waits for the next message; messages of one queue come in order. `None` if the subscription has ended:
    /// [`Subscription::close`] then returns the reason.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
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

    /// Waits for the next chunk: the messages of one queue in the response to one poll, not decoded yet. For
    /// applications that take many messages at once. Do not mix with [`Subscription::next`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
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

    /// Acknowledges this message and all before it in its queue. The ack is sent in the background; see
    /// [`Subscription::flush_acks`].
    ///
    /// # Errors
    /// `Reassigned`: the queue belongs to another member now, which gets the message again.
    pub fn ack(&self, message: &Delivery) -> Result<(), ConsumeError> {
        Self::done(&message.source, Offset(message.offset.0 + 1))
    }

    /// Acknowledges everything in the chunk's queue up to the chunk's end.
    ///
    /// # Errors
    /// As for [`Subscription::ack`].
    pub fn ack_chunk(&self, chunk: &Chunk) -> Result<(), ConsumeError> {
        Self::done(&chunk.owned, chunk.next)
    }

    /// Waits until every ack has reached its broker. It does not return while a broker cannot be reached: put
    /// a timeout around it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait only.
    pub async fn flush_acks(&self) {
        self.engine.settle().await;
    }

    /// The queues assigned to the member now, sorted.
    #[must_use]
    pub fn assigned(&self) -> Vec<QueueNumber> {
        self.engine.assigned()
    }

    /// The brokers that have queues of the topic and do not answer, sorted; see
    /// [`BrokerSilent`](super::ConsumerEvent::BrokerSilent).
    #[must_use]
    pub fn silent(&self) -> Vec<ShardName> {
        self.engine.silent()
    }

    /// Sends the last acks, leaves the group, and waits for both.
    ///
    /// # Errors
    /// Why the subscription had ended by itself, if it had.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the close: it continues in the background.
    pub async fn close(mut self) -> Result<(), ConsumeError> {
        self.rest();
        self.chunks.close();
        self.engine.shut_down().await
    }

    /// The reason it ended by itself, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<ConsumeError> {
        self.engine.failure()
    }

    fn done(owned: &Owned, next: Offset) -> Result<(), ConsumeError> {
        if owned.done(next) {
            Ok(())
        } else {
            Err(ConsumeError::Reassigned { queue: owned.queue.0 })
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
