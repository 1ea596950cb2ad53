//! Sends what the batcher collected: one call to a broker carries one batch of each of its queues that is due, and each
//! batch's outcome is its own. A batch that was definitely not taken is tried again until its time is over, at another
//! broker if its messages may go anywhere; one of unknown outcome never is.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_common::ErrorCode;
use mq_common::api::produce::{ProduceRequest, ProduceResponse, Receipt, TopicBatches};
use mq_common::ids::{Offset, QueueNumber, ShardName, TopicName};
use rpc_core::balance::{Node, Pick, Picker};
use rpc_core::registry::InstanceId;
use rpc_core::{Attachment, Call, Code, Executed, RpcError};
use tokio::sync::{Notify, Semaphore};

use super::batcher::{Batcher, Class, Entry, LaneKey, Options, Parcel, Pushed};
use super::oneway::{Counters, count};
use super::partitioner::{Place, Sticky};
use super::{SendReceipt, Waiter};
use crate::client::Inner;
use crate::config::ProducerConfig;
use crate::error::{RouteError, SendError};
use crate::route::{TopicRoute, lock};

/// Bytes of one call, about; a single batch may be larger.
const CALL_BYTES: usize = 4 * 1024 * 1024;
/// Wait before a batch is sent to the same broker again, doubled each time up to the maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// What all handles, tasks and writers of a producer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Arc<Inner>,
    pub(crate) config: ProducerConfig,
    /// Bytes that may still be queued.
    pub(crate) budget: Semaphore,
    pub(crate) counters: Counters,
    /// A batch became idle.
    pub(crate) idle: Notify,
    /// Something is due at another time than the timer thinks.
    timer: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    batcher: Batcher<Waiter>,
    topics: Vec<TopicState>,
    indices: BTreeMap<TopicName, usize>,
    calls: BTreeMap<(ShardName, Class), Calls>,
    nodes: BTreeMap<ShardName, Arc<Node>>,
    closed: bool,
}

#[derive(Debug)]
struct TopicState {
    route: Arc<TopicRoute>,
    sticky: BTreeMap<Class, Sticky>,
    picker: Option<Arc<dyn Picker>>,
    picked_from: Vec<InstanceId>,
}

