//! A topic's settings: part of its declaration, like its queues and its durability floor.

use serde::{Deserialize, Serialize};

use crate::limits::{RECORD_BYTES_MAX, SETTING_MAX};

/// A new topic retains its messages for seven days by default.
const NEW_RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// The settings of a topic. With all of them unset, as in topics created before there were settings, every
/// message is retained for ever.
///
/// A message is deleted as soon as any of `retention_ms`, `retention_bytes` and `consumed` allows it, unless
/// `hold_ms` retains it.
///
/// Later settings are not encoded if they are unset, so that older peers can read every topic that does not
/// use them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicSettings {
    /// A message older than this is deleted, milliseconds; `None` = regardless of age.
    pub retention_ms: Option<u64>,
    /// The oldest messages of a queue are deleted once newer ones have this many bytes; `None` = regardless
    /// of size. Batches count with their stored size, and are deleted as a whole.
    pub retention_bytes: Option<u64>,
    /// Messages that every group of the topic has acknowledged are deleted. While the topic has no group,
    /// this deletes nothing.
    pub consumed: bool,
    /// Messages that some group has not acknowledged are retained despite age and bytes until they are this
    /// old, milliseconds; `None` = groups do not delay deletion.
    pub hold_ms: Option<u64>,
    /// The most bytes of a message (key, tag, properties and payload together); `None` =
    /// [`RECORD_BYTES_MAX`].
    pub message_bytes_max: Option<u32>,
    /// Key compaction: of the messages with the same key in a queue the last one is retained, and earlier
    /// ones may be deleted; messages without a key are not affected. An empty message with a key deletes the
    /// key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compact: bool,
}

/// Why settings are invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// A limit is zero or too large.
    #[error("`{name}` = {value} is out of range; expected 1 to {max}, or leave it out")]
    Range {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: u64,
        /// The largest value allowed.
        max: u64,
    },
    /// `hold_ms` would end before the messages reach their retention age.
    #[error(
        "`hold_ms` = {hold_ms} is less than `retention_ms` = {retention_ms}; it must be at least as long"
    )]
    Ceiling {
        /// `hold_ms` as given.
        hold_ms: u64,
        /// `retention_ms` as given.
        retention_ms: u64,
    },
    /// The last message of each key would be deleted as soon as the present groups have acknowledged it.
    #[error(
        "`compact` retains the last message of each key for later consumers, `consumed` deletes what the present groups \
         have acknowledged; set only one of them"
    )]
    CompactConsumed,
}

impl TopicSettings {
    /// The default settings of a new topic: retention for seven days.
    #[must_use]
    pub const fn of_new_topic() -> Self {
        Self {
            retention_ms: Some(NEW_RETENTION_MS),
            retention_bytes: None,
            consumed: false,
            hold_ms: None,
            message_bytes_max: None,
            compact: false,
        }
    }

    /// Whether messages are deleted by age, by size or when they are consumed. (`compact` deletes single
    /// messages, but does not move the start of the queue.)
    #[must_use]
    pub const fn deletes(&self) -> bool {
        self.retention_ms.is_some() || self.retention_bytes.is_some() || self.consumed
    }

    /// The most bytes of a message.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        let own = self.message_bytes_max.and_then(|max| usize::try_from(max).ok());
        own.unwrap_or(RECORD_BYTES_MAX).min(RECORD_BYTES_MAX)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`InvalidSettings`]: the first setting that is invalid.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        let in_range = |name, value: Option<u64>, max| match value {
            Some(value) if value == 0 || value > max => Err(InvalidSettings::Range { name, value, max }),
            _ => Ok(()),
        };
        in_range("retention_ms", self.retention_ms, SETTING_MAX)?;
        in_range("retention_bytes", self.retention_bytes, SETTING_MAX)?;
        in_range("hold_ms", self.hold_ms, SETTING_MAX)?;
        let message_bytes_max = self.message_bytes_max.map(u64::from);
        in_range("message_bytes_max", message_bytes_max, RECORD_BYTES_MAX as u64)?;
        if self.compact && self.consumed {
            return Err(InvalidSettings::CompactConsumed);
        }
        match (self.hold_ms, self.retention_ms) {
            (Some(hold_ms), Some(retention_ms)) if hold_ms < retention_ms => Err(InvalidSettings::Ceiling {
                hold_ms,
                retention_ms,
            }),
            _ => Ok(()),
        }
    }
}

/// A change of a topic's settings. Outer `None` = leave it as it is; inner `None` = unset it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// See [`TopicSettings::retention_ms`].
    pub retention_ms: Option<Option<u64>>,
    /// See [`TopicSettings::retention_bytes`].
    pub retention_bytes: Option<Option<u64>>,
    /// See [`TopicSettings::consumed`].
    pub consumed: Option<bool>,
    /// See [`TopicSettings::hold_ms`].
    pub hold_ms: Option<Option<u64>>,
    /// See [`TopicSettings::message_bytes_max`].
    pub message_bytes_max: Option<Option<u32>>,
    /// See [`TopicSettings::compact`].
    pub compact: Option<bool>,
}

