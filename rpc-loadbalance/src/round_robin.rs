//! In turn. The position belongs to one list (one service of one invoker), never to the process: otherwise
//! two services called alternately would each always see the same instance. It survives changes of the list.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};

use crate::{was_tried, willing};

crate::strategy!("round_robin", &[], |_| Ok(RoundRobin::new()));

/// The strategy `round_robin`: every instance with a weight above 0 in turn, regardless of the weight.
#[derive(Debug, Default, Clone, Copy)]
pub struct RoundRobin;

impl RoundRobin {
    /// The strategy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl LoadBalancer for RoundRobin {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let nodes = willing(nodes);
        let next = match previous.and_then(|picker| (picker as &dyn Any).downcast_ref::<InTurn>()) {
            Some(previous) => previous.place_in(&nodes),
            // Many invokers that start together must not all start with the same instance.
            None if nodes.is_empty() => 0,
            None => fastrand::usize(..nodes.len()),
        };
        Arc::new(InTurn {
            nodes,
            next: AtomicUsize::new(next),
        })
    }

    fn needs_figures(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct InTurn {
    nodes: Vec<Arc<Node>>,
    /// The position, modulo the number of nodes, where the next call starts.
    next: AtomicUsize,
}

impl InTurn {
    /// Where the turn continues in another list: at the node that is next here, or the first one after its
    /// id.
    fn place_in(&self, nodes: &[Arc<Node>]) -> usize {
        let Some(next) = self.next.load(Ordering::Relaxed).checked_rem(self.nodes.len()) else {
            return 0;
        };
        let next = &self.nodes[next].instance.id;
        nodes.partition_point(|node| node.instance.id < *next)
    }
}

impl Picker for InTurn {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let count = self.nodes.len();
        if count == 0 {
            return None;
        }
        // Wrapping past usize::MAX makes one turn uneven, once in the life of a long process.
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let (before, from) = self.nodes.split_at(start);
        from.iter()
            .chain(before)
            .find(|node| !was_tried(pick, node))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::node;

    fn id(picker: &Arc<dyn Picker>) -> String {
        let any = Pick::first("m", std::time::Instant::now());
        picker.pick(&any).unwrap().instance.id.to_string()
    }

    #[test]
    fn turn_goes_on_where_it_was_when_the_list_changes() {
        let nodes: Vec<_> = ["a", "b", "c", "d"]
            .into_iter()
            .map(|name| node(name, 100))
            .collect();
        let balancer = RoundRobin::new();
        let mut picker = balancer.rebuild(&nodes, None);
        while id(&picker) != "b" {}

        let same = balancer.rebuild(&nodes, Some(&*picker));
        assert_eq!(id(&same), "c", "an equal list changes nothing");

        let without_c = [nodes[0].clone(), nodes[1].clone(), nodes[3].clone()];
        picker = balancer.rebuild(&without_c, Some(&*picker));
        assert_eq!(id(&picker), "d", "the next one has gone: the one behind it");

        let with_more: Vec<_> = ["a", "aa", "b", "d"]
            .into_iter()
            .map(|name| node(name, 100))
            .collect();
        picker = balancer.rebuild(&with_more, Some(&*picker));
        assert_eq!(
            [id(&picker), id(&picker), id(&picker), id(&picker), id(&picker)],
            ["a", "aa", "b", "d", "a"]
        );
    }

    #[test]
    fn two_lists_have_two_positions() {
        let balancer = RoundRobin::new();
        let nodes = [node("a", 100), node("b", 100)];
        let (one, other) = (balancer.rebuild(&nodes, None), balancer.rebuild(&nodes, None));
        let seen: Vec<_> = (0..4).map(|_| (id(&one), id(&other))).collect();
        assert_ne!(
            seen[0].0, seen[1].0,
            "called alternately, each still goes round: {seen:?}"
        );
        assert_ne!(seen[0].1, seen[1].1, "{seen:?}");
    }
}
