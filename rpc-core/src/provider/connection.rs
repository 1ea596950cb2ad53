//! One connection from an invoker: reads frames, admits requests up to the limits, and answers them.
//!
//! Two tasks run it, the reader and the writer; each request is a task of its own. Every admitted request is
//! answered exactly once, unless it is oneway or the connection ends first.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::Sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::inline::Inline;
use super::quick::QuickBurst;
use super::router::EnteredMethod;
use super::running::Running;
use super::streams::{self, Streams};
use super::timeouts::{PROGRESS_INTERVAL, PeerTimeouts, Progress};
use super::{Core, load, request};
use crate::call::now;
use crate::compress;
use crate::context::Cancellation;
use crate::error::{Code, Executed, RpcError};
use crate::frame::{self, Frame, HEARTBEAT_ID, Hello, Kind, Status, Window};
use crate::limits;
use crate::link::{self, Inbox, Outbox};
use crate::stream::Items;
use crate::transport::Stream;

/// Most compressors of a HELLO that are considered.
const COMPRESSORS_MAX: usize = 16;
/// After a GOAWAY, a connection on which nothing runs is closed after this time, even if the peer does not
/// close it.
const LEAVING_QUIET: Duration = Duration::from_millis(500);

/// A live connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) core: Arc<Core>,
    pub(super) peer: Arc<str>,
    pub(super) outbox: Outbox,
    pub(super) hello: OnceLock<Hello>,
    /// Compresses the answers: the first compressor of the peer's HELLO that this process has.
    pub(super) compressor: OnceLock<compress::Named>,
    /// Requests running now.
    pub(super) running: Running,
    pub(super) streams: Streams,
    pub(super) opened: Instant,
    /// The provider is leaving: new requests are sent back.
    leaving: AtomicBool,
    /// Whether the last request was for a quick method: if so, the next one is tried where it is read.
    pub(super) is_quick: AtomicBool,
    /// Makes the provider wait for this connection, and so for every request, since each holds its
    /// connection.
    _tracked: TaskTrackerToken,
}

/// An admitted request; dropped when it has been answered.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) connection: Arc<Connection>,
    pub(super) id: i64,
    /// Its number on this connection: request ids may be reused.
    number: u64,
    /// The cancellation signal for the handler, which takes it.
    pub(super) cancelled: Option<Cancellation>,
    /// The method it has entered.
    pub(super) entered: Option<EnteredMethod>,
    /// Where its items go, if it asks for a stream.
    pub(super) items: Option<Items>,
    /// Size of its body.
    bytes: u32,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connection.running.leave(self.id, self.number);
        if let Some(entered) = self.entered {
            self.connection.core.router.leave(entered);
        }
        self.connection.core.load.leave(self.bytes);
    }
}

/// Why a connection ended, for the log.
type Ended = String;

/// Serves `stream` until the peer closes it, breaks the protocol, falls silent or stops reading, or the
/// provider stops.
pub(super) async fn run(core: Arc<Core>, stream: Stream) {
    let connection = Arc::new(Connection {
        outbox: Outbox::new(core.limits.unwritten_bytes_max).within(core.backlog.clone()),
        peer: stream.peer,
        hello: OnceLock::new(),
        compressor: OnceLock::new(),
        running: Running::default(),
        streams: Streams::default(),
        opened: now(),
        leaving: AtomicBool::new(false),
        is_quick: AtomicBool::new(false),
        _tracked: core.tracker.token(),
        core,
    });
    let core = &connection.core;
    let _listed = core.open.list(&connection);
    let mut writer = {
        let connection = Arc::clone(&connection);
        let write_timeout = core.limits.write_timeout;
        core.tracker.spawn(async move {
            let ended = link::write_all(&connection.outbox, stream.write, write_timeout).await;
            // Requests may run for a while longer; frames for this peer are not kept for them.
            connection.outbox.abandon();
            ended
        })
    };
    let mut reader = Reader::new(&connection, stream.read);
    let mut leaving = false;
    let reason = loop {
        tokio::select! {
            biased;
            () = core.stop.cancelled() => break "the provider stopped".to_owned(),
            () = core.farewell.cancelled(), if !leaving => {
                leaving = true;
                connection.leaving.store(true, Ordering::Release);
                connection.say_farewell();
            }
            // Before the check for quiet: a request that has already arrived is refused, and not lost unread.
            ended = reader.read() => break ended,
            () = connection.quiet(), if leaving => break "drained".to_owned(),
            outcome = &mut writer => break match outcome {
                Ok(Ok(())) => "closed".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            },
        }
    };
    tracing::debug!(peer = %connection.peer, reason, "connection ended");
    // Finished answers are still written; the writer ends by itself, at the latest when the peer stalls.
    connection.outbox.close();
    connection.streams.close();
    connection.running.cancel_all();
}

