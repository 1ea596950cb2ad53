//! By the call's hash key, over a ring of points as in ketama (Richard Jones, Last.fm, 2007), so that a change of the
//! list moves only the keys of the instance which came or went.
//!
//! Points are mixed with xxh3-64 from an instance's **address**, not from its id: the id is new at each start, and a
//! restart should get its own keys back. With 160 points per 100 weight alone an instance's share has a standard deviation
//! of 8 %; a key therefore has two places on the ring and takes the point which lies closest behind one of them
//! (multi-probe consistent hashing, Appleton and O'Reilly, 2015), which brings it to 4.6 %: 25 % are five of them.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin, Node, Pick, Picker};
use xxhash_rust::xxh3::xxh3_64;

use crate::random::RandomPicker;
use crate::{was_tried, willing};

rpc_core::plugin!(LoadBalancerPlugin, "consistent_hash", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(ConsistentHash::new()))
});

/// Points on the ring of an instance of weight 100. The original's 10 gave one of three instances the whole ring.
const POINTS_PER_100_WEIGHT: u32 = 160;
/// A weight above this counts as this: weights come from outside, and a ring must not fill the memory.
const WEIGHT_MAX: u32 = 1000;

/// The strategy `consistent_hash`: equal hash keys go to the same instance as long as it is there. A call without a
/// hash key goes to an instance by chance, in proportion to weight.
#[derive(Debug, Default, Clone, Copy)]
pub struct ConsistentHash;

impl ConsistentHash {
    /// The strategy; it has no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl LoadBalancer for ConsistentHash {
    fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
        Arc::new(Ring::new(nodes))
    }

    fn needs_figures(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Ring {
    /// Sorted; the second is the index in `nodes`.
    points: Vec<(u64, u32)>,
    nodes: Vec<Arc<Node>>,
    without_key: RandomPicker,
}

impl Ring {
    fn new(nodes: &[Arc<Node>]) -> Self {
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
            nodes,
        }
    }

    /// The index of the point closest behind one of the key's places.
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

/// Not `xxh3_64_with_seed(address, number)`: for short inputs the seed is only xored with the text, so that the points of
/// `h:0` and `h:1` would be the same ones.
fn point(identity: u64, number: u32) -> u64 {
    let mut input = [0; 12];
    input[..8].copy_from_slice(&identity.to_be_bytes());
    input[8..].copy_from_slice(&number.to_be_bytes());
    xxh3_64(&input)
}

/// The two places of a key. Keys are often small numbers: unmixed, they would all lie at the ring's start.
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
        let start = self.start(key);
        let (before, from) = self.points.split_at(start);
        from.iter()
            .chain(before)
            .filter_map(|(_, index)| self.nodes.get(usize::try_from(*index).ok()?))
            .find(|node| !was_tried(pick, node))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::node;

    fn owner(picker: &Arc<dyn Picker>, key: u64) -> String {
        let pick = Pick {
            method: "m",
            hash_key: Some(key),
            tried: &[],
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
            ConsistentHash.rebuild(&before, None),
            ConsistentHash.rebuild(&after, None),
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
        // Two processes of different builds must agree on the owner of a key: changing the ring is a breaking change.
        let nodes = ["h:0", "h:1", "h:2", "h:3", "h:4"].map(|address| node(address, 100));
        let picker = ConsistentHash.rebuild(&nodes, None);
        let owners: String = (0..16).map(|key| owner(&picker, key).split_off(2)).collect();
        assert_eq!(owners, "1144444204410232");
    }
}
