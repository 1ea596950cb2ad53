//! One request: decoded, routed, run, answered. Each is a task of its own, so that decoding is parallel and a
//! request that cannot be decoded fails alone; only requests of quick methods run where they were read
//! (`inline.rs`).

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connection::{Admitted, Connection};
use super::method_gate::Unwell;
use super::router::EnteredMethod;
use crate::BoxFuture;
use crate::call::now;
use crate::compress;
use crate::context::Cancellation;
use crate::envelope;
use crate::error::{Code, Executed, RpcError};
use crate::filter::{self, Next, Side};
use crate::frame::{self, Draft, Frame, Kind, Name, Status};
use crate::link::{self, Refused};
use crate::message::{Attachment, Method, Outcome, Request, Response};
use crate::serialize::SerializerRef;

/// How long a request without a time-out may run (an original hc-rpc invoker does not send one).
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The same for a stream, which may follow something for as long as both sides live: a time that no clock
/// reaches.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// One request as a task. Written by hand and not as an `async fn`, which would reserve space for everything
/// twice: there is one per request, and it is moved into its task.
pub(super) struct Task {
    pub(super) admitted: Admitted,
    /// When it was received; once its handler runs, approximately when that started.
    since: Instant,
    name: Name,
    status: Status,
    /// Whether the handler ever had to wait.
    pub(super) waited: bool,
    /// Whether the handler's polls are timed.
    pub(super) timed: bool,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Nothing of the body has been read.
    Arrived(Bytes),
    /// The handler is running.
    Running(Handling),
    /// The peer does not take its answers: the request waits before the handler runs.
    Waiting(Box<(Bytes, Handling<()>)>),
    /// It waits with an answer that the outbox had no space for.
    Answered(Box<(Result<Response, RpcError>, Handling<()>)>),
    /// It was answered, or cannot be.
    Over,
}

impl Task {
    /// The task of the request in `frame`, which was received at `received`.
    pub(super) fn new(admitted: Admitted, frame: Frame, received: Instant) -> Self {
        Self {
            admitted,
            since: received,
            name: frame.name,
            status: frame.status,
            waited: false,
            timed: false,
            stage: Stage::Arrived(frame.body),
        }
    }

    /// Sends the answer, unless the outbox has no space for it.
    fn answer(&self, answer: &Result<Response, RpcError>) -> Result<(), Refused> {
        let connection = &self.admitted.connection;
        if self.status.has(Status::ONEWAY) {
            if let Err(error) = answer {
                log_oneway(connection, error);
            }
            return Ok(());
        }
        let reply = Reply {
            id: self.admitted.id,
            name: &self.name,
            method: self.admitted.entered.map(|entered| entered.method),
            streamed: self.admitted.items.is_some(),
        };
        reply.push(connection, answer)
    }

    /// Records how the handler ended and whether it was slow.
    fn count(&self, answer: &Result<Response, RpcError>) {
        let core = &self.admitted.connection.core;
        let Some(entered) = self.admitted.entered else {
            return;
        };
        let gate = core.router.gate(entered);
        match answer {
            Ok(response) if matches!(response.outcome, Outcome::Ok(_)) => {}
            Ok(_) => gate.count(Unwell::App),
            Err(_) => gate.count(Unwell::Failed),
        }
        // A blocking handler is timed on its own thread, without the wait for that thread.
        if gate.is_timed() && !entered.method.blocking {
            // A handler that never waited has cost less than reading the clock would; if it blocked the
            // thread for long, other connections have moved the coarse clock on.
            let ended = if self.waited { now() } else { core.clock.newest() };
            core.took(entered, self.since, ended);
        }
    }

    /// The answer to a request whose handling panicked.
    pub(super) fn panicked(&self, panic: &(dyn Any + Send)) -> Stage {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(panic = text.unwrap_or("(no text)"), "request panicked");
        let message = "the request's handling panicked; the provider's log says more";
        let answer = Err(RpcError::new(Code::Internal, Executed::Maybe, message));
        self.count(&answer);
        match self.answer(&answer) {
            Ok(()) | Err(Refused::Closed) => Stage::Over,
            Err(Refused::Full { bytes }) => Stage::Answered(Box::new((answer, self.room_for(bytes)))),
        }
    }

