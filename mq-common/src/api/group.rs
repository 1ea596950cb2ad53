//! Consumer groups. A group has one mode and one subscription; assignment is each broker's own job for its
//! own queues.

use serde::{Deserialize, Serialize};

use super::page::{Page, PageRequest};
use crate::error::Error;
use crate::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName};

/// Groups at one broker.
#[rpc_core::service(name = "hc.mq.Group")]
pub trait Group {
    /// Joins, stays a member, gives queues back, or leaves; the first member creates the group.
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error>;

    /// Reports the progress of a `stream` member. Never moves a cursor back.
    #[rpc(idempotent)]
    async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error>;

    /// Groups, sorted by name.
    #[rpc(idempotent)]
    async fn list(&self, page: PageRequest<GroupName>) -> Result<Page<GroupDescription, GroupName>, Error>;

    /// One group: one element per topic in which it has cursors; empty if this broker does not know it.
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
    /// At the first message retained.
    Earliest,
    /// After the last message that exists when the group is created.
    Latest,
    /// At this offset in every queue.
    Offset(Offset),
    /// At the first message appended at or after this time.
    Time(Timestamp),
}

/// Sent every [`HeartbeatResponse::heartbeat_ms`]: joins, stays a member, gives queues back, or leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// The group; created by its first member.
    pub group: GroupName,
    /// The member.
    pub member: MemberId,
    /// The group's topic.
    pub topic: TopicName,
    /// The group's mode.
    pub mode: GroupMode,
    /// Where the group starts if it is new here; `None` = it is not created, and the answer is
    /// `UnknownGroup`.
    pub start: Option<StartAt>,
    /// The queues of this broker that the member still works on. A queue that it was asked to give back is
    /// left out once the member has stopped working on it and acked.
    pub owned: Vec<(QueueNumber, OwnerEpoch)>,
    /// Whether it leaves: then its queues are free at once.
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

/// What the member must do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// The queues it owns now.
    pub assigned: Vec<Assigned>,
    /// Those of them that it must give back: stop working on them, ack, leave them out of `owned`.
    pub revoking: Vec<QueueNumber>,
    /// When the group was created at this broker. At brokers where it is created later, it starts at that
    /// time, not at the end.
    pub since: Timestamp,
    /// Members of the group at this broker.
    pub members: u32,
    /// Send the next heartbeat after this many milliseconds.
    pub heartbeat_ms: u32,
    /// Without a heartbeat for this many milliseconds the member is considered dead.
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
    /// The member.
    pub member: MemberId,
    /// The group's topic.
    pub topic: TopicName,
    /// The acks.
    pub acks: Vec<Ack>,
}

/// An outcome for each ack, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckResponse {
    /// `Ok`, or why the ack was refused.
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
    /// The member that owns it.
    pub owner: Option<MemberId>,
    /// Messages that retention deleted before the group acknowledged them. Its name on the wire is `lost`.
    #[serde(default, rename = "lost")]
    pub expired_unread: u64,
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rpc_core::serialize::SerializerRef;

    use super::*;

    #[test]
    fn messages_that_expired_unread_keep_their_name_on_the_wire() {
        let queue = GroupQueue {
            queue: QueueNumber(1),
            cursor: Offset(2),
            end: Offset(3),
            owner: None,
            expired_unread: 4,
        };
        let mut bytes = BytesMut::new();
        SerializerRef::Json.encode(&queue, &mut bytes).unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.contains(r#""lost":4"#), "{text}");
    }
}
