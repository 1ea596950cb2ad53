//! Sizes and times of the store.

use std::time::Duration;

use super::KeySettings;

/// Sizes and times of the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of memory for the newest batches of all queues, counting capacity.
    pub tail_bytes: usize,
    /// Bytes of memory for the index of sealed segments, read from their `Placed` footers.
    pub footer_bytes: usize,
    /// Bytes of memory for the indexes of queue files.
    pub marks_bytes: usize,
    /// Bytes of a queue's first file; each further one is twice as large, ..
    pub queue_segment_bytes: u32,
    /// .. up to this size.
    pub queue_segment_bytes_max: u32,
    /// Queue files with a smaller share of valid data are rewritten, percent.
    pub rewrite_valid_percent: u64,
    /// How long what the disk cannot read is an error to readers, before it is a hole.
    pub unreadable_patience: Duration,
    /// Settings of key compaction.
    pub keys: KeySettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tail_bytes: 64 * 1024 * 1024,
            footer_bytes: 16 * 1024 * 1024,
            marks_bytes: 8 * 1024 * 1024,
            queue_segment_bytes: 1024 * 1024,
            queue_segment_bytes_max: 256 * 1024 * 1024,
            rewrite_valid_percent: 30,
            unreadable_patience: Duration::from_secs(30),
            keys: KeySettings::default(),
        }
    }
}
