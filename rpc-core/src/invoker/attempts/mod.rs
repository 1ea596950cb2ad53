//! The loop over the attempts of one call. A strategy only asks for a retry; here it gets one only if repeating is safe,
//! the call's one deadline leaves time for it, and the retry budget has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::balance::{Node, Pick};
use crate::call::now;
use crate::carrier::{Answer, Outgoing, Target};
use crate::error::{Attempt, Code, Executed, RpcError};
use crate::fault::budget::RetryBudget;
use crate::fault::{Failure, FaultTolerance, Verdict};
use crate::message::{Request, Route};
use crate::registry::InstanceId;

/// What a failed attempt counts as in a node's latency, at least: an instance that refuses at once is not a fast one.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// Where instances are found and reached.
pub(crate) trait Instances: Send + Sync {
    /// The node for this call; waits for a first picture of `route`, no longer than `deadline`.
    ///
    /// # Errors
    /// `Unavailable` when there is none, or all were tried.
    fn pick(
        &self,
        route: &Arc<Route>,
        pick: &Pick<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Arc<Node>, RpcError>> + Send;

    /// One attempt at `address`, under a request id of its own; it ends by `request.deadline`. For a oneway request the
    /// answer is an empty response once it was handed to a live connection. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// With `executed` saying whether the request can have reached a handler.
    fn call(&self, address: &str, request: &Request) -> impl Future<Output = Answer> + Send;
}

/// How attempts are repeated.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) fault_tolerance: Arc<dyn FaultTolerance>,
    pub(crate) budget: RetryBudget,
}

/// Makes the call, with all its attempts.
pub(crate) async fn run<I: Instances>(instances: &I, policy: &Policy, call: Outgoing) -> Answer {
    // Borrowed, not taken apart: a future keeps room for what is moved within it twice.
    let Outgoing { request, target } = &call;
    policy.budget.deposit();
    let mut history = History::default();
    loop {
        let started = now();
        let answer = match target {
            Target::Address(address) => {
                let answer = instances.call(address, request).await;
                answer.map_err(|error| history.note(address, started, error))
            }
            Target::Any => anywhere(instances, request, &mut history, started).await,
        };
        let error = match answer {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        history.failures += 1;
        match policy.decide(request, &error, history.failures) {
            Next::Return => return Err(history.attach(error)),
            Next::Ignore => {
                let mut error = history.attach(error);
                error.ignored = true;
                return Err(error);
            }
            Next::Retry(after) if after.is_zero() => {}
            Next::Retry(after) => tokio::time::sleep(after).await,
        }
    }
}

/// One attempt at an instance of the balancer's choice.
async fn anywhere<I: Instances>(
    instances: &I,
    request: &Request,
    history: &mut History,
    started: Instant,
) -> Answer {
    let node = match pick(instances, request, &history.tried).await {
        // Every instance was tried: what is left is to try one again.
        Err(_) if !history.tried.is_empty() => pick(instances, request, &[]).await?,
        picked => picked?,
    };
    let active = Active::new(&node);
    let answer = instances.call(&node.instance.address, request).await;
    drop(active);
    let elapsed = now().saturating_duration_since(started);
    match answer {
        Ok(response) => {
            if !request.oneway {
                node.note_latency(elapsed);
            }
            Ok(response)
        }
        Err(error) => {
            if !matches!(error.code, Code::Cancelled | Code::App) {
                node.note_latency(elapsed.max(FAILURE_LATENCY));
            }
            if !history.tried.contains(&node.instance.id) {
                history.tried.push(node.instance.id.clone());
            }
            Err(history.note(&node.instance.address, started, error))
        }
    }
}

async fn pick<I: Instances>(
    instances: &I,
    request: &Request,
    tried: &[InstanceId],
) -> Result<Arc<Node>, RpcError> {
    let pick = Pick {
        method: request.method.name,
        hash_key: request.hash_key,
        tried,
    };
    instances.pick(&request.route, &pick, request.deadline).await
}

/// What happens after a failure.
enum Next {
    Return,
    Ignore,
    Retry(Duration),
}

impl Policy {
    /// Asks the strategy and holds it to the rules.
    fn decide(&self, request: &Request, error: &RpcError, attempt: u32) -> Next {
        let safe_to_repeat = match error.executed {
            Executed::No => true,
            Executed::Maybe | Executed::Yes => request.method.idempotent,
        };
        let failure = Failure {
            error,
            attempt,
            safe_to_repeat,
        };
        let after = match self.fault_tolerance.on_failure(&failure) {
            Verdict::Return => return Next::Return,
            Verdict::Ignore => return Next::Ignore,
            Verdict::Retry { after } => after,
        };
        let now = now();
        let in_time = now
            .checked_add(after)
            .is_some_and(|start| start < request.deadline);
        if safe_to_repeat && in_time && self.budget.withdraw(now) {
            Next::Retry(after)
        } else {
            Next::Return
        }
    }
}

/// What was tried. Allocates nothing until something fails.
#[derive(Default)]
struct History {
    failures: u32,
    tried: Vec<InstanceId>,
    attempts: Vec<Attempt>,
    /// The most that any attempt may have done, as [`certainty`].
    executed: u8,
}

impl History {
    /// Lists a failed attempt and passes its error on.
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

    /// The error that the caller sees: the last one, with all attempts. That the last attempt did nothing does not undo
    /// what an earlier one may have done.
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

const fn certainty(executed: Executed) -> u8 {
    match executed {
        Executed::No => 0,
        Executed::Maybe => 1,
        Executed::Yes => 2,
    }
}

/// Counts a call as under way at a node, also when it is given up.
struct Active<'a>(&'a Node);

impl<'a> Active<'a> {
    fn new(node: &'a Node) -> Self {
        node.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(node)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
