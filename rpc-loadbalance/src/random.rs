//! Random, in proportion to weight. It keeps no state between calls, so independent callers do not
//! synchronise.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};

use crate::{was_tried, willing};

crate::strategy!("random", &[], |_| Ok(Random::new()));

/// The strategy `random`: each call goes to a random instance, in proportion to weight.
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

/// Nodes with the running sum of their weights: one random number and one binary search per call.
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

    /// Two different nodes, the first in proportion to weight, the second in proportion to weight among the others.
    pub(crate) fn pick_two(&self, pick: &Pick<'_>) -> Option<(&Arc<Node>, Option<&Arc<Node>>)> {
        if !pick.tried.is_empty() {
            let one = self.pick_among_untried(pick, None)?;
            return Some((one, self.pick_among_untried(pick, Some(one))));
        }
        let total = *self.sums.last()?;
        let first = self.index_at(fastrand::u64(..total));
        let one = self.nodes.get(first)?;
        let weight = u64::from(one.instance.weight);
        let rest = total - weight;
        if rest == 0 {
            return Some((one, None));
        }
        // A random number over the ranges before and after the first one.
        let draw = fastrand::u64(..rest);
        let begins = self.sums.get(first)? - weight;
        let other = self.index_at(if draw < begins { draw } else { draw + weight });
        Some((one, self.nodes.get(other)))
    }

    fn index_at(&self, draw: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= draw)
    }

    /// The draw among the remaining nodes, in one pass; only for calls that have already tried some.
    fn pick_among_untried(&self, pick: &Pick<'_>, but: Option<&Arc<Node>>) -> Option<&Arc<Node>> {
        let is_other = |node: &&Arc<Node>| but.is_none_or(|but| !Arc::ptr_eq(but, node));
        let left = || {
            let untried = self.nodes.iter().filter(|node| !was_tried(pick, node));
            untried.filter(is_other)
        };
        let total: u64 = left().map(|node| u64::from(node.instance.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut draw = fastrand::u64(..total);
        left().find(|node| {
            let weight = u64::from(node.instance.weight);
            let hit = draw < weight;
            draw = draw.saturating_sub(weight);
            hit
        })
    }
}

impl Picker for RandomPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        if !pick.tried.is_empty() {
            return self.pick_among_untried(pick, None).cloned();
        }
        let total = *self.sums.last()?;
        self.nodes.get(self.index_at(fastrand::u64(..total))).cloned()
    }
}
