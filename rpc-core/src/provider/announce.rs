//! Telling the registry where the services are, and taking it back.

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
/// Pause between further attempts of a registry that fails without waiting.
const LATER_PAUSE: Duration = Duration::from_secs(1);

/// What one provider announces.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) instance: Instance,
    pub(super) keys: Vec<ServiceKey>,
    /// Whether the registry was made by the provider and is closed with it.
    pub(super) owned: bool,
}

/// The keys under which these services are announced: all but `_admin`, which is asked at its address.
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
    /// Announces all, waiting a little; what the registry has not taken by then is `false`.
    ///
    /// # Errors
    /// The registry refused for good.
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
                    tracing::warn!(%error, "not announced yet; it is tried on in the background");
                    complete = false;
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, "a registry broke while announcing");
                    complete = false;
                }
            }
        }
        Ok(complete)
    }

    /// Asks on until all is announced.
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

    /// Takes all back; a registry that does not answer is left to its lease.
    pub(super) async fn end(&self) {
        // All at once: a registry that is slow to answer is waited for once, not once a service.
        let mut all = tokio::task::JoinSet::new();
        for key in self.keys.clone() {
            let (registry, id) = (Arc::clone(&self.registry), self.instance.id.clone());
            all.spawn(async move {
                if let Err(error) = registry.deregister(&key, &id).await {
                    tracing::warn!(%error, %key, "not taken back; the lease will end by itself");
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a registry broke while an announcement was taken back");
            }
        }
        if self.owned {
            self.registry.close().await;
        }
    }
}
