//! Chooses by the call's hash key, on a ring of points as in ketama (Richard Jones, Last.fm, 2007), so that a
//! change of the list moves only the keys of the instance that was added or removed.
//!
//! Points are hashed with xxh3-64 from an instance's **address**, not from its id: the id is new at each
//! start, and a restarted instance should get its own keys back. With 160 points per 100 weight alone, an
//! instance's share has a standard deviation of 8 %; a key therefore has two positions on the ring and takes
//! the point that follows one of them most closely (multi-probe consistent hashing, Appleton and O'Reilly,
//! 2015), which reduces it to 4.6 %: 25 % are five of them.
//!
//! Load is bounded (Mirrokni, Thorup, Zadimoghaddam, *Consistent Hashing with Bounded Loads*, 2016; in
//! HAProxy as `hash-balance-factor`): an instance gets no call that would give it more than c times its share
//! of the calls in flight; the excess calls of a hot key go to the next instances on the ring, always the
//! same ones.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};
use rpc_core::plugin::{PluginError, Settings};
use xxhash_rust::xxh3::xxh3_64;

use crate::random::RandomPicker;
use crate::{was_tried, willing};

crate::strategy!("consistent_hash", &["bound"], ConsistentHash::from_settings);

/// Points on the ring for an instance of weight 100. With 10, as in the original hc-rpc, one of three
/// instances got the whole ring.
const POINTS_PER_100_WEIGHT: u32 = 160;
/// A higher weight counts as this: weights come from outside, and a ring must not fill the memory.
const WEIGHT_MAX: u32 = 1000;
/// Percent of its share that an instance takes by default: the c of the paper, 1.25.
const BOUND_PERCENT: u32 = 125;

/// The strategy `consistent_hash`: equal hash keys go to the same instance while it exists and has capacity.
/// A call without a hash key goes to a random instance, in proportion to weight.
///
/// Setting: `bound` (125), the percentage of an instance's share of the calls in flight above which its keys
/// go to the next instance; above 100, or `none`: a key never leaves its instance, and a hot one may overload
/// it.
///
/// ```
/// # use std::time::Instant;
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{ConsistentHash, contract::nodes};
///
/// let picker = ConsistentHash::new().rebuild(&nodes(4), None);
/// let pick = Pick { hash_key: Some(42), ..Pick::first("load", Instant::now()) };
/// let owner = picker.pick(&pick).unwrap();
/// assert_eq!(picker.pick(&pick).unwrap().instance, owner.instance);
/// // Twenty calls at one of four: more than 125 % of five each.
/// (0..20).for_each(|_| owner.call_started());
/// assert_ne!(picker.pick(&pick).unwrap().instance, owner.instance);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ConsistentHash {
    bound_percent: Option<u32>,
}

impl Default for ConsistentHash {
    fn default() -> Self {
        Self::new()
    }
}

impl ConsistentHash {
    /// The strategy, bounded to 125 % of an instance's share.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bound_percent: Some(BOUND_PERCENT),
        }
    }

    /// Sets the bound, at least 101 %.
    #[must_use]
    pub const fn bound(mut self, percent: u32) -> Self {
        self.bound_percent = Some(if percent > 100 { percent } else { 101 });
        self
    }

    /// Removes the bound.
    #[must_use]
    pub const fn unbounded(mut self) -> Self {
        self.bound_percent = None;
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        if settings.text("bound") == Some("none") {
            return Ok(Self::new().unbounded());
        }
        match settings.parse("bound", BOUND_PERCENT)? {
            percent @ 101.. => Ok(Self::new().bound(percent)),
            percent => Err(PluginError::Setting {
                key: "bound".to_owned(),
                reason: format!("`{percent}`: expected percent above 100, or `none`"),
            }),
        }
    }
}

impl LoadBalancer for ConsistentHash {
    fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
        Arc::new(Ring::new(nodes, self.bound_percent))
    }

    fn needs_figures(&self) -> bool {
        self.bound_percent.is_some()
    }
}

