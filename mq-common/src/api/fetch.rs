//! Fetching: one long poll over many queues of one broker.

use rpc_core::Attachment;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName};

/// Serves batches.
#[rpc_core::service(name = "hc.mq.Fetch")]
pub trait Fetch {
    /// A long poll: answers as soon as one of the wanted queues has something to say, at the latest after `wait_ms` with
    /// no answers. The attachment holds the stamped batches in the order of the answers.
    #[rpc(idempotent)]
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error>;

    /// First offset of the first batch that was appended at or after `time`, or the queue's end. Damaged batches right
    /// before it are not passed over: it is the first of theirs then.
    #[rpc(idempotent)]
    async fn offset_at(&self, topic: TopicName, queue: QueueNumber, time: Timestamp)
    -> Result<Offset, Error>;
}

/// One queue that the caller wants to read on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// First offset wanted. The first batch served may begin before it: the client skips.
    pub offset: Offset,
    /// The owner's epoch, for a member of a `stream` group.
    pub epoch: Option<OwnerEpoch>,
}

/// Waits until at least one of the wanted queues has something, then answers with what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// On whose behalf; `None` = a reader without a group.
    pub member: Option<(GroupName, MemberId)>,
    /// The queues.
    pub wants: Vec<Want>,
    /// Bytes of batches in the answer, about; one batch is served even if it is larger.
    pub bytes_max: u32,
    /// How long to wait when there is nothing, milliseconds, at most [`crate::limits::LONG_POLL_MS_MAX`].
    pub wait_ms: u32,
}

/// What was found in one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Bytes of the attachment that belong to this queue: stamped batches `[u32 length][stamp][producer region]`, one
    /// behind the other.
    pub bytes: u32,
    /// First offset behind what is served, where the next fetch goes on.
    pub next_offset: Offset,
    /// End of the queue as a consumer may see it (first offset not visible yet).
    pub end: Offset,
    /// Ranges `[first, end)` among the offsets served that hold nothing: quarantined or compacted away.
    pub holes: Vec<(Offset, Offset)>,
}

/// Answers for those wants that have something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchResponse {
    /// `(index into the wants, what was found)`, in the order of the attachment.
    pub answers: Vec<(u32, Result<Fetched, Error>)>,
}
