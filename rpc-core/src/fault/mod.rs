//! The fault tolerance interface: what to do after a failed attempt. A strategy only makes requests; the
//! deadline, the retry budget and `executed` are enforced outside it, by the loop over attempts.

use std::fmt;
use std::time::Duration;

use crate::error::{Code, RpcError};

pub(crate) mod budget;
mod failback;
mod failfast;
mod failover;
mod failsafe;
mod forking;
mod hedging;
mod latencies;

pub use failback::Failback;
pub use failfast::Failfast;
pub use failover::Failover;
pub use failsafe::Failsafe;
pub use forking::Forking;
pub use hedging::Hedging;

/// The metadata key that marks a request as a retry of its call.
pub(crate) const RETRY_META: &str = "rpc-retry";

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

impl Failure<'_> {
    /// Whether another instance, or this one a little later, may be able to serve the call, and repeating it
    /// is safe.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        let passing = matches!(
            self.error.code,
            Code::Unavailable | Code::Overloaded | Code::Draining | Code::NotFound | Code::Unsupported
        );
        passing && self.safe_to_repeat
    }
}

/// What a strategy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Return the error to the caller.
    Return,
    /// Try another instance (one that has not been tried, if there is one) after this wait.
    Retry {
        /// The wait before the retry.
        after: Duration,
    },
    /// Ignore the error: the caller gets the empty value of the result's type.
    Ignore,
    /// Like `Ignore`, and the call is repeated in the background after this wait, with the invoker's usual
    /// time-out.
    Later {
        /// The wait before the attempt.
        after: Duration,
    },
}

/// What to do after a failed attempt.
pub trait FaultTolerance: Send + Sync + fmt::Debug + 'static {
    /// Decides what to do after `failure`.
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict;

    /// How many instances are asked at once; the first answer wins. Only calls of idempotent methods are
    /// forked.
    fn forks(&self) -> usize {
        1
    }

    /// Whether [`FaultTolerance::hedge`] and [`FaultTolerance::answered`] are to be called.
    fn hedges(&self) -> bool {
        false
    }

    /// How the next call of this method is hedged. Only calls of idempotent methods are.
    fn hedge(&self, service: &str, method: &str) -> Hedge {
        let _ = (service, method);
        Hedge::default()
    }

    /// A call that could be hedged was answered after this time.
    fn answered(&self, service: &str, method: &str, elapsed: Duration) {
        let _ = (service, method, elapsed);
    }
}

/// When another instance is asked as well because the first has not answered yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hedge {
    /// After this time, and again after each further such time while attempts are left. `None`: never.
    pub after: Option<Duration>,
    /// The total number of attempts. One that fails with a temporary error is followed by the next one at
    /// once.
    pub attempts: usize,
}
