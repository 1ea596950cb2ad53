//! The content of a frame's body: the envelope around params and results. Pure: bytes in, values out.
//!
//! There are two forms: msgpack's, for every serializer but `json`, and hc-rpc's own for `json`. docs/wire.md
//! specifies both.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::error::{Code, Executed, RpcError};
use crate::limits::META_PAIRS_MAX;
use crate::message::{Meta, Method, Outcome, Request, Response};
use crate::serialize::SerializerRef;

pub(crate) mod guard;
mod json;
mod msgpack;

use msgpack::Embedding;

/// A received request. Its route borrows the text of the envelope; `params` is a slice of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest<'a> {
    /// The service's name; a `json` request may contain only the part after the last dot.
    pub service: Cow<'a, str>,
    /// Its version.
    pub version: Cow<'a, str>,
    /// Its group.
    pub group: Cow<'a, str>,
    /// The method's name.
    pub method: Cow<'a, str>,
    /// How long the caller still waits; `None` if not stated (a Java peer).
    pub timeout: Option<Duration>,
    /// Metadata.
    pub meta: Meta,
    /// The parameters, still to be decoded by the serializer.
    pub params: Bytes,
}

/// Appends the envelope of `request` to `out`.
///
/// # Errors
/// `BadRequest` if it cannot be expressed: `out` is unchanged.
pub fn encode_request(request: &Request, time_left: Duration, out: &mut BytesMut) -> Result<(), RpcError> {
    if request.meta.0.len() > META_PAIRS_MAX {
        let message = format!(
            "{} pairs of metadata; at most {META_PAIRS_MAX} are allowed",
            request.meta.0.len()
        );
        return Err(RpcError::new(Code::TooLarge, Executed::No, message));
    }
    let start = out.len();
    match Form::of(&request.serializer) {
        Form::Msgpack(embedding) => msgpack::encode_request(request, embedding, time_left, out),
        Form::Json => json::encode_request(request, time_left, out).map_err(|error| {
            out.truncate(start);
            let message = format!("the request cannot be encoded: {error}");
            RpcError::new(Code::BadRequest, Executed::No, message)
        })?,
    }
    Ok(())
}

/// The rest of an envelope, sent from its own memory: copying a large value would cost more than the extra
/// pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Apart<'a> {
    /// Follows the appended bytes.
    pub(crate) value: &'a Bytes,
    /// Follows the value.
    pub(crate) tail: &'static [u8],
}

impl Apart<'_> {
    /// Size of the rest.
    pub(crate) fn len(&self) -> usize {
        self.value.len() + self.tail.len()
    }

    /// The rest as pieces.
    pub(crate) fn pieces(&self) -> [Bytes; 2] {
        [self.value.clone(), Bytes::from_static(self.tail)]
    }
}

/// Values of at least this size are not copied into the envelope, where it allows that: the outbox copies
/// values of a few kilobytes once, and larger ones never.
const APART_BYTES_MIN: usize = 1024;

/// Like [`encode_request`], but large parameters may be left out; they are then part of the returned rest.
///
/// # Errors
/// `BadRequest` if it cannot be expressed: `out` is unchanged.
pub(crate) fn begin_request<'a>(
    request: &'a Request,
    time_left: Duration,
    out: &mut BytesMut,
) -> Result<Option<Apart<'a>>, RpcError> {
    match Form::of(&request.serializer) {
        Form::Msgpack(embedding)
            if request.params.len() >= APART_BYTES_MIN && request.meta.0.len() <= META_PAIRS_MAX =>
        {
            Ok(Some(msgpack::begin_request(request, embedding, time_left, out)))
        }
        _ => encode_request(request, time_left, out).map(|()| None),
    }
}

