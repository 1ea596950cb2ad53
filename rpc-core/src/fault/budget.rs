//! The retry budget: retries may be at most a share of the calls, so that a provider in trouble is not given more load
//! than before (Finagle's RetryBudget, gRPC's retry throttling).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::call::now;

/// What each call puts in: a fifth of a retry.
const DEPOSIT: u32 = 1;
/// What a retry takes out.
const RETRY: u32 = 5;
/// What a new budget holds: ten retries.
const START: u32 = 10 * RETRY;
/// More than a hundred retries are never saved up.
const MAX: u32 = 100 * RETRY;
/// However few calls there are, one retry in this time is free.
const FREE_EVERY_MS: u64 = 1000;

/// A token bucket, shared by all calls of an invoker.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    balance: AtomicU32,
    start: Instant,
    /// When the last free retry was taken, milliseconds after `start`.
    free_ms: AtomicU64,
}

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self {
            balance: AtomicU32::new(START),
            start: now(),
            free_ms: AtomicU64::new(0),
        }
    }

    /// Notes one call. A full budget is only read, so that calls on many threads do not fight for its cache line.
    pub(crate) fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < MAX {
            self.balance.fetch_add(DEPOSIT, Ordering::Relaxed);
        }
    }

    /// Whether a retry may be made, and takes it from the budget.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let take = |balance: u32| balance.checked_sub(RETRY);
        if self
            .balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
        {
            return true;
        }
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let free = |last: u64| (elapsed >= last.saturating_add(FREE_EVERY_MS)).then_some(elapsed);
        self.free_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .is_ok()
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
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(granted(&budget), 20);
        (0..1_000_000).for_each(|_| budget.deposit());
        assert_eq!(granted(&budget), 100);
    }

    #[test]
    fn one_retry_a_second_is_free() {
        let budget = RetryBudget::new();
        while budget.withdraw(budget.start) {}
        let after = |ms| budget.start + Duration::from_millis(ms);
        assert!(!budget.withdraw(after(999)));
        assert!(budget.withdraw(after(1000)));
        assert!(!budget.withdraw(after(1999)));
        assert!(budget.withdraw(after(2000)));
    }
}
