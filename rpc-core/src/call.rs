//! One call as the user writes it: options first, then the form in which it is sent. Nothing is sent before a form is
//! chosen. Not here: instances and attempts (`invoker`), encoding of values (`serialize`).

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::BoxFuture;
use crate::carrier::{Answer, Carrier, Outgoing, Target};
use crate::context::Context;
use crate::error::{CallError, Code, Executed, Never, RpcError};
use crate::invoker::Invoker;
use crate::invoker::callback_pool::Place;
use crate::message::{Attachment, Meta, MethodRef, Request, Route, Served};
use crate::recovery::{self, Fallback, Recovery};
use crate::registry::Instance;
use crate::serialize::{self, SerializerRef};
use crate::service::{self, Local};
use crate::stream::{Item, Items, StreamCall};

/// The clock of deadlines: tokio's, so that tests can move it by hand.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// From an answer to what the caller sees.
pub type Decode<T, E> = fn(&SerializerRef, Answer) -> Result<T, CallError<E>>;

/// What a generated client holds.
#[derive(Debug, Clone)]
pub struct Stub {
    carrier: Arc<dyn Carrier>,
    route: Arc<Route>,
    serializer: SerializerRef,
}

impl Stub {
    /// A stub that calls through `invoker`.
    #[must_use]
    pub fn refer(invoker: &Invoker, service: &str) -> Self {
        Self::new(invoker.carrier(), Arc::new(Route::new(service)))
    }

    /// A stub that calls a service of this process.
    #[must_use]
    pub fn local(served: Served) -> Self {
        Self::new(Arc::new(Local::new(served.service)), served.route)
    }

    fn new(carrier: Arc<dyn Carrier>, route: Arc<Route>) -> Self {
        Self {
            serializer: carrier.serializer().clone(),
            carrier,
            route,
        }
    }

    /// The same for another version.
    #[must_use]
    pub fn version(mut self, version: String) -> Self {
        Arc::make_mut(&mut self.route).version = version;
        self
    }

    /// The same for another group.
    #[must_use]
    pub fn group(mut self, group: String) -> Self {
        Arc::make_mut(&mut self.route).group = group;
        self
    }

    /// The same with another serializer than the invoker's.
    #[must_use]
    pub fn serializer(mut self, serializer: SerializerRef) -> Self {
        self.serializer = serializer;
        self
    }

    /// A call of a `method` that answers with a stream.
    pub fn stream<P: Serialize, T, E: DeserializeOwned>(
        &self,
        method: impl Into<MethodRef>,
        params: &P,
        attachment: Attachment,
        decode: fn(&SerializerRef, Item) -> Result<T, CallError<E>>,
    ) -> StreamCall<T, E> {
        let end = service::decode_value::<(), E>;
        StreamCall::new(self.call(method, params, attachment, end), decode)
    }

    /// A call of `method` with `params`, which are encoded now.
    pub fn call<P: Serialize, T, E>(
        &self,
        method: impl Into<MethodRef>,
        params: &P,
        attachment: Attachment,
        decode: Decode<T, E>,
    ) -> Call<T, E> {
        let method = method.into();
        let params = serialize::to_bytes(&self.serializer, params).map_err(|error| {
            let message = format!("the parameters of `{}` cannot be encoded: {error}", method.name);
            RpcError::new(Code::BadRequest, Executed::No, message)
        });
        Call {
            carrier: Arc::clone(&self.carrier),
            route: Arc::clone(&self.route),
            serializer: self.serializer.clone(),
            method,
            params,
            attachment,
            meta: Meta::default(),
            timeout: None,
            hash_key: None,
            target: Target::Any,
            recovery: Recovery::default(),
            decode,
        }
    }
}

/// A call that was not sent yet. Choose options, then a form: `.await` sends it and waits for the answer.
///
/// ```
/// # use std::time::Duration;
/// #[rpc_core::service(name = "doc.Adder")]
/// pub trait Adder {
///     async fn add(&self, a: u32, b: u32) -> u32;
/// }
///
/// struct Plain;
/// impl Adder for Plain {
///     async fn add(&self, a: u32, b: u32) -> u32 {
///         a + b
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), rpc_core::CallError> {
/// let adder = AdderClient::local(Plain);
/// assert_eq!(adder.add(1, 2).await?, 3);
/// assert_eq!(adder.add(1, 2).timeout(Duration::from_secs(1)).meta("tenant", "a").await?, 3);
/// let started = adder.add(3, 4).future();
/// assert_eq!(started.await?, 7);
/// # Ok(()) }
/// ```
#[must_use = "a call does nothing until it is awaited or sent in another form"]
pub struct Call<T, E = Never> {
    carrier: Arc<dyn Carrier>,
    route: Arc<Route>,
    serializer: SerializerRef,
    method: MethodRef,
    params: Result<Bytes, RpcError>,
    attachment: Attachment,
    meta: Meta,
    timeout: Option<Duration>,
    hash_key: Option<u64>,
    target: Target,
    pub(crate) recovery: Recovery<T, E>,
    decode: Decode<T, E>,
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("service", &self.route.service)
            .field("method", &self.method.name)
            .finish_non_exhaustive()
    }
}

