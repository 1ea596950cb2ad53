//! The msgpack envelope: arrays, with the parameters last, so that they are a slice of the received bytes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::guard::{self, Malformed};
use super::{Apart, IncomingRequest};
use crate::error::{Code, Executed, RpcError};
use crate::limits::META_PAIRS_MAX;
use crate::message::{Attachment, Meta, Outcome, Request, Response};

const REQUEST_FIELDS: u8 = 7;
const RESPONSE_FIELDS: u8 = 3;
const ERROR_FIELDS: u8 = 5;
const NIL: u8 = 0xc0;

/// How a serialized value is embedded in the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Embedding {
    /// Unchanged: it is msgpack, too.
    Inline,
    /// As one bin.
    Bin,
}

/// Why an envelope cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the envelope's `{field}`: {reason}")]
    Malformed { field: &'static str, reason: Malformed },
    #[error("the envelope's `{field}` is not {wanted}, but marker {found:#04x}")]
    Type {
        field: &'static str,
        wanted: &'static str,
        found: u8,
    },
    #[error("the envelope's `{field}` is not UTF-8")]
    Utf8 { field: &'static str },
    #[error("the envelope is not an array of {wanted}")]
    Fields { wanted: u8 },
    #[error("{pairs} pairs of metadata; at most {META_PAIRS_MAX} are allowed")]
    Meta { pairs: u64 },
}

/// Appends a request.
pub(super) fn encode_request(
    request: &Request,
    embedding: Embedding,
    time_left: Duration,
    out: &mut BytesMut,
) {
    request_head(request, request.params.len(), time_left, out);
    put_value(out, embedding, &request.params);
}

/// Appends a request up to its parameters, which are the returned rest.
pub(super) fn begin_request<'a>(
    request: &'a Request,
    embedding: Embedding,
    time_left: Duration,
    out: &mut BytesMut,
) -> Apart<'a> {
    request_head(request, 0, time_left, out);
    put_value_head(out, embedding, &request.params);
    Apart {
        value: &request.params,
        tail: &[],
    }
}

fn request_head(request: &Request, params_bytes: usize, time_left: Duration, out: &mut BytesMut) {
    let route = &request.route;
    let texts = route.service.len() + route.version.len() + route.group.len() + request.method.name.len();
    out.reserve(texts + params_bytes + 48);
    out.put_u8(0x90 | REQUEST_FIELDS);
    put_str(out, &route.service);
    put_str(out, &route.version);
    put_str(out, &route.group);
    put_str(out, &request.method.name);
    put_uint(out, u64::try_from(time_left.as_micros()).unwrap_or(u64::MAX));
    put_meta(out, &request.meta);
}

/// Reads a request.
pub(super) fn decode_request(
    envelope: &Bytes,
    embedding: Embedding,
) -> Result<IncomingRequest<'_>, Unreadable> {
    let mut reader = Reader::new(envelope);
    reader.fields(REQUEST_FIELDS)?;
    Ok(IncomingRequest {
        service: Cow::Borrowed(reader.text("service")?),
        version: Cow::Borrowed(reader.text("version")?),
        group: Cow::Borrowed(reader.text("group")?),
        method: Cow::Borrowed(reader.text("method")?),
        timeout: reader
            .optional("timeout", Reader::uint)?
            .map(Duration::from_micros),
        meta: reader.optional("meta", Reader::meta)?.unwrap_or_default(),
        params: reader.last("params", embedding)?,
    })
}

/// Appends an answer.
pub(super) fn encode_response(answer: &Result<Response, RpcError>, embedding: Embedding, out: &mut BytesMut) {
    out.put_u8(0x90 | RESPONSE_FIELDS);
    match answer {
        Ok(response) => {
            match &response.outcome {
                Outcome::Ok(result) => {
                    put_value(out, embedding, result);
                    out.put_u8(NIL);
                }
                Outcome::App { details, message } => {
                    out.put_u8(NIL);
                    let error = RpcError::new(Code::App, Executed::Yes, message.as_str());
                    put_error(out, &error, Some((embedding, details)));
                }
            }
            put_meta(out, &response.meta);
        }
        Err(error) => {
            out.put_u8(NIL);
            put_error(out, error, None);
            out.put_u8(NIL);
        }
    }
}

/// Appends a successful answer without metadata up to its result.
pub(super) fn begin_response<'a>(result: &'a Bytes, embedding: Embedding, out: &mut BytesMut) -> Apart<'a> {
    out.put_u8(0x90 | RESPONSE_FIELDS);
    put_value_head(out, embedding, result);
    Apart {
        value: result,
        // No error, no metadata.
        tail: &[NIL, NIL],
    }
}

