//! The broker's time: the wall clock at start, or the time of the log's last entry if that is later,
//! continued by a clock that also runs while the machine sleeps and never goes back. Steps of the wall clock
//! affect nothing that waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use mq_common::ids::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A clock that only moves forward.
#[derive(Debug)]
pub struct Clock {
    /// Distance to the boot clock, milliseconds.
    ahead_ms: AtomicU64,
    last_ms: AtomicU64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self {
            ahead_ms: AtomicU64::new(wall_ms.saturating_sub(boot_ms())),
            last_ms: AtomicU64::new(wall_ms),
        }
    }

    /// Continues from this time if it is ahead of the clock.
    pub(super) fn not_before(&self, time: Timestamp) {
        let ahead_ms = time.0.saturating_sub(boot_ms());
        let before = self.ahead_ms.fetch_max(ahead_ms, Ordering::Relaxed);
        if before < ahead_ms {
            tracing::warn!(
                by_ms = ahead_ms - before,
                "the wall clock is before the last entry of the journal: this broker's time continues from that entry"
            );
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = self.ahead_ms.load(Ordering::Relaxed).saturating_add(boot_ms());
        let before = self.last_ms.fetch_max(now, Ordering::Relaxed);
        Timestamp(now.max(before))
    }
}

fn boot_ms() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(tv_nsec).unwrap_or(0);
    seconds * 1000 + nanoseconds / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_near_the_wall_clock_and_never_goes_back() {
        let clock = Clock::start();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!(u128::from(clock.now().0).abs_diff(wall) < 1000);
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn time_that_lies_ahead_goes_on_from_there_and_one_that_is_over_changes_nothing() {
        let clock = Clock::start();
        let ahead = Timestamp(clock.now().0 + 86_400_000);
        clock.not_before(ahead);
        clock.not_before(Timestamp(5));
        let begun = std::time::Instant::now();
        while clock.now() < Timestamp(ahead.0 + 20) {
            std::hint::spin_loop();
        }
        assert!(
            begun.elapsed() >= std::time::Duration::from_millis(15),
            "it runs as fast as any other clock"
        );
        assert!(clock.now() < Timestamp(ahead.0 + 3_600_000));
    }
}
