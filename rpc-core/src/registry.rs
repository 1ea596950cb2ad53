//! The registry interface: which instances offer a service, and where. Implementations live in `rpc-registry`
//! or in your own crate.
//!
//! A registry publishes complete lists, never deltas, and keeps the last known list when it cannot be
//! reached: a list never becomes empty because a registry is down.

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

/// The key of a look-up: one service in one version and group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Default `default`.
    pub group: String,
    /// The name given to `#[service(name = ..)]`.
    pub service: String,
    /// Default `1.0`.
    pub version: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.group, self.service, self.version)
    }
}

/// Identity of one running process at a registry: 128 random bits as 32 hex digits, new at each start, so
/// that a restarted process is never removed by a late deregistration of its predecessor.
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
    /// Its identity.
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
    /// The zone it runs in, if set.
    #[serde(default)]
    pub zone: Option<String>,
    /// Wall-clock start of the process, milliseconds since the epoch.
    #[serde(default)]
    pub started_ms: u64,
    /// Names of the serializers it understands.
    #[serde(default)]
    pub serializers: Vec<String>,
    /// Further properties, for any purpose.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

impl Instance {
    /// An instance of which only the address is known, which then serves as its id and name.
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

/// How far a list can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing is known yet: wait, up to the call's deadline.
    Unknown,
    /// The registry is reachable and this is its current list.
    Fresh,
    /// The registry cannot be reached; this is the last known list.
    Stale,
}

/// A complete list of the instances that serve a key, sorted by instance id.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The instances.
    pub instances: Arc<[Arc<Instance>]>,
    /// How much it can be trusted.
    pub freshness: Freshness,
}

impl Snapshot {
    /// The list before anything is known.
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
    /// It cannot be reached; registrations are still retried in the background.
    #[error(
        "registry `{registry}` is unreachable: {reason}; check that it runs and that its address is right"
    )]
    Unreachable {
        /// URL or name.
        registry: String,
        /// The transport's error.
        reason: String,
    },
    /// It refused, and retrying will not help.
    #[error("registry `{registry}` refused: {reason}")]
    Refused {
        /// URL or name.
        registry: String,
        /// The reason.
        reason: String,
    },
    /// It was closed.
    #[error("the registry is closed")]
    Closed,
}

/// Where instances are announced and found.
///
/// The implementer owns its tasks, keeps every registration alive (renews leases, and registers again after a
/// lost one, without a limit on attempts) and keeps every subscription up to date. The caller registers only
/// instances that are bound and listening, and calls [`Registry::close`] before it drops the last handle.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug + 'static {
    /// Announces `instance` under `key` and keeps it announced until [`Registry::deregister`] or
    /// [`Registry::close`]. Returns when the registry has accepted it, or after `wait` with
    /// [`RegistryError::Unreachable`], in which case it keeps trying in the background.
    ///
    /// # Cancel safety
    /// Dropping the future does not withdraw the registration; only the wait for its outcome ends.
    ///
    /// # Errors
    /// `Unreachable` (retried in the background), `Refused` (not retried), `Closed`.
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError>;

    /// Withdraws one announcement. Withdrawing an unknown one is not an error.
    ///
    /// # Errors
    /// `Unreachable` if the registry could not be reached within two seconds; the lease will expire by
    /// itself.
    ///
    /// # Cancel safety
    /// Dropping the future ends only the wait for the outcome: the announcement is no longer kept alive.
    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError>;

    /// A receiver of the complete lists of `key`, starting with the one known now (perhaps
    /// [`Snapshot::unknown`]).
    ///
    /// # Errors
    /// `Closed`.
    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError>;

    /// Withdraws every announcement, ends every task and waits for them (at most three seconds).
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait; announcements not withdrawn by then may be left to their leases.
    async fn close(&self);
}

/// Opens the registry that a builder was given; returns whether it was created here from a URL and therefore
/// has to be closed by its holder.
pub(crate) fn open(source: Source<dyn Registry>) -> Result<(Arc<dyn Registry>, bool), PluginError> {
    match source {
        Source::Value(registry) => Ok((registry, false)),
        Source::Named(url) => {
            let (scheme, settings) = Settings::from_url(&url)?;
            Ok((RegistryPlugin::build(&scheme, &settings)?, true))
        }
    }
}
