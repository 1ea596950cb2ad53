//! The counts of a producer's outcomes. Oneway messages are sent in the background at most once, so the
//! counts are all that reports when they are dropped.

use std::sync::atomic::{AtomicU64, Ordering};

/// The outcomes of a producer's messages: numbers of messages since it was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProducerStats {
    /// Messages with a receipt.
    pub confirmed: u64,
    /// Messages that definitely were not appended; oneway messages not included.
    pub failed: u64,
    /// Messages that may or may not have been appended; oneway messages not included.
    pub unknown: u64,
    /// Oneway messages handed to a connection.
    pub oneway_sent: u64,
    /// Oneway messages that were queued and then dropped.
    pub oneway_dropped: u64,
}

/// The running counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) confirmed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) oneway_sent: AtomicU64,
    pub(crate) oneway_dropped: AtomicU64,
}

impl Counters {
    pub(crate) fn stats(&self) -> ProducerStats {
        ProducerStats {
            confirmed: self.confirmed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
            oneway_sent: self.oneway_sent.load(Ordering::Relaxed),
            oneway_dropped: self.oneway_dropped.load(Ordering::Relaxed),
        }
    }
}

/// Adds messages to a count.
pub(crate) fn count(counter: &AtomicU64, messages: u32) {
    counter.fetch_add(u64::from(messages), Ordering::Relaxed);
}
