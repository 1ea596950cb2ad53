//! The client: announces this process at every server, and merges their answers. Any one server suffices.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::{
    Instance, InstanceId, Registry, RegistryError, RegistryPlugin, ServiceKey, Snapshot,
};
use rpc_core::{CallError, Invoker};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::api::{Announce, DirectoryClient, Listed};
use super::follow::Follower;
use super::merge::Merge;
use crate::backoff::{Backoff, jittered};
use crate::cache::{self, Followed};

rpc_core::plugin!(RegistryPlugin, "mq", |settings| {
    let registry = MqBuilder::from_settings(settings)?.build();
    Ok(crate::as_set(Arc::new(registry), settings))
});

/// The default lease.
const LEASE: Duration = Duration::from_secs(10);
/// Time-out of an answer for which the server does not wait deliberately.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const DEREGISTER_WITHIN: Duration = Duration::from_secs(2);
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);
/// The same for a server that was not reached before: most likely it is dead.
const FAREWELL_TO_SILENT_WITHIN: Duration = Duration::from_millis(200);
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// The shortest interval between announcements, however short a lease a server claims to grant.
const ANNOUNCE_EVERY_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
pub(super) const RETRY_WITHIN: Duration = Duration::from_secs(1);

/// Settings of an [`Mq`] registry.
#[derive(Clone)]
pub struct MqBuilder {
    pub(super) servers: Vec<String>,
    pub(super) lease: Duration,
    token: Option<String>,
    pub(super) all: bool,
}

impl MqBuilder {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["address", "token", "lease_ms", crate::KEEP_DIR])?;
        let lease_ms: u64 = settings.parse("lease_ms", 10_000)?;
        if lease_ms < 100 {
            return Err(PluginError::Setting {
                key: "lease_ms".into(),
                reason: format!("`{lease_ms}`: expected at least 100"),
            });
        }
        Ok(Self {
            servers: cache::addresses(settings)?,
            lease: Duration::from_millis(lease_ms),
            token: settings.text("token").map(str::to_owned),
            all: true,
        })
    }

    /// How long the last answer of a silent server counts. Default 10 s, like the servers' own leases.
    #[must_use]
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The token that the servers require. Default: none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// For a process that is one of the servers: counts only what members announced to each server itself.
    /// Otherwise two servers would keep a dead member alive by reporting it to each other.
    #[must_use]
    pub const fn among_servers(mut self) -> Self {
        self.all = false;
        self
    }

    /// The registry. It connects at its first use, on the tokio runtime of that use.
    #[must_use]
    pub fn build(self) -> Mq {
        Mq::new(self, None)
    }
}

impl fmt::Debug for MqBuilder {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqBuilder")
            .field("servers", &self.servers)
            .field("lease", &self.lease)
            .field("all", &self.all)
            .finish_non_exhaustive()
    }
}

/// The registry `mq`: the embedded registry of one or several brokers.
#[derive(Debug)]
pub struct Mq {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    announcers_run: AtomicBool,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// The state that the tasks share with the handle.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: MqBuilder,
    /// This process's identity at the servers.
    member: String,
    invoker: OnceCell<Invoker>,
    /// Calls a server of this process instead of those in the settings.
    in_process: Option<DirectoryClient>,
    wishes: Mutex<Wishes>,
    /// The version of the wishes: increases with every change.
    changed: watch::Sender<u64>,
    /// The progress of each server.
    outcomes: watch::Sender<Vec<Outcome>>,
    followed: Followed,
}

/// Everything that this process announces.
#[derive(Debug, Default)]
struct Wishes {
    version: u64,
    instances: BTreeMap<(ServiceKey, InstanceId), Instance>,
}

/// One server's progress with the wishes.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// The last version that it accepted.
    taken: u64,
    /// The last version that was sent to it.
    tried: u64,
    /// The last error, and whether it is final.
    trouble: Option<(String, bool)>,
}

