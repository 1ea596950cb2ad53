//! Transactional messages: half messages, their end, and the check-back.

use rpc_core::Attachment;
use serde::{Deserialize, Serialize};

use crate::api::page::{Page, PageRequest};
use crate::api::produce::{Receipt, TopicBatches};
use crate::error::Error;
use crate::ids::{
    Durability, GroupName, MemberId, Offset, QueueNumber, Timestamp, TopicName, TransactionId,
    TransactionNumber,
};

/// Transactions of one broker.
#[rpc_core::service(name = "hc.mq.Transaction")]
pub trait Transaction {
    /// Stores half messages where no consumer sees them. The attachment contains their batches, as for a
    /// produce.
    async fn send_half(
        &self,
        request: SendHalfRequest,
        batches: Attachment,
    ) -> Result<SendHalfResponse, Error>;

    /// Ends a transaction. The first decision wins: repeating it returns `already`, the opposite one fails
    /// with [`crate::ErrorCode::TransactionConflict`].
    #[rpc(idempotent)]
    async fn end(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error>;

    /// Resumes a parked transaction: its producers are asked at once, with as many questions and as much time
    /// as at first.
    #[rpc(idempotent)]
    async fn resume(&self, transaction: TransactionId) -> Result<ResumeTransactionResponse, Error>;

    /// A long poll for questions. The attachment contains the batches of all of them, in their order.
    async fn poll_checks(
        &self,
        request: PollChecksRequest,
    ) -> Result<(PollChecksResponse, Attachment), Error>;

    /// Undecided transactions, oldest first.
    #[rpc(idempotent)]
    async fn list(
        &self,
        page: PageRequest<TransactionNumber>,
    ) -> Result<Page<TransactionDescription, TransactionNumber>, Error>;
}

/// Stores the messages of one transaction where no consumer sees them. Batches are attached as for a produce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendHalfRequest {
    /// The group whose producers are asked if no decision arrives.
    pub producer_group: GroupName,
    /// Makes the call repeatable: the same key with the same messages returns the first transaction.
    pub key: Option<String>,
    /// With a key: the [`crate::content::ContentDigest`] of the messages. A repetition has the same messages
    /// if its digest is equal, even if its batches were built elsewhere or at another time; `None` = if its
    /// batches have the same bytes.
    pub digest: Option<u64>,
    /// The queues that the batches are for.
    pub topics: Vec<TopicBatches>,
    /// First question after this many milliseconds; `None` = 6000.
    pub check_after_ms: Option<u32>,
}

/// The half messages are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendHalfResponse {
    /// The transaction.
    pub transaction: TransactionId,
    /// The durability reached: the strictest floor of its topics.
    pub durability: Durability,
    /// Its state; other than `Open` only if the key was already known.
    pub state: TransactionState,
}

/// The state of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// Undecided; its producers are asked.
    Open,
    /// Undecided, and its producers are no longer asked: a person must decide.
    Parked,
    /// Its messages are visible.
    Committed,
    /// Its messages will never be visible.
    RolledBack,
}

/// The application's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Make the messages visible.
    Commit,
    /// Drop them.
    Rollback,
    /// Not known yet: ask again later.
    Unknown,
}

/// Ends a transaction. The first decision wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransactionRequest {
    /// The transaction.
    pub transaction: TransactionId,
    /// The decision.
    pub decision: Decision,
    /// The poller whose question this answers, if it does: the question then counts.
    pub answers: Option<(GroupName, MemberId)>,
}

/// The queue and offset of one batch of a committed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// Offset of its first record.
    pub base_offset: Offset,
}

/// The result of ending a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransactionResponse {
    /// Its state now.
    pub state: TransactionState,
    /// Whether it was already in that state before this call.
    pub already: bool,
    /// The commit's receipt; `base_offset` is that of the first batch. `None` unless committed by this call.
    pub receipt: Option<Receipt>,
    /// The queues and offsets of its batches; empty if the broker no longer remembers them.
    pub placed: Vec<Placed>,
}

/// The transaction is open, and its producers are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeTransactionResponse {
    /// Whether it was open already, not parked.
    pub already: bool,
}

/// Waits for questions about open transactions of a producer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollChecksRequest {
    /// The group.
    pub producer_group: GroupName,
    /// The producer that polls.
    pub member: MemberId,
    /// Questions that this producer received and could not answer: they count.
    pub received: Vec<TransactionId>,
    /// The most questions in the response.
    pub max: u32,
    /// How long to wait while there are none, milliseconds.
    pub wait_ms: u32,
}

/// One question. Its batches are attached, in the order of all questions, without length fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The transaction.
    pub transaction: TransactionId,
    /// The application's key, if it gave one.
    pub key: Option<String>,
    /// How many questions were counted before this one.
    pub asked: u32,
    /// The queues that the batches are for.
    pub topics: Vec<TopicBatches>,
}

/// The questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollChecksResponse {
    /// Empty if the wait ended without a question.
    pub checks: Vec<Check>,
}

/// One undecided transaction as `txn list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionDescription {
    /// Which.
    pub transaction: TransactionId,
    /// Its state.
    pub state: TransactionState,
    /// The group of its producer.
    pub producer_group: GroupName,
    /// The application's key.
    pub key: Option<String>,
    /// When its half messages were stored, or when it was last resumed.
    pub since: Timestamp,
    /// Questions counted.
    pub asked: u32,
    /// The number of messages in it.
    pub messages: u64,
    /// The topics of its messages.
    pub topics: Vec<TopicName>,
}
