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
    /// Stores half messages where no consumer sees them. The attachment holds their batches as for a produce.
    async fn send_half(
        &self,
        request: SendHalfRequest,
        batches: Attachment,
    ) -> Result<SendHalfResponse, Error>;

    /// Ends a transaction. The first decision wins: the same one again answers `already`, the opposite one
    /// [`crate::ErrorCode::TransactionConflict`].
    #[rpc(idempotent)]
    async fn end(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error>;

    /// Takes a parked transaction up again: its producers are asked at once, with as many questions and as much time as in
    /// the beginning.
    #[rpc(idempotent)]
    async fn resume(&self, transaction: TransactionId) -> Result<ResumeTransactionResponse, Error>;

    /// A long poll for questions. The attachment holds the batches of all of them, in their order.
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
    /// Whose producers are asked when no decision comes.
    pub producer_group: GroupName,
    /// Makes the call repeatable: the same key with the same messages answers with the first id.
    pub key: Option<String>,
    /// With a key: what the messages are, as [`crate::content::ContentDigest`] says it. Repetitions are the same messages
    /// if their digests are the same, whoever built their batches and when; `None` = if the batches' bytes are.
    pub digest: Option<u64>,
    /// Where the batches will go.
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
    /// Where it stands; other than `Open` only when the key was known already.
    pub state: TransactionState,
}

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// Undecided; its producers are asked.
    Open,
    /// Undecided; nobody is asked any more: a person decides.
    Parked,
    /// Its messages are visible.
    Committed,
    /// Its messages will never be visible.
    RolledBack,
}

/// What the application decided.
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
    /// Which.
    pub transaction: TransactionId,
    /// How.
    pub decision: Decision,
    /// The poller whose question this answers, if it does: the question then counts.
    pub answers: Option<(GroupName, MemberId)>,
}

/// Where one batch of a committed transaction went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// Offset of its first record.
    pub base_offset: Offset,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTransactionResponse {
    /// Where it stands now.
    pub state: TransactionState,
    /// It stood so before this call.
    pub already: bool,
    /// The commit's receipt; `base_offset` is that of the first batch. `None` unless committed by this call.
    pub receipt: Option<Receipt>,
    /// Where the batches went; empty when the decision is older than the broker's memory of it.
    pub placed: Vec<Placed>,
}

/// The transaction is open, its producers are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeTransactionResponse {
    /// It was not parked.
    pub already: bool,
}

/// Waits for questions about open transactions of a producer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollChecksRequest {
    /// The group.
    pub producer_group: GroupName,
    /// Who polls.
    pub member: MemberId,
    /// Questions that this poller received and could not answer: they count.
    pub received: Vec<TransactionId>,
    /// Questions in the answer at most.
    pub max: u32,
    /// How long to wait when there is none, milliseconds.
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
    /// Where the batches would go.
    pub topics: Vec<TopicBatches>,
}

/// The questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollChecksResponse {
    /// None when the wait ended without one.
    pub checks: Vec<Check>,
}

/// One undecided transaction as `txn list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionDescription {
    /// Which.
    pub transaction: TransactionId,
    /// Where it stands.
    pub state: TransactionState,
    /// Whose.
    pub producer_group: GroupName,
    /// The application's key.
    pub key: Option<String>,
    /// When its half messages were stored, or when it was last resumed.
    pub since: Timestamp,
    /// Questions counted.
    pub asked: u32,
    /// Messages in it.
    pub messages: u64,
    /// Topics it would go to.
    pub topics: Vec<TopicName>,
}
