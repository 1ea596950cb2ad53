//! The configuration of an invoker.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempts::Policy;
use super::callback_pool::CallbackPool;
use super::cluster::{Cluster, Origin};
use super::endpoint::Shared;
use super::in_turn::InTurn;
use super::remote::Remote;
use super::{Invoker, InvokerError};
use crate::balance::{LoadBalancer, LoadBalancerPlugin};
use crate::compress;
use crate::dispatch::Tasks;
use crate::fault::{Failfast, FaultTolerance, FaultTolerancePlugin};
use crate::filter::{self, Filter};
use crate::limits;
use crate::plugin::{PluginError, Source};
use crate::registry::{self, Instance, Registry};
use crate::serialize::SerializerRef;
use crate::transport::{Tcp, Transport};

/// Configures an [`Invoker`].
#[derive(Debug)]
#[must_use]
pub struct InvokerBuilder {
    pub(super) registry: Option<Source<dyn Registry>>,
    pub(super) direct: Vec<String>,
    pub(super) load_balancer: Option<Source<dyn LoadBalancer>>,
    pub(super) serializer: String,
    pub(super) compressor: Option<String>,
    pub(super) fault_tolerance: Option<Source<dyn FaultTolerance>>,
    pub(super) filters: Vec<Source<dyn Filter>>,
    pub(super) callback_threads: Option<usize>,
    pub(super) callback_queue: usize,
    pub(super) propagated: Vec<String>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) settings: Settings,
}

/// Settings shared by connections and calls.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) timeout: Duration,
    pub(crate) token: Option<String>,
    pub(crate) compressor: Option<compress::Named>,
    pub(crate) connections_per_endpoint: usize,
    pub(crate) in_flight_max: usize,
    pub(crate) unwritten_bytes_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) heartbeat: Duration,
    pub(crate) pong_timeout: Duration,
}

impl InvokerBuilder {
    pub(super) fn new() -> Self {
        Self {
            registry: None,
            direct: Vec::new(),
            load_balancer: None,
            serializer: "msgpack".to_owned(),
            compressor: None,
            fault_tolerance: None,
            filters: Vec::new(),
            callback_threads: None,
            callback_queue: limits::CALLBACK_QUEUE_MAX,
            propagated: Vec::new(),
            transport: Arc::new(Tcp),
            settings: Settings {
                timeout: Duration::from_secs(1),
                token: None,
                compressor: None,
                connections_per_endpoint: 1,
                in_flight_max: limits::CONNECTION_IN_FLIGHT_MAX,
                unwritten_bytes_max: limits::CONNECTION_UNWRITTEN_BYTES_MAX,
                body_bytes_max: limits::BODY_BYTES_MAX,
                heartbeat: Duration::from_secs(30),
                pong_timeout: Duration::from_secs(5),
            },
        }
    }

    /// Where instances are found: a value, or a URL such as `etcd://127.0.0.1:2379`. [`Invoker::shutdown`]
    /// closes a registry that was created from a URL, but not one passed as a value. Default: none; either
    /// this or [`InvokerBuilder::direct`] is required.
    pub fn registry(mut self, registry: impl Into<Source<dyn Registry>>) -> Self {
        self.registry = Some(registry.into());
        self
    }

    /// Calls these `host:port` addresses instead of asking a registry; every address serves the same
    /// services. Default: none.
    pub fn direct<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.direct.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// Chooses among instances: a value, or the name of a linked plug-in with its settings, as in
    /// `random?zone=a`. Default: the instances take turns.
    pub fn load_balancer(mut self, balancer: impl Into<Source<dyn LoadBalancer>>) -> Self {
        self.load_balancer = Some(balancer.into());
        self
    }

    /// Name of the serializer: `msgpack` (default), `msgpack-named`, `json`, `raw` ([`crate::serialize`]
    /// compares them), or a plug-in's. A client can override it: `GreeterClient::serializer`.
    pub fn serializer(mut self, name: impl Into<String>) -> Self {
        self.serializer = name.into();
        self
    }

    /// Name of the compressor of envelopes: `lz4`, `zstd`, or a plug-in's ([`crate::compress`]). Requests are
    /// compressed if the provider supports it, answers if it pays off. Default: no compression.
    pub fn compressor(mut self, name: impl Into<String>) -> Self {
        self.compressor = Some(name.into());
        self
    }

    /// What to do after a failed attempt: `failfast` (default), `failover`, `failsafe`, `failback`,
    /// `forking`, `hedging` or another plug-in's name, with its settings as in `failover?retries=3`, or a
    /// value. A single call can override it with [`crate::Call::retry`], [`crate::Call::no_retry`] or
    /// [`crate::Call::fault_tolerance`].
    pub fn fault_tolerance(mut self, strategy: impl Into<Source<dyn FaultTolerance>>) -> Self {
        self.fault_tolerance = Some(strategy.into());
        self
    }

