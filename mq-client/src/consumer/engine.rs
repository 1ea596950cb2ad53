//! The state shared by all tasks of one consumer, and how they start and stop: join at all brokers, then
//! poll; stop polling, then send the last acks and leave.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_common::api::group::StartAt;
use mq_common::ids::{GroupName, MemberId, QueueNumber, ShardName, Timestamp, TopicName};
use rpc_core::{Code, Executed, RpcError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dispatch::Sink;
use super::event::ConsumerEvent;
use super::member::{Joined, Member};
use super::poller::Poller;
use crate::client::{Inner, random_member};
use crate::config::ConsumerConfig;
use crate::error::ConsumeError;
use crate::route::lock;

/// How long the start may take to locate the topic and the brokers.
const START_WITHIN: Duration = Duration::from_secs(10);

/// By how many milliseconds the brokers' clocks may differ: a message from before the start is better than
/// one skipped.
const CLOCKS_APART_MS: u64 = 1000;

/// Receives a consumer's events.
pub(crate) type Observer = Arc<dyn Fn(ConsumerEvent) + Send + Sync>;

/// One running consumer; its tasks hold it in an `Arc`.
pub(crate) struct Engine {
    pub(crate) client: Arc<Inner>,
    pub(crate) config: ConsumerConfig,
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) member: MemberId,
    pub(crate) sink: Sink,
    /// Stops polling.
    pub(crate) stop: CancellationToken,
    /// Ends the membership, after polling has ended.
    pub(crate) leave: CancellationToken,
    observer: Option<Observer>,
    members: Mutex<BTreeMap<ShardName, Arc<Member>>>,
    pollers: TaskTracker,
    keepers: TaskTracker,
    failure: watch::Sender<Option<ConsumeError>>,
    /// When the group was created, at the broker that has had it longest; known once the start is over.
    since: Mutex<Option<Timestamp>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("topic", &self.topic)
            .field("group", &self.group)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(
        client: Arc<Inner>,
        config: ConsumerConfig,
        (topic, group): (TopicName, GroupName),
        sink: Sink,
        observer: Option<Observer>,
    ) -> Self {
        Self {
            stop: client.stop.child_token(),
            leave: CancellationToken::new(),
            client,
            config,
            topic,
            group,
            member: random_member(),
            sink,
            observer,
            members: Mutex::default(),
            pollers: TaskTracker::new(),
            keepers: TaskTracker::new(),
            failure: watch::Sender::new(None),
            since: Mutex::default(),
        }
    }

    /// Joins at every broker that has queues of the topic, then starts to poll.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<(), ConsumeError> {
        let deadline = Instant::now() + START_WITHIN;
        let route = self.client.routes.topic(&self.topic, deadline).await?;
        self.client.routes.wait_for_brokers(deadline).await?;
        let members: Vec<_> = route
            .shards()
            .map(|shard| Arc::new(Member::new(shard.clone())))
            .collect();
        let (joined, mut refused) = self.join(&members).await;
        if refused.is_none() && joined == 0 {
            refused = members.first().map(|member| ConsumeError::Unreachable {
                shard: member.shard.clone(),
                error: RpcError::new(
                    Code::Unavailable,
                    Executed::No,
                    "none of the topic's brokers answered",
                ),
            });
        }
        if let Some(error) = refused {
            self.stop.cancel();
            self.leave.cancel();
            for member in members {
                // Leaves at once where it had joined.
                member.run(Arc::clone(self)).await;
            }
            return Err(error);
        }
        for member in members {
            self.begin(member);
        }
        let follower = Arc::clone(self).follow();
        drop(self.client.tasks.spawn(self.keepers.track_future(follower)));
        Ok(())
    }

    /// Joins at the brokers; returns at how many, and the refusal if there was one.
    ///
    /// `StartAt::Latest` means: at the moment the group was created. So the brokers that know the group
    /// determine where it starts at the others.
    async fn join(self: &Arc<Self>, members: &[Arc<Member>]) -> (usize, Option<ConsumeError>) {
        let known = match self.config.start {
            StartAt::Latest => self.join_with(members, None).await,
            _ => vec![Ok(Joined::NoGroup); members.len()],
        };
        let since = known.iter().filter_map(Joined::since).min();
        if let Some(since) = since {
            self.note_since(since);
        }
        let new = members.iter().zip(&known);
        let new: Vec<_> = new
            .filter(|(_, joined)| **joined == Ok(Joined::NoGroup))
            .collect();
        let new: Vec<_> = new.into_iter().map(|(member, _)| Arc::clone(member)).collect();
        let made = self.join_with(&new, Some(self.start_here())).await;
        let all = || known.iter().chain(&made);
        if let Some(since) = all().filter_map(Joined::since).min() {
            self.note_since(since);
        }
        let refused = all().find_map(|joined| joined.as_ref().err().cloned());
        (all().filter_map(Joined::since).count(), refused)
    }

    /// Sends one heartbeat for each member; returns the outcomes in the members' order.
    async fn join_with(
        self: &Arc<Self>,
        members: &[Arc<Member>],
        start: Option<StartAt>,
    ) -> Vec<Result<Joined, ConsumeError>> {
        let mut joining = JoinSet::new();
        for (index, member) in members.iter().enumerate() {
            let (member, engine) = (Arc::clone(member), Arc::clone(self));
            joining.spawn(async move { (index, member.join(&engine, start).await) });
        }
        let mut outcomes: BTreeMap<usize, _> = BTreeMap::new();
        while let Some(outcome) = joining.join_next().await {
            outcomes.extend(outcome.ok());
        }
        outcomes.into_values().collect()
    }

    /// Where the group starts at a broker that does not have it yet. A group that starts at the latest
    /// messages does not skip what was sent to that broker since the group was created.
    pub(crate) fn start_here(&self) -> StartAt {
        match (self.config.start, *lock(&self.since)) {
            (StartAt::Latest, Some(since)) => {
                StartAt::Time(Timestamp(since.0.saturating_sub(CLOCKS_APART_MS)))
            }
            (start, _) => start,
        }
    }

    /// Records since when a broker has had the group.
    pub(crate) fn note_since(&self, since: Timestamp) {
        let mut known = lock(&self.since);
        *known = Some(known.map_or(since, |known| known.min(since)));
    }

    /// Starts the tasks of one member.
    fn begin(self: &Arc<Self>, member: Arc<Member>) {
        lock(&self.members).insert(member.shard.clone(), Arc::clone(&member));
        for slot in 0..self.config.threads.max(1) {
            let poller = Poller::new(Arc::clone(self), Arc::clone(&member), slot);
            drop(self.client.tasks.spawn(self.pollers.track_future(poller.run())));
        }
        let keeper = member.run(Arc::clone(self));
        drop(self.client.tasks.spawn(self.keepers.track_future(keeper)));
    }

    /// Joins at brokers that get queues of the topic later; after polling has ended, makes the members leave.
    async fn follow(self: Arc<Self>) {
        let mut rounds = self.client.routes.rounds();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                changed = rounds.changed() => if changed.is_err() {
                    self.stop.cancelled().await;
                    break;
                },
            }
            let Some(route) = self.client.routes.cached(&self.topic) else {
                continue;
            };
            for shard in route.shards() {
                if !lock(&self.members).contains_key(shard) {
                    self.begin(Arc::new(Member::new(shard.clone())));
                }
            }
        }
        self.pollers.close();
        self.pollers.wait().await;
        self.sink.close();
        self.leave.cancel();
    }

    /// Stops the consumer and waits until its members have left.
    pub(crate) async fn shut_down(&self) -> Result<(), ConsumeError> {
        self.stop.cancel();
        self.keepers.close();
        self.keepers.wait().await;
        let failure = self.failure.borrow().clone();
        failure.map_or(Ok(()), Err)
    }

    /// Stops the consumer because of an error.
    pub(crate) fn fail(&self, error: ConsumeError) {
        tracing::error!(topic = %self.topic, group = %self.group, %error, "the consumer stops");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(error);
            first
        });
        self.stop.cancel();
    }

    /// Waits until it has stopped, by itself or otherwise.
    pub(crate) async fn stopped(&self) -> Result<(), ConsumeError> {
        self.stop.cancelled().await;
        let failure = self.failure.borrow().clone();
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn failure(&self) -> Option<ConsumeError> {
        self.failure.borrow().clone()
    }

    pub(crate) fn event(&self, event: ConsumerEvent) {
        match &self.observer {
            Some(observer) => observer(event),
            None => event.log(),
        }
    }

    /// The queues assigned to it now, sorted.
    pub(crate) fn assigned(&self) -> Vec<QueueNumber> {
        let members = lock(&self.members);
        let mut queues: Vec<_> = members
            .values()
            .flat_map(|member| member.queues().borrow().keys().copied().collect::<Vec<_>>())
            .collect();
        queues.sort_unstable();
        queues
    }

    /// The brokers of the topic that were reported as silent and have not answered since.
    pub(crate) fn silent(&self) -> Vec<ShardName> {
        let members = lock(&self.members);
        let silent = members.values().filter(|member| member.silence.is_told());
        silent.map(|member| member.shard.clone()).collect()
    }

    /// Waits until all acks have reached the brokers.
    pub(crate) async fn settle(&self) {
        let members: Vec<_> = lock(&self.members).values().cloned().collect();
        for member in members {
            member.acks.wait_settled().await;
        }
    }
}
