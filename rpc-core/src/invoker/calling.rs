//! The path that nearly every call takes: no filters, an instance and a connection available at once, and an
//! answer. Written by hand and not as nested `async fn`s, whose size and states would cost every call more
//! than all its work here. Anything less simple continues in `attempts`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::attempts::{self, Active, Failed};
use super::remote::Remote;
use super::slot_guard::SlotGuard;
use crate::BoxFuture;
use crate::balance::Node;
use crate::dispatch::{Answer, Outgoing};
use crate::error::RpcError;
use crate::frame::Status;

/// A call without filters.
pub(super) struct Calling {
    remote: Arc<Remote>,
    call: Outgoing,
    stage: Stage,
}

enum Stage {
    Begun,
    Sent(Active, SlotGuard),
    Slow(BoxFuture<'static, Answer>),
}

/// How a call began.
enum Begin {
    Sent(Active, SlotGuard),
    Failed(Failed),
    /// Nothing was sent; the node, if one was picked.
    Slow(Option<Arc<Node>>),
}

impl Calling {
    pub(super) const fn new(remote: Arc<Remote>, call: Outgoing) -> Self {
        Self {
            remote,
            call,
            stage: Stage::Begun,
        }
    }

    /// Sends the first attempt, if it can be sent right away.
    fn send(&self, cx: &Context<'_>) -> Begin {
        let (cluster, request) = (&self.remote.cluster, &self.call.request);
        if request.oneway
            || !request.attachment.is_empty()
            || request.items.is_some()
            || !self.remote.policy.one_at_a_time(&self.call)
        {
            return Begin::Slow(None);
        }
        let Some(Ok(node)) = attempts::pick_first(cluster, &self.call) else {
            return Begin::Slow(None);
        };
        let Some(connection) = node.endpoint.get().and_then(|endpoint| endpoint.ready()) else {
            return Begin::Slow(Some(node));
        };
        self.remote.policy.budget.deposit();
        let mut active = Active::begin(cluster, node, request);
        match SlotGuard::begin(connection, cx, request, Status::REQUEST, request.started) {
            Ok(guard) => Begin::Sent(active, guard),
            Err(error) => Begin::Failed(failed(&mut active, error)),
        }
    }

    /// The call from its beginning. `picked` is the balancer's choice, if it was asked already: if it were
    /// asked twice per call, a balancer that takes instances in turn would skip every other one.
    fn slow(&self, picked: Option<Arc<Node>>) -> BoxFuture<'static, Answer> {
        let (remote, call) = (Arc::clone(&self.remote), self.call.clone());
        Box::pin(async move {
            let later = |call, after| remote.later(call, after);
            attempts::run_at(&remote.cluster, &remote.policy, &call, picked, later).await
        })
    }

    /// The rest of the call after a failed attempt.
    fn resume(&self, failed: Failed) -> BoxFuture<'static, Answer> {
        let (remote, call) = (Arc::clone(&self.remote), self.call.clone());
        Box::pin(async move {
            let later = |call, after| remote.later(call, after);
            attempts::resume(&remote.cluster, &remote.policy, &call, later, failed).await
        })
    }
}

/// Records that the attempt failed.
fn failed(active: &mut Active, error: RpcError) -> Failed {
    active.end(Err(&error));
    Failed::at(Arc::clone(active.node()), error)
}

impl Future for Calling {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = &mut *self;
        loop {
            let next = match &mut this.stage {
                Stage::Begun => match this.send(cx) {
                    Begin::Sent(active, guard) => {
                        this.stage = Stage::Sent(active, guard);
                        // The slot wakes the task of this poll.
                        return Poll::Pending;
                    }
                    Begin::Failed(failed) => this.resume(failed),
                    Begin::Slow(picked) => this.slow(picked),
                },
                Stage::Sent(active, guard) => {
                    let answer = ready!(guard.poll(cx, &this.call.request));
                    match answer {
                        Ok(response) => {
                            active.end(Ok(()));
                            return Poll::Ready(Ok(response));
                        }
                        Err(error) => {
                            let failed = failed(active, error);
                            this.resume(failed)
                        }
                    }
                }
                Stage::Slow(rest) => return rest.as_mut().poll(cx),
            };
            this.stage = Stage::Slow(next);
        }
    }
}
