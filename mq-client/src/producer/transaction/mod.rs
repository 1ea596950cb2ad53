//! Transactional messages: they are stored where no consumer sees them, then the local transaction runs, then
//! its decision makes them visible or drops them. If the decision does not arrive, the broker asks the
//! producers of the group.

mod checks;
mod choice;
mod layout;
mod plan;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use mq_common::ErrorCode;
use mq_common::api::transaction::{
    Decision, EndTransactionRequest, EndTransactionResponse, Placed, SendHalfRequest, TransactionState,
};
use mq_common::ids::{Durability, GroupName, MemberId, TransactionId};
use rpc_core::{CallError, Code, Executed};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::SendReceipt;
use crate::client::{Inner, random_member};
use crate::error::{Outcome, RouteError, SendError};
use crate::message::Message;
use choice::Choice;
use layout::Layout;
use plan::{Built, Plan};

/// The pause after a poll or an end that failed; it doubles each time, up to the maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// The longest such pause if the broker was not reached: connection attempts have their own pauses.
const UNREACHED_MAX: Duration = Duration::from_millis(200);

/// Decides transactions; implemented by the application.
#[async_trait]
pub trait TransactionListener: Send + Sync + 'static {
    /// The argument that [`TransactionProducer::send_messages_in_transaction`] passes on to
    /// [`TransactionListener::execute_local_transaction`].
    type Argument: Send + Sync + ?Sized;

    /// Runs the local transaction, after the half messages were stored. It should write the transaction's id
    /// (or its key) together with its own data, so that a later check finds it. A panic counts as `Unknown`.
    async fn execute_local_transaction(
        &self,
        transaction: &TransactionId,
        messages: &[Message],
        argument: &Self::Argument,
    ) -> Decision;

    /// Returns how a transaction ended whose decision never reached the broker; another process may have
    /// started it. After `Unknown` the broker asks again later. A panic counts as `Unknown`.
    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision;
}

/// A broker's question how a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedTransaction {
    /// The transaction.
    pub transaction: TransactionId,
    /// Its key, if the application gave one.
    pub key: Option<String>,
    /// How many questions were counted before this one.
    pub asked: u32,
    /// Its messages, as they were sent.
    pub messages: Vec<Message>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionReceipt {
    /// The transaction.
    pub transaction: TransactionId,
    /// What was decided; after `Unknown` the broker will ask.
    pub decision: Decision,
    /// Its state at the broker.
    pub state: TransactionState,
    /// The durability of the commit, or else of the half messages.
    pub durability: Durability,
    /// The queues and offsets of its batches, after a commit.
    pub placed: Vec<Placed>,
    /// After a commit, a receipt for each message in the order they were sent; empty if the broker can no
    /// longer name all offsets, because a topic was deleted meanwhile.
    pub receipts: Vec<SendReceipt>,
}

/// Why a transaction failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// The half messages were not stored (or, if the outcome is unknown, may have been: the listener will be
    /// asked). The local transaction did not run.
    #[error("half messages: {0}")]
    Half(SendError),
    /// The local transaction ran, but its decision did not reach the broker in time: the listener will be
    /// asked.
    #[error(
        "transaction `{transaction}`: its decision ({decision:?}) is not known to have arrived, the broker will ask for it: {error}"
    )]
    End {
        /// The transaction.
        transaction: TransactionId,
        /// What was decided.
        decision: Decision,
        /// The error of the last call.
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

    /// The timeout of the half send and, separately, of the end, including their retries. Default 10 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// When the broker asks for the first time if no decision arrives. Default 6 s; choose more than the
    /// local transaction needs.
    pub const fn check_after(mut self, wait: Duration) -> Self {
        self.check_after = Some(wait);
        self
    }

    /// Builds the producer and starts to answer the questions of all brokers. Call it within a tokio runtime.
    pub fn build(self) -> TransactionProducer<L> {
        let stop = self.client.stop.child_token();
        let shared = Arc::new(Shared {
            member: random_member(),
            client: self.client,
            group: self.group,
            listener: self.listener,
            timeout: self.timeout,
            check_after: self.check_after,
            choice: Choice::default(),
        });
        let answering = Arc::clone(&shared).answer_checks(stop.clone());
        drop(shared.client.tasks.spawn(answering));
        TransactionProducer {
            shared,
            _stop: stop.drop_guard(),
        }
    }
}

/// Sends messages in transactions, and answers the brokers' questions about the transactions of its group.
/// Dropping it stops the answering.
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
    /// Chooses the broker of the next transaction that no key or queue pins.
    choice: Choice,
}

/// The receipt for stored half messages, for applications that decide without a call of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfReceipt {
    /// The transaction.
    pub transaction: TransactionId,
    /// The durability that the half messages reached.
    pub durability: Durability,
    /// Its state; other than open only if its key was already known.
    pub state: TransactionState,
    layout: Arc<Layout>,
}

impl<L: TransactionListener> TransactionProducer<L> {
    /// Stores the messages as half messages, runs the listener's local transaction, and sends its decision to
    /// the broker. All messages become visible at once, or never.
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

