//! Callers and instances in simulated time, for tests: calls arrive at a steady rate and take as long as
//! their instance needs; the nodes' statistics are kept as an invoker keeps them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::balance::{Node, Pick, Picker};
use rpc_core::registry::{Instance, InstanceId};

/// An instance whose id and address are `name`.
pub(crate) fn instance(name: &str, weight: u32, started_ms: u64) -> Arc<Instance> {
    Arc::new(Instance {
        id: InstanceId(name.to_owned()),
        address: name.to_owned(),
        name: String::new(),
        http: None,
        weight,
        zone: None,
        started_ms,
        serializers: Vec::new(),
        meta: BTreeMap::new(),
    })
}

/// How often each address is picked in `picks` picks at one moment.
pub(crate) fn counts(picker: &dyn Picker, now: Instant, picks: u32) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        let node = picker.pick(&Pick::first("m", now)).expect("there are instances");
        *counts.entry(node.instance.address.clone()).or_default() += 1;
    }
    counts
}

/// A simulation with one caller.
pub(crate) struct World {
    pub(crate) now: Instant,
    /// Ends of calls: the time, the node, and the duration. The number keeps equal times in order.
    running: BinaryHeap<Reverse<(Instant, u64, usize, Duration)>>,
    nodes: Vec<Arc<Node>>,
    number: u64,
}

impl World {
    pub(crate) fn new(nodes: &[Arc<Node>], now: Instant) -> Self {
        Self {
            now,
            running: BinaryHeap::new(),
            nodes: nodes.to_vec(),
            number: 0,
        }
    }

    /// Runs for `time` with a call every `every`; `takes` returns how long a call takes at an address with
    /// that many calls in flight there. Returns the number of calls of each address.
    pub(crate) fn run(
        &mut self,
        picker: &dyn Picker,
        (time, every): (Duration, Duration),
        takes: impl Fn(&str, u32) -> Duration,
    ) -> BTreeMap<String, u32> {
        let end = self.now + time;
        let mut counts = BTreeMap::new();
        while self.now < end {
            self.now += every;
            self.finish();
            let node = picker
                .pick(&Pick::first("m", self.now))
                .expect("there are instances");
            let index = self.nodes.iter().position(|known| Arc::ptr_eq(known, &node));
            let index = index.expect("it is one of ours");
            node.call_started();
            let address = &node.instance.address;
            let takes = takes(address, node.active());
            self.number += 1;
            self.running
                .push(Reverse((self.now + takes, self.number, index, takes)));
            *counts.entry(address.clone()).or_default() += 1;
        }
        counts
    }

    fn finish(&mut self) {
        while let Some(Reverse((at, _, index, took))) = self.running.peek().copied() {
            if at > self.now {
                return;
            }
            self.running.pop();
            self.nodes[index].call_ended();
            self.nodes[index].note_answer(took, at);
        }
    }
}

mod tests {
    use rpc_core::balance::LoadBalancer;

    use super::*;
    use crate::{LeastActive, P2c, RoundRobin};

    const EVERY: Duration = Duration::from_millis(1);
    const TEN_SECONDS: (Duration, Duration) = (Duration::from_secs(10), EVERY);

    fn nodes(start: Instant, weights: &[u32]) -> Vec<Arc<Node>> {
        let node = |(number, weight): (usize, &u32)| {
            Arc::new(Node::seen(instance(&format!("n{number}"), *weight, 0), start, 0))
        };
        weights.iter().enumerate().map(node).collect()
    }

    /// `n0` takes ten times as long as the others, which take about 10 ms; all take longer the more they have
    /// in flight.
    fn slow_first(address: &str, active: u32) -> Duration {
        let base = if address == "n0" { 100.0 } else { 10.0 };
        let noise = 0.8 + 0.4 * fastrand::f64();
        Duration::from_secs_f64(base * noise * (1.0 + f64::from(active) / 20.0) / 1000.0)
    }

    fn even(_: &str, active: u32) -> Duration {
        slow_first("other", active)
    }

    fn share(counts: &BTreeMap<String, u32>, address: &str) -> f64 {
        let all: u32 = counts.values().sum();
        f64::from(counts.get(address).copied().unwrap_or(0)) / f64::from(all)
    }

