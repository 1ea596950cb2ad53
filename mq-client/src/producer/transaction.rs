//! Transactional messages: stored where no consumer sees them, then the local transaction runs, then its decision makes
//! them visible or drops them. When the decision does not arrive, the broker asks the producers of the group.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mq_common::api::produce::TopicBatches;
use mq_common::api::transaction::{
    Check, Decision, EndTransactionRequest, EndTransactionResponse, Placed, PollChecksRequest,
    SendHalfRequest, TransactionState,
};
use mq_common::batch::{Batch, BatchError, Builder, BuilderOptions};
use mq_common::ids::{Durability, GroupName, MemberId, QueueNumber, ShardName, TopicName, TransactionId};
use rpc_core::balance::{Node, Pick};
use rpc_core::registry::Instance;
use rpc_core::{Attachment, CallError, Executed};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::partitioner::{Place, place};
use crate::client::{Inner, random_member, wall_clock};
use crate::error::{Outcome, RouteError, SendError};
use crate::message::Message;
use crate::route::TopicRoute;

/// Wait of one poll for questions at the broker.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// Questions in one answer.
const POLL_MAX: u32 = 32;
/// Wait after a poll or an end that failed, doubled each time up to the maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Decides transactions: the application's side of them.
#[async_trait]
pub trait TransactionListener: Send + Sync + 'static {
    /// What the application hands to [`TransactionProducer::send_messages_in_transaction`] for
    /// [`TransactionListener::execute_local_transaction`].
    type Argument: Send + Sync + ?Sized;

    /// Runs the local transaction; the half messages are stored. It should write the transaction's id (or its key)
    /// together with its own data, so that a later check can tell. A panic counts as `Unknown`.
    async fn execute_local_transaction(
        &self,
        transaction: &TransactionId,
        messages: &[Message],
        argument: &Self::Argument,
    ) -> Decision;

    /// Says how a transaction ended whose decision never reached the broker; perhaps another process began it. `Unknown`
    /// = ask again later. A panic counts as `Unknown`.
    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision;
}

/// A question: how did this transaction end?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedTransaction {
    /// Which.
    pub transaction: TransactionId,
    /// The application's key, if it gave one.
    pub key: Option<String>,
    /// Questions counted before this one.
    pub asked: u32,
    /// Its messages, as they were sent.
    pub messages: Vec<Message>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionReceipt {
    /// Which.
    pub transaction: TransactionId,
    /// What was decided; after `Unknown` the broker will ask.
    pub decision: Decision,
    /// Where it stands at the broker.
    pub state: TransactionState,
    /// The durability of the commit, or else of the half messages.
    pub durability: Durability,
    /// Where its batches went, after a commit.
    pub placed: Vec<Placed>,
}

/// Why a transaction did not end as wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// The half messages were not stored (or, if the outcome is unknown, may have been: the listener will be asked).
    /// The local transaction did not run.
    #[error("half messages: {0}")]
    Half(SendError),
    /// The local transaction ran, but its decision did not reach the broker in time: the listener will be asked.
    #[error(
        "transaction `{transaction}`: its decision ({decision:?}) is not known to have arrived, the broker will ask for it: {error}"
    )]
    End {
        /// Which.
        transaction: TransactionId,
        /// What was decided.
        decision: Decision,
        /// What happened.
        error: SendError,
    },
}

/// Configures a [`TransactionProducer`].
#[derive(Debug)]
#[must_use]
pub struct TransactionProducerBuilder<L> {
    client: Arc<Inner>,
    group: GroupName,
    listener: L,
    timeout: Duration,
    check_after: Option<Duration>,
}

impl<L: TransactionListener> TransactionProducerBuilder<L> {
    pub(crate) const fn new(client: Arc<Inner>, group: GroupName, listener: L) -> Self {
        Self {
            client,
            group,
            listener,
            timeout: Duration::from_secs(10),
            check_after: None,
        }
    }

    /// How long the half send and, separately, the end may take, their retries included. Default 10 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// When the broker asks first if no decision comes. Default 6 s; take more than the local transaction needs.
    pub const fn check_after(mut self, wait: Duration) -> Self {
        self.check_after = Some(wait);
        self
    }

    /// Builds it and begins to answer questions of all brokers. Call within a tokio runtime.
    pub fn build(self) -> TransactionProducer<L> {
        let stop = self.client.stop.child_token();
        let shared = Arc::new(Shared {
            member: random_member(),
            client: self.client,
            group: self.group,
            listener: self.listener,
            timeout: self.timeout,
            check_after: self.check_after,
        });
        let answering = Arc::clone(&shared).answer_checks(stop.clone());
        drop(shared.client.tasks.spawn(answering));
        TransactionProducer {
            shared,
            _stop: stop.drop_guard(),
        }
    }
}

