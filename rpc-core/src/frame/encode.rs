//! Encodes frames, appended to a buffer that the caller reuses.

use bytes::{BufMut, BytesMut};

use super::header::{FIXED_BYTES, HEARTBEAT_ID, HEARTBEAT_NAME, Kind, MAGIC, Status, VERSION};
use super::hello::Hello;
use super::window::Window;

/// Position of the status in a frame.
const STATUS_AT: usize = 4;

/// A frame that is being written: its header is in the buffer, its envelope is appended next, its lengths are
/// filled in by [`Draft::finish`].
#[derive(Debug)]
#[must_use]
pub struct Draft {
    start: usize,
    body_at: usize,
    status: Status,
}

impl Draft {
    /// Appends the header. With [`Status::ATTACHMENT`] it reserves space for the envelope's length.
    ///
    /// # Panics
    /// If `name` is longer than a frame allows; serializers are checked when they are looked up.
    pub fn begin(out: &mut BytesMut, kind: Kind, status: Status, id: i64, name: &str) -> Self {
        let start = out.len();
        let name_bytes = u8::try_from(name.len()).ok().filter(|bytes| *bytes <= 32);
        let name_bytes = name_bytes.expect("a serializer's name has at most 32 bytes");
        out.reserve(FIXED_BYTES + 12 + name.len());
        out.put_u16(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(kind.number());
        out.put_u8(status.0);
        out.put_i64(id);
        out.put_i32(i32::from(name_bytes));
        out.put_slice(name.as_bytes());
        out.put_i32(0);
        let body_at = out.len();
        if status.has(Status::ATTACHMENT) {
            out.put_u32(0);
        }
        Self {
            start,
            body_at,
            status,
        }
    }

    /// Replaces the envelope in `out` by its compressed form from `pack`, if that makes the frame smaller;
    /// `name` is the compressor's. An envelope above `plain_bytes_max` is left unchanged, since the peer
    /// would refuse it.
    pub fn pack(
        &mut self,
        out: &mut BytesMut,
        plain_bytes_max: usize,
        name: &str,
        pack: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) {
        let envelope_at = self.envelope_at();
        let plain_bytes = out.len() - envelope_at;
        let (Ok(name_bytes), Ok(plain)) = (u8::try_from(name.len()), u32::try_from(plain_bytes)) else {
            return;
        };
        if plain_bytes > plain_bytes_max {
            return;
        }
        let packed = pack(&out[envelope_at..]);
        let Some(packed) = packed.filter(|packed| 1 + name.len() + 4 + packed.len() < plain_bytes) else {
            return;
        };
        out.truncate(envelope_at);
        out.put_u8(name_bytes);
        out.put_slice(name.as_bytes());
        out.put_u32(plain);
        out.put_slice(&packed);
        self.status = self.status.with(Status::COMPRESSED);
        out[self.start + STATUS_AT] = self.status.0;
    }

    /// Fills in the lengths; `attachment_bytes` more will follow the content of `out`. Returns the size of
    /// the whole frame.
    ///
    /// # Errors
    /// The length of the body, if it is above `body_bytes_max`; the frame is then removed from `out` again.
    pub fn finish(
        self,
        out: &mut BytesMut,
        attachment_bytes: usize,
        body_bytes_max: usize,
    ) -> Result<usize, usize> {
        let body_bytes = out.len() - self.body_at + attachment_bytes;
        let checked = i32::try_from(body_bytes).ok();
        let Some(checked) = checked.filter(|_fits| body_bytes <= body_bytes_max) else {
            out.truncate(self.start);
            return Err(body_bytes);
        };
        out[self.body_at - 4..self.body_at].copy_from_slice(&checked.to_be_bytes());
        if self.status.has(Status::ATTACHMENT) {
            let envelope = out.len() - self.envelope_at();
            let envelope = u32::try_from(envelope).unwrap_or(u32::MAX);
            out[self.body_at..self.body_at + 4].copy_from_slice(&envelope.to_be_bytes());
        }
        Ok(out.len() - self.start + attachment_bytes)
    }

    const fn envelope_at(&self) -> usize {
        let length_bytes = if self.status.has(Status::ATTACHMENT) { 4 } else { 0 };
        self.body_at + length_bytes
    }
}

/// Appends a ping.
pub fn ping(out: &mut BytesMut) {
    bare(out, Kind::Heartbeat, Status::PING, HEARTBEAT_ID, HEARTBEAT_NAME);
}

/// Appends a pong.
pub fn pong(out: &mut BytesMut) {
    bare(out, Kind::Heartbeat, Status::NONE, HEARTBEAT_ID, HEARTBEAT_NAME);
}

/// Appends a CANCEL of the call `id`.
pub fn cancel(out: &mut BytesMut, id: i64) {
    bare(out, Kind::Cancel, Status::NONE, id, "");
}

/// Appends a STREAM_WINDOW of the stream `id`.
pub fn window(out: &mut BytesMut, id: i64, window: Window) {
    let draft = Draft::begin(out, Kind::StreamWindow, Status::NONE, id, "");
    window.put(out);
    finish_small(draft, out);
}

/// Appends a GOAWAY.
pub fn go_away(out: &mut BytesMut) {
    bare(out, Kind::GoAway, Status::NONE, HEARTBEAT_ID, "");
}

/// Appends a HELLO.
pub fn hello(out: &mut BytesMut, hello: &Hello) {
    let draft = Draft::begin(out, Kind::Heartbeat, Status::HELLO, HEARTBEAT_ID, HEARTBEAT_NAME);
    out.put_slice(&hello.to_json());
    finish_small(draft, out);
}

fn bare(out: &mut BytesMut, kind: Kind, status: Status, id: i64, name: &str) {
    let draft = Draft::begin(out, kind, status, id, name);
    finish_small(draft, out);
}

fn finish_small(draft: Draft, out: &mut BytesMut) {
    // A body of our own making, far below any limit.
    let finished = draft.finish(out, 0, usize::MAX);
    debug_assert!(finished.is_ok(), "a control frame is small");
}
