//! Subsets: the caller's own zone, or the instances with a certain value in their metadata, as long as enough
//! of them are alive; otherwise all instances, so that the few remaining ones are not overloaded (Envoy's
//! priority levels and zone aware routing spill over for the same reason, at 72 % by default).

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};
use rpc_core::registry::Instance;

/// Which instances are preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subset {
    /// Those in this zone.
    Zone(String),
    /// Those with this value under this key of their metadata.
    Meta(String, String),
}

impl Subset {
    /// Whether `instance` belongs to it.
    #[must_use]
    pub fn has(&self, instance: &Instance) -> bool {
        match self {
            Self::Zone(zone) => instance.zone.as_ref() == Some(zone),
            Self::Meta(key, value) => instance.meta.get(key) == Some(value),
        }
    }
}

/// A strategy that chooses from a subset while enough of it is alive: while at least a share of it, by
/// default half, is neither down (cannot be connected to) nor ejected. A call that has tried the whole subset
/// continues with the other instances.
///
/// ```
/// # use std::time::Instant;
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{Prefer, Random, Subset, contract::nodes};
///
/// // By name: .load_balancer("random?zone=a"), or "random?meta=rack:7"
/// let balancer = Prefer::new(Random::new(), Subset::Zone("a".to_owned()));
/// // None of these is in a zone: all are used.
/// assert!(balancer.rebuild(&nodes(3), None).pick(&Pick::first("greet", Instant::now())).is_some());
/// ```
#[derive(Debug, Clone)]
pub struct Prefer<B> {
    strategy: B,
    subset: Subset,
    live_min_percent: u32,
}

impl<B: LoadBalancer> Prefer<B> {
    /// `strategy`, within `subset` while at least half of it is alive.
    #[must_use]
    pub const fn new(strategy: B, subset: Subset) -> Self {
        Self {
            strategy,
            subset,
            live_min_percent: 50,
        }
    }

    /// Sets the share that has to be alive, in percent; 0: any instance at all suffices.
    #[must_use]
    pub const fn live_min_percent(mut self, percent: u32) -> Self {
        self.live_min_percent = percent;
        self
    }
}

impl<B: LoadBalancer> LoadBalancer for Prefer<B> {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let previous = previous.and_then(|picker| (picker as &dyn Any).downcast_ref::<Preferring>());
        let own = nodes.iter().filter(|node| self.subset.has(&node.instance));
        let own: Vec<_> = own.cloned().collect();
        let of_own = previous.map(|previous| &*previous.own);
        let usable: Vec<_> = own
            .iter()
            .filter(|node| node.instance.weight > 0)
            .cloned()
            .collect();
        let percent = usize::try_from(self.live_min_percent).unwrap_or(usize::MAX);
        Arc::new(Preferring {
            own: self.strategy.rebuild(&own, of_own),
            everybody: self
                .strategy
                .rebuild(nodes, previous.map(|previous| &*previous.everybody)),
            live_min: usable.len().saturating_mul(percent).div_ceil(100),
            usable,
        })
    }

    fn needs_figures(&self) -> bool {
        self.strategy.needs_figures()
    }
}

#[derive(Debug)]
struct Preferring {
    own: Arc<dyn Picker>,
    everybody: Arc<dyn Picker>,
    /// The subset's nodes that may be picked at all.
    usable: Vec<Arc<Node>>,
    /// How many of them must be alive.
    live_min: usize,
}

impl Preferring {
    fn enough_live(&self, now: Instant) -> bool {
        let lives = |node: &&Arc<Node>| !node.is_down() && node.ejected_for(now).is_zero();
        let live = self.usable.iter().filter(lives);
        // Stops as soon as enough are found, usually at half of them.
        live.take(self.live_min).count() == self.live_min
    }
}

impl Picker for Preferring {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let own = self.enough_live(pick.now).then(|| self.own.pick(pick));
        own.flatten().or_else(|| self.everybody.pick(pick))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulation::{counts, instance};
    use crate::{Eject, Ejection, Random, RoundRobin, contract};

