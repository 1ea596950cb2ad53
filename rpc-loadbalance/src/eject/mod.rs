//! Outlier ejection: an instance that fails call after call gets no calls for a while, so that it does not
//! keep failing them while it still accepts connections and keeps its registration.
//!
//! After Envoy's outlier detection and brpc's circuit breaker: consecutive failures eject an instance; the
//! time doubles with each ejection that soon follows; an instance that is back and fails again is ejected
//! again. If more than a share of the instances would be ejected, the fault is more likely elsewhere (the
//! network, this process, the request), and all are used again: Finagle's and Envoy's panic mode.

use std::any::Any;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rpc_core::balance::{LoadBalancer, Node, Pick, Picker};

/// When an instance is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Consecutive failures that eject an instance; an answer, including the method's own error, resets the
    /// count. [`Node::note`] defines what counts as a failure.
    pub after: u32,
    /// Duration of the first ejection.
    pub time: Duration,
    /// Each further one takes twice as long, up to this; an instance that has been well for as long as it was
    /// ejected starts at `time` again.
    pub time_max: Duration,
    /// If more than this percentage of the instances would be ejected, none is.
    pub share_max_percent: u32,
}

impl Default for Ejection {
    /// Five consecutive failures; 1 s, doubling up to 30 s; at most half of all instances.
    fn default() -> Self {
        Self {
            after: 5,
            time: Duration::from_secs(1),
            time_max: Duration::from_secs(30),
            share_max_percent: 50,
        }
    }
}

impl Ejection {
    /// The duration of an ejection that follows this many others.
    fn time_after(&self, ejections: u32) -> Duration {
        let doubled = self
            .time
            .saturating_mul(1_u32.checked_shl(ejections).unwrap_or(u32::MAX));
        doubled.min(self.time_max)
    }

    /// Ejects `node` if it fails.
    fn judge(&self, node: &Node, now: Instant) {
        if node.failures_in_row() < self.after || !node.ejected_for(now).is_zero() {
            return;
        }
        let last = self.time_after(node.ejections().saturating_sub(1));
        if node.back_for(now).is_some_and(|well| well > last) {
            node.forgive();
        }
        let time = self.time_after(node.ejections());
        tracing::warn!(
            address = node.instance.address,
            ?time,
            "instance fails and is ejected"
        );
        node.eject(now + time);
    }
}

/// A strategy that chooses among the instances that do not fail.
///
/// ```
/// # use std::time::{Duration, Instant};
/// use rpc_core::balance::{LoadBalancer, Pick};
/// use rpc_loadbalance::{Eject, Ejection, Random, contract::node};
///
/// // By name: .load_balancer("random?eject_after=3")
/// let balancer = Eject::new(Random::new(), Ejection { after: 3, ..Ejection::default() });
/// let (nodes, now) = ([node("well", 100), node("broken", 100)], Instant::now());
/// let picker = balancer.rebuild(&nodes, None);
/// (0..3).for_each(|_| nodes[1].note_failure(Duration::from_millis(1), now));
/// let address = |now| picker.pick(&Pick::first("greet", now)).unwrap().instance.address.clone();
/// assert!((0..100).all(|_| address(now) == "well"));
/// assert!((0..100).any(|_| address(now + Duration::from_secs(1)) == "broken"));
/// ```
#[derive(Debug)]
pub struct Eject<B> {
    strategy: Arc<B>,
    ejection: Ejection,
}

impl<B: LoadBalancer> Eject<B> {
    /// `strategy`, over the instances that do not fail.
    #[must_use]
    pub fn new(strategy: B, ejection: Ejection) -> Self {
        Self {
            strategy: Arc::new(strategy),
            ejection,
        }
    }
}

impl<B: LoadBalancer> LoadBalancer for Eject<B> {
    fn rebuild(&self, nodes: &[Arc<Node>], previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        let previous = previous.and_then(|picker| (picker as &dyn Any).downcast_ref::<Ejecting<B>>());
        let before = previous.map(|previous| previous.live.load());
        let picker = self
            .strategy
            .rebuild(nodes, before.as_ref().map(|before| &*before.picker));
        Arc::new(Ejecting {
            strategy: Arc::clone(&self.strategy),
            ejection: self.ejection,
            nodes: nodes.to_vec(),
            everybody: Arc::clone(&picker),
            live: ArcSwap::from_pointee(Live {
                picker,
                out: Vec::new(),
                panic: false,
                look: Look::Now,
            }),
            looking: Mutex::new(()),
        })
    }
}

