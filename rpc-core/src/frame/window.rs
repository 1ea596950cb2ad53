//! STREAM_WINDOW: how much more of a stream its caller accepts.

use bytes::{BufMut, BytesMut};

/// Bytes of the body.
const BYTES: usize = 8;

/// Credit granted by a caller: this many more items, and this many more bytes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Items.
    pub items: u32,
    /// Bytes of their bodies.
    pub bytes: u32,
}

impl Window {
    /// Parses a frame's body; `None` unless it consists of exactly the two numbers.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.len() != BYTES {
            return None;
        }
        let (items, bytes) = body.split_first_chunk()?;
        Some(Self {
            items: u32::from_be_bytes(*items),
            bytes: u32::from_be_bytes(*bytes.first_chunk()?),
        })
    }

    pub(super) fn put(self, out: &mut BytesMut) {
        out.put_u32(self.items);
        out.put_u32(self.bytes);
    }
}
