//! The open streams of one connection on the caller's side: where each one's items go, and the call that
//! follows a stream to its end.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use super::connection::{Connection, Ended};
use super::in_flight::SlotId;
use super::slot_guard::SlotGuard;
use crate::BoxFuture;
use crate::error::{Code, Executed, RpcError};
use crate::frame::{self, Frame, Status};
use crate::link::{self, Refused};
use crate::message::{Attachment, Request, Response};
use crate::stream::{Item, Items};

/// The open streams, by the ids of their calls on the wire.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<i64, Items>>);

impl Streams {
    /// Whether no stream is open.
    pub(super) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<i64, Items>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry of the table, removed when dropped.
struct Entry<'a> {
    connection: &'a Connection,
    slot: SlotId,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let items = self.connection.streams().table().remove(&self.slot.wire());
        // Freed outside the lock.
        drop(items);
    }
}

impl Connection {
    /// Takes in an item of a stream; an item of a stream that has ended, or never existed, is dropped.
    ///
    /// # Errors
    /// The peer sends more than it was granted.
    pub(super) fn take_item(&self, frame: Frame) -> Result<(), Ended> {
        let Some(items) = self.streams().table().get(&frame.id).cloned() else {
            return Ok(());
        };
        let Some(inlet) = items.as_inlet() else {
            return Ok(());
        };
        let bytes = frame.body.len();
        let item = frame::split_body(frame.status, frame.body, bytes)
            .map(|body| Item {
                value: body.envelope,
                attachment: Attachment::from(body.attachment),
            })
            .map_err(|error| {
                let message = format!("an item from `{}` cannot be read: {error}", self.peer());
                RpcError::new(Code::BadReply, Executed::Yes, message)
            });
        inlet.receive(item, bytes).map_err(|_overrun| {
            Ended::lost("the peer broke the protocol: it sent more of a stream than it was granted")
        })
    }

    /// Makes the call of a stream and follows it to its end: items go to `items`, and the space freed there
    /// is granted to the peer.
    ///
    /// # Cancel safety
    /// Dropping the future frees everything the stream holds here and notifies the provider that nobody
    /// waits.
    pub(super) async fn follow(
        self: &Arc<Self>,
        request: &Request,
        items: &Items,
        status: Status,
        time: Instant,
    ) -> Result<Response, RpcError> {
        let Some(inlet) = items.as_inlet() else {
            let message = "a stream of this provider's own callers cannot be asked for again";
            return Err(RpcError::new(Code::BadRequest, Executed::No, message));
        };
        let mut open: Option<(Entry<'_>, SlotGuard)> = None;
        // Set while the outbox is too full to grant the peer more.
        let mut room: Option<BoxFuture<'_, ()>> = None;
        poll_fn(|cx| {
            let Some((entry, guard)) = &mut open else {
                return match self.open(request, items, status, time, cx) {
                    Ok(opened) => {
                        open = Some(opened);
                        // The slot wakes the task of this poll.
                        Poll::Pending
                    }
                    Err(error) => Poll::Ready(Err(error)),
                };
            };
            let id = entry.slot.wire();
            loop {
                if let Some(waiting) = &mut room
                    && waiting.as_mut().poll(cx).is_pending()
                {
                    break;
                }
                room = None;
                let Some(window) = inlet.grant_due() else { break };
                let queued = link::with_scratch(|out| {
                    frame::window(out, id, window);
                    self.outbox().push(out, &[], false)
                });
                if let Err(Refused::Full { bytes }) = queued {
                    inlet.take_back(window);
                    room = Some(Box::pin(self.outbox().room_for(bytes)));
                }
            }
            guard.poll(cx, request)
        })
        .await
    }

    fn open(
        self: &Arc<Self>,
        request: &Request,
        items: &Items,
        status: Status,
        time: Instant,
        cx: &Context<'_>,
    ) -> Result<(Entry<'_>, SlotGuard), RpcError> {
        let (mut guard, slot, alone) = SlotGuard::take(Arc::clone(self), cx, request.deadline)?;
        // Inserted before the request is sent: the first item may arrive before this function returns.
        self.streams().table().insert(slot.wire(), items.clone());
        let entry = Entry {
            connection: self,
            slot,
        };
        guard.send(request, status, time, alone)?;
        Ok((entry, guard))
    }
}
