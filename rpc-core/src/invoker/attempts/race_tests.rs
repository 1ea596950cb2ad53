//! Hedged calls against instances that take their time, which is moved by hand; and what retries and hedges add to the
//! load when everything fails.

use std::sync::Mutex;

use super::*;
use crate::fault::{Failover, Hedging, RETRY_META};
use crate::message::Response;
use crate::registry::Instance;
use crate::testing::{COUNT, request};

const MS: Duration = Duration::from_millis(1);

type Behaviour = fn(&str) -> (Duration, Result<(), Code>);

/// Instances `a`, `b`, .. of which a call takes the first untried one.
struct Timed {
    nodes: Vec<Arc<Node>>,
    behaviour: Behaviour,
    /// Who was asked, when, and whether as a retry.
    asked: Mutex<Vec<(String, Duration, bool)>>,
    given_up: Mutex<Vec<String>>,
    start: Instant,
}

impl Timed {
    fn new(names: &[&str], behaviour: Behaviour) -> Self {
        let node = |name: &&str| Arc::new(Node::new(Arc::new(Instance::at(name))));
        Self {
            nodes: names.iter().map(node).collect(),
            behaviour,
            asked: Mutex::default(),
            given_up: Mutex::default(),
            start: now(),
        }
    }

    fn asked(&self) -> Vec<(String, u128, bool)> {
        let asked = self.asked.lock().unwrap();
        let asked = asked
            .iter()
            .map(|(name, at, retry)| (name.clone(), at.as_millis(), *retry));
        asked.collect()
    }

    fn failures(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.failures_in_row()).collect()
    }
}

/// Notes a call that is dropped before its end.
struct Unfinished<'a>(&'a Timed, Option<String>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.given_up.lock().unwrap().extend(self.1.take());
    }
}

impl Instances for Timed {
    async fn pick(&self, _: &Arc<Route>, pick: &Pick<'_>, _: Instant) -> Result<Arc<Node>, RpcError> {
        let untried = |node: &&Arc<Node>| !pick.tried.contains(&node.instance.id);
        let node = self.nodes.iter().find(untried).cloned();
        node.ok_or_else(|| RpcError::new(Code::Unavailable, Executed::No, "no instance"))
    }

    async fn call(&self, address: &str, request: &Request) -> Answer {
        let retry = request.meta.value(RETRY_META).is_some();
        let asked = (address.to_owned(), now() - self.start, retry);
        self.asked.lock().unwrap().push(asked);
        let mut unfinished = Unfinished(self, Some(address.to_owned()));
        let (takes, outcome) = (self.behaviour)(address);
        let in_time = tokio::time::timeout_at(request.deadline.into(), tokio::time::sleep(takes)).await;
        unfinished.1 = None;
        match (in_time, outcome) {
            (Err(_), _) => Err(RpcError::new(Code::DeadlineExceeded, Executed::Maybe, "late")),
            (Ok(()), Ok(())) => Ok(Response::empty()),
            (Ok(()), Err(code)) => Err(RpcError::new(code, Executed::No, "by script")),
        }
    }
}

fn call(idempotent: bool) -> Outgoing {
    let mut request = request();
    if idempotent {
        request.method = (&COUNT).into();
    }
    Outgoing {
        request,
        target: Target::Any,
        failures: 0,
        fault_tolerance: None,
        within_retry: false,
    }
}

fn policy(fault_tolerance: impl FaultTolerance) -> Policy {
    Policy::new(Arc::new(fault_tolerance))
}

fn never(_: Outgoing, _: Duration) {
    panic!("repeated later");
}

fn first_is_slow(name: &str) -> (Duration, Result<(), Code>) {
    (if name == "a" { 500 * MS } else { 5 * MS }, Ok(()))
}

