//! A stack of tower layers as a filter.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use tokio::sync::{mpsc, oneshot};
use tower_layer::Layer;
use tower_service::Service;

use super::relay::{Job, Onward, TowerRequest};
use super::{BoxError, oneshot};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::filter::{Filter, Next, Side};
use crate::message::{Request, Response};

/// Requests that wait for the rest of the chain; a layer that hedges has a few.
const JOBS: usize = 4;

/// Runs every call through a stack of tower layers, on either side.
///
/// The stack is built once, so its state (for example a count of calls) is shared by all calls; each call
/// uses a clone of it. A layer whose service cannot be cloned goes after a `tower::buffer`. A layer may call
/// the inner service several times: each time is a whole call, so on the provider it runs the handler again,
/// and the layer has to know whether the method is idempotent. A stream can be repeated only before its first
/// item, and never runs twice at once: its items would arrive twice or interleaved. A layer that tries anyway
/// gets what the stream ended with, or `Unsupported` while it runs.
///
/// Errors: an [`RpcError`] is passed on unchanged; `tower::timeout` becomes `DeadlineExceeded` and
/// `tower::load_shed` becomes `Overloaded`; any other error of a layer becomes `Internal`. Executed is `No`
/// unless the call was passed on, otherwise `Maybe`.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use rpc_core::tower::TowerFilter;
/// use rpc_core::{Code, Invoker, Provider};
/// use tower::ServiceBuilder;
///
/// # #[rpc_core::service(name = "doc.Nap")] pub trait Nap { async fn nap(&self, ms: u64) -> u64; }
/// # struct Bed;
/// # impl Nap for Bed {
/// #     async fn nap(&self, ms: u64) -> u64 { tokio::time::sleep(Duration::from_millis(ms)).await; ms }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stack = ServiceBuilder::new().load_shed().concurrency_limit(100).timeout(Duration::from_millis(200));
/// let provider = Provider::builder().serve(NapServer::new(Bed)).filter(Arc::new(TowerFilter::new(stack))).start().await?;
/// let invoker = Invoker::builder().direct([provider.local_addr()]).timeout(Duration::from_secs(10)).build().await?;
/// let bed = NapClient::refer(&invoker);
/// assert_eq!(bed.nap(1).await?, 1);
/// let error = bed.nap(60_000).await.unwrap_err();
/// assert_eq!(error.rpc().map(|error| error.code), Some(Code::DeadlineExceeded));
/// # Ok(()) }
/// ```
pub struct TowerFilter<S> {
    /// Locked while it is cloned.
    stack: Mutex<S>,
}

impl<S> fmt::Debug for TowerFilter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TowerFilter").finish_non_exhaustive()
    }
}

impl<S> TowerFilter<S>
where
    S: Service<TowerRequest, Response = Response> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    /// Puts `layers`, as in `tower::ServiceBuilder::new().timeout(..)`, around every call.
    pub fn new(layers: impl Layer<Onward, Service = S>) -> Self {
        Self {
            stack: Mutex::new(layers.layer(Onward(()))),
        }
    }
}

impl<S> Filter for TowerFilter<S>
where
    S: Service<TowerRequest, Response = Response> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    fn call<'a>(&'a self, _: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        let stack = self.stack.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            let (back, jobs) = mpsc::channel(JOBS);
            let (answer, passed_on) = drive(oneshot(stack, TowerRequest { request, back }), jobs, next).await;
            answer.map_err(|error| {
                let executed = if passed_on { Executed::Maybe } else { Executed::No };
                rpc_error(error.into(), executed)
            })
        })
    }
}

/// Runs the stack, and connects every request that leaves it to `next`. Also returns whether one did.
async fn drive<E>(
    stack: impl Future<Output = Result<Response, E>>,
    mut jobs: mpsc::Receiver<Job>,
    next: &dyn Next,
) -> (Result<Response, E>, bool) {
    let mut stack = pin!(stack);
    let mut running: Vec<(BoxFuture<'_, Answer>, Option<oneshot::Sender<Answer>>)> = Vec::new();
    let mut passed_on = false;
    let mut stream = Repeats::default();
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(answer) = stack.as_mut().poll(cx) {
                return Poll::Ready((answer, passed_on));
            }
            let mut moved = false;
            while let Poll::Ready(Some((request, answer))) = jobs.poll_recv(cx) {
                moved = true;
                if let Some(instead) = stream.instead_of(&request, !running.is_empty()) {
                    // A layer that no longer waits has cancelled this call.
                    drop(answer.send(instead));
                    continue;
                }
                passed_on = true;
                running.push((next.run(request), Some(answer)));
            }
            running.retain_mut(|(call, answer)| {
                // A layer that no longer waits has cancelled this call.
                if answer
                    .as_mut()
                    .is_none_or(|answer| answer.poll_closed(cx).is_ready())
                {
                    return false;
                }
                let Poll::Ready(outcome) = call.as_mut().poll(cx) else {
                    return true;
                };
                moved = true;
                stream.ended(&outcome);
                // Nobody waits: it was cancelled at this very moment.
                answer
                    .take()
                    .is_some_and(|answer| answer.send(outcome).is_err_and(|_| false))
            });
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// How a stream ended that a layer may want to repeat.
#[derive(Default)]
struct Repeats {
    is_stream: bool,
    end: Option<Answer>,
}

impl Repeats {
    /// The answer instead of another call, if none may be made.
    fn instead_of(&mut self, request: &Request, runs: bool) -> Option<Answer> {
        let items = request.items.as_ref()?;
        let first = !std::mem::replace(&mut self.is_stream, true);
        if first || (!runs && !items.have_begun()) {
            return None;
        }
        let unsupported = || {
            let message =
                "a tower layer repeated a stream that is running; it can do so only before the first item";
            Err(RpcError::new(Code::Unsupported, Executed::Maybe, message))
        };
        Some(self.end.clone().filter(|_| !runs).unwrap_or_else(unsupported))
    }

    fn ended(&mut self, answer: &Answer) {
        if self.is_stream {
            self.end = Some(answer.clone());
        }
    }
}

fn rpc_error(error: BoxError, executed: Executed) -> RpcError {
    let error = match error.downcast::<RpcError>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    if error.is::<tower::timeout::error::Elapsed>() {
        let message = "the call's time in a tower layer ran out";
        return RpcError::new(Code::DeadlineExceeded, executed, message);
    }
    if error.is::<tower::load_shed::error::Overloaded>() {
        return RpcError::new(Code::Overloaded, executed, "a tower layer sheds load");
    }
    RpcError::new(Code::Internal, executed, format!("a tower layer failed: {error}"))
}