impl Connection {
    /// Queues a frame that belongs to no request.
    fn send_control(&self, encode: impl FnOnce(&mut BytesMut)) {
        let queued = link::with_scratch(|out| {
            encode(out);
            self.outbox.push(out, &[], false)
        });
        if let Err(refused) = queued {
            tracing::debug!(peer = %self.peer, ?refused, "control frame not sent");
        }
    }

    /// Whether the peer has announced that it accepts these bits.
    pub(super) fn understands(&self, bits: Status) -> bool {
        self.hello.get().is_some_and(|hello| hello.understands(bits))
    }

    /// Size of the largest body that the peer accepts.
    pub(super) fn answer_bytes_max(&self) -> usize {
        let announced = self.hello.get().map(|hello| hello.frame_bytes_max);
        let announced = announced.filter(|bytes| *bytes > 0);
        announced.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    fn say_farewell(&self) {
        if self.hello.get().is_some_and(|hello| hello.takes(Kind::GoAway)) {
            self.send_control(frame::go_away);
        }
    }

    /// Checks every [`LEAVING_QUIET`] and completes when nothing runs and nothing is unwritten. A peer that
    /// knows GOAWAY closes sooner, when it has its last answer.
    async fn quiet(&self) {
        loop {
            tokio::time::sleep(LEAVING_QUIET).await;
            if self.running.count() == 0 && self.outbox.unwritten() == 0 {
                return;
            }
        }
    }

    /// Whether the peer may make requests.
    fn is_authenticated(&self) -> bool {
        self.core.token.is_none() || self.hello.get().is_some_and(|hello| self.core.knows(hello))
    }

    /// Admits one request.
    fn admit(self: &Arc<Self>, frame: &Frame) -> Result<Admitted, RpcError> {
        let id = frame.id;
        let core = &self.core;
        let refuse = |code, message: String| Err(RpcError::new(code, Executed::No, message));
        if !self.is_authenticated() {
            let message = "this provider requires a token in HELLO, and it was missing or wrong; set it with `.token(..)`";
            return refuse(Code::Unauthenticated, message.to_owned());
        }
        if self.leaving.load(Ordering::Acquire) {
            return refuse(Code::Draining, "the provider is shutting down".to_owned());
        }
        let (here, max) = (self.running.count(), core.limits.connection_in_flight_max);
        if here >= max {
            return refuse(
                Code::Overloaded,
                format!("{here} requests run on this connection, {max} are allowed"),
            );
        }
        if core.backlog.is_full() {
            let bytes = core.backlog.bytes();
            return refuse(
                Code::Overloaded,
                format!(
                    "{bytes} bytes of answers wait to be written in this provider, which has reached its limit"
                ),
            );
        }
        // Only this reader counts up for its connection, all readers for the provider. A frame's length has
        // 32 bits.
        let bytes = frame::unpacked_bytes(frame.status, &frame.body).min(core.limits.body_bytes_max);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Err(full) = core.load.enter(bytes) {
            let what = match full {
                load::Full::Requests(all) => format!("{all} requests run"),
                load::Full::Bytes(all) => format!("requests of {all} bytes run"),
            };
            return refuse(
                Code::Overloaded,
                format!("{what} in this provider, which has reached its limit"),
            );
        }
        let cancelled = Cancellation::default();
        let (number, twin) = self.running.enter(id, cancelled.clone());
        if let Some(twin) = twin {
            // Not louder: a stranger decides how often this happens.
            tracing::debug!(peer = %self.peer, id, "a request id is used twice; the first request is cancelled");
            twin.cancel();
        }
        Ok(Admitted {
            connection: Arc::clone(self),
            id,
            number,
            cancelled: Some(cancelled),
            entered: None,
            items: None,
            bytes,
        })
    }
}

/// Reads and handles frames.
struct Reader<'a> {
    connection: &'a Arc<Connection>,
    inbox: Inbox,
    sleep: Pin<Box<Sleep>>,
    timeouts: PeerTimeouts,
    progress: Progress,
    burst: QuickBurst,
    /// The stream that the previous frame opened, if it opened one: its request comes next.
    opening: Option<(i64, Window)>,
}

