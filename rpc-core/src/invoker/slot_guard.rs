//! The guard of one call's slot on a connection: however the call ends, the slot is free afterwards.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::connection::Connection;
use super::in_flight::{Answer, Refused, SlotId};
use crate::error::{Code, Executed, RpcError};
use crate::frame::Status;
use crate::message::{Request, Response};

/// A call that was sent.
#[derive(Debug)]
pub(super) struct SlotGuard {
    connection: Arc<Connection>,
    slot: Option<SlotId>,
    /// Position of the request's end in the stream.
    end: u64,
}

impl SlotGuard {
    /// Takes a slot for the task in `cx`, encodes and queues the request. `time` is a recent reading of the
    /// clock.
    pub(super) fn begin(
        connection: Arc<Connection>,
        cx: &Context<'_>,
        request: &Request,
        status: Status,
        time: Instant,
    ) -> Result<Self, RpcError> {
        let (mut guard, _, alone) = Self::take(connection, cx, request.deadline)?;
        guard.send(request, status, time, alone)?;
        Ok(guard)
    }

    /// Takes a slot for the task in `cx`; also returns whether no other call was in flight.
    pub(super) fn take(
        connection: Arc<Connection>,
        cx: &Context<'_>,
        deadline: Instant,
    ) -> Result<(Self, SlotId, bool), RpcError> {
        let (slot, alone) = connection
            .table()
            .start(cx, deadline)
            .map_err(|refused| match refused {
                Refused::Closed => connection.lost(Executed::No),
                Refused::Full => {
                    let message = format!(
                        "as many calls as allowed are in flight to `{}`; raise `in_flight_max` or send fewer at once",
                        connection.peer()
                    );
                    RpcError::new(Code::Overloaded, Executed::No, message)
                }
            })?;
        let guard = Self {
            connection,
            slot: Some(slot),
            end: 0,
        };
        Ok((guard, slot, alone))
    }

    /// Encodes and queues the request; if that fails, the slot is freed and the peer need not be notified.
    pub(super) fn send(
        &mut self,
        request: &Request,
        status: Status,
        time: Instant,
        alone: bool,
    ) -> Result<(), RpcError> {
        let Some(slot) = self.slot else { return Ok(()) };
        match self.connection.push(request, status, slot.wire(), time, alone) {
            Ok(end) => {
                self.end = end;
                Ok(())
            }
            Err(error) => {
                self.slot = None;
                self.connection.table().release(slot);
                Err(error)
            }
        }
    }

    /// The answer to `request`, if it has arrived. Must not be called again after that.
    pub(super) fn poll(&mut self, cx: &Context<'_>, request: &Request) -> Poll<Result<Response, RpcError>> {
        let Some(slot) = self.slot else {
            return Poll::Pending;
        };
        let Poll::Ready(answer) = self.connection.table().poll(slot, cx) else {
            return Poll::Pending;
        };
        self.slot = None;
        Poll::Ready(match answer {
            Answer::Frame(frame) => self.connection.response(frame, request),
            Answer::TimedOut => {
                self.connection.cancel(slot);
                Err(self.connection.timed_out(Executed::Maybe))
            }
            // A frame whose last byte had not been sent cannot have been handled.
            Answer::Lost { written } if self.end > written => Err(self.connection.lost(Executed::No)),
            Answer::Lost { .. } => Err(self.connection.lost(Executed::Maybe)),
        })
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot
            && self.connection.table().release(slot)
        {
            self.connection.cancel(slot);
        }
    }
}