    /// Stores the messages as half messages.
    ///
    /// With `key` (at most 64 bytes, unique in the producer group) the send is repeatable: it is retried even
    /// if it is unknown whether an attempt arrived, and still creates only one transaction. If the
    /// application repeats the call with the key and the same messages, even after a restart, it gets the
    /// first transaction and its state. Other messages with a known key are refused with
    /// `TransactionKeyReused`, which names the transaction. Messages are the same if their topic, chosen
    /// queue, key, tag, properties and payload are equal.
    ///
    /// # Errors
    /// [`SendError`]; of unknown outcome when an attempt may have arrived: then the listener may be asked.
    ///
    /// # Cancel safety
    /// Dropping the future may leave half messages without a decision: the broker will ask the listener. With
    /// `key` the same call returns that transaction.
    pub async fn send_half(
        &self,
        messages: &[Message],
        key: Option<String>,
    ) -> Result<HalfReceipt, SendError> {
        self.shared.send_half(messages, key).await
    }

    /// Sends the decision to the broker, with retries until the broker is known to have it or the timeout is
    /// over.
    ///
    /// # Errors
    /// [`TransactionError::End`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it open whether the decision arrived; if it did not, the broker will ask
    /// the listener. Repeating the call with the same decision is harmless.
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
            Ok(response) => {
                let durability = response
                    .receipt
                    .map_or(half.durability, |receipt| receipt.durability);
                Ok(TransactionReceipt {
                    transaction: half.transaction.clone(),
                    decision,
                    state: response.state,
                    durability,
                    receipts: half.layout.receipts(&response.placed, durability),
                    placed: response.placed,
                })
            }
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
        let plan = Plan::of(&self.client, messages, key.as_deref(), deadline).await?;
        let mut wait = AGAIN_FIRST;
        let mut built = None;
        let mut doubt = Doubt::default();
        loop {
            // What may have arrived is sent again unchanged, to the same broker: a key is unique at one
            // broker.
            let half = match built.take() {
                Some(half) => Ok(half),
                None => plan.build(&self.client, &self.choice),
            };
            let tried = match half {
                Ok(half) => {
                    let tried = self.try_half(&half, key.clone(), deadline).await;
                    built = key.is_some().then_some(half);
                    tried
                }
                Err(error) => Err(error),
            };
            let error = match tried {
                Ok(receipt) => return Ok(receipt),
                Err(error) => error,
            };
            doubt.note(&error);
            let repeatable = key.is_some() || error.outcome() == Outcome::Definite;
            if !repeatable || !may_pass(&error) || Instant::now() + wait >= deadline {
                return Err(doubt.or(error));
            }
            tokio::time::sleep(wait).await;
            wait = next_wait(wait, &error);
        }
    }

    async fn try_half(
        &self,
        half: &Built,
        key: Option<String>,
        deadline: Instant,
    ) -> Result<HalfReceipt, SendError> {
        let shard = half.shard.clone();
        let broker = self.client.routes.registered(&shard).map_err(SendError::Route)?;
        let batches = half.batches.clone();
        let request = SendHalfRequest {
            producer_group: self.group.clone(),
            digest: key.as_ref().map(|_| half.digest),
            key,
            topics: half.topics.clone(),
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
                    layout: Arc::clone(&half.layout),
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
}

impl Inner {
    /// Sends the decision to a transaction's broker, with retries until the outcome is definite or `timeout`
    /// is over.
    pub(crate) async fn end_transaction(
        &self,
        transaction: &TransactionId,
        decision: Decision,
        answers: Option<(GroupName, MemberId)>,
        timeout: Duration,
    ) -> Result<EndTransactionResponse, SendError> {
        let deadline = Instant::now() + timeout;
        let mut wait = AGAIN_FIRST;
        let mut doubt = Doubt::default();
        loop {
            let request = EndTransactionRequest {
                transaction: transaction.clone(),
                decision,
                answers: answers.clone(),
            };
            let error = match self.routes.registered(&transaction.shard) {
                Err(error) => SendError::Route(error),
                Ok(broker) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.transaction.end(request).to(&broker).timeout(left).await {
                        Ok(response) => return Ok(response),
                        Err(error) => SendError::from(error),
                    }
                }
            };
            doubt.note(&error);
            let known = matches!(
                error.code(),
                Some(ErrorCode::TransactionConflict | ErrorCode::UnknownTransaction)
            );
            if known {
                // This is the transaction's state, whatever the outcome of earlier attempts.
                return Err(error);
            }
            if !may_pass(&error) || Instant::now() + wait >= deadline {
                return Err(doubt.or(error));
            }
            tokio::time::sleep(wait).await;
            wait = next_wait(wait, &error);
        }
    }
}

/// The pause after the next failure of this kind.
fn next_wait(wait: Duration, error: &SendError) -> Duration {
    let longest = match error {
        SendError::Rpc(error) if error.code == Code::Unavailable => UNREACHED_MAX,
        _ => AGAIN_MAX,
    };
    (wait * 2).min(longest)
}

/// The first attempt of unknown outcome. A later one that was definitely refused does not undo it: the call
/// then fails with this one.
#[derive(Debug, Default)]
struct Doubt(Option<SendError>);

impl Doubt {
    fn note(&mut self, error: &SendError) {
        if self.0.is_none() && error.outcome() == Outcome::Unknown {
            self.0 = Some(error.clone());
        }
    }

    fn or(self, error: SendError) -> SendError {
        self.0.unwrap_or(error)
    }
}

/// Whether the same call may succeed a little later.
fn may_pass(error: &SendError) -> bool {
    match error {
        SendError::Rpc(_)
        | SendError::Route(
            RouteError::NoBrokers | RouteError::RegistrySilent | RouteError::Unregistered { .. },
        ) => true,
        error => matches!(
            error.code(),
            Some(
                ErrorCode::NotLeader
                    | ErrorCode::OutcomeUnknown
                    | ErrorCode::Overloaded
                    | ErrorCode::ShuttingDown
            )
        ),
    }
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
