//! What is sent: texts of which no two are the same, and that say themselves what key they have. One that
//! ends in `gone` deletes its key: it travels without a payload, so that its text is its tag.

use fastrand::Rng;
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::Timestamp;

use crate::support::Delivered;

/// How long a tombstone is retained.
pub(crate) const TOMBSTONE_MS: u64 = 300;
/// Number of frequent keys, and of rare ones.
const KEYS: [u32; 2] = [8, 60];
const GONE: &str = "gone";

/// A value to be generated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made {
    /// Of this many bytes, and a few more.
    Plain(usize),
    /// With a key.
    Keyed(u32, usize),
    Tombstone(u32),
}

impl Made {
    /// With a key or as one that deletes it; one in a while without.
    pub(crate) fn any(random: &mut Rng, bytes: usize) -> Self {
        let key = match random.u8(..50) {
            0 => random.u32(KEYS[0]..KEYS[1]),
            _ => random.u32(..KEYS[0]),
        };
        match random.u8(..100) {
            0 => Self::Plain(10),
            1..9 => Self::Tombstone(key),
            _ => Self::Keyed(key, bytes),
        }
    }

    /// Its text, which begins with what is in no other.
    pub(crate) fn text(self, name: &str) -> String {
        match self {
            Self::Plain(bytes) => format!("{name}.{}", "x".repeat(bytes)),
            Self::Keyed(key, bytes) => format!("{name}={key}.{}", "x".repeat(bytes)),
            Self::Tombstone(key) => format!("{name}={key}.{GONE}"),
        }
    }
}

/// Values may be long; all before the last dot is in no other.
pub(super) fn name(value: &str) -> &str {
    value.rsplit_once('.').map_or(value, |(name, _)| name)
}

/// The key that a value has.
pub(super) fn key(value: &str) -> Option<&str> {
    name(value).split_once('=').map(|(_, key)| key)
}

/// Whether it deletes its key.
pub(super) fn is_tombstone(value: &str) -> bool {
    key(value).is_some() && value.rsplit('.').next() == Some(GONE)
}

/// A batch of these values.
pub(super) fn batch(values: &[String]) -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    for value in values {
        let record = Record {
            key: key(value).map(str::as_bytes),
            ..Record::new(value.as_bytes(), Timestamp(1))
        };
        let record = match is_tombstone(value) {
            true => Record {
                tag: Some(value),
                payload: &[],
                ..record
            },
            false => record,
        };
        builder.push(&record).unwrap();
    }
    builder.finish().unwrap()
}

/// The text of a message as it was served; it has to have its key.
pub(super) fn text(message: Delivered) -> Result<String, String> {
    let text = match message.tag {
        Some(tag) if message.value.is_empty() => tag,
        _ => message.value,
    };
    if message.key.as_deref() == key(&text) {
        return Ok(text);
    }
    Err(format!(
        "`{text:.40}` at offset {} has the key {:?}",
        message.offset, message.key
    ))
}
