//! The loop over the attempts of one call. A strategy only asks for a retry; it gets one only if repeating is
//! safe, the call's single deadline leaves time for it, and the retry budget allows it.

mod active;
mod race;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use active::Active;
use tokio::sync::Semaphore;

use crate::balance::{Node, Pick};
use crate::call::now;
use crate::dispatch::{Answer, Outgoing, Target};
use crate::error::{Attempt, Code, Executed, RpcError};
use crate::fault::budget::RetryBudget;
use crate::fault::{Failure, FaultTolerance, RETRY_META, Verdict};
use crate::limits::{BACKGROUND_CALLS_MAX, META_PAIRS_MAX};
use crate::message::{Request, Response, Route};
use crate::registry::InstanceId;
use crate::stream::Items;

/// Finds and reaches instances.
pub(crate) trait Instances: Send + Sync {
    /// The node for this call; waits for the first list of `route`'s instances, at most until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` when there is none, or all were tried.
    fn pick(
        &self,
        route: &Arc<Route>,
        pick: &Pick<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Arc<Node>, RpcError>> + Send;

    /// The same if there is nothing to wait for; otherwise `None`.
    fn pick_now(&self, route: &Arc<Route>, pick: &Pick<'_>) -> Option<Result<Arc<Node>, RpcError>> {
        let _ = (route, pick);
        None
    }

    /// Whether the balancer uses the nodes' statistics: otherwise nothing is counted and no clock is read.
    fn is_timed(&self) -> bool {
        true
    }

    /// [`Instances::call`] at a node's address, to which a connection may be known already.
    fn call_node(&self, node: &Arc<Node>, request: &Request) -> impl Future<Output = Answer> + Send {
        self.call(&node.instance.address, request)
    }

    /// One attempt at `address`, under its own request id; it ends by `request.deadline`. For a oneway
    /// request the answer is an empty response once it was handed to a live connection. Dropping the future
    /// cancels the attempt.
    ///
    /// # Errors
    /// `executed` says whether the request can have reached a handler.
    fn call(&self, address: &str, request: &Request) -> impl Future<Output = Answer> + Send;
}

/// How attempts are repeated.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) fault_tolerance: Arc<dyn FaultTolerance>,
    pub(crate) budget: RetryBudget,
    /// Permits for calls that wait to be repeated in the background.
    pub(crate) background: Arc<Semaphore>,
    /// Whether the strategy asks one instance at a time.
    plain: bool,
}

impl Policy {
    pub(crate) fn new(fault_tolerance: Arc<dyn FaultTolerance>) -> Self {
        Self {
            plain: is_plain(&*fault_tolerance),
            fault_tolerance,
            budget: RetryBudget::new(),
            background: Arc::new(Semaphore::new(BACKGROUND_CALLS_MAX)),
        }
    }

    /// The strategy of this call.
    fn strategy<'a>(&'a self, call: &'a Outgoing) -> &'a dyn FaultTolerance {
        call.fault_tolerance.as_deref().unwrap_or(&*self.fault_tolerance)
    }

    /// Whether the call is made at one instance at a time.
    pub(super) fn one_at_a_time(&self, call: &Outgoing) -> bool {
        let plain = call.fault_tolerance.as_deref().map_or(self.plain, is_plain);
        plain || !call.request.method.idempotent || call.request.items.is_some() || call.target != Target::Any
    }
}

fn is_plain(fault_tolerance: &dyn FaultTolerance) -> bool {
    fault_tolerance.forks() <= 1 && !fault_tolerance.hedges()
}

/// Makes the call, with all its attempts. `later` takes a call that is to be repeated in the background after
/// a wait.
pub(crate) async fn run<I: Instances>(
    instances: &I,
    policy: &Policy,
    call: &Outgoing,
    later: impl Fn(Outgoing, Duration) + Send,
) -> Answer {
    run_at(instances, policy, call, None, later).await
}

/// The same, with the first attempt at `picked` if the balancer has already chosen.
pub(super) async fn run_at<I: Instances>(
    instances: &I,
    policy: &Policy,
    call: &Outgoing,
    picked: Option<Arc<Node>>,
    later: impl Fn(Outgoing, Duration) + Send,
) -> Answer {
    policy.budget.deposit();
    // Nearly every call ends with its first attempt, so the future has room for that and a pointer to the
    // rest.
    let failed = if policy.one_at_a_time(call) {
        match first(instances, call, picked).await {
            Ok(response) => return Ok(response),
            Err(failed) => Some(failed),
        }
    } else {
        None
    };
    Box::pin(go_on(instances, policy, call, later, failed)).await
}

/// Continues after a failed first attempt that was made elsewhere.
pub(super) async fn resume<I: Instances>(
    instances: &I,
    policy: &Policy,
    call: &Outgoing,
    later: impl Fn(Outgoing, Duration) + Send,
    failed: Failed,
) -> Answer {
    go_on(instances, policy, call, later, Some(failed)).await
}

