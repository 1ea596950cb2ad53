//! hc-rpc's own envelope, for `json`: readable by a Java hc-rpc peer, with additional fields that it ignores.
//!
//! Its pitfalls: `parameters` and `parameterTypes` are never null, `resultClazz` always names a class that a
//! JVM can load, and `exception` must be what Jackson can read as a `java.lang.Exception`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::IncomingRequest;
use super::guard;
use crate::error::{Code, Executed, RpcError};
use crate::limits::META_PAIRS_MAX;
use crate::message::{Attachment, Meta, Method, Outcome, Request, Response};

/// A class that Jackson can always load, also for a null.
const ANY_CLASS: &str = "java.lang.Object";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestOut<'a> {
    version: &'a str,
    clazz_name: &'a str,
    method_name: &'a str,
    parameters: &'a RawValue,
    parameter_types: &'a [Cow<'a, str>],
    service_attachments: Empty,
    client_attachments: Empty,
    group: &'a str,
    timeout_us: u64,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    meta: Pairs<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestIn<'a> {
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    clazz_name: Cow<'a, str>,
    #[serde(borrow)]
    method_name: Cow<'a, str>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    group: Option<Cow<'a, str>>,
    timeout_us: Option<u64>,
    #[serde(default, deserialize_with = "meta")]
    meta: Meta,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseOut<'a> {
    result: Option<&'a RawValue>,
    result_clazz: &'a str,
    msg: Option<&'a str>,
    exception: Option<ExceptionOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorOut<'a>>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    meta: Pairs<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExceptionOut<'a> {
    message: &'a str,
    cause: Option<Empty>,
    stack_trace: [Empty; 0],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorOut<'a> {
    code: u8,
    message: &'a str,
    executed: &'static str,
    retry_after_ms: Option<u64>,
    details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ResponseIn<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    msg: Option<String>,
    exception: Option<ExceptionIn>,
    #[serde(borrow)]
    error: Option<ErrorIn<'a>>,
    #[serde(default, deserialize_with = "meta")]
    meta: Meta,
}

/// Only the message of a Java exception. Nested no deeper than the guard allows.
#[derive(Deserialize)]
struct ExceptionIn {
    message: Option<String>,
    cause: Option<Box<Self>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorIn<'a> {
    code: u64,
    message: String,
    executed: String,
    retry_after_ms: Option<u64>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

/// `{}`.
#[derive(Serialize)]
struct Empty {}

/// Metadata as an object.
struct Pairs<'a>(&'a Meta);

impl Pairs<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.0.iter().map(|(key, value)| (key, value)))
    }
}

fn meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Meta, D::Error> {
    struct Object;

    impl<'de> Visitor<'de> for Object {
        type Value = Meta;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings, or null")
        }

        fn visit_unit<E>(self) -> Result<Meta, E> {
            Ok(Meta::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Meta, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                if pairs.len() == META_PAIRS_MAX {
                    let message = format!("more than {META_PAIRS_MAX} pairs of metadata");
                    return Err(A::Error::custom(message));
                }
                pairs.push(pair);
            }
            Ok(Meta(pairs))
        }
    }

    deserializer.deserialize_any(Object)
}

/// Appends a request.
pub(super) fn encode_request(
    request: &Request,
    time_left: Duration,
    out: &mut BytesMut,
) -> serde_json::Result<()> {
    let envelope = RequestOut {
        version: &request.route.version,
        clazz_name: request.route.simple_name(),
        method_name: &request.method.name,
        parameters: raw(&request.params)?,
        parameter_types: &request.method.parameter_types,
        service_attachments: Empty {},
        client_attachments: Empty {},
        group: &request.route.group,
        timeout_us: u64::try_from(time_left.as_micros()).unwrap_or(u64::MAX),
        meta: Pairs(&request.meta),
    };
    serde_json::to_writer(out.writer(), &envelope)
}

/// Reads a request.
pub(super) fn decode_request(envelope: &Bytes) -> Result<IncomingRequest<'_>, String> {
    guard::json(envelope).map_err(|error| error.to_string())?;
    let request: RequestIn<'_> = serde_json::from_slice(envelope).map_err(|error| error.to_string())?;
    Ok(IncomingRequest {
        service: request.clazz_name,
        version: request.version.unwrap_or(Cow::Borrowed("1.0")),
        group: request.group.unwrap_or(Cow::Borrowed("default")),
        method: request.method_name,
        timeout: request.timeout_us.map(Duration::from_micros),
        meta: request.meta,
        params: slice(envelope, request.parameters, b"[]"),
    })
}

