//! A running broker: started and stopped in the only safe order.
//!
//! Start: settings, folder lock, name, HTTP, checkpoint, journal and replay, port, registration. Stop: no new
//! work, deregistration, running requests finished, last journal entry synced, last checkpoint, everything
//! closed.

mod settings;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mq_common::api;
use mq_common::ids::{Lsn, ShardName};
use rpc_core::plugin::PluginError;
use rpc_core::provider::{Provider, ProviderError};
use rpc_core::registry::Registry;
use rpc_registry::EmbeddedRegistry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::settings::{bounded, check_schedule, disk_pool, journal_settings, member_settings};
use crate::background::supervisor;
use crate::background::upkeep::Upkeep;
use crate::catalog::Catalog;
use crate::checkpoint::{self, Checkpoint};
use crate::cluster::declarations::{self, Declarations};
use crate::cluster::listen::{self, ListenError};
use crate::cluster::registry;
use crate::compaction::{self, Compactor};
use crate::config::{self, Config, kept};
use crate::core::{Acks, Core, CoreThread, FromEntries, Parts, Published};
use crate::fetch::ResponseBudget;
use crate::http::{self, Health, Sources};
use crate::log;
use crate::service::{Admin, Backups, Fetch, Group, Identity, Produce, Services, Transaction};
use crate::state::rows::{Counters, LoadError};
use crate::state::{Limits, State};
use crate::store::disk::StdDisk;
use crate::store::{self, Folder, FolderError, Store, layout};
use crate::telemetry::Metrics;

