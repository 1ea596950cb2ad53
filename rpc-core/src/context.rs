//! What a handler can learn about the call it serves, without a parameter for it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::futures::TaskLocalFuture;

use crate::fault::RETRY_META;
use crate::limits::META_PAIRS_MAX;
use crate::message::Meta;
use crate::trace::{self, TraceContext};

tokio::task_local! {
    static CURRENT: Context;
}

/// The call that the current task serves. Calls made from a handler end no later than the call it serves, are
/// cancelled with it, and carry its trace and the metadata that their invoker propagates
/// (`Invoker::builder().propagate(..)`).
///
/// ```
/// # use std::time::Duration;
/// # use rpc_core::Context;
/// #[rpc_core::service(name = "doc.Timed")]
/// pub trait Timed {
///     async fn who_and_how_long(&self) -> (Option<String>, Option<Duration>);
/// }
///
/// struct Handler;
/// impl Timed for Handler {
///     async fn who_and_how_long(&self) -> (Option<String>, Option<Duration>) {
///         let context = Context::current();
///         (context.meta().value("tenant").map(str::to_owned), context.time_left())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), rpc_core::CallError> {
/// let timed = TimedClient::local(Handler);
/// let (tenant, left) = timed.who_and_how_long().meta("tenant", "a").timeout(Duration::from_secs(5)).await?;
/// assert_eq!(tenant.as_deref(), Some("a"));
/// assert!(left <= Some(Duration::from_secs(5)));
/// # Ok(()) }
/// ```
///
/// Task-local: a task spawned by a handler starts without it, unless it runs within [`Context::scope`]. So
/// work that is to continue after the caller has gone belongs in a task of its own.
#[derive(Debug, Clone, Default)]
pub struct Context {
    pub(crate) deadline: Option<Instant>,
    pub(crate) meta: Meta,
    pub(crate) peer: Option<Arc<str>>,
    pub(crate) cancelled: Option<Cancellation>,
}

impl Context {
    /// The context of the current handler; outside a handler, an empty context that is never cancelled.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// When the caller stops waiting; `None` outside a handler.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How long the caller still waits, zero if it no longer does; `None` outside a handler.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(crate::call::now()))
    }

    /// The caller's metadata.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The caller's address; `None` for calls within this process.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// The trace that the call belongs to, if its caller sent one. A malformed one was replaced by a new
    /// trace. Calls made from the handler propagate it, unless they set `traceparent` themselves.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.meta.value(trace::PARENT).and_then(TraceContext::parse)
    }

    /// Whether nobody waits for the answer any longer: the caller has gone, or its time is over.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.as_ref().is_some_and(Cancellation::is_cancelled)
            || self.time_left().is_some_and(|left| left.is_zero())
    }

    /// Completes when the caller has gone, or its time is over; never outside a handler.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn cancelled(&self) {
        let gone = async {
            match &self.cancelled {
                Some(token) => token.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let over = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = gone => {}
            () = over => {}
        }
    }

    /// Runs `future` within this context, for a task that a handler spawns.
    ///
    /// # Cancel safety
    /// The same as that of `future`.
    pub fn scope<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, future)
    }

    /// Whether a handler makes this call and the request it serves is itself a retry.
    pub(crate) fn within_retry() -> bool {
        let is_retry = |context: &Self| context.meta.value(RETRY_META).is_some();
        CURRENT.try_with(is_retry).unwrap_or(false)
    }

    /// What a call inherits from the handler that makes it: the trace and the pairs under `keys`, unless the
    /// call sets them itself, and the signal that the handler's caller has gone. Nothing outside a handler.
    pub(crate) fn inherit(meta: &mut Meta, keys: &[String]) -> Option<Cancellation> {
        let inherit = |context: &Self| {
            let own = meta.0.len();
            let traced = meta.value(trace::PARENT).is_some();
            for (key, value) in &context.meta.0 {
                let wanted = match key.as_str() {
                    trace::PARENT | trace::STATE => !traced,
                    other => keys.iter().any(|key| key == other),
                };
                let has_own = meta.0[..own].iter().any(|(known, _)| known == key);
                // Inherited metadata never makes a call fail.
                if wanted && !has_own && meta.0.len() < META_PAIRS_MAX {
                    meta.0.push((key.clone(), value.clone()));
                }
            }
            context.cancelled.clone()
        };
        CURRENT.try_with(inherit).ok().flatten()
    }

    /// The deadline of the handler that makes a call, if a handler makes it, without cloning the whole
    /// context.
    pub(crate) fn current_deadline() -> Option<Instant> {
        CURRENT.try_with(|context| context.deadline).ok().flatten()
    }
}

/// Signals, once and to all its clones, that the caller of a request has gone. Lighter than a
/// `CancellationToken`, since every request has one: cloning takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<Gone>);

#[derive(Debug, Default)]
struct Gone {
    gone: AtomicBool,
    told: Notify,
}

impl Cancellation {
    /// Sends the signal.
    pub fn cancel(&self) {
        self.0.gone.store(true, Ordering::Release);
        self.0.told.notify_waiters();
    }

    /// Whether the signal was sent.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.gone.load(Ordering::Acquire)
    }

    /// Completes when the signal is sent.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn cancelled(&self) {
        loop {
            let mut told = std::pin::pin!(self.0.told.notified());
            // Enabled before the check, so that a signal between check and wait is not missed.
            told.as_mut().enable();
            if self.is_cancelled() {
                return;
            }
            told.await;
        }
    }
}