    /// Completes when the peer has taken so much that an answer of this size fits, which did not fit before.
    fn room_for(&self, bytes: usize) -> Handling<()> {
        let connection = Arc::clone(&self.admitted.connection);
        Box::pin(async move { connection.outbox.room_for(bytes).await })
    }

    /// Completes when the peer has taken some of its answers.
    fn room(&self) -> Handling<()> {
        let connection = Arc::clone(&self.admitted.connection);
        Box::pin(async move { connection.outbox.half_empty().await })
    }

    /// The next stage, if it can be reached now.
    pub(super) fn next(&mut self, cx: &mut Context<'_>) -> Poll<Stage> {
        let answer = match std::mem::replace(&mut self.stage, Stage::Over) {
            // If a peer does not take its answers, no new ones are produced for it: this limits the memory
            // they hold, however many requests one read has brought.
            Stage::Arrived(body) if self.admitted.connection.outbox.is_half_full() => {
                return Poll::Ready(Stage::Waiting(Box::new((body, self.room()))));
            }
            Stage::Arrived(body) => match self.prepare(body) {
                Ok(handling) => return Poll::Ready(Stage::Running(handling)),
                Err(error) => Err(error),
            },
            Stage::Running(mut handling) => match self.run(&mut handling, cx) {
                Poll::Ready(answer) => {
                    self.count(&answer);
                    answer
                }
                Poll::Pending => {
                    self.waited = true;
                    self.stage = Stage::Running(handling);
                    return Poll::Pending;
                }
            },
            Stage::Waiting(mut waiting) => {
                if waiting.1.as_mut().poll(cx).is_ready() {
                    // If the outbox is closed there will never be space, and no peer is left to answer.
                    let gone = self.admitted.connection.outbox.is_closed();
                    return Poll::Ready(if gone {
                        Stage::Over
                    } else {
                        Stage::Arrived(waiting.0)
                    });
                }
                self.stage = Stage::Waiting(waiting);
                return Poll::Pending;
            }
            Stage::Answered(mut answered) => {
                if answered.1.as_mut().poll(cx).is_pending() {
                    self.stage = Stage::Answered(answered);
                    return Poll::Pending;
                }
                answered.0
            }
            Stage::Over => return Poll::Ready(Stage::Over),
        };
        Poll::Ready(match self.answer(&answer) {
            Ok(()) | Err(Refused::Closed) => Stage::Over,
            Err(Refused::Full { bytes }) => Stage::Answered(Box::new((answer, self.room_for(bytes)))),
        })
    }

    /// Everything before the handler: nothing here runs it.
    fn prepare(&mut self, body: Bytes) -> Result<Handling, RpcError> {
        let serializer = serializer(&self.name)?;
        let connection = &self.admitted.connection;
        let core = &connection.core;
        let bad = |reason: String| RpcError::new(Code::BadRequest, Executed::No, reason);
        let body = frame::split_body(self.status, body, core.limits.body_bytes_max)
            .map_err(|error| bad(error.to_string()))?;
        // A peer that has not sent HELLO cannot have been told that it may compress.
        let offered = |name: &str| {
            let greeted = connection.hello.get().is_some();
            greeted.then(|| compress::Named::linked(name)).flatten()
        };
        let plain = compress::Named::plain(body.envelope, body.compressor, offered).map_err(bad)?;
        let incoming = envelope::decode_request(serializer.name(), &plain)?;
        let longest = if self.admitted.items.is_some() {
            FOREVER
        } else {
            NO_TIMEOUT
        };
        let timeout = incoming.timeout.unwrap_or(longest).min(longest);
        let (deadline, newest) = (self.since + timeout, core.clock.newest());
        if newest >= deadline {
            let message = "the call's time was over before its handler could start";
            return Err(RpcError::new(Code::DeadlineExceeded, Executed::No, message));
        }
        let oneway = self.status.has(Status::ONEWAY);
        if oneway {
            // Its caller waits for nothing, and may have gone.
            self.admitted.cancelled = None;
        }
        if self
            .admitted
            .cancelled
            .as_ref()
            .is_some_and(Cancellation::is_cancelled)
        {
            return Err(gone());
        }
        let entered = core.router.enter(&serializer, &incoming, &core.clock)?;
        self.admitted.entered = Some(entered);
        if self.admitted.items.is_some() && !entered.method.streaming {
            return Err(bad(format!(
                "`{}` answers once, and the caller asked for a stream",
                entered.method.name
            )));
        }
        let request = Request {
            route: Arc::clone(core.router.route(entered)),
            method: entered.method.into(),
            serializer,
            params: incoming.params,
            attachment: Attachment::from(body.attachment),
            meta: incoming.meta,
            started: self.since,
            deadline,
            oneway,
            hash_key: None,
            items: self.admitted.items.clone(),
            peer: Some(Arc::clone(&connection.peer)),
            cancelled: self.admitted.cancelled.take(),
        };
        self.since = self.since.max(newest);
        if core.filters.is_empty() && !entered.method.blocking {
            let (service, index) = core.router.service(entered);
            return Ok(service.call(index, request));
        }
        let last = Last {
            connection: Arc::clone(connection),
            entered,
        };
        Ok(Box::pin(async move {
            let filters = &last.connection.core.filters;
            filter::through(filters, Side::Provider, request, &last).await
        }))
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Generated services catch their handlers' panics; those of plug-ins and hand-written services
            // are caught here. The stage that panicked has been taken out and is gone.
            let next = catch_unwind(AssertUnwindSafe(|| self.next(cx)));
            let next = next.unwrap_or_else(|panic| Poll::Ready(self.panicked(&*panic)));
            match ready!(next) {
                Stage::Over => return Poll::Ready(()),
                stage => self.stage = stage,
            }
        }
    }
}

