//! Failfast: the first failure is the caller's.

use std::sync::Arc;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};

/// Gives every failure to the caller at once.
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
