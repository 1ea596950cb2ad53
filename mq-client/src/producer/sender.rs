//! Sends the batches that the batcher collected. One call to a broker carries the due batches of its queues;
//! each batch has its own outcome, but after a batch that the broker cannot append for now it appends none of
//! the same call, so that none overtakes another. A batch that was definitely not appended is retried until
//! it times out, at another broker if its messages are not pinned to a queue; one of unknown outcome never
//! is.

use std::sync::Arc;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::produce::{ProduceRequest, ProduceResponse, Receipt, TopicBatches};
use mq_common::ids::{Offset, ShardName, TopicId, TopicName};
use rpc_core::balance::Node;
use rpc_core::{Attachment, Call, Code, Executed, RpcError};

use super::batcher::{Class, LaneKey, Parcel};
use super::oneway::count;
use super::shared::{Shared, now};
use super::{SendReceipt, Waiter};
use crate::error::{Outcome, SendError};
use crate::route::lock;

/// The approximate limit of one call in bytes; a single batch may be larger.
const CALL_BYTES: usize = 4 * 1024 * 1024;
/// The pause before a batch is sent to the same broker again; it doubles each time, up to the maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// The longest such pause if the broker was not reached: a call waits for the next connection attempt, which
/// has its own pause.
const UNREACHED_MAX: Duration = Duration::from_millis(100);

/// How often a batch is moved away from brokers whose disk is full.
const FULL_MAX: u32 = 3;

impl Shared {
    /// Sends the shard's due batches, call after call, until none is left.
    pub(super) async fn ship(self: Arc<Self>, (shard, class): (ShardName, Class)) {
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
                Class::Confirmed => self.ship_confirmed(&shard, taken).await,
                Class::Oneway => self.ship_oneway(&shard, taken).await,
            }
        }
    }

    /// The due batches of the shard, and whether there are more. If there are none, this call's slot is free
    /// again.
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

    async fn ship_confirmed(self: &Arc<Self>, shard: &ShardName, taken: Vec<(LaneKey, Parcel<Waiter>)>) {
        let mut parcels = self.in_time(taken);
        if parcels.is_empty() {
            return;
        }
        let outcomes = match self.call(shard, &mut parcels) {
            Ok(call) => {
                let node = self.node(shard);
                let started = now();
                if let Some(node) = &node {
                    node.call_started();
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
                    node.call_ended();
                    let outcome = match &answer {
                        Err(SendError::Rpc(error)) => Err(error),
                        _ => Ok(()),
                    };
                    node.note(outcome, now() - started, now());
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

    /// Fails the batches that have timed out, and returns the others.
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
                reason: "its broker did not accept it in time".to_owned(),
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
                let (topic, id) = self.topic_identity(key.topic)?;
                topics.push(TopicBatches {
                    topic,
                    batches: Vec::new(),
                    id: Some(id),
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

    fn topic_identity(&self, index: usize) -> Result<(TopicName, TopicId), SendError> {
        let state = lock(&self.state);
        let topic = state.topics.get(index).ok_or(SendError::Closed)?.route.topic();
        Ok((topic.name.clone(), topic.id))
    }

    fn node(&self, shard: &ShardName) -> Option<Arc<Node>> {
        lock(&self.state).nodes.get(shard).cloned()
    }

    /// Remembers whether the broker could be reached.
    fn note(&self, shard: &ShardName, error: Option<&SendError>) {
        match error {
            None | Some(SendError::Broker(_)) => self.client.routes.answered(shard),
            Some(SendError::Rpc(error)) if error.executed != Executed::Yes => {
                self.client.routes.failed(shard);
            }
            Some(_) => {}
        }
    }

    /// Reports the outcome of a batch, or retries it.
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
        let gone = matches!(&outcome, Err(error) if error.code() == Some(ErrorCode::UnknownTopic));
        if again == Again::Elsewhere || gone {
            self.client.routes.refresh_soon();
        }
        let longest = match &outcome {
            Err(SendError::Rpc(error)) if error.code == Code::Unavailable => UNREACHED_MAX,
            _ => AGAIN_MAX,
        };
        let wait = AGAIN_FIRST
            .saturating_mul(1 << parcel.attempts.min(8))
            .min(longest);
        let late = parcel.since.elapsed() + wait >= self.config.timeout;
        let mut state = lock(&self.state);
        if again == Again::Never || late || state.closed {
            drop(state);
            self.resolve(key, parcel, outcome);
            return;
        }
        parcel.attempts += 1;
        let tries = match again {
            _ if parcel.pinned => 0,
            Again::Elsewhere => 1,
            Again::OnlyElsewhere if parcel.attempts <= FULL_MAX => FULL_MAX,
            _ => 0,
        };
        let moved = (0..tries).find_map(|_| {
            let queue = state.free_queue(&self.client, key.topic, key.class).ok()?;
            let route = Arc::clone(&state.topics.get(key.topic)?.route);
            let home = route.home(queue).ok()?.clone();
            if home != *shard {
                return Some((queue, home));
            }
            state.leave(LaneKey { queue, ..key });
            None
        });
        if again == Again::OnlyElsewhere && moved.is_none() {
            drop(state);
            self.resolve(key, parcel, outcome);
            return;
        }
        match moved {
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

    /// Notifies the batch's waiters, and frees its share of the budget.
    fn resolve(&self, key: LaneKey, mut parcel: Parcel<Waiter>, outcome: Result<Receipt, SendError>) {
        let records = parcel.content.record_count();
        let counter = match (key.class, &outcome) {
            (Class::Oneway, _) => &self.counters.oneway_dropped,
            (Class::Confirmed, Ok(_)) => &self.counters.confirmed,
            (Class::Confirmed, Err(error)) if error.outcome() == Outcome::Definite => &self.counters.failed,
            (Class::Confirmed, Err(_)) => &self.counters.unknown,
        };
        count(counter, records);
        let waiters = std::mem::take(&mut parcel.waiters);
        self.finish(key, &parcel);
        let topic = self.topic_identity(key.topic).map(|(name, _)| name);
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

    /// Lets the queue send its next batches, if this was its last one in flight, and returns the bytes to the
    /// budget.
    fn finish(&self, key: LaneKey, parcel: &Parcel<Waiter>) {
        lock(&self.state).batcher.done(key);
        self.budget.add_permits(parcel.cost);
        self.idle.notify_waiters();
    }
}

/// Whether and where a failed batch is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    /// At the same broker, a little later; no other broker would accept it.
    Here,
    /// At another broker if possible.
    Elsewhere,
    /// Only at another broker, since this one will not accept it for a while; without another one it fails at
    /// once.
    OnlyElsewhere,
}

fn again(error: &SendError) -> Again {
    match error {
        SendError::Broker(error) => match error.code {
            ErrorCode::UnknownQueue
            | ErrorCode::NotLeader
            | ErrorCode::Overloaded
            | ErrorCode::ReadOnly
            | ErrorCode::ShuttingDown => Again::Elsewhere,
            ErrorCode::DiskFull => Again::OnlyElsewhere,
            _ => Again::Never,
        },
        SendError::Rpc(error) if error.executed == Executed::No => match error.code {
            Code::Unavailable | Code::Overloaded | Code::Draining | Code::DeadlineExceeded => {
                Again::Elsewhere
            }
            // The broker may serve it again after a restart.
            Code::NotFound => Again::Here,
            _ => Again::Never,
        },
        _ => Again::Never,
    }
}

/// The outcome of each batch of a call.
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
