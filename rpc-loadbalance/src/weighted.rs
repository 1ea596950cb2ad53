//! Smooth weighted round robin: in turn, in proportion to weight, with the turns of a heavy instance spread
//! out.
//!
//! nginx's algorithm (`ngx_http_upstream_round_robin.c`, Maxim Dounin, 2012): at each pick every instance's
//! score grows by its weight, the highest score wins and is reduced by the sum of all weights. Weights 5, 1,
//! 1 give `a a b a c a a`, not `a a a a a b c`. A pick visits every instance under a short lock.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};

use crate::{was_tried, willing};

crate::strategy!("weighted", &[], |_| Ok(Weighted::new()));

/// The strategy `weighted`: smooth weighted round robin. Over as many calls as the sum of the weights
/// (divided by their greatest common divisor) each instance gets exactly its share.
///
/// ```
/// # use std::time::Instant;
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{Weighted, contract::node};
///
/// let picker = Weighted::new().rebuild(&[node("big", 300), node("small", 100)], None);
/// let pick = Pick::first("greet", Instant::now());
/// let big = (0..400).filter(|_| picker.pick(&pick).unwrap().instance.address == "big").count();
/// assert_eq!(big, 300);
/// ```
#[derive(Debug, Default, Clone, Copy)]
pub struct Weighted;

impl Weighted {
    /// The strategy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl LoadBalancer for Weighted {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let nodes = willing(nodes);
        let previous = previous.and_then(|picker| (picker as &dyn Any).downcast_ref::<Smooth>());
        let before = previous.map(Smooth::by_id);
        let scores = nodes.iter().map(|node| match &before {
            // Sorted by id, like every list.
            Some(before) => before
                .binary_search_by(|(id, _)| (*id).cmp(&node.instance.id))
                .map_or(0, |index| before[index].1),
            // Many invokers that start together must not all start with the same instance.
            None => i64::from(fastrand::u32(..node.instance.weight)),
        });
        Arc::new(Smooth {
            scores: Mutex::new(scores.collect()),
            nodes,
        })
    }

    fn needs_figures(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Smooth {
    nodes: Vec<Arc<Node>>,
    /// One per node. Locked for one pass over the nodes.
    scores: Mutex<Vec<i64>>,
}

impl Smooth {
    fn by_id(&self) -> Vec<(&rpc_core::registry::InstanceId, i64)> {
        let scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = self.nodes.iter().map(|node| &node.instance.id);
        ids.zip(scores.iter().copied()).collect()
    }
}

impl Picker for Smooth {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best: Option<(usize, i64)> = None;
        let mut total = 0;
        for (index, (node, score)) in self.nodes.iter().zip(scores.iter_mut()).enumerate() {
            if was_tried(pick, node) {
                continue;
            }
            let weight = i64::from(node.instance.weight);
            total += weight;
            *score += weight;
            if best.is_none_or(|(_, best)| *score > best) {
                best = Some((index, *score));
            }
        }
        let (index, score) = best?;
        *scores.get_mut(index)? = score - total;
        self.nodes.get(index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::contract::node;

    fn turns(picker: &dyn Picker, count: usize) -> String {
        let pick = Pick::first("m", Instant::now());
        let id = |_| picker.pick(&pick).unwrap().instance.id.to_string();
        (0..count).map(id).collect()
    }

    fn fresh(nodes: &[Arc<Node>]) -> Smooth {
        Smooth {
            nodes: nodes.to_vec(),
            scores: Mutex::new(vec![0; nodes.len()]),
        }
    }

    #[test]
    fn turns_are_those_of_nginx() {
        let picker = fresh(&[node("a", 5), node("b", 1), node("c", 1)]);
        assert_eq!(turns(&picker, 14), "aabacaaaabacaa");
    }

    #[test]
    fn turn_goes_on_where_it_was_when_the_list_changes() {
        let nodes = [node("a", 2), node("b", 2), node("c", 2)];
        let picker = fresh(&nodes);
        assert_eq!(turns(&picker, 4), "abca");
        let same = Weighted.rebuild(&nodes, Some(&picker));
        assert_eq!(turns(&*same, 3), "bca");
        let fewer = Weighted.rebuild(&nodes[1..], Some(&*same));
        assert_eq!(turns(&*fewer, 3), "bcb");
    }

    #[test]
    fn any_weights_get_exactly_their_share_in_one_period() {
        let weights = [101, 7, 33, 4_000_000_000 / 1_000_000];
        let nodes: Vec<_> = ["a", "b", "c", "d"]
            .into_iter()
            .zip(weights)
            .map(|(name, weight)| node(name, weight))
            .collect();
        let period: u32 = weights.iter().sum();
        let turns = turns(&fresh(&nodes), usize::try_from(period).unwrap());
        for (name, weight) in ["a", "b", "c", "d"].into_iter().zip(weights) {
            assert_eq!(
                turns.matches(name).count(),
                usize::try_from(weight).unwrap(),
                "{name}"
            );
        }
    }

    #[test]
    fn many_callers_that_start_together_begin_at_different_instances() {
        fastrand::seed(1);
        let nodes = [node("a", 100), node("b", 100), node("c", 100)];
        let firsts = (0..300).map(|_| turns(&*Weighted.rebuild(&nodes, None), 1));
        let of_a = firsts.filter(|first| first == "a").count();
        assert!((60..140).contains(&of_a), "{of_a} of 300");
    }
}
