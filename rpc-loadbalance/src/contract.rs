//! The contract of every load balancer, as checks that any strategy can be put through: those of this crate,
//! and yours. A failed check panics with the broken promise and its seed.
//!
//! ```
//! use rpc_loadbalance::contract::{self, Promises};
//!
//! contract::check(&rpc_loadbalance::RoundRobin::new(), &Promises::equal_shares(0.01), contract::seed());
//! ```
//!
//! Some promises are not made by all strategies and are therefore chosen in [`Promises`]: how even the shares
//! are, whether they follow weights, and whether a key keeps its instance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rpc_core::balance::{LoadBalancer, Node, Pick};
use rpc_core::registry::{Instance, InstanceId};

/// The promises of one strategy beyond those of all.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// How far an instance's share may deviate from the expected one, as a fraction of it.
    pub spread_max: f64,
    /// Whether shares follow weights; if not, every weight above 0 counts the same.
    pub follows_weight: bool,
    /// Whether equal hash keys go to the same instance, and one change of the list of n moves at most 2/n of
    /// the keys.
    pub keeps_keys: bool,
}

impl Promises {
    /// Equal shares within `spread_max`, whatever the weights.
    #[must_use]
    pub const fn equal_shares(spread_max: f64) -> Self {
        Self {
            spread_max,
            follows_weight: false,
            keeps_keys: false,
        }
    }

    /// Shares in proportion to weight within `spread_max`.
    #[must_use]
    pub const fn weighted_shares(spread_max: f64) -> Self {
        Self {
            spread_max,
            follows_weight: true,
            keeps_keys: false,
        }
    }

    /// Shares of keys in proportion to weight within `spread_max`, and keys that keep their instance.
    #[must_use]
    pub const fn keyed_shares(spread_max: f64) -> Self {
        Self {
            spread_max,
            follows_weight: true,
            keeps_keys: true,
        }
    }
}

/// The seed for a run: the number in the environment variable `HC_MQ_SEED` to repeat one, else a random one.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("HC_MQ_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..))
}

/// A node whose id and address are `name`.
#[must_use]
pub fn node(name: &str, weight: u32) -> Arc<Node> {
    Arc::new(Node::new(Arc::new(Instance {
        id: InstanceId(name.to_owned()),
        address: name.to_owned(),
        name: String::new(),
        http: None,
        weight,
        zone: None,
        started_ms: 0,
        serializers: Vec::new(),
        meta: BTreeMap::new(),
    })))
}

/// `count` nodes of weight 100, sorted by id.
#[must_use]
pub fn nodes(count: usize) -> Vec<Arc<Node>> {
    (0..count)
        .map(|index| node(&format!("10.0.{}.{}:9090", index / 100, 100 + index % 100), 100))
        .collect()
}

/// Runs all checks.
///
/// # Panics
/// A promise is broken; the message names it and the seed.
pub fn check(balancer: &dyn LoadBalancer, promises: &Promises, seed: u64) {
    gives_only_what_is_in_the_list(balancer, seed);
    gives_none_for_an_empty_list(balancer);
    honours_tried(balancer, seed);
    gives_nothing_to_weight_zero(balancer, seed);
    works_from_many_threads(balancer, seed);
    shares_are_as_promised(balancer, promises, seed);
    if promises.keeps_keys {
        keeps_keys(balancer, seed);
        moves_few_keys(balancer, seed);
    }
}

fn pick(hash_key: Option<u64>, tried: &[InstanceId]) -> Pick<'_> {
    Pick {
        hash_key,
        tried,
        ..Pick::first("method", Instant::now())
    }
}

/// A hash key for half of the calls.
fn some_key() -> Option<u64> {
    fastrand::bool().then(|| fastrand::u64(..))
}

