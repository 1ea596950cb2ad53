//! One call as the user writes it: options first, then the form in which it is sent. Nothing is sent until a
//! form is chosen. Not here: instances and attempts (`invoker`), encoding of values (`serialize`), streams
//! (`stream`), calls without a trait (`generic`).
//!
//! All forms of the same call:
//!
//! ```
//! use rpc_core::{Executed, Invoker, Provider};
//!
//! #[rpc_core::service(name = "doc.Adder")]
//! pub trait Adder {
//!     async fn add(&self, a: u32, b: u32) -> u32;
//! }
//!
//! struct Plain;
//! impl Adder for Plain {
//!     async fn add(&self, a: u32, b: u32) -> u32 {
//!         a + b
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let one = Provider::builder().serve(AdderServer::new(Plain)).start().await?;
//! let two = Provider::builder().serve(AdderServer::new(Plain)).start().await?;
//! let invoker = Invoker::builder().direct([one.local_addr(), two.local_addr()]).build().await?;
//! let adder = AdderClient::refer(&invoker);
//! // Sent and awaited; to the instance that the balancer picks, or to one that is chosen here.
//! assert_eq!(adder.add(1, 2).await?, 3);
//! assert_eq!(adder.add(1, 2).to_address(two.local_addr()).await?, 3);
//! // Sent now, awaited later; dropping it would cancel the call.
//! let started = adder.add(3, 4).future();
//! assert_eq!(started.await?, 7);
//! // The closure runs on the invoker's `responseCallback` pool, exactly once; `Err` here would mean that the pool is full.
//! let (sender, receiver) = tokio::sync::oneshot::channel();
//! adder.add(5, 6).callback(move |outcome| drop(sender.send(outcome)))?;
//! assert_eq!(receiver.await?, Ok(11));
//! let (sender, receiver) = tokio::sync::oneshot::channel();
//! adder.add(5, 7).callback_wait(move |outcome| drop(sender.send(outcome))).await?;
//! assert_eq!(receiver.await?, Ok(12));
//! // No answer: `Ok` means that it was handed to a live connection.
//! adder.add(7, 8).oneway().await?;
//! // At every instance.
//! let answers = adder.add(9, 10).broadcast().await?;
//! assert!(answers.len() == 2 && answers.iter().all(|answer| answer.outcome == Ok(19)));
//! // In this process, without a network.
//! assert_eq!(AdderClient::local(Plain).add(1, 2).await?, 3);
//! // From a thread outside of any runtime (`.wait()`); here it would block the thread that does the work.
//! assert_eq!(adder.add(1, 2).wait().unwrap_err().executed(), Executed::No);
//! # invoker.shutdown().await;
//! # Ok(()) }
//! ```

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::BoxFuture;
use crate::blocking;
use crate::context::Context;
use crate::dispatch::{Answer, Dispatch, Outgoing, Target};
use crate::error::{CallError, Code, Executed, Never, RpcError};
use crate::invoker::callback_pool::Slot;
use crate::message::{Attachment, Meta, MethodRef, Request, Route};
use crate::recovery::{self, Recovery};
use crate::registry::Instance;
use crate::serialize::SerializerRef;
use crate::stream::Items;

mod future;
mod nested;
mod stub;

pub use future::CallFuture;
use future::State;
pub use stub::Stub;

/// The clock of deadlines: tokio's, so that tests can move it by hand.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One instance's outcome of a [`Call::broadcast`].
#[derive(Debug, Clone)]
pub struct Broadcast<T, E = Never> {
    /// The instance.
    pub instance: Arc<Instance>,
    /// The outcome of the call there.
    pub outcome: Result<T, CallError<E>>,
}

/// Converts an answer to what the caller gets.
pub type Decode<T, E> = fn(&SerializerRef, Answer) -> Result<T, CallError<E>>;

