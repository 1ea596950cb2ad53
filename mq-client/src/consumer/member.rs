//! Membership at one broker: one task that sends heartbeats and acks, takes grants over, and gives queues back once
//! nobody works on them and their acks have arrived.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::group::{AckRequest, GroupMode, HeartbeatRequest, HeartbeatResponse};
use mq_common::ids::{OwnerEpoch, QueueNumber, ShardName};
use rpc_core::{CallError, Code, Executed, RpcError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::engine::Engine;
use super::event::ConsumerEvent;
use super::owned::{Acks, Owned};
use crate::error::ConsumeError;

/// Before the broker has said how often it wants to hear from us.
const HEARTBEAT: Duration = Duration::from_secs(3);
const SESSION: Duration = Duration::from_secs(12);
/// Wait after a heartbeat or an ack that did not arrive.
const AGAIN: Duration = Duration::from_millis(300);
/// A heartbeat or an ack that takes longer is taken to be lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

pub(crate) type Queues = Arc<BTreeMap<QueueNumber, Arc<Owned>>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shard: ShardName,
    pub(crate) acks: Arc<Acks>,
    /// What it owns; pollers follow it.
    queues: watch::Sender<Queues>,
}

/// What a heartbeat came to.
pub(crate) enum Beat {
    /// It is a member.
    Taken(HeartbeatResponse),
    /// The broker does not know it (any more): join again.
    Forgotten,
    /// The broker was not reached.
    Silent(RpcError),
    /// The broker will not have it.
    Refused(mq_common::Error),
}

/// The times of one member.
struct Times {
    heartbeat: Duration,
    session: Duration,
    next_heartbeat: Instant,
    next_ack: Option<Instant>,
    last_answer: Instant,
}

impl Member {
    pub(crate) fn new(shard: ShardName) -> Self {
        Self {
            shard,
            acks: Arc::default(),
            queues: watch::Sender::new(Arc::default()),
        }
    }

    pub(crate) fn queues(&self) -> watch::Receiver<Queues> {
        self.queues.subscribe()
    }

    /// Joins: the first heartbeat.
    ///
    /// # Errors
    /// The broker refuses it. That a broker cannot be reached is `Ok(false)`: it is tried again later.
    pub(crate) async fn join(&self, engine: &Engine) -> Result<bool, ConsumeError> {
        match self.beat(engine, false).await {
            Beat::Taken(response) => {
                self.take_over(engine, &response);
                Ok(true)
            }
            Beat::Forgotten => Ok(false),
            Beat::Silent(error) => {
                tracing::warn!(shard = %self.shard, %error, "broker not reached, joining later");
                Ok(false)
            }
            Beat::Refused(error) => Err(self.refused(error)),
        }
    }

    /// Keeps the membership until `engine.leave`, then tells the last acks and leaves.
    pub(crate) async fn run(self: Arc<Self>, engine: Arc<Engine>) {
        let now = Instant::now();
        let mut times = Times {
            heartbeat: HEARTBEAT,
            session: SESSION,
            next_heartbeat: now,
            next_ack: None,
            last_answer: now,
        };
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
        self.beat(&engine, true).await;
        for owned in self.queues.send_replace(Arc::default()).values() {
            owned.lose();
        }
    }

    async fn heartbeat(&self, engine: &Arc<Engine>, times: &mut Times) {
        match self.beat(engine, false).await {
            Beat::Taken(response) => {
                times.heartbeat = Duration::from_millis(u64::from(response.heartbeat_ms.max(10)));
                times.session = Duration::from_millis(u64::from(response.session_ms));
                times.last_answer = Instant::now();
                times.next_heartbeat = times.last_answer + times.heartbeat;
                self.take_over(engine, &response);
                if self.is_releasing() {
                    // Somebody waits for them.
                    times.next_heartbeat = times.next_heartbeat.min(times.last_answer + AGAIN);
                }
            }
            Beat::Forgotten => {
                self.lose_all(engine);
                times.next_heartbeat = Instant::now() + Duration::from_millis(10);
            }
            Beat::Silent(error) => {
                tracing::debug!(shard = %self.shard, %error, "heartbeat failed");
                let now = Instant::now();
                times.next_heartbeat = now + AGAIN;
                if now.duration_since(times.last_answer) > times.session {
                    // By now the broker has given the queues to others.
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

    async fn beat(&self, engine: &Engine, leaving: bool) -> Beat {
        let Some(broker) = engine.client.routes.broker(&self.shard) else {
            let message = format!("broker `{}` is not registered now", self.shard);
            return Beat::Silent(RpcError::new(Code::Unavailable, Executed::No, message));
        };
        let now = Instant::now().into_std();
        // What it leaves out goes to another member, which begins at the cursor: not before the last ack has arrived.
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
            start: engine.config.start,
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
                ErrorCode::UnknownTopic if engine.client.routes.cached(&engine.topic).is_some() => {
                    // Others have it: its creation did not reach this broker yet, or its deletion not us.
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

    /// Makes what is owned what the broker says.
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
                    engine.event(ConsumerEvent::Lost { queue: *queue });
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

    /// Tells the broker all progress; false if it was not reached.
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
                tracing::debug!(shard = %self.shard, %error, "acks not told");
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

    /// One queue went to somebody else, the broker said of this epoch; it may be ours again under a later one.
    pub(crate) fn lose(&self, engine: &Engine, queue: QueueNumber, epoch: OwnerEpoch) {
        self.lose_where(engine, |owned| owned.queue == queue && owned.epoch <= epoch);
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
                engine.event(ConsumerEvent::Lost { queue: owned.queue });
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

/// Whether the same request may be taken a little later; nothing was lost by it.
const fn may_pass(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Overloaded
            | ErrorCode::ShuttingDown
            | ErrorCode::NotLeader
            | ErrorCode::OutcomeUnknown
            | ErrorCode::ReadOnly
    )
}
