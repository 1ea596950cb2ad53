//! Fetching: one long poll over many queues of one broker.

use rpc_core::Attachment;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName};

/// Metadata of a fetch whose caller knows [`Fetched::compacted`], with any value. One that does not say so is not told:
/// under the serializer `msgpack` a field more than it knows would make the whole answer unreadable to it.
pub const KNOWS_COMPACTED_META: &str = "mq-knows-compacted";

/// Metadata of a fetch that is made again because what was served last was damaged when it came, with any value. It is
/// read from the disk then and past all memory, in which it may have been damaged; what is damaged on the disk becomes a
/// hole. Older brokers pass over it.
pub const FROM_DISK_META: &str = "mq-from-disk";

/// Serves batches.
#[rpc_core::service(name = "hc.mq.Fetch")]
pub trait Fetch {
    /// A long poll: answers as soon as one of the wanted queues has something to say, at the latest after `wait_ms` with
    /// no answers. The attachment holds the stamped batches in the order of the answers.
    #[rpc(idempotent)]
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error>;

    /// First offset of the first batch that was appended at or after `time`, or the queue's end. Offsets right before it
    /// that hold nothing are not passed over: it is the first of theirs then.
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
    /// Ranges `[first, end)` among the offsets served that hold nothing, in order: damaged, or compacted away. So whoever
    /// knows nothing of compaction passes over them too, if with a word of damage.
    pub holes: Vec<(Offset, Offset)>,
    /// Those of `holes` where nothing is missing: later messages took the place of these, in a topic that compacts. For
    /// callers with [`KNOWS_COMPACTED_META`] only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compacted: Vec<(Offset, Offset)>,
}

impl Fetched {
    /// The holes with whether each was compacted away; the others are damage.
    pub fn holes(&self) -> impl Iterator<Item = ((Offset, Offset), bool)> + '_ {
        // Both are in order.
        let mut compacted = self.compacted.iter().peekable();
        self.holes.iter().map(move |hole| {
            while compacted.next_if(|known| *known < hole).is_some() {}
            (*hole, compacted.peek() == Some(&hole))
        })
    }
}

/// Answers for those wants that have something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchResponse {
    /// `(index into the wants, what was found)`, in the order of the attachment.
    pub answers: Vec<(u32, Result<Fetched, Error>)>,
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rpc_core::serialize::SerializerRef;

    use super::*;

    fn range(from: u64, end: u64) -> (Offset, Offset) {
        (Offset(from), Offset(end))
    }

    fn fetched() -> Fetched {
        Fetched {
            bytes: 7,
            next_offset: Offset(20),
            end: Offset(30),
            holes: vec![range(3, 5), range(5, 6), range(9, 12), range(15, 16)],
            compacted: vec![range(3, 5), range(9, 12)],
        }
    }

    #[test]
    fn holes_are_told_apart() {
        let told: Vec<bool> = fetched().holes().map(|(_, compacted)| compacted).collect();
        assert_eq!(told, [true, false, true, false]);
        let unknown = Fetched {
            compacted: Vec::new(),
            ..fetched()
        };
        assert!(unknown.holes().all(|(_, compacted)| !compacted));
    }

    #[test]
    fn answer_is_read_by_callers_from_before_compaction_and_by_those_that_know_it() {
        type First = (u32, Offset, Offset, Vec<(Offset, Offset)>);
        let whole = fetched();
        let untold = Fetched {
            compacted: Vec::new(),
            ..fetched()
        };
        let encode = |fetched: &Fetched| {
            let mut bytes = BytesMut::new();
            SerializerRef::Msgpack.encode(fetched, &mut bytes).unwrap();
            bytes
        };
        let first: First = SerializerRef::Msgpack.decode(&encode(&untold)).unwrap();
        assert_eq!(first, (7, Offset(20), Offset(30), whole.holes.clone()));
        for known in [whole, untold] {
            let read: Fetched = SerializerRef::Msgpack.decode(&encode(&known)).unwrap();
            assert_eq!(read, known);
        }
        let refused = SerializerRef::Msgpack.decode::<First>(&encode(&fetched()));
        assert!(refused.is_err(), "why it is told only to those that know it");
    }
}