#[derive(Debug)]
struct Ring {
    /// Sorted; the second is the index in `nodes`.
    points: Vec<(u64, u32)>,
    nodes: Vec<Arc<Node>>,
    without_key: RandomPicker,
    bound_percent: Option<u32>,
    weights: u64,
}

impl Ring {
    fn new(nodes: &[Arc<Node>], bound_percent: Option<u32>) -> Self {
        let nodes = willing(nodes);
        let mut points = Vec::new();
        for (index, node) in (0u32..).zip(&nodes) {
            let identity = xxh3_64(node.instance.address.as_bytes());
            let of_node = 0..points_of(node.instance.weight);
            points.extend(of_node.map(|number| (point(identity, number), index)));
        }
        points.sort_unstable();
        Self {
            points,
            without_key: RandomPicker::new(&nodes),
            weights: nodes.iter().map(|node| u64::from(node.instance.weight)).sum(),
            nodes,
            bound_percent,
        }
    }

    /// How many calls `node` may have in flight if there are `total` in all, including the new one: its share
    /// of them times the bound, rounded up, so that every instance may have at least one.
    fn room(&self, node: &Node, total: u64, bound_percent: u32) -> u128 {
        let share = u128::from(total) * u128::from(node.instance.weight) * u128::from(bound_percent);
        share.div_ceil(u128::from(self.weights) * 100)
    }

    /// The untried nodes in the order of the ring from `start`; each as often as it has points.
    fn untried<'a>(&'a self, start: usize, pick: &'a Pick<'_>) -> impl Iterator<Item = &'a Arc<Node>> {
        let (before, from) = self.points.split_at(start);
        from.iter()
            .chain(before)
            .filter_map(|(_, index)| self.nodes.get(usize::try_from(*index).ok()?))
            .filter(|node| !was_tried(pick, node))
    }

    /// The index of the point that follows one of the key's positions most closely.
    fn start(&self, key: u64) -> usize {
        let behind = places(key).map(|place| {
            let index = self.points.partition_point(|(point, _)| *point < place);
            let index = if index == self.points.len() { 0 } else { index };
            let distance = self
                .points
                .get(index)
                .map_or(0, |(point, _)| point.wrapping_sub(place));
            (distance, index)
        });
        behind[0].min(behind[1]).1
    }
}

/// Not `xxh3_64_with_seed(address, number)`: for short inputs the seed is only xored with the text, so that
/// `h:0` and `h:1` would have the same points.
fn point(identity: u64, number: u32) -> u64 {
    let mut input = [0; 12];
    input[..8].copy_from_slice(&identity.to_be_bytes());
    input[8..].copy_from_slice(&number.to_be_bytes());
    xxh3_64(&input)
}

/// The two positions of a key. Keys are often small numbers: without hashing, they would all be at the ring's
/// start.
fn places(key: u64) -> [u64; 2] {
    let first = xxh3_64(&key.to_be_bytes());
    [first, xxh3_64(&first.to_be_bytes())]
}

/// At least one, so that a tiny weight is not the same as none.
fn points_of(weight: u32) -> u32 {
    (weight.min(WEIGHT_MAX) * POINTS_PER_100_WEIGHT / 100).max(1)
}

