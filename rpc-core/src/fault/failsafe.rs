//! Failsafe: a failure is logged and ignored, for calls whose outcome does not matter, such as audit logs.

use std::sync::Arc;

use super::{Failure, FaultTolerance, FaultTolerancePlugin, Verdict};

/// Ignores every failure of the framework: the caller gets the empty value of the result's type (`()`,
/// `None`), and the error only if the type has none. A method's own error is an answer and is never ignored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failsafe;

impl FaultTolerance for Failsafe {
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict {
        tracing::warn!(error = %failure.error, "call failed; the failure is ignored");
        Verdict::Ignore
    }
}

crate::plugin!(FaultTolerancePlugin, "failsafe", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Failsafe))
});
