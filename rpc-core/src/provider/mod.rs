//! The serving side: accepts connections, routes requests to services, answers, and leaves gracefully.
//!
//! A provider is announced in a registry only after it is bound and listens, and taken back before it stops.

use std::time::Duration;

use tokio::sync::watch;

mod builder;

pub use builder::ProviderBuilder;

/// Why a provider does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The address cannot be bound.
    #[error(
        "cannot listen on `{address}`: {reason}; check that it is an address of this machine and not taken"
    )]
    Listen {
        /// What was asked for.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// An address that others cannot call would have been announced.
    #[error(
        "`{address}` cannot be announced, since others cannot call it; set an address with `.advertise(\"host:port\")`"
    )]
    Advertise {
        /// The address in question.
        address: String,
    },
    /// Two services under one name, version and group.
    #[error(
        "service `{service}` version `{version}` group `{group}` is served twice; remove one or give it another version or group"
    )]
    Duplicate {
        /// Its name.
        service: String,
        /// Its version.
        version: String,
        /// Its group.
        group: String,
    },
    /// A plug-in cannot be had.
    #[error(transparent)]
    Plugin(#[from] crate::plugin::PluginError),
    /// The registry refused for good.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
    /// This build cannot do it.
    #[error("unsupported: {reason}")]
    Unsupported {
        /// What is missing.
        reason: &'static str,
    },
}

/// A running provider. Dropping it stops accepting and lets what runs finish; [`Provider::shutdown`] waits for that.
#[derive(Debug)]
pub struct Provider {
    address: String,
    registered: watch::Receiver<bool>,
}

impl Provider {
    /// A provider to be configured.
    #[must_use]
    pub fn builder() -> ProviderBuilder {
        ProviderBuilder::new()
    }

    /// The address it is bound to, with the port that the system chose where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> &str {
        &self.address
    }

    /// Whether every service is announced in the registry (at once true without one): for readiness.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.clone()
    }

    /// Takes the announcements back, tells the peers to go away, waits until what runs has finished, at most `deadline`
    /// in all, and closes.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the stop under way; only the wait for it ends.
    pub async fn shutdown(self, deadline: Duration) {
        drop((self, deadline));
    }
}
