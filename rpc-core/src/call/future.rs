//! The future of a call's answer.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

use super::{Call, Decode};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{CallError, Code, Executed, Never, RpcError};
use crate::recovery::{self, Fallback};
use crate::serialize::SerializerRef;

impl<T, E> IntoFuture for Call<T, E> {
    type Output = Result<T, CallError<E>>;
    type IntoFuture = CallFuture<T, E>;

    fn into_future(mut self) -> CallFuture<T, E> {
        let fallback = self.recovery.fallback.take();
        let decode = self.decode;
        let (call, serializer) = self.send(false, None);
        CallFuture {
            state: State::Waiting(call),
            serializer,
            fallback,
            decode,
        }
    }
}

/// The future of an answer. Dropping it cancels the call: the provider is notified, and the handler's context
/// is cancelled.
#[must_use = "dropping it cancels the call"]
pub struct CallFuture<T, E = Never> {
    pub(super) state: State,
    pub(super) serializer: SerializerRef,
    pub(super) fallback: Option<Fallback<T, E>>,
    pub(super) decode: Decode<T, E>,
}

pub(super) enum State {
    /// Runs when it is polled.
    Waiting(BoxFuture<'static, Answer>),
    /// Runs as a task.
    Started(JoinHandle<Answer>),
}

impl<T, E> fmt::Debug for CallFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

impl<T, E> Future for CallFuture<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Waiting(call) => ready!(call.as_mut().poll(context)),
            State::Started(task) => ready!(Pin::new(task).poll(context)).unwrap_or_else(|error| {
                let (code, message) = match error.is_panic() {
                    true => (Code::Internal, "the call's task panicked"),
                    false => (Code::Cancelled, "the runtime was shut down"),
                };
                Err(RpcError::new(code, Executed::Maybe, message))
            }),
        };
        let outcome = (self.decode, self.fallback.as_ref());
        Poll::Ready(recovery::outcome(outcome, &self.serializer, answer))
    }
}

impl<T, E> Drop for CallFuture<T, E> {
    fn drop(&mut self) {
        if let State::Started(task) = &self.state {
            task.abort();
        }
    }
}
