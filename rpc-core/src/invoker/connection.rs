//! One connection to a provider: calls go out through the outbox, their answers come back through the table of calls in
//! flight. Two tasks run it: the writer, and the conductor, which reads, keeps deadlines and pings.
//!
//! The one invariant: whatever ends a call (an answer, its deadline, a dropped caller, a lost connection), its slot is
//! free afterwards.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::builder::Settings;
use super::in_flight::{self, Answer, InFlight, SlotId};
use crate::call::now;
use crate::compress;
use crate::envelope;
use crate::error::{Code, Executed, RpcError};
use crate::frame::{self, Draft, Frame, Hello, Kind, Status};
use crate::link::{self, Inbox, Outbox};
use crate::message::{Attachment, Request, Response};
use crate::transport::Stream;

/// A peer that takes no bytes for so long is given up.
const STALL: Duration = Duration::from_secs(10);
/// Reads in one turn of the conductor, so that one busy connection does not starve its neighbours.
const READS_PER_TURN: usize = 16;
/// How often a connection that was told to go away looks whether its last call has ended.
const LEAVING_CHECK: Duration = Duration::from_millis(50);

/// CANCELs kept until the peer's HELLO; more are not worth it.
const EARLY_CANCELS_MAX: usize = 4096;

/// A live connection.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Arc<str>,
    in_flight: InFlight,
    outbox: Outbox,
    hello: OnceLock<Hello>,
    hello_came: Notify,
    /// Calls that were given up before the peer's HELLO said whether it takes a CANCEL.
    early_cancels: Mutex<Vec<i64>>,
    /// No new calls: the peer said GOAWAY, or the instance left.
    leaving: AtomicBool,
    ended: OnceLock<Ended>,
    body_bytes_max: usize,
}

/// Why a connection ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    code: Code,
    reason: String,
}

