//! Decodes frames. Fed with the bytes that the stream delivered, in any pieces; a malformed stream is a typed
//! error, after which the connection has to be closed, because the start of the next frame is unknown.

use bytes::{Buf, Bytes, BytesMut};

use super::header::{FIXED_BYTES, HEARTBEAT_ID, Kind, MAGIC, Name, Status, VERSION};
use crate::limits;

/// One received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: Kind,
    /// Its bits.
    pub status: Status,
    /// The id of the call it belongs to, -1 if none.
    pub id: i64,
    /// The name of the serializer.
    pub name: Name,
    /// The whole body; [`split_body`] splits it.
    pub body: Bytes,
}

/// Why a stream does not consist of frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It starts like HTTP.
    #[error("this is HTTP, but an hc-rpc frame was expected; the HTTP server has an address of its own")]
    Http,
    /// It starts like TLS.
    #[error(
        "this is TLS, but a plain hc-rpc frame was expected; one side has a TLS transport and the other has none"
    )]
    Tls,
    /// The first two bytes of a frame are wrong.
    #[error(
        "magic is {found:#06x}, expected 0x0010; the peer does not speak hc-rpc, or the stream is out of step"
    )]
    Magic {
        /// The value found.
        found: u16,
    },
    /// The third byte is wrong.
    #[error("frame version is {found}, expected 1; the peer speaks a newer protocol")]
    Version {
        /// The value found.
        found: u8,
    },
    /// The type is unknown.
    #[error("frame type is {found}, expected 0, 1, 2 or 16 to 20")]
    Kind {
        /// The value found.
        found: u8,
    },
    /// The status has bits that frames of this type do not have.
    #[error("status {found:#04x} is not one of {kind:?} frames")]
    Status {
        /// The frame's type.
        kind: Kind,
        /// The value found.
        found: u8,
    },
    /// A heartbeat or GOAWAY belongs to a call, or a CANCEL or a part of a stream to none.
    #[error("id {found} does not fit a {kind:?} frame")]
    Id {
        /// The frame's type.
        kind: Kind,
        /// The value found.
        found: i64,
    },
    /// The length of the serializer's name is negative or too large.
    #[error("a serializer name of {found} bytes, at most 32 are allowed")]
    NameLength {
        /// The value found.
        found: i32,
    },
    /// The serializer's name is not text.
    #[error("the serializer's name is not UTF-8")]
    Name,
    /// The length of the body is negative or too large.
    #[error("a body of {found} bytes, at most {max} are allowed")]
    BodyLength {
        /// The value found.
        found: i32,
        /// The limit.
        max: usize,
    },
}

/// The decoder of one stream. It only stores its limit and the size of the current frame, since the bytes
/// stay in the reader's buffer.
#[derive(Debug)]
pub struct Decoder {
    body_bytes_max: usize,
    frame_bytes: usize,
}

impl Decoder {
    /// Refuses bodies above `body_bytes_max`.
    #[must_use]
    pub const fn new(body_bytes_max: usize) -> Self {
        Self {
            body_bytes_max,
            frame_bytes: 0,
        }
    }

    /// Changes the limit, for example when a peer has shown its token.
    pub const fn limit(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Size of the whole frame at the start of the buffer, once its lengths are known and checked; else 0.
    /// Valid after [`Decoder::next`] returned `None`; a reader may reserve this much.
    #[must_use]
    pub const fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Removes the next whole frame from the front of `buffer`; `None` if more bytes are needed. Every field
    /// is checked as soon as it has arrived, so that nothing waits for the rest of a bad stream.
    ///
    /// # Errors
    /// [`FrameError`]: close the connection. `buffer` is left unchanged.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        self.frame_bytes = 0;
        let bytes = &buffer[..];
        check_start(bytes)?;
        let (Some(&kind), Some(&status), Some(id)) = (
            bytes.get(3),
            bytes.get(4),
            bytes.get(5..).and_then(<[u8]>::first_chunk),
        ) else {
            return Ok(None);
        };
        let kind = Kind::from_number(kind).ok_or(FrameError::Kind { found: kind })?;
        let (status, id) = (Status(status), i64::from_be_bytes(*id));
        check_id(kind, id)?;
        let Some(name_bytes) = length(&bytes[FIXED_BYTES..], limits::SERIALIZER_NAME_BYTES_MAX)
            .map_err(|found| FrameError::NameLength { found })?
        else {
            return Ok(None);
        };
        let name_at = FIXED_BYTES + 4;
        let Some(after_name) = bytes.get(name_at + name_bytes..) else {
            return Ok(None);
        };
        let max = self.body_bytes_max;
        let Some(body_bytes) =
            length(after_name, max).map_err(|found| FrameError::BodyLength { found, max })?
        else {
            return Ok(None);
        };
        let body_at = name_at + name_bytes + 4;
        if bytes.len() < body_at + body_bytes {
            self.frame_bytes = body_at + body_bytes;
            return Ok(None);
        }
        let name = Name::from_bytes(&bytes[name_at..name_at + name_bytes]).ok_or(FrameError::Name)?;
        buffer.advance(body_at);
        let body = if body_bytes == 0 {
            Bytes::new()
        } else {
            buffer.split_to(body_bytes).freeze()
        };
        Ok(Some(Frame {
            kind,
            status,
            id,
            name,
            body,
        }))
    }
}

