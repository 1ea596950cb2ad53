//! The server: a table behind the service `hc.Registry`, and the same table as a registry within this
//! process.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rpc_core::message::Served;
use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::{
    Freshness, Instance, InstanceId, Registry, RegistryError, RegistryPlugin, ServiceKey, Snapshot,
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::api::{Announce, Announced, Directory, DirectoryServer, Listed, Picture, Refusal, Watch};
use super::client::MqBuilder;
use super::table::{self, Table};
use crate::cache::{self, ById, Followed};

/// Its name in messages.
const NAME: &str = "embedded";
/// The longest wait of one request.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The same while the server is about to stop: it must not be held up, and must not be asked in a tight loop.
const LAST_WAIT_MAX: Duration = Duration::from_millis(200);

/// The clock of leases: tokio's, so that tests can control it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A registry served by this process: mount [`EmbeddedRegistry::served`] on a provider, and use
/// [`EmbeddedRegistry::registry`] to announce or look up services here.
///
/// ```
/// # use std::time::Duration;
/// use rpc_registry::EmbeddedRegistry;
///
/// let embedded = EmbeddedRegistry::new(Duration::from_secs(10));
/// let mounted = embedded.served();      // Provider::builder().serve(mounted)
/// let registry = embedded.registry();   // Provider::builder().registry(registry)
/// # drop((mounted, registry));
/// ```
#[derive(Debug, Clone)]
pub struct EmbeddedRegistry {
    owner: Arc<Owner>,
    behind: Option<Arc<dyn Registry>>,
}

impl EmbeddedRegistry {
    /// A server that is the registry itself; announcements to it are valid for `lease`.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self {
            owner: Arc::new(Owner::new(lease)),
            behind: None,
        }
    }

    /// A server in front of another registry: it answers with that registry's instances and those announced
    /// to itself.
    #[must_use]
    pub fn in_front_of(registry: Arc<dyn Registry>, lease: Duration) -> Self {
        Self {
            behind: Some(registry),
            ..Self::new(lease)
        }
    }

    /// The server for the registry named in a configuration: `embedded` for [`EmbeddedRegistry::new`], else a
    /// URL. With `mq://a,b,c` the process becomes one of several servers: it announces itself to all of them,
    /// and asks each only for what was announced to that one.
    ///
    /// # Errors
    /// The URL is invalid, its scheme is unknown, or its settings are refused.
    pub fn open(url: &str, lease: Duration) -> Result<Self, PluginError> {
        if url == NAME {
            return Ok(Self::new(lease));
        }
        let (scheme, settings) = Settings::from_url(url)?;
        let registry: Arc<dyn Registry> = match scheme.as_str() {
            "mq" => {
                let registry = MqBuilder::from_settings(&settings)?.among_servers().build();
                crate::as_set(Arc::new(registry), &settings)
            }
            _ => RegistryPlugin::build(&scheme, &settings)?,
        };
        Ok(Self::in_front_of(registry, lease))
    }

    /// The service to mount on this process's provider.
    #[must_use]
    pub fn served(&self) -> Served {
        DirectoryServer::new(self.serving()).into()
    }

    fn serving(&self) -> Serving {
        Serving {
            owner: Arc::clone(&self.owner),
            behind: self.behind.clone(),
        }
    }

    /// Call this before this process's provider is shut down: clients that wait for a change are answered
    /// now, so that they do not hold up the shutdown. Everything is still served.
    pub fn begin_stop(&self) {
        self.owner.state.stopping.cancel();
    }

    /// Calls this server without a network.
    #[cfg(test)]
    pub(super) fn client(&self) -> super::api::DirectoryClient {
        super::api::DirectoryClient::local(self.serving())
    }

    /// The registry for this process: a new handle to the table. With another registry behind it, the handle
    /// announces at both and follows the services it announces: so if that registry is away, this server
    /// still knows this process and all instances that it last saw.
    #[must_use]
    pub fn registry(&self) -> Arc<dyn Registry> {
        let own = Own {
            owner: Arc::clone(&self.owner),
            member: InstanceId::random().0,
            mine: Mutex::default(),
        };
        match &self.behind {
            Some(behind) => Arc::new(InFront {
                own,
                behind: Arc::clone(behind),
                followed: Mutex::default(),
            }),
            None => Arc::new(own),
        }
    }
}

