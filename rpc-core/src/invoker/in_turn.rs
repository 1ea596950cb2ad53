//! The default balancer: instances take turns.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::balance::{LoadBalancer, Node, Pick, Picker};

/// Instances in turn, without regard to weight, except that weight 0 takes no calls.
#[derive(Debug)]
pub(super) struct InTurn;

#[derive(Debug)]
struct InTurnPicker {
    nodes: Vec<Arc<Node>>,
    next: AtomicUsize,
}

impl LoadBalancer for InTurn {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let previous = previous.and_then(|previous| (previous as &dyn Any).downcast_ref::<InTurnPicker>());
        let next = previous.map_or(0, |previous| previous.next.load(Ordering::Relaxed));
        Arc::new(InTurnPicker {
            nodes: nodes
                .iter()
                .filter(|node| node.instance.weight > 0)
                .cloned()
                .collect(),
            next: AtomicUsize::new(next),
        })
    }

    fn needs_figures(&self) -> bool {
        false
    }
}

impl Picker for InTurnPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let nodes = self.nodes.len();
        let untried = (0..nodes)
            .map(|step| &self.nodes[start.wrapping_add(step) % nodes])
            .find(|node| !pick.tried.contains(&node.instance.id));
        untried.cloned()
    }
}