impl SettingsChange {
    /// Applies the change to `settings`.
    #[must_use]
    pub fn of(&self, settings: TopicSettings) -> TopicSettings {
        TopicSettings {
            retention_ms: self.retention_ms.unwrap_or(settings.retention_ms),
            retention_bytes: self.retention_bytes.unwrap_or(settings.retention_bytes),
            consumed: self.consumed.unwrap_or(settings.consumed),
            hold_ms: self.hold_ms.unwrap_or(settings.hold_ms),
            message_bytes_max: self.message_bytes_max.unwrap_or(settings.message_bytes_max),
            compact: self.compact.unwrap_or(settings.compact),
        }
    }

    /// Applies the change to the default settings of a new topic. With key compaction the default is to
    /// retain the last message of a key however old it is, unless the change sets an age.
    #[must_use]
    pub fn of_new_topic(&self) -> TopicSettings {
        let mut new = TopicSettings::of_new_topic();
        if self.compact == Some(true) {
            new.retention_ms = None;
        }
        self.of(new)
    }
}

impl From<TopicSettings> for SettingsChange {
    /// The change that turns any settings into these.
    fn from(settings: TopicSettings) -> Self {
        Self {
            retention_ms: Some(settings.retention_ms),
            retention_bytes: Some(settings.retention_bytes),
            consumed: Some(settings.consumed),
            hold_ms: Some(settings.hold_ms),
            message_bytes_max: Some(settings.message_bytes_max),
            compact: Some(settings.compact),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rpc_core::serialize::SerializerRef;

    use super::*;

    #[test]
    fn settings_out_of_range_are_named_with_what_was_expected() {
        let new = TopicSettings::of_new_topic();
        assert_eq!(new.check(), Ok(()));
        assert_eq!(TopicSettings::default().check(), Ok(()));
        let wrong = [
            TopicSettings {
                retention_ms: Some(0),
                ..new
            },
            TopicSettings {
                retention_ms: Some(u64::MAX),
                ..new
            },
            TopicSettings {
                retention_bytes: Some(0),
                ..new
            },
            TopicSettings {
                hold_ms: Some(0),
                ..new
            },
            TopicSettings {
                message_bytes_max: Some(0),
                ..new
            },
            TopicSettings {
                message_bytes_max: Some(u32::MAX),
                ..new
            },
        ];
        let names = [
            "retention_ms",
            "retention_ms",
            "retention_bytes",
            "hold_ms",
            "message_bytes_max",
            "message_bytes_max",
        ];
        for (settings, expected) in wrong.iter().zip(names) {
            assert!(matches!(settings.check(), Err(InvalidSettings::Range { name, .. }) if name == expected));
        }
        let low = TopicSettings {
            hold_ms: Some(1),
            ..new
        };
        assert!(matches!(
            low.check(),
            Err(InvalidSettings::Ceiling { hold_ms: 1, .. })
        ));
        let both = TopicSettings {
            compact: true,
            consumed: true,
            ..new
        };
        assert_eq!(both.check(), Err(InvalidSettings::CompactConsumed));
    }

    #[test]
    fn new_topic_that_compacts_keeps_last_values_however_old_unless_an_age_is_named() {
        let compact = SettingsChange {
            compact: Some(true),
            ..SettingsChange::default()
        };
        assert_eq!(compact.of_new_topic().retention_ms, None);
        let aged = SettingsChange {
            retention_ms: Some(Some(7)),
            ..compact
        };
        assert_eq!(aged.of_new_topic().retention_ms, Some(7));
        assert_eq!(
            SettingsChange::default().of_new_topic(),
            TopicSettings::of_new_topic()
        );
    }

    #[test]
    fn change_leaves_what_it_does_not_name() {
        let new = TopicSettings {
            message_bytes_max: Some(7),
            ..TopicSettings::of_new_topic()
        };
        assert_eq!(SettingsChange::default().of(new), new);
        let change = SettingsChange {
            retention_ms: Some(None),
            consumed: Some(true),
            ..SettingsChange::default()
        };
        let changed = TopicSettings {
            consumed: true,
            message_bytes_max: Some(7),
            ..TopicSettings::default()
        };
        assert_eq!(change.of(new), changed);
        assert_eq!(SettingsChange::from(changed).of(new), changed);
        let compacting = TopicSettings { compact: true, ..new };
        assert_eq!(SettingsChange::from(compacting).of(new), compacting);
    }

    #[test]
    fn settings_that_an_older_peer_leaves_out_are_unset() {
        let read: TopicSettings = SerializerRef::Json.decode(b"{}").unwrap();
        assert_eq!(read, TopicSettings::default());
        let new = TopicSettings::of_new_topic();
        let compacting = TopicSettings { compact: true, ..new };
        for serializer in [SerializerRef::Json, SerializerRef::Msgpack] {
            for settings in [new, compacting] {
                let mut bytes = BytesMut::new();
                serializer.encode(&settings, &mut bytes).unwrap();
                assert_eq!(serializer.decode::<TopicSettings>(&bytes).unwrap(), settings);
            }
        }
    }

    #[test]
    fn peer_from_before_compaction_reads_a_topic_without_it() {
        type First = (Option<u64>, Option<u64>, bool, Option<u64>, Option<u32>);
        let mut bytes = BytesMut::new();
        SerializerRef::Msgpack
            .encode(&TopicSettings::of_new_topic(), &mut bytes)
            .unwrap();
        let read: First = SerializerRef::Msgpack.decode(&bytes).unwrap();
        assert_eq!(read, (Some(NEW_RETENTION_MS), None, false, None, None));
    }
}