impl<'a> Reader<'a> {
    fn new(connection: &'a Arc<Connection>, read: Box<dyn tokio::io::AsyncRead + Send + Unpin>) -> Self {
        let core = &connection.core;
        let body_bytes_max = match core.token {
            None => core.limits.body_bytes_max,
            Some(_) => limits::UNAUTHENTICATED_BODY_BYTES_MAX.min(core.limits.body_bytes_max),
        };
        let opened = connection.opened;
        let look = core.limits.idle_timeout.min(core.limits.handshake_timeout);
        Self {
            connection,
            inbox: Inbox::new(read, body_bytes_max).within(core.reading.clone()),
            sleep: Box::pin(tokio::time::sleep_until((opened + look).into())),
            timeouts: PeerTimeouts::new(opened),
            progress: Progress {
                heard: opened,
                bytes: 0,
                frames: 0,
                in_frame: false,
                min_progress_bytes: None,
            },
            burst: QuickBurst::default(),
            opening: None,
        }
    }

    /// Reads until the connection ends.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; `read` may be called again.
    async fn read(&mut self) -> Ended {
        loop {
            // If a peer does not read its answers, its requests are not read either.
            let outbox = &self.connection.outbox;
            if outbox.is_half_full() {
                outbox.half_empty().await;
                self.reset_idle();
            }
            if self.inbox.needs_memory() {
                self.inbox.reserve_memory().await;
                self.reset_idle();
                self.sleep
                    .as_mut()
                    .reset((self.progress.heard + PROGRESS_INTERVAL).into());
            }
            match self.fill().await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
            loop {
                match self.take_turn() {
                    Ok(true) => break,
                    Ok(false) => {
                        tokio::task::yield_now().await;
                        self.burst.rest();
                    }
                    Err(reason) => return reason,
                }
            }
            if self.burst.is_full() {
                tokio::task::yield_now().await;
                self.burst.rest();
            }
        }
    }

    /// Restarts the time-outs: nothing was read for a while, but not because of the peer.
    fn reset_idle(&mut self) {
        self.timeouts.reset_progress();
        self.progress.heard = now();
    }

    /// Handles the frames read so far; returns whether all were handled, or it is time to let other tasks
    /// run.
    fn take_turn(&mut self) -> Result<bool, Ended> {
        let connection = self.connection;
        let start = connection.is_quick.load(Ordering::Relaxed).then(Instant::now);
        // All answers given here leave in one write.
        let corked = start.map(|_| connection.outbox.cork());
        let outcome = loop {
            match self.inbox.next() {
                Ok(Some(frame)) => {
                    self.progress.frames += 1;
                    if let Err(reason) = self.take(frame) {
                        break Err(reason);
                    }
                }
                Ok(None) => break Ok(true),
                Err(error) => break Err(error.to_string()),
            }
            if self.burst.is_over() {
                break Ok(false);
            }
        };
        drop(corked);
        if let Some(start) = start {
            let core = &connection.core;
            self.burst.end(start, core.limits.quick, &core.router);
        }
        outcome
    }

