//! From a service to an instance: the registry's list, as nodes that keep their statistics, and the endpoint
//! of each.
//!
//! One task per service looked up follows the registry; calls only read the list it has published.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::attempts::Instances;
use super::endpoint::{Endpoint, Shared};
use crate::balance::{LoadBalancer, Node, Pick, Picker};
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::{Request, Route};
use crate::registry::{Freshness, Instance, InstanceId, Registry, ServiceKey, Snapshot};

/// How often endpoints that are on no list are checked; an unused one is closed at the second check.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(60);

/// Where instances come from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Always these, for any service.
    Direct(Vec<Arc<Instance>>),
    /// Those that the registry lists.
    Registry(Arc<dyn Registry>),
}

/// All instances that an invoker knows, and its endpoints.
#[derive(Debug)]
pub(crate) struct Cluster {
    origin: Origin,
    balancer: Arc<dyn LoadBalancer>,
    timed: bool,
    shared: Arc<Shared>,
    /// One per service looked up; there are few, so a search is faster than a hash.
    directories: ArcSwap<Vec<(Arc<Route>, Arc<Directory>)>>,
    endpoints: ArcSwap<HashMap<String, Arc<Endpoint>>>,
    /// Held while one of the two above is replaced.
    changing: Mutex<()>,
}