/// Sends messages in transactions, and answers the broker's questions about those of its group. Dropping it stops the
/// answering.
#[derive(Debug)]
pub struct TransactionProducer<L> {
    shared: Arc<Shared<L>>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared<L> {
    client: Arc<Inner>,
    group: GroupName,
    member: MemberId,
    listener: L,
    timeout: Duration,
    check_after: Option<Duration>,
}

/// Half messages that were stored, for those who decide without a listener's call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfReceipt {
    /// The transaction.
    pub transaction: TransactionId,
    /// The durability that the half messages reached.
    pub durability: Durability,
    /// Where it stands; other than open only when its key was known already.
    pub state: TransactionState,
}

impl<L: TransactionListener> TransactionProducer<L> {
    /// Stores the messages as half messages, runs the listener's local transaction, and tells the broker its decision.
    /// All messages become visible at once, or never.
    ///
    /// # Errors
    /// [`TransactionError`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave half messages without a decision: the broker will ask the listener.
    pub async fn send_messages_in_transaction(
        &self,
        messages: Vec<Message>,
        argument: &L::Argument,
    ) -> Result<TransactionReceipt, TransactionError> {
        let half = self
            .send_half(&messages, None)
            .await
            .map_err(TransactionError::Half)?;
        let listener = &self.shared.listener;
        let local = listener.execute_local_transaction(&half.transaction, &messages, argument);
        let decision = without_panic(local).await.unwrap_or(Decision::Unknown);
        self.end(&half, decision).await
    }

    /// Stores the messages as half messages. With `key` (at most 64 bytes) the call may be repeated: the same key with
    /// the same messages is the same transaction.
    ///
    /// # Errors
    /// [`SendError`]; of unknown outcome only without a key.
    pub async fn send_half(
        &self,
        messages: &[Message],
        key: Option<String>,
    ) -> Result<HalfReceipt, SendError> {
        self.shared.send_half(messages, key).await
    }

    /// Tells the broker the decision, again and again until it is known to have it or the time is over.
    ///
    /// # Errors
    /// [`TransactionError::End`].
    pub async fn end(
        &self,
        half: &HalfReceipt,
        decision: Decision,
    ) -> Result<TransactionReceipt, TransactionError> {
        let ended =
            self.shared
                .client
                .end_transaction(&half.transaction, decision, None, self.shared.timeout);
        match ended.await {
            Ok(response) => Ok(TransactionReceipt {
                transaction: half.transaction.clone(),
                decision,
                state: response.state,
                durability: response
                    .receipt
                    .map_or(half.durability, |receipt| receipt.durability),
                placed: response.placed,
            }),
            Err(error) => Err(TransactionError::End {
                transaction: half.transaction.clone(),
                decision,
                error,
            }),
        }
    }
}

