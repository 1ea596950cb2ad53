//! One connection to a provider: calls go out through the outbox, their answers come back through the table
//! of calls in flight. Two tasks run it: the writer, and the reader (`reader.rs`), which reads, enforces
//! deadlines and pings.
//!
//! The one invariant: whatever ends a call (an answer, its deadline, a dropped caller, a lost connection),
//! its slot is free afterwards.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::builder::Settings;
use super::in_flight::{InFlight, SlotId};
use super::slot_guard::SlotGuard;
use super::streams::Streams;
use crate::call::now;
use crate::compress;
use crate::envelope;
use crate::error::{Code, Executed, RpcError};
use crate::frame::{self, Draft, Frame, Hello, Kind, Status};
use crate::link::{self, Outbox};
use crate::message::{Attachment, Request, Response};
use crate::stream::Items;

/// CANCELs kept until the peer's HELLO; keeping more is not worth it.
const EARLY_CANCELS_MAX: usize = 4096;
/// How long to wait for a peer that has sent nothing at all. Its HELLO comes first, before any work: a peer
/// that is silent for this long hangs, and another instance may be healthy.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// A live connection.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Arc<str>,
    in_flight: InFlight,
    streams: Streams,
    outbox: Outbox,
    hello: OnceLock<Hello>,
    hello_came: Notify,
    /// Whether anything has arrived from the peer.
    spoke: AtomicBool,
    /// Calls given up before the peer's HELLO said whether it accepts a CANCEL.
    early_cancels: Mutex<Vec<i64>>,
    /// No new calls: the peer sent GOAWAY, or the instance has left the list.
    leaving: AtomicBool,
    ended: OnceLock<Ended>,
    body_bytes_max: usize,
    /// What this end offered in its HELLO.
    compressor: Option<compress::Named>,
}

/// Why a connection ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) code: Code,
    pub(super) reason: String,
}

impl Ended {
    pub(super) fn lost(reason: impl Into<String>) -> Self {
        Self {
            code: Code::Unavailable,
            reason: reason.into(),
        }
    }
}

impl Connection {
    pub(crate) fn new(peer: Arc<str>, settings: &Settings) -> Self {
        let connection = Self {
            peer,
            in_flight: InFlight::new(settings.in_flight_max),
            streams: Streams::default(),
            outbox: Outbox::new(settings.unwritten_bytes_max),
            hello: OnceLock::new(),
            hello_came: Notify::new(),
            spoke: AtomicBool::new(false),
            early_cancels: Mutex::default(),
            leaving: AtomicBool::new(false),
            ended: OnceLock::new(),
            body_bytes_max: settings.body_bytes_max,
            compressor: settings.compressor.clone(),
        };
        let compressors = settings.compressor.iter().map(|named| named.name.to_owned());
        let ours = Hello::ours(
            settings.body_bytes_max,
            compressors.collect(),
            settings.token.clone(),
        );
        connection.send_control(|out| frame::hello(out, &ours));
        connection
    }

    /// Records that something arrived from the peer.
    pub(super) fn heard(&self) {
        self.spoke.store(true, Ordering::Relaxed);
    }

