//! The [`Dispatch`] of an [`super::Invoker`]: settings, tasks, callback pool and cluster of one invoker, and
//! its shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts::{self, Policy};
use super::callback_pool::CallbackPool;
use super::calling::Calling;
use super::cluster::Cluster;
use super::endpoint::Shared;
use crate::BoxFuture;
use crate::call::now;
use crate::dispatch::{Answer, Dispatch, Outgoing, Target, Tasks};
use crate::error::RpcError;
use crate::fault::FaultTolerance;
use crate::filter::{self, Filter, Next, Side};
use crate::message::{Request, Route};
use crate::registry::{Instance, Registry};
use crate::serialize::SerializerRef;

/// Everything one invoker owns.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
    pub(super) serializer: SerializerRef,
    pub(super) policy: Policy,
    pub(super) filters: Vec<Arc<dyn Filter>>,
    pub(super) tasks: Tasks,
    pub(super) callbacks: CallbackPool,
    /// Keys of metadata that nested calls inherit.
    pub(super) propagated: Vec<String>,
    /// The registry, if it was created here and has to be closed here.
    pub(super) owned_registry: Option<Arc<dyn Registry>>,
}

impl Dispatch for Remote {
    fn serializer(&self) -> &SerializerRef {
        &self.serializer
    }

    fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    fn propagated(&self) -> &[String] {
        &self.propagated
    }

    fn tasks(&self) -> Result<&Tasks, RpcError> {
        Ok(&self.tasks)
    }

    fn callbacks(&self) -> &CallbackPool {
        &self.callbacks
    }

    fn instances<'a>(
        &'a self,
        route: &'a Arc<Route>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Vec<Arc<Instance>>, RpcError>> {
        Box::pin(async move {
            let nodes = self.cluster.nodes(route, deadline).await?;
            Ok(nodes.iter().map(|node| Arc::clone(&node.instance)).collect())
        })
    }

    fn call(self: Arc<Self>, call: Outgoing) -> BoxFuture<'static, Answer> {
        if self.filters.is_empty() {
            return Box::pin(Calling::new(self, call));
        }
        Box::pin(async move {
            let last = Last {
                remote: &self,
                target: call.target,
                failures: call.failures,
                fault_tolerance: call.fault_tolerance,
                within_retry: call.within_retry,
            };
            filter::through(&self.filters, Side::Invoker, call.request, &last).await
        })
    }
}

/// The innermost step of the filter chain: the attempts.
struct Last<'a> {
    remote: &'a Arc<Remote>,
    target: Target,
    failures: u32,
    fault_tolerance: Option<Arc<dyn FaultTolerance>>,
    within_retry: bool,
}

impl Next for Last<'_> {
    fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Answer> {
        let call = Outgoing {
            request,
            target: self.target.clone(),
            failures: self.failures,
            fault_tolerance: self.fault_tolerance.clone(),
            within_retry: self.within_retry,
        };
        Box::pin(async move {
            let later = |call, after| self.remote.later(call, after);
            attempts::run(&self.remote.cluster, &self.remote.policy, &call, later).await
        })
    }
}

impl Remote {
    /// Repeats a call in the background after a wait, with a deadline of its own. If too many already wait,
    /// or the invoker is shut down first, the call is given up.
    pub(super) fn later(self: &Arc<Self>, mut call: Outgoing, after: Duration) {
        let method = call.request.method.clone();
        let Ok(place) = Arc::clone(&self.policy.background).try_acquire_owned() else {
            tracing::warn!(
                method = &*method.name,
                "too many failed calls wait to be repeated; this one is given up"
            );
            return;
        };
        let remote = Arc::clone(self);
        let again = async move {
            let _place = place;
            tokio::time::sleep(after).await;
            call.request.started = now();
            call.request.deadline = call.request.started + remote.timeout();
            Arc::clone(&remote).call(call).await
        };
        self.tasks.spawn_then(Box::pin(again), move |answer| {
            // An ignored failure has been passed on to the next attempt.
            if let Err(error) = answer
                && !error.ignored
            {
                tracing::warn!(method = &*method.name, %error, "repeating a failed call failed again");
            }
        });
    }

    pub(super) async fn shutdown(&self) {
        self.tasks.shutdown().await;
        self.callbacks.shutdown().await;
        self.shared.stop.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
        if let Some(registry) = &self.owned_registry {
            registry.close().await;
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
