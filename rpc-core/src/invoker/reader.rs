//! The task that reads one connection: matches answers to calls, ends calls whose time is over, pings, and
//! notices when the peer is gone.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::builder::Settings;
use super::connection::{Connection, Ended};
use crate::call::now;
use crate::error::Code;
use crate::frame::{self, Frame, Hello, Kind, Status};
use crate::link::{self, Inbox};
use crate::transport::Stream;

/// A peer that takes no bytes for this long is disconnected.
const STALL: Duration = Duration::from_secs(10);
/// Most reads per poll; [`link::TURN_BYTES`] limits the bytes. So one busy connection does not starve its
/// neighbours.
const READS_PER_TURN: usize = 16;
/// How often a connection that was asked to go away checks whether its last call has ended.
const LEAVING_CHECK: Duration = Duration::from_millis(50);

/// An invoker that is shut down gives up the rest of its queue when the peer accepts nothing for this long.
const LAST_WRITES_STALL: Duration = Duration::from_secs(1);
/// An invoker that is shut down writes its queue for this long at most.
const LAST_WRITES_MAX: Duration = Duration::from_secs(10);

/// Runs a connection until it ends: the peer closes, breaks the protocol or falls silent, or `stop` is
/// cancelled. All its calls have ended then.
pub(crate) async fn run(
    connection: &Arc<Connection>,
    stream: Stream,
    settings: &Settings,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let writer = {
        let connection = Arc::clone(connection);
        tracker.spawn(async move { link::write_all(connection.outbox(), stream.write, STALL).await })
    };
    let mut reader = Reader::new(
        connection,
        Inbox::new(stream.read, settings.body_bytes_max),
        settings,
    );
    let mut writer = writer;
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ended { code: Code::Cancelled, reason: "the invoker was shut down".to_owned() },
        ended = poll_fn(|cx| reader.poll(cx)) => ended,
        outcome = &mut writer => Ended::lost(match outcome {
            Ok(Ok(())) => "it is closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }),
    };
    tracing::debug!(peer = %connection.peer(), reason = %ended.reason, "connection ended");
    let is_ours = ended.code == Code::Cancelled;
    connection.close(ended);
    if is_ours && !writer.is_finished() {
        // The rest of the queue is still written: the caller of a oneway call would not learn that it was not.
        let rest = last_writes(connection, &mut writer);
        drop(tokio::time::timeout(LAST_WRITES_MAX, rest).await);
    }
    if !writer.is_finished() {
        writer.abort();
        // Awaited, so that the count of written bytes is final when calls learn whether they had been sent.
        let _cut_off = writer.await;
    }
    connection.end_calls();
}

/// Waits until the writer has ended or makes no progress.
async fn last_writes(connection: &Connection, writer: &mut JoinHandle<io::Result<()>>) {
    loop {
        let before = connection.outbox().written();
        let is_ended = tokio::time::timeout(LAST_WRITES_STALL, &mut *writer)
            .await
            .is_ok();
        if is_ended || connection.outbox().written() == before {
            return;
        }
    }
}

/// The state of the reading task.
struct Reader<'a> {
    connection: &'a Connection,
    inbox: Inbox,
    frames: Vec<Frame>,
    wakers: Vec<Waker>,
    sleep: Pin<Box<Sleep>>,
    heartbeat: Duration,
    pong_timeout: Duration,
    heard: Instant,
    /// When to check the heartbeat next.
    beat_at: Instant,
    /// When to ping next although the peer is heard, because nothing else may be sent.
    speak_at: Instant,
    /// When a ping was sent after which nothing has arrived yet.
    pinged: Option<Instant>,
}

impl<'a> Reader<'a> {
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
            speak_at: start,
            pinged: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let (mut reads, mut bytes) = (0, 0);
        while let Poll::Ready(read) = self.inbox.poll_fill(cx) {
            match read {
                Ok(0) => return Poll::Ready(Ended::lost("the peer closed it")),
                Ok(read) => bytes += read,
                Err(error) => return Poll::Ready(Ended::lost(error.to_string())),
            }
            let outcome = self.take_frames();
            self.connection
                .table()
                .complete(&mut self.frames, &mut self.wakers);
            if let Err(ended) = outcome {
                return Poll::Ready(ended);
            }
            reads += 1;
            if reads == READS_PER_TURN || bytes >= link::TURN_BYTES {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let time = now();
        if reads > 0 {
            self.heard = time;
            self.pinged = None;
            self.connection.heard();
        }
        self.keep_time(time, cx)
    }

    /// Takes all whole frames: collects answers and handles the rest.
    fn take_frames(&mut self) -> Result<(), Ended> {
        let broken = |reason: String| Ended::lost(format!("the peer broke the protocol: {reason}"));
        while let Some(frame) = self.inbox.next().map_err(|error| broken(error.to_string()))? {
            match (frame.kind, frame.status) {
                (Kind::Response | Kind::StreamEnd, _) => self.frames.push(frame),
                (Kind::StreamItem, _) => self.connection.take_item(frame)?,
                (Kind::Heartbeat, Status::HELLO) => {
                    let hello = Hello::parse(&frame.body).map_err(|error| broken(error.to_string()))?;
                    self.connection.greeted(hello)?;
                }
                (Kind::Heartbeat, Status::PING) => self.connection.send_control(frame::pong),
                (Kind::Heartbeat, _) => {}
                (Kind::GoAway, _) => self.connection.leave(),
                (Kind::Request | Kind::Cancel | Kind::StreamWindow, _) => {
                    return Err(broken(format!("a {:?} frame from a provider", frame.kind)));
                }
            }
        }
        Ok(())
    }

    fn keep_time(&mut self, mut time: Instant, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            let deadline = self.connection.table().expire(time, cx, &mut self.wakers);
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

    /// Pings when nothing has arrived for long, and gives up if nothing arrives after that.
    fn beat(&mut self, time: Instant) -> Option<Ended> {
        if self.connection.is_leaving() {
            if self.connection.in_flight() == 0 {
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
            // Without HELLO the peer is an original hc-rpc provider, which never answers a ping.
            if self.connection.is_greeted() {
                self.pinged = Some(time);
                self.beat_at = time + self.pong_timeout;
            } else {
                self.heard = time;
                self.beat_at = time + self.heartbeat;
            }
        } else {
            if time >= self.speak_at && !self.connection.streams().is_empty() {
                // A caller that only receives items sends nothing, and a provider disconnects silent peers.
                self.connection.send_control(frame::ping);
                self.speak_at = time + self.heartbeat / 2;
            }
            self.beat_at = self.heard + self.heartbeat;
        }
        None
    }
}
