//! Load balancers for [`rpc_core`]: strategies which choose the instance that gets the next call.
//!
//! | name | type | chooses | for |
//! |---|---|---|---|
//! | `random` | [`Random`] | by chance, in proportion to weight | many callers that know nothing of each other |
//! | `round_robin` | [`RoundRobin`] | in turn; weight only decides 0 or not 0 | equal instances, equal calls |
//! | `consistent_hash` | [`ConsistentHash`] | by the call's hash key | caches and state bound to a key |
//!
//! A strategy is used by name, if this crate is linked (`use rpc_loadbalance as _;`), or by value:
//!
//! ```
//! use std::sync::Arc;
//! use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin, Node, Pick};
//! use rpc_core::plugin::Settings;
//! # use rpc_core::registry::Instance;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let by_name = LoadBalancerPlugin::build("round_robin", &Settings::new())?;
//! let by_value: Arc<dyn LoadBalancer> = Arc::new(rpc_loadbalance::RoundRobin::new());
//!
//! # let instance: Instance = serde_json::from_str(r#"{"address": "127.0.0.1:9090"}"#)?;
//! let nodes = [Arc::new(Node::new(Arc::new(instance)))];
//! let picker = by_value.rebuild(&nodes, None); // whenever the list changes
//! let pick = Pick { method: "greet", hash_key: None, tried: &[] };
//! assert!(picker.pick(&pick).is_some()); // at each call
//! # drop(by_name);
//! # Ok(())
//! # }
//! ```
//!
//! Strategies of your own pass the same [`contract`] as these.

mod consistent_hash;
pub mod contract;
mod random;
mod round_robin;

pub use consistent_hash::ConsistentHash;
pub use random::Random;
pub use round_robin::RoundRobin;

use std::sync::Arc;

use rpc_core::balance::{Node, Pick};

/// The nodes that may be given at all: those with a weight, in the order of the list.
fn willing(nodes: &[Arc<Node>]) -> Vec<Arc<Node>> {
    nodes
        .iter()
        .filter(|node| node.instance.weight > 0)
        .cloned()
        .collect()
}

/// Whether this call has been at `node` already.
fn was_tried(pick: &Pick<'_>, node: &Node) -> bool {
    pick.tried.contains(&node.instance.id)
}
