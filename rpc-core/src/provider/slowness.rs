//! Finds slow methods: hc-rpc's rule, ten calls of more than a second each, but per method and with decay.
//! hc-rpc cleared the counts of all methods at once every five minutes, so that every slow method was taken
//! for a fast one again at the same moment. Here each slow call is forgotten five minutes after it ended: a
//! method is slow while its ten newest slow calls all lie within the last five minutes.
//!
//! Pure: the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When a method counts as slow, and how many calls it may run then: the argument of
/// [`ProviderBuilder::slow_methods`](crate::ProviderBuilder::slow_methods). Changed from the default with
/// [`SlowMethods::after`] and the other methods.
///
/// Methods with a limit of their own never count as slow (`#[rpc(in_flight_max = ..)]` or
/// [`ProviderBuilder::limit_method`](crate::ProviderBuilder::limit_method)), since their author has already
/// considered this, nor do `#[rpc(long_poll)]` ones, which wait instead of working.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct SlowMethods {
    pub(crate) after: Duration,
    pub(crate) calls: usize,
    pub(crate) within: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) forgiven_after: u32,
}

impl Default for SlowMethods {
    fn default() -> Self {
        Self {
            after: Duration::from_secs(1),
            calls: 10,
            within: Duration::from_mins(5),
            in_flight_max: 32,
            forgiven_after: 1000,
        }
    }
}

impl SlowMethods {
    /// A call that took longer than this was slow. Default 1 s.
    pub const fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    /// This many slow calls (at least 1) within `within` make their method slow. Default 10 within 5 minutes.
    pub fn calls(mut self, calls: usize, within: Duration) -> Self {
        self.calls = calls.max(1);
        self.within = within;
        self
    }

    /// Calls that a slow method may run at once; further ones are answered `Overloaded`. Default 32, half of
    /// the threads for blocking methods, so that a slow one of those leaves the other half free.
    pub const fn in_flight_max(mut self, calls: usize) -> Self {
        self.in_flight_max = calls;
        self
    }

    /// This many consecutive calls of a slow method that were not slow make it fast at once: it was a passing
    /// problem. Default 1000.
    pub fn forgiven_after(mut self, calls: u32) -> Self {
        self.forgiven_after = calls.max(1);
        self
    }
}

/// The newest slow calls of one method.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// When they ended, oldest first; at most as many as make a method slow.
    newest: VecDeque<Instant>,
    /// Consecutive calls since then that were not slow; counted while the method is slow.
    quick_in_row: u32,
}

impl Record {
    /// A slow call has ended. Returns when the method's slowness will end, if the method is slow now.
    pub(super) fn slow(&mut self, rule: &SlowMethods, now: Instant) -> Option<Instant> {
        self.quick_in_row = 0;
        if self.newest.len() >= rule.calls {
            self.newest.pop_front();
        }
        self.newest.push_back(now);
        let oldest = self.newest.front().filter(|_| self.newest.len() >= rule.calls)?;
        oldest.checked_add(rule.within).filter(|until| *until > now)
    }

    /// A call of a slow method has ended that was not slow. Returns whether the method is fast again.
    pub(super) fn quick(&mut self, rule: &SlowMethods) -> bool {
        self.quick_in_row += 1;
        let forgiven = self.quick_in_row >= rule.forgiven_after;
        if forgiven {
            *self = Self::default();
        }
        forgiven
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn ten_slow_calls_within_five_minutes_make_a_method_slow() {
        let (rule, start) = (SlowMethods::default(), Instant::now());
        let mut record = Record::default();
        for second in 0..9 {
            assert_eq!(record.slow(&rule, start + Duration::from_secs(second)), None);
        }
        let tenth = start + Duration::from_secs(9);
        assert_eq!(record.slow(&rule, tenth), Some(start + 5 * MINUTE));
    }

    #[test]
    fn slow_calls_are_forgotten_one_by_one_and_not_all_at_once() {
        let (rule, start) = (SlowMethods::default(), Instant::now());
        let mut record = Record::default();
        // One per minute is never enough.
        for minute in 0..100 {
            assert_eq!(record.slow(&rule, start + minute * MINUTE), None, "{minute}");
        }
        // One every half minute makes ten in four and a half minutes, and the end moves with the oldest of
        // them.
        let start = start + 200 * MINUTE;
        let half = MINUTE / 2;
        for call in 0..9 {
            assert_eq!(record.slow(&rule, start + call * half), None, "{call}");
        }
        for call in 9..100 {
            let until = record.slow(&rule, start + call * half);
            assert_eq!(until, Some(start + (call - 9) * half + 5 * MINUTE), "{call}");
        }
    }

    #[test]
    fn many_quick_calls_in_a_row_forgive_and_one_slow_call_between_them_does_not() {
        let rule = SlowMethods::default().calls(2, MINUTE).forgiven_after(3);
        let start = Instant::now();
        let mut record = Record::default();
        assert_eq!(record.slow(&rule, start), None);
        assert!(record.slow(&rule, start).is_some());
        assert!(!record.quick(&rule));
        assert!(!record.quick(&rule));
        assert!(record.slow(&rule, start).is_some());
        assert!(!record.quick(&rule));
        assert!(!record.quick(&rule));
        assert!(record.quick(&rule));
        assert_eq!(record.slow(&rule, start), None, "all is forgotten");
    }

    proptest! {
        /// The record against the rule in words.
        #[test]
        fn record_says_what_the_rule_says(gaps in prop::collection::vec(0_u64..60, 1..80), calls in 1_usize..15) {
            let rule = SlowMethods::default().calls(calls, Duration::from_mins(2));
            let mut record = Record::default();
            let mut now = Instant::now();
            let mut all = Vec::new();
            for gap in gaps {
                now += Duration::from_secs(gap);
                all.push(now);
                let within = all.iter().filter(|time| now.duration_since(**time) < rule.within).count();
                prop_assert_eq!(record.slow(&rule, now).is_some(), within >= calls);
                prop_assert!(record.newest.len() <= calls);
            }
        }
    }
}