#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    /// One of them has not looked for batches yet: it will find what is there now.
    starting: bool,
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
            state: Mutex::new(State {
                batcher: Batcher::new(options),
                topics: Vec::new(),
                indices: BTreeMap::new(),
                calls: BTreeMap::new(),
                nodes: BTreeMap::new(),
                closed: false,
            }),
        }
    }

    /// Queues one message and starts its sending if it is due. Its budget is taken already and is given back here if
    /// this fails.
    pub(crate) fn push(
        self: &Arc<Self>,
        route: &Arc<TopicRoute>,
        class: Class,
        place: Place,
        mut entry: Entry<'_, Waiter>,
    ) -> Result<(), SendError> {
        let cost = entry.cost;
        let now = now();
        let pushed = self.push_locked(route, class, place, &mut entry, now);
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

    /// Queues a batch that was collected elsewhere and starts its sending.
    ///
    /// # Errors
    /// It cannot be queued; those who wait for it were told.
    pub(crate) fn append(
        self: &Arc<Self>,
        route: &Arc<TopicRoute>,
        place: Place,
        mut parcel: Parcel<Waiter>,
    ) -> Result<(), SendError> {
        let class = Class::Acked;
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

    /// Makes everything that waits due, and starts it.
    pub(crate) fn flush(self: &Arc<Self>) {
        lock(&self.state).batcher.flush();
        self.start_due();
    }

    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.state).batcher.is_idle()
    }

    /// Starts whatever is due; returns when the next thing will be.
    fn start_due(self: &Arc<Self>) -> Option<Instant> {
        let (shards, next) = lock(&self.state).batcher.due(now());
        for shard in shards {
            self.start(&shard, Class::Acked);
            self.start(&shard, Class::Oneway);
        }
        next
    }

    /// Makes sure that somebody looks for the shard's due batches, unless as many calls as allowed are under way: the
    /// first that ends will look then.
    fn start(self: &Arc<Self>, shard: &ShardName, class: Class) {
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

    /// Sends the shard's due batches, call after call, until none is left.
    async fn ship(self: Arc<Self>, (shard, class): (ShardName, Class)) {
        loop {
            let (taken, more) = self.take(&shard, class);
            if taken.is_empty() {
                self.timer.notify_one();
                return;
            }
            if more {
                self.start(&shard, class);
            }
            match class {
                Class::Acked => self.ship_acked(&shard, taken).await,
                Class::Oneway => self.ship_oneway(&shard, taken).await,
            }
        }
    }

    /// The due batches of the shard, and whether there are more; none = this call's place is free again.
    fn take(&self, shard: &ShardName, class: Class) -> (Vec<(LaneKey, Parcel<Waiter>)>, bool) {
        let mut state = lock(&self.state);
        let now = now();
        let taken = state.batcher.take(shard, class, CALL_BYTES, now);
        for (key, _) in &taken {
            state.leave(*key);
        }
        let calls = state.calls.entry((shard.clone(), class)).or_default();
        calls.starting = false;
        if taken.is_empty() {
            calls.under_way -= 1;
        }
        let more = !taken.is_empty() && state.batcher.due(now).0.contains(shard);
        (taken, more)
    }

    async fn ship_acked(self: &Arc<Self>, shard: &ShardName, taken: Vec<(LaneKey, Parcel<Waiter>)>) {
        let mut parcels = self.in_time(taken);
        if parcels.is_empty() {
            return;
        }
        let outcomes = match self.call(shard, &mut parcels) {
            Ok(call) => {
                let node = self.node(shard);
                if let Some(node) = &node {
                    node.in_flight.fetch_add(1, Ordering::Relaxed);
                }
                let answer = tokio::select! {
                    answer = call => answer.map_err(SendError::from),
                    () = self.client.stop.cancelled() => Err(SendError::Rpc(RpcError::new(
                        Code::Cancelled,
                        Executed::Maybe,
                        "the client was shut down before the broker answered",
                    ))),
                };
                if let Some(node) = &node {
                    node.in_flight.fetch_sub(1, Ordering::Relaxed);
                }
                self.note(shard, answer.as_ref().err());
                outcomes(answer, parcels.len())
            }
            Err(error) => vec![Err(error); parcels.len()],
        };
        for ((key, parcel), outcome) in parcels.into_iter().zip(outcomes) {
            self.conclude(shard, key, parcel, outcome);
        }
    }

    async fn ship_oneway(self: &Arc<Self>, shard: &ShardName, taken: Vec<(LaneKey, Parcel<Waiter>)>) {
        let mut parcels = self.in_time(taken);
        if parcels.is_empty() {
            return;
        }
        let sent = match self.call(shard, &mut parcels) {
            Ok(call) => {
                let sent = tokio::select! {
                    sent = call.oneway() => sent.map_err(SendError::Rpc),
                    () = self.client.stop.cancelled() => Err(SendError::Closed),
                };
                self.note(shard, sent.as_ref().err());
                sent
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &sent {
            tracing::debug!(%shard, %error, "oneway messages dropped");
        }
        for (key, parcel) in parcels {
            let counter = match &sent {
                Ok(()) => &self.counters.oneway_sent,
                Err(_) => &self.counters.oneway_dropped,
            };
            count(counter, parcel.content.record_count());
            self.finish(key, &parcel);
        }
    }

    /// Fails those whose time is over, and gives back the others.
    fn in_time(&self, taken: Vec<(LaneKey, Parcel<Waiter>)>) -> Vec<(LaneKey, Parcel<Waiter>)> {
        let now = now();
        let mut parcels = Vec::with_capacity(taken.len());
        for (key, parcel) in taken {
            let waited = now.saturating_duration_since(parcel.since);
            if waited < self.config.timeout {
                parcels.push((key, parcel));
                continue;
            }
            let error = SendError::TimedOut {
                after: waited,
                reason: "the broker of its queue did not take it in time".to_owned(),
            };
            self.resolve(key, parcel, Err(error));
        }
        parcels
    }

    /// The call that carries these batches.
    fn call(
        &self,
        shard: &ShardName,
        parcels: &mut [(LaneKey, Parcel<Waiter>)],
    ) -> Result<Call<ProduceResponse, mq_common::Error>, SendError> {
        let Some(broker) = self.client.routes.broker(shard) else {
            let message = format!("broker `{shard}` is not registered now");
            return Err(SendError::Rpc(RpcError::new(
                Code::Unavailable,
                Executed::No,
                message,
            )));
        };
        let mut topics: Vec<TopicBatches> = Vec::new();
        let mut attachment = Attachment::new();
        let mut youngest = Duration::MAX;
        let mut last = None;
        for (key, parcel) in parcels {
            if last != Some(key.topic) {
                last = Some(key.topic);
                topics.push(TopicBatches {
                    topic: self.topic_name(key.topic)?,
                    batches: Vec::new(),
                });
            }
            let batch = parcel.content.built()?;
            if let Some(topic) = topics.last_mut() {
                topic.batches.push((key.queue, batch.header().region_bytes));
            }
            attachment.push(batch.into_bytes());
            youngest = youngest.min(parcel.since.elapsed());
        }
        let request = ProduceRequest {
            topics,
            durability: self.config.durability,
        };
        let timeout = self.config.timeout.saturating_sub(youngest);
        Ok(self
            .client
            .produce
            .produce(request, attachment)
            .to(&broker)
            .timeout(timeout))
    }

    fn topic_name(&self, index: usize) -> Result<TopicName, SendError> {
        let state = lock(&self.state);
        let topic = state.topics.get(index).ok_or(SendError::Closed)?;
        Ok(topic.route.topic().name.clone())
    }

    fn node(&self, shard: &ShardName) -> Option<Arc<Node>> {
        lock(&self.state).nodes.get(shard).cloned()
    }

    /// Remembers whether the broker could be reached.
    fn note(&self, shard: &ShardName, error: Option<&SendError>) {
        match error {
            None | Some(SendError::Broker(_)) => self.client.routes.answered(shard),
            Some(SendError::Rpc(error)) if error.executed != Executed::Yes => {
                self.client.routes.failed(shard)
            }
            Some(_) => {}
        }
    }

    /// Ends a batch, or has it sent again.
    fn conclude(
        self: &Arc<Self>,
        shard: &ShardName,
        key: LaneKey,
        mut parcel: Parcel<Waiter>,
        outcome: Result<Receipt, SendError>,
    ) {
        let again = match &outcome {
            Ok(_) => Again::Never,
            Err(error) => again(error),
        };
        if again == Again::Elsewhere {
            self.client.routes.refresh_soon();
        }
        let wait = AGAIN_FIRST
            .saturating_mul(1 << parcel.attempts.min(8))
            .min(AGAIN_MAX);
        let late = parcel.since.elapsed() + wait >= self.config.timeout;
        let mut state = lock(&self.state);
        if again == Again::Never || late || state.closed {
            drop(state);
            self.resolve(key, parcel, outcome);
            return;
        }
        parcel.attempts += 1;
        let other = match (again, parcel.pinned) {
            (Again::Elsewhere, false) => state.free_queue(&self.client, key.topic, key.class).ok(),
            _ => None,
        };
        let route = state.topics.get(key.topic).map(|topic| Arc::clone(&topic.route));
        let moved = other
            .zip(route)
            .and_then(|(queue, route)| Some((queue, route.home(queue).ok()?.clone())));
        match moved.filter(|(_, home)| home != shard) {
            Some((queue, home)) => {
                state.batcher.done(key);
                let key = LaneKey { queue, ..key };
                state.batcher.append(key, &home, parcel);
                state.leave(key);
                drop(state);
                self.start(&home, key.class);
            }
            None => {
                parcel.not_before = Some(now() + wait);
                state.batcher.put_back(key, parcel);
            }
        }
        self.timer.notify_one();
    }

    /// Tells those who wait for the batch, and makes room for others.
    fn resolve(&self, key: LaneKey, mut parcel: Parcel<Waiter>, outcome: Result<Receipt, SendError>) {
        let records = parcel.content.record_count();
        let counter = match (key.class, &outcome) {
            (Class::Oneway, _) => &self.counters.oneway_dropped,
            (Class::Acked, Ok(_)) => &self.counters.acked,
            (Class::Acked, Err(error)) if error.outcome() == crate::Outcome::Definite => {
                &self.counters.failed
            }
            (Class::Acked, Err(_)) => &self.counters.unknown,
        };
        count(counter, records);
        let waiters = std::mem::take(&mut parcel.waiters);
        self.finish(key, &parcel);
        let topic = self.topic_name(key.topic);
        for (index, waiter) in waiters {
            let outcome = outcome.clone().and_then(|receipt| {
                Ok(SendReceipt {
                    topic: topic.clone()?,
                    queue: key.queue,
                    base_offset: Offset(receipt.base_offset.0 + u64::from(index)),
                    durability: receipt.durability,
                })
            });
            waiter.tell(outcome, records);
        }
    }

    /// The queue may send its next batch; the bytes may be used again.
    fn finish(&self, key: LaneKey, parcel: &Parcel<Waiter>) {
        lock(&self.state).batcher.done(key);
        self.budget.add_permits(parcel.cost);
        self.idle.notify_waiters();
    }

    /// The task that wakes up when a linger or a wait is over; ends with the client, and then everything queued fails.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let stop = self.client.stop.clone();
        loop {
            let next = self.start_due();
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.timer.notified() => {}
                () = sleep => {}
            }
        }
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

    /// Ends a batch that is not in the batcher (any more) and was never under way.
    fn give_up(&self, class: Class, parcel: Parcel<Waiter>, error: &SendError) {
        self.budget.add_permits(parcel.cost);
        let records = parcel.content.record_count();
        let counter = match class {
            Class::Acked => &self.counters.failed,
            Class::Oneway => &self.counters.oneway_dropped,
        };
        count(counter, records);
        for (_, waiter) in parcel.waiters {
            waiter.tell(Err(error.clone()), records);
        }
    }
}

impl State {
    /// The index of the route's topic; takes over a newer route.
    fn topic(&mut self, route: &Arc<TopicRoute>) -> usize {
        let name = &route.topic().name;
        if let Some(&index) = self.indices.get(name) {
            if let Some(topic) = self.topics.get_mut(index)
                && !Arc::ptr_eq(&topic.route, route)
            {
                topic.route = Arc::clone(route);
                topic.picker = None;
            }
            return index;
        }
        self.topics.push(TopicState {
            route: Arc::clone(route),
            sticky: BTreeMap::new(),
            picker: None,
            picked_from: Vec::new(),
        });
        let index = self.topics.len() - 1;
        self.indices.insert(name.clone(), index);
        index
    }

    fn leave(&mut self, key: LaneKey) {
        if let Some(topic) = self.topics.get_mut(key.topic)
            && let Some(sticky) = topic.sticky.get_mut(&key.class)
        {
            sticky.leave(key.queue);
        }
    }

    /// The queue for the next free message: the current one, else one of the broker that the balancer picks.
    fn free_queue(&mut self, client: &Inner, topic: usize, class: Class) -> Result<QueueNumber, RouteError> {
        let current = self
            .topics
            .get(topic)
            .and_then(|state| state.sticky.get(&class)?.current());
        if let Some(queue) = current {
            return Ok(queue);
        }
        self.follow(client, topic);
        let Some(state) = self.topics.get_mut(topic) else {
            return Err(RouteError::NoBrokers);
        };
        let pick = Pick {
            method: "produce",
            hash_key: None,
            tried: &[],
        };
        let picked = state.picker.as_ref().and_then(|picker| picker.pick(&pick));
        let picked = picked.and_then(|node| ShardName::new(node.instance.name.as_str()).ok());
        // With no broker alive a message waits for the first one that has queues.
        let shard = picked
            .or_else(|| state.route.shards().next().cloned())
            .ok_or(RouteError::NoBrokers)?;
        let batcher = &self.batcher;
        let busy = |queue| batcher.is_busy(LaneKey { topic, queue, class });
        let sticky = state.sticky.entry(class).or_default();
        sticky
            .advance(&shard, state.route.queues_of(&shard), busy)
            .ok_or(RouteError::NoBrokers)
    }

    /// Builds the topic's picker anew if other brokers can take its messages than before.
    fn follow(&mut self, client: &Inner, topic: usize) {
        let Some(state) = self.topics.get_mut(topic) else {
            return;
        };
        let alive = state
            .route
            .shards()
            .filter_map(|shard| Some((shard, client.routes.broker(shard)?)));
        let alive: Vec<_> = alive.collect();
        let well = |shard: &ShardName| !client.routes.avoided(shard);
        let any_well = alive.iter().any(|(shard, _)| well(shard));
        let chosen: Vec<_> = alive
            .into_iter()
            .filter(|(shard, _)| !any_well || well(shard))
            .collect();
        let ids: Vec<_> = chosen.iter().map(|(_, broker)| broker.id.clone()).collect();
        if state.picker.is_some() && ids == state.picked_from {
            return;
        }
        let mut nodes: Vec<Arc<Node>> = Vec::with_capacity(chosen.len());
        for (shard, broker) in chosen {
            let node = match self.nodes.get(shard) {
                Some(node) if node.instance.id == broker.id => Arc::clone(node),
                _ => {
                    let node = Arc::new(Node::new(broker));
                    self.nodes.insert(shard.clone(), Arc::clone(&node));
                    node
                }
            };
            nodes.push(node);
        }
        nodes.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        state.picker = Some(client.balancer.rebuild(&nodes, state.picker.as_deref()));
        state.picked_from = ids;
    }
}

/// Whether and where a failed batch is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    /// The same broker may take it a little later; another one may not.
    Here,
    /// Another broker may take it.
    Elsewhere,
}