/// The known instances of one service.
#[derive(Debug)]
struct Directory {
    view: ArcSwap<View>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct View {
    nodes: Vec<Arc<Node>>,
    picker: Arc<dyn Picker>,
    freshness: Freshness,
}

impl Cluster {
    pub(super) fn new(origin: Origin, balancer: Arc<dyn LoadBalancer>, shared: Arc<Shared>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            origin,
            timed: balancer.needs_figures(),
            balancer,
            shared,
            directories: ArcSwap::default(),
            endpoints: ArcSwap::default(),
            changing: Mutex::new(()),
        });
        cluster.spawn_sweep();
        cluster
    }

    /// All instances of a service, sorted by id. Waits as [`Cluster::pick`] does.
    ///
    /// # Errors
    /// `Unavailable` (not executed): no instance serves it, or the registry has not answered by `deadline`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn nodes(
        self: &Arc<Self>,
        route: &Arc<Route>,
        deadline: Instant,
    ) -> Result<Vec<Arc<Node>>, RpcError> {
        let directory = self.directory(route)?;
        let view = directory.known(deadline).await.ok_or_else(|| silent(route))?;
        if view.nodes.is_empty() {
            return Err(nobody(route, &view));
        }
        Ok(view.nodes.clone())
    }

    /// The endpoint at `address`, whether or not an instance with this address is known.
    pub(crate) fn endpoint(&self, address: &str) -> Arc<Endpoint> {
        if let Some(known) = self.endpoints.load().get(address) {
            return Arc::clone(known);
        }
        let _changing = self.changing();
        let mut all = HashMap::clone(&self.endpoints.load());
        let listed = matches!(&self.origin, Origin::Direct(_)) || self.listed_addresses().contains(address);
        let endpoint = all
            .entry(address.to_owned())
            .or_insert_with(|| Arc::new(Endpoint::new(address, listed, Arc::clone(&self.shared))));
        let endpoint = Arc::clone(endpoint);
        self.endpoints.store(Arc::new(all));
        endpoint
    }

    /// Calls in flight on all connections.
    pub(crate) fn in_flight(&self) -> usize {
        self.endpoints
            .load()
            .values()
            .map(|endpoint| endpoint.in_flight())
            .sum()
    }

    /// Answers that arrived after their call had ended, on the current connections.
    pub(crate) fn answers_dropped(&self) -> u64 {
        self.endpoints
            .load()
            .values()
            .map(|endpoint| endpoint.answers_dropped())
            .sum()
    }

    /// The balancer's choice: among the instances that are not known to be down, if there are any, else among
    /// all.
    fn pick_in(&self, route: &Route, view: &View, pick: &Pick<'_>) -> Result<Arc<Node>, RpcError> {
        let chosen = view.picker.pick(pick).ok_or_else(|| nobody(route, view))?;
        if self.shared.down.load(Ordering::Acquire) == 0 || !self.is_down(&chosen) {
            return Ok(chosen);
        }
        Ok(self.pick_up(view, pick).unwrap_or(chosen))
    }

    /// The best choice among instances that are not down.
    fn pick_up(&self, view: &View, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let down = view.nodes.iter().filter(|node| self.is_down(node));
        let mut tried: Vec<InstanceId> = down.map(|node| node.instance.id.clone()).collect();
        tried.extend_from_slice(pick.tried);
        view.picker.pick(&Pick {
            tried: &tried,
            ..*pick
        })
    }

    fn is_down(&self, node: &Node) -> bool {
        let endpoints = self.endpoints.load();
        endpoints
            .get(&node.instance.address)
            .is_some_and(|endpoint| endpoint.is_down())
    }

    fn directory(self: &Arc<Self>, route: &Arc<Route>) -> Result<Arc<Directory>, RpcError> {
        let known = self.directories.load();
        match known.iter().find(|(known, _)| known == route) {
            Some((_, directory)) => Ok(Arc::clone(directory)),
            None => self.look_up(route),
        }
    }

    /// Starts following one more service.
    fn look_up(self: &Arc<Self>, route: &Arc<Route>) -> Result<Arc<Directory>, RpcError> {
        let _changing = self.changing();
        let mut all = Vec::clone(&self.directories.load());
        if let Some((_, directory)) = all.iter().find(|(known, _)| known == route) {
            return Ok(Arc::clone(directory));
        }
        let directory = Arc::new(Directory {
            view: ArcSwap::from_pointee(View {
                nodes: Vec::new(),
                picker: self.balancer.rebuild(&[], None),
                freshness: Freshness::Unknown,
            }),
            changed: watch::Sender::new(()),
        });
        match &self.origin {
            Origin::Direct(instances) => directory.apply(
                &Snapshot {
                    instances: Arc::from(&instances[..]),
                    freshness: Freshness::Fresh,
                },
                &*self.balancer,
            ),
            Origin::Registry(registry) => {
                let key = ServiceKey {
                    group: route.group.clone(),
                    service: route.service.clone(),
                    version: route.version.clone(),
                };
                let pictures = registry
                    .subscribe(&key)
                    .map_err(|error| RpcError::new(Code::Unavailable, Executed::No, error.to_string()))?;
                self.spawn_follow(Arc::clone(&directory), pictures);
            }
        }
        all.push((Arc::clone(route), Arc::clone(&directory)));
        self.directories.store(Arc::new(all));
        Ok(directory)
    }

    fn spawn_follow(self: &Arc<Self>, directory: Arc<Directory>, mut pictures: watch::Receiver<Snapshot>) {
        let cluster = Arc::downgrade(self);
        let stop = self.shared.stop.clone();
        let follow = async move {
            loop {
                let picture = pictures.borrow_and_update().clone();
                let Some(cluster) = cluster.upgrade() else { return };
                directory.apply(&picture, &*cluster.balancer);
                cluster.retire_unlisted();
                drop(cluster);
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = pictures.changed() => if changed.is_err() { return },
                }
            }
        };
        drop(self.shared.tracker.spawn_on(follow, &self.shared.runtime));
    }

    /// Retires the endpoints whose instances are on no list any longer.
    fn retire_unlisted(&self) {
        let _changing = self.changing();
        let listed = self.listed_addresses();
        let endpoints = self.endpoints.load();
        let gone: Vec<String> = endpoints
            .iter()
            .filter(|(address, endpoint)| endpoint.is_listed() && !listed.contains(*address))
            .map(|(address, _)| address.clone())
            .collect();
        for (address, endpoint) in endpoints.iter() {
            endpoint.list(listed.contains(address));
        }
        self.remove(&gone);
    }

    /// Removes endpoints under the lock: running calls end first; a new call creates a new endpoint.
    fn remove(&self, addresses: &[String]) {
        if addresses.is_empty() {
            return;
        }
        let mut all = HashMap::clone(&self.endpoints.load());
        for address in addresses {
            if let Some(endpoint) = all.remove(address) {
                endpoint.retire();
            }
        }
        self.endpoints.store(Arc::new(all));
    }

    fn spawn_sweep(self: &Arc<Self>) {
        let cluster = Arc::downgrade(self);
        let stop = self.shared.stop.clone();
        let sweep = async move {
            while tokio::time::timeout(SWEEP, stop.cancelled()).await.is_err() {
                let Some(cluster) = cluster.upgrade() else { return };
                let _changing = cluster.changing();
                let endpoints = cluster.endpoints.load();
                let unused = endpoints
                    .iter()
                    .filter(|(_, endpoint)| {
                        !endpoint.is_listed() && !endpoint.was_used() && endpoint.in_flight() == 0
                    })
                    .map(|(address, _)| address.clone())
                    .collect::<Vec<_>>();
                cluster.remove(&unused);
            }
        };
        drop(self.shared.tracker.spawn_on(sweep, &self.shared.runtime));
    }

    fn listed_addresses(&self) -> HashSet<String> {
        let directories = self.directories.load();
        let nodes = directories.iter().flat_map(|(_, directory)| {
            let view = directory.view.load_full();
            view.nodes.clone()
        });
        nodes.map(|node| node.instance.address.clone()).collect()
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instances for Arc<Cluster> {
    async fn pick(
        &self,
        route: &Arc<Route>,
        pick: &Pick<'_>,
        deadline: Instant,
    ) -> Result<Arc<Node>, RpcError> {
        let directory = self.directory(route)?;
        let view = directory.known(deadline).await.ok_or_else(|| silent(route))?;
        self.pick_in(route, &view, pick)
    }

    fn pick_now(&self, route: &Arc<Route>, pick: &Pick<'_>) -> Option<Result<Arc<Node>, RpcError>> {
        // No counter shared with other threads is touched here, except those of the picker.
        let directories = self.directories.load();
        // Calls of one stub share their route, so comparing pointers (which `==` on `Arc`s does first) finds
        // it.
        let (_, directory) = directories.iter().find(|(known, _)| known == route)?;
        let view = directory.view.load();
        (view.freshness != Freshness::Unknown).then(|| self.pick_in(route, &view, pick))
    }

    fn is_timed(&self) -> bool {
        self.timed
    }

    async fn call_node(&self, node: &Arc<Node>, request: &Request) -> Answer {
        let endpoint = node
            .endpoint
            .get_or_init(|| self.endpoint(&node.instance.address));
        if endpoint.is_retired() {
            // The list that the node came from was older or newer than the one that retired it.
            return self.endpoint(&node.instance.address).call(request).await;
        }
        endpoint.call(request).await
    }

    async fn call(&self, address: &str, request: &Request) -> Answer {
        self.endpoint(address).call(request).await
    }
}

impl Directory {
    /// Takes over a new list. Nodes of known instances are kept, with their statistics; the picker is rebuilt
    /// only when the list has changed.
    fn apply(&self, picture: &Snapshot, balancer: &dyn LoadBalancer) {
        let old = self.view.load_full();
        let nodes: Vec<Arc<Node>> = picture
            .instances
            .iter()
            .map(
                |instance| match old.nodes.iter().find(|node| node.instance.id == instance.id) {
                    Some(known) if known.instance == *instance => Arc::clone(known),
                    Some(known) => Arc::new(known.renewed(Arc::clone(instance))),
                    None => Arc::new(Node::new(Arc::clone(instance))),
                },
            )
            .collect();
        let same = nodes.len() == old.nodes.len()
            && nodes
                .iter()
                .zip(&old.nodes)
                .all(|(new, old)| Arc::ptr_eq(new, old));
        let picker = if same {
            Arc::clone(&old.picker)
        } else {
            balancer.rebuild(&nodes, Some(&*old.picker))
        };
        self.view.store(Arc::new(View {
            nodes,
            picker,
            freshness: picture.freshness,
        }));
        self.changed.send_replace(());
    }

    /// The known instances, as soon as there is a list; `None` if there is none by `deadline`.
    async fn known(&self, deadline: Instant) -> Option<Arc<View>> {
        let mut changed = self.changed.subscribe();
        let known = async {
            loop {
                let view = self.view.load_full();
                if view.freshness != Freshness::Unknown {
                    return Some(view);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout_at(deadline.into(), known)
            .await
            .ok()
            .flatten()
    }
}

fn nobody(route: &Route, view: &View) -> RpcError {
    let what = match (view.nodes.len(), view.freshness) {
        (0, Freshness::Stale) => "no instance is known, and the registry cannot be reached".to_owned(),
        (0, _) => "no instance is registered".to_owned(),
        (all, _) => format!("all of its {all} instances have been tried"),
    };
    let message = format!(
        "service `{}` version `{}` group `{}`: {what}",
        route.service, route.version, route.group
    );
    RpcError::new(Code::Unavailable, Executed::No, message)
}

fn silent(route: &Route) -> RpcError {
    let message = format!(
        "service `{}`: the registry has not answered in time; check that it runs",
        route.service
    );
    RpcError::new(Code::Unavailable, Executed::No, message)
}
