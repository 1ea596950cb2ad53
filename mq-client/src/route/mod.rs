//! The brokers, and which of them has each of a topic's queues. The registry lists the brokers; the brokers
//! report a topic's declared queue list, and `mq_common::declared` decides which of several is valid.
//!
//! One task asks the brokers; the rest of the client reads the latest table.

mod decide;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mq_common::api::AdminClient;
use mq_common::api::admin::Topic;
use mq_common::batch::{BatchError, Record};
use mq_common::ids::{QueueNumber, ShardName, TopicName};
use mq_common::partition::queue_index_of_key;
use rpc_core::registry::{Freshness, Instance, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use decide::true_topic;

use crate::error::RouteError;
use decide::{Answer, Buried, decide};

/// How often the routes of topics in use are refreshed.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// Two rounds of asking are at least this far apart.
const ROUND_SPACING: Duration = Duration::from_millis(50);
/// A broker that does not answer a question about a topic in this time is left out of the round.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A broker that failed is avoided for this long, doubled with each further failure up to the maximum.
const AVOID_FIRST: Duration = Duration::from_millis(200);
const AVOID_MAX: Duration = Duration::from_secs(5);

/// A topic that was not looked up for this long is no longer refreshed.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// Concurrent questions to brokers: each answer may fill a frame.
const ASKED_AT_ONCE: usize = 64;

/// A topic's declared queue list, indexed for lookups.
#[derive(Debug)]
pub(crate) struct TopicRoute {
    topic: Topic,
    /// Whether it was looked up since the last round.
    used: AtomicBool,
    by_shard: BTreeMap<ShardName, Vec<QueueNumber>>,
}

impl TopicRoute {
    pub(crate) fn new(topic: Topic) -> Self {
        let mut by_shard: BTreeMap<ShardName, Vec<QueueNumber>> = BTreeMap::new();
        for home in &topic.queues {
            by_shard.entry(home.shard.clone()).or_default().push(home.queue);
        }
        Self {
            topic,
            used: AtomicBool::new(true),
            by_shard,
        }
    }

    pub(crate) const fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Its shards, in order of their names.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &ShardName> {
        self.by_shard.keys()
    }

    pub(crate) fn queues_of(&self, shard: &ShardName) -> &[QueueNumber] {
        self.by_shard.get(shard).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn home(&self, queue: QueueNumber) -> Result<&ShardName, RouteError> {
        let index = self.topic.queues.binary_search_by_key(&queue, |home| home.queue);
        let home = index.ok().and_then(|index| self.topic.queues.get(index));
        home.map(|home| &home.shard)
            .ok_or_else(|| RouteError::UnknownQueue {
                topic: self.topic.name.clone(),
                queue: queue.0,
                queues: self.topic.queues.len(),
            })
    }

    /// Checks that the topic accepts a message of this size.
    pub(crate) fn check_size(&self, record: &Record<'_>) -> Result<(), BatchError> {
        // Without a limit of the topic, that of the format applies; it is checked when the message is
        // encoded.
        if self.topic.settings.message_bytes_max.is_none() {
            return Ok(());
        }
        let (limit, actual) = (self.topic.settings.message_bytes_max(), record.bytes());
        if actual <= limit {
            return Ok(());
        }
        Err(BatchError::TooLarge {
            what: "a message of this topic",
            limit,
            actual,
        })
    }

    /// The queue of a key, computed from the declared list regardless of which brokers are alive.
    pub(crate) fn queue_of_key(&self, key: &[u8]) -> Option<QueueNumber> {
        let index = queue_index_of_key(key, self.topic.queues.len())?;
        self.topic.queues.get(index).map(|home| home.queue)
    }
}

/// The brokers' answers of one round.
#[derive(Debug, Default)]
struct Table {
    round: u64,
    topics: BTreeMap<TopicName, Result<Arc<TopicRoute>, RouteError>>,
    /// Tombstones, so that a broker that was away does not resurrect a deleted topic.
    buried: BTreeMap<TopicName, Buried>,
}

#[derive(Debug)]
struct Health {
    failures: u32,
    avoid_until: Instant,
}

/// The brokers and routes as this client knows them.
#[derive(Debug)]
pub(crate) struct Routes {
    admin: AdminClient,
    brokers: watch::Receiver<Snapshot>,
    /// The topics to refresh, and when each was last looked up.
    wanted: Mutex<BTreeMap<TopicName, Instant>>,
    ask: Notify,
    rounds_started: AtomicU64,
    table: watch::Sender<Arc<Table>>,
    /// Stops the asking task.
    stop: CancellationToken,
    health: Mutex<BTreeMap<ShardName, Health>>,
}

impl Routes {
    pub(crate) fn new(
        admin: AdminClient,
        brokers: watch::Receiver<Snapshot>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            admin,
            stop,
            brokers,
            wanted: Mutex::default(),
            ask: Notify::new(),
            rounds_started: AtomicU64::new(0),
            table: watch::Sender::new(Arc::default()),
            health: Mutex::default(),
        }
    }

    /// The brokers in the registry now, by name. Of two processes with the same name the later one counts:
    /// the other's registration is about to expire.
    pub(crate) fn brokers(&self) -> BTreeMap<ShardName, Arc<Instance>> {
        let mut brokers: BTreeMap<ShardName, Arc<Instance>> = BTreeMap::new();
        for instance in self.brokers.borrow().instances.iter() {
            let Ok(name) = ShardName::new(instance.name.as_str()) else {
                continue;
            };
            let newer = brokers
                .get(&name)
                .is_none_or(|other| other.started_ms <= instance.started_ms);
            if newer {
                brokers.insert(name, Arc::clone(instance));
            }
        }
        brokers
    }

    pub(crate) fn broker(&self, shard: &ShardName) -> Option<Arc<Instance>> {
        let snapshot = self.brokers.borrow();
        let named = snapshot
            .instances
            .iter()
            .filter(|instance| instance.name == shard.as_str());
        named.max_by_key(|instance| instance.started_ms).cloned()
    }

    /// Waits until the registry lists brokers, and returns them. At the deadline `NoBrokers`, or
    /// `RegistrySilent` if the registry never answered.
    pub(crate) async fn wait_for_brokers(
        &self,
        deadline: Instant,
    ) -> Result<BTreeMap<ShardName, Arc<Instance>>, RouteError> {
        let mut brokers = self.brokers.clone();
        // What the wait returns holds the snapshot's read lock. Kept, it would block forever in the next look at the
        // snapshot if the registry shows another one in between: a waiting writer goes before new readers.
        let some = async {
            let shown = brokers.wait_for(|snapshot| !snapshot.instances.is_empty());
            shown.await.map(drop)
        };
        tokio::select! {
            () = self.stop.cancelled() => Err(RouteError::Closed),
            shown = tokio::time::timeout_at(deadline, some) => match shown {
                Ok(Ok(())) => Ok(self.brokers()),
                _ => Err(self.nobody()),
            }
        }
    }

    /// Whether the registry has not answered so far.
    pub(crate) fn is_unheard(&self) -> bool {
        self.brokers.borrow().freshness == Freshness::Unknown
    }

    /// Why there is no broker to ask.
    fn nobody(&self) -> RouteError {
        if self.is_unheard() {
            RouteError::RegistrySilent
        } else {
            RouteError::NoBrokers
        }
    }

    /// The broker; the error lists the brokers that are registered instead.
    pub(crate) fn registered(&self, shard: &ShardName) -> Result<Arc<Instance>, RouteError> {
        self.broker(shard).ok_or_else(|| {
            if self.is_unheard() {
                RouteError::RegistrySilent
            } else {
                RouteError::Unregistered {
                    shard: shard.clone(),
                    known: self.brokers().into_keys().collect(),
                }
            }
        })
    }

    /// A receiver that changes whenever a round has ended.
    pub(crate) fn rounds(&self) -> watch::Receiver<impl Sized + use<>> {
        self.table.subscribe()
    }

    /// A receiver that changes whenever the brokers in the registry change.
    pub(crate) fn registrations(&self) -> watch::Receiver<Snapshot> {
        self.brokers.clone()
    }

    /// The topic's route as known now.
    pub(crate) fn cached(&self, topic: &TopicName) -> Option<Arc<TopicRoute>> {
        let table = self.table.borrow();
        let route = table.topics.get(topic)?.as_ref().ok()?;
        route.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(route))
    }

    /// The topic's route: the known one, else the brokers are asked until the deadline.
    pub(crate) async fn topic(
        &self,
        topic: &TopicName,
        deadline: Instant,
    ) -> Result<Arc<TopicRoute>, RouteError> {
        match self.cached(topic) {
            Some(route) => Ok(route),
            None => self.fresh(topic, deadline).await,
        }
    }

    /// The topic's route from answers that the brokers give from now on. Unreachable brokers are asked again
    /// until the deadline; if all answer that they do not have the topic, that is final.
    pub(crate) async fn fresh(
        &self,
        topic: &TopicName,
        deadline: Instant,
    ) -> Result<Arc<TopicRoute>, RouteError> {
        let mut table = self.table.subscribe();
        let mut last = self.nobody();
        loop {
            lock(&self.wanted).insert(topic.clone(), Instant::now());
            let round = self.rounds_started.load(Ordering::Acquire) + 1;
            self.ask.notify_one();
            let ended = tokio::time::timeout_at(deadline, table.wait_for(|table| table.round >= round));
            let ended = tokio::select! {
                () = self.stop.cancelled() => return Err(RouteError::Closed),
                ended = ended => ended,
            };
            let Ok(Ok(table)) = ended else {
                return Err(last);
            };
            match table.topics.get(topic) {
                Some(Ok(route)) => return Ok(Arc::clone(route)),
                Some(Err(error @ RouteError::UnknownTopic { .. })) => return Err(error.clone()),
                Some(Err(error)) => last = error.clone(),
                None => {}
            }
        }
    }

    /// Has the brokers asked soon, without waiting for it: a broker reported that a route is out of date.
    pub(crate) fn refresh_soon(&self) {
        self.ask.notify_one();
    }

    /// A call to the broker did not reach it.
    pub(crate) fn failed(&self, shard: &ShardName) {
        let now = Instant::now();
        let mut health = lock(&self.health);
        let entry = health.entry(shard.clone()).or_insert(Health {
            failures: 0,
            avoid_until: now,
        });
        let wait = AVOID_FIRST
            .saturating_mul(1 << entry.failures.min(16))
            .min(AVOID_MAX);
        entry.failures += 1;
        entry.avoid_until = now + wait;
    }

    /// A call to the broker was answered.
    pub(crate) fn answered(&self, shard: &ShardName) {
        lock(&self.health).remove(shard);
    }

    /// Whether the broker failed recently.
    pub(crate) fn avoided(&self, shard: &ShardName) -> bool {
        let health = lock(&self.health);
        health
            .get(shard)
            .is_some_and(|health| Instant::now() < health.avoid_until)
    }

    /// The task that asks the brokers; ends with the client.
    pub(crate) async fn keep(self: Arc<Self>) {
        let stop = self.stop.clone();
        let mut brokers = self.brokers.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ask.notified() => {}
                changed = brokers.changed() => if changed.is_err() {
                    stop.cancelled().await;
                    return;
                },
                () = tokio::time::sleep(REFRESH_EVERY) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.round() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ROUND_SPACING) => {}
            }
        }
    }

    async fn round(&self) {
        let round = self.rounds_started.fetch_add(1, Ordering::AcqRel) + 1;
        let now = Instant::now();
        let wanted = self.wanted_still(now);
        let brokers = self.brokers();
        let warming = self.is_unheard();
        let mut answers = self.ask(&wanted, &brokers).await;
        let mut topics = BTreeMap::new();
        let mut buried = self.table.borrow().buried.clone();
        for topic in wanted {
            let answers = answers.remove(&topic).unwrap_or_default();
            let known = self.cached(&topic);
            let route = if answers.is_empty() {
                known.ok_or_else(|| self.nobody())
            } else {
                decide(&topic, known, buried.entry(topic.clone()).or_default(), answers)
            };
            let route = match route {
                Err(RouteError::UnknownTopic { topic }) if warming => Err(RouteError::Unreachable {
                    topic,
                    reason: "the registry has just started and may not show every broker yet".to_owned(),
                }),
                route => route,
            };
            topics.insert(topic, route);
        }
        buried.retain(|_, graves| !graves.is_empty());
        self.table.send_replace(Arc::new(Table {
            round,
            topics,
            buried,
        }));
    }

    /// The topics still in use. Others are forgotten, so that a client that keeps looking up new names does
    /// not ask for all of them for ever.
    fn wanted_still(&self, now: Instant) -> Vec<TopicName> {
        let table = Arc::clone(&self.table.borrow());
        let mut wanted = lock(&self.wanted);
        wanted.retain(|topic, used| {
            let known = table.topics.get(topic);
            let route = known.and_then(|known| known.as_ref().ok());
            if route.is_some_and(|route| route.used.swap(false, Ordering::Relaxed)) {
                *used = now;
            }
            now.duration_since(*used) <= UNUSED_MAX
        });
        wanted.keys().cloned().collect()
    }

    async fn ask(
        &self,
        topics: &[TopicName],
        brokers: &BTreeMap<ShardName, Arc<Instance>>,
    ) -> BTreeMap<TopicName, Vec<Answer>> {
        let mut answers: BTreeMap<TopicName, Vec<Answer>> = BTreeMap::new();
        let mut note = |answer: Result<(TopicName, Answer), _>| {
            if let Ok((topic, answer)) = answer {
                answers.entry(topic).or_default().push(answer);
            }
        };
        let mut asked = JoinSet::new();
        for topic in topics {
            for (shard, broker) in brokers {
                if asked.len() >= ASKED_AT_ONCE
                    && let Some(answer) = asked.join_next().await
                {
                    note(answer);
                }
                let call = self.admin.describe_topic(topic.clone()).to(broker);
                let call = call.timeout(ANSWER_WITHIN);
                let (topic, shard) = (topic.clone(), shard.clone());
                asked.spawn(async move { (topic, (shard, call.await)) });
            }
        }
        while let Some(answer) = asked.join_next().await {
            note(answer);
        }
        answers
    }
}

