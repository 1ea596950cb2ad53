//! The embedded registry's protocol: what members and clients say to a server, as a service over our own RPC.
//!
//! docs/registry.md has the table. Fields are encoded by position: new ones come last and have a default.

use std::collections::BTreeMap;

use rpc_core::registry::{Instance, InstanceId, ServiceKey};
use serde::{Deserialize, Serialize};

/// Soft state about who serves what: members say it again and again, and it ends when they stop.
#[rpc_core::service(name = "hc.Registry")]
pub trait Directory {
    /// Puts `announce` in the place of all that its member announced before, for one lease.
    #[rpc(idempotent)]
    async fn announce(&self, announce: Announce) -> Result<Announced, Refusal>;

    /// The picture of one service: at once if it is not the one the asker knows, else when it changes or the wait ends.
    #[rpc(idempotent, long_poll)]
    async fn watch(&self, watch: Watch) -> Picture;
}

/// All that one member announces. Without instances it takes everything back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Who says so: 128 random bits as hex digits, new at each start of a process.
    pub member: String,
    /// Rises with each announcement of the member; one that arrives after a later one changes nothing.
    pub round: u64,
    /// What it serves.
    pub instances: Vec<Listed>,
}

/// The server has taken an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// How long it holds, milliseconds; members say it again three times as often.
    pub lease_ms: u64,
}

/// Asks for the picture of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Of which.
    pub key: ServiceKey,
    /// True: what the server's own registry shows too. False: only what was announced to this server itself, which is
    /// what servers ask each other for, so that nobody is kept alive by hearsay.
    pub all: bool,
    /// The `state` of the last picture, to wait for another one.
    pub known: Option<u64>,
    /// How long to wait for another one, milliseconds.
    pub wait_ms: u64,
}

/// The picture of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// A number that is equal for equal pictures of one server.
    pub state: u64,
    /// The server does not know everything yet: what it does not list may exist all the same.
    pub warming: bool,
    /// Who serves it, sorted by instance id.
    pub instances: Vec<Listed>,
}

/// One instance under one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    /// What it serves.
    pub key: ServiceKey,
    /// Who.
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
    /// Whatever else.
    pub meta: BTreeMap<String, String>,
}

impl Listed {
    /// `instance` as it is said under `key`.
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

/// Why a server does not take an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// One member announces too much.
    #[error("{instances} instances of one member, at most {limit} are allowed")]
    TooMany {
        /// How many it announced.
        instances: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The server holds as much as it may.
    #[error("the server holds {limit} instances already; use etcd for a cluster of this size")]
    Full {
        /// How many it may hold.
        limit: usize,
    },
}