/// Reads an answer.
pub(super) fn decode_response(
    envelope: &Bytes,
    embedding: Embedding,
) -> Result<Result<Response, RpcError>, Unreadable> {
    let mut reader = Reader::new(envelope);
    reader.fields(RESPONSE_FIELDS)?;
    let result = reader.value("result", embedding)?;
    let error = reader.optional("error", |reader, _| reader.error(embedding))?;
    let meta = reader.optional("meta", Reader::meta)?.unwrap_or_default();
    reader.end()?;
    let outcome = match error {
        None => Outcome::Ok(result),
        Some((error, Some(details))) if error.code == Code::App => Outcome::App {
            details,
            message: error.message,
        },
        Some((error, _)) => return Ok(Err(error)),
    };
    Ok(Ok(Response {
        outcome,
        attachment: Attachment::new(),
        meta,
    }))
}

fn put_error(out: &mut BytesMut, error: &RpcError, details: Option<(Embedding, &Bytes)>) {
    out.put_u8(0x90 | ERROR_FIELDS);
    put_uint(out, u64::from(error.code.number()));
    put_str(out, &error.message);
    put_uint(out, u64::from(super::executed_number(error.executed)));
    match error.retry_after {
        Some(after) => put_uint(out, super::retry_after_ms(after)),
        None => out.put_u8(NIL),
    }
    match details {
        Some((embedding, details)) => put_value(out, embedding, details),
        None => out.put_u8(NIL),
    }
}

fn put_value(out: &mut BytesMut, embedding: Embedding, value: &Bytes) {
    put_value_head(out, embedding, value);
    out.extend_from_slice(value);
}

/// The bytes that precede `value`.
fn put_value_head(out: &mut BytesMut, embedding: Embedding, value: &Bytes) {
    match embedding {
        // An answer to a oneway call, or of a hand-written service, may contain nothing at all.
        Embedding::Inline if value.is_empty() => out.put_u8(NIL),
        Embedding::Inline => {}
        Embedding::Bin => put_length(out, value.len(), [0xc4, 0xc5, 0xc6]),
    }
}

fn put_meta(out: &mut BytesMut, meta: &Meta) {
    if meta.is_empty() {
        return out.put_u8(NIL);
    }
    match u8::try_from(meta.0.len()) {
        Ok(pairs @ 0..=15) => out.put_u8(0x80 | pairs),
        _ => {
            out.put_u8(0xde);
            out.put_u16(u16::try_from(meta.0.len()).unwrap_or(u16::MAX));
        }
    }
    for (key, value) in &meta.0 {
        put_str(out, key);
        put_str(out, value);
    }
}

fn put_str(out: &mut BytesMut, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length @ 0..=31) => out.put_u8(0xa0 | length),
        _ => put_length(out, text.len(), [0xd9, 0xda, 0xdb]),
    }
    out.extend_from_slice(text.as_bytes());
}