impl<L: TransactionListener> Shared<L> {
    async fn send_half(&self, messages: &[Message], key: Option<String>) -> Result<HalfReceipt, SendError> {
        let deadline = Instant::now() + self.timeout;
        let plan = Plan::of(&self.client, messages, deadline).await?;
        let mut wait = AGAIN_FIRST;
        loop {
            let error = match self.try_half(&plan, key.clone(), deadline).await {
                Ok(receipt) => return Ok(receipt),
                Err(error) => error,
            };
            let repeatable = key.is_some() || error.outcome() == Outcome::Definite;
            let passing = matches!(&error, SendError::Rpc(_))
                || error.code().is_some_and(|code| {
                    use mq_common::ErrorCode::{NotLeader, OutcomeUnknown, Overloaded, ShuttingDown};
                    matches!(code, NotLeader | OutcomeUnknown | Overloaded | ShuttingDown)
                });
            if !repeatable || !passing || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    async fn try_half(
        &self,
        plan: &Plan<'_>,
        key: Option<String>,
        deadline: Instant,
    ) -> Result<HalfReceipt, SendError> {
        let (shard, broker) = plan.broker(&self.client)?;
        let (topics, batches) = plan.batches(&shard)?;
        let request = SendHalfRequest {
            producer_group: self.group.clone(),
            key,
            topics,
            check_after_ms: self.check_after.map(millis),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let call = self
            .client
            .transaction
            .send_half(request, batches)
            .to(&broker)
            .timeout(left);
        match call.await {
            Ok(response) => {
                self.client.routes.answered(&shard);
                Ok(HalfReceipt {
                    transaction: response.transaction,
                    durability: response.durability,
                    state: response.state,
                })
            }
            Err(error) => {
                if matches!(&error, CallError::Rpc(rpc) if rpc.executed != Executed::Yes) {
                    self.client.routes.failed(&shard);
                }
                Err(error.into())
            }
        }
    }

    /// Polls every broker for questions, those that come and go included.
    async fn answer_checks(self: Arc<Self>, stop: CancellationToken) {
        let mut registrations = self.client.routes.registrations();
        let mut polls: BTreeMap<ShardName, (Arc<Instance>, DropGuard)> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            registrations.mark_unchanged();
            let brokers = self.client.routes.brokers();
            polls.retain(|shard, (instance, _)| {
                brokers
                    .get(shard)
                    .is_some_and(|now| now.address == instance.address)
            });
            for (shard, broker) in brokers {
                if polls.contains_key(&shard) {
                    continue;
                }
                let token = stop.child_token();
                tasks.spawn(Arc::clone(&self).poll(Arc::clone(&broker), token.clone()));
                polls.insert(shard, (broker, token.drop_guard()));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = registrations.changed() => if changed.is_err() {
                    break;
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        drop(polls);
        tasks.join_all().await;
    }

    async fn poll(self: Arc<Self>, broker: Arc<Instance>, stop: CancellationToken) {
        let mut wait = AGAIN_FIRST;
        let mut received = Vec::new();
        loop {
            let request = PollChecksRequest {
                producer_group: self.group.clone(),
                member: self.member.clone(),
                received: std::mem::take(&mut received),
                max: POLL_MAX,
                wait_ms: millis(POLL_WAIT),
            };
            let call = self.client.transaction.poll_checks(request).to(&broker);
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = call.timeout(POLL_WAIT + Duration::from_secs(5)) => answer,
            };
            match answer {
                Ok((response, batches)) => {
                    wait = AGAIN_FIRST;
                    let mut batches = batches.into_bytes();
                    for check in response.checks {
                        let transaction = check.transaction.clone();
                        let answered = tokio::select! {
                            () = stop.cancelled() => return,
                            answered = self.answer(check, &mut batches) => answered,
                        };
                        if !answered {
                            received.push(transaction);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(broker = %broker.name, %error, "poll for transaction checks failed");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    /// Asks the listener and tells the broker; false if the broker did not get the answer.
    async fn answer(&self, check: Check, batches: &mut Bytes) -> bool {
        let messages = match messages_of(&check.topics, batches) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(transaction = %check.transaction, %error, "a half message cannot be read");
                return false;
            }
        };
        let checked = CheckedTransaction {
            transaction: check.transaction,
            key: check.key,
            asked: check.asked,
            messages,
        };
        let decision = without_panic(self.listener.check_local_transaction(&checked)).await;
        let decision = decision.unwrap_or(Decision::Unknown);
        let poller = Some((self.group.clone(), self.member.clone()));
        let ended = self
            .client
            .end_transaction(&checked.transaction, decision, poller, self.timeout)
            .await;
        if let Err(error) = &ended {
            tracing::warn!(transaction = %checked.transaction, ?decision, %error, "a check was not answered");
        }
        ended.is_ok()
    }
}

impl Inner {
    /// Tells a transaction's broker how it ended, again until that is definite or `timeout` is over.
    pub(crate) async fn end_transaction(
        &self,
        transaction: &TransactionId,
        decision: Decision,
        answers: Option<(GroupName, MemberId)>,
        timeout: Duration,
    ) -> Result<EndTransactionResponse, SendError> {
        let deadline = Instant::now() + timeout;
        let mut wait = AGAIN_FIRST;
        loop {
            let request = EndTransactionRequest {
                transaction: transaction.clone(),
                decision,
                answers: answers.clone(),
            };
            let error = match self.routes.broker(&transaction.shard) {
                None => SendError::Route(RouteError::NoBrokers),
                Some(broker) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.transaction.end(request).to(&broker).timeout(left).await {
                        Ok(response) => return Ok(response),
                        Err(error) => SendError::from(error),
                    }
                }
            };
            let passing = match &error {
                SendError::Route(_) | SendError::Rpc(_) => true,
                error => error.code().is_some_and(|code| {
                    use mq_common::ErrorCode::{NotLeader, OutcomeUnknown, Overloaded, ShuttingDown};
                    matches!(code, NotLeader | OutcomeUnknown | Overloaded | ShuttingDown)
                }),
            };
            if !passing || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }
}

/// The messages of one transaction, with what decides their broker.
struct Plan<'a> {
    messages: Vec<(&'a Message, Arc<TopicRoute>, Place)>,
    /// The broker that pinned messages belong to.
    pinned: Option<ShardName>,
}

impl<'a> Plan<'a> {
    async fn of(client: &Inner, messages: &'a [Message], deadline: Instant) -> Result<Self, SendError> {
        let mut plan = Self {
            messages: Vec::with_capacity(messages.len()),
            pinned: None,
        };
        for message in messages {
            let route = client.routes.topic(&message.topic, deadline).await?;
            let place = place(&route, message)?;
            if let Place::Pinned(queue) = place {
                let shard = route.home(queue)?;
                match &plan.pinned {
                    Some(first) if first != shard => {
                        return Err(SendError::SeveralBrokers {
                            first: first.clone(),
                            second: shard.clone(),
                        });
                    }
                    _ => plan.pinned = Some(shard.clone()),
                }
            }
            plan.messages.push((message, route, place));
        }
        if plan.messages.is_empty() {
            return Err(SendError::Empty);
        }
        Ok(plan)
    }

    /// The pinned messages' broker, else one that the balancer picks among those with queues of every topic.
    fn broker(&self, client: &Inner) -> Result<(ShardName, Arc<Instance>), SendError> {
        let has_all = |shard: &ShardName| {
            self.messages
                .iter()
                .all(|(_, route, _)| !route.queues_of(shard).is_empty())
        };
        if let Some(shard) = &self.pinned {
            if !has_all(shard) {
                return Err(SendError::Route(RouteError::NoBrokers));
            }
            let broker = client
                .routes
                .broker(shard)
                .ok_or(SendError::Route(RouteError::NoBrokers))?;
            return Ok((shard.clone(), broker));
        }
        let able: Vec<_> = client
            .routes
            .brokers()
            .into_iter()
            .filter(|(shard, _)| has_all(shard))
            .collect();
        let any_well = able.iter().any(|(shard, _)| !client.routes.avoided(shard));
        let mut nodes: Vec<_> = able
            .into_iter()
            .filter(|(shard, _)| !any_well || !client.routes.avoided(shard))
            .map(|(_, broker)| Arc::new(Node::new(broker)))
            .collect();
        nodes.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        // A picker for this call alone would begin with the same broker each time: turn the list instead.
        let turn = fastrand::usize(..nodes.len().max(1));
        nodes.rotate_left(turn);
        let pick = Pick {
            method: "send_half",
            hash_key: None,
            tried: &[],
        };
        let node = client.balancer.rebuild(&nodes, None).pick(&pick);
        let broker = node.map(|node| Arc::clone(&node.instance));
        let broker = broker.ok_or(SendError::Route(RouteError::NoBrokers))?;
        let shard =
            ShardName::new(broker.name.as_str()).map_err(|_| SendError::Route(RouteError::NoBrokers))?;
        Ok((shard, broker))
    }

    /// The batches for this broker: one for each queue; free messages of a topic go to one queue of it together.
    fn batches(&self, shard: &ShardName) -> Result<(Vec<TopicBatches>, Attachment), SendError> {
        let now = wall_clock();
        let mut builders: BTreeMap<(TopicName, QueueNumber), Builder> = BTreeMap::new();
        let mut free: BTreeMap<TopicName, QueueNumber> = BTreeMap::new();
        for (message, route, place) in &self.messages {
            let queue = match place {
                Place::Pinned(queue) => *queue,
                Place::Free => *free.entry(message.topic.clone()).or_insert_with(|| {
                    let queues = route.queues_of(shard);
                    queues
                        .get(fastrand::usize(..queues.len().max(1)))
                        .copied()
                        .unwrap_or_default()
                }),
            };
            let builder = builders
                .entry((message.topic.clone(), queue))
                .or_insert_with(|| Builder::new(BuilderOptions::default()));
            builder.push(&message.record(now))?;
        }
        let mut topics: Vec<TopicBatches> = Vec::new();
        let mut attachment = Attachment::new();
        for ((topic, queue), mut builder) in builders {
            let batch = builder.finish()?;
            let part = (queue, batch.header().region_bytes);
            match topics.last_mut().filter(|last| last.topic == topic) {
                Some(last) => last.batches.push(part),
                None => topics.push(TopicBatches {
                    topic,
                    batches: vec![part],
                }),
            }
            attachment.push(batch.into_bytes());
        }
        Ok((topics, attachment))
    }
}

/// Takes the batches of one question off `batches` and decodes them.
fn messages_of(topics: &[TopicBatches], batches: &mut Bytes) -> Result<Vec<Message>, BatchError> {
    let mut messages = Vec::new();
    let lengths = topics
        .iter()
        .flat_map(|topic| topic.batches.iter().map(move |batch| (&topic.topic, batch)));
    for (topic, &(queue, bytes)) in lengths {
        let bytes = bytes as usize;
        if bytes > batches.len() {
            return Err(BatchError::Truncated {
                what: "the batches of a question",
                expected: bytes,
                actual: batches.len(),
            });
        }
        let records = Batch::parse(batches.split_to(bytes))?.records()?;
        for record in &records {
            messages.push(Message::of_record(topic, queue, records.bytes(), &record?));
        }
    }
    Ok(messages)
}

/// Runs a listener's future; `None` if it panicked.
async fn without_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
