//! Used by the code that `#[service]` generates: from a request to a handler and back, and from an answer to
//! a typed value. A handler's panic is caught here.

use std::any::Any;
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::futures::TaskLocalFuture;

use crate::BoxFuture;
use crate::context::Context;
use crate::dispatch::{Answer, Dispatch, Outgoing, Tasks};
use crate::error::{CallError, Code, Executed, RpcError};
use crate::invoker::callback_pool::CallbackPool;
use crate::message::{Attachment, Meta, MethodRef, Outcome, Request, Response, Route, Service};
use crate::registry::Instance;
use crate::serialize::{self, SerializerRef};
use crate::stream::Items;
use crate::trace;

/// Decodes the parameters and returns the future that runs the handler and encodes its outcome.
pub fn handle<P, T, E, H, F>(
    request: Request,
    words: fn(&E) -> String,
    handler: H,
) -> BoxFuture<'static, Answer>
where
    P: DeserializeOwned,
    T: Serialize + Send + 'static,
    E: Serialize + Send + 'static,
    H: FnOnce(P, Attachment) -> F,
    F: Future<Output = Result<(T, Attachment), CallError<E>>> + Send + 'static,
{
    let method = request.method;
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        request.serializer.decode::<P>(&request.params)
    }));
    let params = match decoded {
        Ok(Ok(params)) => params,
        Ok(Err(error)) => {
            let message = format!("the parameters of `{}` cannot be decoded: {error}", method.name);
            return failed(RpcError::new(Code::BadRequest, Executed::No, message));
        }
        Err(panic) => return failed(panicked(&method.name, &*panic)),
    };
    let mut meta = request.meta;
    if !meta.is_empty() {
        trace::mend(&mut meta);
    }
    let context = Context {
        deadline: Some(request.deadline),
        meta,
        peer: request.peer,
        cancelled: request.cancelled,
    };
    Box::pin(Handling {
        handler: context.scope(handler(params, request.attachment)),
        serializer: request.serializer,
        words,
        method,
    })
}

/// The answer to an index without a method.
pub fn no_such_method(request: &Request) -> BoxFuture<'static, Answer> {
    let message = format!(
        "`{}` has no method `{}`",
        request.route.service, request.method.name
    );
    failed(RpcError::new(Code::NotFound, Executed::No, message))
}

fn failed(error: RpcError) -> BoxFuture<'static, Answer> {
    Box::pin(std::future::ready(Err(error)))
}

fn panicked(method: &str, panic: &(dyn Any + Send)) -> RpcError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    // The peer learns that it happened; the details stay in our log.
    tracing::error!(method, panic = text.unwrap_or("(no text)"), "handler panicked");
    let message = format!("the handler of `{method}` panicked; the provider's log says more");
    RpcError::new(Code::Internal, Executed::Yes, message)
}

pin_project! {
    /// A running handler: sets its context around every poll, catches its panic, encodes its outcome.
    struct Handling<F, E> {
        #[pin]
        handler: TaskLocalFuture<Context, F>,
        serializer: SerializerRef,
        words: fn(&E) -> String,
        method: MethodRef,
    }
}

impl<F, T, E> Future for Handling<F, E>
where
    F: Future<Output = Result<(T, Attachment), CallError<E>>>,
    T: Serialize,
    E: Serialize,
{
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Answer> {
        let this = self.project();
        let (serializer, words) = (&*this.serializer, *this.words);
        // After a panic, the handler is only dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let outcome = ready!(this.handler.poll(context));
            Poll::Ready(answer(serializer, outcome, words))
        }));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&this.method.name, &*panic))))
    }
}

fn answer<T: Serialize, E: Serialize>(
    serializer: &SerializerRef,
    outcome: Result<(T, Attachment), CallError<E>>,
    words: fn(&E) -> String,
) -> Answer {
    let unencodable = |error: serialize::SerializeError| {
        let message = format!("the answer cannot be encoded: {error}");
        RpcError::new(Code::Internal, Executed::Yes, message)
    };
    let (outcome, attachment) = match outcome {
        Ok((value, attachment)) => {
            let result = serialize::to_bytes(serializer, &value).map_err(unencodable)?;
            (Outcome::Ok(result), attachment)
        }
        Err(CallError::App(error)) => {
            let message = words(&error);
            // A value that the serializer cannot express (with `raw`, anything but bytes) arrives in words.
            let details = serialize::to_bytes(serializer, &error)
                .or_else(|_| serialize::to_bytes(serializer, &()))
                .map_err(unencodable)?;
            (Outcome::App { details, message }, Attachment::new())
        }
        Err(CallError::Rpc(error)) => return Err(error),
    };
    Ok(Response {
        outcome,
        attachment,
        meta: Meta::default(),
    })
}

/// Converts an answer to a method's value. An attachment that the caller does not expect is dropped.
pub fn decode_value<T, E>(serializer: &SerializerRef, answer: Answer) -> Result<T, CallError<E>>
where
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    decode_pair(serializer, answer).map(|(value, _)| value)
}

