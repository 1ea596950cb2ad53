//! The client: one connection pool and one view of the brokers, shared by all its producers and consumers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mq_common::api::{
    AdminClient, DISCOVERY_SERVICE, FetchClient, GROUP, GroupClient, ProduceClient, TransactionClient,
    VERSION,
};
use mq_common::ids::{GroupName, InvalidName, MemberId, Timestamp, TopicName};
use rpc_core::Invoker;
use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin};
use rpc_core::plugin::{Settings, Source};
use rpc_core::registry::{Registry, RegistryPlugin, ServiceKey};
use rpc_registry::Mq;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::consumer::ConsumerBuilder;
use crate::error::ClientError;
use crate::producer::ProducerBuilder;
use crate::producer::transaction::{TransactionListener, TransactionProducerBuilder};
use crate::route::Routes;

/// How the brokers are discovered.
#[derive(Debug)]
enum Discovery {
    /// By asking the brokers at these addresses.
    Brokers(String),
    /// In a registry.
    Registry(Source<dyn Registry>),
}

/// Configures a [`Client`].
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder {
    registry: Option<Discovery>,
    balancer: Source<dyn LoadBalancer>,
    token: Option<String>,
    timeout: Duration,
    connections_per_broker: usize,
    callback_threads: Option<usize>,
    callback_queue: Option<usize>,
}

impl ClientBuilder {
    /// Discovers all brokers by asking the ones at these addresses (`host:port`); one that answers suffices.
    /// The same as the registry `mq://a,b`.
    pub fn brokers<A: AsRef<str>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|address| address.as_ref().to_owned())
            .collect();
        self.registry = Some(Discovery::Brokers(addresses.join(",")));
        self
    }

    /// Discovers the brokers in a registry, given as a URL (`etcd://127.0.0.1:2379`) or as a value.
    /// [`Client::shutdown`] closes a registry that was created from a URL, but not one given as a value.
    pub fn registry(mut self, registry: impl Into<Source<dyn Registry>>) -> Self {
        self.registry = Some(Discovery::Registry(registry.into()));
        self
    }

    /// The load balancer that chooses the broker for messages without a key: the name of a plug-in,
    /// optionally with settings (`p2c?zone=a`), or a value. Default `round_robin`.
    pub fn load_balancer(mut self, balancer: impl Into<Source<dyn LoadBalancer>>) -> Self {
        self.balancer = balancer.into();
        self
    }

    /// The token to authenticate with at the brokers, for discovery too. Default: none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The timeout of a management call or an ack. Default 5 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connections to each broker. Default 1.
    pub const fn connections_per_broker(mut self, connections: usize) -> Self {
        self.connections_per_broker = connections;
        self
    }

    /// Threads of the responseCallback pool. Default: the number of cores, at least 2.
    pub const fn callback_threads(mut self, threads: usize) -> Self {
        self.callback_threads = Some(threads);
        self
    }

    /// How many callbacks may wait for a thread of the responseCallback pool. Default 1000.
    pub const fn callback_queue(mut self, places: usize) -> Self {
        self.callback_queue = Some(places);
        self
    }

    /// Builds the client. It does not wait for a broker: the first call that needs one does.
    ///
    /// # Errors
    /// [`ClientError`]: no registry was named, or a plug-in could not be built.
    ///
    /// # Cancel safety
    /// Dropping the future builds nothing.
    pub async fn build(self) -> Result<Client, ClientError> {
        let (registry, owned) = match self.registry.ok_or(ClientError::Source)? {
            Discovery::Registry(Source::Value(registry)) => (registry, false),
            Discovery::Registry(Source::Named(url)) => {
                let (scheme, mut settings) = Settings::from_url(&url)?;
                // The brokers' own registry requires the same token as their services.
                if let ("mq", Some(token)) = (scheme.as_str(), &self.token) {
                    settings = settings.with("token", token.clone());
                }
                (RegistryPlugin::build(&scheme, &settings)?, true)
            }
            Discovery::Brokers(addresses) => {
                let mut registry = Mq::builder(&addresses);
                if let Some(token) = &self.token {
                    registry = registry.token(token.as_str());
                }
                let registry: Arc<dyn Registry> = Arc::new(registry.build());
                (registry, true)
            }
        };
        let balancer = match self.balancer {
            Source::Value(balancer) => balancer,
            Source::Named(name) => LoadBalancerPlugin::from_text(&name)?,
        };
        let mut invoker = Invoker::builder()
            .registry(Arc::clone(&registry))
            .timeout(self.timeout)
            .connections_per_endpoint(self.connections_per_broker);
        if let Some(token) = self.token {
            invoker = invoker.token(token);
        }
        if let Some(threads) = self.callback_threads {
            invoker = invoker.callback_threads(threads);
        }
        if let Some(places) = self.callback_queue {
            invoker = invoker.callback_queue(places);
        }
        let invoker = invoker.build().await?;
        let brokers = registry.subscribe(&ServiceKey {
            group: GROUP.to_owned(),
            service: DISCOVERY_SERVICE.to_owned(),
            version: VERSION.to_owned(),
        })?;
        let admin = AdminClient::refer(&invoker);
        let stop = CancellationToken::new();
        let client = Client {
            inner: Arc::new(Inner {
                routes: Arc::new(Routes::new(admin.clone(), brokers, stop.clone())),
                produce: ProduceClient::refer(&invoker),
                fetch: FetchClient::refer(&invoker),
                group: GroupClient::refer(&invoker),
                transaction: TransactionClient::refer(&invoker),
                admin,
                invoker,
                registry,
                registry_owned: owned,
                balancer,
                tasks: TaskTracker::new(),
                stop,
            }),
        };
        let keeper = Arc::clone(&client.inner.routes).keep();
        drop(client.inner.tasks.spawn(keeper));
        Ok(client)
    }
}