impl<T, E> Call<T, E> {
    /// How long the whole call may take, all attempts together, in place of the invoker's own time-out. Within a handler
    /// the call never outlasts the call being served.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a pair of metadata, at most [`crate::limits::META_PAIRS_MAX`] of them.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.0.push((key.into(), value.into()));
        self
    }

    /// What a consistent-hash balancer goes by.
    pub const fn hash_key(mut self, key: u64) -> Self {
        self.hash_key = Some(key);
        self
    }

    /// Sends the call to this instance and no other; the balancer is not asked.
    pub fn to(self, instance: &Instance) -> Self {
        self.to_address(&instance.address)
    }

    /// Sends the call to this address (`host:port`) and no other; the balancer is not asked.
    #[expect(
        clippy::wrong_self_convention,
        reason = "a destination, not a conversion; options consume the call"
    )]
    pub fn to_address(mut self, address: &str) -> Self {
        self.target = Target::Address(address.to_owned());
        self
    }

    /// Sends the call without an answer: `Ok` says that it was handed to a live connection, not that it was handled.
    ///
    /// # Errors
    /// No connection within the call's time, or the request cannot be sent.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the request sent or unsent.
    pub async fn oneway(self) -> Result<(), RpcError> {
        self.send(true, None).0.await.map(|_| ())
    }

    /// Starts the call now; the future is for its answer. Dropping the future cancels the call.
    pub fn future(mut self) -> CallFuture<T, E> {
        let fallback = self.recovery.fallback.take();
        let (decode, carrier) = (self.decode, Arc::clone(&self.carrier));
        let (call, serializer) = self.send(false, None);
        let state = match carrier.tasks() {
            Ok(tasks) => State::Started(tasks.spawn(call)),
            Err(error) => State::Waiting(Box::pin(std::future::ready(Err(error)))),
        };
        CallFuture {
            state,
            serializer,
            fallback,
            decode,
        }
    }

    /// Starts the call now and hands its outcome to `callback` on the invoker's `responseCallback` pool, where it may
    /// block. `Ok` = it is called exactly once, whatever happens (an answer, the deadline, a lost connection, the
    /// invoker's shutdown). No order among callbacks is promised.
    ///
    /// # Errors
    /// `Overloaded` when the pool has no place left, or `Unavailable` without a runtime: nothing was sent and `callback`
    /// is dropped uncalled.
    pub fn callback<F>(self, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        self.carrier.tasks()?;
        let place = self.carrier.callbacks().reserve()?;
        self.call_back(place, callback)
    }

    /// Like [`Call::callback`], but waits for a place as long as the call may take.
    ///
    /// # Errors
    /// `Overloaded` when there was no place in that time: nothing was sent and `callback` is dropped uncalled.
    ///
    /// # Cancel safety
    /// Until it is `Ok`, nothing was sent.
    pub async fn callback_wait<F>(mut self, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        self.carrier.tasks()?;
        let deadline = self.deadline(now());
        let place = self.carrier.callbacks().reserve_until(deadline).await?;
        self.timeout = Some(deadline.saturating_duration_since(now()));
        self.call_back(place, callback)
    }

    /// Makes the call at every instance of the service at once, each with its own outcome, in the order of their ids.
    /// The time-out is that of the whole.
    ///
    /// # Errors
    /// `Unavailable` when there is no instance: nothing done nowhere is not a success.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the calls that are not done.
    pub async fn broadcast(mut self) -> Result<Vec<Broadcast<T, E>>, RpcError> {
        let deadline = self.deadline(now());
        let instances = self.carrier.instances(&self.route, deadline).await?;
        self.timeout = Some(deadline.saturating_duration_since(now()));
        let start = |instance: Arc<Instance>| (self.again().to(&instance).future(), instance);
        // All are started before the first is waited for.
        let started: Vec<_> = instances.into_iter().map(start).collect();
        let mut outcomes = Vec::with_capacity(started.len());
        for (call, instance) in started {
            let outcome = call.await;
            outcomes.push(Broadcast { instance, outcome });
        }
        Ok(outcomes)
    }

    /// The same call once more. Parameters and attachment are shared, not copied.
    fn again(&self) -> Self {
        Self {
            carrier: Arc::clone(&self.carrier),
            route: Arc::clone(&self.route),
            serializer: self.serializer.clone(),
            method: self.method.clone(),
            params: self.params.clone(),
            attachment: self.attachment.clone(),
            meta: self.meta.clone(),
            target: self.target.clone(),
            recovery: self.recovery.clone(),
            ..*self
        }
    }

    fn call_back<F>(mut self, place: Place, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        let (decode, carrier) = (self.decode, Arc::clone(&self.carrier));
        let fallback = self.recovery.fallback.take();
        let tasks = carrier.tasks()?;
        let (call, serializer) = self.send(false, None);
        let pending = place.fill(move |answer| {
            callback(recovery::outcome(
                (decode, fallback.as_ref()),
                &serializer,
                answer,
            ));
        });
        tasks.spawn_then(call, move |answer| pending.deliver(answer));
        Ok(())
    }

    /// When the call's time ends, if it starts at `start`.
    fn deadline(&self, start: Instant) -> Instant {
        let own = start.checked_add(self.timeout.unwrap_or_else(|| self.carrier.timeout()));
        // A time-out beyond what the clock can express is as good as this one.
        let own = own.unwrap_or_else(|| start + Duration::from_secs(100 * 365 * 86_400));
        Context::current_deadline().map_or(own, |outer| own.min(outer))
    }

    /// The call of a stream whose items go to `items`.
    pub(crate) fn begin(self, items: Items) -> (BoxFuture<'static, Answer>, SerializerRef) {
        self.send(false, Some(items))
    }

    /// How its answer is read.
    pub(crate) const fn decode(&self) -> Decode<T, E> {
        self.decode
    }

    /// How long a call may take that does not say.
    pub(crate) fn usual_timeout(&self) -> Duration {
        self.carrier.timeout()
    }

    fn send(self, oneway: bool, items: Option<Items>) -> (BoxFuture<'static, Answer>, SerializerRef) {
        let started = now();
        let deadline = self.deadline(started);
        let serializer = self.serializer;
        let params = match self.params {
            Ok(params) => params,
            Err(error) => return (Box::pin(std::future::ready(Err(error))), serializer),
        };
        let request = Request {
            route: self.route,
            method: self.method,
            serializer: serializer.clone(),
            params,
            attachment: self.attachment,
            meta: self.meta,
            started,
            deadline,
            oneway,
            hash_key: self.hash_key,
            items,
            peer: None,
            cancelled: None,
        };
        let call = Outgoing {
            request,
            target: self.target,
            failures: 0,
            fault_tolerance: self.recovery.fault_tolerance,
            within_retry: Context::within_retry(),
        };
        (self.carrier.call(call), serializer)
    }
}

