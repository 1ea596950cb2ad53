//! Which instances are ejected, for how long, and what happens if too many would be.

use std::collections::BTreeSet;

use super::*;
use crate::simulation::{counts, instance};
use crate::{Random, RoundRobin, contract};

const SHORT: Duration = Duration::from_millis(1);

struct Cluster {
    nodes: Vec<Arc<Node>>,
    picker: Arc<dyn Picker>,
    now: Instant,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let node = |number: usize| Arc::new(Node::seen(instance(&number.to_string(), 100, 0), now, 0));
        let nodes: Vec<_> = (0..count).map(node).collect();
        let picker = Eject::new(RoundRobin::new(), Ejection::default()).rebuild(&nodes, None);
        Self { nodes, picker, now }
    }

    fn fail(&self, number: usize) {
        (0..5).for_each(|_| self.nodes[number].note_failure(SHORT, self.now));
    }

    fn wait(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// The instances that get calls now, in order.
    fn used(&self) -> String {
        let counts = counts(&*self.picker, self.now, 40);
        counts.into_keys().collect()
    }
}

#[test]
fn five_failures_in_a_row_eject_and_an_answer_between_them_does_not() {
    let cluster = Cluster::new(4);
    (0..4).for_each(|_| cluster.nodes[1].note_failure(SHORT, cluster.now));
    assert_eq!(cluster.used(), "0123");
    cluster.nodes[1].note_answer(SHORT, cluster.now);
    cluster.nodes[1].note_failure(SHORT, cluster.now);
    assert_eq!(cluster.used(), "0123");
    cluster.fail(1);
    assert_eq!(cluster.used(), "023", "not one call more");
    let counts = counts(&*cluster.picker, cluster.now, 300);
    assert!(
        counts.values().all(|count| *count == 100),
        "its calls are shared evenly: {counts:?}"
    );
}

#[test]
fn ejected_instance_comes_back_and_the_time_doubles_up_to_its_cap() {
    let mut cluster = Cluster::new(3);
    for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
        cluster.fail(0);
        assert_eq!(cluster.used(), "12");
        cluster.wait(expected - 0.01);
        assert_eq!(cluster.used(), "12", "back too early, of {expected} s");
        cluster.wait(0.01);
        assert_eq!(cluster.used(), "012", "not back after {expected} s");
    }
    cluster.wait(30.1);
    cluster.fail(0);
    assert_eq!(cluster.used(), "12");
    cluster.wait(1.0);
    assert_eq!(
        cluster.used(),
        "012",
        "it was well for long: the time starts again"
    );
}

#[test]
fn half_may_be_left_out_and_more_may_not() {
    let mut cluster = Cluster::new(4);
    cluster.fail(0);
    cluster.fail(1);
    assert_eq!(cluster.used(), "23");
    cluster.fail(2);
    assert_eq!(cluster.used(), "0123", "too many fail: everybody is used");
    cluster.wait(1.0);
    assert_eq!(cluster.used(), "0123", "all are back");
}

#[test]
fn p18_when_all_endpoints_are_ejected_all_are_tried() {
    for count in [1, 2, 5] {
        let cluster = Cluster::new(count);
        (0..count).for_each(|number| cluster.fail(number));
        assert_eq!(cluster.used().len(), count);
    }
}

#[test]
fn who_answers_while_all_are_used_is_no_longer_out() {
    let mut cluster = Cluster::new(4);
    (0..4).for_each(|number| cluster.fail(number));
    assert_eq!(cluster.used(), "0123");
    for number in 0..3 {
        cluster.nodes[number].note_answer(SHORT, cluster.now);
    }
    cluster.wait(0.1);
    // A turn starts anywhere, and only a call to an instance that answers shows that they do: at most one
    // call goes to the failing instance before that.
    for _ in 0..2 {
        cluster.picker.pick(&Pick::first("m", cluster.now));
    }
    assert_eq!(
        cluster.used(),
        "012",
        "the others are well: only the one that fails is out"
    );
}

#[test]
fn ejection_survives_a_change_of_the_list() {
    let mut cluster = Cluster::new(4);
    cluster.fail(3);
    assert_eq!(cluster.used(), "012");
    let balancer = Eject::new(RoundRobin::new(), Ejection::default());
    cluster.picker = balancer.rebuild(&cluster.nodes[1..], Some(&*cluster.picker));
    assert_eq!(cluster.used(), "12");
    cluster.wait(1.0);
    assert_eq!(cluster.used(), "123");
}

#[test]
fn call_that_tried_all_others_gets_the_one_left_out() {
    let cluster = Cluster::new(3);
    cluster.fail(2);
    assert_eq!(cluster.used(), "01");
    let mut tried = Vec::new();
    while let Some(node) = cluster.picker.pick(&Pick {
        tried: &tried,
        ..Pick::first("m", cluster.now)
    }) {
        tried.push(node.instance.id.clone());
    }
    assert_eq!(tried.last().unwrap().0, "2");
    assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn keeps_the_contract() {
    let balancer = Eject::new(Random::new(), Ejection::default());
    contract::check(
        &balancer,
        &contract::Promises::weighted_shares(0.12),
        contract::seed(),
    );
}
