//! A message on its way to a broker.

use bytes::Bytes;
use mq_common::batch::{Properties, Record};
use mq_common::ids::{InvalidName, QueueNumber, Timestamp, TopicName};

/// One message to be sent. Cloning copies no payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The topic to send it to.
    pub topic: TopicName,
    /// Messages with the same key go to the same queue, in order.
    pub key: Option<Bytes>,
    /// A tag that consumers may filter by, at most 127 bytes.
    pub tag: Option<String>,
    /// The application's own name-value pairs, at most 64.
    pub properties: Vec<(String, String)>,
    /// The body.
    pub payload: Bytes,
    /// The queue, if the application chooses it itself; it takes precedence over the key.
    pub queue: Option<QueueNumber>,
    /// When it was created; `None` = when it is queued for sending.
    pub time: Option<Timestamp>,
}

impl Message {
    /// A message with a payload and nothing else.
    ///
    /// # Errors
    /// The topic's name is invalid.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Result<Self, InvalidName> {
        Ok(Self::to(TopicName::new(topic)?, payload))
    }

    /// A tombstone: a message with a key and an empty payload, which deletes the key in a topic with key
    /// compaction. Consumers that read soon enough see it, so that they can forget the key too; later it is
    /// removed as well.
    ///
    /// # Errors
    /// The topic's name is invalid.
    pub fn tombstone(topic: impl Into<String>, key: impl Into<Bytes>) -> Result<Self, InvalidName> {
        Ok(Self::new(topic, Bytes::new())?.key(key))
    }

    /// A message to a topic whose name is known to be valid.
    #[must_use]
    pub fn to(topic: TopicName, payload: impl Into<Bytes>) -> Self {
        Self {
            topic,
            key: None,
            tag: None,
            properties: Vec::new(),
            payload: payload.into(),
            queue: None,
            time: None,
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with a tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// The same with one more property.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// The same for this queue.
    #[must_use]
    pub const fn queue(mut self, queue: QueueNumber) -> Self {
        self.queue = Some(queue);
        self
    }

    /// The record that goes into a batch; `now` is its time if none was set.
    pub(crate) fn record(&self, now: Timestamp) -> Record<'_> {
        Record {
            key: self.key.as_deref(),
            tag: self.tag.as_deref(),
            properties: Properties::Owned(&self.properties),
            payload: &self.payload,
            time: self.time.unwrap_or(now),
        }
    }

    /// The reverse: the message that the application sent, from a record of a half batch.
    pub(crate) fn of_record(
        topic: &TopicName,
        queue: QueueNumber,
        whole: &Bytes,
        record: &Record<'_>,
    ) -> Self {
        Self {
            topic: topic.clone(),
            key: record.key.map(|key| whole.slice_ref(key)),
            tag: record.tag.map(str::to_owned),
            properties: owned(record.properties),
            payload: whole.slice_ref(record.payload),
            queue: Some(queue),
            time: Some(record.time),
        }
    }
}

/// Properties out of a batch.
pub(crate) fn owned(properties: Properties<'_>) -> Vec<(String, String)> {
    properties
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
