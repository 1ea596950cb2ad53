//! Sizes and times of the store.

use std::time::Duration;

use super::KeySettings;

/// Sizes of the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of memory for the newest batches of all queues, counting capacity.
    pub tail_bytes: usize,
    /// Bytes of memory for what was read of `Placed` footers of sealed segments.
    pub footer_bytes: usize,
    /// Bytes of memory for the indexes of queue files.
    pub marks_bytes: usize,
    /// Bytes of a queue's first file; each further one is twice as large ..
    pub queue_segment_bytes: u32,
    /// .. up to this.
    pub queue_segment_bytes_max: u32,
    /// Queue files of which less is valid are rewritten, percent.
    pub rewrite_valid_percent: u64,
    /// What the disk cannot read is an error to a reader for so long, then a hole.
    pub unreadable_patience: Duration,
    /// How queues are compacted by their keys.
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
