//! The serving side: accepts connections, routes requests to services, answers, and leaves gracefully.
//!
//! A provider is announced in a registry only once it is bound and listening, and withdrawn before it stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod accept;
pub mod admin;
mod announce;
mod bounds;
mod builder;
mod connection;
mod inline;
mod load;
mod log_throttle;
mod method_gate;
mod open;
mod quick;
mod request;
mod router;
mod running;
mod slowness;
mod streams;
mod timeouts;

pub use builder::ProviderBuilder;
pub use slowness::SlowMethods;

use crate::filter::Filter;
use crate::filter::metrics::{self, MethodMetrics};
use crate::frame::Hello;
use crate::keyed_limit::KeyedLimit;
use crate::link::{Backlog, ReadBudget};
use crate::secret;
use announce::Announcement;
use bounds::ProviderLimits;
use load::Load;
use log_throttle::LogThrottle;
use open::Open;
use router::Router;

/// How long a dropped provider lets running requests finish.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// Why a provider does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The address cannot be bound.
    #[error(
        "cannot listen on `{address}`: {reason}; check that it is an address of this machine and not in use"
    )]
    Listen {
        /// The requested address.
        address: String,
        /// The operating system's error.
        reason: String,
    },
    /// Other processes could not call the address that would be announced.
    #[error(
        "`{address}` cannot be announced, since other processes cannot call it; set an address with `.advertise(\"host:port\")`"
    )]
    Advertise {
        /// The address in question.
        address: String,
    },
    /// Two services have the same name, version and group.
    #[error(
        "service `{service}` version `{version}` group `{group}` is served twice; remove one or give it another version or group"
    )]
    Duplicate {
        /// Its name.
        service: String,
        /// Its version.
        version: String,
        /// Its group.
        group: String,
    },
    /// A limit was set for a method that no service has.
    #[error("`{service}` has no method `{method}` here to limit; check the names, or serve it")]
    UnknownMethod {
        /// The service's name.
        service: String,
        /// The method's name.
        method: String,
    },
    /// A plug-in cannot be created.
    #[error(transparent)]
    Plugin(#[from] crate::plugin::PluginError),
    /// The registry refused permanently.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
}

/// A running provider. Dropping it stops accepting and lets running requests finish; [`Provider::shutdown`]
/// waits for that.
#[derive(Debug)]
pub struct Provider {
    registered: watch::Receiver<bool>,
    core: Arc<Core>,
    announcement: Option<Announcement>,
}

/// What all connections of one provider share.
#[derive(Debug)]
struct Core {
    router: Router,
    filters: Vec<Arc<dyn Filter>>,
    token: Option<String>,
    limits: ProviderLimits,
    clock: Clock,
    /// Requests running now.
    load: Load,
    /// Memory for read buffers.
    reading: ReadBudget,
    /// Bytes not yet written, over all connections.
    backlog: Backlog,
    connections: AtomicUsize,
    /// Connections by the host they come from.
    addresses: KeyedLimit,
    open: Open,
    name: String,
    /// The address it is bound to.
    address: String,
    /// Peers without the right token.
    auth_failures: LogThrottle,
    /// Connections beyond a limit.
    connections_refused: LogThrottle,
    blocking: Arc<Semaphore>,
    tracker: TaskTracker,
    runtime: Handle,
    /// No new connections and requests; running requests finish.
    farewell: CancellationToken,
    /// Everything ends.
    stop: CancellationToken,
}

/// The time of the newest read on any connection: accurate enough to recognise an expired request, and a load
/// costs a hundredth of reading the real clock.
#[derive(Debug)]
struct Clock {
    start: Instant,
    newest_us: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: crate::call::now(),
            newest_us: AtomicU64::new(0),
        }
    }

    fn set(&self, time: Instant) {
        self.newest_us.store(self.micros(time), Ordering::Relaxed);
    }

    /// Microseconds from the start to `time`.
    fn micros(&self, time: Instant) -> u64 {
        let us = time.saturating_duration_since(self.start).as_micros();
        u64::try_from(us).unwrap_or(u64::MAX)
    }

    fn newest(&self) -> Instant {
        self.start + Duration::from_micros(self.newest_us.load(Ordering::Relaxed))
    }
}

