//! Runs a request inline, where it was read, without a task, if its method is quick (`quick.rs`); and times
//! the requests that run in tasks, to find out which methods are quick.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::request::{Handling, Stage, Task};
use super::router::EnteredMethod;
use crate::error::RpcError;
use crate::limits;
use crate::message::Response;

/// Larger requests are always decoded in a task of their own.
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// The outcome of trying to run a request inline.
pub(super) enum Inline {
    /// It was answered, or cannot be.
    Over(Option<EnteredMethod>),
    /// It needs a task.
    Spawn(Task),
}

impl Task {
    /// Runs it right here, if its method is quick and it does not have to wait.
    pub(super) fn run_inline(mut self) -> Inline {
        let connection = &self.admitted.connection;
        let fits = matches!(&self.stage, Stage::Arrived(body) if body.len() <= INLINE_BYTES_MAX);
        // A stream needs a task: it continues after its first items have been sent.
        let once = self.admitted.items.is_none();
        if !fits || !once || !connection.is_quick.load(Ordering::Relaxed) {
            return Inline::Spawn(self);
        }
        // A task that is spawned afterwards is polled again, with a waker of its own.
        let mut cx = Context::from_waker(Waker::noop());
        let over = catch_unwind(AssertUnwindSafe(|| {
            loop {
                if matches!(self.stage, Stage::Running(_)) && !self.is_quick() {
                    self.admitted.connection.is_quick.store(false, Ordering::Relaxed);
                    return false;
                }
                match self.next(&mut cx) {
                    Poll::Ready(Stage::Over) => return true,
                    Poll::Ready(stage @ (Stage::Waiting(_) | Stage::Answered(_))) => {
                        self.stage = stage;
                        return false;
                    }
                    Poll::Ready(stage) => self.stage = stage,
                    Poll::Pending => {
                        self.note(false);
                        return false;
                    }
                }
            }
        }));
        let over = over.unwrap_or_else(|panic| {
            // As in a task: this request is answered, the others continue.
            self.stage = self.panicked(&*panic);
            matches!(self.stage, Stage::Over)
        });
        if over {
            Inline::Over(self.admitted.entered)
        } else {
            Inline::Spawn(self)
        }
    }

    fn is_quick(&self) -> bool {
        let router = &self.admitted.connection.core.router;
        self.admitted
            .entered
            .is_some_and(|entered| !entered.method.blocking && router.quickness(entered).is_quick())
    }

    fn note(&self, quick: bool) {
        if let Some(entered) = self.admitted.entered {
            self.admitted
                .connection
                .core
                .router
                .quickness(entered)
                .note(quick);
        }
    }

    /// Polls the handler. For timed calls, records whether it was quick and whether it held its thread for
    /// too long.
    pub(super) fn run(
        &mut self,
        handling: &mut Handling,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response, RpcError>> {
        let connection = &self.admitted.connection;
        let Some(entered) = self.admitted.entered.filter(|entered| !entered.method.blocking) else {
            return handling.as_mut().poll(cx);
        };
        let (quickness, first) = (connection.core.router.quickness(entered), !self.waited);
        if first {
            if quickness.is_quick() {
                connection.is_quick.store(true, Ordering::Relaxed);
                return handling.as_mut().poll(cx);
            }
            self.timed = quickness.is_timed();
        }
        if !self.timed {
            return handling.as_mut().poll(cx);
        }
        let start = Instant::now();
        let polled = handling.as_mut().poll(cx);
        let took = start.elapsed();
        if first {
            let quick = connection.core.limits.quick;
            quickness.note(polled.is_ready() && took <= quick && !quick.is_zero());
        }
        if took >= limits::HANDLER_BLOCKS {
            connection.core.blocked(entered, took);
        }
        polled
    }
}
