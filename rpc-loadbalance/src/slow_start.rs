//! Slow start: an instance that has just started gets its share gradually, while its caches and connections
//! fill.
//!
//! Dubbo's warm-up and Envoy's slow start mode scale the weight; here the strategy's choice is accepted with
//! a probability that grows with uptime, so that it works with any strategy, even one that ignores weight.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};
use rpc_core::registry::InstanceId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The smallest part of its share that an instance gets: with nothing at all it would never warm up.
const LEAST_PERMILLE: u64 = 100;

/// A strategy whose share for a young instance grows from a tenth to all of it within a time, in proportion
/// to its uptime: the uptime that it registered, or the time since it was first seen. If all instances are
/// young (the first start of a system) they share equally. For a keyed call the decision is made by its key,
/// so that keys move to a young instance one by one and stay.
///
/// ```
/// # use std::time::Duration;
/// use rpc_loadbalance::{P2c, SlowStart};
///
/// let balancer = SlowStart::new(P2c::new(), Duration::from_secs(30));
/// // By name: .load_balancer("p2c?slow_start_ms=30000")
/// # drop(balancer);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SlowStart<B> {
    strategy: B,
    time: Duration,
}

impl<B: LoadBalancer> SlowStart<B> {
    /// `strategy`, with this time to grow from a tenth of a share to all of it.
    #[must_use]
    pub const fn new(strategy: B, time: Duration) -> Self {
        Self { strategy, time }
    }
}

impl<B: LoadBalancer> LoadBalancer for SlowStart<B> {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let previous = previous.and_then(|picker| (picker as &dyn Any).downcast_ref::<Ramp>());
        Arc::new(Ramp {
            picker: self
                .strategy
                .rebuild(nodes, previous.map(|previous| &*previous.picker)),
            nodes: nodes
                .iter()
                .filter(|node| node.instance.weight > 0)
                .cloned()
                .collect(),
            time: self.time,
        })
    }

    fn needs_figures(&self) -> bool {
        self.strategy.needs_figures()
    }
}

#[derive(Debug)]
struct Ramp {
    picker: Arc<dyn Picker>,
    nodes: Vec<Arc<Node>>,
    time: Duration,
}

impl Ramp {
    /// The part of its share that a node gets, in thousandths.
    fn permille(&self, node: &Node, now: Instant) -> u64 {
        let (uptime, time) = (node.uptime(now).as_millis(), self.time.as_millis());
        match uptime.saturating_mul(1000).checked_div(time) {
            Some(permille) => u64::try_from(permille)
                .unwrap_or(1000)
                .clamp(LEAST_PERMILLE, 1000),
            None => 1000,
        }
    }

    /// Whether this call may go to `node`.
    fn takes(&self, node: &Node, pick: &Pick<'_>) -> bool {
        let own = self.permille(node, pick.now);
        if own == 1000 {
            return true;
        }
        // Only if a young instance was chosen.
        let all = self.nodes.iter().map(|node| self.permille(node, pick.now));
        let most = all.max().unwrap_or(1000);
        let draw = match pick.hash_key {
            Some(key) => xxh3_64_with_seed(node.instance.address.as_bytes(), key) % most,
            None => fastrand::u64(..most),
        };
        draw < own
    }
}

impl Picker for Ramp {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let chosen = self.picker.pick(pick)?;
        if self.takes(&chosen, pick) {
            return Some(chosen);
        }
        let mut passed_over: Vec<InstanceId> = pick.tried.to_vec();
        passed_over.push(chosen.instance.id.clone());
        loop {
            let pick = Pick {
                tried: &passed_over,
                ..*pick
            };
            match self.picker.pick(&pick) {
                Some(other) if self.takes(&other, &pick) => return Some(other),
                Some(other) => passed_over.push(other.instance.id.clone()),
                None => return Some(chosen),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;
    use crate::simulation::{counts, instance};
    use crate::{ConsistentHash, Random, RoundRobin, Weighted};

    const TIME: Duration = Duration::from_secs(30);

    /// Nine old instances and a young one, named `young`.
    fn nodes(start: Instant) -> Vec<Arc<Node>> {
        let day_ms = 86_400_000;
        let name = |number| format!("old{number}");
        let old = (0..9).map(|number| Node::seen(instance(&name(number), 100, 1), start, day_ms));
        let young = Node::seen(instance("young", 100, day_ms), start, day_ms);
        old.chain([young]).map(Arc::new).collect()
    }

    #[test]
    fn share_grows_with_uptime_over_any_strategy() {
        fastrand::seed(1);
        let start = Instant::now();
        let nodes = nodes(start);
        let strategies: [Arc<dyn LoadBalancer>; 3] = [
            Arc::new(Random::new()),
            Arc::new(RoundRobin::new()),
            Arc::new(Weighted::new()),
        ];
        for strategy in strategies {
            let picker = SlowStart::new(strategy, TIME).rebuild(&nodes, None);
            for (uptime_s, share) in [
                (0, 0.01),
                (3, 0.01),
                (15, 0.05),
                (24, 0.08),
                (30, 0.1),
                (300, 0.1),
            ] {
                let now = start + Duration::from_secs(uptime_s);
                let young = f64::from(counts(&*picker, now, 20_000)["young"]) / 20_000.0;
                assert!(
                    (young / share - 1.0).abs() < 0.2,
                    "{picker:?} after {uptime_s} s: {young}, expected {share}"
                );
            }
        }
    }

    #[test]
    fn instances_that_started_together_share_alike() {
        fastrand::seed(2);
        let start = Instant::now();
        let node = |name| Arc::new(Node::seen(instance(name, 100, 0), start, 1));
        let nodes = ["a", "b", "c"].map(node);
        let picker = SlowStart::new(Random::new(), TIME).rebuild(&nodes, None);
        for (name, count) in counts(&*picker, start, 9000) {
            assert!((2700..3300).contains(&count), "{name} got {count} of 9000");
        }
    }

    #[test]
    fn keys_come_one_by_one_and_stay() {
        let start = Instant::now();
        let nodes = nodes(start);
        let picker = SlowStart::new(ConsistentHash::new(), TIME).rebuild(&nodes, None);
        let keys_of_young = |seconds: u64| -> Vec<u64> {
            let pick = |key| Pick {
                hash_key: Some(key),
                ..Pick::first("m", start + Duration::from_secs(seconds))
            };
            let is_young = |key: &u64| picker.pick(&pick(*key)).unwrap().instance.address == "young";
            (0..5000).filter(is_young).collect()
        };
        let (early, half, late) = (keys_of_young(1), keys_of_young(15), keys_of_young(30));
        assert!(!early.is_empty() && early.len() * 3 < half.len() && half.len() * 3 < late.len() * 2);
        assert!(early.iter().all(|key| half.contains(key)), "a key left again");
        assert!(half.iter().all(|key| late.contains(key)), "a key left again");
    }

    #[test]
    fn keeps_the_contract() {
        let promises = contract::Promises::weighted_shares(0.12);
        contract::check(&SlowStart::new(Random::new(), TIME), &promises, contract::seed());
    }
}