    /// Runs a filter around every call; the first one added is the outermost. Default: none.
    pub fn filter(mut self, filter: impl Into<Source<dyn Filter>>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// Time-out of a call that does not set one, over all its attempts. Default 1 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Threads of the responseCallback pool. Default: the number of cores, at least 2.
    pub fn callback_threads(mut self, threads: usize) -> Self {
        self.callback_threads = Some(threads);
        self
    }

    /// Slots of the responseCallback pool: callbacks that wait for a thread. Default 1000.
    pub fn callback_queue(mut self, slots: usize) -> Self {
        self.callback_queue = slots;
        self
    }

    /// The token shown to providers in HELLO. Default: none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.settings.token = Some(token.into());
        self
    }

    /// Connections to each endpoint. Default 1, which carries any number of calls at once.
    pub fn connections_per_endpoint(mut self, connections: usize) -> Self {
        self.settings.connections_per_endpoint = connections.max(1);
        self
    }

    /// Calls in flight at once on one connection; further ones fail with `Overloaded`. Default 4096.
    pub fn in_flight_max(mut self, calls: usize) -> Self {
        self.settings.in_flight_max = calls;
        self
    }

    /// Bytes of requests not yet written on one connection; further requests fail with `Overloaded`. Default
    /// 64 MiB.
    pub fn unwritten_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.unwritten_bytes_max = bytes;
        self
    }

    /// Most bytes in an answer's body. Default 16 MiB.
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.body_bytes_max = bytes;
        self
    }

    /// Pings a connection on which nothing has arrived for `idle`, and closes it if nothing arrives within
    /// `timeout` after that. Default 30 s and 5 s.
    pub fn heartbeat(mut self, idle: Duration, timeout: Duration) -> Self {
        self.settings.heartbeat = idle;
        self.settings.pong_timeout = timeout;
        self
    }

    /// Keys of metadata, as in `["tenant"]`, that calls made from a handler inherit from the call being
    /// served; a call that sets such a key itself keeps its own value. The trace (`traceparent`,
    /// `tracestate`) is always propagated. Default: none.
    pub fn propagate<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.propagated.extend(keys.into_iter().map(Into::into));
        self
    }

    /// Byte streams other than TCP. Default: TCP.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Builds it. Connections are made when they are first needed; tasks run on the runtime that awaits this.
    ///
    /// # Errors
    /// [`InvokerError`]: neither a registry nor addresses, or both; or a plug-in cannot be created.
    ///
    /// # Cancel safety
    /// It never waits, so it cannot be cancelled halfway.
    #[expect(
        clippy::unused_async,
        reason = "tasks run on the runtime that awaits it, and a registry may need to be waited for"
    )]
    pub async fn build(mut self) -> Result<Invoker, InvokerError> {
        if self.registry.is_some() != self.direct.is_empty() {
            return Err(InvokerError::Source);
        }
        let tasks = Tasks::current().map_err(|error| PluginError::Start {
            kind: "invoker",
            name: "tokio".to_owned(),
            reason: error.message,
        })?;
        if let Some(name) = &self.compressor {
            self.settings.compressor = Some(compress::Named::find(name)?);
        }
        let shared = Arc::new(Shared {
            transport: self.transport,
            settings: self.settings,
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            stop: CancellationToken::new(),
            down: AtomicUsize::new(0),
        });
        let (origin, owned_registry) = match self.registry {
            None => (Origin::Direct(direct(self.direct)), None),
            Some(source) => {
                let (registry, owned) = registry::open(source)?;
                let kept = owned.then(|| Arc::clone(&registry));
                (Origin::Registry(registry), kept)
            }
        };
        let balancer = match self.load_balancer {
            None => Arc::new(InTurn) as Arc<dyn LoadBalancer>,
            Some(Source::Value(value)) => value,
            Some(Source::Named(name)) => LoadBalancerPlugin::from_text(&name)?,
        };
        let fault_tolerance = match self.fault_tolerance {
            None => Arc::new(Failfast) as Arc<dyn FaultTolerance>,
            Some(Source::Value(value)) => value,
            Some(Source::Named(name)) => FaultTolerancePlugin::from_text(&name)?,
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let remote = Remote {
            cluster: Cluster::new(origin, balancer, Arc::clone(&shared)),
            shared,
            serializer: SerializerRef::named(&self.serializer)?,
            policy: Policy::new(fault_tolerance),
            filters: filter::build_all(self.filters)?,
            tasks,
            callbacks: CallbackPool::new(self.callback_threads.unwrap_or(cores.max(2)), self.callback_queue),
            propagated: self.propagated,
            owned_registry,
        };
        Ok(Invoker {
            remote: Arc::new(remote),
        })
    }
}

/// Instances for the given addresses: each has its address as its id; sorted, without duplicates.
fn direct(mut addresses: Vec<String>) -> Vec<Arc<Instance>> {
    addresses.sort();
    addresses.dedup();
    addresses
        .iter()
        .map(|address| Arc::new(Instance::at(address)))
        .collect()
}