/// Keeps the housekeeping task running as long as there is a handle.
#[derive(Debug)]
struct Owner {
    state: Arc<State>,
    tasks: TaskTracker,
    housekeeper_runs: AtomicBool,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

#[derive(Debug)]
struct State {
    table: Mutex<Table>,
    /// Increases with every visible change.
    changes: watch::Sender<u64>,
    /// Lists for this process.
    followed: Followed,
    /// Requests no longer wait here for long.
    stopping: CancellationToken,
}

impl Owner {
    fn new(lease: Duration) -> Self {
        let stop = CancellationToken::new();
        Self {
            state: Arc::new(State {
                table: Mutex::new(Table::new(lease, now())),
                changes: watch::Sender::new(0),
                followed: Followed::default(),
                stopping: CancellationToken::new(),
            }),
            tasks: TaskTracker::new(),
            housekeeper_runs: AtomicBool::new(false),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Starts the task that expires leases, at the first use.
    fn start(&self) -> Result<(), RegistryError> {
        let runtime = cache::runtime(NAME)?;
        if !self.housekeeper_runs.swap(true, Ordering::AcqRel) {
            let (state, stop) = (Arc::clone(&self.state), self.stop.clone());
            let task = async move {
                stop.run_until_cancelled(state.keep_house()).await;
            };
            self.tasks.spawn_on(task, &runtime);
        }
        Ok(())
    }
}

impl State {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expires leases when they are due, and ends the warming.
    async fn keep_house(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            let (next, warming) = {
                let table = self.table();
                (table.next_change(now()), table.is_warming(now()))
            };
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                // Another lease may end earlier than the known ones. The sender lives as long as this task.
                _ = changes.changed() => {}
            }
            let changed = {
                let mut table = self.table();
                table.expire(now()) || warming != table.is_warming(now())
            };
            if changed {
                self.show();
            }
        }
    }

    /// Something visible has changed.
    fn show(&self) {
        self.changes.send_modify(|changes| *changes += 1);
        self.followed.show_all(|key| self.picture(key));
    }

