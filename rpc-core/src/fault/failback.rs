//! Failback: a failed call is repeated later, in the background, for notifications that have to arrive
//! eventually.

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};
use crate::error::Code;
use crate::plugin::{PluginError, Settings};

/// Gives the caller the empty value at once, as `failsafe` does, and repeats the call in the background if
/// its failure may be temporary and repeating it is safe; other failures are returned to the caller. Waiting
/// calls are lost when the process ends: use a message broker for anything that must not be lost.
///
/// Settings: `retries` (3; attempts in the background), `interval_ms` (5000; between them).
#[derive(Debug, Clone, Copy)]
pub struct Failback {
    retries: u32,
    interval: Duration,
}

impl Default for Failback {
    fn default() -> Self {
        Self::new(3, Duration::from_secs(5))
    }
}

impl Failback {
    /// Up to `retries` attempts in the background, `interval` apart.
    #[must_use]
    pub const fn new(retries: u32, interval: Duration) -> Self {
        Self { retries, interval }
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["retries", "interval_ms"])?;
        let retries = settings.parse("retries", 3)?;
        let interval = Duration::from_millis(settings.parse("interval_ms", 5000)?);
        Ok(Self::new(retries, interval))
    }
}

impl FaultTolerance for Failback {
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict {
        // In the background no caller waits, so a call that timed out may be given its time once more.
        let slow = failure.error.code == Code::DeadlineExceeded && failure.safe_to_repeat;
        if !failure.is_passing() && !slow || failure.attempt > self.retries {
            return Verdict::Return;
        }
        Verdict::Later {
            after: self.interval.max(failure.error.retry_after.unwrap_or_default()),
        }
    }
}

crate::plugin!(FaultTolerancePlugin, "failback", |settings| {
    Ok(Arc::new(Failback::from_settings(settings)?))
});