/// Appends an answer.
pub(super) fn encode_response(
    answer: &Result<Response, RpcError>,
    method: Option<&Method>,
    out: &mut BytesMut,
) -> serde_json::Result<()> {
    let none = Meta::default();
    let mut envelope = ResponseOut {
        result: None,
        result_clazz: ANY_CLASS,
        msg: None,
        exception: None,
        error: None,
        meta: Pairs(&none),
    };
    let failed = |message, code: Code, executed, retry_after: Option<Duration>, details| {
        let exception = ExceptionOut {
            message,
            cause: None,
            stack_trace: [],
        };
        let error = ErrorOut {
            code: code.number(),
            message,
            executed: super::executed_name(executed),
            retry_after_ms: retry_after.map(super::retry_after_ms),
            details,
        };
        (Some(message), Some(exception), Some(error))
    };
    match answer {
        Ok(response) => {
            envelope.meta = Pairs(&response.meta);
            match &response.outcome {
                Outcome::Ok(result) if result.is_empty() => {}
                Outcome::Ok(result) => {
                    envelope.result = Some(raw(result)?);
                    envelope.result_clazz = method.map_or(ANY_CLASS, |method| &*method.result_type);
                }
                Outcome::App { details, message } => {
                    let details = Some(raw(details)?);
                    (envelope.msg, envelope.exception, envelope.error) =
                        failed(message, Code::App, Executed::Yes, None, details);
                }
            }
        }
        Err(error) => {
            (envelope.msg, envelope.exception, envelope.error) = failed(
                &error.message,
                error.code,
                error.executed,
                error.retry_after,
                None,
            );
        }
    }
    serde_json::to_writer(out.writer(), &envelope)
}

/// Decodes an answer of a Rust or Java peer.
pub(super) fn decode_response(envelope: &Bytes) -> Result<Result<Response, RpcError>, String> {
    guard::json(envelope).map_err(|error| error.to_string())?;
    let response: ResponseIn<'_> = serde_json::from_slice(envelope).map_err(|error| error.to_string())?;
    let outcome = match (response.error, response.exception) {
        (Some(error), _) => {
            let code = u8::try_from(error.code).map_or(Code::Internal, Code::from_number);
            if code != Code::App {
                let executed = super::executed_from_name(&error.executed);
                let mut failure = RpcError::new(code, executed, error.message);
                failure.retry_after = error.retry_after_ms.map(Duration::from_millis);
                return Ok(Err(failure));
            }
            Outcome::App {
                details: slice(envelope, error.details, b"null"),
                message: error.message,
            }
        }
        // A Java peer: whatever its handler threw. Its class has no meaning here.
        (None, Some(exception)) => {
            let words = exception
                .words()
                .or(response.msg)
                .unwrap_or_else(|| "(no message)".to_owned());
            let message = format!("the provider's handler threw an exception: {words}");
            return Ok(Err(RpcError::new(Code::App, Executed::Yes, message)));
        }
        (None, None) => Outcome::Ok(slice(envelope, response.result, b"null")),
    };
    Ok(Ok(Response {
        outcome,
        attachment: Attachment::new(),
        meta: response.meta,
    }))
}

impl ExceptionIn {
    /// The outermost message; reflection wraps exceptions in one without a message.
    fn words(self) -> Option<String> {
        let mut level = Some(self);
        while let Some(exception) = level {
            if exception.message.is_some() {
                return exception.message;
            }
            level = exception.cause.map(|cause| *cause);
        }
        None
    }
}

/// Serialized JSON as a part of a larger text.
fn raw(json: &Bytes) -> serde_json::Result<&RawValue> {
    serde_json::from_slice(json)
}

/// The slice of `envelope` that contains `value`, else `absent`.
fn slice(envelope: &Bytes, value: Option<&RawValue>, absent: &'static [u8]) -> Bytes {
    value.map_or(Bytes::from_static(absent), |value| {
        envelope.slice_ref(value.get().as_bytes())
    })
}