/// The node for a first attempt, if there is nothing to wait for.
pub(super) fn pick_first<I: Instances>(
    instances: &I,
    call: &Outgoing,
) -> Option<Result<Arc<Node>, RpcError>> {
    match call.target {
        Target::Any => instances.pick_now(&call.request.route, &wish(&call.request, &[])),
        Target::Address(_) => None,
    }
}

/// A failed first attempt, and the node it was made at, if any.
#[derive(Debug)]
pub(super) struct Failed {
    node: Option<Arc<Node>>,
    error: RpcError,
}

impl Failed {
    /// An attempt that failed at `node` with `error`.
    pub(super) const fn at(node: Arc<Node>, error: RpcError) -> Self {
        Self {
            node: Some(node),
            error,
        }
    }
}

/// The first attempt, which starts with the call.
async fn first<I: Instances>(
    instances: &I,
    call: &Outgoing,
    picked: Option<Arc<Node>>,
) -> Result<Response, Failed> {
    let request = &call.request;
    if let Target::Address(address) = &call.target {
        let answer = Box::pin(instances.call(address, request)).await;
        return answer.map_err(|error| Failed { node: None, error });
    }
    let picked = picked.map(Ok);
    let node = match picked.or_else(|| instances.pick_now(&request.route, &wish(request, &[]))) {
        Some(picked) => picked,
        None => Box::pin(pick(instances, request, &[])).await,
    };
    let node = node.map_err(|error| Failed { node: None, error })?;
    let answer = at(instances, &node, request).await;
    answer.map_err(|error| Failed {
        node: Some(node),
        error,
    })
}

/// Continues after a failed first attempt, or makes all attempts of a call that is made at several instances
/// at once.
async fn go_on<I: Instances>(
    instances: &I,
    policy: &Policy,
    call: &Outgoing,
    later: impl Fn(Outgoing, Duration) + Send,
    mut failed: Option<Failed>,
) -> Answer {
    let mut request = call.request.clone();
    let races = !policy.one_at_a_time(call);
    let mut history = History {
        failures: call.failures,
        ..History::default()
    };
    loop {
        let answer = match (failed.take(), &call.target) {
            (Some(Failed { node, error }), target) => Err(match (node, target) {
                (Some(node), _) => history.failed(&node, request.started, error),
                (None, Target::Address(address)) => history.note(address, request.started, error),
                (None, Target::Any) => error,
            }),
            (None, Target::Address(address)) => {
                let answer = instances.call(address, &request).await;
                answer.map_err(|error| history.note(address, request.started, error))
            }
            (None, Target::Any) if races => {
                race::race(instances, policy, (call, &request), &mut history).await
            }
            (None, Target::Any) => anywhere(instances, &request, &mut history).await,
        };
        let error = match answer {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        // A race may have made several attempts.
        history.failures = (history.failures + 1).max(count(history.attempts.len()));
        match policy.decide(call, &error, history.failures) {
            Next::Return => return Err(history.attach(error)),
            Next::Ignore => return Err(history.ignore(error)),
            Next::Later(after) => {
                let again = Outgoing {
                    failures: history.failures,
                    ..call.clone()
                };
                later(again, after);
                return Err(history.ignore(error));
            }
            Next::Retry(after) if after.is_zero() => {}
            Next::Retry(after) => tokio::time::sleep(after).await,
        }
        request.started = now();
        mark_retry(&mut request);
    }
}

/// Marks the request as a retry, so that its handler's own calls are not retried on its behalf.
fn mark_retry(request: &mut Request) {
    let pairs = &mut request.meta;
    if pairs.value(RETRY_META).is_none() && pairs.0.len() < META_PAIRS_MAX {
        pairs.0.push((RETRY_META.to_owned(), "1".to_owned()));
    }
}

/// One further attempt at an instance of the balancer's choice.
async fn anywhere<I: Instances>(instances: &I, request: &Request, history: &mut History) -> Answer {
    let node = pick_again(instances, request, &history.tried).await?;
    let answer = at(instances, &node, request).await;
    answer.map_err(|error| history.failed(&node, request.started, error))
}

/// One attempt at `node`, counted there; it started at `request.started`.
async fn at<I: Instances>(instances: &I, node: &Arc<Node>, request: &Request) -> Answer {
    let mut active = Active::begin(instances, Arc::clone(node), request);
    let answer = instances.call_node(node, request).await;
    active.end(answer.as_ref().map(drop));
    answer
}

/// A node that has not been tried; if all have been, one of them again.
async fn pick_again<I: Instances>(
    instances: &I,
    request: &Request,
    tried: &[InstanceId],
) -> Result<Arc<Node>, RpcError> {
    match pick(instances, request, tried).await {
        Err(_) if !tried.is_empty() => pick(instances, request, &[]).await,
        picked => picked,
    }
}

async fn pick<I: Instances>(
    instances: &I,
    request: &Request,
    tried: &[InstanceId],
) -> Result<Arc<Node>, RpcError> {
    let wish = wish(request, tried);
    instances.pick(&request.route, &wish, request.deadline).await
}

fn wish<'a>(request: &'a Request, tried: &'a [InstanceId]) -> Pick<'a> {
    Pick {
        method: &request.method.name,
        hash_key: request.hash_key,
        tried,
        now: request.started,
    }
}

/// What to do after a failure.
enum Next {
    Return,
    Ignore,
    Retry(Duration),
    Later(Duration),
}

impl Policy {
    /// What the strategy learns about a failed attempt.
    fn failure<'a>(&self, call: &Outgoing, error: &'a RpcError, attempt: u32) -> Failure<'a> {
        let begun = call.request.items.as_ref().is_some_and(Items::have_begun);
        let safe_to_repeat = match error.executed {
            // Repeating a stream halfway would deliver its items twice.
            _ if begun => false,
            Executed::No => true,
            Executed::Maybe | Executed::Yes => call.request.method.idempotent,
        };
        Failure {
            error,
            attempt,
            safe_to_repeat,
        }
    }

    /// Asks the strategy, and applies the rules to its answer.
    fn decide(&self, call: &Outgoing, error: &RpcError, attempt: u32) -> Next {
        let failure = self.failure(call, error, attempt);
        let verdict = self.strategy(call).on_failure(&failure);
        let now = now();
        let in_time = |after| {
            now.checked_add(after)
                .is_some_and(|start| start < call.request.deadline)
        };
        match verdict {
            Verdict::Return => Next::Return,
            Verdict::Ignore => Next::Ignore,
            _ if !failure.safe_to_repeat => Next::Return,
            // Repeated later, the stream would have no receiver for its items.
            Verdict::Later { .. } if call.request.items.is_some() => Next::Return,
            Verdict::Retry { after } if in_time(after) && self.affords(call, error, now) => {
                Next::Retry(after)
            }
            Verdict::Later { after } if self.affords(call, error, now) => Next::Later(after),
            Verdict::Retry { .. } | Verdict::Later { .. } => Next::Return,
        }
    }
}

