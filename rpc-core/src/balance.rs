//! The load balancing seam: which of the instances gets the next call. Implementations live in `rpc-loadbalance` or in
//! a user's crate; rpc-core itself only takes instances in turn when no balancer is named.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::invoker::Endpoint;
use crate::registry::{Instance, InstanceId};

crate::plugin_kind! {
    /// A load balancer that can be named, as in `.load_balancer("round_robin")`.
    pub struct LoadBalancerPlugin for dyn LoadBalancer as "load balancer"
}

/// One instance as a balancer sees it; it survives changes of the list, and its figures with it.
#[derive(Debug)]
pub struct Node {
    /// Who and where.
    pub instance: Arc<Instance>,
    /// Calls that were sent and have no answer yet.
    pub in_flight: AtomicU32,
    /// Peak-sensitive moving average of answer times, microseconds; 0 = nothing known.
    pub latency_us: AtomicU64,
    /// The way there, once it was looked up.
    pub(crate) endpoint: OnceLock<Arc<Endpoint>>,
}

impl Node {
    /// A node without history.
    #[must_use]
    pub fn new(instance: Arc<Instance>) -> Self {
        Self {
            instance,
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU64::new(0),
            endpoint: OnceLock::new(),
        }
    }

    /// Notes how long an answer took: a slower one counts at once, faster ones win back an eighth each. A node that gets
    /// no calls keeps its figure; a balancer that goes by it must try such nodes now and then.
    pub fn note_latency(&self, elapsed: Duration) {
        let sample = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let known = self.latency_us.load(Ordering::Relaxed);
        // Two threads may overwrite one another: an average bears the loss of a sample.
        let average = if sample >= known {
            sample
        } else {
            known - (known - sample).div_ceil(8)
        };
        self.latency_us.store(average, Ordering::Relaxed);
    }

    /// Calls under way.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// What is known of the call for which an instance is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// The method's name.
    pub method: &'a str,
    /// The caller's hash key, if it gave one.
    pub hash_key: Option<u64>,
    /// Instances this call has already tried; a picker avoids them while others are left.
    pub tried: &'a [InstanceId],
}

/// Chooses over one list of nodes: built when the list changes, asked at each call, from many threads.
///
/// `Any`, so that a strategy recognises its own picker in `previous`:
/// `(previous as &dyn Any).downcast_ref::<MyPicker>()`.
pub trait Picker: Any + Send + Sync + fmt::Debug {
    /// The node for this call; never one of [`Pick::tried`], never one of weight 0. `None` only when that leaves none:
    /// an empty list, all drained, or all tried.
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>>;
}

/// A strategy: builds a [`Picker`] whenever the list of nodes changes.
pub trait LoadBalancer: Send + Sync + fmt::Debug + 'static {
    /// A picker over `nodes`, sorted by instance id. `previous` is the picker it replaces, whose position it may take
    /// over.
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker>;

    /// Whether its pickers look at [`Node::in_flight`] or [`Node::latency_us`]; else neither is kept, which saves each
    /// call a reading of the clock and two writes that all threads share.
    fn needs_figures(&self) -> bool {
        true
    }
}
