//! A provider's reports about itself: the `_admin` service, which every provider serves unless it is built
//! [without](crate::ProviderBuilder::without_admin), and [`Insight`], the same without a call.
//!
//! It is read-only. It is never announced in a registry, since each question concerns one provider and is
//! sent to its address; a token that guards the provider guards this service too. With the serializer `json`
//! the answers name their fields, for clients in other languages.
//!
//! ```
//! use rpc_core::provider::admin::AdminClient;
//! use rpc_core::{Invoker, Provider};
//!
//! # #[rpc_core::service(name = "doc.Greeter")] pub trait Greeter { async fn greet(&self, name: String) -> String; }
//! # struct Polite;
//! # impl Greeter for Polite { async fn greet(&self, name: String) -> String { name } }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = Provider::builder().serve(GreeterServer::new(Polite)).start().await?;
//! let invoker = Invoker::builder().direct([provider.local_addr()]).build().await?;
//! GreeterClient::refer(&invoker).greet("ada".to_owned()).await?;
//!
//! let admin = AdminClient::refer(&invoker);
//! let services = admin.services().await?;
//! let greeter = services.iter().find(|service| service.name == "doc.Greeter").expect("it is served");
//! assert_eq!((greeter.methods[0].name.as_str(), greeter.methods[0].calls), ("greet", 1));
//! assert_eq!(admin.overview().await?.connections, 1);
//! # invoker.shutdown().await;
//! # Ok(()) }
//! ```

use std::sync::{Arc, OnceLock, Weak};

use super::Core;
use crate::call::now;
use crate::error::{CallError, Code, Executed, RpcError};
use crate::filter::metrics::{self, MethodMetrics};
use crate::message::Served;
use crate::plugin::{self, PluginError};

mod reports;

pub use reports::{ConnectionReport, LimitsReport, MethodReport, Overview, PluginReport, ServiceReport};

/// The name of the [`Admin`] service.
pub const NAME: &str = AdminClient::NAME;

/// The reports of every provider.
#[rpc_core::service(name = "_admin")]
pub trait Admin {
    /// The provider as a whole.
    #[rpc(idempotent)]
    async fn overview(&self) -> Result<Overview, CallError>;
    /// Its services with their methods and the counts of their calls, in the order in which they were added.
    #[rpc(idempotent)]
    async fn services(&self) -> Result<Vec<ServiceReport>, CallError>;
    /// Its open connections, oldest first.
    #[rpc(idempotent)]
    async fn connections(&self) -> Result<Vec<ConnectionReport>, CallError>;
    /// All plug-ins of all kinds that are linked into its program, sorted by kind and name.
    #[rpc(idempotent)]
    async fn plugins(&self) -> Result<Vec<PluginReport>, CallError>;
    /// The counts of its `metrics` filter; empty without one.
    #[rpc(idempotent)]
    async fn metrics(&self) -> Result<Vec<MethodMetrics>, CallError>;
}

/// A view of a provider from its own process, as returned by [`Provider::insight`](crate::Provider::insight).
/// It does not keep the provider running, and still works while the provider drains and refuses calls.
#[derive(Debug, Clone)]
pub struct Insight(pub(super) Weak<Core>);

impl Insight {
    /// The provider as a whole; `None` when it has ended.
    #[must_use]
    pub fn overview(&self) -> Option<Overview> {
        self.0.upgrade().map(|core| Overview::of(&core))
    }

    /// Its services with their methods; empty when it has ended.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceReport> {
        let core = self.0.upgrade();
        core.map_or_else(Vec::new, |core| ServiceReport::all(&core))
    }

    /// Its open connections, oldest first; empty when it has ended.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionReport> {
        let connections = self.0.upgrade().map(|core| core.open.all()).unwrap_or_default();
        let time = now();
        let report = |connection: &Arc<_>| ConnectionReport::of(connection, time);
        connections.iter().map(report).collect()
    }

    /// The counts of its `metrics` filter; empty without one, or when it has ended.
    #[must_use]
    pub fn metrics(&self) -> Vec<MethodMetrics> {
        let core = self.0.upgrade();
        core.map_or_else(Vec::new, |core| metrics::of(&core.filters))
    }

    /// All plug-ins that are linked into this program.
    ///
    /// # Errors
    /// Two plug-ins of one kind claim one name.
    pub fn plugins(&self) -> Result<Vec<PluginReport>, PluginError> {
        Ok(plugin::linked()?.into_iter().map(PluginReport::from).collect())
    }
}

/// The service, created before the provider that it reports on.
#[derive(Debug, Default)]
pub(super) struct Mirror(Arc<OnceLock<Insight>>);

impl Mirror {
    /// The service to add to the provider.
    pub(super) fn served(&self) -> Served {
        Served::from(AdminServer::new(Self(Arc::clone(&self.0))))
    }

    /// Connects it to the provider.
    pub(super) fn show(&self, core: &Arc<Core>) {
        let first = self.0.set(Insight(Arc::downgrade(core)));
        debug_assert!(first.is_ok(), "a provider is built once");
    }

    fn insight(&self) -> Result<&Insight, CallError> {
        self.0.get().ok_or_else(gone)
    }
}

fn gone() -> CallError {
    let message = "the provider has not started yet or has ended; ask again";
    CallError::Rpc(RpcError::new(Code::Unavailable, Executed::No, message))
}

impl Admin for Mirror {
    async fn overview(&self) -> Result<Overview, CallError> {
        self.insight()?.overview().ok_or_else(gone)
    }

    async fn services(&self) -> Result<Vec<ServiceReport>, CallError> {
        Ok(self.insight()?.services())
    }

    async fn connections(&self) -> Result<Vec<ConnectionReport>, CallError> {
        Ok(self.insight()?.connections())
    }

    async fn metrics(&self) -> Result<Vec<MethodMetrics>, CallError> {
        Ok(self.insight()?.metrics())
    }

    async fn plugins(&self) -> Result<Vec<PluginReport>, CallError> {
        self.insight()?
            .plugins()
            .map_err(|error| CallError::Rpc(RpcError::new(Code::Internal, Executed::Yes, error.to_string())))
    }
}
