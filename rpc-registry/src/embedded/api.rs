//! The embedded registry's protocol: the requests of members and clients to a server, as a service over our
//! own RPC.
//!
//! docs/registry.md has the table. Fields are encoded by position: new ones come last and have a default.

use std::collections::BTreeMap;

use rpc_core::registry::{Instance, InstanceId, ServiceKey};
use serde::{Deserialize, Serialize};

/// Soft state about the instances of each service: members announce them again and again, and they expire
/// when the member stops.
#[rpc_core::service(name = "hc.Registry")]
pub trait Directory {
    /// Replaces everything that its member announced before by `announce`, for one lease.
    #[rpc(idempotent)]
    async fn announce(&self, announce: Announce) -> Result<Announced, Refusal>;

    /// The list of one service: at once if it differs from the one that the client knows, else when it
    /// changes or the wait ends.
    #[rpc(idempotent, long_poll)]
    async fn watch(&self, watch: Watch) -> Picture;
}

/// Everything that one member announces. Without instances it withdraws everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The member's identity: 128 random bits as hex digits, new at each start of a process.
    pub member: String,
    /// Increases with each announcement of the member; one that arrives after a later one has no effect.
    pub round: u64,
    /// What it serves.
    pub instances: Vec<Listed>,
}

/// The server has accepted an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// How long it is valid, in milliseconds; members repeat it three times as often.
    pub lease_ms: u64,
}

/// Asks for the list of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The service.
    pub key: ServiceKey,
    /// True: include what the server's own registry shows. False: only what was announced to this server
    /// itself; that is what servers ask each other for, so that no instance is kept alive by hearsay.
    pub all: bool,
    /// The `state` of the last list, to wait for a different one.
    pub known: Option<u64>,
    /// How long to wait for a different one, in milliseconds.
    pub wait_ms: u64,
}

/// The list of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// A number that is equal for equal lists of one server.
    pub state: u64,
    /// The server does not know everything yet: instances that it does not list may still exist.
    pub warming: bool,
    /// Its instances, sorted by instance id.
    pub instances: Vec<Listed>,
}

/// One instance under one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    /// What it serves.
    pub key: ServiceKey,
    /// Its identity.
    pub id: InstanceId,
    /// `host:port` to call.
    pub address: String,
    /// A name for people.
    pub name: String,
    /// `host:port` of its HTTP server.
    pub http: Option<String>,
    /// Share of the load; 100 is usual, 0 takes none.
    pub weight: u32,
    /// Where it runs.
    pub zone: Option<String>,
    /// Wall-clock start of the process, milliseconds since the epoch.
    pub started_ms: u64,
    /// Names of the serializers it understands.
    pub serializers: Vec<String>,
    /// Further properties.
    pub meta: BTreeMap<String, String>,
}

impl Listed {
    /// `instance` as announced under `key`.
    #[must_use]
    pub fn new(key: &ServiceKey, instance: &Instance) -> Self {
        let instance = instance.clone();
        Self {
            key: key.clone(),
            id: instance.id,
            address: instance.address,
            name: instance.name,
            http: instance.http,
            weight: instance.weight,
            zone: instance.zone,
            started_ms: instance.started_ms,
            serializers: instance.serializers,
            meta: instance.meta,
        }
    }

    /// The key and the instance.
    #[must_use]
    pub fn into_parts(self) -> (ServiceKey, Instance) {
        let instance = Instance {
            id: self.id,
            address: self.address,
            name: self.name,
            http: self.http,
            weight: self.weight,
            zone: self.zone,
            started_ms: self.started_ms,
            serializers: self.serializers,
            meta: self.meta,
        };
        (self.key, instance)
    }
}

/// Why a server rejects an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// One member announces too much.
    #[error("{instances} instances of one member, at most {limit} are allowed")]
    TooMany {
        /// The number it announced.
        instances: usize,
        /// The number allowed.
        limit: usize,
    },
    /// The server has reached its own limit.
    #[error("the server holds {limit} instances already; use etcd for a cluster of this size")]
    Full {
        /// Its limit.
        limit: usize,
    },
}
