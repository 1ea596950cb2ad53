//! Registries for [`rpc_core`]: which instances offer a service, and where.
//!
//! | URL | value | what it is |
//! |---|---|---|
//! | `local://name` | [`local`] | this process: tests, examples, programs that call themselves |
#![cfg_attr(
    feature = "etcd",
    doc = "| `etcd://h:p[,h:p]` | [`etcd`] | etcd: the usual one for a cluster |"
)]
//! | `mq://h:p[,h:p]` | [`mq`] | the registry that brokers carry with them: one to three nodes without etcd |
//!
//! [`kept`] around any of them (`?keep_dir=FOLDER` in a URL) stores the lists on disk, for a start without
//! the registry.
//!
//! All of them keep announcements alive with unlimited attempts, and keep serving the last known list when
//! they cannot be reached. Your own registry should pass the same [`contract`] as these.
//!
//! ```
//! use std::time::Duration;
//! use rpc_core::registry::{Instance, InstanceId, ServiceKey};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = rpc_registry::local("example"); // or a URL: RegistryPlugin::build("local", ..)
//! let key = ServiceKey { group: "default".into(), service: "hc.Greeter".into(), version: "1.0".into() };
//! let mut me: Instance = serde_json::from_str(r#"{"address": "127.0.0.1:9090"}"#)?;
//! me.id = InstanceId::random();
//!
//! registry.register(&key, &me, Duration::from_secs(2)).await?;
//! let mut pictures = registry.subscribe(&key)?;
//! let picture = pictures.wait_for(|picture| !picture.instances.is_empty()).await?.clone();
//! assert_eq!(picture.instances[0].address, "127.0.0.1:9090");
//!
//! registry.close().await; // withdraws the announcement
//! # Ok(())
//! # }
//! ```

mod backoff;
mod cache;
pub mod contract;
pub mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
mod kept;
mod local;

pub use embedded::{EmbeddedRegistry, Mq, MqBuilder};
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdBuilder};
pub use kept::Kept;
pub use local::Local;

use std::path::PathBuf;
use std::sync::Arc;

use rpc_core::plugin::Settings;
use rpc_core::registry::Registry;

/// The registry of this process named `name`.
#[must_use]
pub fn local(name: &str) -> Arc<dyn Registry> {
    Arc::new(Local::new(name))
}

/// The registry in the etcd cluster whose members are at `endpoints` (`host:port`, several separated by
/// commas), with a lease of 10 s and no user; see [`Etcd::builder`] for other settings. It connects at its
/// first use, and keeps retrying.
#[cfg(feature = "etcd")]
#[must_use]
pub fn etcd(endpoints: &str) -> Arc<dyn Registry> {
    Arc::new(Etcd::builder(endpoints).build())
}

/// The registry served by the brokers at `servers` (`host:port`, several separated by commas): this process
/// announces itself at all of them and merges their answers, and any one suffices; see [`Mq::builder`] for
/// other settings. It connects at its first use, and keeps retrying.
#[must_use]
pub fn mq(servers: &str) -> Arc<dyn Registry> {
    Arc::new(Mq::builder(servers).build())
}

/// `registry`, with the last list of each service kept in `folder`: a process that starts while the registry
/// is away calls the instances it knew before. Closing it closes `registry`. The same as the setting
/// `keep_dir` of a URL.
///
/// ```
/// # let folder = std::env::temp_dir().join("hc-rpc-kept-example");
/// let registry = rpc_registry::kept(rpc_registry::mq("10.0.0.1:7070,10.0.0.2:7070"), folder);
/// let invoker = rpc_core::Invoker::builder().registry(registry);
/// # drop(invoker);
/// ```
#[must_use]
pub fn kept(registry: Arc<dyn Registry>, folder: impl Into<PathBuf>) -> Arc<dyn Registry> {
    Arc::new(Kept::new(registry, folder))
}

/// Wraps a registry as the settings of its URL require.
fn as_set(registry: Arc<dyn Registry>, settings: &Settings) -> Arc<dyn Registry> {
    match settings.text(KEEP_DIR) {
        Some(folder) => kept(registry, folder),
        None => registry,
    }
}

/// The setting for [`kept`].
const KEEP_DIR: &str = "keep_dir";