/// A length after the shortest of the markers for 8, 16 and 32 bits.
fn put_length(out: &mut BytesMut, length: usize, markers: [u8; 3]) {
    if let Ok(length) = u8::try_from(length) {
        out.put_u8(markers[0]);
        out.put_u8(length);
    } else if let Ok(length) = u16::try_from(length) {
        out.put_u8(markers[1]);
        out.put_u16(length);
    } else {
        out.put_u8(markers[2]);
        // The frame's own limit is far below this.
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

fn put_uint(out: &mut BytesMut, number: u64) {
    if let Ok(number) = u8::try_from(number) {
        if number > 0x7f {
            out.put_u8(0xcc);
        }
        out.put_u8(number);
    } else if let Ok(number) = u16::try_from(number) {
        out.put_u8(0xcd);
        out.put_u16(number);
    } else if let Ok(number) = u32::try_from(number) {
        out.put_u8(0xce);
        out.put_u32(number);
    } else {
        out.put_u8(0xcf);
        out.put_u64(number);
    }
}

/// A position in an envelope.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    fn marker(&self, field: &'static str) -> Result<u8, Unreadable> {
        let reason = Malformed::Truncated;
        self.bytes
            .get(self.at)
            .copied()
            .ok_or(Unreadable::Malformed { field, reason })
    }

    /// An array of exactly `wanted` fields.
    fn fields(&mut self, wanted: u8) -> Result<(), Unreadable> {
        match self.bytes.get(self.at) {
            Some(marker) if *marker == 0x90 | wanted => {
                self.at += 1;
                Ok(())
            }
            _ => Err(Unreadable::Fields { wanted }),
        }
    }

    /// `None` for nil, else the value that `read` returns.
    fn optional<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Result<T, Unreadable>,
    ) -> Result<Option<T>, Unreadable> {
        if self.marker(field)? == NIL {
            self.at += 1;
            return Ok(None);
        }
        read(self, field).map(Some)
    }

    /// The length after a marker: `fix` is the marker of short ones with its mask, `markers` those of 8, 16
    /// and 32 bits.
    fn sized(
        &mut self,
        field: &'static str,
        wanted: &'static str,
        fix: Option<(u8, u8)>,
        markers: [Option<u8>; 3],
    ) -> Result<u64, Unreadable> {
        let marker = self.marker(field)?;
        if let Some((base, mask)) = fix
            && marker & !mask == base
        {
            self.at += 1;
            return Ok(u64::from(marker & mask));
        }
        let Some(index) = markers.iter().position(|known| *known == Some(marker)) else {
            return Err(Unreadable::Type {
                field,
                wanted,
                found: marker,
            });
        };
        let size = 1 << index;
        let length = guard::length(self.bytes, self.at + 1, size);
        let length = length.map_err(|reason| Unreadable::Malformed { field, reason })?;
        self.at += 1 + size;
        Ok(length)
    }

    /// The next `length` bytes.
    fn take(&mut self, field: &'static str, length: u64) -> Result<std::ops::Range<usize>, Unreadable> {
        let start = self.at;
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| start.checked_add(length));
        match end.filter(|end| *end <= self.bytes.len()) {
            Some(end) => {
                self.at = end;
                Ok(start..end)
            }
            None => Err(Unreadable::Malformed {
                field,
                reason: Malformed::Truncated,
            }),
        }
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, Unreadable> {
        let markers = [Some(0xd9), Some(0xda), Some(0xdb)];
        let length = self.sized(field, "a string", Some((0xa0, 0x1f)), markers)?;
        let range = self.take(field, length)?;
        std::str::from_utf8(&self.bytes[range]).map_err(|_| Unreadable::Utf8 { field })
    }

    fn uint(&mut self, field: &'static str) -> Result<u64, Unreadable> {
        let marker = self.marker(field)?;
        let size = match marker {
            0x00..=0x7f => {
                self.at += 1;
                return Ok(u64::from(marker));
            }
            0xcc => 1,
            0xcd => 2,
            0xce => 4,
            0xcf => 8,
            found => {
                let wanted = "an unsigned integer";
                return Err(Unreadable::Type { field, wanted, found });
            }
        };
        let number = guard::length(self.bytes, self.at + 1, size);
        let number = number.map_err(|reason| Unreadable::Malformed { field, reason })?;
        self.at += 1 + size;
        Ok(number)
    }

    fn meta(&mut self, field: &'static str) -> Result<Meta, Unreadable> {
        let pairs = self.sized(field, "a map", Some((0x80, 0x0f)), [None, Some(0xde), Some(0xdf)])?;
        if pairs > META_PAIRS_MAX as u64 {
            return Err(Unreadable::Meta { pairs });
        }
        let pair = |reader: &mut Self| Ok((reader.text(field)?.to_owned(), reader.text(field)?.to_owned()));
        (0..pairs).map(|_| pair(self)).collect::<Result<_, _>>().map(Meta)
    }

    fn error(&mut self, embedding: Embedding) -> Result<(RpcError, Option<Bytes>), Unreadable> {
        self.fields(ERROR_FIELDS)?;
        let code = u8::try_from(self.uint("code")?).map_or(Code::Internal, Code::from_number);
        let message = self.text("message")?.to_owned();
        let executed = super::executed_from_number(self.uint("executed")?);
        let mut error = RpcError::new(code, executed, message);
        error.retry_after = self
            .optional("retry_after", Self::uint)?
            .map(Duration::from_millis);
        let details = self.value("details", embedding)?;
        // A method's error may itself be nil, as `()` is; only an `App` has details.
        Ok((error, (code == Code::App).then_some(details)))
    }

    /// A serialized value, as a slice.
    fn value(&mut self, field: &'static str, embedding: Embedding) -> Result<Bytes, Unreadable> {
        if embedding == Embedding::Bin {
            let bin = self.optional(field, Self::bin)?;
            return Ok(bin.map_or_else(Bytes::new, |range| self.bytes.slice(range)));
        }
        let start = self.at;
        self.at = guard::msgpack_end(self.bytes, start)
            .map_err(|reason| Unreadable::Malformed { field, reason })?;
        Ok(self.bytes.slice(start..self.at))
    }

    fn bin(&mut self, field: &'static str) -> Result<std::ops::Range<usize>, Unreadable> {
        let length = self.sized(field, "a bin", None, [Some(0xc4), Some(0xc5), Some(0xc6)])?;
        self.take(field, length)
    }

    /// The serialized value that ends the envelope, as a slice. An inline one is checked when it is decoded.
    fn last(&mut self, field: &'static str, embedding: Embedding) -> Result<Bytes, Unreadable> {
        if embedding == Embedding::Inline {
            let rest = self.bytes.slice(self.at..);
            self.at = self.bytes.len();
            return Ok(rest);
        }
        let range = self.bin(field)?;
        self.end()?;
        Ok(self.bytes.slice(range))
    }

    fn end(&self) -> Result<(), Unreadable> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            bytes => Err(Unreadable::Malformed {
                field: "end",
                reason: Malformed::Trailing { bytes },
            }),
        }
    }
}