impl Shared {
    fn name(&self) -> String {
        format!("mq://{}", self.settings.servers.join(","))
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the wishes; returns their new version.
    fn wish(&self, change: impl FnOnce(&mut BTreeMap<(ServiceKey, InstanceId), Instance>)) -> u64 {
        let mut wishes = self.wishes();
        change(&mut wishes.instances);
        wishes.version += 1;
        self.changed.send_replace(wishes.version);
        wishes.version
    }

    pub(super) async fn client(&self) -> Result<DirectoryClient, String> {
        if let Some(client) = &self.in_process {
            return Ok(client.clone());
        }
        let build = || async {
            let mut builder = Invoker::builder()
                .direct(&self.settings.servers)
                .fault_tolerance("failfast")
                .timeout(ANSWER_WITHIN);
            if let Some(token) = &self.settings.token {
                builder = builder.token(token.as_str());
            }
            builder.build().await
        };
        let invoker = self.invoker.get_or_try_init(build).await;
        let invoker = invoker.map_err(|error| error.to_string())?;
        Ok(DirectoryClient::refer(invoker))
    }

    /// Announces to server number `server` what this process serves, again and again.
    async fn announce(&self, server: usize) {
        let mut changed = self.changed.subscribe();
        let mut backoff = Backoff::new(RETRY_WITHIN);
        loop {
            let announce = {
                let wishes = self.wishes();
                changed.mark_unchanged();
                Announce {
                    member: self.member.clone(),
                    round: wishes.version,
                    instances: wishes
                        .instances
                        .iter()
                        .map(|((key, _), one)| Listed::new(key, one))
                        .collect(),
                }
            };
            let version = announce.round;
            let said = self.say(server, announce, ANSWER_WITHIN).await;
            let pause = match &said {
                Ok(lease) => {
                    backoff.reset();
                    jittered((*lease / 4).max(ANNOUNCE_EVERY_MIN))
                }
                Err((reason, _)) => {
                    tracing::debug!(
                        server = self.settings.servers[server],
                        reason,
                        "not announced; trying again"
                    );
                    backoff.delay()
                }
            };
            self.outcomes.send_modify(|outcomes| {
                let outcome = &mut outcomes[server];
                outcome.tried = version;
                match said {
                    Ok(_) => (outcome.taken, outcome.trouble) = (version, None),
                    Err(trouble) => outcome.trouble = Some(trouble),
                }
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The sender lives as long as this task.
                _ = changed.changed() => {}
            }
        }
    }

    /// One announcement: returns how long it is valid, or the error and whether it is final.
    async fn say(
        &self,
        server: usize,
        announce: Announce,
        limit: Duration,
    ) -> Result<Duration, (String, bool)> {
        let client = self.client().await.map_err(|reason| (reason, false))?;
        let call = client
            .announce(announce)
            .to_address(&self.settings.servers[server]);
        match call.timeout(limit).await {
            Ok(announced) => Ok(Duration::from_millis(announced.lease_ms)),
            Err(error) => {
                let refused = matches!(error, CallError::App(_));
                Err((error.to_string(), refused))
            }
        }
    }

    /// Withdraws everything from server number `server`, if it ever accepted something.
    async fn farewell(&self, server: usize) {
        let (tried, silent) = {
            let outcome = &self.outcomes.borrow()[server];
            (outcome.tried, outcome.trouble.is_some())
        };
        if tried == 0 {
            return;
        }
        let limit = if silent {
            FAREWELL_TO_SILENT_WITHIN
        } else {
            FAREWELL_WITHIN
        };
        let farewell = Announce {
            member: self.member.clone(),
            round: self.wishes().version + 1,
            instances: Vec::new(),
        };
        if let Err((reason, _)) = self.say(server, farewell, limit).await {
            tracing::debug!(
                server = self.settings.servers[server],
                reason,
                "not withdrawn; the lease expires by itself"
            );
        }
    }

    /// Keeps the list of `key` up to date until it has had no subscribers for a while.
    async fn follow(self: Arc<Self>, key: ServiceKey, shown: Arc<watch::Sender<Snapshot>>) {
        let servers = self.settings.servers.len();
        let merge = Arc::new(Mutex::new(Merge::new(servers, self.settings.lease)));
        let mut followers = JoinSet::new();
        for server in 0..servers {
            let follower = Follower {
                shared: Arc::clone(&self),
                server,
                key: key.clone(),
                merge: Arc::clone(&merge),
                shown: Arc::clone(&shown),
            };
            followers.spawn(follower.run());
        }
        self.followed.until_unseen(&key, &shown).await;
        followers.shutdown().await;
    }
}

impl Mq {
    /// The embedded registry served at `servers`: `host:port`, several separated by commas.
    #[must_use]
    pub fn builder(servers: &str) -> MqBuilder {
        MqBuilder {
            servers: cache::split_addresses(servers),
            lease: LEASE,
            token: None,
            all: true,
        }
    }

    fn new(settings: MqBuilder, in_process: Option<DirectoryClient>) -> Self {
        let stop = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                member: InstanceId::random().0,
                invoker: OnceCell::new(),
                in_process,
                wishes: Mutex::default(),
                changed: watch::Sender::new(0),
                outcomes: watch::Sender::new(vec![Outcome::default(); settings.servers.len()]),
                followed: Followed::default(),
                settings,
            }),
            tasks: TaskTracker::new(),
            announcers_run: AtomicBool::new(false),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// A client of a server in this process.
    #[cfg(test)]
    pub(super) fn in_process(server: &super::EmbeddedRegistry, lease: Duration) -> Self {
        Self::new(Self::builder("here:0").lease(lease), Some(server.client()))
    }

    /// The same for a client that is itself one of the servers.
    #[cfg(test)]
    pub(super) fn in_process_server(server: &super::EmbeddedRegistry, lease: Duration) -> Self {
        Self::new(
            Self::builder("here:0").lease(lease).among_servers(),
            Some(server.client()),
        )
    }

    /// Starts one announcer per server at the first announcement.
    fn start_announcers(&self) -> Result<(), RegistryError> {
        let runtime = cache::runtime(&self.shared.name())?;
        if !self.announcers_run.swap(true, Ordering::AcqRel) {
            for server in 0..self.shared.settings.servers.len() {
                let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
                let task = async move {
                    stop.run_until_cancelled(shared.announce(server)).await;
                    shared.farewell(server).await;
                };
                self.tasks.spawn_on(task, &runtime);
            }
        }
        Ok(())
    }

    /// Waits until one server has accepted `version` and every other one has had its chance: once all servers
    /// that are running have accepted it, those that are not running are not waited for.
    ///
    /// With `silent_too` false, servers that were not reached last time count as having had their chance.
    async fn taken(&self, version: u64, wait: Duration, silent_too: bool) -> Result<(), RegistryError> {
        let mut outcomes = self.shared.outcomes.subscribe();
        let is_taken = |outcomes: &Vec<Outcome>| outcomes.iter().any(|outcome| outcome.taken >= version);
        let had_a_chance =
            |outcome: &Outcome| outcome.tried >= version || (!silent_too && outcome.trouble.is_some());
        let all_had_a_chance =
            |outcomes: &Vec<Outcome>| is_taken(outcomes) && outcomes.iter().all(had_a_chance);
        drop(tokio::time::timeout(wait, outcomes.wait_for(|outcomes| all_had_a_chance(outcomes))).await);
        let outcomes = outcomes.borrow();
        if is_taken(&outcomes) {
            return Ok(());
        }
        let registry = self.shared.name();
        let refusal = outcomes
            .iter()
            .find_map(|outcome| outcome.trouble.clone().filter(|(_, refused)| *refused));
        if let Some((reason, _)) = refusal {
            return Err(RegistryError::Refused { registry, reason });
        }
        let reason = outcomes.iter().find_map(|outcome| outcome.trouble.as_ref());
        Err(RegistryError::Unreachable {
            registry,
            reason: reason.map_or_else(
                || format!("no answer within {wait:?}"),
                |(reason, _)| reason.clone(),
            ),
        })
    }
}

#[async_trait]
impl Registry for Mq {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError> {
        if self.stop.is_cancelled() {
            return Err(RegistryError::Closed);
        }
        self.start_announcers()?;
        let at = (key.clone(), instance.id.clone());
        let version = self.shared.wish(|instances| {
            instances.insert(at.clone(), instance.clone());
        });
        let taken = self.taken(version, wait, true).await;
        if matches!(taken, Err(RegistryError::Refused { .. })) {
            self.shared.wish(|instances| drop(instances.remove(&at)));
        }
        taken
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        let at = (key.clone(), id.clone());
        if self.stop.is_cancelled() || !self.shared.wishes().instances.contains_key(&at) {
            return Ok(());
        }
        let version = self.shared.wish(|instances| drop(instances.remove(&at)));
        self.taken(version, DEREGISTER_WITHIN, false).await
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        if self.stop.is_cancelled() {
            return Err(RegistryError::Closed);
        }
        let runtime = cache::runtime(&self.shared.name())?;
        let start = |shown| {
            let (shared, stop, key) = (Arc::clone(&self.shared), self.stop.clone(), key.clone());
            let task = async move {
                stop.run_until_cancelled(shared.follow(key, shown)).await;
            };
            self.tasks.spawn_on(task, &runtime);
        };
        Ok(self.shared.followed.subscribe(key, start))
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_WITHIN, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                registry = self.shared.name(),
                "closing took too long; the lease expires by itself"
            );
        }
        if let Some(invoker) = self.shared.invoker.get() {
            invoker.shutdown().await;
        }
    }
}
