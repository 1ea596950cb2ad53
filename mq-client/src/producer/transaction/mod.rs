//! Transactional messages: stored where no consumer sees them, then the local transaction runs, then its decision makes
//! them visible or drops them. When the decision does not arrive, the broker asks the producers of the group.

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

/// Wait after a poll or an end that failed, doubled each time up to the maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// The longest such wait when the broker was not reached: attempts to connect have pauses of their own.
const UNREACHED_MAX: Duration = Duration::from_millis(200);

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
    /// A receipt for each message in the order they were sent, after a commit; empty if the broker cannot name all places
    /// any more, because a topic was deleted meanwhile.
    pub receipts: Vec<SendReceipt>,
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
    /// Which broker takes the next transaction that no key or queue binds.
    choice: Choice,
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
    layout: Arc<Layout>,
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

    /// Stores the messages as half messages. With `key` (at most 64 bytes, unique in the producer group) they are sent
    /// again when it is not known whether they arrived, and are one transaction all the same. So they are when the
    /// application itself calls again with the key and the same messages, also after a restart: it gets the first
    /// transaction and where it stands. Other messages under a known key are refused with `TransactionKeyReused`, which
    /// names the transaction. Messages are the same if topic, chosen queue, key, tag, properties and payload are.
    ///
    /// # Errors
    /// [`SendError`]; of unknown outcome when an attempt may have arrived: then the listener may be asked.
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
            // What may have arrived is sent again as it is, to the same broker: a key is unique at one broker.
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
                // Where the transaction stands, whatever became of earlier attempts.
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

/// How long to wait after the next failure like this one.
fn next_wait(wait: Duration, error: &SendError) -> Duration {
    let longest = match error {
        SendError::Rpc(error) if error.code == Code::Unavailable => UNREACHED_MAX,
        _ => AGAIN_MAX,
    };
    (wait * 2).min(longest)
}

/// The first attempt of unknown outcome. A later one that was definitely refused does not undo it: the whole then fails
/// with this one.
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

/// Whether the same call may go better a little later.
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
