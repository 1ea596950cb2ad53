//! Why a member of a group was refused. Pure.

use mq_common::api::group::GroupMode;
use mq_common::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, TopicName};
use mq_common::limits::NAME_BYTES_MAX;
use mq_common::{Error, ErrorCode};

/// Why a member was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such group here.
    #[error("there is no group `{0}` at this broker; the heartbeat of its first member creates it")]
    UnknownGroup(GroupName),
    /// No such queue of the group here.
    #[error("group `{group}` has no queue {queue} at this broker")]
    UnknownQueue {
        /// The group.
        group: GroupName,
        /// The queue.
        queue: QueueNumber,
    },
    /// The member is not, or no longer, one of the group.
    #[error("`{member}` is not, or no longer, a member of group `{group}` at this broker; join again")]
    NotMember {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
    },
    /// The member's id has a wrong length.
    #[error("a member's id has 1 to {NAME_BYTES_MAX} bytes, this one has {0}")]
    InvalidMember(usize),
    /// Too many members.
    #[error("group `{group}` has {members} members at this broker, which is the limit")]
    Full {
        /// The group.
        group: GroupName,
        /// How many.
        members: usize,
    },
    /// The queue has another, later owner, or none.
    #[error("epoch {}.{} of queue {queue} is over: the queue was granted again or revoked", epoch.term, epoch.counter)]
    Fenced {
        /// The queue.
        queue: QueueNumber,
        /// The epoch in the request.
        epoch: OwnerEpoch,
    },
    /// The member wants another topic or mode than the group has.
    #[error(
        "group `{group}` reads topic `{topic}` in mode {mode:?}, the member came with topic `{member_topic}` in mode \
         {member_mode:?}; topic and mode belong to the group: join with the same or use another group"
    )]
    Mismatch {
        /// The group.
        group: GroupName,
        /// Its topic.
        topic: TopicName,
        /// Its mode.
        mode: GroupMode,
        /// The member's topic.
        member_topic: TopicName,
        /// The member's mode.
        member_mode: GroupMode,
    },
    /// The ack names messages that were never delivered to this owner.
    #[error("queue {queue} was delivered up to offset {delivered}, the ack says {next}")]
    BeyondDelivered {
        /// The queue.
        queue: QueueNumber,
        /// The offset that the ack names.
        next: Offset,
        /// The group's cursor.
        cursor: Offset,
        /// First offset not delivered.
        delivered: Offset,
    },
}

impl From<&Refused> for Error {
    fn from(refused: &Refused) -> Self {
        let code = match refused {
            Refused::UnknownGroup(_) => ErrorCode::UnknownGroup,
            Refused::UnknownQueue { .. } => ErrorCode::UnknownQueue,
            Refused::NotMember { .. } => ErrorCode::NotMember,
            Refused::InvalidMember(_) => ErrorCode::InvalidArgument,
            Refused::Full { .. } => ErrorCode::Overloaded,
            Refused::Fenced { .. } => ErrorCode::Fenced,
            Refused::Mismatch { .. } => ErrorCode::SubscriptionMismatch,
            Refused::BeyondDelivered { .. } => ErrorCode::OffsetOutOfRange,
        };
        let mut error = Self::new(code, refused.to_string());
        if let Refused::BeyondDelivered {
            cursor, delivered, ..
        } = refused
        {
            error.range = Some((cursor.0, delivered.0));
        }
        error
    }
}