    /// Whether new calls may be sent on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && self.ended.get().is_none()
    }

    /// Whether it only completes its last calls.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether the peer has said HELLO.
    pub(crate) fn is_greeted(&self) -> bool {
        self.hello.get().is_some()
    }

    /// Accepts no new calls and closes once the last one has ended.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.in_flight.wake_reader();
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Answers that arrived after their call had ended, or matched none.
    pub(crate) fn answers_dropped(&self) -> u64 {
        self.in_flight.dropped()
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) const fn table(&self) -> &InFlight {
        &self.in_flight
    }

    pub(super) const fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(super) const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Accepts no further calls.
    pub(super) fn close(&self, ended: Ended) {
        if self.ended.set(ended).is_err() {
            // The first reason is the true one.
            tracing::debug!(peer = %self.peer, "closed twice");
        }
        self.outbox.close();
    }

    /// Ends the calls in flight; the number of written bytes is final by now.
    pub(super) fn end_calls(&self) {
        self.in_flight.close(self.outbox.written());
        self.hello_came.notify_waiters();
    }

    /// Makes one call.
    ///
    /// # Cancel safety
    /// Dropping the future frees its slot and, if the request was sent, notifies the provider that nobody
    /// waits.
    ///
    /// `time` is a recent reading of the clock.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: &Request,
        time: Instant,
    ) -> Result<Response, RpcError> {
        let (status, time) = self.status(request, time).await?;
        if let Some(items) = &request.items {
            return Box::pin(self.follow(request, items, status, time)).await;
        }
        let mut guard = None;
        poll_fn(|cx| match &mut guard {
            Some(guard) => SlotGuard::poll(guard, cx, request),
            None => match SlotGuard::begin(Arc::clone(self), cx, request, status, time) {
                Ok(begun) => {
                    guard = Some(begun);
                    // The slot wakes the task of this poll.
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            },
        })
        .await
    }

    /// Sends a request for which no answer is wanted; `Ok` when it is queued on this live connection.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing was sent.
    pub(crate) async fn send(&self, request: &Request, time: Instant) -> Result<(), RpcError> {
        let (status, time) = self.status(request, time).await?;
        let id = self.in_flight.oneway();
        self.push(request, status, id, time, false).map(drop)
    }

    /// The status bits of a request, and the time after waiting for what they require: the peer's HELLO,
    /// under the call's deadline.
    async fn status(&self, request: &Request, time: Instant) -> Result<(Status, Instant), RpcError> {
        if !request.oneway && request.attachment.is_empty() && request.items.is_none() {
            return Ok((Status::REQUEST, time));
        }
        let mut features = Status::NONE;
        if request.oneway {
            features = features.with(Status::ONEWAY);
        }
        if !request.attachment.is_empty() {
            features = features.with(Status::ATTACHMENT);
        }
        let (hello, time) = match self.hello.get() {
            Some(hello) => (Some(hello), time),
            None => (Box::pin(self.hello(request.deadline)).await?, now()),
        };
        let takes =
            |hello: &Hello| hello.understands(features) && (request.items.is_none() || hello.takes_streams());
        if hello.is_some_and(takes) {
            return Ok((Status::REQUEST.with(features), time));
        }
        let message = format!(
            "`{}` did not announce what this call needs (oneway: {}, attachment: {} bytes, stream: {})",
            self.peer,
            request.oneway,
            request.attachment.len(),
            request.items.is_some()
        );
        Err(RpcError::new(Code::Unsupported, Executed::No, message))
    }

    /// The peer's HELLO; `None` if it has not arrived by `deadline`, or if a peer that did speak has not sent
    /// one.
    async fn hello(&self, deadline: Instant) -> Result<Option<&Hello>, RpcError> {
        let wait = async {
            loop {
                let mut came = std::pin::pin!(self.hello_came.notified());
                came.as_mut().enable();
                if self.hello.get().is_some() || self.ended.get().is_some() {
                    return;
                }
                came.await;
            }
        };
        let until = deadline.min(now() + HELLO_TIMEOUT);
        if tokio::time::timeout_at(until.into(), wait).await.is_err() {
            if until == deadline || self.spoke.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let message = format!(
                "`{}` accepted the connection and sent nothing for {HELLO_TIMEOUT:?}",
                self.peer
            );
            return Err(RpcError::new(Code::Unavailable, Executed::No, message));
        }
        match self.hello.get() {
            Some(hello) => Ok(Some(hello)),
            None => Err(self.lost(Executed::No)),
        }
    }

    /// Encodes and queues the request; returns the position of the frame's end.
    pub(super) fn push(
        &self,
        request: &Request,
        status: Status,
        id: i64,
        time: Instant,
        urgent: bool,
    ) -> Result<u64, RpcError> {
        let time_left = request.deadline.saturating_duration_since(time);
        if time_left.is_zero() {
            return Err(self.timed_out(Executed::No));
        }
        link::with_scratch(|out| {
            if let Some(inlet) = request.items.as_ref().and_then(Items::as_inlet) {
                // The frame that opens the stream directly precedes its request.
                frame::window(out, id, inlet.open());
            }
            let mut draft = Draft::begin(out, Kind::Request, status, id, request.serializer.name());
            let packs = self.packs();
            let apart = match request.attachment.parts() {
                // A value to be compressed must be contiguous with the rest.
                [] if packs.is_none() => envelope::begin_request(request, time_left, out)?,
                _ => envelope::encode_request(request, time_left, out).map(|()| None)?,
            };
            if let Some(compressor) = packs {
                let max = self.request_bytes_max();
                draft.pack(out, max, compressor.name, |plain| compressor.pack(plain));
            }
            let behind = apart.map_or_else(|| request.attachment.len(), |apart| apart.len());
            let finished = draft.finish(out, behind, self.request_bytes_max());
            if let Err(bytes) = finished {
                let message = format!(
                    "a request of {bytes} bytes, `{}` takes {}",
                    self.peer,
                    self.request_bytes_max()
                );
                return Err(RpcError::new(Code::TooLarge, Executed::No, message));
            }
            let queued = match apart {
                Some(apart) => self.outbox.push(out, &apart.pieces(), urgent),
                None => self.outbox.push(out, request.attachment.parts(), urgent),
            };
            queued.map_err(|refused| match refused {
                link::Refused::Closed => self.lost(Executed::No),
                link::Refused::Full { .. } => {
                    let message = format!("too many bytes wait to be written to `{}`", self.peer);
                    RpcError::new(Code::Overloaded, Executed::No, message)
                }
            })
        })
    }

    /// The compressor of requests, if the peer has announced that it supports it.
    fn packs(&self) -> Option<&compress::Named> {
        let compressor = self.compressor.as_ref()?;
        let hello = self.hello.get()?;
        let listed = hello.compressors.iter().any(|name| name == compressor.name);
        (listed && hello.understands(Status::COMPRESSED)).then_some(compressor)
    }

    fn request_bytes_max(&self) -> usize {
        let announced = self
            .hello
            .get()
            .map(|hello| hello.frame_bytes_max)
            .filter(|bytes| *bytes > 0);
        announced.map_or(self.body_bytes_max, |bytes| {
            usize::try_from(bytes).unwrap_or(usize::MAX)
        })
    }

    pub(super) fn response(&self, frame: Frame, request: &Request) -> Result<Response, RpcError> {
        let bad = |reason: String| {
            let message = format!("the answer from `{}` cannot be read: {reason}", self.peer);
            RpcError::new(Code::BadReply, Executed::Maybe, message)
        };
        let streamed = frame.kind == Kind::StreamEnd;
        if streamed != request.items.is_some() {
            return Err(bad(
                "one answer where a stream was asked for, or the other way round".to_owned(),
            ));
        }
        let expected = if streamed { "" } else { request.serializer.name() };
        if frame.name.as_str() != expected {
            return Err(bad(format!(
                "it is `{}`, expected `{expected}`",
                frame.name.as_str()
            )));
        }
        if frame.status.0 & !Status::FAILED.0 == 0 {
            return envelope::decode_response(&request.serializer, &frame.body);
        }
        let body = frame::split_body(frame.status, frame.body, self.body_bytes_max)
            .map_err(|error| bad(error.to_string()))?;
        let offered = |name: &str| self.compressor.clone().filter(|named| named.name == name);
        let plain = compress::Named::plain(body.envelope, body.compressor, offered).map_err(bad)?;
        let mut response = envelope::decode_response(&request.serializer, &plain)?;
        response.attachment = Attachment::from(body.attachment);
        Ok(response)
    }

    /// Notifies the peer that nobody waits for the call in `slot`.
    pub(super) fn cancel(&self, slot: SlotId) {
        let mut early = self.early_cancels.lock().unwrap_or_else(PoisonError::into_inner);
        match self.hello.get() {
            Some(hello) => {
                drop(early);
                if hello.takes(Kind::Cancel) {
                    self.send_control(|out| frame::cancel(out, slot.wire()));
                }
            }
            None if early.len() < EARLY_CANCELS_MAX => early.push(slot.wire()),
            None => {}
        }
    }

    /// The peer has announced what it supports.
    pub(super) fn greeted(&self, hello: Hello) -> Result<(), Ended> {
        let mut early = self.early_cancels.lock().unwrap_or_else(PoisonError::into_inner);
        let takes_cancel = hello.takes(Kind::Cancel);
        if self.hello.set(hello).is_err() {
            return Err(Ended::lost("the peer broke the protocol: it said HELLO twice"));
        }
        let early = std::mem::take(&mut *early);
        if takes_cancel && !early.is_empty() {
            self.send_control(|out| early.iter().for_each(|id| frame::cancel(out, *id)));
        }
        self.hello_came.notify_waiters();
        Ok(())
    }

    /// Queues a frame that belongs to no call; a full or closed outbox drops it, since it is only a courtesy
    /// then.
    pub(super) fn send_control(&self, encode: impl FnOnce(&mut bytes::BytesMut)) {
        let queued = link::with_scratch(|out| {
            encode(out);
            self.outbox.push(out, NO_PARTS, false)
        });
        if let Err(refused) = queued {
            tracing::debug!(peer = %self.peer, ?refused, "control frame not sent");
        }
    }

    pub(super) fn timed_out(&self, executed: Executed) -> RpcError {
        let message = format!("no answer from `{}` in time", self.peer);
        RpcError::new(Code::DeadlineExceeded, executed, message)
    }

    pub(super) fn lost(&self, executed: Executed) -> RpcError {
        let (code, reason) = match self.ended.get() {
            Some(ended) => (ended.code, ended.reason.as_str()),
            None => (Code::Unavailable, "it is closing"),
        };
        RpcError::new(
            code,
            executed,
            format!("the connection to `{}` ended: {reason}", self.peer),
        )
    }
}

const NO_PARTS: &[Bytes] = &[];
