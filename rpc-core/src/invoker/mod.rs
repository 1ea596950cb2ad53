//! The calling side: finds instances, keeps one multiplexed connection to each, and matches answers to calls.
//!
//! `cluster` knows the instances of each service, `endpoint` maintains the connections of one address,
//! `connection` is one of them (`reader` is the task that reads it), `in_flight` holds the calls that wait
//! for an answer on it.

use std::sync::Arc;

use crate::dispatch::Dispatch;
use crate::filter::metrics::{self, MethodMetrics};
use crate::generic::Generic;

pub(crate) mod attempts;
mod builder;
pub(crate) mod callback_pool;
mod calling;
mod cluster;
mod connection;
mod endpoint;
mod in_flight;
mod in_turn;
mod reader;
mod remote;
mod slot_guard;
mod streams;

pub use builder::InvokerBuilder;
pub use callback_pool::CallbackSlot;

pub(crate) use endpoint::Endpoint;
use remote::Remote;

/// Why an invoker cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvokerError {
    /// Neither a registry nor addresses, or both.
    #[error("an invoker needs `.registry(..)` or `.direct([..])`, one of them")]
    Source,
    /// A plug-in cannot be created.
    #[error(transparent)]
    Plugin(#[from] crate::plugin::PluginError),
}

/// The handle that stubs call through: cheap to clone, shared by any number of stubs. Its tasks end when the
/// last clone is dropped or [`Invoker::shutdown`] is called.
#[derive(Debug, Clone)]
pub struct Invoker {
    remote: Arc<Remote>,
}

/// Statistics of one invoker at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvokerStatistics {
    /// Calls that wait for an answer.
    pub in_flight: usize,
    /// Answers that arrived after their call had ended, on the current connections.
    pub answers_dropped: u64,
}

impl Invoker {
    /// A builder with the default settings.
    pub fn builder() -> InvokerBuilder {
        InvokerBuilder::new()
    }

    /// Calls `service` without its trait, by the names of its methods.
    pub fn generic(&self, service: &str) -> Generic {
        Generic::new(self, service)
    }

    /// Current statistics.
    #[must_use]
    pub fn statistics(&self) -> InvokerStatistics {
        InvokerStatistics {
            in_flight: self.remote.cluster.in_flight(),
            answers_dropped: self.remote.cluster.answers_dropped(),
        }
    }

    /// The counts of its `metrics` filter; empty without one.
    #[must_use]
    pub fn metrics(&self) -> Vec<MethodMetrics> {
        metrics::of(&self.remote.filters)
    }

    /// A slot of the `responseCallback` pool, for an outcome that is not the answer of one call.
    ///
    /// # Errors
    /// `Overloaded` when all are taken, `Cancelled` after the shutdown.
    pub fn reserve_callback(&self) -> Result<CallbackSlot, crate::RpcError> {
        self.remote.callbacks().reserve().map(CallbackSlot)
    }

    /// Ends all calls with `Cancelled`, closes all connections and waits for its tasks. Queued frames, such
    /// as those of oneway calls, are still written while the peer accepts them, for at most ten seconds.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown, only the wait for it.
    pub async fn shutdown(&self) {
        self.remote.shutdown().await;
    }

    /// The interface that stubs call through.
    pub(crate) fn dispatch(&self) -> Arc<dyn Dispatch> {
        Arc::clone(&self.remote) as Arc<dyn Dispatch>
    }
}
