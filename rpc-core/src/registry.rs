//! The registry seam: who offers a service, and where. Implementations live in `rpc-registry` or in a user's crate.
//!
//! A registry hands out whole pictures, never deltas, and keeps the last known picture when it cannot be reached: a
//! list never becomes empty because a registry is down.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::plugin::{PluginError, Settings, Source};

crate::plugin_kind! {
    /// A registry that can be named by the scheme of a URL, as in `etcd://127.0.0.1:2379`.
    pub struct RegistryPlugin for dyn Registry as "registry"
}

/// What is looked up: one service in one version and group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// `default` unless said otherwise.
    pub group: String,
    /// The name given to `#[service(name = ..)]`.
    pub service: String,
    /// `1.0` unless said otherwise.
    pub version: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.group, self.service, self.version)
    }
}

/// Identity of one running process at a registry: 128 random bits as 32 hex digits, new at each start, so that a
/// restarted process is never removed by the late farewell of its predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl InstanceId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process that serves a service. The JSON form (without `id`, which is part of the key) is the value in etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Who.
    #[serde(skip_serializing, default = "no_id")]
    pub id: InstanceId,
    /// `host:port` to call.
    pub address: String,
    /// A name for people; a broker's name is stable across restarts.
    #[serde(default)]
    pub name: String,
    /// `host:port` of its HTTP server, if it has one.
    #[serde(default)]
    pub http: Option<String>,
    /// Share of the load relative to its peers; 100 is usual, 0 takes none.
    #[serde(default = "full_weight")]
    pub weight: u32,
    /// Where it runs, if it says so.
    #[serde(default)]
    pub zone: Option<String>,
    /// Wall-clock start of the process, milliseconds since the epoch.
    #[serde(default)]
    pub started_ms: u64,
    /// Names of the serializers it understands.
    #[serde(default)]
    pub serializers: Vec<String>,
    /// Whatever else it wants to be known by.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

impl Instance {
    /// An instance of which only the address is known, which is then its id and name.
    pub(crate) fn at(address: &str) -> Self {
        Self {
            id: InstanceId(address.to_owned()),
            address: address.to_owned(),
            name: address.to_owned(),
            http: None,
            weight: full_weight(),
            zone: None,
            started_ms: 0,
            serializers: Vec::new(),
            meta: BTreeMap::new(),
        }
    }
}

fn no_id() -> InstanceId {
    InstanceId(String::new())
}

const fn full_weight() -> u32 {
    100
}

/// How much a picture can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing has been heard yet: wait, up to the call's deadline.
    Unknown,
    /// The registry is reachable and this is what it says.
    Fresh,
    /// The registry cannot be reached: the last known picture.
    Stale,
}

/// One whole picture of who serves a key, sorted by instance id.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The instances.
    pub instances: Arc<[Arc<Instance>]>,
    /// How much it can be trusted.
    pub freshness: Freshness,
}

impl Snapshot {
    /// The picture before anything was heard.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            instances: Arc::from([]),
            freshness: Freshness::Unknown,
        }
    }
}

/// Why a registry refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// It cannot be reached; registrations go on being tried in the background all the same.
    #[error(
        "registry `{registry}` is unreachable: {reason}; check that it runs and that its address is right"
    )]
    Unreachable {
        /// URL or name.
        registry: String,
        /// What the transport said.
        reason: String,
    },
    /// It answered with a refusal that trying again does not mend.
    #[error("registry `{registry}` refused: {reason}")]
    Refused {
        /// URL or name.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// It was closed.
    #[error("the registry is closed")]
    Closed,
}

/// Where instances announce themselves and are found.
///
/// The implementer owns its tasks, keeps every registration alive (renewing leases, registering again after a lost
/// one, without a limit on attempts) and keeps every subscription true. The caller registers only what is bound and
/// listening, and calls [`Registry::close`] before it drops the last handle.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug + 'static {
    /// Announces `instance` under `key` and keeps it announced until [`Registry::deregister`] or [`Registry::close`].
    /// Returns when the registry has taken it, or after `wait` with [`RegistryError::Unreachable`], in which case it
    /// goes on trying in the background.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the wish in place; only the wait for its outcome ends.
    ///
    /// # Errors
    /// `Unreachable` (retried in the background), `Refused` (not retried), `Closed`.
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError>;

    /// Takes one announcement back. Forgetting an unknown one is not an error.
    ///
    /// # Errors
    /// `Unreachable` if the registry could not be told within two seconds; its lease will end by itself.
    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError>;

    /// A receiver of whole pictures of `key`, starting with the one known now (perhaps [`Snapshot::unknown`]).
    ///
    /// # Errors
    /// `Closed`.
    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError>;

    /// Takes every announcement back, ends every task and waits for them (at most three seconds).
    async fn close(&self);
}

/// The registry that a builder was given, and whether it was made here from a URL, so that whoever has it closes it.
pub(crate) fn open(source: Source<dyn Registry>) -> Result<(Arc<dyn Registry>, bool), PluginError> {
    match source {
        Source::Value(registry) => Ok((registry, false)),
        Source::Named(url) => {
            let (scheme, settings) = Settings::from_url(&url)?;
            Ok((RegistryPlugin::build(&scheme, &settings)?, true))
        }
    }
}
