//! Peers that are turned away, as those without the right token: told once a minute with how many there were, so that they cannot flood the log. Pure.

use std::sync::atomic::{AtomicU64, Ordering};

const EVERY_US: u64 = 60_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    untold: AtomicU64,
    /// When they were told last, plus one; 0 = never.
    told: AtomicU64,
}

impl Strangers {
    /// One more came. If it is time to tell: how many have come since the last time, this one included.
    pub(super) fn came(&self, now_us: u64) -> Option<u64> {
        self.untold.fetch_add(1, Ordering::Relaxed);
        let told = self.told.load(Ordering::Relaxed);
        if told != 0 && now_us < (told - 1).saturating_add(EVERY_US) {
            return None;
        }
        // Of several that come at this moment one tells.
        self.told
            .compare_exchange(told, now_us + 1, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        Some(self.untold.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_once_a_minute_with_their_number() {
        let strangers = Strangers::default();
        assert_eq!(strangers.came(0), Some(1), "the first at once");
        for now_us in 1..1000 {
            assert_eq!(strangers.came(now_us), None);
        }
        assert_eq!(strangers.came(EVERY_US - 1), None);
        assert_eq!(strangers.came(EVERY_US), Some(1001));
        assert_eq!(strangers.came(EVERY_US + 1), None);
    }
}
