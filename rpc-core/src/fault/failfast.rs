//! Failfast: the first failure is returned to the caller.

use std::sync::Arc;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};

/// Returns every failure to the caller at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failfast;

impl FaultTolerance for Failfast {
    fn on_failure(&self, _: &Failure<'_>) -> Verdict {
        Verdict::Return
    }
}

crate::plugin!(FaultTolerancePlugin, "failfast", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Failfast))
});