/// Answers a request that was not admitted.
pub(super) fn refuse(connection: &Connection, frame: &Frame, streamed: bool, error: RpcError) {
    if frame.status.has(Status::ONEWAY) {
        return log_oneway(connection, &error);
    }
    let reply = Reply {
        id: frame.id,
        name: &frame.name,
        method: None,
        streamed,
    };
    // A full outbox drops the refusal: the peer neither reads nor respects its limits.
    if let Err(refused) = reply.push(connection, &Err(error)) {
        tracing::debug!(peer = %connection.peer, ?refused, "refusal not sent");
    }
}

fn log_oneway(connection: &Connection, error: &RpcError) {
    tracing::debug!(peer = %connection.peer, %error, "oneway request failed");
}

fn serializer(name: &Name) -> Result<SerializerRef, RpcError> {
    match name {
        Name::Msgpack => Ok(SerializerRef::Msgpack),
        Name::Json => Ok(SerializerRef::Json),
        Name::Other(other) => SerializerRef::named(other)
            .map_err(|error| RpcError::new(Code::Unsupported, Executed::No, error.to_string())),
    }
}

/// The answer to a request that was cancelled before its handler ran.
fn gone() -> RpcError {
    let message = "the caller had gone away before its handler could start";
    RpcError::new(Code::Cancelled, Executed::No, message)
}

/// A running handler, or a wait.
pub(super) type Handling<T = Result<Response, RpcError>> = BoxFuture<'static, T>;

/// The innermost step of the filter chain: the handler.
struct Last {
    connection: Arc<Connection>,
    entered: EnteredMethod,
}

impl Next for Last {
    fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Result<Response, RpcError>> {
        let (deadline, cancelled) = (request.deadline, request.cancelled.clone());
        let (service, index) = self.connection.core.router.service(self.entered);
        let handling = service.call(index, request);
        if self.entered.method.blocking {
            Box::pin(self.blocking(deadline, cancelled.unwrap_or_default(), handling))
        } else {
            handling
        }
    }
}

