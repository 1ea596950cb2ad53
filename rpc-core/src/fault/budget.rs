//! The retry budget: retries may be at most a share of the calls, so that a provider in trouble does not get
//! more load than before (Finagle's `RetryBudget`, gRPC's retry throttling). The share is a tenth, as in
//! Kitex; the fifth that Finagle and Envoy grant would be a fifth more load for providers that have no
//! capacity to spare.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::call::now;

/// What each call adds: an eleventh of a retry. With a tenth, the saved-up retries would push the share above
/// a tenth; with an eleventh, when every call fails for a minute, the load is at most 1.1 times the calls,
/// from 100 calls per second on.
const DEPOSIT: u32 = 1;
/// What a retry costs.
const RETRY: u32 = 11;
/// The content of a new budget: ten retries.
const START: u32 = 10 * RETRY;
/// At most fifty retries are ever saved up.
const MAX: u32 = 50 * RETRY;
/// However few calls there are, one retry per this time is granted.
const FREE_EVERY_MS: u64 = 1000;

/// A token bucket, shared by all calls of an invoker.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    balance: AtomicU32,
    start: Instant,
    /// When the last retry was granted, in milliseconds after `start`.
    granted_ms: AtomicU64,
}

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self {
            balance: AtomicU32::new(START),
            start: now(),
            granted_ms: AtomicU64::new(0),
        }
    }

    /// Counts one call. A full budget is only read, so that calls on many threads do not contend for its
    /// cache line.
    pub(crate) fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < MAX {
            self.balance.fetch_add(DEPOSIT, Ordering::Relaxed);
        }
    }

    /// Whether a retry may be made; if so, takes it from the budget.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let relaxed = Ordering::Relaxed;
        let take = |balance: u32| balance.checked_sub(RETRY);
        if self.balance.fetch_update(relaxed, relaxed, take).is_ok() {
            self.granted_ms.store(elapsed, relaxed);
            return true;
        }
        // Not in addition to the share but instead of it: a program that makes few calls would never save up
        // a retry.
        let free = |last: u64| (elapsed >= last.saturating_add(FREE_EVERY_MS)).then_some(elapsed);
        let granted = self.granted_ms.fetch_update(relaxed, relaxed, free).is_ok();
        if granted {
            self.balance.store(0, relaxed);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_share_of_the_calls() {
        let budget = RetryBudget::new();
        let start = budget.start;
        let granted = |budget: &RetryBudget| (0..1000).filter(|_| budget.withdraw(start)).count();
        assert_eq!(granted(&budget), 10);
        (0..110).for_each(|_| budget.deposit());
        assert_eq!(granted(&budget), 10);
        (0..1_000_000).for_each(|_| budget.deposit());
        assert_eq!(granted(&budget), 50);
    }

    #[test]
    fn one_retry_a_second_is_granted_however_few_calls_there_are() {
        let budget = RetryBudget::new();
        while budget.withdraw(budget.start) {}
        let after = |ms| budget.start + Duration::from_millis(ms);
        assert!(!budget.withdraw(after(999)));
        assert!(budget.withdraw(after(1000)));
        assert!(!budget.withdraw(after(1999)));
        assert!(budget.withdraw(after(2000)));
        (0..11).for_each(|_| budget.deposit());
        assert!(budget.withdraw(after(2900)));
        assert!(
            !budget.withdraw(after(3000)),
            "the share gave one less than a second ago"
        );
        assert!(budget.withdraw(after(3900)));
    }
}
