//! Batches attached to a request: split by the request's lists and checked one by one.

use std::sync::Arc;

use bytes::Bytes;
use mq_common::api::produce::TopicBatches;
use mq_common::batch::Batch;
use mq_common::ids::{Durability, QueueNumber, TopicId, TopicName};
use mq_common::limits::CALL_BATCHES_MAX;
use mq_common::{Error, ErrorCode};
use rpc_core::Attachment;

use super::Services;
use crate::ids::QueueKey;
use crate::state::Topic;
use crate::state::command::Part;
use crate::store::OWN_BUFFER_BYTES;

/// A batch that may be appended.
#[derive(Debug)]
pub(super) struct Checked {
    /// Its queue, records and bytes.
    pub(super) part: Part,
    /// Its bytes.
    pub(super) batch: Batch,
    /// Its topic's minimum durability.
    pub(super) floor: Durability,
}

/// The batches of a request in order, each checked or refused. The outer error means that the request is
/// malformed.
pub(super) fn check(
    services: &Services,
    topics: &[TopicBatches],
    attachment: Attachment,
) -> Result<Vec<Result<Checked, Error>>, Error> {
    let count: usize = topics.iter().map(|topic| topic.batches.len()).sum();
    if count > CALL_BATCHES_MAX {
        return Err(Error::new(
            ErrorCode::TooLarge,
            format!("{count} batches in one call, {CALL_BATCHES_MAX} are allowed; split the call"),
        ));
    }
    let bytes = attachment.into_bytes();
    let stated: u64 = topics
        .iter()
        .flat_map(|topic| &topic.batches)
        .map(|(_, bytes)| u64::from(*bytes))
        .sum();
    if stated != bytes.len() as u64 {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "the request states {stated} bytes of batches, {} are attached",
                bytes.len()
            ),
        ));
    }
    let lengths = topics
        .iter()
        .flat_map(|topic| &topic.batches)
        .map(|(_, bytes)| *bytes as usize);
    let mut regions = cut(bytes, lengths);
    let mut checked = Vec::with_capacity(count);
    for TopicBatches {
        topic: name,
        batches,
        id,
    } in topics
    {
        let topic = services.topic(name).and_then(|topic| same(name, topic, *id));
        for ((queue, _), region) in batches.iter().zip(&mut regions) {
            checked.push(match &topic {
                Ok(topic) => check_one(name, topic, *queue, region),
                Err(error) => Err(error.clone()),
            });
        }
    }
    Ok(checked)
}

/// Splits attached bytes into regions of these lengths, which together own them. The store keeps a large
/// region as it is, and with it everything that was attached; so if the large ones are less than half of
/// that, each is copied into a buffer of its own.
fn cut(mut bytes: Bytes, lengths: impl Iterator<Item = usize> + Clone) -> impl Iterator<Item = Bytes> {
    let large = |length: &usize| *length >= OWN_BUFFER_BYTES;
    let apart = 2 * lengths.clone().filter(large).sum::<usize>() < bytes.len();
    lengths.map(move |length| {
        let region = bytes.split_to(length);
        if apart && large(&length) {
            return Bytes::copy_from_slice(&region);
        }
        region
    })
}

/// The topic, unless the request meant another one of that name that has been deleted since.
fn same(name: &TopicName, topic: Arc<Topic>, meant: Option<TopicId>) -> Result<Arc<Topic>, Error> {
    if meant.is_none_or(|id| id == topic.declaration.id) {
        return Ok(topic);
    }
    Err(Error::new(
        ErrorCode::UnknownTopic,
        format!(
            "the topic `{name}` that this was sent to was deleted, and another topic has the name now; send it again if it \
            is meant for that one"
        ),
    ))
}

/// The queue's key, if the queue is on this broker.
pub(super) fn queue_key(name: &TopicName, topic: &Topic, queue: QueueNumber) -> Result<QueueKey, Error> {
    topic.key(queue).ok_or_else(|| {
        let message = match topic.declaration.home(queue) {
            Some(shard) => format!("queue {queue} of topic `{name}` is on shard `{shard}`; ask that one"),
            None => format!(
                "topic `{name}` has no queue {queue}; it has {}, numbered from 0",
                topic.declaration.homes.len()
            ),
        };
        Error::new(ErrorCode::UnknownQueue, message)
    })
}

/// Checks the size of each message if any can be too large: only topics with a limit of their own pay for
/// that.
fn check_messages(name: &TopicName, batch: &Batch, limit: u32) -> Result<(), Error> {
    if batch.header().unpacked_bytes <= limit {
        return Ok(());
    }
    for record in &batch.records()? {
        let bytes = record?.bytes();
        if bytes > limit as usize {
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!(
                    "a message has {bytes} bytes, topic `{name}` takes at most {limit} (`message_bytes_max`)"
                ),
            ));
        }
    }
    Ok(())
}

fn check_one(name: &TopicName, topic: &Topic, queue: QueueNumber, region: Bytes) -> Result<Checked, Error> {
    let key = queue_key(name, topic, queue)?;
    let batch = Batch::parse(region)?;
    if let Some(limit) = topic.declaration.settings.message_bytes_max {
        check_messages(name, &batch, limit)?;
    }
    let part = Part {
        queue: key,
        records: batch.record_count(),
        bytes: u32::try_from(batch.len())
            .map_err(|_| Error::new(ErrorCode::TooLarge, "the batch is too large"))?,
    };
    Ok(Checked {
        part,
        batch,
        floor: topic.declaration.durability,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of the regions, and whether each is a slice of what was attached.
    fn regions(lengths: &[usize]) -> Vec<(usize, bool)> {
        let attached = Bytes::from(vec![7; lengths.iter().sum()]);
        let regions: Vec<Bytes> = cut(attached.clone(), lengths.iter().copied()).collect();
        let is_part = |region: &Bytes| attached.as_ptr_range().contains(&region.as_ptr());
        regions
            .iter()
            .map(|region| (region.len(), is_part(region)))
            .collect()
    }

    #[test]
    fn large_batch_among_many_small_ones_does_not_keep_all_of_them() {
        let (large, small) = (OWN_BUFFER_BYTES, OWN_BUFFER_BYTES - 1);
        assert_eq!(regions(&[small, large]), [(small, true), (large, true)]);
        assert_eq!(
            regions(&[small, large, small]),
            [(small, true), (large, false), (small, true)]
        );
        assert_eq!(regions(&[large; 3]), [(large, true); 3]);
        assert_eq!(regions(&[small; 3]), [(small, true); 3]);
        assert_eq!(regions(&[0, 5, 0]).len(), 3);
    }
}