/// A picker returns exactly the nodes of the list that it was built from, and none of an earlier list.
///
/// # Panics
/// It returned another one, or none.
pub fn gives_only_what_is_in_the_list(balancer: &dyn LoadBalancer, seed: u64) {
    fastrand::seed(seed);
    let all = nodes(20);
    let mut previous = balancer.rebuild(&all, None);
    for round in 0..50 {
        let mut list: Vec<_> = all.iter().filter(|_| fastrand::bool()).cloned().collect();
        if list.is_empty() {
            list.push(all[0].clone());
        }
        let picker = balancer.rebuild(&list, Some(&*previous));
        for _ in 0..100 {
            let given = picker.pick(&pick(some_key(), &[]));
            let given =
                given.unwrap_or_else(|| panic!("seed {seed}, round {round}: none of {} given", list.len()));
            assert!(
                list.iter().any(|node| Arc::ptr_eq(node, &given)),
                "seed {seed}, round {round}: gave `{}`, which is not in the list",
                given.instance.id
            );
        }
        previous = picker;
    }
}

/// An empty list gives `None`, even after one that was not empty.
///
/// # Panics
/// It returned a node.
pub fn gives_none_for_an_empty_list(balancer: &dyn LoadBalancer) {
    for hash_key in [None, Some(0), Some(u64::MAX)] {
        let empty = balancer.rebuild(&[], None);
        assert!(
            empty.pick(&pick(hash_key, &[])).is_none(),
            "gave a node of an empty list"
        );
        let full = balancer.rebuild(&nodes(3), Some(&*empty));
        assert!(full.pick(&pick(hash_key, &[])).is_some(), "gave none of three");
        let empty = balancer.rebuild(&[], Some(&*full));
        assert!(
            empty.pick(&pick(hash_key, &[])).is_none(),
            "gave a node of the list before"
        );
    }
}

/// A call that is retried gets each instance once, then `None`.
///
/// # Panics
/// It got one that was tried, or none while some were left.
pub fn honours_tried(balancer: &dyn LoadBalancer, seed: u64) {
    fastrand::seed(seed);
    for count in 1..12 {
        let list = nodes(count);
        let picker = balancer.rebuild(&list, None);
        for hash_key in [None, Some(fastrand::u64(..))] {
            let mut tried = Vec::new();
            while let Some(given) = picker.pick(&pick(hash_key, &tried)) {
                let id = given.instance.id.clone();
                assert!(
                    !tried.contains(&id),
                    "seed {seed}: gave `{id}` again after {tried:?}"
                );
                tried.push(id);
            }
            assert_eq!(tried.len(), count, "seed {seed}: gave none while some were left");
        }
    }
}

/// Weight 0 takes no load, even if there is no other instance.
///
/// # Panics
/// It got a call.
pub fn gives_nothing_to_weight_zero(balancer: &dyn LoadBalancer, seed: u64) {
    fastrand::seed(seed);
    let mixed = [node("a", 0), node("b", 100), node("c", 0), node("d", 1)];
    let picker = balancer.rebuild(&mixed, None);
    for _ in 0..2000 {
        let given = picker.pick(&pick(some_key(), &[]));
        let given = given.unwrap_or_else(|| panic!("seed {seed}: gave none though two have a weight"));
        assert!(
            given.instance.weight > 0,
            "seed {seed}: gave `{}` of weight 0",
            given.instance.id
        );
    }
    let drained = balancer.rebuild(&mixed[..1], Some(&*picker));
    assert!(
        drained.pick(&pick(some_key(), &[])).is_none(),
        "seed {seed}: gave the only node though its weight is 0"
    );
}

/// Many threads pick while the list is rebuilt; each gets a node of the list.
///
/// # Panics
/// One of them got none, or one that is not in the list.
pub fn works_from_many_threads(balancer: &dyn LoadBalancer, seed: u64) {
    let list = nodes(7);
    let ids: BTreeSet<_> = list.iter().map(|node| node.instance.id.clone()).collect();
    let picker = balancer.rebuild(&list, None);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (picker, ids) = (&picker, &ids);
            scope.spawn(move || {
                fastrand::seed(seed.wrapping_add(thread));
                for _ in 0..5000 {
                    let given = picker.pick(&pick(some_key(), &[]));
                    let id = given.map(|node| node.instance.id.clone());
                    assert!(
                        id.as_ref().is_some_and(|id| ids.contains(id)),
                        "seed {seed}: gave {id:?} while others were picking"
                    );
                }
            });
        }
        for _ in 0..50 {
            drop(balancer.rebuild(&list, Some(&*picker)));
        }
    });
}

