//! A topic's settings: as flags, and as they are shown.

use std::time::Duration;

use clap::Args;
use mq_common::api::{SettingsChange, TopicSettings};

use crate::args::{Format, byte_count, duration};
use crate::output::Record;

/// Flags of `create` and `alter`.
#[derive(Debug, Args)]
pub(crate) struct SettingsFlags {
    /// Delete messages older than this, such as `7d` or `12h`; `forever` = never because of age. Default
    /// for a new topic: 7d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    retention: Option<Limit>,
    /// Keep about this many bytes of the newest messages per queue and delete older ones, such as `10GiB`;
    /// `none` = no limit. Default for a new topic: none.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    retention_bytes: Option<Limit>,
    /// Delete messages that every consumer group has acknowledged; `--consumed=false` turns this off.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    consumed: Option<bool>,
    /// Keep messages that some consumer group has not acknowledged, despite `--retention` and
    /// `--retention-bytes`, until they reach this age (30d if no age is given); `none` turns this off.
    #[arg(long, value_name = "AGE", num_args = 0..=1, default_missing_value = "30d", value_parser = age)]
    hold_until_consumed: Option<Limit>,
    /// Key compaction: keep only the last message of each key (and all messages without a key); earlier ones
    /// are deleted some time after they have left the journal. An empty message with a key deletes the key. A
    /// new topic then keeps messages forever, unless `--retention` is given. Cannot be combined with
    /// `--consumed`; `--compact=false` turns it off.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    compact: Option<bool>,
    /// Refuse messages larger than this (key, tag, properties and payload together), such as `64KiB`; `none`
    /// = the format's limit, 4 MiB.
    #[arg(long, value_name = "BYTES", value_parser = message_bytes)]
    max_message_bytes: Option<MessageLimit>,
}

/// A limit, or `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<u64>);

/// The same for the size of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MessageLimit(Option<u32>);

impl SettingsFlags {
    /// The change that the flags describe.
    pub(super) fn change(&self) -> SettingsChange {
        SettingsChange {
            retention_ms: self.retention.map(|limit| limit.0),
            retention_bytes: self.retention_bytes.map(|limit| limit.0),
            consumed: self.consumed,
            hold_ms: self.hold_until_consumed.map(|limit| limit.0),
            message_bytes_max: self.max_message_bytes.map(|limit| limit.0),
            compact: self.compact,
        }
    }
}

fn age(text: &str) -> Result<Limit, String> {
    if matches!(text, "forever" | "none") {
        return Ok(Limit(None));
    }
    let age = duration(text).map_err(|error| format!("{error}, or `forever`"))?;
    let ms = u64::try_from(age.as_millis()).map_err(|_| format!("`{text}` is too long"))?;
    Ok(Limit(Some(ms)))
}

fn bytes(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let bytes = byte_count(text).map_err(|error| format!("{error}, or `none`"))?;
    Ok(Limit(Some(bytes as u64)))
}

fn message_bytes(text: &str) -> Result<MessageLimit, String> {
    match bytes(text)?.0 {
        None => Ok(MessageLimit(None)),
        Some(bytes) => u32::try_from(bytes)
            .map(|bytes| MessageLimit(Some(bytes)))
            .map_err(|_| format!("`{text}` is more than a message can have")),
    }
}

/// Adds the settings to a record: readable in tables, as numbers in JSON.
pub(super) fn shown(record: Record, settings: &TopicSettings, format: Format) -> Record {
    match format {
        Format::Json => record
            .with("retention_ms", settings.retention_ms)
            .with("retention_bytes", settings.retention_bytes)
            .with("consumed", settings.consumed)
            .with("hold_ms", settings.hold_ms)
            .with("message_bytes_max", settings.message_bytes_max)
            .with("compact", settings.compact),
        Format::Table => record
            .with(
                "retention",
                settings.retention_ms.map_or("forever".to_owned(), words),
            )
            .with("retention_bytes", settings.retention_bytes)
            .with("consumed", settings.consumed)
            .with("hold", settings.hold_ms.map(words))
            .with("message_bytes_max", settings.message_bytes_max)
            .with("compact", settings.compact),
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A duration in the form that the flags accept.
fn words(ms: u64) -> String {
    if ms.is_multiple_of(DAY_MS) {
        return format!("{}d", ms / DAY_MS);
    }
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_take_words_units_and_nothing_else() {
        assert_eq!(age("7d"), Ok(Limit(Some(604_800_000))));
        assert_eq!(age("forever"), Ok(Limit(None)));
        assert!(age("soon").unwrap_err().contains("`forever`"));
        assert_eq!(bytes("10GiB"), Ok(Limit(Some(10 << 30))));
        assert_eq!(bytes("none"), Ok(Limit(None)));
        assert_eq!(message_bytes("64KiB"), Ok(MessageLimit(Some(65_536))));
        assert!(message_bytes("10GiB").unwrap_err().contains("10GiB"));
    }

    #[test]
    fn times_are_shown_as_they_are_given() {
        for text in ["7d", "30d", "12h", "1500ms"] {
            let Ok(Limit(Some(ms))) = age(text) else {
                panic!("{text}");
            };
            assert_eq!(age(&words(ms)), Ok(Limit(Some(ms))), "{}", words(ms));
        }
        assert_eq!(words(604_800_000), "7d");
    }
}
