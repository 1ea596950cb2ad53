//! The state shared by a producer's handles, writers and tasks: queues messages, and starts the sending of
//! what is due.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use mq_common::ids::ShardName;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Waiter;
use super::batcher::{Class, Entry, LaneKey, Options, Parcel, Pushed};
use super::oneway::{Counters, count};
use super::partitioner::Place;
use super::state::State;
use crate::client::Inner;
use crate::config::ProducerConfig;
use crate::error::SendError;
use crate::route::{TopicRoute, lock};

/// A producer's shared state.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Arc<Inner>,
    pub(crate) config: ProducerConfig,
    /// Bytes that may still be queued.
    pub(crate) budget: Semaphore,
    pub(crate) counters: Counters,
    /// A batch became idle.
    pub(crate) idle: Notify,
    /// The next due time has changed: wakes the timer task.
    pub(super) timer: Notify,
    pub(super) state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(client: Arc<Inner>, config: ProducerConfig) -> Self {
        let options = Options {
            compression: config.compression,
            batch_bytes: config.batch_bytes,
            batch_records: config.batch_records,
            linger: config.linger,
        };
        Self {
            client,
            budget: Semaphore::new(config.in_flight_bytes.min(u32::MAX as usize)),
            config,
            counters: Counters::default(),
            idle: Notify::new(),
            timer: Notify::new(),
            state: Mutex::new(State::new(options)),
        }
    }

    /// Queues one message and starts sending if it is due. Its budget is already taken; it is given back here
    /// on failure.
    pub(crate) fn push(
        self: &Arc<Self>,
        route: &Arc<TopicRoute>,
        class: Class,
        place: Place,
        mut entry: Entry<'_, Waiter>,
    ) -> Result<(), SendError> {
        let cost = entry.cost;
        let now = now();
        let checked = route.check_size(&entry.record).map_err(SendError::from);
        let pushed = checked.and_then(|()| self.push_locked(route, class, place, &mut entry, now));
        match pushed {
            Ok((shard, Pushed::Began)) => {
                if self.config.linger.is_zero() {
                    self.start(&shard, class);
                } else {
                    self.timer.notify_one();
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.budget.add_permits(cost);
                Err(error)
            }
        }
    }

    fn push_locked(
        &self,
        route: &Arc<TopicRoute>,
        class: Class,
        place: Place,
        entry: &mut Entry<'_, Waiter>,
        now: Instant,
    ) -> Result<(ShardName, Pushed), SendError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(SendError::Closed);
        }
        let topic = state.topic(route);
        loop {
            let queue = match place {
                Place::Pinned(queue) => queue,
                Place::Free => state.free_queue(&self.client, topic, class)?,
            };
            let shard = route.home(queue)?;
            let key = LaneKey { topic, queue, class };
            let pushed = state.batcher.push(key, shard, entry, now)?;
            if pushed != Pushed::Full {
                return Ok((shard.clone(), pushed));
            }
            state.leave(key);
        }
    }

    /// Queues a batch collected by a writer and starts sending it.
    ///
    /// # Errors
    /// It cannot be queued; its waiters were notified.
    pub(crate) fn append(
        self: &Arc<Self>,
        route: &Arc<TopicRoute>,
        place: Place,
        mut parcel: Parcel<Waiter>,
    ) -> Result<(), SendError> {
        let class = Class::Confirmed;
        let mut state = lock(&self.state);
        let topic = state.topic(route);
        let queue = match place {
            _ if state.closed => Err(SendError::Closed),
            Place::Pinned(queue) => Ok(queue),
            Place::Free => state
                .free_queue(&self.client, topic, class)
                .map_err(SendError::Route),
        };
        let home = queue.and_then(|queue| Ok((queue, route.home(queue)?)));
        let (queue, shard) = match home {
            Ok(home) => home,
            Err(error) => {
                drop(state);
                self.give_up(class, parcel, &error);
                return Err(error);
            }
        };
        parcel.pinned = matches!(place, Place::Pinned(_));
        let key = LaneKey { topic, queue, class };
        state.batcher.append(key, shard, parcel);
        state.leave(key);
        drop(state);
        self.start(shard, class);
        Ok(())
    }

    pub(crate) fn options(&self) -> Options {
        *lock(&self.state).batcher.options()
    }

    /// Makes all queued batches due and starts sending them.
    pub(crate) fn flush(self: &Arc<Self>) {
        lock(&self.state).batcher.flush();
        self.start_due();
    }

    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.state).batcher.is_idle()
    }

    /// Starts sending all due batches; returns when the next one will be due.
    fn start_due(self: &Arc<Self>) -> Option<Instant> {
        let (shards, next) = lock(&self.state).batcher.due(now());
        for shard in shards {
            self.start(&shard, Class::Confirmed);
            self.start(&shard, Class::Oneway);
        }
        next
    }

    /// Makes sure that a task takes the shard's due batches, unless the maximum number of calls is in flight:
    /// then the first that ends takes them.
    pub(super) fn start(self: &Arc<Self>, shard: &ShardName, class: Class) {
        let mut state = lock(&self.state);
        let key = (shard.clone(), class);
        let calls = state.calls.entry(key.clone()).or_default();
        if calls.starting || calls.under_way >= self.config.calls_per_broker.max(1) {
            return;
        }
        calls.starting = true;
        calls.under_way += 1;
        drop(state);
        let shared = Arc::clone(self);
        drop(self.client.tasks.spawn(async move { shared.ship(key).await }));
    }

    /// The task that wakes up when a linger or a retry pause is over. It ends with the client, and then
    /// everything queued fails; or, once the last handle of the producer is dropped (`gone`), with the last
    /// batch.
    pub(crate) async fn keep_time(self: Arc<Self>, gone: CancellationToken) {
        let stop = self.client.stop.clone();
        loop {
            let idle = self.idle.notified();
            if gone.is_cancelled() {
                self.flush();
                if self.is_idle() {
                    break;
                }
            }
            let next = self.start_due();
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = gone.cancelled(), if !gone.is_cancelled() => {}
                () = idle, if gone.is_cancelled() => {}
                () = self.timer.notified() => {}
                () = sleep => {}
            }
        }
        self.budget.close();
        let dropped = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.batcher.drain()
        };
        for (key, parcel) in dropped {
            self.give_up(key.class, parcel, &SendError::Closed);
        }
        self.idle.notify_waiters();
    }

    /// Fails a batch that is not in the batcher and was never in flight.
    fn give_up(&self, class: Class, parcel: Parcel<Waiter>, error: &SendError) {
        self.budget.add_permits(parcel.cost);
        let records = parcel.content.record_count();
        let counter = match class {
            Class::Confirmed => &self.counters.failed,
            Class::Oneway => &self.counters.oneway_dropped,
        };
        count(counter, records);
        for (_, waiter) in parcel.waiters {
            waiter.tell(Err(error.clone()), records);
        }
    }
}

/// The clock of lingers, waits and timeouts: tokio's, so that tests can move it by hand.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