/// Like [`encode_response`], but a large result may be left out; it is then part of the returned rest.
///
/// # Errors
/// The answer cannot be expressed; `out` is unchanged.
pub(crate) fn begin_response<'a>(
    serializer: &SerializerRef,
    method: Option<&Method>,
    answer: &'a Result<Response, RpcError>,
    out: &mut BytesMut,
) -> Result<Option<Apart<'a>>, RpcError> {
    match (Form::of(serializer), answer) {
        (
            Form::Msgpack(embedding),
            Ok(Response {
                outcome: Outcome::Ok(result),
                meta,
                ..
            }),
        ) if result.len() >= APART_BYTES_MIN && meta.is_empty() => {
            Ok(Some(msgpack::begin_response(result, embedding, out)))
        }
        _ => encode_response(serializer, method, answer, out).map(|()| None),
    }
}

/// Decodes the envelope of a request made with the serializer of this name.
///
/// # Errors
/// `BadRequest`, not executed.
pub fn decode_request<'a>(serializer: &str, envelope: &'a Bytes) -> Result<IncomingRequest<'a>, RpcError> {
    let decoded = match Form::named(serializer) {
        Form::Msgpack(embedding) => {
            msgpack::decode_request(envelope, embedding).map_err(|error| error.to_string())
        }
        Form::Json => json::decode_request(envelope),
    };
    decoded.map_err(|reason| {
        let message = format!("the request cannot be read: {reason}");
        RpcError::new(Code::BadRequest, Executed::No, message)
    })
}

/// Appends the envelope of an answer to `out`. `method` is the one called, if it exists; hc-rpc's envelope
/// names the result's class.
///
/// # Errors
/// The answer cannot be expressed; `out` is unchanged.
pub fn encode_response(
    serializer: &SerializerRef,
    method: Option<&Method>,
    answer: &Result<Response, RpcError>,
    out: &mut BytesMut,
) -> Result<(), RpcError> {
    let start = out.len();
    match Form::of(serializer) {
        Form::Msgpack(embedding) => msgpack::encode_response(answer, embedding, out),
        Form::Json => json::encode_response(answer, method, out).map_err(|error| {
            out.truncate(start);
            let message = format!("the answer cannot be encoded: {error}");
            RpcError::new(Code::Internal, Executed::Yes, message)
        })?,
    }
    Ok(())
}

/// Decodes the envelope of an answer; the caller adds the attachment.
///
/// # Errors
/// The failure that the envelope contains, or `BadReply` if it cannot be decoded.
pub fn decode_response(serializer: &SerializerRef, envelope: &Bytes) -> Result<Response, RpcError> {
    let decoded = match Form::of(serializer) {
        Form::Msgpack(embedding) => {
            msgpack::decode_response(envelope, embedding).map_err(|error| error.to_string())
        }
        Form::Json => json::decode_response(envelope),
    };
    decoded.unwrap_or_else(|reason| {
        let message = format!("the answer cannot be read: {reason}");
        Err(RpcError::new(Code::BadReply, Executed::Yes, message))
    })
}

/// The form of a serializer's envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Msgpack(Embedding),
    Json,
}

impl Form {
    fn of(serializer: &SerializerRef) -> Self {
        match serializer {
            SerializerRef::Msgpack => Self::Msgpack(Embedding::Inline),
            SerializerRef::Json => Self::Json,
            SerializerRef::Named(_) => Self::Msgpack(Embedding::Bin),
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "msgpack" => Self::Msgpack(Embedding::Inline),
            "json" => Self::Json,
            _ => Self::Msgpack(Embedding::Bin),
        }
    }
}

const fn executed_number(executed: Executed) -> u8 {
    match executed {
        Executed::No => 0,
        Executed::Maybe => 1,
        Executed::Yes => 2,
    }
}

/// With an unknown value, the call may have been executed.
const fn executed_from_number(number: u64) -> Executed {
    match number {
        0 => Executed::No,
        2 => Executed::Yes,
        _ => Executed::Maybe,
    }
}

const fn executed_name(executed: Executed) -> &'static str {
    match executed {
        Executed::No => "no",
        Executed::Maybe => "maybe",
        Executed::Yes => "yes",
    }
}

fn executed_from_name(name: &str) -> Executed {
    match name {
        "no" => Executed::No,
        "yes" => Executed::Yes,
        _ => Executed::Maybe,
    }
}

/// Rounded up: otherwise the advice would be to retry too early.
fn retry_after_ms(after: Duration) -> u64 {
    u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