#[tokio::test(start_paused = true)]
async fn late_answer_has_another_instance_asked_and_the_slower_one_is_cancelled_and_no_failure() {
    let instances = Timed::new(&["a", "b"], first_is_slow);
    instances.nodes[0].note_answer(6 * MS, now());
    run(&instances, &policy(Hedging::after(20 * MS)), &call(true), never)
        .await
        .unwrap();
    assert_eq!((now() - instances.start).as_millis(), 25);
    assert_eq!(
        instances.asked(),
        [("a".to_owned(), 0, false), ("b".to_owned(), 20, true)]
    );
    assert_eq!(*instances.given_up.lock().unwrap(), ["a"]);
    assert_eq!(instances.failures(), [0, 0]);
    assert!(instances.nodes.iter().all(|node| node.active() == 0));
    let of_slow = instances.nodes[0].latency_us(now()).unwrap();
    assert!(
        (24_900.0..=25_000.0).contains(&of_slow),
        "it took at least this long: {of_slow}"
    );
}

#[tokio::test(start_paused = true)]
async fn answer_in_time_is_not_hedged_nor_is_a_method_that_is_not_idempotent() {
    let instances = Timed::new(&["a", "b"], first_is_slow);
    let hedging = policy(Hedging::after(501 * MS));
    run(&instances, &hedging, &call(true), never).await.unwrap();
    let hedging = policy(Hedging::after(20 * MS));
    run(&instances, &hedging, &call(false), never).await.unwrap();
    let asked: Vec<String> = instances.asked().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(asked, ["a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn third_instance_is_asked_after_as_long_again() {
    let slow = |name: &str| (if name == "c" { MS } else { 500 * MS }, Ok(()));
    let instances = Timed::new(&["a", "b", "c", "d"], slow);
    let hedging = policy(Hedging::after(20 * MS).attempts(3));
    run(&instances, &hedging, &call(true), never).await.unwrap();
    let asked: Vec<_> = instances
        .asked()
        .into_iter()
        .map(|(name, at, _)| (name, at))
        .collect();
    let expected = [("a", 0), ("b", 20), ("c", 40)];
    assert_eq!(asked, expected.map(|(name, at)| (name.to_owned(), at)));
}

#[tokio::test(start_paused = true)]
async fn attempt_that_fails_in_passing_is_followed_at_once_and_one_that_would_fail_anywhere_is_not() {
    let busy = |name: &str| match name {
        "a" => (3 * MS, Err(Code::Overloaded)),
        _ => (3 * MS, Ok(())),
    };
    let instances = Timed::new(&["a", "b"], busy);
    let hedging = policy(Hedging::after(20 * MS));
    run(&instances, &hedging, &call(true), never).await.unwrap();
    run(&instances, &hedging, &call(false), never).await.unwrap();
    let asked: Vec<_> = instances
        .asked()
        .into_iter()
        .map(|(name, at, _)| (name, at))
        .collect();
    let expected = [("a", 0), ("b", 3), ("a", 6), ("b", 9)];
    assert_eq!(asked, expected.map(|(name, at)| (name.to_owned(), at)));

    let bad = Timed::new(&["a", "b"], |_| (3 * MS, Err(Code::BadRequest)));
    let error = run(&bad, &hedging, &call(true), never).await.unwrap_err();
    assert_eq!((error.code, bad.asked().len()), (Code::BadRequest, 1));
}

#[tokio::test(start_paused = true)]
async fn hedged_call_whose_time_is_over_is_one_failure_and_lists_both_attempts() {
    let instances = Timed::new(&["a", "b"], |_| (Duration::from_secs(100), Ok(())));
    let hedging = policy(Hedging::after(20 * MS));
    let error = run(&instances, &hedging, &call(true), never).await.unwrap_err();
    assert_eq!(
        (error.code, error.executed),
        (Code::DeadlineExceeded, Executed::Maybe)
    );
    let attempts: Vec<_> = error.attempts.iter().map(|attempt| &*attempt.address).collect();
    assert_eq!(attempts, ["a", "b"]);
    assert!(now() - instances.start <= Duration::from_secs(1) + 10 * MS);
    assert_eq!(
        instances.failures(),
        [1, 0],
        "the second had less time than the call"
    );
}

#[tokio::test(start_paused = true)]
async fn usual_time_of_a_method_is_learned_from_its_answers() {
    let instances = Timed::new(&["a", "b"], |_| (10 * MS, Ok(())));
    let hedging = policy(Hedging::percentile(95));
    for _ in 0..100 {
        run(&instances, &hedging, &call(true), never).await.unwrap();
    }
    assert!(instances.asked().iter().all(|(name, ..)| name == "a"));
    let slow = Timed::new(&["a", "b"], first_is_slow);
    run(&slow, &hedging, &call(true), never).await.unwrap();
    let hedged_at = slow.asked()[1].1;
    assert!((10..=12).contains(&hedged_at), "{hedged_at} ms");
}

#[tokio::test(start_paused = true)]
async fn hedges_of_a_slow_system_are_within_the_retry_budget() {
    let instances = Timed::new(&["a", "b"], |_| (100 * MS, Ok(())));
    let hedging = policy(Hedging::after(20 * MS));
    for _ in 0..1000 {
        run(&instances, &hedging, &call(true), never).await.unwrap();
    }
    let hedges = instances.asked().iter().filter(|(.., retry)| *retry).count();
    // 1000/11, ten to begin with: in 100 s more than one a second were granted anyway.
    assert!((90..=125).contains(&hedges), "{hedges} of 1000 calls");
}

#[tokio::test(start_paused = true)]
async fn p13_when_every_call_fails_for_a_minute_the_load_is_at_most_a_tenth_more() {
    let busy: Behaviour = |_| (MS, Err(Code::Overloaded));
    let strategies: [Arc<dyn FaultTolerance>; 2] = [
        Arc::new(Failover::new(5)),
        Arc::new(Hedging::after(MS / 2).attempts(5)),
    ];
    for strategy in strategies {
        let instances = Timed::new(&["a", "b", "c"], busy);
        let policy = Policy::new(strategy);
        // As many retries saved up as can be.
        (0..100_000).for_each(|_| policy.budget.deposit());
        let mut ticks = tokio::time::interval(10 * MS);
        let mut calls = 0;
        while now() - instances.start < Duration::from_secs(60) {
            ticks.tick().await;
            calls += 1;
            run(&instances, &policy, &call(true), never).await.unwrap_err();
        }
        let attempts = instances.asked().len();
        assert!(calls >= 5900, "{calls} calls");
        assert!(
            attempts > calls && attempts * 10 <= calls * 11,
            "{attempts} attempts of {calls} calls with {:?}",
            policy.fault_tolerance
        );
    }
}

#[tokio::test(start_paused = true)]
async fn call_within_a_retry_is_not_retried_except_where_nobody_was_asked() {
    let mut within = call(true);
    within.within_retry = true;
    let over = policy(Failover::new(2));
    let busy = Timed::new(&["a", "b"], |_| (MS, Err(Code::Overloaded)));
    run(&busy, &over, &within, never).await.unwrap_err();
    assert_eq!(busy.asked().len(), 1);
    let gone = Timed::new(&["a", "b"], |_| (MS, Err(Code::Unavailable)));
    run(&gone, &over, &within, never).await.unwrap_err();
    assert_eq!(gone.asked().len(), 3);
    let slow = Timed::new(&["a", "b"], first_is_slow);
    run(&slow, &policy(Hedging::after(20 * MS)), &within, never)
        .await
        .unwrap();
    assert_eq!(slow.asked().len(), 1, "a hedge would be one too");
}

#[tokio::test(start_paused = true)]
async fn calls_own_strategy_decides_in_place_of_the_invokers() {
    let busy = Timed::new(&["a", "b", "c"], |_| (MS, Err(Code::Overloaded)));
    let mut own = call(false);
    own.fault_tolerance = Some(Arc::new(Failover::new(2)));
    let fast = policy(crate::fault::Failfast);
    let error = run(&busy, &fast, &own, never).await.unwrap_err();
    assert_eq!((busy.asked().len(), error.attempts.len()), (3, 3));
    let marks: Vec<bool> = busy.asked().into_iter().map(|(.., retry)| retry).collect();
    assert_eq!(marks, [false, true, true]);
    own.fault_tolerance = Some(Arc::new(crate::fault::Failfast));
    run(&busy, &policy(Failover::new(2)), &own, never)
        .await
        .unwrap_err();
    assert_eq!(busy.asked().len(), 4);
    let mut forked = call(true);
    forked.fault_tolerance = Some(Arc::new(crate::fault::Forking::new(2)));
    run(&busy, &fast, &forked, never).await.unwrap_err();
    assert_eq!(busy.asked().len(), 6);
}