impl Core {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Records how long a call of a method ran.
    fn took(&self, entered: router::EnteredMethod, began: Instant, ended: Instant) {
        if self.router.gate(entered).took(&self.clock, began, ended) {
            let (service, method) = (&self.router.route(entered).service, &*entered.method.name);
            tracing::warn!(
                service,
                method,
                "the method is slow; few of its calls may run at once now"
            );
        }
    }

    /// Records that a handler held its thread for this long.
    fn blocked(&self, entered: router::EnteredMethod, took: Duration) {
        if let Some(times) = self.router.gate(entered).blocked() {
            let (service, method) = (&self.router.route(entered).service, &*entered.method.name);
            tracing::warn!(
                service,
                method,
                ?took,
                times,
                "a handler blocked its thread; `#[rpc(blocking)]` gives it one of its own"
            );
        }
    }

    /// Whether a HELLO contains the right token.
    fn knows(&self, hello: &Hello) -> bool {
        let (Some(ours), Some(theirs)) = (&self.token, &hello.token) else {
            return self.token.is_none();
        };
        secret::is_same(ours, theirs)
    }
}

impl Provider {
    /// A builder with the default settings.
    pub fn builder() -> ProviderBuilder {
        ProviderBuilder::new()
    }

    /// The address it is bound to, with the port that the system chose if 0 was requested.
    #[must_use]
    pub fn local_addr(&self) -> &str {
        &self.core.address
    }

    /// Whether every service is announced in the registry (true at once without a registry): for readiness
    /// checks.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.clone()
    }

    /// Requests running now.
    #[must_use]
    pub fn running(&self) -> usize {
        usize::try_from(self.core.load.requests()).unwrap_or(usize::MAX)
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.core.connections()
    }

    /// The counts of its `metrics` filter; empty without one.
    #[must_use]
    pub fn metrics(&self) -> Vec<MethodMetrics> {
        metrics::of(&self.core.filters)
    }

    /// A view of it that outlives this handle, for example while the provider drains.
    #[must_use]
    pub fn insight(&self) -> admin::Insight {
        admin::Insight(Arc::downgrade(&self.core))
    }

    /// Withdraws the announcements, asks the peers to go away, waits until running requests have finished,
    /// and closes. Takes at most `deadline` in all, of which the registry gets a third.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown, only the wait for it.
    pub async fn shutdown(mut self, deadline: Duration) {
        let task = end(Arc::clone(&self.core), self.announcement.take(), deadline);
        // A task of its own, so that dropping this future does not stop it; not on the tracker, which it
        // waits for.
        let ended = self.core.runtime.spawn(task);
        if let Err(error) = ended.await {
            tracing::error!(%error, "the provider's shutdown failed");
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if self.core.farewell.is_cancelled() {
            return;
        }
        self.core.farewell.cancel();
        let task = end(Arc::clone(&self.core), self.announcement.take(), DROP_DEADLINE);
        drop(self.core.runtime.spawn(task));
    }
}

/// Shuts a provider down gracefully: the order matters.
async fn end(core: Arc<Core>, announcement: Option<Announcement>, deadline: Duration) {
    let until = tokio::time::Instant::now() + deadline;
    // A registry that hangs must not use up the time of the running requests.
    if let Some(announcement) = announcement
        && tokio::time::timeout(deadline / 3, announcement.end())
            .await
            .is_err()
    {
        tracing::warn!("the registry took too long; the lease will expire by itself");
    }
    core.farewell.cancel();
    core.tracker.close();
    if tokio::time::timeout_at(until, core.tracker.wait()).await.is_err() {
        tracing::warn!(
            running = core.load.requests(),
            "stopped before all requests had finished"
        );
    }
    core.stop.cancel();
}