    /// Reads once, or reports that the peer was silent for too long.
    async fn fill(&mut self) -> Result<(), Ended> {
        let (inbox, sleep, timeouts) = (&mut self.inbox, &mut self.sleep, &mut self.timeouts);
        let (connection, progress, turn) = (self.connection, &mut self.progress, &mut self.burst);
        let limits = &connection.core.limits;
        progress.in_frame = inbox.is_in_frame();
        if progress.in_frame && sleep.deadline() > (progress.heard + limits.frame_timeout).into() {
            let look = timeouts.watch(limits, progress);
            sleep.as_mut().reset(look.into());
        }
        let bytes = poll_fn(|cx| {
            if let Poll::Ready(read) = inbox.poll_fill(cx) {
                return Poll::Ready(match read {
                    Ok(0) => Err("the peer closed it".to_owned()),
                    Ok(bytes) => Ok(bytes),
                    Err(error) => Err(error.to_string()),
                });
            }
            turn.rest();
            // The timer is moved only when it fires or a frame begins, not with every frame.
            while sleep.as_mut().poll(cx).is_ready() {
                progress.min_progress_bytes = inbox.min_progress_bytes();
                match timeouts.check(limits, connection.is_authenticated(), progress, now()) {
                    Ok(again) => sleep.as_mut().reset(again.into()),
                    Err(ended) => return Poll::Ready(Err(ended)),
                }
            }
            Poll::Pending
        })
        .await?;
        progress.heard = now();
        progress.bytes += bytes as u64;
        turn.read(bytes);
        connection.core.clock.set(progress.heard);
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Result<(), Ended> {
        let connection = self.connection;
        let opening = self.opening.take();
        match (frame.kind, frame.status) {
            // The heartbeat of an original hc-rpc invoker.
            (Kind::Request, _) if frame.id == HEARTBEAT_ID => {}
            (Kind::Request, _) => {
                let window = opening.filter(|(id, _)| *id == frame.id);
                self.request(frame, window.map(|(_, window)| window));
            }
            (Kind::Heartbeat, Status::HELLO) => self.greet(&frame)?,
            (Kind::Heartbeat, Status::PING) => connection.send_control(frame::pong),
            (Kind::Heartbeat | Kind::GoAway, _) => {}
            (Kind::Cancel, _) => connection.running.cancel(frame.id),
            (Kind::StreamWindow, _) => self.window(&frame)?,
            (Kind::Response | Kind::StreamItem | Kind::StreamEnd, _) => {
                return Err("an answer from an invoker".to_owned());
            }
        }
        Ok(())
    }

    fn greet(&mut self, frame: &Frame) -> Result<(), Ended> {
        let connection = self.connection;
        let core = &connection.core;
        let hello = Hello::parse(&frame.body).map_err(|error| error.to_string())?;
        let offered = hello.compressors.iter().take(COMPRESSORS_MAX);
        let compressor = offered.filter_map(|name| compress::Named::linked(name)).next();
        let compressor = compressor.filter(|_| hello.understands(Status::COMPRESSED));
        if connection.hello.set(hello).is_err() {
            return Err("it said HELLO twice".to_owned());
        }
        if let Some(compressor) = compressor {
            // Set only here, and there is only one HELLO.
            connection.compressor.get_or_init(|| compressor);
        }
        if connection.is_authenticated() {
            self.inbox.limit(core.limits.body_bytes_max);
        } else {
            let peer = &connection.peer;
            tracing::debug!(%peer, "a peer without the right token");
            if let Some(peers) = core.auth_failures.count(core.clock.micros(self.progress.heard)) {
                tracing::warn!(%peer, peers, "peers without the right token; their requests are refused");
            }
        }
        let ours = Hello::ours(core.limits.body_bytes_max, compress::names(), None);
        connection.send_control(|out| frame::hello(out, &ours));
        if core.farewell.is_cancelled() {
            connection.say_farewell();
        }
        Ok(())
    }

    /// A frame that asks for more of a stream, or opens one.
    fn window(&mut self, frame: &Frame) -> Result<(), Ended> {
        let window = Window::parse(&frame.body).ok_or("a STREAM_WINDOW that is not two numbers")?;
        if !self.connection.streams.grant(frame.id, window) {
            self.opening = Some((frame.id, window));
        }
        Ok(())
    }

    fn request(&mut self, frame: Frame, window: Option<Window>) {
        let connection = self.connection;
        match connection.admit(&frame) {
            // The connection is tracked and its requests hold it, so the provider waits for this task too.
            Ok(mut admitted) => {
                admitted.items = window.map(|window| streams::open(connection, frame.id, window));
                match request::Task::new(admitted, frame, self.progress.heard).run_inline() {
                    Inline::Spawn(task) => drop(connection.core.runtime.spawn(task)),
                    Inline::Over(entered) => self.burst.note(entered),
                }
            }
            Err(error) => request::refuse(connection, &frame, window.is_some(), error),
        }
    }
}
