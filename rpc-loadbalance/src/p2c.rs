//! Power of two choices with peak EWMA: the better of two random instances.
//!
//! Two choices: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001; if all callers
//! looked for the very best instance, they would all choose the same one. "Better" is defined as in Finagle's
//! `PeakEwma`, tower and brpc's `p2c`: a moving average of answer times that follows a slow answer at once
//! and a fast one slowly, times the calls in flight. A new instance starts at the median of its peers: any
//! constant starves it or floods it (tower #134).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};
use rpc_core::plugin::PluginError;

use crate::random::RandomPicker;
use crate::willing;

crate::strategy!("p2c", &["tau_ms"], |settings| {
    match settings.parse("tau_ms", 10_000)? {
        0 => Err(PluginError::Setting {
            key: "tau_ms".to_owned(),
            reason: "`0`: expected milliseconds above 0".to_owned(),
        }),
        tau_ms => Ok(P2c::new().tau(Duration::from_millis(tau_ms))),
    }
});

/// The strategy `p2c`: of two instances drawn in proportion to weight, the one with the lower cost, which is
/// its latency times one more than its calls in flight (per 100 weight). A slow instance loses nearly every
/// comparison; its latency decays while it gets no answers, so that it is tried now and then and returns when
/// it is fast again.
///
/// Setting: `tau_ms` (10000), the time within which an answer loses two thirds of its weight.
///
/// ```
/// # use std::time::{Duration, Instant};
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{P2c, contract::node};
///
/// let (nodes, now) = ([node("slow", 100), node("fast", 100)], Instant::now());
/// let picker = P2c::new().rebuild(&nodes, None);
/// nodes[0].note_answer(Duration::from_millis(90), now);
/// nodes[1].note_answer(Duration::from_millis(2), now);
/// assert_eq!(picker.pick(&Pick::first("greet", now)).unwrap().instance.address, "fast");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct P2c {
    tau: Duration,
}

impl Default for P2c {
    fn default() -> Self {
        Self::new()
    }
}

impl P2c {
    /// The strategy with a time constant of 10 s.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tau: Duration::from_secs(10),
        }
    }

    /// Sets another time constant, at least a millisecond.
    #[must_use]
    pub const fn tau(mut self, tau: Duration) -> Self {
        self.tau = tau;
        self
    }
}

impl LoadBalancer for P2c {
    fn rebuild(&self, nodes: &[Arc<Node>], _: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let nodes = willing(nodes);
        nodes.iter().for_each(|node| node.set_latency_tau(self.tau));
        Arc::new(Choices {
            draw: RandomPicker::new(&nodes),
            nodes,
        })
    }
}

#[derive(Debug)]
struct Choices {
    nodes: Vec<Arc<Node>>,
    draw: RandomPicker,
}

impl Choices {
    /// The lower one is better. Weight matters in the draw and, once there are calls in flight, here; idle
    /// instances of different weight compare by latency alone, so that a light one is not skipped while it is
    /// the faster one.
    fn cost(&self, node: &Node, now: Instant) -> f32 {
        let latency = node.latency_us(now).unwrap_or_else(|| self.newcomer(node, now));
        latency * (1.0 + single(node.active()) * 100.0 / single(node.instance.weight))
    }

    /// The starting latency of a new node: the median of its peers, or any value if none of them is known
    /// either.
    fn newcomer(&self, node: &Node, now: Instant) -> f32 {
        let known = self.nodes.iter().filter_map(|node| node.latency_us(now));
        let mut known: Vec<f32> = known.collect();
        if known.is_empty() {
            return 1.0;
        }
        let middle = known.len() / 2;
        let (_, median, _) = known.select_nth_unstable_by(middle, f32::total_cmp);
        node.assume_latency(*median, now);
        *median
    }
}

impl Picker for Choices {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let (one, other) = self.draw.pick_two(pick)?;
        let Some(other) = other else {
            return Some(Arc::clone(one));
        };
        let better = self.cost(other, pick.now) < self.cost(one, pick.now);
        Some(Arc::clone(if better { other } else { one }))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and weights need no more")]
const fn single(number: u32) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::node;

    #[test]
    fn newcomer_starts_at_the_median_of_its_peers() {
        let now = Instant::now();
        let nodes: Vec<_> = (0..6).map(|number| node(&format!("n{number}"), 100)).collect();
        for (node, ms) in nodes.iter().zip([9, 1, 5, 100, 7]) {
            node.note_answer(Duration::from_millis(ms), now);
        }
        let picker = P2c::new().rebuild(&nodes, None);
        fastrand::seed(1);
        for _ in 0..100 {
            picker.pick(&Pick::first("m", now)).unwrap();
        }
        assert_eq!(nodes[5].latency_us(now), Some(7000.0));
    }

    #[test]
    fn nobody_known_is_drawn_by_weight() {
        let now = Instant::now();
        let nodes = [node("a", 100), node("b", 300)];
        let picker = P2c::new().rebuild(&nodes, None);
        fastrand::seed(2);
        let heavy = (0..4000).filter(|_| picker.pick(&Pick::first("m", now)).unwrap().instance.weight == 300);
        let heavy = heavy.count();
        assert!((2850..3150).contains(&heavy), "{heavy} of 4000");
    }
}
