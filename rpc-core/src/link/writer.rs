//! The task that writes one connection: it yields once, so that others add their frames, takes everything there is, and
//! gives it to the operating system in one call.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::outbox::{Batch, Outbox};

/// Slices in one vectored write.
const SLICES_MAX: usize = 64;
/// A reused buffer above this size is given back to the allocator.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;

/// Writes `outbox` to `write` until the queue is closed and empty, then closes the stream.
///
/// # Errors
/// What the operating system says, or `TimedOut` when the peer took nothing for `stall`: it does not read.
pub(crate) async fn write_all(
    outbox: &Outbox,
    mut write: Box<dyn AsyncWrite + Send + Unpin>,
    stall: Duration,
) -> io::Result<()> {
    let mut batch = Batch::default();
    let mut patience = Patience { stall, sleep: None };
    while let Some(urgent) = poll_fn(|cx| outbox.poll_ready(cx)).await {
        // The one yield is what coalesces: everybody who is about to send runs first (reference: peers.md, "The
        // lesson"). A frame that is alone has nobody to wait for.
        if !urgent {
            tokio::task::yield_now().await;
        }
        outbox.take(&mut batch);
        while !batch.is_empty() {
            let bytes = poll_fn(|cx| {
                let outcome = poll_write(write.as_mut(), cx, &batch);
                patience.check(cx, outcome)
            });
            let bytes = bytes.await?;
            if bytes == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            batch.advance(bytes);
            outbox.wrote(bytes);
        }
        if batch.small.capacity() > BUFFER_BYTES_KEPT {
            batch = Batch::default();
        }
    }
    write.shutdown().await
}

fn poll_write(
    write: &mut (dyn AsyncWrite + Send + Unpin),
    cx: &mut Context<'_>,
    batch: &Batch,
) -> Poll<io::Result<usize>> {
    let write = Pin::new(write);
    if batch.segments.is_empty() {
        return write.poll_write(cx, &batch.small);
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut used = 0;
    let small: &[u8] = &batch.small;
    let all = batch.segments.iter().map(|segment| &segment[..]).chain([small]);
    for (slice, bytes) in slices.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
        *slice = IoSlice::new(bytes);
        used += 1;
    }
    write.poll_write_vectored(cx, &slices[..used])
}

impl Batch {
    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let Some(front) = self.segments.front_mut() else {
                // A whole buffer is cleared in place, which keeps all of its room for the next batch.
                if bytes == self.small.len() {
                    self.small.clear();
                } else {
                    self.small.advance(bytes);
                }
                return;
            };
            if bytes < front.len() {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.segments.pop_front();
        }
    }
}

/// Ends a write that makes no progress. The timer exists only while a write waits.
struct Patience {
    stall: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn check(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.sleep = None;
            return write;
        }
        let until = Instant::now() + self.stall;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the peer read nothing for {:?}", self.stall),
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}
