//! A message on its way to a broker.

use bytes::Bytes;
use mq_common::batch::{Properties, Record};
use mq_common::ids::{InvalidName, QueueNumber, Timestamp, TopicName};

/// One message to be sent. Cloning copies no payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub topic: TopicName,
    /// Messages with the same key go to the same queue, in order.
    pub key: Option<Bytes>,
    /// What consumers may filter by, at most 127 bytes.
    pub tag: Option<String>,
    /// The application's own pairs, at most 64.
    pub properties: Vec<(String, String)>,
    /// The message itself.
    pub payload: Bytes,
    /// The queue, when the application chooses it itself; goes before the key.
    pub queue: Option<QueueNumber>,
    /// When it was made; `None` = when it is sent.
    pub time: Option<Timestamp>,
}

impl Message {
    /// A message with a payload and nothing else.
    ///
    /// # Errors
    /// The topic's name breaks the rule for names.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Result<Self, InvalidName> {
        Ok(Self::to(TopicName::new(topic)?, payload))
    }

    /// A message that deletes `key` in a topic that compacts: the key and nothing else. Readers that come soon see it, so
    /// that they can forget the key too; later it goes as well.
    ///
    /// # Errors
    /// The topic's name breaks the rule for names.
    pub fn tombstone(topic: impl Into<String>, key: impl Into<Bytes>) -> Result<Self, InvalidName> {
        Ok(Self::new(topic, Bytes::new())?.key(key))
    }

    /// A message to a topic whose name was checked before.
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

    /// As a batch takes it; `now` stands in for a time that was not set.
    pub(crate) fn record(&self, now: Timestamp) -> Record<'_> {
        Record {
            key: self.key.as_deref(),
            tag: self.tag.as_deref(),
            properties: Properties::Owned(&self.properties),
            payload: &self.payload,
            time: self.time.unwrap_or(now),
        }
    }

    /// The reverse: one record of a half batch, as the application gave it.
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
