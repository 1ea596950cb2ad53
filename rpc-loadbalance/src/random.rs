//! By chance, in proportion to weight. It keeps nothing between calls, so callers that do not know of each other do not
//! march in step.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin, Node, Pick, Picker};

use crate::{was_tried, willing};

rpc_core::plugin!(LoadBalancerPlugin, "random", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Random::new()))
});

/// The strategy `random`: each call goes to an instance by chance, in proportion to weight.
#[derive(Debug, Default, Clone, Copy)]
pub struct Random;

impl Random {
    /// The strategy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl LoadBalancer for Random {
    fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
        Arc::new(RandomPicker::new(nodes))
    }

    fn needs_figures(&self) -> bool {
        false
    }
}

/// Nodes with the running sum of their weights: one draw and one binary search a call.
#[derive(Debug)]
pub(crate) struct RandomPicker {
    nodes: Vec<Arc<Node>>,
    /// `sums[i]` is the weight of nodes `0..=i` together.
    sums: Vec<u64>,
}

impl RandomPicker {
    pub(crate) fn new(nodes: &[Arc<Node>]) -> Self {
        let nodes = willing(nodes);
        let sums = nodes
            .iter()
            .scan(0u64, |sum, node| {
                *sum += u64::from(node.instance.weight);
                Some(*sum)
            })
            .collect();
        Self { nodes, sums }
    }

    /// The draw over what is left, in one pass; only for calls which have tried some already.
    fn pick_among_untried(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let left = || self.nodes.iter().filter(|node| !was_tried(pick, node));
        let total: u64 = left().map(|node| u64::from(node.instance.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut draw = fastrand::u64(..total);
        left()
            .find(|node| {
                let weight = u64::from(node.instance.weight);
                let hit = draw < weight;
                draw = draw.saturating_sub(weight);
                hit
            })
            .cloned()
    }
}

impl Picker for RandomPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        if !pick.tried.is_empty() {
            return self.pick_among_untried(pick);
        }
        let total = *self.sums.last()?;
        let draw = fastrand::u64(..total);
        let index = self.sums.partition_point(|sum| *sum <= draw);
        self.nodes.get(index).cloned()
    }
}
