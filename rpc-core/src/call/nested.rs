//! A call made by a handler: it does not outlive the call that the handler serves.

use crate::BoxFuture;
use crate::context::Cancellation;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};

/// `call`, cancelled when the caller of the handler that makes it goes away.
pub(super) fn within(outer: Cancellation, call: BoxFuture<'static, Answer>) -> BoxFuture<'static, Answer> {
    let cancelled = |executed| {
        let message = "the handler that made this call serves a caller that has gone away";
        Err(RpcError::new(Code::Cancelled, executed, message))
    };
    Box::pin(async move {
        if outer.is_cancelled() {
            return cancelled(Executed::No);
        }
        tokio::select! {
            biased;
            answer = call => answer,
            // Dropping the call notifies its own provider.
            () = outer.cancelled() => cancelled(Executed::Maybe),
        }
    })
}