/// Over many calls each instance gets its share, for lists of 2 to 20 and for unequal weights.
///
/// # Panics
/// A share deviates more than promised.
pub fn shares_are_as_promised(balancer: &dyn LoadBalancer, promises: &Promises, seed: u64) {
    fastrand::seed(seed);
    for count in 2..=20 {
        check_shares(balancer, promises, &nodes(count), seed);
        // Names of three bytes that differ in one bit: weak hashing puts them at the same positions.
        let alike: Vec<_> = (b'A'..)
            .take(count)
            .map(|last| node(&format!("h:{}", char::from(last)), 100))
            .collect();
        check_shares(balancer, promises, &alike, seed);
    }
    let unequal: Vec<_> = [50, 100, 200, 400]
        .into_iter()
        .zip(nodes(4))
        .map(|(weight, like)| node(&like.instance.address, weight))
        .collect();
    check_shares(balancer, promises, &unequal, seed);
}

fn check_shares(balancer: &dyn LoadBalancer, promises: &Promises, list: &[Arc<Node>], seed: u64) {
    // Enough calls that chance alone stays far below the limit: for a share of 1/20 one standard deviation is
    // 2 % of it.
    let calls: u32 = 60_000;
    let picker = balancer.rebuild(list, None);
    let mut counts: BTreeMap<InstanceId, u32> = BTreeMap::new();
    for _ in 0..calls {
        let key = promises.keeps_keys.then(|| fastrand::u64(..));
        if let Some(given) = picker.pick(&pick(key, &[])) {
            *counts.entry(given.instance.id.clone()).or_default() += 1;
        }
    }
    let weight = |node: &Node| {
        if promises.follows_weight {
            f64::from(node.instance.weight)
        } else {
            1.0
        }
    };
    let total: f64 = list.iter().map(|node| weight(node)).sum();
    for node in list {
        let expected = f64::from(calls) * weight(node) / total;
        let got = f64::from(counts.get(&node.instance.id).copied().unwrap_or(0));
        assert!(
            (got / expected - 1.0).abs() <= promises.spread_max,
            "seed {seed}: of {calls} calls over {} nodes `{}` got {got}, expected {expected:.0} +- {:.0} %",
            list.len(),
            node.instance.id,
            promises.spread_max * 100.0
        );
    }
}

/// One key, one instance: even with a rebuilt picker of an equal list.
///
/// # Panics
/// A key moved.
pub fn keeps_keys(balancer: &dyn LoadBalancer, seed: u64) {
    fastrand::seed(seed);
    let list = nodes(9);
    let (one, other) = (balancer.rebuild(&list, None), balancer.rebuild(&list, None));
    for _ in 0..2000 {
        let key = fastrand::u64(..);
        let owners = [&one, &other, &one].map(|picker| {
            let given = picker.pick(&pick(Some(key), &[]));
            given.map(|node| node.instance.id.clone())
        });
        assert!(
            owners[0] == owners[1] && owners[1] == owners[2],
            "seed {seed}: key {key} went to {owners:?}"
        );
    }
}

/// If one of n instances is added or removed, at most 2/n of the keys move, and none moves between two that
/// stay.
///
/// # Panics
/// More moved, or one moved needlessly.
pub fn moves_few_keys(balancer: &dyn LoadBalancer, seed: u64) {
    fastrand::seed(seed);
    for count in [2, 3, 5, 10, 30] {
        let list = nodes(count);
        let mut fewer = list.clone();
        let gone = fewer.remove(fastrand::usize(..count)).instance.id.clone();
        let with = balancer.rebuild(&list, None);
        let without = balancer.rebuild(&fewer, Some(&*with));
        let keys = 10_000;
        let mut moved = 0usize;
        for _ in 0..keys {
            let key = fastrand::u64(..);
            let owner = |picker: &Arc<dyn rpc_core::balance::Picker>| {
                let given = picker.pick(&pick(Some(key), &[]));
                given.map(|node| node.instance.id.clone())
            };
            let (before, after) = (owner(&with), owner(&without));
            if before != after {
                assert_eq!(
                    before.as_ref(),
                    Some(&gone),
                    "seed {seed}: key {key} moved from {before:?} to {after:?} though both stay"
                );
                moved += 1;
            }
        }
        assert!(
            moved * count <= 2 * keys,
            "seed {seed}: {moved} of {keys} keys moved when one of {count} went"
        );
    }
}
