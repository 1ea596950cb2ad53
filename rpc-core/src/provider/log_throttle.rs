//! Keeps peers that are turned away, such as those without the right token, from flooding the log: they are
//! reported once a minute, with their number. Pure.

use std::sync::atomic::{AtomicU64, Ordering};

const EVERY_US: u64 = 60_000_000;

/// Counts events between two reports.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    unreported: AtomicU64,
    /// Time of the last report, plus one; 0 = never.
    reported_at: AtomicU64,
}

impl LogThrottle {
    /// Counts one event. If a report is due: the number of events since the last one, including this one.
    pub(super) fn count(&self, now_us: u64) -> Option<u64> {
        self.unreported.fetch_add(1, Ordering::Relaxed);
        let reported_at = self.reported_at.load(Ordering::Relaxed);
        if reported_at != 0 && now_us < (reported_at - 1).saturating_add(EVERY_US) {
            return None;
        }
        // Of several callers at the same moment, only one reports.
        self.reported_at
            .compare_exchange(reported_at, now_us + 1, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        Some(self.unreported.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_reported_once_a_minute_with_their_number() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.count(0), Some(1), "the first at once");
        for now_us in 1..1000 {
            assert_eq!(throttle.count(now_us), None);
        }
        assert_eq!(throttle.count(EVERY_US - 1), None);
        assert_eq!(throttle.count(EVERY_US), Some(1001));
        assert_eq!(throttle.count(EVERY_US + 1), None);
    }
}
