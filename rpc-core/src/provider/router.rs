//! From the names in a request to a service and its method.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ProviderError;
use crate::envelope::IncomingRequest;
use crate::error::{Code, Executed, RpcError};
use crate::message::{Method, Route, Served, Service};
use crate::serialize::SerializerRef;

/// All services of one provider.
#[derive(Debug)]
pub(super) struct Router {
    /// By full name; a few versions and groups each.
    by_name: HashMap<String, Vec<Arc<Entry>>>,
    /// The same by the part after the last dot, which is all that hc-rpc's envelope says.
    by_simple_name: HashMap<String, Vec<Arc<Entry>>>,
}

/// One service.
pub(super) struct Entry {
    pub(super) route: Arc<Route>,
    pub(super) service: Arc<dyn Service>,
    methods: HashMap<&'static str, usize>,
    /// Requests running now, by method.
    running: Vec<AtomicUsize>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}

/// One method of one service, while a request runs in it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) entry: Arc<Entry>,
    pub(super) index: usize,
    pub(super) method: &'static Method,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.entry.running[self.index].fetch_sub(1, Ordering::AcqRel);
    }
}

impl Router {
    /// # Errors
    /// `Duplicate` when two services have one name, version and group.
    pub(super) fn new(served: Vec<Served>) -> Result<Self, ProviderError> {
        let mut router = Self {
            by_name: HashMap::new(),
            by_simple_name: HashMap::new(),
        };
        for Served { route, service } in served {
            let methods = service.methods();
            let entry = Arc::new(Entry {
                methods: methods
                    .iter()
                    .enumerate()
                    .map(|(index, method)| (method.name, index))
                    .collect(),
                running: methods.iter().map(|_| AtomicUsize::new(0)).collect(),
                route,
                service,
            });
            let route = &entry.route;
            let same = router.by_name.entry(route.service.clone()).or_default();
            if same.iter().any(|other| other.route == entry.route) {
                return Err(ProviderError::Duplicate {
                    service: route.service.clone(),
                    version: route.version.clone(),
                    group: route.group.clone(),
                });
            }
            same.push(Arc::clone(&entry));
            let simple = route.simple_name().to_owned();
            router.by_simple_name.entry(simple).or_default().push(entry);
        }
        Ok(router)
    }

    /// The routes of all services.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values().flatten().map(|entry| &entry.route)
    }

    /// Finds the method and takes one of its `max` places.
    ///
    /// # Errors
    /// `NotFound` or `Overloaded`, not executed.
    pub(super) fn enter(
        &self,
        serializer: &SerializerRef,
        request: &IncomingRequest<'_>,
        max: usize,
    ) -> Result<Running, RpcError> {
        let entry = self.entry(serializer, request)?;
        let Some(&index) = entry.methods.get(&*request.method) else {
            let message = format!("service `{}` has no method `{}`", request.service, request.method);
            return Err(RpcError::new(Code::NotFound, Executed::No, message));
        };
        let before = entry.running[index].fetch_add(1, Ordering::AcqRel);
        let running = Running {
            index,
            method: &entry.service.methods()[index],
            entry: Arc::clone(entry),
        };
        if before >= max {
            let message = format!(
                "method `{}` runs {max} times already, which is its limit",
                request.method
            );
            return Err(RpcError::new(Code::Overloaded, Executed::No, message));
        }
        Ok(running)
    }

    fn entry(
        &self,
        serializer: &SerializerRef,
        request: &IncomingRequest<'_>,
    ) -> Result<&Arc<Entry>, RpcError> {
        let fits = |entry: &&Arc<Entry>| {
            entry.route.version == request.version && entry.route.group == request.group
        };
        let exact = self.by_name.get(&*request.service);
        if let Some(entry) = exact.and_then(|same| same.iter().find(fits)) {
            return Ok(entry);
        }
        if matches!(serializer, SerializerRef::Json) {
            let mut simple = self
                .by_simple_name
                .get(&*request.service)
                .into_iter()
                .flatten()
                .filter(fits);
            match (simple.next(), simple.next()) {
                (Some(entry), None) => return Ok(entry),
                (Some(one), Some(other)) => {
                    let message = format!(
                        "`{}` could be `{}` or `{}`; say the full name",
                        request.service, one.route.service, other.route.service
                    );
                    return Err(RpcError::new(Code::NotFound, Executed::No, message));
                }
                (None, _) => {}
            }
        }
        let message = format!(
            "service `{}` version `{}` group `{}` is not served here",
            request.service, request.version, request.group
        );
        Err(RpcError::new(Code::NotFound, Executed::No, message))
    }
}
