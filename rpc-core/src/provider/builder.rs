//! The configuration of a provider, and its start in the only safe order: check, bind, listen, register.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin::Mirror;
use super::announce::{self, Announcement};
use super::bounds::ProviderLimits;
use super::load::Load;
use super::log_throttle::LogThrottle;
use super::open::Open;
use super::router::{MethodLimits, Router};
use super::{Clock, Core, Provider, ProviderError, SlowMethods, accept};
use crate::filter::{self, Filter};
use crate::keyed_limit::KeyedLimit;
use crate::limits;
use crate::link::{Backlog, ReadBudget};
use crate::message::Served;
use crate::plugin::Source;
use crate::registry::{self, Instance, InstanceId, Registry};
use crate::serialize::SerializerPlugin;
use crate::transport::{Tcp, Transport};

/// Configures a [`Provider`].
#[derive(Debug)]
#[must_use]
pub struct ProviderBuilder {
    pub(super) listen: String,
    pub(super) advertise: Option<String>,
    pub(super) registry: Option<Source<dyn Registry>>,
    pub(super) served: Vec<Served>,
    pub(super) filters: Vec<Source<dyn Filter>>,
    pub(super) token: Option<String>,
    pub(super) name: String,
    pub(super) http: Option<String>,
    pub(super) weight: u32,
    pub(super) zone: Option<String>,
    pub(super) meta: BTreeMap<String, String>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) limits: ProviderLimits,
    pub(super) methods: MethodLimits,
    pub(super) admin: bool,
}