/// The handle from which producers, consumers and the [`Admin`] are created. Cheap to clone. Shut it down
/// with [`Client::shutdown`]; dropping the last clone stops its tasks too, but does not wait for them.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// What producers and consumers share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) routes: Arc<Routes>,
    pub(crate) produce: ProduceClient,
    pub(crate) fetch: FetchClient,
    pub(crate) group: GroupClient,
    pub(crate) transaction: TransactionClient,
    pub(crate) admin: AdminClient,
    pub(crate) invoker: Invoker,
    pub(crate) balancer: Arc<dyn LoadBalancer>,
    /// Tasks of all producers and consumers.
    pub(crate) tasks: TaskTracker,
    /// Stops them.
    pub(crate) stop: CancellationToken,
    registry: Arc<dyn Registry>,
    registry_owned: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Client {
    /// Starts the configuration of a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            registry: None,
            balancer: "round_robin".into(),
            token: None,
            timeout: Duration::from_secs(5),
            connections_per_broker: 1,
            callback_threads: None,
            callback_queue: None,
        }
    }

    /// Starts the configuration of a producer. One producer serves any number of topics and tasks.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.inner))
    }

    /// Starts the configuration of a transaction producer. `listener` decides its transactions, and answers
    /// the brokers' questions about undecided transactions of every producer in the group.
    ///
    /// # Errors
    /// The group's name is invalid.
    pub fn transaction_producer<L: TransactionListener>(
        &self,
        group: impl Into<String>,
        listener: L,
    ) -> Result<TransactionProducerBuilder<L>, InvalidName> {
        let group = GroupName::new(group)?;
        Ok(TransactionProducerBuilder::new(
            Arc::clone(&self.inner),
            group,
            listener,
        ))
    }

    /// Starts the configuration of a member of a consumer group.
    ///
    /// # Errors
    /// A name is invalid.
    pub fn consumer(
        &self,
        topic: impl Into<String>,
        group: impl Into<String>,
    ) -> Result<ConsumerBuilder, InvalidName> {
        let (topic, group) = (TopicName::new(topic)?, GroupName::new(group)?);
        Ok(ConsumerBuilder::new(Arc::clone(&self.inner), topic, group))
    }

    /// Management of topics, groups, transactions and brokers.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.inner))
    }

    /// Stops all producers and consumers of this client, waits for their tasks, and closes all connections.
    /// Messages that producers had queued but not sent fail with `Closed`: flush the producers first.
    ///
    /// # Cancel safety
    /// Producers and consumers stop even if the future is dropped, but the connections may stay open until
    /// the client is dropped; call it again to wait for the rest.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.invoker.shutdown().await;
        if self.inner.registry_owned {
            self.inner.registry.close().await;
        }
    }
}

/// The current wall-clock time.
pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A new random identity within a group.
pub(crate) fn random_member() -> MemberId {
    MemberId(format!("{:032x}", fastrand::u128(..)))
}