impl Policy {
    /// Whether the budget allows a retry after this failure. A request that reached no handler (never sent,
    /// or returned by a provider that is leaving) has cost nobody anything, so sending it elsewhere is not a
    /// retry in the budget's sense (gRPC's "transparent retry", proposal A6): otherwise a graceful restart
    /// would fail calls.
    ///
    /// Nor is any other retry made within a request that is itself a retry: three layers that each try three
    /// times would turn one call into 27 (Kitex stops such chains; Google SRE book, *Addressing Cascading
    /// Failures*).
    fn affords(&self, call: &Outgoing, error: &RpcError, now: Instant) -> bool {
        let transparent =
            error.executed == Executed::No && matches!(error.code, Code::Unavailable | Code::Draining);
        transparent || (!call.within_retry && self.budget.withdraw(now))
    }
}

/// The attempts so far. Allocates nothing until one fails.
#[derive(Default)]
struct History {
    failures: u32,
    tried: Vec<InstanceId>,
    attempts: Vec<Attempt>,
    /// The most that any attempt may have executed, as [`certainty`].
    executed: u8,
}

impl History {
    /// Records a failed attempt and passes its error on.
    fn note(&mut self, address: &str, started: Instant, error: RpcError) -> RpcError {
        self.executed = self.executed.max(certainty(error.executed));
        self.attempts.push(Attempt {
            address: address.to_owned(),
            code: error.code,
            message: error.message.clone(),
            elapsed: now().saturating_duration_since(started),
        });
        error
    }

    /// Records that the attempt at `node` failed.
    fn failed(&mut self, node: &Node, started: Instant, error: RpcError) -> RpcError {
        if !self.tried.contains(&node.instance.id) {
            self.tried.push(node.instance.id.clone());
        }
        self.note(&node.instance.address, started, error)
    }

    /// Marks an error instead of which the caller gets the empty value, if there is one.
    fn ignore(self, error: RpcError) -> RpcError {
        let mut error = self.attach(error);
        error.ignored = true;
        error
    }

    /// The error that the caller sees: the last one, with all attempts. If the last attempt executed nothing,
    /// that does not undo what an earlier one may have done.
    fn attach(self, mut error: RpcError) -> RpcError {
        error.attempts = self.attempts;
        error.executed = match self.executed.max(certainty(error.executed)) {
            0 => Executed::No,
            1 => Executed::Maybe,
            _ => Executed::Yes,
        };
        error
    }
}

fn count(attempts: usize) -> u32 {
    u32::try_from(attempts).unwrap_or(u32::MAX)
}

const fn certainty(executed: Executed) -> u8 {
    match executed {
        Executed::No => 0,
        Executed::Maybe => 1,
        Executed::Yes => 2,
    }
}

#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;
