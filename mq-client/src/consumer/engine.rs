//! What all tasks of one consumer share, and their start and stop: join at all brokers, then poll; stop polling, then
//! tell the last acks and leave.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_common::ids::{GroupName, MemberId, QueueNumber, ShardName, TopicName};
use rpc_core::{Code, Executed, RpcError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dispatch::Sink;
use super::event::ConsumerEvent;
use super::member::Member;
use super::poller::Poller;
use crate::client::{Inner, random_member};
use crate::config::ConsumerConfig;
use crate::error::ConsumeError;
use crate::route::lock;

/// How long the start may take to find the topic and the brokers.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Gets a consumer's events.
pub(crate) type Observer = Arc<dyn Fn(ConsumerEvent) + Send + Sync>;

/// See the module.
pub(crate) struct Engine {
    pub(crate) client: Arc<Inner>,
    pub(crate) config: ConsumerConfig,
    pub(crate) topic: TopicName,
    pub(crate) group: GroupName,
    pub(crate) member: MemberId,
    pub(crate) sink: Sink,
    /// Polling ends.
    pub(crate) stop: CancellationToken,
    /// Membership ends: polling has ended before.
    pub(crate) leave: CancellationToken,
    observer: Option<Observer>,
    members: Mutex<BTreeMap<ShardName, Arc<Member>>>,
    pollers: TaskTracker,
    keepers: TaskTracker,
    failure: watch::Sender<Option<ConsumeError>>,
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
        }
    }

    /// Joins at every broker that has queues of the topic, then begins to poll.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<(), ConsumeError> {
        let deadline = Instant::now() + START_WITHIN;
        let route = self.client.routes.topic(&self.topic, deadline).await?;
        self.client.routes.wait_for_brokers(deadline).await?;
        let mut joining = JoinSet::new();
        for shard in route.shards() {
            let (member, engine) = (Arc::new(Member::new(shard.clone())), Arc::clone(self));
            joining.spawn(async move { (member.join(&engine).await, member) });
        }
        let (mut members, mut joined, mut refused) = (Vec::new(), 0, None);
        while let Some(Ok((outcome, member))) = joining.join_next().await {
            match outcome {
                Ok(taken) => joined += usize::from(taken),
                Err(error) => refused = Some(error),
            }
            members.push(member);
        }
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
                // Leaves where it was taken, at once.
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

    /// Joins at brokers that get queues of the topic later; when polling has ended, lets the members leave.
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

    /// Stops, and waits until the members have left.
    pub(crate) async fn shut_down(&self) -> Result<(), ConsumeError> {
        self.stop.cancel();
        self.keepers.close();
        self.keepers.wait().await;
        let failure = self.failure.borrow().clone();
        failure.map_or(Ok(()), Err)
    }

    /// Stops by itself.
    pub(crate) fn fail(&self, error: ConsumeError) {
        tracing::error!(topic = %self.topic, group = %self.group, %error, "the consumer stops");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(error);
            first
        });
        self.stop.cancel();
    }

    /// Waits until it stopped, by itself or otherwise.
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

    /// The queues it owns now, sorted.
    pub(crate) fn assigned(&self) -> Vec<QueueNumber> {
        let members = lock(&self.members);
        let mut queues: Vec<_> = members
            .values()
            .flat_map(|member| member.queues().borrow().keys().copied().collect::<Vec<_>>())
            .collect();
        queues.sort_unstable();
        queues
    }

    /// Waits until all progress is told to the brokers.
    pub(crate) async fn settle(&self) {
        let members: Vec<_> = lock(&self.members).values().cloned().collect();
        for member in members {
            member.acks.wait_settled().await;
        }
    }
}