/// Why a broker does not start. Nothing was deleted, and nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The network settings are refused.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The name or the token cannot be read or written.
    #[error(transparent)]
    Kept(#[from] kept::KeptError),
    /// The data folder cannot be used, for example because another broker has it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The remains of an interrupted backup cannot be removed.
    #[error(transparent)]
    Backup(#[from] store::backup::Error),
    /// The HTTP address cannot be bound.
    #[error("cannot listen on `{address}` for HTTP: {error}; choose another with `--http`{}", also(.listen_taken))]
    Http {
        /// The address.
        address: String,
        /// The address for clients, if that is taken as well: most likely another broker runs here.
        listen_taken: Option<String>,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The content of the checkpoint contradicts itself.
    #[error(transparent)]
    State(#[from] LoadError),
    /// The journal or the core.
    #[error(transparent)]
    Core(#[from] crate::core::StartError),
    /// The port cannot be bound, or the registration failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The registry is not known or cannot be used.
    #[error("{}", crate::cluster::explained(.0))]
    Registry(#[from] PluginError),
    /// The other brokers cannot be discovered.
    #[error(transparent)]
    Declarations(#[from] declarations::Error),
    /// A task of the start panicked.
    #[error("the start panicked: {0}")]
    Broken(String),
}

/// Why a stop was not clean. Confirmed messages are safe nevertheless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// The core's thread panicked.
    #[error("the core did not end: {0}")]
    Core(#[source] std::io::Error),
    /// The journal failed before or at the end.
    #[error("the journal failed")]
    Journal,
    /// The last checkpoint was not saved; the next start replays more of the journal.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    name: ShardName,
    drain: Duration,
    http: http::Server,
    health: Arc<Health>,
    provider: Provider,
    registry: Arc<dyn Registry>,
    served_registry: EmbeddedRegistry,
    services: Arc<Services>,
    thread: CoreThread,
    upkeep: tokio::task::JoinHandle<Upkeep>,
    upkeep_stop: CancellationToken,
    /// Cancelled after the last checkpoint.
    catalog_stop: CancellationToken,
    tasks: TaskTracker,
}

impl Broker {
    /// Checks everything that can be checked without touching the data folder or the network.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn check(config: &Config) -> Result<(), StartError> {
        listen::check(&config.network)?;
        registry(&config.registry.url, token(&config.network)?.as_deref())?;
        Ok(())
    }

    /// Starts a broker; returns when it serves and is registered, or 2 s after it serves.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let started = Instant::now();
        listen::check(&config.network)?;
        let token = token(&config.network)?;
        let registry = registry(&config.registry.url, token.as_deref())?;
        let folder = open_folder(&config)?;
        let has_data = has_messages(&folder)?;
        let name = kept::name(&folder, config.broker.name.as_ref(), has_data)?;
        let (metrics, encoder) = Metrics::new();
        let health = Arc::new(Health::default());
        let http = serve_http(&config.network, &health, &metrics, encoder).await?;
        let (core, checkpoint, saved) = open(&config, &folder, &name, has_data, &metrics).await?;
        let thread = CoreThread::start(Arc::clone(&core))?;
        let tasks = TaskTracker::new();
        let merge = Duration::from_millis(config.group.ack_merge_ms);
        let (backups, requests) =
            Backups::new(folder.path().to_owned(), config.store.compaction_disk_percent);
        let services = Arc::new(Services {
            acks: Arc::new(Acks::new(Arc::clone(&core), merge, tasks.clone())),
            core: Arc::clone(&core),
            shard: name.clone(),
            metrics: metrics.clone(),
            disk_pool: disk_pool(&config.fetch, &tasks, &metrics),
            response_budget: ResponseBudget::new(config.shares().answers),
            tasks: tasks.clone(),
            stopping: CancellationToken::new(),
            check_first_ms: config.transaction.check_first_ms,
            identity: Arc::new(OnceLock::new()),
            backups,
            health: Arc::clone(&health),
            started,
        });
        let upkeep_stop = CancellationToken::new();
        let state_file = layout::checkpoint_file(folder.path());
        let catalog = Catalog::new(&config.catalog, &name, &state_file, &saved, &metrics);
        supervisor::watch_disk(&config, &core, &metrics, &upkeep_stop, &tasks);
        let upkeep = upkeep(&config, core, checkpoint, metrics, saved.lsn)
            .told_to(catalog.as_ref().map(Catalog::feed))
            .asked_for_backups(folder.path().to_owned(), requests);
        let upkeep = tasks.spawn(upkeep.run(upkeep_stop.clone()));
        supervisor::start_scrub(&config, &services.core, &services.metrics, &upkeep_stop, &tasks);
        health.set_recovered();
        let http_address = listen::advertised_http(http.address(), config.network.advertise.as_deref());
        let serving = serve_and_compare(&config, &services, &name, &http_address, &registry, token);
        let (declarations, provider) = match serving.await {
            Ok(serving) => serving,
            Err(error) => {
                upkeep_stop.cancel();
                // Nothing was served: the first error is the one to report, whatever fails while cleaning up.
                drop(tokio::task::spawn_blocking(move || thread.stop()).await);
                http.close().await;
                return Err(error);
            }
        };
        // Set once, here.
        drop(services.identity.set(identity(&config, &provider, http_address)));
        services.metrics.calls.show(&provider);
        watch_registration(&provider, &health, &services, &tasks);
        supervisor::start_retention(&config, &services.core, &services.stopping, &tasks);
        tasks.spawn(declarations.run(services.stopping.clone()));
        let catalog_stop = CancellationToken::new();
        catalog
            .into_iter()
            .for_each(|catalog| catalog.start(&tasks, catalog_stop.clone()));
        Ok(Self {
            name,
            drain: Duration::from_millis(config.stop.drain_ms),
            http,
            health,
            provider,
            registry: registry.registry(),
            served_registry: registry,
            services,
            thread,
            upkeep,
            upkeep_stop,
            catalog_stop,
            tasks,
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &ShardName {
        &self.name
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> &str {
        self.provider.local_addr()
    }

    /// The address of its HTTP server.
    #[must_use]
    pub const fn http_address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Returns when the journal failed: the process must exit at once, without [`Broker::stop`].
    pub async fn failed(&self) {
        self.services.core.failed().cancelled().await;
        self.health.set_failed();
    }

    /// Stops gracefully.
    ///
    /// # Errors
    /// [`StopError`]; everything is closed nevertheless.
    pub async fn stop(self) -> Result<(), StopError> {
        self.health.set_stopping();
        self.services.stopping.cancel();
        self.served_registry.begin_stop();
        self.provider.shutdown(self.drain).await;
        self.registry.close().await;
        self.upkeep_stop.cancel();
        let upkeep = self.upkeep.await;
        let thread = self.thread;
        let stopped = tokio::task::spawn_blocking(move || thread.stop()).await;
        let failed = self.services.core.failed().is_cancelled();
        let saved = match upkeep {
            Ok(upkeep) if !failed => upkeep.finish().await,
            _ => Ok(()),
        };
        self.catalog_stop.cancel();
        self.http.close().await;
        self.tasks.close();
        self.tasks.wait().await;
        stopped
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(StopError::Core)?;
        if failed {
            return Err(StopError::Journal);
        }
        Ok(saved?)
    }
}

/// The data folder, with space for what a start writes.
fn open_folder(config: &Config) -> Result<Arc<Folder>, StartError> {
    let folder = Folder::open(Arc::new(StdDisk), &config.broker.data_dir)?;
    log::make_room(&folder).map_err(|source| FolderError::Io {
        path: folder.path().to_owned(),
        source,
    })?;
    store::backup::clear_stage(folder.path())?;
    Ok(folder)
}

/// Loads the checkpoint, then replays the journal: the state at the last stop.
async fn open(
    config: &Config,
    folder: &Arc<Folder>,
    name: &ShardName,
    has_data: bool,
    metrics: &Metrics,
) -> Result<(Arc<Core>, Checkpoint, Counters), StartError> {
    let path = layout::checkpoint_file(folder.path());
    let mut checkpoint = Checkpoint::open(&path, name, has_data).await?;
    let saved = checkpoint.load().await?;
    let counters = saved.rows.counters;
    let transactions_from = saved.transactions_from;
    let state = State::load(name.clone(), Limits::default(), saved.rows)?.numbered_from(transactions_from);
    let shares = config.shares();
    let settings = store::Settings {
        tail_bytes: shares.tail,
        footer_bytes: shares.footers,
        marks_bytes: shares.marks,
        rewrite_valid_percent: config.store.rewrite_valid_percent,
        keys: store::KeySettings {
            dirty_percent: config.store.key_compaction_dirty_percent,
            tombstone_ms: config.store.tombstone_ms,
            map_bytes: shares.keys,
        },
        unreadable_patience: Duration::from_millis(config.fetch.unreadable_ms),
        ..store::Settings::default()
    };
    let store = Store::open(folder, settings, saved.store);
    let rebuild = FromEntries {
        folder: Arc::clone(folder),
        transactions_from,
    };
    let store = Arc::new(store.rebuilt_by(Arc::new(rebuild)));
    let published = Arc::new(Published::new(
        Arc::clone(&store),
        member_settings(&config.group),
        check_schedule(&config.transaction),
    ));
    let parts = Parts {
        folder: Arc::clone(folder),
        state,
        store,
        published,
        settings: journal_settings(config),
        inbox_bytes_max: shares.inbox,
        metrics: metrics.clone(),
    };
    let started = Instant::now();
    let core = tokio::task::spawn_blocking(move || Core::open(parts))
        .await
        .map_err(|error| StartError::Broken(error.to_string()))??;
    tracing::info!(checkpoint = %counters.lsn, took = ?started.elapsed(), "recovered");
    Ok((core, checkpoint, counters))
}

/// Starts the HTTP server for health and metrics.
async fn serve_http(
    network: &config::Network,
    health: &Arc<Health>,
    metrics: &Metrics,
    registry: Arc<prometheus_client::registry::Registry>,
) -> Result<http::Server, StartError> {
    let routes = http::routes(Sources {
        health: Arc::clone(health),
        metrics: metrics.clone(),
        registry,
    });
    let server = http::Server::start(&network.http, routes).await;
    server.map_err(|error| cannot_serve_http(network, error))
}

/// Binds, listens and registers; and prepares the comparison of topics with other brokers.
async fn serve_and_compare(
    config: &Config,
    services: &Arc<Services>,
    name: &ShardName,
    http: &str,
    registry: &EmbeddedRegistry,
    token: Option<String>,
) -> Result<(Declarations<Admin>, Provider), StartError> {
    let every = Duration::from_millis(config.cluster.compare_ms);
    let own = Admin(Arc::clone(services));
    let declarations =
        Declarations::new(name.clone(), own, &registry.registry(), token.clone(), every).await?;
    let provider = serve(config, services, name, http, registry, token).await?;
    Ok((declarations, provider))
}

async fn serve(
    config: &Config,
    services: &Arc<Services>,
    name: &ShardName,
    http: &str,
    registry: &EmbeddedRegistry,
    token: Option<String>,
) -> Result<Provider, ProviderError> {
    let mut builder = bounded(Provider::builder(), config)
        .listen(&config.network.listen)
        .registry(registry.registry())
        .serve(registry.served())
        .name(name.as_str())
        .http(http)
        .serve(api::ProduceServer::new(Produce(Arc::clone(services))))
        .serve(api::FetchServer::new(Fetch::new(Arc::clone(services))))
        .serve(api::GroupServer::new(Group(Arc::clone(services))))
        .serve(api::TransactionServer::new(Transaction(Arc::clone(services))))
        .serve(api::AdminServer::new(Admin(Arc::clone(services))));
    if let Some(advertise) = &config.network.advertise {
        builder = builder.advertise(advertise);
    }
    if let Some(zone) = &config.broker.zone {
        builder = builder.zone(zone);
    }
    if let Some(token) = token {
        builder = builder.token(token);
    }
    builder.start().await
}

fn watch_registration(provider: &Provider, health: &Arc<Health>, services: &Services, tasks: &TaskTracker) {
    let mut registered = provider.registered();
    health.set_registered(*registered.borrow_and_update());
    let (health, stop) = (Arc::clone(health), services.stopping.clone());
    tasks.spawn(async move {
        while let Some(Ok(())) = stop.run_until_cancelled(registered.changed()).await {
            health.set_registered(*registered.borrow_and_update());
        }
    });
}

fn token(network: &config::Network) -> Result<Option<String>, kept::KeptError> {
    network.auth_token_file.as_deref().map(kept::token).transpose()
}

fn cannot_serve_http(network: &config::Network, error: std::io::Error) -> StartError {
    let is_taken = std::net::TcpListener::bind(&network.listen)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
    StartError::Http {
        address: network.http.clone(),
        listen_taken: is_taken.then(|| network.listen.clone()),
        error,
    }
}

fn also(listen_taken: &Option<String>) -> String {
    listen_taken.as_ref().map_or_else(String::new, |address| {
        format!(
            ". `{address}` for clients is taken, too, most likely by another broker: stop that one, or choose another port \
            with `--listen` as well"
        )
    })
}

fn identity(config: &Config, provider: &Provider, http: String) -> Identity {
    let advertised = config.network.advertise.as_deref();
    Identity {
        address: advertised.unwrap_or_else(|| provider.local_addr()).to_owned(),
        http,
    }
}

/// Whether the folder holds messages: then it does not belong to a new broker, whatever else is missing.
fn has_messages(folder: &Folder) -> Result<bool, StartError> {
    let (journal, queues) = (
        layout::journal_folder(folder.path()),
        layout::queues_folder(folder.path()),
    );
    let failed = |path| move |source| FolderError::Io { path, source };
    let has_queues = kept::is_filled(&queues).map_err(failed(queues))?;
    let names = folder.disk().list(&journal).map_err(failed(journal))?;
    Ok(has_queues || names.iter().any(|name| layout::parse_segment(name).is_some()))
}

/// The upkeep task. The journal's limit is fixed here, from the space that is free now.
fn upkeep(config: &Config, core: Arc<Core>, checkpoint: Checkpoint, metrics: Metrics, saved: Lsn) -> Upkeep {
    let free = core.published().store.free_bytes().unwrap_or_else(|error| {
        tracing::warn!(%error, "the free space is unknown: the journal gets the smallest budget");
        0
    });
    let limits = compaction::Limits::new(config, core.recycler().sealed().len() + 1, free);
    let compactor = Compactor::new(Arc::clone(&core), limits, metrics.clone());
    let settings = config.checkpoint.clone();
    Upkeep::new(core, checkpoint, settings, metrics, compactor, saved)
}
