//! From the names in a request to a service and its method.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::method_gate::MethodGate;
use super::quick::Quickness;
use super::slowness::SlowMethods;
use super::{Clock, ProviderError};
use crate::envelope::IncomingRequest;
use crate::error::{Code, Executed, RpcError};
use crate::message::{Method, Route, Served, Service};
use crate::serialize::SerializerRef;

/// All services of one provider.
#[derive(Debug)]
pub(super) struct Router {
    entries: Vec<Entry>,
    /// Indexes by full name; a few versions and groups each.
    by_name: ByName<Vec<usize>>,
    /// The same by the part after the last dot, which is all that hc-rpc's envelope contains.
    by_simple_name: ByName<Vec<usize>>,
}

/// One service.
struct Entry {
    route: Arc<Route>,
    service: Arc<dyn Service>,
    methods: ByName<usize>,
    /// One for each method.
    gates: Vec<MethodGate>,
    /// How quick they are, by method.
    quickness: Vec<Quickness>,
}

/// How many calls of each method may run at once.
#[derive(Debug)]
pub(super) struct MethodLimits {
    /// Where no other limit is set.
    pub(super) in_flight_max: usize,
    /// By service and method; overrides the method's attribute.
    pub(super) by_name: Vec<(String, String, usize)>,
    /// When a method counts as slow.
    pub(super) slow: Option<SlowMethods>,
}

impl MethodLimits {
    fn gate(&self, route: &Route, method: &Method) -> MethodGate {
        // The last one set wins.
        let mut named = self.by_name.iter().rev();
        let own = named
            .find(|(service, name, _)| *service == route.service && *name == method.name)
            .map(|(_, _, max)| *max)
            .or(method
                .in_flight_max
                .map(|max| usize::try_from(max).unwrap_or(usize::MAX)));
        // A method that has its own limit, or is meant to take long, never counts as slow.
        let rule = self
            .slow
            .filter(|_| own.is_none() && !method.long_poll && !method.streaming);
        MethodGate::new(own.unwrap_or(self.in_flight_max), rule)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}

/// A method of a service: taken by [`Router::enter`], given back by [`Router::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EnteredMethod {
    // Narrow, since every request carries it: a provider has few services and a service few methods.
    entry: u32,
    index: u32,
    pub(super) method: &'static Method,
}

impl Router {
    /// # Errors
    /// `Duplicate` if two services have the same name, version and group; `UnknownMethod` if a limit names no
    /// method.
    pub(super) fn new(served: Vec<Served>, limits: &MethodLimits) -> Result<Self, ProviderError> {
        let mut router = Self {
            entries: Vec::new(),
            by_name: ByName::default(),
            by_simple_name: ByName::default(),
        };
        for Served { route, service } in served {
            if router.entries.iter().any(|other| other.route == route) {
                return Err(ProviderError::Duplicate {
                    service: route.service.clone(),
                    version: route.version.clone(),
                    group: route.group.clone(),
                });
            }
            let index = router.entries.len();
            router
                .by_name
                .entry(Box::from(&*route.service))
                .or_default()
                .push(index);
            let simple = Box::from(route.simple_name());
            router.by_simple_name.entry(simple).or_default().push(index);
            let methods = service.methods().iter().enumerate();
            router.entries.push(Entry {
                methods: methods
                    .map(|(index, method)| (Box::from(&*method.name), index))
                    .collect(),
                gates: service
                    .methods()
                    .iter()
                    .map(|method| limits.gate(&route, method))
                    .collect(),
                quickness: service.methods().iter().map(|_| Quickness::default()).collect(),
                route,
                service,
            });
        }
        for (service, method, _) in &limits.by_name {
            let mut same = router
                .entries
                .iter()
                .filter(|entry| entry.route.service == *service);
            if !same.any(|entry| entry.methods.contains_key(&**method)) {
                return Err(ProviderError::UnknownMethod {
                    service: service.clone(),
                    method: method.clone(),
                });
            }
        }
        Ok(router)
    }

    /// Every method: its route, its description, and its gate.
    pub(super) fn methods(&self) -> impl Iterator<Item = (&Arc<Route>, &'static [Method], &[MethodGate])> {
        self.entries
            .iter()
            .map(|entry| (&entry.route, entry.service.methods(), &*entry.gates))
    }

    /// The routes of all services.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.entries.iter().map(|entry| &entry.route)
    }

    /// The route of the service that was entered.
    pub(super) fn route(&self, entered: EnteredMethod) -> &Arc<Route> {
        &self.entry(entered).route
    }

    /// The service that was entered, and the number of the method.
    pub(super) fn service(&self, entered: EnteredMethod) -> (&dyn Service, usize) {
        (&*self.entry(entered).service, entered.index as usize)
    }

    /// Finds the method and admits a call to it.
    ///
    /// # Errors
    /// `NotFound` or `Overloaded`, not executed.
    pub(super) fn enter(
        &self,
        serializer: &SerializerRef,
        request: &IncomingRequest<'_>,
        clock: &Clock,
    ) -> Result<EnteredMethod, RpcError> {
        let entry = self.find(serializer, request)?;
        let found = &self.entries[entry];
        let Some(&index) = found.methods.get(&*request.method) else {
            let message = format!("service `{}` has no method `{}`", request.service, request.method);
            return Err(RpcError::new(Code::NotFound, Executed::No, message));
        };
        if let Err(full) = found.gates[index].enter(clock) {
            let why = if full.slow {
                "the limit of a slow method, since its latest calls were slow"
            } else {
                "its limit"
            };
            let message = format!(
                "method `{}` runs {} times already, {why}",
                request.method, full.max
            );
            return Err(RpcError::new(Code::Overloaded, Executed::No, message));
        }
        let narrow = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Ok(EnteredMethod {
            entry: narrow(entry),
            index: narrow(index),
            method: &found.service.methods()[index],
        })
    }

    /// How quick the method is.
    pub(super) fn quickness(&self, entered: EnteredMethod) -> &Quickness {
        &self.entry(entered).quickness[entered.index as usize]
    }

    /// A call has ended.
    pub(super) fn leave(&self, entered: EnteredMethod) {
        self.gate(entered).leave();
    }

    /// The gate of the method.
    pub(super) fn gate(&self, entered: EnteredMethod) -> &MethodGate {
        &self.entry(entered).gates[entered.index as usize]
    }

    fn entry(&self, entered: EnteredMethod) -> &Entry {
        &self.entries[entered.entry as usize]
    }

    fn find(&self, serializer: &SerializerRef, request: &IncomingRequest<'_>) -> Result<usize, RpcError> {
        let fits = |index: &&usize| {
            let route = &self.entries[**index].route;
            route.version == request.version && route.group == request.group
        };
        let exact = self.by_name.get(&*request.service);
        if let Some(entry) = exact.and_then(|same| same.iter().find(fits)) {
            return Ok(*entry);
        }
        if matches!(serializer, SerializerRef::Json) {
            let simple = self.by_simple_name.get(&*request.service);
            let mut simple = simple.into_iter().flatten().filter(fits);
            match (simple.next(), simple.next()) {
                (Some(entry), None) => return Ok(*entry),
                (Some(one), Some(other)) => {
                    let message = format!(
                        "`{}` could be `{}` or `{}`; use the full name",
                        request.service, self.entries[*one].route.service, self.entries[*other].route.service
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

/// A map by name. Its keys are the provider's own, so no peer can make them collide, and a fast hash
/// suffices.
type ByName<V> = HashMap<Box<str>, V, BuildHasherDefault<Quick>>;

/// Eight bytes at a time, multiplied and folded (as in FxHash).
#[derive(Debug, Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