/// Magic, version, type and status, each checked as soon as it has arrived.
fn check_start(bytes: &[u8]) -> Result<(), FrameError> {
    if let Some(magic) = bytes.first_chunk::<2>() {
        let found = u16::from_be_bytes(*magic);
        if found != MAGIC {
            return Err(match *magic {
                start if looks_like_http(start) => FrameError::Http,
                // A handshake or an alert; in all versions of TLS the version on the wire is 3.x (RFC 8446,
                // 5.1).
                [0x15 | 0x16, 0x03] => FrameError::Tls,
                _ => FrameError::Magic { found },
            });
        }
    }
    if let Some(&found) = bytes.get(2)
        && found != VERSION
    {
        return Err(FrameError::Version { found });
    }
    if let Some(&found) = bytes.get(3) {
        let kind = Kind::from_number(found).ok_or(FrameError::Kind { found })?;
        if let Some(&found) = bytes.get(4)
            && !Status(found).allowed(kind)
        {
            return Err(FrameError::Status { kind, found });
        }
    }
    Ok(())
}

const fn check_id(kind: Kind, found: i64) -> Result<(), FrameError> {
    let fits = match kind {
        Kind::Request | Kind::Response => true,
        Kind::Heartbeat | Kind::GoAway => found == HEARTBEAT_ID,
        Kind::Cancel | Kind::StreamItem | Kind::StreamEnd | Kind::StreamWindow => found != HEARTBEAT_ID,
    };
    if fits {
        Ok(())
    } else {
        Err(FrameError::Id { kind, found })
    }
}

/// A signed 32-bit length at the start of `bytes`: `None` if it is incomplete, `Err` if outside `0..=max`.
fn length(bytes: &[u8], max: usize) -> Result<Option<usize>, i32> {
    let Some(length) = bytes.first_chunk().map(|four| i32::from_be_bytes(*four)) else {
        return Ok(None);
    };
    match usize::try_from(length) {
        Ok(checked) if checked <= max => Ok(Some(checked)),
        _ => Err(length),
    }
}

/// Whether a stream starts like a request or an answer of HTTP/1 or HTTP/2.
fn looks_like_http(start: [u8; 2]) -> bool {
    const STARTS: [&[u8; 2]; 9] = [b"GE", b"PO", b"HE", b"PU", b"DE", b"OP", b"PA", b"PR", b"HT"];
    STARTS.contains(&&start)
}

/// The parts of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The serializer's envelope; compressed if `compressor` is set.
    pub envelope: Bytes,
    /// The part that no serializer touches.
    pub attachment: Bytes,
    /// Name of the compressor of the envelope, and its plain length, which has been checked against the
    /// limit.
    pub compressor: Option<(String, usize)>,
}

/// Why a body cannot be split: this call fails, the stream continues.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The envelope's length exceeds the body, or is cut off.
    #[error("an envelope of {envelope} bytes in a body of {body} bytes")]
    Attachment {
        /// The announced length (0 if it is cut off).
        envelope: usize,
        /// Size of the body.
        body: usize,
    },
    /// The compressor's name or the plain length is cut off or is not text.
    #[error("the head of the compressed envelope is damaged")]
    Compressed,
    /// The plain length is above the limit.
    #[error("a compressed envelope of {plain} plain bytes, at most {max} are allowed")]
    PlainLength {
        /// The announced length.
        plain: usize,
        /// The limit.
        max: usize,
    },
}

/// The size of `body` once split and decompressed, as it announces itself; nothing is checked.
#[must_use]
pub fn unpacked_bytes(status: Status, body: &[u8]) -> usize {
    if !status.has(Status::COMPRESSED) {
        return body.len();
    }
    let envelope = body.get(if status.has(Status::ATTACHMENT) { 4 } else { 0 }..);
    let head = envelope.and_then(|envelope| {
        let (name_bytes, rest) = envelope.split_first()?;
        rest.get(usize::from(*name_bytes)..)?.first_chunk()
    });
    let plain = head.map_or(0, |plain| u32::from_be_bytes(*plain));
    body.len()
        .saturating_add(usize::try_from(plain).unwrap_or(usize::MAX))
}

/// Splits `body` as `status` says, without copying.
///
/// # Errors
/// [`BodyError`].
pub fn split_body(status: Status, mut body: Bytes, plain_bytes_max: usize) -> Result<Body, BodyError> {
    let mut attachment = Bytes::new();
    if status.has(Status::ATTACHMENT) {
        let all = body.len();
        let envelope = body.first_chunk().map(|four| u32::from_be_bytes(*four));
        let envelope = envelope.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if all < 4 || all - 4 < envelope {
            return Err(BodyError::Attachment {
                envelope: if all < 4 { 0 } else { envelope },
                body: all,
            });
        }
        body.advance(4);
        attachment = body.split_off(envelope);
    }
    let mut compressor = None;
    if status.has(Status::COMPRESSED) {
        let name_bytes = usize::from(*body.first().ok_or(BodyError::Compressed)?);
        if body.len() < 1 + name_bytes + 4 {
            return Err(BodyError::Compressed);
        }
        body.advance(1);
        let name = body.split_to(name_bytes);
        let name = std::str::from_utf8(&name).map_err(|_not_text| BodyError::Compressed)?;
        let plain = usize::try_from(body.get_u32()).unwrap_or(usize::MAX);
        if plain > plain_bytes_max {
            return Err(BodyError::PlainLength {
                plain,
                max: plain_bytes_max,
            });
        }
        compressor = Some((name.to_owned(), plain));
    }
    Ok(Body {
        envelope: body,
        attachment,
        compressor,
    })
}
