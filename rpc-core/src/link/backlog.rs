//! The unwritten bytes of all connections of one provider together. If a connection has unwritten bytes, it
//! is slow or its peer does not read, and those bytes take memory: above half of the limit, peers that take
//! nothing are disconnected sooner; above the limit, requests are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections are counted in units of this size, rounded down, so that a connection whose peer reads never
/// touches the shared counter.
const LUMP_BYTES: usize = 64 * 1024;

/// The shared counter of unwritten bytes, and its limit.
#[derive(Debug, Clone)]
pub(crate) struct Backlog {
    lumps: Arc<AtomicUsize>,
    lumps_max: usize,
}

impl Backlog {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            lumps: Arc::default(),
            lumps_max: (bytes_max / LUMP_BYTES).max(1),
        }
    }

    /// Whether at least half of the limit is used: other connections may soon need the memory that stalled
    /// peers hold.
    pub(crate) fn is_under_pressure(&self) -> bool {
        self.lumps.load(Ordering::Relaxed) >= self.lumps_max.div_ceil(2)
    }

    /// Whether the limit is reached: no work may be started whose answer would have to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.lumps.load(Ordering::Relaxed) >= self.lumps_max
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lumps.load(Ordering::Relaxed) * LUMP_BYTES
    }
}

/// One connection's share of the backlog, subtracted when dropped.
#[derive(Debug)]
pub(super) struct Part {
    backlog: Backlog,
    lumps: usize,
}

impl Part {
    pub(super) const fn new(backlog: Backlog) -> Self {
        Self { backlog, lumps: 0 }
    }

    pub(super) const fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Sets this connection's unwritten bytes.
    pub(super) fn set(&mut self, bytes: usize) {
        let lumps = bytes / LUMP_BYTES;
        let all = &self.backlog.lumps;
        match lumps.cmp(&self.lumps) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Greater => all.fetch_add(lumps - self.lumps, Ordering::Relaxed),
            std::cmp::Ordering::Less => all.fetch_sub(self.lumps - lumps, Ordering::Relaxed),
        };
        self.lumps = lumps;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_count_together_and_give_back_what_they_had() {
        let backlog = Backlog::new(4 * LUMP_BYTES);
        let (mut one, mut other) = (Part::new(backlog.clone()), Part::new(backlog.clone()));
        one.set(LUMP_BYTES - 1);
        assert_eq!(backlog.bytes(), 0);
        one.set(LUMP_BYTES);
        assert!(!backlog.is_under_pressure());
        other.set(3 * LUMP_BYTES + 5);
        assert!(backlog.is_under_pressure() && backlog.is_full());
        one.set(10);
        assert!(backlog.is_under_pressure() && !backlog.is_full());
        drop(other);
        assert_eq!(backlog.bytes(), 0);
    }
}
