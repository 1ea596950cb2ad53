//! The last known lists: how a list of instances becomes the [`Snapshot`] that subscribers see.
//!
//! A subscriber is woken only when something changed, and an instance that did not change keeps its `Arc`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::{Freshness, Instance, InstanceId, RegistryError, ServiceKey, Snapshot};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Instances by id, sorted like snapshots.
pub(crate) type ById = BTreeMap<InstanceId, Arc<Instance>>;

/// Publishes `instances` to the subscribers of `sender`.
pub(crate) fn show(sender: &watch::Sender<Snapshot>, instances: &ById, freshness: Freshness) {
    sender.send_if_modified(|shown| {
        let same = shown.freshness == freshness && shown.instances.iter().eq(instances.values());
        if !same {
            let known: BTreeMap<_, _> = shown.instances.iter().map(|known| (&known.id, known)).collect();
            let next = instances.iter().map(|(id, instance)| match known.get(id) {
                Some(known) if *known == instance => Arc::clone(known),
                _ => Arc::clone(instance),
            });
            *shown = Snapshot {
                instances: next.collect(),
                freshness,
            };
        }
        !same
    });
}

/// The registry cannot be reached: the published list stays and is marked as stale. A list that was never
/// known stays unknown.
#[cfg(feature = "etcd")]
pub(crate) fn show_stale(sender: &watch::Sender<Snapshot>) {
    sender.send_if_modified(|shown| {
        let was_fresh = shown.freshness == Freshness::Fresh;
        if was_fresh {
            shown.freshness = Freshness::Stale;
        }
        was_fresh
    });
}

/// How long a list without subscribers is kept up to date.
const KEPT_UNSEEN: Duration = Duration::from_secs(60);

/// The lists of all services with subscribers.
#[derive(Debug, Default)]
pub(crate) struct Followed(Mutex<BTreeMap<ServiceKey, Arc<watch::Sender<Snapshot>>>>);

impl Followed {
    /// A receiver of the list of `key`; `start` is called with its sender if no task maintains it yet.
    pub(crate) fn subscribe(
        &self,
        key: &ServiceKey,
        start: impl FnOnce(Arc<watch::Sender<Snapshot>>),
    ) -> watch::Receiver<Snapshot> {
        let mut followed = self.lock();
        if let Some(shown) = followed.get(key) {
            return shown.subscribe();
        }
        let (shown, receiver) = watch::channel(Snapshot::unknown());
        let shown = Arc::new(shown);
        followed.insert(key.clone(), Arc::clone(&shown));
        start(shown);
        receiver
    }

    /// Completes when the list of `key` has had no subscribers for a while; it has been dropped then.
    pub(crate) async fn until_unseen(&self, key: &ServiceKey, shown: &watch::Sender<Snapshot>) {
        loop {
            shown.closed().await;
            tokio::time::sleep(KEPT_UNSEEN).await;
            let mut followed = self.lock();
            if shown.receiver_count() == 0 {
                // Under the lock: a subscription from here on starts another task.
                followed.remove(key);
                return;
            }
        }
    }

    /// Publishes every list again, one after the other, so that an older one never follows a newer one.
    pub(crate) fn show_all(&self, picture: impl Fn(&ServiceKey) -> (ById, Freshness)) {
        for (key, shown) in self.lock().iter() {
            let (instances, freshness) = picture(key);
            show(shown, &instances, freshness);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceKey, Arc<watch::Sender<Snapshot>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The runtime on which a registry starts its tasks: that of its first use.
pub(crate) fn runtime(registry: &str) -> Result<Handle, RegistryError> {
    Handle::try_current().map_err(|_| RegistryError::Refused {
        registry: registry.to_owned(),
        reason: "it was used outside a tokio runtime; call it from async code".into(),
    })
}

/// The `host:port` addresses in the URL of a registry.
pub(crate) fn addresses(settings: &Settings) -> Result<Vec<String>, PluginError> {
    let text = settings.text("address").unwrap_or_default();
    let addresses = split_addresses(text);
    let is_bad = |address: &String| {
        let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        !matches!(port, Some(Ok(_)))
    };
    if addresses.is_empty() || addresses.iter().any(is_bad) {
        return Err(PluginError::Setting {
            key: "address".into(),
            reason: format!("`{text}`: expected `host:port[,host:port]`, as in `etcd://127.0.0.1:2379`"),
        });
    }
    Ok(addresses)
}

/// Addresses separated by commas.
pub(crate) fn split_addresses(text: &str) -> Vec<String> {
    let addresses = text
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty());
    addresses.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, weight: u32) -> Arc<Instance> {
        let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1"}"#).unwrap();
        instance.id = InstanceId(id.into());
        instance.weight = weight;
        Arc::new(instance)
    }

    fn by_id(list: &[Arc<Instance>]) -> ById {
        list.iter().map(|one| (one.id.clone(), Arc::clone(one))).collect()
    }

    #[test]
    fn subscriber_is_woken_by_changes_only() {
        let (sender, mut receiver) = watch::channel(Snapshot::unknown());
        receiver.mark_unchanged();
        show(&sender, &ById::new(), Freshness::Fresh);
        assert!(receiver.has_changed().unwrap(), "empty and fresh is not unknown");
        receiver.mark_unchanged();
        show(&sender, &ById::new(), Freshness::Fresh);
        assert!(!receiver.has_changed().unwrap());

        show(
            &sender,
            &by_id(&[instance("b", 1), instance("a", 1)]),
            Freshness::Fresh,
        );
        let before = receiver.borrow_and_update().clone();
        assert_eq!(before.instances[0].id.0, "a");
        show(
            &sender,
            &by_id(&[instance("a", 1), instance("b", 2)]),
            Freshness::Fresh,
        );
        let after = receiver.borrow_and_update().clone();
        assert!(Arc::ptr_eq(&before.instances[0], &after.instances[0]));
        assert_eq!(after.instances[1].weight, 2);
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn p17_unreachable_registry_leaves_the_last_list() {
        let (sender, receiver) = watch::channel(Snapshot::unknown());
        show_stale(&sender);
        assert_eq!(receiver.borrow().freshness, Freshness::Unknown);
        show(&sender, &by_id(&[instance("a", 1)]), Freshness::Fresh);
        show_stale(&sender);
        assert_eq!(receiver.borrow().freshness, Freshness::Stale);
        assert_eq!(receiver.borrow().instances.len(), 1);
    }
}
