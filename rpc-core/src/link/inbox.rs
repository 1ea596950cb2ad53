//! The reading side of a connection: one buffer, filled from the stream and emptied frame by frame without copying.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::frame::{Decoder, Frame, FrameError};

/// The buffer of a quiet connection.
const START_BYTES: usize = 8 * 1024;
/// The buffer of a busy one.
const BUSY_BYTES: usize = 128 * 1024;
/// A frame's announced length is believed up to here; beyond, the buffer grows with what really came.
const BELIEVED_BYTES: usize = 1024 * 1024;

pub(crate) struct Inbox {
    read: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    decoder: Decoder,
    chunk: usize,
}

impl Inbox {
    pub(crate) fn new(read: Box<dyn AsyncRead + Send + Unpin>, body_bytes_max: usize) -> Self {
        Self {
            read,
            buffer: BytesMut::new(),
            decoder: Decoder::new(body_bytes_max),
            chunk: START_BYTES,
        }
    }

    /// Changes the bound on a frame's body.
    pub(crate) fn limit(&mut self, body_bytes_max: usize) {
        self.decoder.limit(body_bytes_max);
    }

    /// Reads once; 0 bytes = the peer has closed.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let spare = self.buffer.capacity() - self.buffer.len();
        let missing = self.decoder.frame_bytes().saturating_sub(self.buffer.len());
        if missing > spare {
            // An exact buffer for a large frame; for a very large one at most as much again as has come.
            let believed = self.buffer.len().max(BELIEVED_BYTES);
            self.buffer.reserve(missing.min(believed));
        } else if spare < START_BYTES / 2 && missing == 0 {
            self.buffer.reserve(self.chunk);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let outcome = pin!(self.read.read_buf(&mut self.buffer)).poll(cx);
        if let Poll::Ready(Ok(bytes)) = outcome
            && bytes == room
            && self.chunk < BUSY_BYTES
        {
            self.chunk *= 2;
        }
        outcome
    }

    /// The next whole frame that has been read.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.decoder.next(&mut self.buffer)
    }
}
