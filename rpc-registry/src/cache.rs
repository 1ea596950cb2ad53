//! Pictures: how a list of instances becomes the [`Snapshot`] that subscribers see, and stays the last known one.
//!
//! A subscriber is woken only when something changed, and an instance that did not change keeps its `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpc_core::registry::{Freshness, Instance, InstanceId, RegistryError, Snapshot};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Instances by id: sorted, as pictures are.
pub(crate) type ById = BTreeMap<InstanceId, Arc<Instance>>;

/// Shows `instances` to the subscribers of `sender`.
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

/// The registry cannot be reached: what is shown stays, and says that it is old. What was never known stays unknown.
pub(crate) fn show_stale(sender: &watch::Sender<Snapshot>) {
    sender.send_if_modified(|shown| {
        let was_fresh = shown.freshness == Freshness::Fresh;
        if was_fresh {
            shown.freshness = Freshness::Stale;
        }
        was_fresh
    });
}

/// The runtime on which a registry starts its tasks: that of its first use.
pub(crate) fn runtime(registry: &str) -> Result<Handle, RegistryError> {
    Handle::try_current().map_err(|_| RegistryError::Refused {
        registry: registry.to_owned(),
        reason: "it was used outside of a tokio runtime; call it from async code".into(),
    })
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

    #[test]
    fn unreachable_registry_leaves_the_last_list() {
        let (sender, receiver) = watch::channel(Snapshot::unknown());
        show_stale(&sender);
        assert_eq!(receiver.borrow().freshness, Freshness::Unknown);
        show(&sender, &by_id(&[instance("a", 1)]), Freshness::Fresh);
        show_stale(&sender);
        assert_eq!(receiver.borrow().freshness, Freshness::Stale);
        assert_eq!(receiver.borrow().instances.len(), 1);
    }
}
