//! One method's gate: how many of its calls run and may run, their outcomes, and whether the method is slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Clock;
use super::slowness::{Record, SlowMethods};

/// Updated by every call of the method; on a cache line of its own, so that methods do not slow each other
/// down.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct MethodGate {
    /// Calls admitted so far. Together with `left` it gives the number running: two counters that each call
    /// increments once.
    entered: AtomicU64,
    left: AtomicU64,
    /// Answers with an error of the framework.
    failed: AtomicU64,
    /// Answers with the method's own error.
    app_errors: AtomicU64,
    /// Calls not admitted.
    refused: AtomicU64,
    /// Times that a handler was found to block its thread.
    blocked: AtomicU64,
    max: u64,
    /// Until when the method is slow, in µs of the provider's clock; 0 = it is not.
    slow_until_us: AtomicU64,
    /// None for a method that never counts as slow.
    slowness: Option<Box<Slowness>>,
}

#[derive(Debug)]
struct Slowness {
    rule: SlowMethods,
    slow_calls: AtomicU64,
    /// Locked when a slow call ends, and by the calls of a slow method.
    record: Mutex<Record>,
}

/// The method admits no more calls now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// Its limit.
    pub(super) max: u64,
    /// Whether that is the limit of slow methods.
    pub(super) slow: bool,
}

/// The kinds of failed calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwell {
    /// With the method's own error.
    App,
    /// With an error of the framework.
    Failed,
}

/// Statistics of a method's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) calls: u64,
    pub(super) in_flight: u64,
    pub(super) failures: u64,
    pub(super) app_errors: u64,
    pub(super) refused: u64,
    pub(super) slow_calls: u64,
    pub(super) blocked: u64,
    pub(super) is_slow: bool,
    /// The current limit: lower while the method is slow.
    pub(super) in_flight_max: u64,
}

impl MethodGate {
    /// A gate for `max` calls at once. Without a rule the method never counts as slow.
    pub(super) fn new(max: usize, rule: Option<SlowMethods>) -> Self {
        Self {
            entered: AtomicU64::new(0),
            left: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            app_errors: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            max: max as u64,
            slow_until_us: AtomicU64::new(0),
            slowness: rule.map(|rule| {
                Box::new(Slowness {
                    rule,
                    slow_calls: AtomicU64::new(0),
                    record: Mutex::default(),
                })
            }),
        }
    }

