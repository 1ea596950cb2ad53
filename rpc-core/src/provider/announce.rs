//! Announces the services in the registry, and withdraws them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{ProviderError, admin};
use crate::message::Route;
use crate::registry::{Instance, Registry, RegistryError, ServiceKey};

/// How long the start waits for the registry.
const START_WAIT: Duration = Duration::from_secs(2);
/// How long each further attempt waits.
const LATER_WAIT: Duration = Duration::from_secs(30);
/// Pause between further attempts if the registry fails without waiting.
const LATER_PAUSE: Duration = Duration::from_secs(1);

/// What one provider announces.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) instance: Instance,
    pub(super) keys: Vec<ServiceKey>,
    /// Whether the provider created the registry and closes it.
    pub(super) owned: bool,
}

/// The keys under which these services are announced: all except `_admin`, which is called at its address.
pub(super) fn keys<'a>(routes: impl Iterator<Item = &'a Arc<Route>>) -> Vec<ServiceKey> {
    let announced = routes.filter(|route| route.service != admin::NAME);
    let key = |route: &Arc<Route>| ServiceKey {
        group: route.group.clone(),
        service: route.service.clone(),
        version: route.version.clone(),
    };
    announced.map(key).collect()
}

impl Announcement {
    /// Announces all services, waiting briefly; returns `false` if the registry has not accepted all of them
    /// by then.
    ///
    /// # Errors
    /// The registry refused permanently.
    pub(super) async fn begin(&self) -> Result<bool, ProviderError> {
        let mut all = tokio::task::JoinSet::new();
        for key in self.keys.clone() {
            let (registry, instance) = (Arc::clone(&self.registry), self.instance.clone());
            all.spawn(async move { registry.register(&key, &instance, START_WAIT).await });
        }
        let mut complete = true;
        while let Some(outcome) = all.join_next().await {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error @ RegistryError::Unreachable { .. })) => {
                    tracing::warn!(%error, "not announced yet; retrying in the background");
                    complete = false;
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, "a registry panicked while announcing");
                    complete = false;
                }
            }
        }
        Ok(complete)
    }

    /// Retries until all are announced.
    pub(super) async fn finish(self, registered: watch::Sender<bool>) {
        for key in &self.keys {
            while let Err(error) = self.registry.register(key, &self.instance, LATER_WAIT).await {
                if matches!(error, RegistryError::Refused { .. } | RegistryError::Closed) {
                    tracing::error!(%error, %key, "the registry refuses to announce the service");
                    return;
                }
                tokio::time::sleep(LATER_PAUSE).await;
            }
        }
        registered.send_replace(true);
    }

    /// Withdraws all; if a registry does not answer, the lease expires by itself.
    pub(super) async fn end(&self) {
        // All at once: a slow registry is waited for once, not once per service.
        let mut all = tokio::task::JoinSet::new();
        for key in self.keys.clone() {
            let (registry, id) = (Arc::clone(&self.registry), self.instance.id.clone());
            all.spawn(async move {
                if let Err(error) = registry.deregister(&key, &id).await {
                    tracing::warn!(%error, %key, "not withdrawn; the lease will expire by itself");
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a registry panicked while an announcement was withdrawn");
            }
        }
        if self.owned {
            self.registry.close().await;
        }
    }
}