/// The guard, even if a thread panicked while holding it: the data under these locks is always consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rpc_core::Invoker;
    use rpc_core::registry::InstanceId;

    use super::*;

    fn snapshot() -> Snapshot {
        let instance = Instance {
            id: InstanceId("1".to_owned()),
            address: "127.0.0.1:1".to_owned(),
            name: "a".to_owned(),
            http: None,
            weight: 100,
            zone: None,
            started_ms: 0,
            serializers: Vec::new(),
            meta: BTreeMap::new(),
        };
        Snapshot {
            instances: Arc::from([Arc::new(instance)]),
            freshness: Freshness::Fresh,
        }
    }

    /// On threads of their own: what would block them for ever must not block the end of the test.
    #[test]
    fn registry_that_changes_while_brokers_are_awaited_blocks_nobody() {
        let (changes, brokers) = watch::channel(snapshot());
        let (sender, ended) = mpsc::sync_channel(1);
        let asking = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let invoker = Invoker::builder().direct(["127.0.0.1:1"]).build().await.unwrap();
                let admin = AdminClient::refer(&invoker);
                let routes = Routes::new(admin, brokers, CancellationToken::new());
                for _ in 0..20_000 {
                    let deadline = Instant::now() + Duration::from_secs(60);
                    assert_eq!(routes.wait_for_brokers(deadline).await.unwrap().len(), 1);
                }
            });
            sender.send(()).unwrap();
        };
        std::thread::Builder::new().spawn(asking).unwrap();
        // Ends when nobody receives any more.
        let changing = move || while changes.send(snapshot()).is_ok() {};
        std::thread::Builder::new().spawn(changing).unwrap();
        ended.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}