    /// `a0`, `a1`, .. in zone `a`, then those of `b`.
    fn nodes(zones: &[(&str, usize)], now: Instant) -> Vec<Arc<Node>> {
        let node = |zone: &str, number: usize| {
            let mut instance = Instance::clone(&instance(&format!("{zone}{number}"), 100, 0));
            instance.zone = Some(zone.to_owned());
            instance.meta.insert("rack".to_owned(), number.to_string());
            Arc::new(Node::seen(Arc::new(instance), now, 0))
        };
        let zones = zones.iter();
        zones
            .flat_map(|(zone, count)| (0..*count).map(|number| node(zone, number)))
            .collect()
    }

    fn used(picker: &dyn Picker, now: Instant) -> String {
        let names: Vec<String> = counts(picker, now, 60).into_keys().collect();
        names.join(" ")
    }

    #[test]
    fn own_zone_is_preferred_while_half_of_it_lives_then_all_are_used() {
        let now = Instant::now();
        let nodes = nodes(&[("a", 4), ("b", 2)], now);
        let strategy = Eject::new(RoundRobin::new(), Ejection::default());
        let balancer = Prefer::new(strategy, Subset::Zone("a".to_owned()));
        let picker = balancer.rebuild(&nodes, None);
        let fail = |number: usize| {
            (0..5).for_each(|_| nodes[number].note_failure(Duration::from_millis(1), now));
        };
        assert_eq!(used(&*picker, now), "a0 a1 a2 a3");
        fail(0);
        fail(1);
        assert_eq!(used(&*picker, now), "a2 a3");
        fail(2);
        used(&*picker, now);
        assert_eq!(used(&*picker, now), "a3 b0 b1", "too few are left: spilled over");
        let later = now + Duration::from_secs(1);
        assert_eq!(used(&*picker, later), "a0 a1 a2 a3", "home again");
    }

    #[test]
    fn metadata_makes_a_subset_too() {
        let now = Instant::now();
        let balancer = Prefer::new(RoundRobin::new(), Subset::Meta("rack".to_owned(), "1".to_owned()));
        let picker = balancer.rebuild(&nodes(&[("a", 3), ("b", 3)], now), None);
        assert_eq!(used(&*picker, now), "a1 b1");
    }

    #[test]
    fn empty_subset_means_everybody() {
        let now = Instant::now();
        let balancer = Prefer::new(RoundRobin::new(), Subset::Zone("c".to_owned()));
        let mut drained = nodes(&[("a", 1), ("b", 1)], now);
        let picker = balancer.rebuild(&drained, None);
        assert_eq!(used(&*picker, now), "a0 b0");
        let mut instance = Instance::clone(&instance("c0", 0, 0));
        instance.zone = Some("c".to_owned());
        drained.push(Arc::new(Node::seen(Arc::new(instance), now, 0)));
        let picker = balancer.rebuild(&drained, Some(&*picker));
        assert_eq!(used(&*picker, now), "a0 b0", "its only instance takes no calls");
    }

    #[test]
    fn call_that_tried_its_zone_goes_on_elsewhere() {
        let now = Instant::now();
        let balancer = Prefer::new(Random::new(), Subset::Zone("a".to_owned()));
        let picker = balancer.rebuild(&nodes(&[("a", 2), ("b", 2)], now), None);
        let mut tried = Vec::new();
        while let Some(node) = picker.pick(&Pick {
            tried: &tried,
            ..Pick::first("m", now)
        }) {
            tried.push(node.instance.id.clone());
        }
        let zones: String = tried.iter().map(|id| &id.0[..1]).collect();
        assert_eq!(zones, "aabb");
    }

    #[test]
    fn keeps_the_contract() {
        let balancer = Prefer::new(Random::new(), Subset::Zone("a".to_owned()));
        contract::check(
            &balancer,
            &contract::Promises::weighted_shares(0.12),
            contract::seed(),
        );
    }
}
