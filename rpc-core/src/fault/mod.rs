//! The fault tolerance seam: what to do after a failed attempt. A strategy only asks; the deadline, the retry budget and
//! `executed` are enforced outside it, by the loop over attempts.

use std::fmt;
use std::time::Duration;

use crate::error::RpcError;

pub(crate) mod budget;
mod failfast;
mod failover;
mod failsafe;

pub use failfast::Failfast;
pub use failover::Failover;
pub use failsafe::Failsafe;

crate::plugin_kind! {
    /// A fault tolerance strategy that can be named, as in `.fault_tolerance("failover")`.
    pub struct FaultTolerancePlugin for dyn FaultTolerance as "fault tolerance"
}

/// One failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    /// How it failed.
    pub error: &'a RpcError,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// Whether repeating is safe: it was not executed, or the method is idempotent.
    pub safe_to_repeat: bool,
}

/// What a strategy wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Give the error to the caller.
    Return,
    /// Try another instance (one not tried yet, if there is any) after this wait.
    Retry {
        /// Wait before it.
        after: Duration,
    },
    /// Swallow the error: the caller gets the result type's empty value.
    Ignore,
}

/// What to do after a failed attempt.
pub trait FaultTolerance: Send + Sync + fmt::Debug + 'static {
    /// Decides.
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict;
}