/// A call that has not been sent. Choose options, then a form: `.await` sends it and waits for the answer.
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
    dispatch: Arc<dyn Dispatch>,
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
    /// The time-out of the whole call, all attempts together, instead of the invoker's. Within a handler the
    /// call never outlasts the call being served.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a pair of metadata; at most [`crate::limits::META_PAIRS_MAX`] pairs.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.0.push((key.into(), value.into()));
        self
    }

    /// The key that a consistent-hash balancer uses.
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

    /// Sends the call without waiting for an answer: `Ok` means that it was handed to a live connection, not
    /// that it was handled.
    ///
    /// # Errors
    /// No connection within the call's time, or the request cannot be sent.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request may or may not have been sent.
    pub async fn oneway(self) -> Result<(), RpcError> {
        self.send(true, None).0.await.map(|_| ())
    }

    /// Makes the call and waits for its answer, on a thread outside any runtime: the thread blocks, the
    /// invoker's runtime does the work.
    ///
    /// ```
    /// # #[rpc_core::service(name = "doc.Adder")]
    /// # pub trait Adder {
    /// #     async fn add(&self, a: u32, b: u32) -> u32;
    /// # }
    /// # struct Plain;
    /// # impl Adder for Plain {
    /// #     async fn add(&self, a: u32, b: u32) -> u32 {
    /// #         a + b
    /// #     }
    /// # }
    /// # let runtime = tokio::runtime::Runtime::new().unwrap();
    /// # let adder = runtime.block_on(async { AdderClient::local(Plain) });
    /// let thread = std::thread::spawn(move || adder.add(1, 2).wait());
    /// assert_eq!(thread.join().unwrap(), Ok(3));
    /// ```
    ///
    /// # Errors
    /// Those of the call; `Unsupported`, not executed, on a thread that belongs to a runtime: await the call
    /// there.
    pub fn wait(self) -> Result<T, CallError<E>> {
        blocking::outside().map_err(CallError::Rpc)?;
        let dispatch = Arc::clone(&self.dispatch);
        let runtime = dispatch.tasks().map_err(CallError::Rpc)?.runtime();
        let deadline = self.deadline(now());
        blocking::wait(runtime, self.into_future(), deadline)
    }

    /// Starts the call now and returns the future of its answer. Dropping the future cancels the call.
    pub fn future(mut self) -> CallFuture<T, E> {
        let fallback = self.recovery.fallback.take();
        let (decode, dispatch) = (self.decode, Arc::clone(&self.dispatch));
        let (call, serializer) = self.send(false, None);
        let state = match dispatch.tasks() {
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

    /// Starts the call now and hands its outcome to `callback` on the invoker's `responseCallback` pool,
    /// where it may block. `Ok` means that it is called exactly once, however the call ends (an answer, the
    /// deadline, a lost connection, the invoker's shutdown). Callbacks run in no particular order.
    ///
    /// # Errors
    /// `Overloaded` if the pool has no free slot, or `Unavailable` without a runtime: nothing was sent and
    /// `callback` is dropped uncalled.
    pub fn callback<F>(self, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        self.dispatch.tasks()?;
        let slot = self.dispatch.callbacks().reserve()?;
        self.call_back(slot, callback)
    }

    /// Like [`Call::callback`], but waits for a free slot of the pool, at most as long as the call may take.
    ///
    /// # Errors
    /// `Overloaded` if no slot became free in that time: nothing was sent and `callback` is dropped uncalled.
    ///
    /// # Cancel safety
    /// If the future is dropped before it returns `Ok`, nothing was sent.
    pub async fn callback_wait<F>(mut self, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        self.dispatch.tasks()?;
        let deadline = self.deadline(now());
        let slot = self.dispatch.callbacks().reserve_until(deadline).await?;
        self.timeout = Some(deadline.saturating_duration_since(now()));
        self.call_back(slot, callback)
    }

    /// Makes the call at every instance of the service at once, each with its own outcome, in the order of
    /// their ids. The time-out applies to the whole.
    ///
    /// # Errors
    /// `Unavailable` if there is no instance: doing nothing is not a success.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the calls that have not ended.
    pub async fn broadcast(mut self) -> Result<Vec<Broadcast<T, E>>, RpcError> {
        let deadline = self.deadline(now());
        let instances = self.dispatch.instances(&self.route, deadline).await?;
        self.timeout = Some(deadline.saturating_duration_since(now()));
        let start = |instance: Arc<Instance>| (self.again().to(&instance).future(), instance);
        // All are started before the first is awaited.
        let started: Vec<_> = instances.into_iter().map(start).collect();
        let mut outcomes = Vec::with_capacity(started.len());
        for (call, instance) in started {
            let outcome = call.await;
            outcomes.push(Broadcast { instance, outcome });
        }
        Ok(outcomes)
    }

    /// The same call again. Parameters and attachment are shared, not copied.
    fn again(&self) -> Self {
        Self {
            dispatch: Arc::clone(&self.dispatch),
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

    fn call_back<F>(mut self, slot: Slot, callback: F) -> Result<(), RpcError>
    where
        F: FnOnce(Result<T, CallError<E>>) + Send + 'static,
        T: 'static,
        E: 'static,
    {
        let (decode, dispatch) = (self.decode, Arc::clone(&self.dispatch));
        let fallback = self.recovery.fallback.take();
        let tasks = dispatch.tasks()?;
        let (call, serializer) = self.send(false, None);
        let pending = slot.fill(move |answer| {
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
        let own = start.checked_add(self.timeout.unwrap_or_else(|| self.dispatch.timeout()));
        // A time-out beyond what the clock can express is as good as this one.
        let own = own.unwrap_or_else(|| start + Duration::from_secs(100 * 365 * 86_400));
        Context::current_deadline().map_or(own, |outer| own.min(outer))
    }

    /// The same, refused if its parameters are not a list: they would be read as a different number of
    /// parameters.
    pub(crate) fn checked(mut self) -> Self {
        let is_list = |params: &Bytes| match (&self.serializer, params.first()) {
            (SerializerRef::Msgpack, Some(0x90..=0x9f | 0xdc | 0xdd)) | (SerializerRef::Json, Some(b'[')) => {
                true
            }
            // The format of other serializers is unknown here.
            (SerializerRef::Named(_), _) => true,
            _ => false,
        };
        if self.params.as_ref().is_ok_and(|params| !is_list(params)) {
            let message = format!(
                "the parameters of `{}` are not a list with a value for each, as in `(\"ann\", 7)`",
                self.method.name
            );
            self.params = Err(RpcError::new(Code::BadRequest, Executed::No, message));
        }
        self
    }

    /// The call of a stream whose items go to `items`.
    pub(crate) fn begin(self, items: Items) -> (BoxFuture<'static, Answer>, SerializerRef) {
        self.send(false, Some(items))
    }

    /// The runtime on which the call's tasks run.
    pub(crate) fn runtime(&self) -> Result<Handle, RpcError> {
        self.dispatch.tasks().map(|tasks| tasks.runtime().clone())
    }

    /// How its answer is decoded.
    pub(crate) const fn decode(&self) -> Decode<T, E> {
        self.decode
    }

    /// The time-out of a call that does not set one.
    pub(crate) fn usual_timeout(&self) -> Duration {
        self.dispatch.timeout()
    }

    fn send(self, oneway: bool, items: Option<Items>) -> (BoxFuture<'static, Answer>, SerializerRef) {
        let started = now();
        let deadline = self.deadline(started);
        let serializer = self.serializer;
        let params = match self.params {
            Ok(params) => params,
            Err(error) => return (Box::pin(std::future::ready(Err(error))), serializer),
        };
        let mut meta = self.meta;
        let outer = Context::inherit(&mut meta, self.dispatch.propagated());
        let request = Request {
            route: self.route,
            method: self.method,
            serializer: serializer.clone(),
            params,
            attachment: self.attachment,
            meta,
            started,
            deadline,
            oneway,
            hash_key: self.hash_key,
            items,
            peer: None,
            cancelled: outer.clone(),
        };
        let call = Outgoing {
            request,
            target: self.target,
            failures: 0,
            fault_tolerance: self.recovery.fault_tolerance,
            within_retry: Context::within_retry(),
        };
        let call = self.dispatch.call(call);
        let call = match outer {
            None => call,
            Some(outer) => nested::within(outer, call),
        };
        (call, serializer)
    }
}