impl ProviderBuilder {
    pub(super) fn new() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            registry: None,
            served: Vec::new(),
            filters: Vec::new(),
            token: None,
            name: String::new(),
            http: None,
            weight: 100,
            zone: None,
            meta: BTreeMap::new(),
            transport: Arc::new(Tcp),
            limits: ProviderLimits::default(),
            methods: MethodLimits {
                in_flight_max: limits::METHOD_IN_FLIGHT_MAX,
                by_name: Vec::new(),
                slow: Some(SlowMethods::default()),
            },
            admin: true,
        }
    }

    /// Where to listen, `host:port`; port 0 lets the system choose. Default `127.0.0.1:0`.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// The address to announce instead of the bound one; required when that is `0.0.0.0`. Port 0 stands for
    /// the bound port. Default: the bound address.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Where to announce the services: a value, or a URL such as `etcd://127.0.0.1:2379`.
    /// [`Provider::shutdown`] closes a registry that was created from a URL, but not one passed as a value.
    /// Default: none.
    pub fn registry(mut self, registry: impl Into<Source<dyn Registry>>) -> Self {
        self.registry = Some(registry.into());
        self
    }

    /// Serves one more service, as in `.serve(GreeterServer::new(MyGreeter))`.
    pub fn serve(mut self, service: impl Into<Served>) -> Self {
        self.served.push(service.into());
        self
    }

    /// Runs a filter around every request; the first one added is the outermost. Default: none.
    pub fn filter(mut self, filter: impl Into<Source<dyn Filter>>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// Refuses every request of a peer whose HELLO does not contain this token. Default: no token is
    /// required.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A name for people, announced with the services. Default: empty.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The `host:port` of this process's HTTP server, announced with the services. Default: none.
    pub fn http(mut self, address: impl Into<String>) -> Self {
        self.http = Some(address.into());
        self
    }

    /// Share of the load relative to other instances; 100 is usual, 0 takes none. Default 100.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The zone this process runs in, announced with the services. Default: none.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// One more pair announced with the services. Default: none.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// Closes a connection on which nothing has arrived for this long. Default 60 s; invokers ping every 30
    /// s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout;
        self
    }

    /// With a token set: closes a connection that has not shown it within this time. Default 10 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.limits.handshake_timeout = timeout;
        self
    }

    /// Closes a connection on which a frame has begun and then gains less than
    /// [`FRAME_PROGRESS_BYTES_MIN`](crate::limits::FRAME_PROGRESS_BYTES_MIN) in this time. Default 10 s.
    pub fn frame_timeout(mut self, timeout: Duration) -> Self {
        self.limits.frame_timeout = timeout;
        self
    }

    /// Closes a connection whose peer has taken no bytes of its answers for this long. Default 10 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.limits.write_timeout = timeout;
        self
    }

    /// Requests running at once over all connections; further ones are answered `Overloaded`. Default 65,536.
    pub fn in_flight_max(mut self, requests: usize) -> Self {
        self.limits.in_flight_max = requests;
        self
    }

    /// Bytes of the bodies of all requests running at once; further ones are answered `Overloaded`. A request
    /// larger than this limit runs alone. Default 1 GiB.
    pub fn in_flight_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.in_flight_bytes_max = bytes;
        self
    }

    /// Memory for the read buffers of all connections, in bytes; up to 64 KiB of each connection are not
    /// counted. When it is used up, a connection is read in small pieces, and a larger frame waits before
    /// more of it is read. While frames wait, a connection whose current frame does not gain a 16th of its
    /// size per second is closed. Default 1 GiB: half of it for buffers that connections keep, half for
    /// frames; a frame larger than that half is read alone.
    pub fn reading_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.reading_bytes_max = bytes;
        self
    }

    /// Bytes of answers not yet written, over all connections; up to 64 KiB of each connection are not
    /// counted. Above this limit requests are answered `Overloaded`; above half of it, a connection whose
    /// peer takes nothing for one second is closed, without waiting for [`ProviderBuilder::write_timeout`].
    /// Default 1 GiB.
    pub fn backlog_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.backlog_bytes_max = bytes;
        self
    }

    /// Requests running at once on one connection; further ones are answered `Overloaded`. Default 4096.
    pub fn connection_in_flight_max(mut self, requests: usize) -> Self {
        self.limits.connection_in_flight_max = requests;
        self
    }

    /// Requests running at once in one method, unless [`ProviderBuilder::limit_method`] or its attribute sets
    /// another limit; further ones are answered `Overloaded`. Default 32,768.
    pub fn method_in_flight_max(mut self, requests: usize) -> Self {
        self.methods.in_flight_max = requests;
        self
    }

    /// Requests running at once in this method of this service, in each version and group of it; overrides
    /// `#[rpc(in_flight_max = ..)]`. The provider does not start if no such method is served. Default: none.
    ///
    /// ```
    /// # #[rpc_core::service(name = "doc.Report")] pub trait Report {
    /// #[rpc(in_flight_max = 8)]
    /// async fn yearly(&self, year: u32) -> String;
    /// # }
    /// # struct Handler;
    /// # impl Report for Handler { async fn yearly(&self, year: u32) -> String { year.to_string() } }
    /// # use rpc_core::{Provider, ProviderError};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), ProviderError> {
    /// // This machine is a small one.
    /// let provider = Provider::builder().serve(ReportServer::new(Handler)).limit_method("doc.Report", "yearly", 2).start().await?;
    /// # drop(provider);
    /// let misspelt = Provider::builder().serve(ReportServer::new(Handler)).limit_method("doc.Report", "jearly", 2).start().await;
    /// assert!(matches!(misspelt, Err(ProviderError::UnknownMethod { .. })));
    /// # Ok(()) }
    /// ```
    pub fn limit_method(
        mut self,
        service: impl Into<String>,
        method: impl Into<String>,
        requests: usize,
    ) -> Self {
        self.methods
            .by_name
            .push((service.into(), method.into(), requests));
        self
    }

    /// When a method counts as slow, and how many of its calls may run then, so that it leaves room for the
    /// others; `None` never treats a method as slow. Default: ten calls of more than a second each within
    /// five minutes, then 32 at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// use rpc_core::Provider;
    /// use rpc_core::provider::SlowMethods;
    ///
    /// let slow = SlowMethods::default().after(Duration::from_millis(200)).in_flight_max(4);
    /// let builder = Provider::builder().slow_methods(slow);
    /// # drop(builder);
    /// ```
    pub fn slow_methods(mut self, slow: impl Into<Option<SlowMethods>>) -> Self {
        self.methods.slow = slow.into();
        self
    }

    /// Connections at once; further ones are closed immediately. Default 10,000.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.limits.connections_max = connections;
        self
    }

    /// Connections at once from one host; further ones are closed immediately, so that a machine that keeps
    /// opening connections leaves room for the others. Default 10,000, the default of
    /// [`ProviderBuilder::connections_max`]: many callers may share one address.
    ///
    /// ```
    /// let builder = rpc_core::Provider::builder().connections_max(10_000).address_connections_max(100);
    /// # drop(builder);
    /// ```
    pub fn address_connections_max(mut self, connections: usize) -> Self {
        self.limits.address_connections_max = connections;
        self
    }

    /// `#[rpc(blocking)]` methods running at once. Default 64.
    pub fn blocking_max(mut self, requests: usize) -> Self {
        self.limits.blocking_max = requests;
        self
    }

    /// Most bytes in a request's body. Default 16 MiB.
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.body_bytes_max = bytes;
        self
    }

    /// Bytes of answers not yet written on one connection. Default 64 MiB; a connection without unwritten
    /// bytes accepts any answer.
    pub fn unwritten_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.unwritten_bytes_max = bytes;
        self
    }

    /// A method whose handler keeps answering at its first poll and within this time runs where its requests
    /// are read, which costs less than a task for each; all others run in tasks. Zero: every request gets a
    /// task. Default 5 microseconds.
    pub fn quick_handlers(mut self, within: Duration) -> Self {
        self.limits.quick = within;
        self
    }

    /// Does not serve [`_admin`](super::admin), through which a provider reports on itself to any caller.
    /// Default: served.
    pub fn without_admin(mut self) -> Self {
        self.admin = false;
        self
    }

    /// Byte streams other than TCP. Default: TCP.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Binds, listens, then registers (waiting at most 2 s for the registry; after that it retries in the
    /// background). Its tasks run on the runtime that awaits this.
    ///
    /// # Errors
    /// [`ProviderError`]; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future stops what has been started; announcements already made are withdrawn in the
    /// background.
    pub async fn start(mut self) -> Result<Provider, ProviderError> {
        let mirror = Mirror::default();
        if self.admin {
            self.served.push(mirror.served());
        }
        let router = Router::new(self.served, &self.methods)?;
        let filters = filter::build_all(self.filters)?;
        let listen_error = |error: std::io::Error| ProviderError::Listen {
            address: self.listen.clone(),
            reason: error.to_string(),
        };
        let listener = self.transport.bind(&self.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let advertised = advertised(self.advertise, &address);
        let registry = match self.registry {
            None => None,
            Some(_) if !is_callable(&advertised) => {
                return Err(ProviderError::Advertise { address: advertised });
            }
            Some(source) => Some(registry::open(source)?),
        };
        let core = Arc::new(Core {
            router,
            filters,
            token: self.token,
            clock: Clock::new(),
            load: Load::new(self.limits.in_flight_max, self.limits.in_flight_bytes_max),
            reading: ReadBudget::new(self.limits.reading_bytes_max),
            backlog: Backlog::new(self.limits.backlog_bytes_max),
            connections: AtomicUsize::new(0),
            addresses: KeyedLimit::new(self.limits.address_connections_max),
            open: Open::default(),
            name: self.name.clone(),
            address,
            auth_failures: LogThrottle::default(),
            connections_refused: LogThrottle::default(),
            blocking: Arc::new(Semaphore::new(self.limits.blocking_max)),
            limits: self.limits,
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            farewell: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        mirror.show(&core);
        drop(core.tracker.spawn(accept::run(Arc::clone(&core), listener)));
        let announcement = registry.map(|(registry, owned)| Announcement {
            registry,
            instance: Instance {
                id: InstanceId::random(),
                address: advertised,
                name: self.name,
                http: self.http,
                weight: self.weight,
                zone: self.zone,
                started_ms: wall_clock_ms(),
                serializers: serializers(),
                meta: self.meta,
            },
            keys: announce::keys(core.router.routes()),
            owned,
        });
        let (sender, registered) = watch::channel(announcement.is_none());
        // From here on, dropping the provider stops what runs.
        let provider = Provider {
            registered,
            core,
            announcement,
        };
        if let Some(announcement) = &provider.announcement {
            if announcement.begin().await? {
                sender.send_replace(true);
            } else {
                let finish = announcement.clone().finish(sender);
                let farewell = provider.core.farewell.clone();
                let task = farewell.run_until_cancelled_owned(finish);
                drop(provider.core.tracker.spawn(task));
            }
        }
        Ok(provider)
    }
}

/// What to announce: the address given, with the bound port instead of 0, or the bound address.
fn advertised(given: Option<String>, bound: &str) -> String {
    let port = bound.rsplit_once(':').map_or("", |(_, port)| port);
    match given {
        None => bound.to_owned(),
        Some(given) => match given.strip_suffix(":0") {
            Some(host) => format!("{host}:{port}"),
            None => given,
        },
    }
}

/// Whether others can call an address: it has a port and does not stand for all addresses of this machine.
fn is_callable(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let unspecified = host
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_unspecified());
    !host.is_empty() && !unspecified && port != "0"
}

fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn serializers() -> Vec<String> {
    let mut names = vec!["json", "msgpack"];
    names.extend(SerializerPlugin::names().unwrap_or_default());
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}
