//! The broker's time: the wall clock as it stood at start, carried on by a clock that also runs while the machine
//! sleeps, and never going back. Steps of the wall clock do not reach anything that waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use mq_common::ids::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A clock that only moves forward.
#[derive(Debug)]
pub struct Clock {
    /// Wall clock minus boot clock at start, milliseconds.
    ahead_ms: u64,
    last_ms: AtomicU64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self {
            ahead_ms: wall_ms.saturating_sub(boot_ms()),
            last_ms: AtomicU64::new(wall_ms),
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = self.ahead_ms.saturating_add(boot_ms());
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
}