    fn picture(&self, key: &ServiceKey) -> (ById, Freshness) {
        let table = self.table();
        let serving = table.serving(key);
        let freshness = match table.is_warming(now()) && serving.is_empty() {
            true => Freshness::Unknown,
            false => Freshness::Fresh,
        };
        (serving, freshness)
    }
}

/// The service.
#[derive(Debug)]
struct Serving {
    owner: Arc<Owner>,
    behind: Option<Arc<dyn Registry>>,
}

impl Directory for Serving {
    async fn announce(&self, announce: Announce) -> Result<Announced, Refusal> {
        if let Err(error) = self.owner.start() {
            tracing::error!(%error, "leases will not end");
        }
        let state = &self.owner.state;
        let served = announce.instances.into_iter().map(|listed| {
            let (key, instance) = listed.into_parts();
            ((key, instance.id.clone()), Arc::new(instance))
        });
        let (changed, lease) = {
            let mut table = state.table();
            let changed = table.announce(&announce.member, announce.round, served.collect(), now())?;
            (changed, table.lease())
        };
        if changed {
            state.show();
        }
        Ok(Announced {
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn watch(&self, watch: Watch) -> Picture {
        let state = &self.owner.state;
        let mut changes = state.changes.subscribe();
        let mut behind = self.behind.as_ref().filter(|_| watch.all);
        let mut behind = behind
            .take()
            .and_then(|registry| registry.subscribe(&watch.key).ok());
        let is_last = state.stopping.is_cancelled();
        let wait_max = if is_last { LAST_WAIT_MAX } else { WAIT_MAX };
        let deadline = tokio::time::Instant::now() + Duration::from_millis(watch.wait_ms).min(wait_max);
        loop {
            changes.mark_unchanged();
            let shown = behind.as_mut().map(|behind| behind.borrow_and_update().clone());
            let picture = self.picture(&watch.key, shown.as_ref());
            if watch.known != Some(picture.state) {
                return picture;
            }
            let behind_changed = async {
                match &mut behind {
                    Some(behind) => behind.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as this task.
                _ = changes.changed() => {}
                lives = behind_changed => if !lives {
                    // The registry was closed; its last list has been delivered.
                    behind = None;
                },
                () = state.stopping.cancelled(), if !is_last => return picture,
                () = tokio::time::sleep_until(deadline) => return picture,
            }
        }
    }
}

impl Serving {
    fn picture(&self, key: &ServiceKey, behind: Option<&Snapshot>) -> Picture {
        let (serving, warming) = {
            let table = self.owner.state.table();
            (table.serving(key), table.is_warming(now()))
        };
        let mut serving = serving;
        // A list that is not fresh may be incomplete, as after a start.
        let warming = warming || behind.is_some_and(|shown| shown.freshness != Freshness::Fresh);
        for instance in behind.iter().flat_map(|shown| shown.instances.iter()) {
            serving.insert(instance.id.clone(), Arc::clone(instance));
        }
        let instances: Vec<_> = serving
            .values()
            .map(|instance| Listed::new(key, instance))
            .collect();
        let mut hasher = DefaultHasher::new();
        (warming, &instances).hash(&mut hasher);
        Picture {
            state: hasher.finish(),
            warming,
            instances,
        }
    }
}

/// A handle to the table for this process.
#[derive(Debug)]
struct Own {
    owner: Arc<Owner>,
    member: String,
    mine: Mutex<Mine>,
}

#[derive(Debug, Default)]
struct Mine {
    round: u64,
    served: table::Served,
    closed: bool,
}

impl Own {
    /// Changes what this handle announces, unless it is closed. Under its lock, so that rounds arrive in
    /// order.
    fn change(&self, change: impl FnOnce(&mut Mine)) -> Result<(), RegistryError> {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        if mine.closed {
            return Err(RegistryError::Closed);
        }
        change(&mut mine);
        mine.round += 1;
        let changed = self
            .owner
            .state
            .table()
            .announce_own(&self.member, mine.round, mine.served.clone())
            .map_err(|refusal| RegistryError::Refused {
                registry: NAME.to_owned(),
                reason: refusal.to_string(),
            })?;
        if changed {
            self.owner.state.show();
        }
        Ok(())
    }

    fn withdraw(&self) {
        let withdrawn = self.change(|mine| {
            mine.served.clear();
            mine.closed = true;
        });
        if let Err(error) = withdrawn {
            tracing::debug!(%error, "nothing to withdraw");
        }
    }
}

#[async_trait]
impl Registry for Own {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        _: Duration,
    ) -> Result<(), RegistryError> {
        self.owner.start()?;
        self.change(|mine| {
            let at = (key.clone(), instance.id.clone());
            mine.served.insert(at, Arc::new(instance.clone()));
        })
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        let at = (key.clone(), id.clone());
        match self.change(|mine| drop(mine.served.remove(&at))) {
            Err(RegistryError::Closed) => Ok(()),
            other => other,
        }
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        let mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        if mine.closed {
            return Err(RegistryError::Closed);
        }
        drop(mine);
        self.owner.start()?;
        let runtime = cache::runtime(NAME)?;
        let state = &self.owner.state;
        let receiver = state.followed.subscribe(key, |shown| {
            let (state, stop, key) = (Arc::clone(state), self.owner.stop.clone(), key.clone());
            let unseen = async move {
                stop.run_until_cancelled(state.followed.until_unseen(&key, &shown))
                    .await;
            };
            self.owner.tasks.spawn_on(unseen, &runtime);
        });
        state.followed.show_all(|key| state.picture(key));
        Ok(receiver)
    }

    async fn close(&self) {
        self.withdraw();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// A handle for a process that serves the table in front of another registry.
#[derive(Debug)]
struct InFront {
    own: Own,
    behind: Arc<dyn Registry>,
    /// Services announced here are followed as long as the handle lives.
    followed: Mutex<BTreeMap<ServiceKey, watch::Receiver<Snapshot>>>,
}

impl InFront {
    fn follow(&self, key: &ServiceKey) -> Result<(), RegistryError> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if !followed.contains_key(key) {
            followed.insert(key.clone(), self.behind.subscribe(key)?);
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for InFront {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError> {
        self.follow(key)?;
        self.own.register(key, instance, wait).await?;
        let registered = self.behind.register(key, instance, wait).await;
        if matches!(registered, Err(RegistryError::Refused { .. })) {
            self.own.deregister(key, &instance.id).await?;
        }
        registered
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        self.own.deregister(key, id).await?;
        self.behind.deregister(key, id).await
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        self.behind.subscribe(key)
    }

    async fn close(&self) {
        self.own.close().await;
        self.behind.close().await;
    }
}
