//! Failback: a failed call is made again later, in the background, for notifications that shall arrive some time.

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};
use crate::error::Code;
use crate::plugin::{PluginError, Settings};

/// Gives the caller the empty value at once, as `failsafe` does, and repeats the call in the background while its failure
/// may pass and repeating it is safe; other failures are the caller's. What waits is lost with the process: a message
/// broker is the place for what must not be.
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
    /// So many attempts in the background, so far apart.
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
        // In the background nobody else needs the time, so a call that ran out of it may get it once more.
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