impl Picker for Ring {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let Some(key) = pick.hash_key else {
            return self.without_key.pick(pick);
        };
        let mut untried = self.untried(self.start(key), pick);
        let owner = untried.next()?;
        let bound_percent = match self.bound_percent {
            // If it has nothing in flight it can take one.
            Some(percent) if owner.active() > 0 => percent,
            _ => return Some(Arc::clone(owner)),
        };
        let under_way = self.nodes.iter().map(|node| u64::from(node.active()));
        let total = under_way.sum::<u64>() + 1;
        let has_room = |node: &&Arc<Node>| u128::from(node.active()) < self.room(node, total, bound_percent);
        let chosen = std::iter::once(owner).chain(untried).find(has_room);
        // None has capacity only if some were tried already.
        Some(Arc::clone(chosen.unwrap_or(owner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::node;

    fn owner(picker: &Arc<dyn Picker>, key: u64) -> String {
        let pick = Pick {
            hash_key: Some(key),
            ..Pick::first("m", std::time::Instant::now())
        };
        picker.pick(&pick).unwrap().instance.address.clone()
    }

    #[test]
    fn restarted_instance_gets_its_keys_back() {
        let before = [node("a", 100), node("b", 100), node("c", 100)];
        let mut restarted = (*before[1].instance).clone();
        restarted.id = rpc_core::registry::InstanceId("zz".into());
        let after = [
            before[0].clone(),
            before[2].clone(),
            Arc::new(Node::new(Arc::new(restarted))),
        ];
        let (old, new) = (
            ConsistentHash::new().rebuild(&before, None),
            ConsistentHash::new().rebuild(&after, None),
        );
        for key in 0..1000 {
            assert_eq!(owner(&old, key), owner(&new, key), "key {key}");
        }
    }

    #[test]
    fn points_follow_weight_within_limits() {
        assert_eq!(
            [1, 50, 100, 250, u32::MAX].map(points_of),
            [1, 80, 160, 400, 1600],
            "a weight from outside cannot make the ring huge"
        );
    }

    #[test]
    fn ring_places_are_pinned() {
        // Two processes of different builds must agree on the owner of a key: changing the ring is a breaking
        // change.
        let nodes = ["h:0", "h:1", "h:2", "h:3", "h:4"].map(|address| node(address, 100));
        let picker = ConsistentHash::new().rebuild(&nodes, None);
        let owners: String = (0..16).map(|key| owner(&picker, key).split_off(2)).collect();
        assert_eq!(owners, "1144444204410232");
    }

    #[test]
    fn hot_key_never_takes_more_than_the_bound_and_flows_over_to_the_same_instances() {
        for (seed, percent) in [(1_u64, 125_u32), (2, 110), (3, 200)] {
            fastrand::seed(seed);
            let weights = [100, 100, 200, 50, 100, 100];
            let nodes: Vec<_> = weights
                .into_iter()
                .enumerate()
                .map(|(number, weight)| node(&format!("10.0.0.{number}:9090"), weight))
                .collect();
            let picker = ConsistentHash::new().bound(percent).rebuild(&nodes, None);
            let mut under_way: Vec<Arc<Node>> = Vec::new();
            for step in 0..5000_u32 {
                // Half of all calls have the same key; as many start as end, with around 100 in flight.
                let key = if fastrand::bool() { 7 } else { fastrand::u64(..) };
                let pick = Pick {
                    hash_key: Some(key),
                    ..Pick::first("m", std::time::Instant::now())
                };
                let chosen = picker.pick(&pick).unwrap();
                chosen.call_started();
                under_way.push(Arc::clone(&chosen));
                let total = u64::try_from(under_way.len()).unwrap();
                let (share, all) = (u64::from(chosen.instance.weight), 650);
                let most = (total * share * u64::from(percent)).div_ceil(all * 100);
                assert!(
                    u64::from(chosen.active()) <= most,
                    "seed {seed}, step {step}: {} of {total} at {}, at most {most}",
                    chosen.active(),
                    chosen.instance.address
                );
                if under_way.len() > 50 + fastrand::usize(..100) {
                    let ended = under_way.swap_remove(fastrand::usize(..under_way.len()));
                    ended.call_ended();
                }
            }
        }
    }

    #[test]
    fn without_a_bound_a_key_never_leaves_its_instance() {
        let nodes = ["a", "b", "c"].map(|name| node(name, 100));
        let settings = Settings::new().with("bound", "none");
        let balancer = ConsistentHash::from_settings(&settings).unwrap();
        assert!(!balancer.needs_figures());
        let picker = balancer.rebuild(&nodes, None);
        let first = owner(&picker, 7);
        nodes
            .iter()
            .find(|node| node.instance.address == first)
            .unwrap()
            .call_started();
        assert_eq!(owner(&picker, 7), first);
        let low = ConsistentHash::from_settings(&Settings::new().with("bound", "100"));
        assert!(low.is_err_and(|error| error.to_string().contains("above 100")));
    }
}
