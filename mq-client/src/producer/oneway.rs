//! Oneway sends: queued, batched and sent in the background, never sent again, and counted when they are dropped.

use std::sync::atomic::{AtomicU64, Ordering};

/// What became of a producer's messages, in messages since it was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProducerStats {
    /// Acked sends with a receipt.
    pub acked: u64,
    /// Acked sends that definitely failed.
    pub failed: u64,
    /// Acked sends of unknown outcome.
    pub unknown: u64,
    /// Oneway messages handed to a connection.
    pub oneway_sent: u64,
    /// Oneway messages that were queued and then dropped.
    pub oneway_dropped: u64,
}

/// The same, being counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acked: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) oneway_sent: AtomicU64,
    pub(crate) oneway_dropped: AtomicU64,
}

impl Counters {
    pub(crate) fn stats(&self) -> ProducerStats {
        ProducerStats {
            acked: self.acked.load(Ordering::Relaxed),
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
