//! The calls of an invoker as a tower service.

use std::sync::Arc;
use std::task::{self, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::BoxFuture;
use crate::call::now;
use crate::context::Context;
use crate::dispatch::{Dispatch, Outgoing, Target};
use crate::error::{Code, Executed, RpcError};
use crate::invoker::Invoker;
use crate::message::{Attachment, Meta, Method, Outcome, Request, Response, Route};
use crate::serialize;

/// An invoker as a tower service from [`Request`] to [`Response`]: each request is one call, with the
/// invoker's filters, balancing and fault tolerance. Always ready: a call above a limit is answered
/// `Overloaded`.
///
/// A request is created by [`Channel::request`] and may be changed before it is sent; an answer is read with
/// [`Channel::value`].
#[derive(Debug, Clone)]
pub struct Channel {
    dispatch: Arc<dyn Dispatch>,
}

impl Channel {
    /// Calls through `invoker`.
    #[must_use]
    pub fn new(invoker: &Invoker) -> Self {
        Self {
            dispatch: invoker.dispatch(),
        }
    }

    /// A request of a method in version `1.0` and group `default` of a service: `params` is the tuple of its
    /// parameters. Its time, the invoker's default, starts now.
    ///
    /// # Errors
    /// `BadRequest` if the parameters cannot be encoded.
    pub fn request(
        &self,
        service: &str,
        method: &'static Method,
        params: &impl Serialize,
    ) -> Result<Request, RpcError> {
        let serializer = self.dispatch.serializer().clone();
        let params = serialize::to_bytes(&serializer, params).map_err(|error| {
            let message = format!("the parameters of `{}` cannot be encoded: {error}", method.name);
            RpcError::new(Code::BadRequest, Executed::No, message)
        })?;
        let started = now();
        // A call made by a handler ends no later than the call being served, like those of stubs.
        let deadline = started + self.dispatch.timeout();
        let deadline = Context::current_deadline().map_or(deadline, |outer| outer.min(deadline));
        Ok(Request {
            route: Arc::new(Route::new(service)),
            method: method.into(),
            serializer,
            params,
            attachment: Attachment::new(),
            meta: Meta::default(),
            started,
            deadline,
            oneway: false,
            hash_key: None,
            items: None,
            peer: None,
            cancelled: None,
        })
    }

    /// The value in an answer.
    ///
    /// # Errors
    /// `App`, with its words, for the method's own error; `BadReply` if the value is of another type.
    pub fn value<T: DeserializeOwned>(&self, response: &Response) -> Result<T, RpcError> {
        match &response.outcome {
            Outcome::Ok(value) => self.dispatch.serializer().decode(value).map_err(|error| {
                let message = format!("the answer cannot be decoded: {error}");
                RpcError::new(Code::BadReply, Executed::Yes, message)
            }),
            Outcome::App { message, .. } => Err(RpcError::new(Code::App, Executed::Yes, message)),
        }
    }
}

impl Service<Request> for Channel {
    type Response = Response;
    type Error = RpcError;
    type Future = BoxFuture<'static, Result<Response, RpcError>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Arc::clone(&self.dispatch).call(Outgoing {
            request,
            target: Target::Any,
            failures: 0,
            fault_tolerance: None,
            within_retry: Context::within_retry(),
        })
    }
}
