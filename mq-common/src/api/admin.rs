//! Management: topics, and the status of a broker.

use serde::{Deserialize, Serialize};

use super::page::{Page, PageRequest};
use super::settings::TopicSettings;
use crate::error::Error;
use crate::ids::{Durability, Lsn, Offset, QueueNumber, ShardName, Term, TopicId, TopicName};

/// Management of one broker. Its registrations are also how clients find brokers.
#[rpc_core::service(name = "hc.mq.Admin")]
pub trait Admin {
    /// Creates a topic, or returns it if the same one exists.
    #[rpc(idempotent)]
    async fn create_topic(&self, request: CreateTopicRequest) -> Result<Topic, Error>;

    /// Changes a topic at its authority, which gives it the next version; the other shards are then informed
    /// by [`Admin::create_topic`], as after a creation. Repeating the call returns the result of the first
    /// one.
    #[rpc(idempotent)]
    async fn alter_topic(&self, request: AlterTopicRequest) -> Result<Topic, Error>;

    /// Deletes a topic and returns its tombstone.
    #[rpc(idempotent)]
    async fn delete_topic(&self, request: DeleteTopicRequest) -> Result<Topic, Error>;

    /// Topics that have queues here, sorted by name, including tombstones.
    #[rpc(idempotent)]
    async fn topics(&self, page: PageRequest<TopicName>) -> Result<Page<Topic, TopicName>, Error>;

    /// One topic with its queues at this broker; for a deleted topic its tombstone, without queues.
    #[rpc(idempotent)]
    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription, Error>;

    /// The broker's status.
    #[rpc(idempotent)]
    async fn status(&self) -> Result<BrokerStatus, Error>;

    /// Starts a backup into this folder on the broker's machine, which must not exist; returns the status of
    /// a backup that is already running. It continues if the caller goes away: see [`Admin::backup_status`].
    #[rpc(idempotent)]
    async fn backup(&self, to: String) -> Result<BackupStatus, Error>;

    /// The status of the last backup since the broker's start.
    #[rpc(idempotent)]
    async fn backup_status(&self) -> Result<Option<BackupStatus>, Error>;
}

/// Where one queue lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueHome {
    /// The queue.
    pub queue: QueueNumber,
    /// Its shard.
    pub shard: ShardName,
}

/// A topic as it was declared: state of every shard that has queues of it. The first shard of the list is the
/// authority: it numbers versions and refuses a second topic of the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// Increases with every change; the highest one that any shard reports is valid.
    pub version: u64,
    /// The least durability of a send.
    pub durability: Durability,
    /// All queues in order of their numbers.
    pub queues: Vec<QueueHome>,
    /// Whether it is deleted, and this is its tombstone.
    pub deleted: bool,
    /// Its settings.
    #[serde(default)]
    pub settings: TopicSettings,
}

impl Topic {
    /// The shard that numbers versions and refuses a second topic of the name; `None` without queues.
    #[must_use]
    pub fn authority(&self) -> Option<&ShardName> {
        self.queues.first().map(|home| &home.shard)
    }
}

/// Creates a topic: sent to its authority without `identity`, then to the other shards with the one that the
/// authority returned. Repeating it is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopicRequest {
    /// The topic's name.
    pub name: TopicName,
    /// The topic's id and version, assigned by the authority; `None` in the request to the authority itself.
    pub identity: Option<(TopicId, u64)>,
    /// The least durability of a send.
    pub durability: Durability,
    /// All queues.
    pub queues: Vec<QueueHome>,
    /// Its settings. `None` = what the authority has if the topic is there, else
    /// [`TopicSettings::of_new_topic`].
    #[serde(default)]
    pub settings: Option<TopicSettings>,
}

/// Changes a topic, at its authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterTopicRequest {
    /// The changed topic, with the id and version of the declaration that was changed. It is refused if the
    /// authority has another version by now, if a queue is missing or on another shard than before, or if the
    /// settings are invalid.
    pub topic: Topic,
}

/// Deletes a topic: first at its authority without `identity`, then at the other shards with the one that the
/// authority returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopicRequest {
    /// The topic's name.
    pub name: TopicName,
    /// The id and version of the tombstone that the authority returned; `None` in the request to the
    /// authority itself.
    pub identity: Option<(TopicId, u64)>,
    /// Whether to drop its open transactions too; otherwise they refuse the deletion.
    pub drop_transactions: bool,
}

/// One queue of a topic at the broker that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDescription {
    /// The queue.
    pub queue: QueueNumber,
    /// The first offset retained.
    pub start: Offset,
    /// The end of the queue as visible to consumers.
    pub end: Offset,
    /// Bytes appended since its creation.
    pub bytes: u64,
}

/// A topic with the queues that this broker has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDescription {
    /// As declared.
    pub topic: Topic,
    /// The queues here.
    pub queues: Vec<QueueDescription>,
}

/// The status of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Its shard.
    pub shard: ShardName,
    /// Its version.
    pub version: String,
    /// Where clients reach it.
    pub address: String,
    /// Its HTTP address.
    pub http: String,
    /// Its role, `leader` on one node.
    pub role: String,
    /// Its term.
    pub term: Term,
    /// First log sequence number not in memory, not given to the system, not on disk.
    pub appended: Lsn,
    /// See `appended`.
    pub flushed: Lsn,
    /// See `appended`.
    pub synced: Lsn,
    /// Topics it has queues of.
    pub topics: u32,
    /// Queues it has.
    pub queues: u32,
    /// Consumer groups it knows.
    pub groups: u32,
    /// Undecided transactions.
    pub transactions: u32,
    /// Bytes of its journal.
    pub journal_bytes: u64,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// The state of its registration, in words.
    pub registration: String,
    /// The state of the disk of its data folder; `None` from a broker that does not have this field yet.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
}

/// The status of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Its folder, on the broker's machine.
    pub to: String,
    /// Its state.
    pub state: BackupState,
    /// The last journal entry in it; unknown until its files are collected.
    pub lsn: Option<Lsn>,
    /// Bytes checked and copied so far.
    pub bytes_done: u64,
    /// Bytes in total.
    pub bytes_total: u64,
    /// With [`BackupState::Failed`]: the reason.
    pub reason: Option<String>,
}

/// The state of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackupState {
    /// Running.
    Running,
    /// Complete.
    Done,
    /// Failed.
    Failed,
}

/// The state of the disk of a broker's data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// `ok`; `full`: messages are refused; `read_only`: only deletions and ends of transactions are accepted.
    pub state: String,
    /// Free bytes.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
    /// With fewer free bytes than this, messages are refused.
    pub needed: u64,
}
