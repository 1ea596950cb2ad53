//! The balancer's choice of a broker for half messages. One picker serves as long as the same brokers are
//! available: one created for each call would always start from the beginning, and its choices would not be
//! balanced.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};
use rpc_core::registry::Instance;

use crate::route::lock;

/// Chooses the brokers of one producer's transactions.
#[derive(Debug, Default)]
pub(super) struct Choice(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Sorted by instance.
    nodes: Vec<Arc<Node>>,
    picker: Option<Arc<dyn Picker>>,
}

impl Choice {
    /// One of the brokers, as the balancer says.
    pub(super) fn pick(
        &self,
        balancer: &dyn LoadBalancer,
        mut brokers: Vec<Arc<Instance>>,
    ) -> Option<Arc<Instance>> {
        brokers.sort_by(|a, b| a.id.cmp(&b.id));
        let mut state = lock(&self.0);
        let same = state
            .nodes
            .iter()
            .map(|node| &node.instance.id)
            .eq(brokers.iter().map(|broker| &broker.id));
        if state.picker.is_none() || !same {
            let known = std::mem::take(&mut state.nodes);
            let node = |broker: Arc<Instance>| {
                let known = known.iter().find(|node| node.instance.id == broker.id);
                known.cloned().unwrap_or_else(|| Arc::new(Node::new(broker)))
            };
            state.nodes = brokers.into_iter().map(node).collect();
            state.picker = Some(balancer.rebuild(&state.nodes, state.picker.as_deref()));
        }
        let picked = state
            .picker
            .as_ref()?
            .pick(&Pick::first("send_half", Instant::now()))?;
        Some(Arc::clone(&picked.instance))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rpc_core::registry::InstanceId;

    use super::*;

    /// In turn, from its begin on; counts how often it was asked for a picker.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    #[derive(Debug)]
    struct InTurn {
        nodes: Vec<Arc<Node>>,
        turn: AtomicUsize,
    }

    impl LoadBalancer for Counting {
        fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Arc::new(InTurn {
                nodes: nodes.to_vec(),
                turn: AtomicUsize::new(0),
            })
        }
    }

    impl Picker for InTurn {
        fn pick(&self, _: &Pick<'_>) -> Option<Arc<Node>> {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            self.nodes.get(turn % self.nodes.len().max(1)).cloned()
        }
    }

    fn broker(id: &str) -> Arc<Instance> {
        let mut instance: Instance = serde_json::from_str(r#"{"address": "127.0.0.1:1"}"#).unwrap();
        instance.id = InstanceId(id.to_owned());
        Arc::new(instance)
    }

    #[test]
    fn one_picker_serves_as_long_as_the_brokers_are_the_same() {
        let (choice, balancer) = (Choice::default(), Counting::default());
        let (a, b, c) = (broker("a"), broker("b"), broker("c"));
        let pick = |brokers: &[&Arc<Instance>]| {
            let brokers = brokers.iter().map(|&broker| Arc::clone(broker)).collect();
            choice.pick(&balancer, brokers).map(|picked| picked.id.0.clone())
        };
        let picked = [pick(&[&a, &b]), pick(&[&b, &a]), pick(&[&a, &b])];
        assert_eq!(picked.map(Option::unwrap), ["a", "b", "a"], "each has its turn");
        assert_eq!(balancer.0.load(Ordering::Relaxed), 1);
        assert_eq!(pick(&[&a, &c]).as_deref(), Some("a"));
        assert_eq!(balancer.0.load(Ordering::Relaxed), 2);
        assert_eq!(pick(&[]), None);
    }
}
