//! Consumer groups. A group has one mode and one subscription; assignment is each broker's own job for its own queues.

use serde::{Deserialize, Serialize};

use super::page::{Page, PageRequest};
use crate::error::Error;
use crate::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName};

/// Groups at one broker.
#[rpc_core::service(name = "hc.mq.Group")]
pub trait Group {
    /// Joins, stays, gives queues back, leaves; the first member makes the group.
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error>;

    /// Progress of a `stream` member. Never moves a cursor back.
    #[rpc(idempotent)]
    async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error>;

    /// Groups, sorted by name.
    #[rpc(idempotent)]
    async fn list(&self, page: PageRequest<GroupName>) -> Result<Page<GroupDescription, GroupName>, Error>;

    /// One group: one element a topic it has cursors in; none when this broker does not know it.
    #[rpc(idempotent)]
    async fn describe(&self, group: GroupName) -> Result<Vec<GroupDescription>, Error>;
}

/// How a group shares messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupMode {
    /// Each queue has one owner; a cumulative cursor; strict order.
    Stream,
}

/// Where a new group starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the first message there is.
    Earliest,
    /// Behind the last message there is when the group is made.
    Latest,
    /// At this offset in every queue.
    Offset(Offset),
    /// At the first message appended at or after this time.
    Time(Timestamp),
}

/// Sent every [`HeartbeatResponse::heartbeat_ms`]: joins, stays, gives queues back, leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// The group; made by its first member.
    pub group: GroupName,
    /// Who.
    pub member: MemberId,
    /// The group's topic.
    pub topic: TopicName,
    /// The group's mode.
    pub mode: GroupMode,
    /// Where the group starts if it is new here; `None` = then it is not made, the answer is `UnknownGroup`.
    pub start: Option<StartAt>,
    /// The queues of this broker the member still works on; what it was asked to give back is missing here once it has
    /// stopped and acked.
    pub owned: Vec<(QueueNumber, OwnerEpoch)>,
    /// It leaves: its queues are free at once.
    pub leaving: bool,
}

/// One queue that the member owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The queue.
    pub queue: QueueNumber,
    /// Its epoch, which goes with every fetch and ack.
    pub epoch: OwnerEpoch,
    /// The group's cursor: the first offset not acked.
    pub cursor: Offset,
}

/// What the member is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// The queues it owns now.
    pub assigned: Vec<Assigned>,
    /// Queues among them which it is to give back: stop, ack, leave them out of `owned`.
    pub revoking: Vec<QueueNumber>,
    /// When the group was made at this broker. Where it has to be made later, it starts at that time, not at the end.
    pub since: Timestamp,
    /// Members of the group at this broker.
    pub members: u32,
    /// Next heartbeat after this many milliseconds.
    pub heartbeat_ms: u32,
    /// Without one for this long the member is taken to be dead, milliseconds.
    pub session_ms: u32,
}

/// One queue's progress: everything below `next` is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The queue.
    pub queue: QueueNumber,
    /// The owner's epoch.
    pub epoch: OwnerEpoch,
    /// First offset not done.
    pub next: Offset,
}

/// Progress of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRequest {
    /// The group.
    pub group: GroupName,
    /// Who.
    pub member: MemberId,
    /// The group's topic.
    pub topic: TopicName,
    /// The acks.
    pub acks: Vec<Ack>,
}

/// An outcome for each ack, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckResponse {
    /// Done, or why not.
    pub outcomes: Vec<Result<(), Error>>,
}

/// One group as `group list` and `group describe` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDescription {
    /// Its name.
    pub group: GroupName,
    /// Its mode.
    pub mode: GroupMode,
    /// Its topic.
    pub topic: TopicName,
    /// Live members at this broker.
    pub members: Vec<MemberId>,
    /// Its queues at this broker.
    pub queues: Vec<GroupQueue>,
}

/// One queue of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupQueue {
    /// The queue.
    pub queue: QueueNumber,
    /// First offset not acked.
    pub cursor: Offset,
    /// End of the queue.
    pub end: Offset,
    /// Who owns it.
    pub owner: Option<MemberId>,
    /// Messages that were deleted before the group acknowledged them.
    #[serde(default)]
    pub lost: u64,
}
