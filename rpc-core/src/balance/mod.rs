//! The load balancing interface: which instance gets the next call. Implementations live in `rpc-loadbalance`
//! or in your own crate; rpc-core itself only lets instances take turns when no balancer is named.
//!
//! `node` is an instance as a balancer sees it, with its statistics.

mod node;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use node::Node;

use crate::registry::InstanceId;

crate::plugin_kind! {
    /// A load balancer that can be named, as in `.load_balancer("round_robin")`, with settings after a question mark.
    pub struct LoadBalancerPlugin for dyn LoadBalancer as "load balancer"
}

/// The properties of the call for which an instance is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// The method's name.
    pub method: &'a str,
    /// The caller's hash key, if it gave one.
    pub hash_key: Option<u64>,
    /// Instances this call has already tried; a picker avoids them while others are left.
    pub tried: &'a [InstanceId],
    /// When the attempt starts. A picker reads no clock of its own, so that tests can control the time.
    pub now: Instant,
}

impl<'a> Pick<'a> {
    /// A pick for the first attempt of a call without a hash key.
    #[must_use]
    pub const fn first(method: &'a str, now: Instant) -> Self {
        Self {
            method,
            hash_key: None,
            tried: &[],
            now,
        }
    }
}

/// Chooses from one list of nodes: built when the list changes, asked at each call, from many threads.
///
/// `Any`, so that a strategy recognises its own picker in `previous`:
/// `(previous as &dyn Any).downcast_ref::<MyPicker>()`.
pub trait Picker: Any + Send + Sync + fmt::Debug {
    /// The node for this call; never one of [`Pick::tried`], never one of weight 0. `None` only if that
    /// leaves none: an empty list, all drained, or all tried.
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>>;
}

/// A strategy: builds a [`Picker`] whenever the list of nodes changes.
pub trait LoadBalancer: Send + Sync + fmt::Debug + 'static {
    /// A picker over `nodes`, sorted by instance id. `previous` is the picker it replaces, whose position it
    /// may continue from.
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker>;

    /// Whether its pickers use a node's statistics: [`Node::active`], [`Node::latency_us`],
    /// [`Node::failures_in_row`]. If not, none are kept, which saves each call reading the clock and some
    /// writes to memory that all threads share.
    fn needs_figures(&self) -> bool {
        true
    }
}

/// Layers own their strategy, which may be known only by name.
impl LoadBalancer for Arc<dyn LoadBalancer> {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        (**self).rebuild(nodes, previous)
    }

    fn needs_figures(&self) -> bool {
        (**self).needs_figures()
    }
}
