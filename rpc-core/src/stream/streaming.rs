//! A stream at its caller: the items, then its outcome.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use super::items::{Item, Items};
use crate::BoxFuture;
use crate::call::Decode;
use crate::dispatch::Answer;
use crate::error::{CallError, Code, Executed, Never, RpcError};
use crate::message::Attachment;
use crate::serialize::SerializerRef;

/// Converts an item to what the caller gets.
pub(super) type DecodeItem<T, E> = fn(&SerializerRef, Item) -> Result<T, CallError<E>>;

/// The items of a stream as they arrive. The first error is the last item. Dropping it ends the stream: the
/// provider is notified, and its handler is dropped.
///
/// Read with [`Streaming::next`], or as a [`Stream`] with any combinators.
#[must_use = "a stream does not start until its first item is requested"]
pub struct Streaming<T, E = Never> {
    call: Option<BoxFuture<'static, Answer>>,
    items: Items,
    serializer: SerializerRef,
    decode: DecodeItem<T, E>,
    decode_end: Decode<(), E>,
    begin: Begin,
    end: Option<Answer>,
}

/// How long the start may take.
enum Begin {
    /// No item has been requested yet.
    Within(Duration),
    Until(Pin<Box<Sleep>>),
    Done,
}

impl<T, E> fmt::Debug for Streaming<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streaming").finish_non_exhaustive()
    }
}

impl<T, E> Streaming<T, E> {
    pub(super) const fn new(
        call: BoxFuture<'static, Answer>,
        items: Items,
        serializer: SerializerRef,
        (decode, decode_end): (DecodeItem<T, E>, Decode<(), E>),
        begin_within: Duration,
    ) -> Self {
        Self {
            call: Some(call),
            items,
            serializer,
            decode,
            decode_end,
            begin: Begin::Within(begin_within),
            end: None,
        }
    }

    /// The next item, an error as the last one, or `None` at the end.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn next(&mut self) -> Option<Result<T, CallError<E>>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Drives the call: it sends what has to be sent, and ends.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(call) = &mut self.call else {
            return Poll::Ready(());
        };
        let answer = ready!(call.as_mut().poll(cx));
        self.call = None;
        self.end = Some(answer);
        Poll::Ready(())
    }

    /// Whether the stream has not started within its time.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.begin, Begin::Done) {
            return false;
        }
        if self.items.as_inlet().is_none_or(super::Inlet::is_open) {
            self.begin = Begin::Done;
            return false;
        }
        if let Begin::Within(limit) = self.begin {
            self.begin = Begin::Until(Box::pin(tokio::time::sleep(limit)));
        }
        match &mut self.begin {
            Begin::Until(sleep) => sleep.as_mut().poll(cx).is_ready(),
            Begin::Within(_) | Begin::Done => false,
        }
    }

    /// Ends the stream with an error; the peer is notified if it does not know it yet.
    fn fail(&mut self, error: CallError<E>) -> Poll<Option<Result<T, CallError<E>>>> {
        self.call = None;
        self.end = None;
        self.begin = Begin::Done;
        Poll::Ready(Some(Err(error)))
    }
}

impl<T, E> Stream for Streaming<T, E> {
    type Item = Result<T, CallError<E>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.call.is_none() && this.end.is_none() {
            return Poll::Ready(None);
        }
        loop {
            if let Some(inlet) = this.items.as_inlet()
                && let Poll::Ready((item, due)) = inlet.poll_next(cx)
            {
                if due {
                    // The call notifies the peer that there is space again; if the call ends now, its outcome
                    // is kept for later.
                    let _ended = this.drive(cx);
                }
                let decoded = item.map_err(CallError::Rpc);
                return match decoded.and_then(|item| (this.decode)(&this.serializer, item)) {
                    Ok(value) => Poll::Ready(Some(Ok(value))),
                    Err(error) => this.fail(error),
                };
            }
            if let Some(end) = this.end.take() {
                return match (this.decode_end)(&this.serializer, end) {
                    Ok(()) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error))),
                };
            }
            if this.drive(cx).is_ready() {
                // Items may have arrived just before the end.
                continue;
            }
            if this.is_late(cx) {
                let message = "the stream did not begin in time: no instance or no connection was found";
                let error = RpcError::new(Code::DeadlineExceeded, Executed::No, message);
                return this.fail(CallError::Rpc(error));
            }
            return Poll::Pending;
        }
    }
}

/// Converts an item to its value. An attachment that the caller does not expect is dropped.
pub fn decode_item<T: DeserializeOwned, E>(
    serializer: &SerializerRef,
    item: Item,
) -> Result<T, CallError<E>> {
    decode_item_pair(serializer, item).map(|(value, _)| value)
}

/// Converts an item to its value and attachment.
pub fn decode_item_pair<T: DeserializeOwned, E>(
    serializer: &SerializerRef,
    item: Item,
) -> Result<(T, Attachment), CallError<E>> {
    match serializer.decode(&item.value) {
        Ok(value) => Ok((value, item.attachment)),
        Err(error) => {
            let message = format!("an item of the stream cannot be decoded: {error}");
            Err(CallError::Rpc(RpcError::new(
                Code::BadReply,
                Executed::Yes,
                message,
            )))
        }
    }
}
