//! What a provider is configured with, and its start in the only safe order: check, bind, listen, register.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announce::{self, Announcement};
use super::router::Router;
use super::{Clock, Core, Provider, ProviderError, accept};
use crate::filter::{self, Filter};
use crate::limits;
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
}

/// Bounds of one provider.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderLimits {
    pub(crate) idle_timeout: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) connection_in_flight_max: usize,
    pub(crate) method_in_flight_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) blocking_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) unwritten_bytes_max: usize,
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
            limits: ProviderLimits {
                idle_timeout: Duration::from_secs(60),
                in_flight_max: limits::PROVIDER_IN_FLIGHT_MAX,
                connection_in_flight_max: limits::CONNECTION_IN_FLIGHT_MAX,
                method_in_flight_max: limits::METHOD_IN_FLIGHT_MAX,
                connections_max: limits::CONNECTIONS_MAX,
                blocking_max: limits::BLOCKING_MAX,
                body_bytes_max: limits::BODY_BYTES_MAX,
                unwritten_bytes_max: limits::CONNECTION_UNWRITTEN_BYTES_MAX,
            },
        }
    }

    /// Where to listen, `host:port`; port 0 lets the system choose. Default `127.0.0.1:0`.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// What to announce in place of the bound address; needed when that is `0.0.0.0`.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Where to announce the services: a value, or a URL as in `etcd://127.0.0.1:2379`. A registry made from a URL is
    /// closed by [`Provider::shutdown`], a value is not.
    pub fn registry(mut self, registry: impl Into<Source<dyn Registry>>) -> Self {
        self.registry = Some(registry.into());
        self
    }

    /// Serves one more service, as in `.serve(GreeterServer::new(MyGreeter))`.
    pub fn serve(mut self, service: impl Into<Served>) -> Self {
        self.served.push(service.into());
        self
    }

    /// Runs a filter around every request; the first one given is the outermost.
    pub fn filter(mut self, filter: impl Into<Source<dyn Filter>>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// Refuses every request of a peer whose HELLO does not bring this token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A name for people, announced with the services.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The `host:port` of this process's HTTP server, announced with the services.
    pub fn http(mut self, address: impl Into<String>) -> Self {
        self.http = Some(address.into());
        self
    }

    /// Share of the load relative to others; 100 is usual, 0 takes none.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Where this process runs, announced with the services.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// One more pair announced with the services.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// Closes a connection on which nothing arrived for so long. Default 60 s; invokers ping every 30 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout;
        self
    }

    /// Requests running at once over all connections; further ones are answered `Overloaded`.
    pub fn in_flight_max(mut self, requests: usize) -> Self {
        self.limits.in_flight_max = requests;
        self
    }

    /// Requests running at once on one connection; further ones are answered `Overloaded`.
    pub fn connection_in_flight_max(mut self, requests: usize) -> Self {
        self.limits.connection_in_flight_max = requests;
        self
    }

    /// Requests running at once in one method, so that a slow method cannot starve the others.
    pub fn method_in_flight_max(mut self, requests: usize) -> Self {
        self.limits.method_in_flight_max = requests;
        self
    }

    /// Connections at once; further ones are closed at once.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.limits.connections_max = connections;
        self
    }

    /// `#[rpc(blocking)]` methods running at once.
    pub fn blocking_max(mut self, requests: usize) -> Self {
        self.limits.blocking_max = requests;
        self
    }

    /// Bytes of a request's body.
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.body_bytes_max = bytes;
        self
    }

    /// Bytes of answers that wait to be written on one connection.
    pub fn unwritten_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.unwritten_bytes_max = bytes;
        self
    }

    /// Byte streams from elsewhere than TCP.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Binds, listens, then registers (waiting at most 2 s for the registry, which goes on trying in the background).
    /// Its tasks run on the runtime that awaits this.
    ///
    /// # Errors
    /// [`ProviderError`]; nothing is left running.
    pub async fn start(self) -> Result<Provider, ProviderError> {
        let router = Router::new(self.served)?;
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
            running: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            blocking: Arc::new(Semaphore::new(self.limits.blocking_max)),
            limits: self.limits,
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            farewell: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
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
            keys: core.router.routes().map(|route| announce::key(route)).collect(),
            owned,
        });
        let (sender, registered) = watch::channel(announcement.is_none());
        // From here on, dropping the provider stops what runs.
        let provider = Provider {
            address,
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
                drop(provider.core.tracker.spawn(async move {
                    tokio::select! {
                        () = farewell.cancelled() => {}
                        () = finish => {}
                    }
                }));
            }
        }
        Ok(provider)
    }
}

/// What to announce: the address given, with the bound port in place of 0, or the bound address.
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
