//! Calls without a service's trait: names and values that are known only at run time, for gateways and tools.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
pub use serde_json::Value;

use crate::call::{Call, Stub};
use crate::dispatch::Answer;
use crate::error::CallError;
use crate::invoker::Invoker;
use crate::message::{Attachment, Method, MethodRef, Outcome, Response};
use crate::serialize::SerializerRef;
use crate::service;
use crate::stream::{Item, StreamCall, decode_item};

/// Calls one service by the names of its methods. Values are whatever JSON can express, with any serializer:
/// [`Value`], or a type of your own with [`Generic::call_as`].
///
/// ```
/// # use rpc_core::{CallError, Invoker, Provider};
/// # use rpc_core::generic::Value;
/// #[rpc_core::service(name = "doc.Greeter")]
/// pub trait Greeter {
///     async fn greet(&self, name: String, times: u32) -> Result<String, String>;
/// }
///
/// struct Polite;
/// impl Greeter for Polite {
///     async fn greet(&self, name: String, times: u32) -> Result<String, String> {
///         if times > 9 { Err(format!("{times} times is too often")) } else { Ok(format!("hello {name}")) }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let provider = Provider::builder().serve(GreeterServer::new(Polite)).start().await?;
/// let invoker = Invoker::builder().direct([provider.local_addr()]).build().await?;
/// let greeter = invoker.generic("doc.Greeter");
/// assert_eq!(greeter.call("greet", &("ann", 1)).await?, Value::from("hello ann"));
/// let Err(CallError::App(error)) = greeter.call("greet", &("ann", 10)).await else { panic!() };
/// assert_eq!(error.details, Value::from("10 times is too often"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Generic {
    stub: Stub,
    method: Method,
}

/// A method's own error, as a value.
#[derive(Debug, Clone, PartialEq, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AppError {
    /// The error in words, as the provider sent it.
    pub message: String,
    /// The error itself; null if it cannot be expressed.
    pub details: Value,
}

impl Generic {
    pub(crate) fn new(invoker: &Invoker, service: &str) -> Self {
        Self {
            stub: Stub::refer(invoker, service),
            method: Method {
                name: Cow::Borrowed(""),
                idempotent: false,
                blocking: false,
                in_flight_max: None,
                long_poll: false,
                streaming: false,
                parameter_types: Cow::Borrowed(&[]),
                result_type: Cow::Borrowed("java.lang.Object"),
            },
        }
    }

    /// The version of the service to call; default `1.0`.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.stub = self.stub.version(version.into());
        self
    }

    /// The group of the service to call; default `default`.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.stub = self.stub.group(group.into());
        self
    }

    /// Uses this serializer instead of the invoker's.
    pub fn serializer(mut self, serializer: SerializerRef) -> Self {
        self.stub = self.stub.serializer(serializer);
        self
    }

    /// Declares that the methods called through this value are idempotent: they may be repeated after an
    /// attempt that may have been executed.
    pub const fn idempotent(mut self) -> Self {
        self.method.idempotent = true;
        self
    }

    /// The Java classes of the parameters, by which a Java provider finds the method: `java.lang.String`,
    /// `int`, ..
    pub fn parameter_types<S: Into<String>>(mut self, classes: impl IntoIterator<Item = S>) -> Self {
        let owned = |class: S| Cow::Owned(class.into());
        self.method.parameter_types = classes.into_iter().map(owned).collect();
        self
    }

    /// A call of `method` with `params`: a tuple or list with one value per parameter, `[(); 0]` for none. It
    /// has the options and forms of any [`Call`].
    pub fn call<P: Serialize>(&self, method: impl Into<String>, params: &P) -> Call<Value, AppError> {
        self.stub
            .call(self.named(method, false), params, Attachment::new(), decode_any)
            .checked()
    }

    /// The same with a result type of your own.
    pub fn call_as<T: DeserializeOwned, P: Serialize>(
        &self,
        method: impl Into<String>,
        params: &P,
    ) -> Call<T, AppError> {
        self.stub
            .call(self.named(method, false), params, Attachment::new(), decode::<T>)
            .checked()
    }

    /// A call of a method that returns a stream.
    pub fn stream<P: Serialize>(&self, method: impl Into<String>, params: &P) -> StreamCall<Value, AppError> {
        let call = self
            .stub
            .call(self.named(method, true), params, Attachment::new(), decode::<()>);
        StreamCall::new(call.checked(), decode_any_item)
    }

    fn named(&self, name: impl Into<String>, streaming: bool) -> MethodRef {
        MethodRef::Named(Arc::new(Method {
            name: Cow::Owned(name.into()),
            streaming,
            ..self.method.clone()
        }))
    }
}

fn decode<T: DeserializeOwned>(serializer: &SerializerRef, answer: Answer) -> Result<T, CallError<AppError>> {
    match answer {
        Ok(Response {
            outcome: Outcome::App { details, message },
            ..
        }) => {
            let details = serializer.decode::<Any>(&details);
            let details = details.map_or(Value::Null, |details| details.0);
            Err(CallError::App(AppError { message, details }))
        }
        other => service::decode_value(serializer, other),
    }
}

fn decode_any(serializer: &SerializerRef, answer: Answer) -> Result<Value, CallError<AppError>> {
    decode::<Any>(serializer, answer).map(|value| value.0)
}

fn decode_any_item(serializer: &SerializerRef, item: Item) -> Result<Value, CallError<AppError>> {
    decode_item::<Any, _>(serializer, item).map(|value| value.0)
}

/// Any value that JSON can express. More is accepted than by [`Value`] itself: bytes become a list of
/// numbers, and map keys that are numbers or booleans become text, as `serde_json` writes both.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor).map(Any)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can express")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON has no infinity and no NaN: they become null, as in serde_json.
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Any(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some((Any(key), Any(value))) = map.next_entry()? {
            let key = match key {
                Value::String(key) => key,
                key @ (Value::Number(_) | Value::Bool(_)) => key.to_string(),
                _ => {
                    return Err(serde::de::Error::custom(
                        "a map's key is not text, a number or a boolean",
                    ));
                }
            };
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}
