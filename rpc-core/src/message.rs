//! The interface between the two halves of the crate: a call as the API half (`call`, `service`, the macro)
//! creates and receives it, and as the wire half (`invoker`, `provider`, `transport`) moves it. Values are
//! already serialized here.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::context::Cancellation;
use crate::serialize::SerializerRef;
use crate::stream::Items;

/// Where a service is found: its name, version and group. One per stub and one per served service, shared by
/// all its calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// The name given to `#[service(name = ..)]`.
    pub service: String,
    /// Default `1.0`.
    pub version: String,
    /// Default `default`.
    pub group: String,
}

impl Route {
    /// `service` in version `1.0` and group `default`.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            version: "1.0".to_owned(),
            group: "default".to_owned(),
        }
    }

    /// The part of the service's name after the last dot: what hc-rpc's `json` envelope calls `clazzName`.
    #[must_use]
    pub fn simple_name(&self) -> &str {
        self.service.rsplit('.').next().unwrap_or(&self.service)
    }
}

/// One method as the macro describes it, or as a generic call names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// Its name.
    pub name: Cow<'static, str>,
    /// `#[rpc(idempotent)]`: may be repeated after an attempt that may have been executed.
    pub idempotent: bool,
    /// `#[rpc(blocking)]`: runs on the bounded blocking pool.
    pub blocking: bool,
    /// `#[rpc(in_flight_max = 8)]`: at most this many of its calls run at once in a provider.
    pub in_flight_max: Option<u32>,
    /// `#[rpc(long_poll)]`: its calls wait for something to happen, so their duration says nothing about the
    /// method.
    pub long_poll: bool,
    /// Returns a stream of items.
    pub streaming: bool,
    /// Java class names of the parameters, for hc-rpc's `json` envelope.
    pub parameter_types: Cow<'static, [Cow<'static, str>]>,
    /// Java class name of the result, for hc-rpc's `json` envelope.
    pub result_type: Cow<'static, str>,
}

/// The method of a request: an entry of a service's table, or one that was named at run time and is freed
/// with its last call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MethodRef {
    /// From a table that the macro generated.
    Known(&'static Method),
    /// Named by a generic call.
    Named(Arc<Method>),
}

impl std::ops::Deref for MethodRef {
    type Target = Method;

    fn deref(&self) -> &Method {
        match self {
            Self::Known(method) => method,
            Self::Named(method) => method,
        }
    }
}

impl From<&'static Method> for MethodRef {
    fn from(method: &'static Method) -> Self {
        Self::Known(method)
    }
}

impl From<Arc<Method>> for MethodRef {
    fn from(method: Arc<Method>) -> Self {
        Self::Named(method)
    }
}

/// Raw bytes that travel next to the envelope and that no serializer touches: sent from a list without
/// copying, received as one piece.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    parts: Vec<Bytes>,
    held: Held,
}

/// A value that an [`Attachment`] keeps alive until its bytes no longer take memory.
pub trait Hold: Send + Sync {
    /// Whether others wait for it now. If so, a peer that takes nothing of the answer for one second is
    /// disconnected.
    fn is_contended(&self) -> bool;
}

/// The value that is dropped together with the bytes. It is no part of their content: all are equal.
#[derive(Clone, Default)]
struct Held(Option<Arc<dyn Hold>>);

impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Held {}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "something" } else { "nothing" })
    }
}

