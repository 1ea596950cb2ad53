//! What a stub calls through: an invoker, or a service in this process. The layer below `call`, which knows
//! call forms and types but no instances, and above `invoker`, which knows instances but no types.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxFuture;
use crate::error::{Code, Executed, RpcError};
use crate::fault::FaultTolerance;
use crate::invoker::callback_pool::CallbackPool;
use crate::message::{Request, Response, Route};
use crate::registry::Instance;
use crate::serialize::SerializerRef;

/// Where one call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To the instance that the balancer picks.
    Any,
    /// To this address and no other.
    Address(String),
}

/// A call on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) target: Target,
    /// Failed attempts so far; more than 0 when the call is repeated in the background.
    pub(crate) failures: u32,
    /// Used instead of the invoker's own strategy.
    pub(crate) fault_tolerance: Option<Arc<dyn FaultTolerance>>,
    /// Made by a handler whose own request is a retry.
    pub(crate) within_retry: bool,
}

/// The outcome of a call, still serialized.
pub(crate) type Answer = Result<Response, RpcError>;

/// Makes calls on behalf of stubs.
pub(crate) trait Dispatch: Send + Sync + fmt::Debug + 'static {
    /// How values are serialized.
    fn serializer(&self) -> &SerializerRef;

    /// Time-out of a call that does not set one.
    fn timeout(&self) -> Duration;

    /// Keys of the metadata that calls made from a handler inherit from the call being served.
    fn propagated(&self) -> &[String] {
        &[]
    }

    /// The tasks that started calls run in.
    ///
    /// # Errors
    /// There is no runtime.
    fn tasks(&self) -> Result<&Tasks, RpcError>;

    /// Where callbacks run.
    fn callbacks(&self) -> &CallbackPool;

    /// All instances of a service, by id; waits for the first list of them, at most until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    fn instances<'a>(
        &'a self,
        route: &'a Arc<Route>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Arc<Instance>>, RpcError>>;

    /// Makes the call, with all its attempts. With `request.oneway` the answer is an empty response as soon
    /// as the request was handed to a live connection. Dropping the future cancels the call.
    fn call(self: Arc<Self>, call: Outgoing) -> BoxFuture<'static, Answer>;
}

/// The tasks of one invoker or local service: a shutdown stops all of them and waits until they have ended.
#[derive(Debug)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
}

impl Tasks {
    /// Tasks on the current runtime.
    pub(crate) fn current() -> Result<Self, RpcError> {
        let runtime = Handle::try_current().map_err(|_| {
            let message = "no tokio runtime here; make the first call, or build the invoker, within one";
            RpcError::new(Code::Unavailable, Executed::No, message)
        })?;
        Ok(Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            runtime,
        })
    }

    /// The runtime that they run on.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs a call as a task; if the tasks are stopped first, its answer is `Cancelled`.
    pub(crate) fn spawn(&self, call: BoxFuture<'static, Answer>) -> JoinHandle<Answer> {
        let stop = self.stop.clone();
        self.tracker.spawn_on(stoppable(stop, call), &self.runtime)
    }

    /// Runs a call as a task and hands its answer to `deliver`; if the task is dropped, `deliver` is dropped
    /// uncalled.
    pub(crate) fn spawn_then(
        &self,
        call: BoxFuture<'static, Answer>,
        deliver: impl FnOnce(Answer) + Send + 'static,
    ) {
        let stop = self.stop.clone();
        let task = async move { deliver(stoppable(stop, call).await) };
        drop(self.tracker.spawn_on(task, &self.runtime));
    }

    /// Stops every task and waits until all have ended.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn stoppable(stop: CancellationToken, call: impl Future<Output = Answer>) -> Answer {
    tokio::select! {
        biased;
        answer = call => answer,
        () = stop.cancelled_owned() => Err(shut_down(Executed::Maybe)),
    }
}

/// The error of a call that a shutdown ended.
pub(crate) fn shut_down(executed: Executed) -> RpcError {
    RpcError::new(Code::Cancelled, executed, "the invoker was shut down")
}
