//! The registry within one process: all handles of the same `local://name` see each other. For tests,
//! examples and programs that call themselves. It has no leases: a handle's announcements end when the handle
//! is closed or dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{
    Freshness, Instance, InstanceId, Registry, RegistryError, RegistryPlugin, ServiceKey, Snapshot,
};
use tokio::sync::watch;

use crate::cache::{self, ById};

rpc_core::plugin!(RegistryPlugin, "local", |settings| {
    settings.only(&["address"])?;
    Ok(Arc::new(Local::new(settings.text("address").unwrap_or(""))))
});

/// All registries of this process that still have a handle.
static NAMESPACES: LazyLock<Mutex<HashMap<String, Weak<Namespace>>>> = LazyLock::new(Mutex::default);

/// The state shared by all handles of one name.
#[derive(Debug, Default)]
struct Namespace {
    services: Mutex<BTreeMap<ServiceKey, Service>>,
}

#[derive(Debug)]
struct Service {
    instances: ById,
    shown: watch::Sender<Snapshot>,
}

/// The registry `local`: a handle to one of this process's registries.
#[derive(Debug)]
pub struct Local {
    namespace: Arc<Namespace>,
    mine: Mutex<Mine>,
}

#[derive(Debug, Default)]
struct Mine {
    announced: BTreeSet<(ServiceKey, InstanceId)>,
    closed: bool,
}

/// A panic while one of these short locks was held leaves nothing half done: they cover single map
/// operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Local {
    /// A handle to the registry named `name`; handles of the same name see each other's instances.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut namespaces = lock(&NAMESPACES);
        namespaces.retain(|_, namespace| namespace.strong_count() > 0);
        let known = namespaces.get(name).and_then(Weak::upgrade);
        let namespace = known.unwrap_or_else(|| {
            let namespace = Arc::<Namespace>::default();
            namespaces.insert(name.to_owned(), Arc::downgrade(&namespace));
            namespace
        });
        Self {
            namespace,
            mine: Mutex::default(),
        }
    }

    fn withdraw(&self) {
        let mut mine = lock(&self.mine);
        mine.closed = true;
        for (key, id) in std::mem::take(&mut mine.announced) {
            self.namespace.change(&key, |instances| {
                instances.remove(&id);
            });
        }
    }
}

impl Namespace {
    fn change<T>(&self, key: &ServiceKey, change: impl FnOnce(&mut ById) -> T) -> T {
        let mut services = lock(&self.services);
        let service = services.entry(key.clone()).or_insert_with(|| Service {
            instances: ById::new(),
            shown: watch::channel(Snapshot::unknown()).0,
        });
        let result = change(&mut service.instances);
        cache::show(&service.shown, &service.instances, Freshness::Fresh);
        result
    }

    fn subscribe(&self, key: &ServiceKey) -> watch::Receiver<Snapshot> {
        self.change(key, |_| ());
        let services = lock(&self.services);
        match services.get(key) {
            Some(service) => service.shown.subscribe(),
            // Services are never removed.
            None => watch::channel(Snapshot::unknown()).1,
        }
    }
}

#[async_trait]
impl Registry for Local {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        _: Duration,
    ) -> Result<(), RegistryError> {
        // Held until the list has changed; otherwise a close in between would miss this instance.
        let mut mine = lock(&self.mine);
        if mine.closed {
            return Err(RegistryError::Closed);
        }
        mine.announced.insert((key.clone(), instance.id.clone()));
        self.namespace.change(key, |instances| {
            instances.insert(instance.id.clone(), Arc::new(instance.clone()));
        });
        Ok(())
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        let mut mine = lock(&self.mine);
        if mine.announced.remove(&(key.clone(), id.clone())) {
            self.namespace.change(key, |instances| {
                instances.remove(id);
            });
        }
        Ok(())
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        if lock(&self.mine).closed {
            return Err(RegistryError::Closed);
        }
        Ok(self.namespace.subscribe(key))
    }

    async fn close(&self) {
        self.withdraw();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_ends_with_its_last_handle() {
        let name = "namespace_ends_with_its_last_handle";
        let (one, other) = (Local::new(name), Local::new(name));
        assert!(Arc::ptr_eq(&one.namespace, &other.namespace));
        let namespace = Arc::downgrade(&one.namespace);
        drop((one, other));
        assert!(namespace.upgrade().is_none());
    }
}
