//! Attempts against instances that fail by script, with time moved by hand.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::fault::{Failback, Failfast, Failover, Failsafe, Forking};
use crate::message::{Outcome, Response};
use crate::registry::Instance;
use crate::testing::{COUNT, request};

/// Instances `a`, `b`, .. of which each call takes the first untried one and the next answer of the script.
struct Scripted {
    nodes: Vec<Arc<Node>>,
    script: Mutex<VecDeque<Result<(), RpcError>>>,
    called: Mutex<Vec<String>>,
    takes: Duration,
}

impl Scripted {
    fn new(names: &[&str], script: impl IntoIterator<Item = Result<(), RpcError>>) -> Self {
        let node = |name: &&str| {
            let json = format!(r#"{{"id": "{name}", "address": "{name}:1"}}"#);
            let instance: Instance = serde_json::from_str(&json).unwrap();
            Arc::new(Node::new(Arc::new(instance)))
        };
        Self {
            nodes: names.iter().map(node).collect(),
            script: Mutex::new(script.into_iter().collect()),
            called: Mutex::default(),
            takes: Duration::from_millis(1),
        }
    }

    fn called(&self) -> String {
        self.called.lock().unwrap().join(" ")
    }
}

impl Instances for Scripted {
    async fn pick(&self, _: &Arc<Route>, pick: &Pick<'_>, _: Instant) -> Result<Arc<Node>, RpcError> {
        let untried = |node: &&Arc<Node>| !pick.tried.contains(&node.instance.id);
        let node = self.nodes.iter().find(untried).cloned();
        node.ok_or_else(|| RpcError::new(Code::Unavailable, Executed::No, "no instance"))
    }

