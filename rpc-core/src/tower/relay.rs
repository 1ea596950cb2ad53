//! From the innermost service of a stack back to the filter that runs it. Services own all they need, but the
//! rest of a filter chain is only borrowed for one call; so a request returns to the filter's own future,
//! which runs the rest on it.

use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

use super::BoxError;
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::{Request, Response};

/// A request that has passed through the stack, and the sender for its answer.
pub(super) type Job = (Request, oneshot::Sender<Answer>);

/// A request on its way through a stack of layers. A layer that repeats or hedges clones it.
#[derive(Debug, Clone)]
pub struct TowerRequest {
    /// The call.
    pub request: Request,
    pub(super) back: mpsc::Sender<Job>,
}

/// The innermost service of a stack: the following filters, and finally the call. Dropping its future cancels
/// the call.
#[derive(Debug, Clone, Copy)]
pub struct Onward(pub(super) ());

impl Service<TowerRequest> for Onward {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, TowerRequest { request, back }: TowerRequest) -> Self::Future {
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            let gone = || {
                let message = "the call ended before the layers around it had passed it on";
                RpcError::new(Code::Cancelled, Executed::No, message)
            };
            if back.send((request, sender)).await.is_err() {
                return Err(BoxError::from(gone()));
            }
            answer.await.map_err(|_gone| gone())?.map_err(BoxError::from)
        })
    }
}
