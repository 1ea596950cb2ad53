//! Load balancers for [`rpc_core`]: strategies that choose the instance for the next call.
//!
//! | name | type | chooses | for |
//! |---|---|---|---|
//! | `random` | [`Random`] | at random, in proportion to weight | many independent callers |
//! | `round_robin` | [`RoundRobin`] | in turn; weight only decides 0 or not 0 | equal instances, equal calls |
//! | `weighted` | [`Weighted`] | in turn, smoothly in proportion to weight | unequal instances, equal calls |
//! | `least_active` | [`LeastActive`] | the fewest calls in flight | calls of very different duration |
//! | `p2c` | [`P2c`] | the quicker and less busy one of two random instances | nearly everything: slow instances are noticed |
//! | `consistent_hash` | [`ConsistentHash`] | by the call's hash key, within a bound of load | caches and state tied to a key |
//!
//! Around any of them, or around a strategy of your own:
//!
//! | settings | type | does |
//! |---|---|---|
//! | `slow_start_ms` | [`SlowStart`] | a young instance's share grows over this time |
//! | `eject_after`, `eject_ms`, `eject_max_ms`, `eject_max_percent` | [`Eject`] | ejects an instance for a while after this many consecutive failures, unless too many fail |
//! | `zone` or `meta=key:value`, `live_min_percent` | [`Prefer`] | stays within a zone, or a value of the metadata, while enough of it is alive |
//!
//! The state of a slow start, an ejection or an average belongs to the node and survives changes of the list.
//! Only `least_active`, `p2c`, `consistent_hash` (unless its bound is `none`) and [`Eject`] make the invoker
//! keep statistics.
//!
//! A strategy is used by name, with settings after a question mark, if this crate is linked (`use
//! rpc_loadbalance as _;`), or by value:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//! use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin, Node, Pick};
//! use rpc_core::plugin::Settings;
//! use rpc_loadbalance::{Eject, Ejection, P2c, SlowStart};
//! # use rpc_core::registry::Instance;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // What `.load_balancer("p2c?eject_after=5&slow_start_ms=30000")` builds:
//! let settings = Settings::new().with("eject_after", "5").with("slow_start_ms", "30000");
//! let by_name = LoadBalancerPlugin::build("p2c", &settings)?;
//! // The same by value:
//! let slow_start = SlowStart::new(P2c::new(), Duration::from_secs(30));
//! let by_value: Arc<dyn LoadBalancer> = Arc::new(Eject::new(slow_start, Ejection::default()));
//!
//! # let instance: Instance = serde_json::from_str(r#"{"address": "127.0.0.1:9090"}"#)?;
//! let nodes = [Arc::new(Node::new(Arc::new(instance)))];
//! let picker = by_value.rebuild(&nodes, None); // whenever the list changes
//! assert!(picker.pick(&Pick::first("greet", Instant::now())).is_some()); // at each call
//! # drop(by_name);
//! # Ok(())
//! # }
//! ```
//!
//! Your own strategy should pass the same [`contract`] as these.

/// Registers a strategy by name: its own settings, and the code that builds it from them.
macro_rules! strategy {
    ($name:literal, $own:expr, $make:expr) => {
        rpc_core::plugin!(rpc_core::balance::LoadBalancerPlugin, $name, |settings| {
            $crate::layers::build(settings, $own, $make)
        });
    };
}
pub(crate) use strategy;

mod consistent_hash;
pub mod contract;
mod eject;
mod layers;
mod least_active;
mod p2c;
mod prefer;
mod random;
mod round_robin;
#[cfg(test)]
mod simulation;
mod slow_start;
mod weighted;

pub use consistent_hash::ConsistentHash;
pub use eject::{Eject, Ejection};
pub use least_active::LeastActive;
pub use p2c::P2c;
pub use prefer::{Prefer, Subset};
pub use random::Random;
pub use round_robin::RoundRobin;
pub use slow_start::SlowStart;
pub use weighted::Weighted;

use std::sync::Arc;

use rpc_core::balance::{Node, Pick};

/// The nodes that may be picked at all: those with a weight, in the order of the list.
fn willing(nodes: &[Arc<Node>]) -> Vec<Arc<Node>> {
    nodes
        .iter()
        .filter(|node| node.instance.weight > 0)
        .cloned()
        .collect()
}

/// Whether this call has already tried `node`.
fn was_tried(pick: &Pick<'_>, node: &Node) -> bool {
    pick.tried.contains(&node.instance.id)
}