impl Ended {
    fn lost(reason: impl Into<String>) -> Self {
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
            outbox: Outbox::new(settings.unwritten_bytes_max),
            hello: OnceLock::new(),
            hello_came: Notify::new(),
            early_cancels: Mutex::default(),
            leaving: AtomicBool::new(false),
            ended: OnceLock::new(),
            body_bytes_max: settings.body_bytes_max,
        };
        let ours = Hello::ours(settings.body_bytes_max, compress::names(), settings.token.clone());
        connection.send_control(|out| frame::hello(out, &ours));
        connection
    }

    /// Whether new calls may be sent on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && self.ended.get().is_none()
    }

    /// Whether it only sees its last calls out.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether the peer has said HELLO.
    pub(crate) fn is_greeted(&self) -> bool {
        self.hello.get().is_some()
    }

    /// Takes no new calls and ends when the last one has ended.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.in_flight.wake_conductor();
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Answers that came too late for their call, or matched none.
    pub(crate) fn answers_dropped(&self) -> u64 {
        self.in_flight.dropped()
    }

    /// Makes one call.
    ///
    /// # Cancel safety
    /// Dropping the future frees its slot and, if the request was sent, tells the provider that nobody waits.
    pub(crate) async fn call(&self, request: &Request) -> Result<Response, RpcError> {
        let status = self.status(request).await?;
        let mut ticket = Ticket {
            connection: self,
            slot: None,
            end: 0,
        };
        let answer = poll_fn(|cx| match ticket.slot {
            Some(slot) => self.in_flight.poll(slot, cx).map(Ok),
            None => match ticket.start(cx, request, status) {
                // The slot knows the task of this poll.
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        })
        .await?;
        let slot = ticket.slot.take();
        match answer {
            Answer::Frame(frame) => self.response(frame, request),
            Answer::TimedOut => {
                self.cancel(slot);
                Err(self.timed_out(Executed::Maybe))
            }
            // A frame of which the last byte had not left cannot have been handled.
            Answer::Lost { written } if ticket.end > written => Err(self.lost(Executed::No)),
            Answer::Lost { .. } => Err(self.lost(Executed::Maybe)),
        }
    }

    /// Sends a request for which no answer is wanted; `Ok` when it is queued on this live connection.
    ///
    /// # Cancel safety
    /// Until it is done, nothing was sent.
    pub(crate) async fn send(&self, request: &Request) -> Result<(), RpcError> {
        let status = self.status(request).await?;
        self.push(request, status, self.in_flight.oneway(), false)
            .map(drop)
    }

    /// The status bits of a request. Those that need HELLO are waited for under the call's deadline.
    async fn status(&self, request: &Request) -> Result<Status, RpcError> {
        if !request.oneway && request.attachment.is_empty() {
            return Ok(Status::REQUEST);
        }
        let mut status = Status::REQUEST;
        if request.oneway {
            status = status.with(Status::ONEWAY);
        }
        if !request.attachment.is_empty() {
            status = status.with(Status::ATTACHMENT);
        }
        let features = Status(status.0 & !Status::REQUEST.0);
        let hello = self.hello(request.deadline).await?;
        if hello.is_some_and(|hello| hello.understands(features)) {
            return Ok(status);
        }
        let message = format!(
            "`{}` did not announce what this call needs (oneway: {}, attachment: {} bytes)",
            self.peer,
            request.oneway,
            request.attachment.len()
        );
        Err(RpcError::new(Code::Unsupported, Executed::No, message))
    }

    /// The peer's HELLO; `None` when it did not come until `deadline`.
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
        if self.hello.get().is_none() && tokio::time::timeout_at(deadline.into(), wait).await.is_err() {
            return Ok(None);
        }
        match self.hello.get() {
            Some(hello) => Ok(Some(hello)),
            None => Err(self.lost(Executed::No)),
        }
    }

    /// Encodes and queues; the position of the frame's end.
    fn push(&self, request: &Request, status: Status, id: i64, urgent: bool) -> Result<u64, RpcError> {
        let time_left = request.deadline.saturating_duration_since(now());
        if time_left.is_zero() {
            return Err(self.timed_out(Executed::No));
        }
        link::with_scratch(|out| {
            let draft = Draft::begin(out, Kind::Request, status, id, request.serializer.name());
            envelope::encode_request(request, time_left, out)?;
            let finished = draft.finish(out, request.attachment.len(), self.request_bytes_max());
            if let Err(bytes) = finished {
                let message = format!(
                    "a request of {bytes} bytes, `{}` takes {}",
                    self.peer,
                    self.request_bytes_max()
                );
                return Err(RpcError::new(Code::TooLarge, Executed::No, message));
            }
            self.outbox
                .push(out, request.attachment.parts(), urgent)
                .map_err(|refused| match refused {
                    link::Refused::Closed => self.lost(Executed::No),
                    link::Refused::Full => {
                        let message = format!("too many bytes wait to be written to `{}`", self.peer);
                        RpcError::new(Code::Overloaded, Executed::No, message)
                    }
                })
        })
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

    fn response(&self, frame: Frame, request: &Request) -> Result<Response, RpcError> {
        let bad = |reason: String| {
            let message = format!("an answer from `{}` that cannot be read: {reason}", self.peer);
            RpcError::new(Code::BadReply, Executed::Maybe, message)
        };
        let expected = request.serializer.name();
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
        let plain = compress::plain(body.envelope, body.compressor).map_err(bad)?;
        let mut response = envelope::decode_response(&request.serializer, &plain)?;
        response.attachment = Attachment::from(body.attachment);
        Ok(response)
    }

    /// Tells the peer that nobody waits for the call in `slot`.
    fn cancel(&self, slot: Option<SlotId>) {
        let Some(slot) = slot else { return };
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

    /// The peer has said what it understands.
    fn greeted(&self, hello: Hello) -> Result<(), Ended> {
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

    /// Queues a frame that belongs to no call; a full or closed outbox drops it, for it is only a courtesy then.
    fn send_control(&self, encode: impl FnOnce(&mut bytes::BytesMut)) {
        let queued = link::with_scratch(|out| {
            encode(out);
            self.outbox.push(out, NO_PARTS, false)
        });
        if let Err(refused) = queued {
            tracing::debug!(peer = %self.peer, ?refused, "control frame not sent");
        }
    }

    fn timed_out(&self, executed: Executed) -> RpcError {
        let message = format!("no answer from `{}` in time", self.peer);
        RpcError::new(Code::DeadlineExceeded, executed, message)
    }

    fn lost(&self, executed: Executed) -> RpcError {
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

/// One call's hold on its slot.
struct Ticket<'a> {
    connection: &'a Connection,
    slot: Option<SlotId>,
    /// Position of the request's end in the stream.
    end: u64,
}

impl Ticket<'_> {
    fn start(&mut self, cx: &Context<'_>, request: &Request, status: Status) -> Result<(), RpcError> {
        let connection = self.connection;
        let (slot, alone) = connection
            .in_flight
            .start(cx, request.deadline)
            .map_err(|refused| match refused {
                in_flight::Refused::Closed => connection.lost(Executed::No),
                in_flight::Refused::Full => {
                    let message = format!(
                        "as many calls as allowed are in flight to `{}`; raise `in_flight_max` or send fewer at once",
                        connection.peer
                    );
                    RpcError::new(Code::Overloaded, Executed::No, message)
                }
            })?;
        match connection.push(request, status, slot.wire(), alone) {
            Ok(end) => {
                self.slot = Some(slot);
                self.end = end;
                Ok(())
            }
            Err(error) => {
                connection.in_flight.release(slot);
                Err(error)
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot
            && self.connection.in_flight.release(slot)
        {
            self.connection.cancel(Some(slot));
        }
    }
}

/// Runs a connection until it ends: the peer closes, breaks the protocol or falls silent, or `stop` is cancelled. All
/// its calls have ended then.
pub(crate) async fn run(
    connection: &Arc<Connection>,
    stream: Stream,
    settings: &Settings,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let writer = {
        let connection = Arc::clone(connection);
        tracker.spawn(async move { link::write_all(&connection.outbox, stream.write, STALL).await })
    };
    let mut conductor = Conductor::new(
        connection,
        Inbox::new(stream.read, settings.body_bytes_max),
        settings,
    );
    let mut writer = writer;
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ended { code: Code::Cancelled, reason: "the invoker was shut down".to_owned() },
        ended = poll_fn(|cx| conductor.poll(cx)) => ended,
        outcome = &mut writer => Ended::lost(match outcome {
            Ok(Ok(())) => "it is closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }),
    };
    tracing::debug!(peer = %connection.peer, reason = %ended.reason, "connection ended");
    // The first reason counts; there is only this one place that sets it.
    let _first = connection.ended.set(ended);
    connection.outbox.close();
    if !writer.is_finished() {
        writer.abort();
        // Waited for, so that the count of written bytes is final when calls learn whether they had left.
        let _cut_off = writer.await;
    }
    connection.in_flight.close(connection.outbox.written());
    connection.hello_came.notify_waiters();
}

/// Reads, matches, keeps time.
struct Conductor<'a> {
    connection: &'a Connection,
    inbox: Inbox,
    frames: Vec<Frame>,
    wakers: Vec<Waker>,
    sleep: Pin<Box<Sleep>>,
    heartbeat: Duration,
    pong_timeout: Duration,
    heard: Instant,
    /// When to look at the heartbeat next.
    beat_at: Instant,
    /// When a ping was sent that nothing was heard after.
    pinged: Option<Instant>,
}

impl<'a> Conductor<'a> {
    fn new(connection: &'a Connection, inbox: Inbox, settings: &Settings) -> Self {
        let start = now();
        let beat_at = start + settings.heartbeat;
        Self {
            connection,
            inbox,
            frames: Vec::new(),
            wakers: Vec::new(),
            sleep: Box::pin(tokio::time::sleep_until(beat_at.into())),
            heartbeat: settings.heartbeat,
            pong_timeout: settings.pong_timeout,
            heard: start,
            beat_at,
            pinged: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut reads = 0;
        while let Poll::Ready(read) = self.inbox.poll_fill(cx) {
            match read {
                Ok(0) => return Poll::Ready(Ended::lost("the peer closed it")),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Ended::lost(error.to_string())),
            }
            let outcome = self.take_frames();
            self.connection
                .in_flight
                .complete(&mut self.frames, &mut self.wakers);
            if let Err(ended) = outcome {
                return Poll::Ready(ended);
            }
            reads += 1;
            if reads == READS_PER_TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let time = now();
        if reads > 0 {
            self.heard = time;
            self.pinged = None;
        }
        self.keep_time(time, cx)
    }

    /// All frames that are there: answers are collected, the rest is dealt with.
    fn take_frames(&mut self) -> Result<(), Ended> {
        let broken = |reason: String| Ended::lost(format!("the peer broke the protocol: {reason}"));
        while let Some(frame) = self.inbox.next().map_err(|error| broken(error.to_string()))? {
            match (frame.kind, frame.status) {
                (Kind::Response, _) => self.frames.push(frame),
                (Kind::Heartbeat, Status::HELLO) => {
                    let hello = Hello::parse(&frame.body).map_err(|error| broken(error.to_string()))?;
                    self.connection.greeted(hello)?;
                }
                (Kind::Heartbeat, Status::PING) => self.connection.send_control(frame::pong),
                (Kind::Heartbeat, _) => {}
                (Kind::GoAway, _) => self.connection.leaving.store(true, Ordering::Release),
                (Kind::Request | Kind::Cancel, _) => {
                    return Err(broken(format!("a {:?} frame from a provider", frame.kind)));
                }
            }
        }
        Ok(())
    }

    fn keep_time(&mut self, mut time: Instant, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            let deadline = self.connection.in_flight.expire(time, cx, &mut self.wakers);
            if let Some(ended) = self.beat(time) {
                return Poll::Ready(ended);
            }
            let wake_at = deadline.map_or(self.beat_at, |deadline| deadline.min(self.beat_at));
            if self.sleep.deadline().into_std() != wake_at {
                self.sleep.as_mut().reset(wake_at.into());
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            time = now();
        }
    }

    /// Pings when nothing was heard for long, and gives up when nothing answers.
    fn beat(&mut self, time: Instant) -> Option<Ended> {
        if self.connection.leaving.load(Ordering::Acquire) {
            if self.connection.in_flight.len() == 0 {
                return Some(Ended::lost("it is no longer wanted and its last call has ended"));
            }
            self.beat_at = self.beat_at.min(time + LEAVING_CHECK);
        }
        if time < self.beat_at {
            return None;
        }
        if let Some(pinged) = self.pinged {
            if time >= pinged + self.pong_timeout {
                return Some(Ended::lost(format!(
                    "nothing was heard for {:?}",
                    time - self.heard
                )));
            }
            self.beat_at = pinged + self.pong_timeout;
        } else if time >= self.heard + self.heartbeat {
            self.connection.send_control(frame::ping);
            // Without HELLO the peer is hc-rpc's own, which never answers a ping.
            if self.connection.is_greeted() {
                self.pinged = Some(time);
                self.beat_at = time + self.pong_timeout;
            } else {
                self.heard = time;
                self.beat_at = time + self.heartbeat;
            }
        } else {
            self.beat_at = self.heard + self.heartbeat;
        }
        None
    }
}
