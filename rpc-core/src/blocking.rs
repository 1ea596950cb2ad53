//! Calls from threads outside any runtime: the thread waits, the invoker's runtime does the work.
//!
//! Within a runtime, waiting would stop the very threads that it waits for, so there it is an error, returned
//! at once and without a panic.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::error::{CallError, Code, Executed, Never, RpcError};
use crate::stream::Streaming;

/// How much longer than the call's time its thread waits: the runtime ends calls whose time is over, but a
/// thread must not hang forever if nothing drives the runtime any longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The items of a stream, for a thread outside any runtime: `next` blocks until an item arrives. Dropping it
/// ends the stream.
#[must_use = "a stream does not start until its first item is requested"]
pub struct Blocking<T, E = Never> {
    runtime: Handle,
    /// `None` once the stream has ended.
    stream: Option<Streaming<T, E>>,
}

impl<T, E> fmt::Debug for Blocking<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").finish_non_exhaustive()
    }
}

impl<T, E> Blocking<T, E> {
    pub(crate) const fn new(runtime: Handle, stream: Streaming<T, E>) -> Self {
        Self {
            runtime,
            stream: Some(stream),
        }
    }
}

impl<T, E> Iterator for Blocking<T, E> {
    type Item = Result<T, CallError<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        let stream = self.stream.as_mut()?;
        if let Err(error) = outside() {
            self.stream = None;
            return Some(Err(CallError::Rpc(error)));
        }
        // A stream without a time-out has no deadline; it ends if its connection is lost.
        let item = block_on(&self.runtime, stream.next(), None).flatten();
        if item.is_none() {
            self.stream = None;
        }
        item
    }
}

/// Whether this thread may block.
///
/// # Errors
/// It belongs to a runtime.
pub(crate) fn outside() -> Result<(), RpcError> {
    if Handle::try_current().is_err() {
        return Ok(());
    }
    let message = "`.wait()` is for threads outside of a runtime, and this one belongs to one: `.await` the call, or in \
                   `spawn_blocking` say `Handle::current().block_on(call.into_future())`";
    Err(RpcError::new(Code::Unsupported, Executed::No, message))
}

/// The outcome of a call that ends by `deadline`.
pub(crate) fn wait<T, E>(
    runtime: &Handle,
    call: impl Future<Output = Result<T, CallError<E>>>,
    deadline: Instant,
) -> Result<T, CallError<E>> {
    let until = deadline.checked_add(PATIENCE);
    block_on(runtime, call, until).unwrap_or_else(|| {
        let message = "no outcome in time; check that the invoker's runtime is being driven";
        let error = RpcError::new(Code::DeadlineExceeded, Executed::Maybe, message);
        Err(CallError::Rpc(error))
    })
}

/// Polls `future` on this thread within `runtime`, whose own threads drive sockets and timers; `None` if it
/// is not ready by `until`.
fn block_on<F: Future>(runtime: &Handle, future: F, until: Option<Instant>) -> Option<F::Output> {
    let _entered = runtime.enter();
    let waker = Waker::from(Arc::new(Parked(thread::current())));
    let (mut future, mut cx) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

/// A thread that waits.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