    /// Admits a call.
    pub(super) fn enter(&self, clock: &Clock) -> Result<(), Full> {
        let slow_until_us = self.slow_until_us.load(Ordering::Relaxed);
        let slow = slow_until_us != 0 && self.is_still_slow(slow_until_us, clock);
        let max = if slow { self.slow_max() } else { self.max };
        let before = self.entered.fetch_add(1, Ordering::AcqRel);
        // Read after `entered`, so that it never appears to be ahead: every call that has left had entered.
        if before.saturating_sub(self.left.load(Ordering::Acquire)) >= max {
            self.entered.fetch_sub(1, Ordering::AcqRel);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Full { max, slow });
        }
        Ok(())
    }

    /// An admitted call is over, even if it got no answer.
    pub(super) fn leave(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts an answer that is an error.
    pub(super) fn count(&self, ended: Unwell) {
        let counter = match ended {
            Unwell::App => &self.app_errors,
            Unwell::Failed => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A handler has blocked its thread. Returns the number of times so far if it should be logged: each time
    /// after twice as many as before, so that a method that always blocks does not flood the log.
    pub(super) fn blocked(&self) -> Option<u64> {
        let times = self.blocked.fetch_add(1, Ordering::Relaxed) + 1;
        times.is_power_of_two().then_some(times)
    }

    /// A call ran from `began` to `ended`. Returns whether this made the method slow.
    pub(super) fn took(&self, clock: &Clock, began: Instant, ended: Instant) -> bool {
        let Some(slowness) = &self.slowness else {
            return false;
        };
        let is_slow = self.slow_until_us.load(Ordering::Relaxed) != 0;
        if ended.saturating_duration_since(began) > slowness.rule.after {
            slowness.slow_calls.fetch_add(1, Ordering::Relaxed);
            let until = slowness.locked(|record| record.slow(&slowness.rule, ended));
            let until_us = until.map_or(0, |until| clock.micros(until));
            self.slow_until_us.store(until_us, Ordering::Relaxed);
            return until_us != 0 && !is_slow;
        }
        if is_slow && slowness.locked(|record| record.quick(&slowness.rule)) {
            self.slow_until_us.store(0, Ordering::Relaxed);
        }
        false
    }

    /// Whether the duration of calls matters.
    pub(super) const fn is_timed(&self) -> bool {
        self.slowness.is_some()
    }

    pub(super) fn figures(&self, clock: &Clock) -> Figures {
        let left = self.left.load(Ordering::Acquire);
        let calls = self.entered.load(Ordering::Acquire);
        let slow_until_us = self.slow_until_us.load(Ordering::Relaxed);
        let is_slow = slow_until_us > clock.micros(crate::call::now());
        let slow_calls = self.slowness.as_ref().map(|slowness| &slowness.slow_calls);
        Figures {
            calls,
            in_flight: calls.saturating_sub(left),
            failures: self.failed.load(Ordering::Relaxed),
            app_errors: self.app_errors.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            slow_calls: slow_calls.map_or(0, |calls| calls.load(Ordering::Relaxed)),
            blocked: self.blocked.load(Ordering::Relaxed),
            is_slow,
            in_flight_max: if is_slow { self.slow_max() } else { self.max },
        }
    }

    fn slow_max(&self) -> u64 {
        let slow = self
            .slowness
            .as_ref()
            .map(|slowness| slowness.rule.in_flight_max as u64);
        slow.map_or(self.max, |slow| slow.min(self.max))
    }

    /// Whether a slow method still is; if not, this is recorded.
    #[cold]
    fn is_still_slow(&self, until_us: u64, clock: &Clock) -> bool {
        let slow = clock.newest_us.load(Ordering::Relaxed) < until_us;
        if !slow {
            // Unless it has become slow again meanwhile; then the next call sees that.
            let swapped =
                self.slow_until_us
                    .compare_exchange(until_us, 0, Ordering::Relaxed, Ordering::Relaxed);
            return swapped.is_err_and(|now| now != 0);
        }
        slow
    }
}

impl Slowness {
    fn locked<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        change(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn limit_is_exact_and_places_come_back() {
        let (clock, gate) = (Clock::new(), MethodGate::new(2, None));
        assert_eq!(gate.enter(&clock), Ok(()));
        assert_eq!(gate.enter(&clock), Ok(()));
        assert_eq!(gate.enter(&clock), Err(Full { max: 2, slow: false }));
        gate.leave();
        assert_eq!(gate.enter(&clock), Ok(()));
        gate.count(Unwell::App);
        gate.count(Unwell::Failed);
        let figures = gate.figures(&clock);
        assert_eq!((figures.calls, figures.in_flight, figures.refused), (3, 2, 1));
        assert_eq!(
            (figures.app_errors, figures.failures, figures.is_slow),
            (1, 1, false)
        );
    }

    #[test]
    fn blocking_handlers_are_counted_always_and_told_ever_more_seldom() {
        let gate = MethodGate::new(2, None);
        let told: Vec<u64> = (0..100).filter_map(|_| gate.blocked()).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(gate.figures(&Clock::new()).blocked, 100);
    }

    #[test]
    fn slow_method_has_few_places_until_the_coarse_clock_says_otherwise() {
        let clock = Clock::new();
        let gate = MethodGate::new(100, Some(SlowMethods::default().in_flight_max(1)));
        let start = clock.start;
        for call in 1..=10 {
            let became_slow = gate.took(&clock, start, start + call * 2 * SECOND);
            assert_eq!(became_slow, call == 10, "{call}");
        }
        clock.set(start + 30 * SECOND);
        assert_eq!(gate.enter(&clock), Ok(()));
        assert_eq!(gate.enter(&clock), Err(Full { max: 1, slow: true }));
        clock.set(start + 2 * SECOND + Duration::from_mins(5));
        assert_eq!(gate.enter(&clock), Ok(()));
        assert_eq!(gate.figures(&clock).slow_calls, 10);
    }
}