fn again(error: &SendError) -> Again {
    match error {
        SendError::Broker(error) => match error.code {
            ErrorCode::UnknownQueue
            | ErrorCode::NotLeader
            | ErrorCode::Overloaded
            | ErrorCode::ReadOnly
            | ErrorCode::ShuttingDown => Again::Elsewhere,
            _ => Again::Never,
        },
        SendError::Rpc(error) if error.executed == Executed::No => match error.code {
            Code::Unavailable | Code::Overloaded | Code::Draining | Code::DeadlineExceeded => {
                Again::Elsewhere
            }
            // Served again after a restart, perhaps.
            Code::NotFound => Again::Here,
            _ => Again::Never,
        },
        _ => Again::Never,
    }
}

/// One outcome for each batch of a call.
fn outcomes(answer: Result<ProduceResponse, SendError>, batches: usize) -> Vec<Result<Receipt, SendError>> {
    match answer {
        Ok(response) if response.outcomes.len() == batches => response
            .outcomes
            .into_iter()
            .map(|outcome| outcome.map_err(SendError::Broker))
            .collect(),
        Ok(response) => {
            let message = format!("{} outcomes for {batches} batches", response.outcomes.len());
            let error = RpcError::new(Code::BadReply, Executed::Yes, message);
            vec![Err(SendError::Rpc(error)); batches]
        }
        Err(error) => vec![Err(error); batches],
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