/// What one instance answered to a [`Call::broadcast`].
#[derive(Debug, Clone)]
pub struct Broadcast<T, E = Never> {
    /// Which instance.
    pub instance: Arc<Instance>,
    /// What came of the call there.
    pub outcome: Result<T, CallError<E>>,
}

impl<T, E> IntoFuture for Call<T, E> {
    type Output = Result<T, CallError<E>>;
    type IntoFuture = CallFuture<T, E>;

    fn into_future(mut self) -> CallFuture<T, E> {
        let fallback = self.recovery.fallback.take();
        let decode = self.decode;
        let (call, serializer) = self.send(false, None);
        CallFuture {
            state: State::Waiting(call),
            serializer,
            fallback,
            decode,
        }
    }
}

/// The answer to come. Dropping it cancels the call: the provider is told, and its handler's context.
#[must_use = "dropping it cancels the call"]
pub struct CallFuture<T, E = Never> {
    state: State,
    serializer: SerializerRef,
    fallback: Option<Fallback<T, E>>,
    decode: Decode<T, E>,
}

enum State {
    /// Runs when it is polled.
    Waiting(BoxFuture<'static, Answer>),
    /// Runs as a task.
    Started(JoinHandle<Answer>),
}

impl<T, E> fmt::Debug for CallFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

impl<T, E> Future for CallFuture<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Waiting(call) => ready!(call.as_mut().poll(context)),
            State::Started(task) => ready!(Pin::new(task).poll(context)).unwrap_or_else(|error| {
                let (code, message) = match error.is_panic() {
                    true => (Code::Internal, "the call's task panicked"),
                    false => (Code::Cancelled, "the runtime was shut down"),
                };
                Err(RpcError::new(code, Executed::Maybe, message))
            }),
        };
        let outcome = (self.decode, self.fallback.as_ref());
        Poll::Ready(recovery::outcome(outcome, &self.serializer, answer))
    }
}

impl<T, E> Drop for CallFuture<T, E> {
    fn drop(&mut self) {
        if let State::Started(task) = &self.state {
            task.abort();
        }
    }
}
