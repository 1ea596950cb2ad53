//! A digest of messages as the application gave them. It distinguishes a repetition from other messages, even
//! if another process sends it: it does not include what depends on the sender or the time of sending
//! (timestamp, queue chosen on behalf of the application, batches, compression). Pure.
//!
//! xxh3-64, seed 0, over the messages in their order, each as its fields in this order: topic; the queue if
//! the application chose it; key; tag; number of properties, and name and value of each; payload. Numbers are
//! u32 big-endian; texts and bytes `[u32 length][bytes]`; what may be missing is one byte, 0 = missing, 1 =
//! the field follows.

use xxhash_rust::xxh3::Xxh3;

use crate::batch::Record;
use crate::ids::{QueueNumber, TopicName};

/// Digests messages one after another.
#[derive(Default)]
pub struct ContentDigest(Xxh3);

impl std::fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ContentDigest").field(&self.finish()).finish()
    }
}

impl ContentDigest {
    /// A digest of no messages.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next message; `queue` only if the application chose it. The record's time is not included.
    pub fn add(&mut self, topic: &TopicName, queue: Option<QueueNumber>, record: &Record<'_>) {
        self.bytes(topic.as_str().as_bytes());
        self.present(queue.is_some());
        if let Some(queue) = queue {
            self.number(queue.0);
        }
        self.present(record.key.is_some());
        record.key.into_iter().for_each(|key| self.bytes(key));
        self.present(record.tag.is_some());
        record.tag.into_iter().for_each(|tag| self.bytes(tag.as_bytes()));
        self.number(length(record.properties.iter().count()));
        for (name, value) in record.properties.iter() {
            self.bytes(name.as_bytes());
            self.bytes(value.as_bytes());
        }
        self.bytes(record.payload);
    }

    /// The digest of all messages so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(length(bytes.len()));
        self.0.update(bytes);
    }

    fn number(&mut self, number: u32) {
        self.0.update(&number.to_be_bytes());
    }

    fn present(&mut self, present: bool) {
        self.0.update(&[u8::from(present)]);
    }
}

/// No record is longer than `u32::MAX`, so nothing that can be sent is truncated.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Properties;
    use crate::ids::Timestamp;

    fn record<'a>(payload: &'a [u8], properties: &'a [(String, String)]) -> Record<'a> {
        Record {
            key: Some(b"order-7"),
            tag: None,
            properties: Properties::Owned(properties),
            payload,
            time: Timestamp(1),
        }
    }

    fn digest(messages: &[(&str, Option<u32>, Record<'_>)]) -> u64 {
        let mut digest = ContentDigest::new();
        for (topic, queue, record) in messages {
            digest.add(&TopicName::new(*topic).unwrap(), queue.map(QueueNumber), record);
        }
        digest.finish()
    }

    #[test]
    fn known_messages_keep_their_digest() {
        let pairs = [("a".to_owned(), "b".to_owned())];
        let messages = [
            ("orders", None, record(b"new", &pairs)),
            ("bills", Some(3), Record::new(b"", Timestamp(9))),
        ];
        assert_eq!(format!("{:016x}", digest(&messages)), "b2e5d2fdccfe1964");
        assert_eq!(format!("{:016x}", digest(&[])), "2d06800538d394c2");
    }

    #[test]
    fn time_does_not_count_and_everything_else_does() {
        let pairs = [("a".to_owned(), "b".to_owned())];
        let base = record(b"new", &pairs);
        let of = |record| digest(&[("orders", None, record)]);
        let late = Record {
            time: Timestamp(77),
            ..base
        };
        assert_eq!(of(late), of(base));
        let others = [
            Record { key: None, ..base },
            Record {
                key: Some(b""),
                ..base
            },
            Record {
                tag: Some("new"),
                ..base
            },
            Record {
                properties: Properties::None,
                ..base
            },
            Record {
                payload: b"old",
                ..base
            },
        ];
        let mut digests: Vec<_> = others.map(of).into();
        digests.push(of(base));
        digests.push(digest(&[("bills", None, base)]));
        digests.push(digest(&[("orders", Some(0), base)]));
        digests.push(digest(&[("orders", None, base), ("orders", None, base)]));
        let all = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), all);
    }
}
