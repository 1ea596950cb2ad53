//! What a stub calls through: an invoker, or a service in this process. The seam below `call`, which knows forms and
//! types but no instances, and above `invoker`, which knows instances but no types.

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

/// Where one call shall go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To whichever instance the balancer picks.
    Any,
    /// To this address and no other.
    Address(String),
}

/// A call on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) target: Target,
    /// How often it has failed already: not 0 when it is repeated in the background.
    pub(crate) failures: u32,
    /// What decides over it in place of the invoker's own.
    pub(crate) fault_tolerance: Option<Arc<dyn FaultTolerance>>,
    /// Made by a handler whose own request is a retry.
    pub(crate) within_retry: bool,
}

/// The outcome of a call, still serialized.
pub(crate) type Answer = Result<Response, RpcError>;

/// Carries calls.
pub(crate) trait Dispatch: Send + Sync + fmt::Debug + 'static {
    /// How values are serialized.
    fn serializer(&self) -> &SerializerRef;

    /// How long a call may take that does not say.
    fn timeout(&self) -> Duration;

    /// The metadata that calls made from a handler take over from the call being served.
    fn propagated(&self) -> &[String] {
        &[]
    }

    /// Where started calls run.
    ///
    /// # Errors
    /// There is no runtime.
    fn tasks(&self) -> Result<&Tasks, RpcError>;

    /// Where callbacks run.
    fn callbacks(&self) -> &CallbackPool;

    /// All instances of a service, by id; waits for a first picture of it, at most until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    fn instances<'a>(
        &'a self,
        route: &'a Arc<Route>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Arc<Instance>>, RpcError>>;

    /// Makes the call, with all its attempts. With `request.oneway` the answer is an empty response as soon as the
    /// request was handed to a live connection. Dropping the future gives the call up.
    fn call(self: Arc<Self>, call: Outgoing) -> BoxFuture<'static, Answer>;
}

/// The tasks of one dispatch: all of them end when it is shut down, and then it waits for them.
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

    /// Where they run.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs a call as a task; when the tasks are stopped first, its answer is `Cancelled`.
    pub(crate) fn spawn(&self, call: BoxFuture<'static, Answer>) -> JoinHandle<Answer> {
        let stop = self.stop.clone();
        self.tracker.spawn_on(stoppable(stop, call), &self.runtime)
    }

    /// Runs a call as a task and hands its answer to `deliver`; whoever drops the task drops `deliver`.
    pub(crate) fn spawn_then(
        &self,
        call: BoxFuture<'static, Answer>,
        deliver: impl FnOnce(Answer) + Send + 'static,
    ) {
        let stop = self.stop.clone();
        let task = async move { deliver(stoppable(stop, call).await) };
        drop(self.tracker.spawn_on(task, &self.runtime));
    }

    /// Stops every task and waits for their ends.
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