    async fn call(&self, address: &str, _: &Request) -> Answer {
        self.called
            .lock()
            .unwrap()
            .push(address.trim_end_matches(":1").to_owned());
        tokio::time::sleep(self.takes).await;
        let next = self.script.lock().unwrap().pop_front();
        next.unwrap_or(Ok(())).map(|()| Response::empty())
    }
}

fn fails(code: Code, executed: Executed) -> Result<(), RpcError> {
    Err(RpcError::new(code, executed, "by script"))
}

fn policy(fault_tolerance: impl FaultTolerance) -> Policy {
    Policy::new(Arc::new(fault_tolerance))
}

fn outgoing(request: Request) -> Outgoing {
    Outgoing {
        request,
        target: Target::Any,
        failures: 0,
        fault_tolerance: None,
        within_retry: false,
    }
}

/// No call is expected to be made later.
fn never(_: Outgoing, _: Duration) {
    panic!("repeated later");
}

fn idempotent() -> Request {
    let mut request = request();
    request.method = (&COUNT).into();
    request
}

#[tokio::test(start_paused = true)]
async fn failover_goes_to_another_instance_each_time() {
    let script = [
        fails(Code::Unavailable, Executed::No),
        fails(Code::Draining, Executed::No),
        Ok(()),
    ];
    let instances = Scripted::new(&["a", "b", "c"], script);
    let answer = run(
        &instances,
        &policy(Failover::default()),
        &outgoing(request()),
        never,
    )
    .await;
    assert!(matches!(answer.unwrap().outcome, Outcome::Ok(_)));
    assert_eq!(instances.called(), "a b c");
    assert!(instances.nodes.iter().all(|node| node.active() == 0));
    let latency = |index: usize| instances.nodes[index].latency_us(now());
    assert!(latency(0) >= Some(990_000.0), "{:?}", latency(0));
    assert_eq!(latency(2), Some(1000.0));
    let failures = instances.nodes.iter().map(|node| node.failures_in_row());
    assert_eq!(failures.collect::<Vec<_>>(), [1, 0, 0], "leaving is not failing");
}

#[tokio::test(start_paused = true)]
async fn lone_instance_is_tried_again() {
    let instances = Scripted::new(&["a"], [fails(Code::Unavailable, Executed::No), Ok(())]);
    run(
        &instances,
        &policy(Failover::default()),
        &outgoing(request()),
        never,
    )
    .await
    .unwrap();
    assert_eq!(instances.called(), "a a");
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_executed_is_repeated_only_if_idempotent() {
    let lost = || [fails(Code::Unavailable, Executed::Maybe), Ok(())];
    let instances = Scripted::new(&["a", "b"], lost());
    let error = run(
        &instances,
        &policy(Failover::default()),
        &outgoing(request()),
        never,
    )
    .await
    .unwrap_err();
    assert_eq!(
        (error.executed, instances.called().as_str()),
        (Executed::Maybe, "a")
    );
    let instances = Scripted::new(&["a", "b"], lost());
    run(
        &instances,
        &policy(Failover::default()),
        &outgoing(idempotent()),
        never,
    )
    .await
    .unwrap();
    assert_eq!(instances.called(), "a b");
}

#[tokio::test(start_paused = true)]
async fn strategy_that_asks_for_an_unsafe_retry_does_not_get_it() {
    #[derive(Debug)]
    struct Reckless;
    impl FaultTolerance for Reckless {
        fn on_failure(&self, _: &Failure<'_>) -> Verdict {
            Verdict::Retry {
                after: Duration::ZERO,
            }
        }
    }
    let instances = Scripted::new(&["a", "b"], [fails(Code::Internal, Executed::Yes)]);
    let error = run(&instances, &policy(Reckless), &outgoing(request()), never)
        .await
        .unwrap_err();
    assert_eq!((error.code, instances.called().as_str()), (Code::Internal, "a"));
}

#[tokio::test(start_paused = true)]
async fn error_lists_every_attempt_and_the_most_that_may_have_happened() {
    let script = [
        fails(Code::Unavailable, Executed::Maybe),
        fails(Code::Unavailable, Executed::No),
    ];
    let instances = Scripted::new(&["a", "b"], script);
    let error = run(
        &instances,
        &policy(Failover::new(1)),
        &outgoing(idempotent()),
        never,
    )
    .await
    .unwrap_err();
    let addresses: Vec<_> = error
        .attempts
        .iter()
        .map(|attempt| attempt.address.as_str())
        .collect();
    assert_eq!(addresses, ["a:1", "b:1"]);
    assert_eq!(error.attempts[0].elapsed, Duration::from_millis(1));
    assert_eq!(error.executed, Executed::Maybe);
}

#[tokio::test(start_paused = true)]
async fn one_deadline_bounds_all_attempts() {
    let endless = std::iter::repeat_with(|| fails(Code::Unavailable, Executed::No)).take(1000);
    let instances = Scripted::new(&["a", "b"], endless);
    let strategy = Failover::new(1000).backoff(Duration::from_millis(100), Duration::from_millis(100));
    let start = now();
    let error = run(&instances, &policy(strategy), &outgoing(request()), never)
        .await
        .unwrap_err();
    // An attempt that starts just before the deadline still takes its time here, and timers round up to whole
    // milliseconds.
    let most = Duration::from_secs(1) + instances.takes + Duration::from_millis(1);
    assert!(now() - start <= most, "{:?}", now() - start);
    assert!(
        (10..100).contains(&error.attempts.len()),
        "{} attempts",
        error.attempts.len()
    );
}

#[tokio::test(start_paused = true)]
async fn spent_budget_ends_retries() {
    let endless = std::iter::repeat_with(|| fails(Code::Overloaded, Executed::No)).take(1000);
    let instances = Scripted::new(&["a"], endless);
    let mut policy = policy(Failover::new(1));
    policy.budget = RetryBudget::new();
    for _ in 0..100 {
        let error = run(&instances, &policy, &outgoing(request()), never)
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Overloaded);
    }
    let calls = instances.called.lock().unwrap().len();
    assert!((119..=120).contains(&calls), "{calls} attempts of 100 calls");
}

#[tokio::test(start_paused = true)]
async fn failfast_returns_the_first_failure() {
    let instances = Scripted::new(&["a", "b"], [fails(Code::Unavailable, Executed::No)]);
    let error = run(&instances, &policy(Failfast), &outgoing(request()), never)
        .await
        .unwrap_err();
    assert_eq!((error.attempts.len(), error.ignored), (1, false));
}

#[tokio::test(start_paused = true)]
async fn failsafe_marks_the_failure_as_ignored() {
    let instances = Scripted::new(&[], []);
    let error = run(&instances, &policy(Failsafe), &outgoing(request()), never)
        .await
        .unwrap_err();
    assert!(error.ignored);
}

#[tokio::test(start_paused = true)]
async fn chosen_address_is_called_and_no_other() {
    let instances = Scripted::new(&["a", "b"], [fails(Code::Unavailable, Executed::No), Ok(())]);
    let call = Outgoing {
        target: Target::Address("z:1".to_owned()),
        ..outgoing(request())
    };
    run(&instances, &policy(Failover::default()), &call, never)
        .await
        .unwrap();
    assert_eq!(instances.called(), "z z");
}

#[tokio::test(start_paused = true)]
async fn call_given_up_is_no_longer_under_way() {
    let mut instances = Scripted::new(&["a"], []);
    instances.takes = Duration::from_secs(100);
    let policy = policy(Failfast);
    let outgoing = outgoing(request());
    let call = run(&instances, &policy, &outgoing, never);
    assert!(
        tokio::time::timeout(Duration::from_millis(10), call)
            .await
            .is_err()
    );
    assert_eq!(instances.nodes[0].active(), 0);
}

#[tokio::test(start_paused = true)]
async fn forking_takes_the_first_answer_of_several_instances() {
    let script = [fails(Code::Unavailable, Executed::Maybe), Ok(()), Ok(())];
    let instances = Scripted::new(&["a", "b", "c", "d"], script);
    run(
        &instances,
        &policy(Forking::new(3)),
        &outgoing(idempotent()),
        never,
    )
    .await
    .unwrap();
    assert_eq!(instances.called(), "a b c");
    assert!(instances.nodes.iter().all(|node| node.active() == 0));
    let instances = Scripted::new(&["a", "b"], [Ok(())]);
    run(&instances, &policy(Forking::new(3)), &outgoing(request()), never)
        .await
        .unwrap();
    assert_eq!(
        instances.called(),
        "a",
        "a method that is not idempotent was forked"
    );
}

#[tokio::test(start_paused = true)]
async fn forking_fails_when_all_instances_do() {
    let script = [
        fails(Code::Overloaded, Executed::No),
        fails(Code::Unavailable, Executed::Maybe),
    ];
    let instances = Scripted::new(&["a", "b"], script);
    let error = run(
        &instances,
        &policy(Forking::new(5)),
        &outgoing(idempotent()),
        never,
    )
    .await
    .unwrap_err();
    assert_eq!(
        (error.code, error.executed, error.attempts.len()),
        (Code::Unavailable, Executed::Maybe, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn failback_hands_the_call_over_to_the_background_until_its_retries_are_spent() {
    let failback = policy(Failback::new(2, Duration::from_secs(5)));
    let mut call = outgoing(request());
    for failures in 1..=2 {
        let instances = Scripted::new(&["a"], [fails(Code::Unavailable, Executed::No)]);
        let later = Mutex::new(None);
        let take = |call, after| *later.lock().unwrap() = Some((call, after));
        let error = run(&instances, &failback, &call, take).await.unwrap_err();
        assert!(error.ignored);
        let (again, after) = later.into_inner().unwrap().unwrap();
        assert_eq!((again.failures, after), (failures, Duration::from_secs(5)));
        call = again;
    }
    let instances = Scripted::new(&["a"], [fails(Code::Unavailable, Executed::No)]);
    let error = run(&instances, &failback, &call, never).await.unwrap_err();
    assert!(!error.ignored);
    let instances = Scripted::new(&["a"], [fails(Code::Unavailable, Executed::Maybe)]);
    let error = run(&instances, &failback, &outgoing(request()), never)
        .await
        .unwrap_err();
    assert_eq!(
        (error.ignored, error.executed),
        (false, Executed::Maybe),
        "what may have run is not repeated"
    );
}