#[derive(Debug)]
struct Ejecting<B> {
    strategy: Arc<B>,
    ejection: Ejection,
    nodes: Vec<Arc<Node>>,
    everybody: Arc<dyn Picker>,
    live: ArcSwap<Live>,
    /// Held by the one thread that checks for ejections.
    looking: Mutex<()>,
}

/// The nodes in use.
#[derive(Debug)]
struct Live {
    picker: Arc<dyn Picker>,
    /// Indices of the ejected nodes, in use or not.
    out: Vec<usize>,
    /// Too many are ejected: all are in use.
    panic: bool,
    look: Look,
}

/// When to check for ejections, if no failure gives a reason to do so earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// No check has been made yet.
    Now,
    /// When the first ejection ends.
    At(Instant),
    /// No node is ejected.
    Never,
}

impl<B: LoadBalancer> Ejecting<B> {
    /// Ejects the nodes that fail and readmits those whose time is over. One thread does this; the others
    /// continue with the current state.
    fn look(&self, now: Instant) {
        let _looking = match self.looking.try_lock() {
            Ok(looking) => looking,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let before = self.live.load_full();
        for index in &before.out {
            let Some(node) = self.nodes.get(*index) else {
                continue;
            };
            let answered = before.panic && node.failures_in_row() == 0;
            if answered || node.ejected_for(now).is_zero() {
                node.readmit(now);
            }
        }
        let usable = || {
            self.nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| node.instance.weight > 0)
        };
        usable().for_each(|(_, node)| self.ejection.judge(node, now));
        let out: Vec<usize> = usable()
            .filter(|(_, node)| !node.ejected_for(now).is_zero())
            .map(|(index, _)| index)
            .collect();
        let most = usable().count() * usize::try_from(self.ejection.share_max_percent).unwrap_or(usize::MAX);
        let panic = out.len() * 100 > most;
        if panic && !before.panic {
            tracing::warn!(failing = out.len(), "too many instances fail: all are used");
        }
        let first_back = out
            .iter()
            .filter_map(|index| Some(self.nodes.get(*index)?.ejected_for(now)));
        let look = first_back.min().map_or(Look::Never, |wait| Look::At(now + wait));
        let picker = match (
            panic || out.is_empty(),
            out == before.out && panic == before.panic,
        ) {
            (_, true) => Arc::clone(&before.picker),
            (true, _) => Arc::clone(&self.everybody),
            (false, _) => self.strategy.rebuild(&self.all_but(&out), Some(&*before.picker)),
        };
        self.live.store(Arc::new(Live {
            picker,
            out,
            panic,
            look,
        }));
    }

    fn all_but(&self, out: &[usize]) -> Vec<Arc<Node>> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(index, _)| !out.contains(index))
            .map(|(_, node)| Arc::clone(node))
            .collect()
    }

    /// Whether the state of `node` differs from the one that `live` was built from.
    fn is_news(&self, live: &Live, node: &Node, now: Instant) -> bool {
        let failures = node.failures_in_row();
        if node.ejected_for(now).is_zero() {
            failures >= self.ejection.after
        } else {
            // Another list's picker ejected it, or it answers while all are used.
            !live.panic || failures == 0
        }
    }
}

impl<B: LoadBalancer> Picker for Ejecting<B> {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        let due = match self.live.load().look {
            Look::Now => true,
            Look::At(time) => pick.now >= time,
            Look::Never => false,
        };
        if due {
            self.look(pick.now);
        }
        let live = self.live.load();
        let chosen = live.picker.pick(pick);
        let chosen = match chosen {
            Some(node) if self.is_news(&live, &node, pick.now) => {
                self.look(pick.now);
                self.live.load().picker.pick(pick)
            }
            chosen => chosen,
        };
        // A call that has tried all the others may as well try the ejected ones.
        chosen.or_else(|| self.everybody.pick(pick))
    }
}

#[cfg(test)]
mod tests;
