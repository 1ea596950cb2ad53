//! The reading side of a connection: one buffer, filled from the stream and emptied frame by frame without copying.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::frame::{Decoder, Frame, FrameError};

/// The buffer of a quiet connection.
const START_BYTES: usize = 8 * 1024;
/// The buffer of a busy one: what one read can bring, and the most that a small body held back keeps alive.
const BUSY_BYTES: usize = 256 * 1024;
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
            // What has come of it is copied into the new buffer, so with room for the frames behind it, if they are
            // small enough: else every one of them would be copied.
            let frames = if missing < self.chunk { self.chunk } else { missing };
            // For a very large frame at most as much again as has come.
            let believed = self.buffer.len().max(BELIEVED_BYTES);
            self.buffer.reserve(frames.min(believed));
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

    /// Whether a frame has begun that is not whole, once [`Inbox::next`] has given all that are.
    pub(crate) fn is_in_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame that has been read.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.decoder.next(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncWriteExt as _, duplex};

    use tokio::task::JoinSet;

    use super::*;
    use crate::frame::{Draft, Kind, Status};

    fn frames(bodies: &[usize]) -> BytesMut {
        let mut out = BytesMut::new();
        for (id, bytes) in (0_i64..).zip(bodies) {
            let draft = Draft::begin(&mut out, Kind::Request, Status::REQUEST, id, "msgpack");
            out.extend_from_slice(&vec![7; *bytes]);
            draft.finish(&mut out, 0, usize::MAX).unwrap();
        }
        out
    }

    /// Reads `sent`, which comes in pieces of at most `piece` bytes; the bodies' lengths and the number of reads.
    async fn read(bodies: &[usize], piece: usize) -> (Vec<usize>, usize) {
        let (near, mut far) = duplex(piece);
        let sent = frames(bodies);
        let mut writer = JoinSet::new();
        writer.spawn(async move { far.write_all(&sent).await.unwrap() });
        let mut inbox = Inbox::new(Box::new(near), 16 * 1024 * 1024);
        let (mut found, mut reads) = (Vec::new(), 0);
        while std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap() > 0 {
            reads += 1;
            while let Some(frame) = inbox.next().unwrap() {
                assert!(frame.body.iter().all(|byte| *byte == 7));
                found.push(frame.body.len());
            }
        }
        writer.join_next().await.unwrap().unwrap();
        (found, reads)
    }

    #[tokio::test]
    async fn frames_of_all_sizes_come_through_in_order() {
        let bodies = [
            0, 1, 100, 70_000, 3, 300_000, 8_000, 2_500_000, 5, 65_536, 65_536, 65_536,
        ];
        for piece in [1000, 64 * 1024, 4 * 1024 * 1024] {
            assert_eq!(read(&bodies, piece).await.0, bodies);
        }
    }

    #[tokio::test]
    async fn one_read_brings_several_large_frames() {
        let bodies = [65_536; 64];
        let (found, reads) = read(&bodies, 16 * 1024 * 1024).await;
        assert_eq!(found, bodies);
        assert!(reads <= 32, "{reads} reads for {} frames", bodies.len());
    }
}