    #[test]
    fn p2c_gives_a_slow_instance_little_and_takes_it_back_when_it_is_fast_again() {
        for seed in 1..=5 {
            fastrand::seed(seed);
            let start = Instant::now();
            let nodes = nodes(start, &[100; 10]);
            let picker = P2c::new().rebuild(&nodes, None);
            let mut world = World::new(&nodes, start);
            world.run(&*picker, TEN_SECONDS, even);
            let usual = world.run(&*picker, TEN_SECONDS, even);
            for node in &nodes {
                let share = share(&usual, &node.instance.address);
                assert!((0.03..0.25).contains(&share), "seed {seed}: {usual:?}");
            }
            let slow = world.run(&*picker, (Duration::from_secs(30), EVERY), slow_first);
            assert!(share(&slow, "n0") < 0.02, "seed {seed}, slow: {slow:?}");
            assert!(
                slow["n0"] > 0,
                "seed {seed}: a slow one must be tried now and then"
            );
            world.run(&*picker, (Duration::from_secs(40), EVERY), even);
            let again = world.run(&*picker, TEN_SECONDS, even);
            assert!(share(&again, "n0") > 0.03, "seed {seed}, fast again: {again:?}");
        }
    }

    #[test]
    fn p2c_neither_floods_nor_starves_a_newcomer() {
        for seed in 1..=5 {
            fastrand::seed(seed);
            let start = Instant::now();
            let nodes = nodes(start, &[100; 10]);
            let balancer = P2c::new();
            let picker = balancer.rebuild(&nodes[..9], None);
            let mut world = World::new(&nodes, start);
            world.run(&*picker, TEN_SECONDS, even);
            let picker = balancer.rebuild(&nodes, Some(&*picker));
            let at_once = world.run(&*picker, (Duration::from_secs(1), EVERY), even);
            let share = share(&at_once, "n9");
            assert!((0.02..0.3).contains(&share), "seed {seed}: {at_once:?}");
        }
    }

    #[test]
    fn p2c_waits_less_than_round_robin_when_one_instance_is_slow() {
        let mean_wait = |balancer: &dyn LoadBalancer| {
            fastrand::seed(7);
            let start = Instant::now();
            let nodes = nodes(start, &[100; 4]);
            let picker = balancer.rebuild(&nodes, None);
            let waited = std::cell::Cell::new(Duration::ZERO);
            let takes = |address: &str, active| {
                let takes = slow_first(address, active);
                waited.set(waited.get() + takes);
                takes
            };
            let counts = World::new(&nodes, start).run(&*picker, TEN_SECONDS, takes);
            waited.get() / counts.values().sum()
        };
        let (in_turn, p2c) = (mean_wait(&RoundRobin::new()), mean_wait(&P2c::new()));
        assert!(p2c * 2 < in_turn, "p2c {p2c:?}, in turn {in_turn:?}");
    }

    #[test]
    fn under_load_least_active_and_p2c_follow_weight() {
        let weights = [50, 100, 200, 400];
        let balancers: [&dyn LoadBalancer; 2] = [&LeastActive::new(), &P2c::new()];
        for (balancer, within) in balancers.into_iter().zip([0.1, 0.35]) {
            fastrand::seed(3);
            let start = Instant::now();
            let nodes = nodes(start, &weights);
            let picker = balancer.rebuild(&nodes, None);
            // 200 calls in flight.
            let counts =
                World::new(&nodes, start).run(&*picker, TEN_SECONDS, |_, _| Duration::from_millis(200));
            for (number, weight) in weights.into_iter().enumerate() {
                let (share, expected) = (share(&counts, &format!("n{number}")), f64::from(weight) / 750.0);
                assert!(
                    (share / expected - 1.0).abs() < within,
                    "{balancer:?}: weight {weight} got {share:.3}, expected {expected:.3}"
                );
            }
        }
    }

    #[test]
    fn least_active_gives_a_slow_instance_as_many_at_a_time_as_the_others() {
        fastrand::seed(4);
        let start = Instant::now();
        let nodes = nodes(start, &[100; 5]);
        let picker = LeastActive::new().rebuild(&nodes, None);
        let takes = |address: &str, _| Duration::from_millis(if address == "n0" { 400 } else { 40 });
        let mut world = World::new(&nodes, start);
        let counts = world.run(&*picker, TEN_SECONDS, takes);
        // At any moment the counts in flight differ by at most one: a tenth of the speed, a tenth of the
        // calls.
        let active: Vec<_> = nodes.iter().map(|node| node.active()).collect();
        let (least, most) = (active.iter().min().unwrap(), active.iter().max().unwrap());
        assert!(most - least <= 2, "{active:?}");
        assert!((0.015..0.035).contains(&share(&counts, "n0")), "{counts:?}");
    }
}
