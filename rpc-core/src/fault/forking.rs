//! Forking: several instances are asked at once and the first answer wins, for reads that must be fast.

use std::sync::Arc;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};
use crate::plugin::PluginError;

/// Asks `forks` instances at once; the slower calls are cancelled. Calls of methods that are not idempotent
/// go to one instance only. If all fail, the caller gets the last error.
///
/// Settings: `forks` (2; at least 1).
#[derive(Debug, Clone, Copy)]
pub struct Forking {
    forks: usize,
}

impl Default for Forking {
    fn default() -> Self {
        Self::new(2)
    }
}

impl Forking {
    /// Asks this many instances at once, at least one.
    #[must_use]
    pub const fn new(forks: usize) -> Self {
        Self {
            forks: if forks == 0 { 1 } else { forks },
        }
    }
}

impl FaultTolerance for Forking {
    fn on_failure(&self, _: &Failure<'_>) -> Verdict {
        Verdict::Return
    }

    fn forks(&self) -> usize {
        self.forks
    }
}

crate::plugin!(FaultTolerancePlugin, "forking", |settings| {
    settings.only(&["forks"])?;
    match settings.parse("forks", 2)? {
        0 => Err(PluginError::setting(
            "forks",
            "`0`: at least one instance must be asked",
        )),
        forks => Ok(Arc::new(Forking::new(forks))),
    }
});
