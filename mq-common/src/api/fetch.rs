//! Fetching: one long poll over many queues of one broker.

use rpc_core::Attachment;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName};

/// Metadata of a fetch whose caller knows [`Fetched::compacted`], with any value. Other callers do not get
/// that field: with the serializer `msgpack`, an unknown additional field would make the whole response
/// unreadable to them.
pub const KNOWS_COMPACTED_META: &str = "mq-knows-compacted";

/// Metadata of a fetch that is repeated because the last response arrived damaged, with any value. The broker
/// then reads from the disk and bypasses its caches, where the damage may have happened; batches damaged on
/// the disk become holes. Older brokers ignore it.
pub const FROM_DISK_META: &str = "mq-from-disk";

/// Reading batches.
#[rpc_core::service(name = "hc.mq.Fetch")]
pub trait Fetch {
    /// A long poll: returns as soon as one of the wanted queues has batches or an error, at the latest after
    /// `wait_ms` without answers. The attachment contains the stamped batches in the order of the answers.
    #[rpc(idempotent)]
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error>;

    /// The first offset of the first batch appended at or after `time`, or the queue's end. Empty offsets
    /// directly before that batch are not skipped: then it is the first of these.
    #[rpc(idempotent)]
    async fn offset_at(&self, topic: TopicName, queue: QueueNumber, time: Timestamp)
    -> Result<Offset, Error>;
}

/// A queue and the position to read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The topic.
    pub topic: TopicName,
    /// The queue.
    pub queue: QueueNumber,
    /// The first offset wanted. The first batch served may start before it; the client skips the rest of it.
    pub offset: Offset,
    /// The owner's epoch, for a member of a `stream` group.
    pub epoch: Option<OwnerEpoch>,
}

/// Waits until at least one of the wanted queues has batches or an error, then returns what is available.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// The group and member that reads; `None` for a reader without a group.
    pub member: Option<(GroupName, MemberId)>,
    /// The queues.
    pub wants: Vec<Want>,
    /// Approximate limit of the batches in the response, in bytes; one batch is served even if it is larger.
    pub bytes_max: u32,
    /// How long to wait while there is nothing to serve, milliseconds, at most
    /// [`crate::limits::LONG_POLL_MS_MAX`].
    pub wait_ms: u32,
}

/// The batches served from one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Bytes of the attachment that belong to this queue: consecutive stamped batches
    /// `[u32 length][stamp][producer region]`.
    pub bytes: u32,
    /// The first offset after what was served, where the next fetch continues.
    pub next_offset: Offset,
    /// The end of the queue as visible to consumers (the first offset not visible yet).
    pub end: Offset,
    /// Ranges `[first, end)` of empty offsets among those served, in order: damaged, or removed by key
    /// compaction. A client that does not know key compaction skips them too, but reports damage.
    pub holes: Vec<(Offset, Offset)>,
    /// Those of `holes` where nothing is missing, because key compaction removed messages that later ones
    /// replaced. Only for callers with [`KNOWS_COMPACTED_META`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compacted: Vec<(Offset, Offset)>,
}

impl Fetched {
    /// The holes, each with whether key compaction made it; the others are damage.
    pub fn holes(&self) -> impl Iterator<Item = ((Offset, Offset), bool)> + '_ {
        // Both are in order.
        let mut compacted = self.compacted.iter().peekable();
        self.holes.iter().map(move |hole| {
            while compacted.next_if(|known| *known < hole).is_some() {}
            (*hole, compacted.peek() == Some(&hole))
        })
    }
}

/// Answers for those wants that have batches or an error.
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
