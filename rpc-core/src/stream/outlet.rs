//! The handler's end of a stream: it sends the items, and ends the stream when something outside it requires
//! that.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::items::{Item, Items};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{CallError, Code, Executed, RpcError};
use crate::message::{Attachment, Request};
use crate::serialize::{self, SerializerRef};
use crate::service;

/// Items that a stream with an unlimited supply sends before other tasks get to run.
const ITEMS_PER_TURN: u32 = 32;
/// How long a stream may continue after its provider has started to leave: a finite stream may reach its end;
/// one that follows something must not hold up the provider.
const LEAVING_GRACE: Duration = Duration::from_millis(500);

/// Sends the items of a handler's stream.
#[derive(Debug)]
pub struct Outlet {
    items: Items,
    serializer: SerializerRef,
}

impl Outlet {
    /// Sends every item, each no sooner than the peer accepts it, and ends with the stream or its first
    /// error.
    ///
    /// # Errors
    /// The stream's own, or the framework's: an item that cannot be encoded or sent.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handler's stream; items already sent stay sent.
    pub async fn pour<S, T, E>(
        self,
        stream: S,
        lift: impl Fn(S::Item) -> Result<(T, Attachment), CallError<E>>,
    ) -> Result<(), CallError<E>>
    where
        S: Stream,
        T: Serialize,
    {
        let mut stream = pin!(stream);
        let sink = self.items.sink();
        let mut sent = 0_u32;
        loop {
            // The handler is not asked for an item before the peer can take it.
            while !sink.is_ready() {
                sink.ready().await;
            }
            let Some(outcome) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await else {
                return Ok(());
            };
            let item = self.encode(lift(outcome)?).map_err(CallError::Rpc)?;
            while let Some(room) = sink.send(&item).map_err(CallError::Rpc)? {
                room.await;
            }
            sent += 1;
            if sent.is_multiple_of(ITEMS_PER_TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    fn encode<T: Serialize>(&self, (value, attachment): (T, Attachment)) -> Result<Item, RpcError> {
        let value = serialize::to_bytes(&self.serializer, &value).map_err(|error| {
            let message = format!("an item of the stream cannot be encoded: {error}");
            RpcError::new(Code::Internal, Executed::Yes, message)
        })?;
        Ok(Item { value, attachment })
    }
}

/// Decodes the parameters and returns the future that runs a handler's stream to its end.
pub fn handle_stream<P, E, H, F>(
    request: Request,
    words: fn(&E) -> String,
    handler: H,
) -> BoxFuture<'static, Answer>
where
    P: DeserializeOwned,
    E: Serialize + Send + 'static,
    H: FnOnce(P, Attachment, Outlet) -> F + Send,
    F: Future<Output = Result<(), CallError<E>>> + Send + 'static,
{
    let Some(items) = request.items.clone() else {
        let message = format!(
            "`{}` answers with a stream, and the caller asked for one answer; a STREAM_WINDOW precedes the request of a stream",
            request.method.name
        );
        let error = RpcError::new(Code::BadRequest, Executed::No, message);
        return Box::pin(std::future::ready(Err(error)));
    };
    let ended = ended(&request, items.sink().leaving());
    let outlet = Outlet {
        items,
        serializer: request.serializer.clone(),
    };
    service::handle(request, words, |params, attachment| {
        let handling = handler(params, attachment, outlet);
        async move {
            tokio::select! {
                biased;
                outcome = handling => outcome.map(|()| ((), Attachment::new())),
                error = ended => Err(CallError::Rpc(error)),
            }
        }
    })
}

/// Completes with whatever ends a stream from outside: its handler is dropped then, whatever it waits for.
fn ended(request: &Request, leaving: BoxFuture<'static, ()>) -> impl Future<Output = RpcError> + use<> {
    let (deadline, cancelled) = (request.deadline, request.cancelled.clone());
    async move {
        let cancelled = async {
            match &cancelled {
                Some(cancelled) => cancelled.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let left = async {
            leaving.await;
            tokio::time::sleep(LEAVING_GRACE).await;
        };
        let (code, message) = tokio::select! {
            () = cancelled => (Code::Cancelled, "the caller has gone away"),
            () = tokio::time::sleep_until(deadline.into()) => (Code::DeadlineExceeded, "the stream's time ran out"),
            () = left => (Code::Draining, "the provider is shutting down; ask another one for the rest"),
        };
        RpcError::new(code, Executed::Yes, message)
    }
}
