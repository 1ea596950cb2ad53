//! The calling side: finds instances, keeps one multiplexed connection to each, and matches answers to calls.
//!
//! `cluster` knows who serves what, `endpoint` keeps the connections of one address, `connection` is one of them (`reader` reads it),
//! `in_flight` holds the calls that wait on it.

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
    /// A plug-in cannot be had.
    #[error(transparent)]
    Plugin(#[from] crate::plugin::PluginError),
}

/// What stubs call through: cheap to clone, shared by any number of stubs. Its tasks end when the last clone is dropped
/// or [`Invoker::shutdown`] is called.
#[derive(Debug, Clone)]
pub struct Invoker {
    remote: Arc<Remote>,
}

/// Figures of one invoker at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvokerStatistics {
    /// Calls that wait for an answer.
    pub in_flight: usize,
    /// Answers that came too late for their call, on the connections there are now.
    pub answers_dropped: u64,
}

impl Invoker {
    /// An invoker to be configured.
    pub fn builder() -> InvokerBuilder {
        InvokerBuilder::new()
    }

    /// Calls `service` without its trait, by the names of its methods.
    pub fn generic(&self, service: &str) -> Generic {
        Generic::new(self, service)
    }

    /// Its figures now.
    #[must_use]
    pub fn statistics(&self) -> InvokerStatistics {
        InvokerStatistics {
            in_flight: self.remote.cluster.in_flight(),
            answers_dropped: self.remote.cluster.answers_dropped(),
        }
    }

    /// What its `metrics` filter counted; nothing without one.
    #[must_use]
    pub fn metrics(&self) -> Vec<MethodMetrics> {
        metrics::of(&self.remote.filters)
    }

    /// A place of the `responseCallback` pool, for an outcome that is not the answer of one call.
    ///
    /// # Errors
    /// `Overloaded` when all are taken, `Cancelled` after the shutdown.
    pub fn reserve_callback(&self) -> Result<CallbackSlot, crate::RpcError> {
        self.remote.callbacks().reserve().map(CallbackSlot)
    }

    /// Ends all calls with `Cancelled`, closes all connections and waits for its tasks. Calls that are
    /// queued, one-way ones for example, are still written while the peer accepts them, for at most ten seconds.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the stop under way; only the wait for it ends.
    pub async fn shutdown(&self) {
        self.remote.shutdown().await;
    }

    /// What stubs call through.
    pub(crate) fn dispatch(&self) -> Arc<dyn Dispatch> {
        Arc::clone(&self.remote) as Arc<dyn Dispatch>
    }
}
