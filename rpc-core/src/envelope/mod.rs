//! What a frame's body holds: the envelope around params and results. Pure: bytes in, values out.
//!
//! Two forms exist: msgpack's, for every serializer but `json`, and hc-rpc's own for `json`. docs/wire.md is the text.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::error::{Code, Executed, RpcError};
use crate::message::{Meta, Method, Request, Response};
use crate::serialize::SerializerRef;

/// A request as it arrived. Its route is still text of the envelope, `params` is a slice of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest<'a> {
    /// The service's name; of a `json` request the part after the last dot may be all there is.
    pub service: Cow<'a, str>,
    /// Its version.
    pub version: Cow<'a, str>,
    /// Its group.
    pub group: Cow<'a, str>,
    /// The method's name.
    pub method: Cow<'a, str>,
    /// How long the caller still waits; `None` if it did not say (a Java peer).
    pub timeout: Option<Duration>,
    /// Metadata.
    pub meta: Meta,
    /// The parameters, to be decoded by the serializer.
    pub params: Bytes,
}

/// Appends the envelope of `request` to `out`.
///
/// # Errors
/// `BadRequest` when it cannot be expressed: nothing was sent.
pub fn encode_request(request: &Request, time_left: Duration, out: &mut BytesMut) -> Result<(), RpcError> {
    let _ = (request, time_left, out);
    Err(RpcError::new(Code::Unsupported, Executed::No, "not yet"))
}

/// Reads the envelope of a request made with the serializer of this name.
///
/// # Errors
/// `BadRequest` or `TooLarge`, not executed.
pub fn decode_request<'a>(serializer: &str, envelope: &'a Bytes) -> Result<IncomingRequest<'a>, RpcError> {
    let _ = (serializer, envelope);
    Err(RpcError::new(Code::Unsupported, Executed::No, "not yet"))
}

/// Appends the envelope of an answer to `out`. `method` is the one called, if there is such a method; hc-rpc's envelope
/// names the result's class.
///
/// # Errors
/// The answer cannot be expressed; `out` is as it was.
pub fn encode_response(
    serializer: &SerializerRef,
    method: Option<&Method>,
    answer: &Result<Response, RpcError>,
    out: &mut BytesMut,
) -> Result<(), RpcError> {
    let _ = (serializer, method, answer, out);
    Err(RpcError::new(Code::Unsupported, Executed::No, "not yet"))
}

/// Reads the envelope of an answer; the attachment is the caller's to add.
///
/// # Errors
/// The failure that the envelope tells of, or `BadReply` when it cannot be read.
pub fn decode_response(serializer: &SerializerRef, envelope: &Bytes) -> Result<Response, RpcError> {
    let _ = (serializer, envelope);
    Err(RpcError::new(Code::Unsupported, Executed::No, "not yet"))
}