impl Last {
    /// Runs a handler that may block on one of the threads reserved for that, unless the caller goes away
    /// before one is free.
    async fn blocking(
        &self,
        deadline: Instant,
        cancelled: Cancellation,
        handling: Handling,
    ) -> Result<Response, RpcError> {
        let core = &self.connection.core;
        let thread = Arc::clone(&core.blocking).acquire_owned();
        let taken = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(gone()),
            taken = tokio::time::timeout_at(deadline.into(), thread) => taken,
        };
        let Ok(Ok(taken)) = taken else {
            let message = "all threads for blocking methods were taken for as long as the caller waits";
            return Err(RpcError::new(Code::Overloaded, Executed::No, message));
        };
        let runtime = core.runtime.clone();
        let thread = core.runtime.spawn_blocking(move || {
            let _taken = taken;
            let began = now();
            if cancelled.is_cancelled() {
                return (Err(gone()), began, began);
            }
            if began >= deadline {
                let message = "the call's time was over before a thread could start its handler";
                return (
                    Err(RpcError::new(Code::DeadlineExceeded, Executed::No, message)),
                    began,
                    began,
                );
            }
            (runtime.block_on(handling), began, now())
        });
        let (answer, began, ended) = thread.await.map_err(|error| {
            let message = format!("the handler's thread ended: {error}");
            RpcError::new(Code::Internal, Executed::Maybe, message)
        })?;
        core.took(self.entered, began, ended);
        answer
    }
}

/// Where an answer goes and how it is written.
struct Reply<'a> {
    id: i64,
    name: &'a Name,
    method: Option<&'static Method>,
    /// Whether it ends a stream.
    streamed: bool,
}

impl Reply<'_> {
    fn push(&self, connection: &Connection, answer: &Result<Response, RpcError>) -> Result<(), Refused> {
        match self.try_push(connection, answer) {
            Ok(outcome) => outcome,
            // The answer itself cannot be sent; the fact that the call was executed can.
            Err(error) => self.try_push(connection, &Err(error)).unwrap_or_else(|error| {
                tracing::error!(peer = %connection.peer, %error, "an error could not be encoded");
                Ok(())
            }),
        }
    }

    fn try_push(
        &self,
        connection: &Connection,
        answer: &Result<Response, RpcError>,
    ) -> Result<Result<(), Refused>, RpcError> {
        let parts = match answer {
            Ok(response) if !self.streamed => response.attachment.parts(),
            _ => &[],
        };
        let mut status = match answer {
            Ok(Response {
                outcome: Outcome::Ok(_),
                ..
            }) => Status::NONE,
            _ => Status::FAILED,
        };
        if !parts.is_empty() {
            if !connection.understands(Status::ATTACHMENT) {
                let message =
                    "the answer has an attachment, and the caller did not announce that it takes any";
                return Err(RpcError::new(Code::Unsupported, Executed::Yes, message));
            }
            status = status.with(Status::ATTACHMENT);
        }
        let max = connection.answer_bytes_max();
        // The last running request has no other answer to share its write with.
        let urgent = connection.running.count() <= 1;
        // With an unknown serializer there are only errors without details, which look the same under all
        // names.
        let serializer = serializer(self.name).unwrap_or(SerializerRef::Msgpack);
        link::with_scratch(|out| {
            let (kind, name) = match self.streamed {
                false => (Kind::Response, self.name.as_str()),
                true => (Kind::StreamEnd, ""),
            };
            let mut draft = Draft::begin(out, kind, status, self.id, name);
            let packs = connection.compressor.get();
            let apart = match parts {
                // A value to be compressed must be contiguous with the rest.
                [] if packs.is_none() => envelope::begin_response(&serializer, self.method, answer, out)?,
                _ => envelope::encode_response(&serializer, self.method, answer, out).map(|()| None)?,
            };
            if let Some(compressor) = packs {
                draft.pack(out, max, compressor.name, |plain| compressor.pack(plain));
            }
            let behind = match apart {
                Some(apart) => apart.len(),
                None => parts.iter().map(Bytes::len).sum(),
            };
            draft.finish(out, behind, max).map_err(|bytes| {
                let message = format!("an answer of {bytes} bytes, the caller takes {max}");
                RpcError::new(Code::TooLarge, Executed::Yes, message)
            })?;
            let queued = match apart {
                Some(apart) => connection.outbox.push(out, &apart.pieces(), urgent),
                None => connection.outbox.push(out, parts, urgent),
            };
            let held = answer
                .as_ref()
                .ok()
                .and_then(|response| response.attachment.held());
            if let (Ok(end), Some(held)) = (&queued, held) {
                connection.outbox.hold(*end, Arc::clone(held));
            }
            Ok(queued.map(drop))
        })
    }
}
