//! The registry of one process: all who name the same `local://name` see each other. For tests, examples and programs
//! that call themselves. It has no leases: what a handle announced ends when the handle is closed or dropped.

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

/// All places of this process that a handle exists for.
static PLACES: LazyLock<Mutex<HashMap<String, Weak<Place>>>> = LazyLock::new(Mutex::default);

/// What the handles of one name share.
#[derive(Debug, Default)]
struct Place {
    services: Mutex<BTreeMap<ServiceKey, Service>>,
}

#[derive(Debug)]
struct Service {
    instances: ById,
    shown: watch::Sender<Snapshot>,
}

/// The registry `local`: one handle to a place within this process.
#[derive(Debug)]
pub struct Local {
    place: Arc<Place>,
    mine: Mutex<Mine>,
}

#[derive(Debug, Default)]
struct Mine {
    announced: BTreeSet<(ServiceKey, InstanceId)>,
    closed: bool,
}

/// A panic while one of these short locks was held left nothing half done: single map operations.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Local {
    /// A handle to the place called `name`; handles of one name see each other's instances.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut places = lock(&PLACES);
        places.retain(|_, place| place.strong_count() > 0);
        let known = places.get(name).and_then(Weak::upgrade);
        let place = known.unwrap_or_else(|| {
            let place = Arc::<Place>::default();
            places.insert(name.to_owned(), Arc::downgrade(&place));
            place
        });
        Self {
            place,
            mine: Mutex::default(),
        }
    }

    fn withdraw(&self) {
        let mut mine = lock(&self.mine);
        mine.closed = true;
        for (key, id) in std::mem::take(&mut mine.announced) {
            self.place.change(&key, |instances| {
                instances.remove(&id);
            });
        }
    }
}

impl Place {
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
            // Services are never removed from a place.
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
        // Held until the picture has changed, else a close in between would miss this one.
        let mut mine = lock(&self.mine);
        if mine.closed {
            return Err(RegistryError::Closed);
        }
        mine.announced.insert((key.clone(), instance.id.clone()));
        self.place.change(key, |instances| {
            instances.insert(instance.id.clone(), Arc::new(instance.clone()));
        });
        Ok(())
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        let mut mine = lock(&self.mine);
        if mine.announced.remove(&(key.clone(), id.clone())) {
            self.place.change(key, |instances| {
                instances.remove(id);
            });
        }
        Ok(())
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        if lock(&self.mine).closed {
            return Err(RegistryError::Closed);
        }
        Ok(self.place.subscribe(key))
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
    fn place_ends_with_its_last_handle() {
        let name = "place_ends_with_its_last_handle";
        let (one, other) = (Local::new(name), Local::new(name));
        assert!(Arc::ptr_eq(&one.place, &other.place));
        let place = Arc::downgrade(&one.place);
        drop((one, other));
        assert!(place.upgrade().is_none());
    }
}
