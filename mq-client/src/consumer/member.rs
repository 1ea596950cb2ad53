//! Membership at one broker: one task that sends heartbeats and acks, takes over assigned queues, and gives
//! queues back once the application no longer works on them and their acks have arrived.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::group::{AckRequest, GroupMode, HeartbeatRequest, HeartbeatResponse, StartAt};
use mq_common::ids::{OwnerEpoch, QueueNumber, ShardName, Timestamp};
use rpc_core::registry::InstanceId;
use rpc_core::{CallError, Code, Executed, RpcError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::engine::Engine;
use super::event::ConsumerEvent;
use super::owned::{Acks, Owned};
use super::silence::{self, Silence};
use crate::error::ConsumeError;

/// Used until the broker has stated its heartbeat interval and session timeout.
const HEARTBEAT: Duration = Duration::from_secs(3);
const SESSION: Duration = Duration::from_secs(12);
/// Pause after a heartbeat or an ack that did not arrive.
const AGAIN: Duration = Duration::from_millis(300);
/// The same if the broker was not even reached.
const UNREACHED: Duration = Duration::from_millis(50);
/// Heartbeats sent ahead of schedule are at least this far apart.
const HURRIED: Duration = Duration::from_millis(50);
/// A heartbeat or an ack without an answer for this long is considered lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

pub(crate) type Queues = Arc<BTreeMap<QueueNumber, Arc<Owned>>>;

/// The membership at one broker.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shard: ShardName,
    pub(crate) acks: Arc<Acks>,
    /// The queues it owns; pollers watch it.
    queues: watch::Sender<Queues>,
    /// A poller doubts the membership: the task sends a heartbeat soon.
    doubt: Notify,
    /// The broker answered a heartbeat: tasks that wait before they call it again need not wait longer.
    heard: Notify,
    pub(crate) silence: Silence,
}

/// The outcome of a heartbeat.
pub(crate) enum Beat {
    /// It is a member.
    Taken(HeartbeatResponse),
    /// The broker does not know the member: join again.
    Forgotten,
    /// The broker does not have the group, and was not asked to create it.
    NoGroup,
    /// The broker was not reached.
    Silent(RpcError),
    /// The broker refuses the member.
    Refused(mq_common::Error),
}

/// When one member's next heartbeat and acks are due.
struct Times {
    heartbeat: Duration,
    session: Duration,
    next_heartbeat: Instant,
    next_ack: Option<Instant>,
    last_answer: Instant,
    last_beat: Instant,
    /// The broker's registration at the last heartbeat.
    instance: Option<InstanceId>,
}

/// The outcome of the first heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is a member of the group.
    Member {
        /// When the group was created at this broker.
        since: Timestamp,
    },
    /// The broker does not have the group, and was not asked to create it.
    NoGroup,
    /// The broker cannot be reached; joining is retried later.
    Later,
}

impl Joined {
    /// When the group was created there, if it is a member now.
    pub(crate) fn since<E>(joined: &Result<Self, E>) -> Option<Timestamp> {
        match joined {
            Ok(Self::Member { since }) => Some(*since),
            _ => None,
        }
    }
}

impl Member {
    pub(crate) fn new(shard: ShardName) -> Self {
        Self {
            shard,
            acks: Arc::default(),
            queues: watch::Sender::new(Arc::default()),
            doubt: Notify::new(),
            heard: Notify::new(),
            silence: Silence::default(),
        }
    }

    pub(crate) fn queues(&self) -> watch::Receiver<Queues> {
        self.queues.subscribe()
    }

    /// Joins by sending the first heartbeat. A group that is new here is created and starts at `start`; with
    /// `None` it is not created.
    ///
    /// # Errors
    /// The broker refuses the member.
    pub(crate) async fn join(&self, engine: &Engine, start: Option<StartAt>) -> Result<Joined, ConsumeError> {
        match self.beat(engine, start, false).await {
            Beat::Taken(response) => {
                self.take_over(engine, &response);
                Ok(Joined::Member {
                    since: response.since,
                })
            }
            Beat::NoGroup => Ok(Joined::NoGroup),
            Beat::Forgotten => Ok(Joined::Later),
            Beat::Silent(error) => {
                // An application that starts must know at once that not all of the topic is read.
                self.silence.begin(engine, &self.shard, &error, Duration::ZERO);
                Ok(Joined::Later)
            }
            Beat::Refused(error) => Err(self.refused(error)),
        }
    }

