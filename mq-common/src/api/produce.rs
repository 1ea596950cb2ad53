//! Producing: many batches in one call, an outcome for each.

use rpc_core::Attachment;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Durability, Lsn, Offset, QueueNumber, TopicId, TopicName};

/// Appending batches.
#[rpc_core::service(name = "hc.mq.Produce")]
pub trait Produce {
    /// Appends each batch to its queue; each has its own outcome. Returns when all of them have reached the
    /// requested durability. Not idempotent: the framework does not repeat a send of unknown outcome.
    async fn produce(&self, request: ProduceRequest, batches: Attachment) -> Result<ProduceResponse, Error>;
}

/// Batches for queues of one topic. The attachment contains the batches of all topics consecutively, in the
/// order of this list, without length fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicBatches {
    /// The topic.
    pub topic: TopicName,
    /// `(queue, bytes of the batch)` for each batch.
    pub batches: Vec<(QueueNumber, u32)>,
    /// The id of the topic for which the batches were built: a broker refuses them with `unknown_topic` once
    /// the name belongs to another topic. `None` = the topic that has the name when they arrive.
    #[serde(default)]
    pub id: Option<TopicId>,
}

/// Batches to append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceRequest {
    /// Where the batches go.
    pub topics: Vec<TopicBatches>,
    /// The durability to reach before the response; `None` = each topic's floor.
    pub durability: Option<Durability>,
}

/// A batch was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// The log entry that holds it.
    pub lsn: Lsn,
    /// The durability that was reached when this was sent.
    pub durability: Durability,
}

/// The outcome of each batch, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceResponse {
    /// Receipt or refusal.
    pub outcomes: Vec<Result<Receipt, Error>>,
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rpc_core::serialize::SerializerRef;

    use super::*;

    #[test]
    fn list_without_a_topic_id_is_read_too() {
        let topic = TopicName::new("orders").unwrap();
        let batches = vec![(QueueNumber(3), 100)];
        let mut bytes = BytesMut::new();
        SerializerRef::Msgpack
            .encode(&(&topic, &batches), &mut bytes)
            .unwrap();
        let read: TopicBatches = SerializerRef::Msgpack.decode(&bytes).unwrap();
        assert_eq!((&read.topic, &read.batches, read.id), (&topic, &batches, None));
        let json = br#"{"topic":"orders","batches":[[3,100]]}"#;
        assert_eq!(SerializerRef::Json.decode::<TopicBatches>(json).unwrap(), read);
    }
}
