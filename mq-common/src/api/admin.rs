//! Management: topics, and what a broker says of itself.

use serde::{Deserialize, Serialize};

use super::page::{Page, PageRequest};
use super::settings::TopicSettings;
use crate::error::Error;
use crate::ids::{Durability, Lsn, Offset, QueueNumber, ShardName, Term, TopicId, TopicName};

/// Management of one broker. Its registrations are also how clients find brokers.
#[rpc_core::service(name = "hc.mq.Admin")]
pub trait Admin {
    /// Creates a topic, or answers with it if the same one exists.
    #[rpc(idempotent)]
    async fn create_topic(&self, request: CreateTopicRequest) -> Result<Topic, Error>;

    /// Changes a topic at its authority, which gives it the next version; the other shards are then told by
    /// [`Admin::create_topic`], as after a creation. A repetition answers with what the first call made of it.
    #[rpc(idempotent)]
    async fn alter_topic(&self, request: AlterTopicRequest) -> Result<Topic, Error>;

    /// Deletes a topic; answers with its tombstone.
    #[rpc(idempotent)]
    async fn delete_topic(&self, request: DeleteTopicRequest) -> Result<Topic, Error>;

    /// Topics that have queues here, sorted by name, tombstones included.
    #[rpc(idempotent)]
    async fn topics(&self, page: PageRequest<TopicName>) -> Result<Page<Topic, TopicName>, Error>;

    /// One topic with its queues at this broker; of a deleted one its tombstone, without queues.
    #[rpc(idempotent)]
    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription, Error>;

    /// How the broker is.
    #[rpc(idempotent)]
    async fn status(&self) -> Result<BrokerStatus, Error>;

    /// Begins a backup into this folder of the broker's machine, which must not exist; how it stands, if it runs already.
    /// It goes on whoever asks: see [`Admin::backup_status`].
    #[rpc(idempotent)]
    async fn backup(&self, to: String) -> Result<BackupStatus, Error>;

    /// How the last backup since the broker's start stands.
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
    /// Rises with every change; the highest one that any shard answers is true.
    pub version: u64,
    /// Least durability of a send.
    pub durability: Durability,
    /// All queues in order of their numbers.
    pub queues: Vec<QueueHome>,
    /// It is deleted; this is its tombstone.
    pub deleted: bool,
    /// What it keeps and takes.
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

/// Makes a topic: sent to its authority with `id` and `version` unset, then to the other shards as the authority
/// answered it. Repeating it is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopicRequest {
    /// The topic; `None` for its identity at the authority.
    pub name: TopicName,
    /// Given by the authority; `None` when the authority itself is asked.
    pub identity: Option<(TopicId, u64)>,
    /// Least durability of a send.
    pub durability: Durability,
    /// All queues.
    pub queues: Vec<QueueHome>,
    /// What it keeps and takes. `None` = what the authority has if the topic is there, else
    /// [`TopicSettings::of_new_topic`].
    #[serde(default)]
    pub settings: Option<TopicSettings>,
}

/// Changes a topic, at its authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlterTopicRequest {
    /// The topic as it is to be: with the id and version of the declaration that was changed. It is refused when the
    /// authority has another version by now, when a queue is missing or on another shard than before, or when the settings
    /// make no sense.
    pub topic: Topic,
}

/// Deletes a topic: at its authority first with `identity` unset, then at the other shards as the authority answered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopicRequest {
    /// Which.
    pub name: TopicName,
    /// Of the tombstone that the authority answered; `None` when the authority itself is asked.
    pub identity: Option<(TopicId, u64)>,
    /// Drops its open transactions too; refused with them otherwise.
    pub drop_transactions: bool,
}

/// One queue of a topic at the broker that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDescription {
    /// The queue.
    pub queue: QueueNumber,
    /// First offset there is.
    pub start: Offset,
    /// End as a consumer may see it.
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

/// What a broker says of itself.
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
    /// Where its registration stands, in words.
    pub registration: String,
    /// How the disk of its data folder stands; not known of a broker that is older than this field.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
}

/// How a backup stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Its folder, on the broker's machine.
    pub to: String,
    /// How far it is.
    pub state: BackupState,
    /// It holds everything up to this entry of the journal; not known before its files were gathered.
    pub lsn: Option<Lsn>,
    /// Bytes checked and copied so far.
    pub bytes_done: u64,
    /// Bytes it will have.
    pub bytes_total: u64,
    /// With [`BackupState::Failed`]: why.
    pub reason: Option<String>,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackupState {
    /// Under way.
    Running,
    /// Whole.
    Done,
    /// It came to nothing.
    Failed,
}

/// How the disk of a broker's data folder stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// `ok`; `full`: no messages are taken; `read_only`: only deletions and ends of transactions are taken.
    pub state: String,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes below which no messages are taken.
    pub needed: u64,
}
