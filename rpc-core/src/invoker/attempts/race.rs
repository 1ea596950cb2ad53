//! One call at several instances: all at once (forking), or one more whenever the answer is late (hedging).
//! The first answer wins and the other attempts are cancelled at their providers; they count as no instance's
//! failure.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::{History, Instances, Policy, at, mark_retry, pick, pick_again};
use crate::balance::Node;
use crate::call::now;
use crate::dispatch::{Answer, Outgoing};
use crate::error::{Attempt, Code, RpcError};
use crate::fault::FaultTolerance;
use crate::message::Request;
use crate::registry::InstanceId;

/// How a call is spread over instances.
pub(super) struct Plan {
    /// Attempts that start together.
    at_once: usize,
    /// Attempts in all.
    most: usize,
    /// Start another attempt after this time without an answer.
    after: Option<Duration>,
}

impl Plan {
    pub(super) fn of(fault_tolerance: &dyn FaultTolerance, request: &Request) -> Self {
        let forks = fault_tolerance.forks().max(1);
        if !fault_tolerance.hedges() {
            return Self {
                at_once: forks,
                most: forks,
                after: None,
            };
        }
        let hedge = fault_tolerance.hedge(&request.route.service, &request.method.name);
        Self {
            at_once: forks,
            most: hedge.attempts.max(forks),
            after: hedge.after,
        }
    }
}

/// A running attempt.
struct Running<'a> {
    node: Arc<Node>,
    started: Instant,
    attempt: Pin<Box<dyn Future<Output = Answer> + Send + 'a>>,
}

enum Event {
    /// The attempt with this index has ended.
    Ended(usize, Answer),
    /// There is still no answer.
    Late,
}

/// What the attempts of one race share.
struct Race<'a, I> {
    instances: &'a I,
    policy: &'a Policy,
    call: &'a Outgoing,
    request: &'a Request,
    plan: Plan,
    running: Vec<Running<'a>>,
    /// Attempts started so far.
    begun: usize,
    /// Instances that are or were asked.
    asked: Vec<InstanceId>,
}

/// Makes `call` at several instances, following its strategy's plan. `request` is that of the call, or of its
/// retry.
pub(super) async fn race<I: Instances>(
    instances: &I,
    policy: &Policy,
    (call, request): (&Outgoing, &Request),
    history: &mut History,
) -> Answer {
    let (fault_tolerance, started) = (policy.strategy(call), request.started);
    let plan = Plan::of(fault_tolerance, request);
    let mut race = Race {
        instances,
        policy,
        call,
        request,
        plan,
        running: Vec::new(),
        begun: 0,
        asked: history.tried.clone(),
    };
    // If all were tried before, one of them is tried again.
    let first = pick_again(instances, request, &history.tried).await?;
    race.start(first, started);
    while race.running.len() < race.plan.at_once && race.add(started).await {}
    let answer = race.run(history).await;
    if answer.is_ok() && fault_tolerance.hedges() {
        let elapsed = now().saturating_duration_since(started);
        let (service, method) = (&request.route.service, &*request.method.name);
        // If another attempt won, the first would have taken longer than this: the estimate is too low then.
        fault_tolerance.answered(service, method, elapsed);
    }
    answer
}

impl<I: Instances> Race<'_, I> {
    async fn run(&mut self, history: &mut History) -> Answer {
        let mut late_at = self.late_after(now());
        loop {
            match self.next(late_at).await {
                Event::Ended(_, Ok(response)) => return Ok(response),
                Event::Ended(index, Err(error)) => {
                    let ended = self.running.swap_remove(index);
                    let error = history.failed(&ended.node, ended.started, error);
                    if now() >= self.request.deadline {
                        self.note_unfinished(history);
                        return Err(error);
                    }
                    if self.may_follow(&error) && self.add(now()).await {
                        late_at = self.late_after(now());
                    } else if self.running.is_empty() {
                        return Err(error);
                    }
                }
                Event::Late => {
                    let now = now();
                    let allowed = !self.call.within_retry && self.policy.budget.withdraw(now);
                    let hedged = allowed && self.add(now).await;
                    late_at = if hedged { self.late_after(now) } else { None };
                }
            }
        }
    }

    /// When an answer counts as late, if another attempt may be made.
    fn late_after(&self, now: Instant) -> Option<Instant> {
        let more = self.begun < self.plan.most;
        self.plan.after.filter(|_| more).map(|after| now + after)
    }

    /// Whether a failed attempt is followed by another one at once.
    fn may_follow(&self, error: &RpcError) -> bool {
        let hedged = self.plan.most > self.plan.at_once && self.begun < self.plan.most;
        let passing = self.policy.failure(self.call, error, 1).is_passing();
        hedged && passing && error.retry_after.is_none() && self.policy.affords(self.call, error, now())
    }

    /// Asks one more instance; returns false if all were asked, or as many as allowed.
    async fn add(&mut self, started: Instant) -> bool {
        if self.begun >= self.plan.most {
            return false;
        }
        match pick(self.instances, self.request, &self.asked).await {
            Ok(node) => {
                self.start(node, started);
                true
            }
            Err(_none_left) => false,
        }
    }

    async fn next(&mut self, late_at: Option<Instant>) -> Event {
        let running = &mut self.running;
        let ended = poll_fn(|cx| {
            for (index, running) in running.iter_mut().enumerate() {
                if let Poll::Ready(answer) = running.attempt.as_mut().poll(cx) {
                    return Poll::Ready(Event::Ended(index, answer));
                }
            }
            Poll::Pending
        });
        match late_at {
            None => ended.await,
            Some(late_at) => tokio::time::timeout_at(late_at.into(), ended)
                .await
                .unwrap_or(Event::Late),
        }
    }

    /// Records the attempts that had no answer when the call's time was over. Only one of them counts as a
    /// failure, the one that noticed it: the others may have had hardly any time.
    fn note_unfinished(&self, history: &mut History) {
        for running in &self.running {
            history.attempts.push(Attempt {
                address: running.node.instance.address.clone(),
                code: Code::DeadlineExceeded,
                message: "no answer when the call's time was over".to_owned(),
                elapsed: now().saturating_duration_since(running.started),
            });
        }
    }
}

impl<'a, I: Instances> Race<'a, I> {
    fn start(&mut self, node: Arc<Node>, started: Instant) {
        self.asked.push(node.instance.id.clone());
        let mut request = self.request.clone();
        request.started = started;
        if self.begun >= self.plan.at_once {
            mark_retry(&mut request);
        }
        self.begun += 1;
        let (instances, at_node): (&'a I, _) = (self.instances, Arc::clone(&node));
        let attempt = Box::pin(async move { at(instances, &at_node, &request).await });
        self.running.push(Running {
            node,
            started,
            attempt,
        });
    }
}