    /// Has the broker asked soon whether the membership is still valid.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until the broker answers a heartbeat.
    pub(crate) async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Maintains the membership until `engine.leave`, then sends the last acks and leaves.
    pub(crate) async fn run(self: Arc<Self>, engine: Arc<Engine>) {
        let now = Instant::now();
        let mut times = Times {
            heartbeat: HEARTBEAT,
            session: SESSION,
            next_heartbeat: now,
            next_ack: None,
            last_answer: now,
            last_beat: now,
            instance: None,
        };
        let mut registrations = engine.client.routes.registrations();
        loop {
            let ack_due = async {
                match times.next_ack {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = engine.leave.cancelled() => break,
                () = tokio::time::sleep_until(times.next_heartbeat) => {
                    self.heartbeat(&engine, &mut times).await;
                }
                () = self.doubt.notified() => times.hurry(),
                Ok(()) = registrations.changed() => {
                    let broker = engine.client.routes.broker(&self.shard);
                    // Restarted, or registered again: it has no members.
                    if broker.is_some_and(|broker| Some(&broker.id) != times.instance.as_ref()) {
                        times.hurry();
                    }
                }
                () = ack_due => {
                    times.next_ack = None;
                    if !self.tell(&engine).await {
                        times.next_ack = Some(Instant::now() + AGAIN);
                    } else if self.has_releasable() {
                        times.next_heartbeat = Instant::now();
                    }
                }
                () = self.acks.changed.notified() => {
                    let now = Instant::now();
                    if self.has_releasable() {
                        times.next_ack = None;
                        if self.tell(&engine).await {
                            times.next_heartbeat = now;
                        } else {
                            times.next_ack = Some(now + AGAIN);
                        }
                    } else if self.acks.is_dirty() {
                        times.next_ack.get_or_insert(now + engine.config.ack_interval);
                    }
                }
            }
        }
        self.tell(&engine).await;
        self.acks.told(Vec::new());
        self.beat(&engine, None, true).await;
        for owned in self.queues.send_replace(Arc::default()).values() {
            owned.lose();
        }
    }

    async fn heartbeat(&self, engine: &Arc<Engine>, times: &mut Times) {
        times.last_beat = Instant::now();
        times.instance = engine
            .client
            .routes
            .broker(&self.shard)
            .map(|broker| broker.id.clone());
        match self.beat(engine, Some(engine.start_here()), false).await {
            Beat::Taken(response) => {
                self.silence.end(engine, &self.shard);
                engine.note_since(response.since);
                times.heartbeat = Duration::from_millis(u64::from(response.heartbeat_ms.max(10)));
                times.session = Duration::from_millis(u64::from(response.session_ms));
                times.last_answer = Instant::now();
                times.next_heartbeat = times.last_answer + times.heartbeat;
                self.take_over(engine, &response);
                self.heard.notify_waiters();
                if self.is_releasing() {
                    // Another member waits for them.
                    times.next_heartbeat = times.next_heartbeat.min(times.last_answer + AGAIN);
                }
            }
            Beat::Forgotten | Beat::NoGroup => {
                self.lose_all(engine);
                times.next_heartbeat = Instant::now() + Duration::from_millis(10);
            }
            Beat::Silent(error) => {
                tracing::debug!(shard = %self.shard, %error, "heartbeat failed");
                self.silence
                    .begin(engine, &self.shard, &error, silence::TOLD_AFTER);
                let now = Instant::now();
                let wait = match (&times.instance, error.executed) {
                    // Its registration comes first.
                    (None, _) => times.heartbeat,
                    // Connection attempts have their own pauses, which such a call waits for.
                    (_, Executed::No) => UNREACHED,
                    _ => AGAIN,
                };
                times.next_heartbeat = now + wait;
                if now.duration_since(times.last_answer) > times.session {
                    // By now the broker has assigned the queues to others.
                    self.lose_all(engine);
                }
            }
            Beat::Refused(error) => {
                self.lose_all(engine);
                engine.fail(self.refused(error));
                times.next_heartbeat = Instant::now() + SESSION;
            }
        }
    }

    async fn beat(&self, engine: &Engine, start: Option<StartAt>, leaving: bool) -> Beat {
        let Some(broker) = engine.client.routes.broker(&self.shard) else {
            return Beat::Silent(RpcError::new(
                Code::Unavailable,
                Executed::No,
                "it is not registered now",
            ));
        };
        let now = Instant::now().into_std();
        // A queue left out is assigned to another member, which starts at the cursor: so not before the last
        // ack arrived.
        let released = |owned: &Arc<Owned>| owned.may_release(now) && !self.acks.holds(owned.queue);
        let owned = self
            .queues
            .borrow()
            .values()
            .filter(|owned| !released(owned))
            .cloned()
            .collect::<Vec<_>>();
        let request = HeartbeatRequest {
            group: engine.group.clone(),
            member: engine.member.clone(),
            topic: engine.topic.clone(),
            mode: GroupMode::Stream,
            start,
            owned: owned.iter().map(|owned| (owned.queue, owned.epoch)).collect(),
            leaving,
        };
        let call = engine
            .client
            .group
            .heartbeat(request)
            .to(&broker)
            .timeout(ANSWER_WITHIN);
        match call.await {
            Ok(response) => Beat::Taken(response),
            Err(CallError::App(error)) => match error.code {
                ErrorCode::NotMember | ErrorCode::Fenced => Beat::Forgotten,
                ErrorCode::UnknownGroup => Beat::NoGroup,
                ErrorCode::UnknownTopic if engine.client.routes.cached(&engine.topic).is_some() => {
                    // Other brokers have it: its creation has not reached this broker yet, or its deletion
                    // this client.
                    engine.client.routes.refresh_soon();
                    Beat::Silent(RpcError::new(Code::Unavailable, Executed::Yes, error.message))
                }
                code if may_pass(code) => {
                    Beat::Silent(RpcError::new(Code::Unavailable, Executed::Yes, error.message))
                }
                _ => Beat::Refused(error),
            },
            Err(CallError::Rpc(error)) => match error.code {
                Code::Unauthenticated | Code::Forbidden => {
                    Beat::Refused(mq_common::Error::new(ErrorCode::Unauthenticated, error.message))
                }
                _ => Beat::Silent(error),
            },
        }
    }

    /// Updates the owned queues to what the broker assigned.
    fn take_over(&self, engine: &Engine, response: &HeartbeatResponse) {
        let known = Arc::clone(&self.queues.borrow());
        let mut queues = BTreeMap::new();
        let mut changed = false;
        for assigned in &response.assigned {
            let same = known
                .get(&assigned.queue)
                .filter(|owned| owned.epoch == assigned.epoch && !owned.is_lost());
            let owned = match same {
                Some(owned) => Arc::clone(owned),
                None => {
                    changed = true;
                    engine.event(ConsumerEvent::Assigned {
                        queue: assigned.queue,
                        offset: assigned.cursor,
                    });
                    let acks = Arc::clone(&self.acks);
                    Arc::new(Owned::new(assigned.queue, assigned.epoch, assigned.cursor, acks))
                }
            };
            queues.insert(assigned.queue, owned);
        }
        for queue in &response.revoking {
            if let Some(owned) = queues.get(queue)
                && !owned.ended.is_cancelled()
            {
                engine.event(ConsumerEvent::Revoked { queue: *queue });
                owned.revoke(Instant::now().into_std());
                changed = true;
            }
        }
        for (queue, owned) in known.iter() {
            if !queues.get(queue).is_some_and(|now| Arc::ptr_eq(now, owned)) {
                if !owned.ended.is_cancelled() {
                    engine.event(ConsumerEvent::Reassigned { queue: *queue });
                }
                owned.lose();
                changed = true;
            }
        }
        if changed {
            self.queues.send_replace(Arc::new(queues));
            self.acks.changed.notify_one();
        }
    }

    /// Sends all pending acks to the broker; false if it was not reached.
    async fn tell(&self, engine: &Engine) -> bool {
        if !self.acks.is_dirty() {
            return true;
        }
        let Some(broker) = engine.client.routes.broker(&self.shard) else {
            return false;
        };
        let acks = self.acks.take();
        let request = AckRequest {
            group: engine.group.clone(),
            member: engine.member.clone(),
            topic: engine.topic.clone(),
            acks: acks.clone(),
        };
        let call = engine
            .client
            .group
            .ack(request)
            .to(&broker)
            .timeout(ANSWER_WITHIN);
        match call.await {
            Ok(response) => {
                let mut again = Vec::new();
                for (ack, outcome) in acks.into_iter().zip(response.outcomes) {
                    match outcome {
                        Ok(()) => {}
                        Err(error) if may_pass(error.code) => again.push(ack),
                        Err(error) => {
                            tracing::warn!(queue = %ack.queue, next = %ack.next, %error, "an ack was refused");
                            self.lose(engine, ack.queue, ack.epoch);
                        }
                    }
                }
                let told = again.is_empty();
                self.acks.told(again);
                told
            }
            Err(error) => {
                tracing::debug!(shard = %self.shard, %error, "acks not sent");
                let gone = matches!(&error, CallError::App(error)
                    if matches!(error.code, ErrorCode::NotMember | ErrorCode::UnknownGroup));
                if gone {
                    self.lose_all(engine);
                }
                self.acks.told(if gone { Vec::new() } else { acks });
                gone
            }
        }
    }

    /// The broker reported that this epoch of the queue has ended; the queue may already be assigned to this
    /// member again with a later epoch, as after a restart of the broker.
    pub(crate) fn lose(&self, engine: &Engine, queue: QueueNumber, epoch: OwnerEpoch) {
        self.lose_where(engine, |owned| owned.queue == queue && owned.epoch <= epoch);
        self.doubt();
    }

    fn lose_all(&self, engine: &Engine) {
        self.lose_where(engine, |_| true);
    }

    fn lose_where(&self, engine: &Engine, lost: impl Fn(&Owned) -> bool) {
        self.queues.send_if_modified(|queues| {
            let (gone, kept): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(queues)
                .iter()
                .map(|(queue, owned)| (*queue, Arc::clone(owned)))
                .partition(|(_, owned)| lost(owned));
            *queues = Arc::new(kept);
            for owned in gone.values() {
                owned.lose();
                engine.event(ConsumerEvent::Reassigned { queue: owned.queue });
            }
            !gone.is_empty()
        });
    }

    fn has_releasable(&self) -> bool {
        let now = Instant::now().into_std();
        self.queues.borrow().values().any(|owned| owned.may_release(now))
    }

    fn is_releasing(&self) -> bool {
        self.queues
            .borrow()
            .values()
            .any(|owned| owned.ended.is_cancelled())
    }

    fn refused(&self, error: mq_common::Error) -> ConsumeError {
        ConsumeError::Refused {
            shard: self.shard.clone(),
            error,
        }
    }
}

impl Times {
    /// The next heartbeat is due now, unless one was sent a moment ago.
    fn hurry(&mut self) {
        let soon = Instant::now().max(self.last_beat + HURRIED);
        self.next_heartbeat = self.next_heartbeat.min(soon);
    }
}

/// Whether the same request may succeed a little later; nothing is lost by waiting.
const fn may_pass(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Overloaded
            | ErrorCode::ShuttingDown
            | ErrorCode::NotLeader
            | ErrorCode::OutcomeUnknown
            | ErrorCode::ReadOnly
            | ErrorCode::DiskFull
    )
}