/// Converts an answer to a method's value and attachment.
pub fn decode_pair<T, E>(serializer: &SerializerRef, answer: Answer) -> Result<(T, Attachment), CallError<E>>
where
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    let response = match answer {
        Ok(response) => response,
        Err(error) if error.ignored => return empty(serializer, error),
        Err(error) => return Err(CallError::Rpc(error)),
    };
    match response.outcome {
        Outcome::Ok(result) => match serializer.decode(&result) {
            Ok(value) => Ok((value, response.attachment)),
            Err(error) => {
                let message = format!("the answer cannot be decoded: {error}");
                Err(CallError::Rpc(RpcError::new(
                    Code::BadReply,
                    Executed::Yes,
                    message,
                )))
            }
        },
        Outcome::App { details, message } => Err(match serializer.decode(&details) {
            Ok(error) => CallError::App(error),
            // The peer declares another error type, or is a Java one: its words are all there is.
            Err(_) => CallError::Rpc(RpcError::new(Code::App, Executed::Yes, message)),
        }),
    }
}

/// The value of an ignored failure: what the type reads from nil, as `()`, `Option` and similar types do.
fn empty<T: DeserializeOwned, E>(
    serializer: &SerializerRef,
    mut error: RpcError,
) -> Result<(T, Attachment), CallError<E>> {
    let nil = serialize::to_bytes(serializer, &()).ok();
    match nil.and_then(|nil| serializer.decode(&nil).ok()) {
        Some(value) => Ok((value, Attachment::new())),
        None => {
            error.ignored = false;
            Err(CallError::Rpc(error))
        }
    }
}

/// Puts a method's error into words by the best means that its type offers: the macro calls
/// `(&&&Words(&error)).words()`, and method lookup takes the first of these traits that fits.
#[derive(Debug)]
pub struct Words<'a, E>(pub &'a E);

/// First choice.
pub trait ByDisplay {
    /// The error in words.
    fn words(&self) -> String;
}

/// Second choice.
pub trait ByDebug {
    /// The error in words.
    fn words(&self) -> String;
}

/// Last resort.
pub trait ByName {
    /// The error in words.
    fn words(&self) -> String;
}

impl<E: Display> ByDisplay for &&Words<'_, E> {
    fn words(&self) -> String {
        self.0.to_string()
    }
}

impl<E: Debug> ByDebug for &Words<'_, E> {
    fn words(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl<E> ByName for Words<'_, E> {
    fn words(&self) -> String {
        std::any::type_name::<E>().to_owned()
    }
}

/// Calls a service of this process: encoded, limited and caught as over a network.
pub(crate) struct Local {
    service: Arc<dyn Service>,
    serializer: SerializerRef,
    tasks: OnceLock<Tasks>,
    callbacks: OnceLock<CallbackPool>,
}

impl Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    pub(crate) fn new(service: Arc<dyn Service>) -> Self {
        Self {
            service,
            serializer: SerializerRef::Msgpack,
            // If created within a runtime, it can also be called from outside it.
            tasks: Tasks::current().map_or_else(|_| OnceLock::new(), OnceLock::from),
            callbacks: OnceLock::new(),
        }
    }
}

impl Dispatch for Local {
    fn serializer(&self) -> &SerializerRef {
        &self.serializer
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tasks(&self) -> Result<&Tasks, RpcError> {
        match self.tasks.get() {
            Some(tasks) => Ok(tasks),
            None => {
                let tasks = Tasks::current()?;
                Ok(self.tasks.get_or_init(|| tasks))
            }
        }
    }

    fn callbacks(&self) -> &CallbackPool {
        self.callbacks.get_or_init(CallbackPool::default)
    }

    fn instances<'a>(
        &'a self,
        _: &'a Arc<Route>,
        _: Instant,
    ) -> BoxFuture<'a, Result<Vec<Arc<Instance>>, RpcError>> {
        Box::pin(std::future::ready(Ok(vec![Arc::new(Instance::at("local"))])))
    }

    fn call(self: Arc<Self>, call: Outgoing) -> BoxFuture<'static, Answer> {
        let request = call.request;
        let methods = self.service.methods();
        let Some(index) = methods
            .iter()
            .position(|method| method.name == request.method.name)
        else {
            return no_such_method(&request);
        };
        if let Some(inlet) = request.items.as_ref().and_then(Items::as_inlet) {
            // The handler writes into the caller's buffer itself.
            let _window = inlet.open();
        }
        let (deadline, oneway) = (request.deadline.into(), request.oneway);
        let handling = self.service.call(index, request);
        let call = Box::pin(async move {
            tokio::time::timeout_at(deadline, handling)
                .await
                .unwrap_or_else(|_| {
                    let message = "the call's time ran out in the handler";
                    Err(RpcError::new(Code::DeadlineExceeded, Executed::Maybe, message))
                })
        });
        if !oneway {
            return call;
        }
        Box::pin(async move {
            self.tasks()?.spawn_then(call, |answer| {
                if let Err(error) = answer {
                    tracing::debug!(%error, "oneway call failed");
                }
            });
            Ok(Response::empty())
        })
    }
}
