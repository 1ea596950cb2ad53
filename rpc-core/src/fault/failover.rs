//! Failover: another instance is tried, in the balancer's order.

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};
use crate::plugin::{PluginError, Settings};

/// Retries calls that another instance may be able to serve: no connection, overload, a provider that is
/// leaving or does not know the service. The first retry is sent at once, to another instance if there is
/// one; later ones wait a random time between zero and `backoff`, doubled each time up to `backoff_max`
/// ("full jitter": Marc Brooker, *Exponential Backoff and Jitter*, AWS Architecture Blog, 2015), so that
/// callers which failed together do not return together. The wait is never shorter than the provider's own
/// advice.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use rpc_core::{Invoker, fault::Failover};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let by_value = Arc::new(Failover::new(3).backoff(Duration::from_millis(20), Duration::from_secs(2)));
/// let invoker = Invoker::builder().direct(["127.0.0.1:9090"]).fault_tolerance(by_value).build().await?;
/// let by_name = Invoker::builder().direct(["127.0.0.1:9090"]).fault_tolerance("failover?retries=3").build().await?;
/// # drop((invoker, by_name));
/// # Ok(()) }
/// ```
///
/// Settings: `retries` (2; attempts beyond the first), `backoff_ms` (10), `backoff_max_ms` (1000).
#[derive(Debug, Clone, Copy)]
pub struct Failover {
    retries: u32,
    backoff: Duration,
    backoff_max: Duration,
}

impl Default for Failover {
    fn default() -> Self {
        Self::new(2)
    }
}

impl Failover {
    /// Up to `retries` attempts after the first.
    #[must_use]
    pub const fn new(retries: u32) -> Self {
        Self {
            retries,
            backoff: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
        }
    }

    /// Sets the waits between attempts. Default 10 ms, at most 1 s.
    #[must_use]
    pub const fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.backoff = first;
        self.backoff_max = max;
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["retries", "backoff_ms", "backoff_max_ms"])?;
        let default = Self::default();
        let ms = |key, default: Duration| {
            let default = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
            settings.parse(key, default).map(Duration::from_millis)
        };
        let retries = settings.parse("retries", default.retries)?;
        let (first, max) = (
            ms("backoff_ms", default.backoff)?,
            ms("backoff_max_ms", default.backoff_max)?,
        );
        Ok(Self::new(retries).backoff(first, max))
    }

    fn wait(&self, failure: &Failure<'_>) -> Duration {
        let advice = failure.error.retry_after.unwrap_or_default();
        let Some(doublings) = failure.attempt.checked_sub(2) else {
            return advice;
        };
        let wait = self
            .backoff
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        wait.min(self.backoff_max).mul_f64(fastrand::f64()).max(advice)
    }
}

impl FaultTolerance for Failover {
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict {
        if !failure.is_passing() || failure.attempt > self.retries {
            return Verdict::Return;
        }
        Verdict::Retry {
            after: self.wait(failure),
        }
    }
}

crate::plugin!(FaultTolerancePlugin, "failover", |settings| {
    Ok(Arc::new(Failover::from_settings(settings)?))
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Executed, RpcError};

    fn failure(error: &RpcError, attempt: u32) -> Failure<'_> {
        Failure {
            error,
            attempt,
            safe_to_repeat: true,
        }
    }

    #[test]
    fn retries_are_attempts_beyond_the_first() {
        let error = RpcError::new(Code::Unavailable, Executed::No, "gone");
        let failover = Failover::new(2);
        assert_eq!(
            failover.on_failure(&failure(&error, 1)),
            Verdict::Retry {
                after: Duration::ZERO
            }
        );
        assert!(matches!(
            failover.on_failure(&failure(&error, 2)),
            Verdict::Retry { .. }
        ));
        assert_eq!(failover.on_failure(&failure(&error, 3)), Verdict::Return);
        assert_eq!(Failover::new(0).on_failure(&failure(&error, 1)), Verdict::Return);
    }

    #[test]
    fn waits_are_anything_up_to_a_growing_cap_and_heed_advice() {
        fastrand::seed(1);
        let mut error = RpcError::new(Code::Overloaded, Executed::No, "busy");
        let failover = Failover::new(u32::MAX).backoff(Duration::from_millis(10), Duration::from_millis(100));
        for attempt in [2_u32, 3, 5, 40, 4000] {
            let cap =
                Duration::from_millis(10 * 2_u64.pow((attempt - 2).min(10))).min(Duration::from_millis(100));
            let waits = (0..1000).map(|_| failover.wait(&failure(&error, attempt)));
            let waits: Vec<Duration> = waits.collect();
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(
                *least < cap / 10 && *most > cap * 9 / 10 && *most <= cap,
                "attempt {attempt}: {least:?} to {most:?}"
            );
        }
        error.retry_after = Some(Duration::from_secs(3));
        assert!(failover.wait(&failure(&error, 1)) >= Duration::from_secs(3));
    }

    #[test]
    fn refusals_that_repeating_does_not_mend_are_returned() {
        for code in [
            Code::BadRequest,
            Code::Unauthenticated,
            Code::DeadlineExceeded,
            Code::App,
            Code::TooLarge,
        ] {
            let error = RpcError::new(code, Executed::No, "no");
            assert_eq!(
                Failover::default().on_failure(&failure(&error, 1)),
                Verdict::Return
            );
        }
    }

    #[test]
    fn settings_are_checked() {
        let settings = Settings::new().with("retries", "5").with("backoff_ms", "1");
        assert_eq!(Failover::from_settings(&settings).unwrap().retries, 5);
        let error = Failover::from_settings(&Settings::new().with("retry", "5")).unwrap_err();
        assert!(error.to_string().contains("known settings: retries"), "{error}");
        let error = Failover::from_settings(&Settings::new().with("retries", "many")).unwrap_err();
        assert!(error.to_string().contains("`many`"), "{error}");
    }
}
