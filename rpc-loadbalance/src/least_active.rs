//! Fewest calls in flight. Dubbo's LeastActive compares only the counts, so that weight is ignored under
//! load; here a count is divided by the weight, as in Envoy's least request.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};

use crate::{was_tried, willing};

crate::strategy!("least_active", &[], |_| Ok(LeastActive::new()));

/// The strategy `least_active`: the instance with the fewest calls in flight in proportion to its weight;
/// among equals a random one, in proportion to weight. A pick checks every instance. A slow instance has more
/// calls in flight and so gets fewer new ones; one that fails fast has few, and gets many: use it with
/// ejection, see [`crate::Eject`].
///
/// ```
/// # use std::time::Instant;
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{LeastActive, contract::node};
///
/// let nodes = [node("busy", 100), node("idle", 100)];
/// let picker = LeastActive::new().rebuild(&nodes, None);
/// nodes[0].call_started();
/// assert_eq!(picker.pick(&Pick::first("greet", Instant::now())).unwrap().instance.address, "idle");
/// ```
#[derive(Debug, Default, Clone, Copy)]
pub struct LeastActive;

impl LeastActive {
    /// The strategy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl LoadBalancer for LeastActive {
    fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
        Arc::new(Least {
            nodes: willing(nodes),
        })
    }
}

#[derive(Debug)]
struct Least {
    nodes: Vec<Arc<Node>>,
}

impl Picker for Least {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let mut best: Option<(&Arc<Node>, u64)> = None;
        // Weight of all that are as good as the best one.
        let mut alike: u64 = 0;
        for node in self.nodes.iter().filter(|node| !was_tried(pick, node)) {
            let (active, weight) = (u64::from(node.active()), u64::from(node.instance.weight));
            // active/weight against best/best's weight, without dividing.
            let against = |(best, of_best): (&Arc<Node>, u64)| {
                (active * u64::from(best.instance.weight)).cmp(&(of_best * weight))
            };
            match best.map(against) {
                Some(std::cmp::Ordering::Greater) => {}
                Some(std::cmp::Ordering::Equal) => {
                    alike = alike.saturating_add(weight);
                    // Each remains the choice with a probability of its weight among those seen (reservoir
                    // sampling of one).
                    if fastrand::u64(..alike) < weight {
                        best = Some((node, active));
                    }
                }
                Some(std::cmp::Ordering::Less) | None => {
                    alike = weight;
                    best = Some((node, active));
                }
            }
        }
        best.map(|(node, _)| Arc::clone(node))
    }
}