impl Attachment {
    /// No bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            parts: Vec::new(),
            held: Held(None),
        }
    }

    /// Keeps a value alive while these bytes take memory: as part of an answer, until its last byte was given
    /// to the operating system or the connection has ended, otherwise until the attachment is dropped. Meant
    /// for a permit of a budget.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use rpc_core::{Attachment, Hold};
    ///
    /// struct Permit;
    ///
    /// impl Hold for Permit {
    ///     fn is_contended(&self) -> bool {
    ///         false
    ///     }
    /// }
    ///
    /// let permit = Arc::new(Permit);
    /// let mut attachment = Attachment::from(bytes::Bytes::from_static(b"large"));
    /// attachment.hold(permit.clone());
    /// assert_eq!(Arc::strong_count(&permit), 2);
    /// drop(attachment);
    /// assert_eq!(Arc::strong_count(&permit), 1);
    /// ```
    pub fn hold(&mut self, held: Arc<dyn Hold>) {
        self.held = Held(Some(held));
    }

    /// The value last passed to [`Attachment::hold`].
    pub(crate) const fn held(&self) -> Option<&Arc<dyn Hold>> {
        self.held.0.as_ref()
    }

    /// Appends a part without copying it.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.parts.push(part);
        }
    }

    /// The parts in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Number of bytes in all parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// All bytes as one piece: free if there is at most one part (always so for a received attachment), a
    /// copy otherwise.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        match self.parts.len() {
            0 => Bytes::new(),
            1 => self.parts.swap_remove(0),
            _ => {
                let mut all = BytesMut::with_capacity(self.len());
                self.parts.iter().for_each(|part| all.extend_from_slice(part));
                all.freeze()
            }
        }
    }
}

impl From<Bytes> for Attachment {
    fn from(part: Bytes) -> Self {
        let mut attachment = Self::new();
        attachment.push(part);
        attachment
    }
}

impl From<Vec<Bytes>> for Attachment {
    fn from(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        Self {
            parts,
            held: Held(None),
        }
    }
}

/// Metadata of a call: a few `key = value` pairs, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta(pub Vec<(String, String)>);

impl Meta {
    /// The first value under `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One request, the same on both sides.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which service.
    pub route: Arc<Route>,
    /// Which method of it.
    pub method: MethodRef,
    /// How `params` (and the answer) are serialized.
    pub serializer: SerializerRef,
    /// The parameters as one serialized tuple: for `msgpack` an array, for `json` the text of an array.
    pub params: Bytes,
    /// Bytes sent next to the parameters.
    pub attachment: Attachment,
    /// Metadata.
    pub meta: Meta,
    /// When it started: the call, or its newest attempt; at the provider, when the request arrived. Read once
    /// and passed on, since reading the clock is not free.
    pub started: Instant,
    /// When the answer is no longer wanted. Sent as the time left.
    pub deadline: Instant,
    /// Whether no answer is wanted.
    pub oneway: bool,
    /// The key that a consistent-hash balancer uses.
    pub hash_key: Option<u64>,
    /// Where the items go, if the answer is a stream of them.
    pub items: Option<Items>,
    /// The caller's address; `None` at the invoker and within a process.
    pub peer: Option<Arc<str>>,
    /// At the provider, cancelled when the caller has gone. At the invoker, where dropping the call cancels
    /// it, the signal of the call being served, if a handler makes this one.
    pub cancelled: Option<Cancellation>,
}

/// The handler's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its result, serialized.
    Ok(Bytes),
    /// Its own typed error, serialized, and the same in words.
    App {
        /// The serialized error value.
        details: Bytes,
        /// For logs and for peers that do not know the type.
        message: String,
    },
}

/// One answer. Failures of the framework are an [`crate::RpcError`] instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Result or the method's own error.
    pub outcome: Outcome,
    /// Bytes sent next to the result.
    pub attachment: Attachment,
    /// Metadata sent back with the answer.
    pub meta: Meta,
}

impl Response {
    /// The answer to a oneway request.
    pub(crate) const fn empty() -> Self {
        Self {
            outcome: Outcome::Ok(Bytes::new()),
            attachment: Attachment::new(),
            meta: Meta(Vec::new()),
        }
    }
}

/// A served service: the macro implements it for `GreeterServer<T>`.
pub trait Service: Send + Sync + 'static {
    /// Its methods; their indexes are the argument of [`Service::call`].
    fn methods(&self) -> &'static [Method];

    /// Decodes the parameters, runs the handler, encodes the outcome. The future owns everything it needs, so
    /// that it can be spawned as it is.
    fn call(
        &self,
        method: usize,
        request: Request,
    ) -> crate::BoxFuture<'static, Result<Response, crate::RpcError>>;
}

/// A service and its route: the argument of `Provider::builder().serve(..)`.
#[derive(Clone)]
pub struct Served {
    /// Name, version, group.
    pub route: Arc<Route>,
    /// The implementation.
    pub service: Arc<dyn Service>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}
