//! The task that writes one connection: it yields once so that others can add their frames, then takes
//! everything queued and gives it to the operating system in one call. A single frame does not need it: see
//! `outbox/in_place.rs`.

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
/// Write-stall limit while other connections wait for memory.
const CONTENDED_STALL: Duration = Duration::from_secs(1);
/// A reused buffer above this size is given back to the allocator.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;

/// Writes `outbox` to `write` until the queue is closed and empty, then closes the stream.
///
/// # Errors
/// The operating system's error, or `TimedOut` if the peer took nothing for `stall`, or for one second while
/// others wait for the memory of the unwritten bytes.
pub(crate) async fn write_all(
    outbox: &Outbox,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    stall: Duration,
) -> io::Result<()> {
    let line = outbox.lay(write);
    let mut batch = Batch::default();
    let mut timer = StallTimer { stall, waits: None };
    while let Some(urgent) = poll_fn(|cx| poll_ready(outbox, cx)).await? {
        // This one yield is what batches frames: every task that is about to send runs first. A single frame
        // has nothing to wait for.
        if !urgent {
            tokio::task::yield_now().await;
        }
        outbox.take(&mut batch);
        while !batch.is_empty() {
            let bytes = poll_fn(|cx| {
                let outcome = outbox.poll_line(|write| poll_write(write, cx, &batch));
                timer.check(cx, outbox, outcome)
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
    match line.take() {
        Some(mut write) => write.shutdown().await,
        None => Ok(()),
    }
}

/// Waits for frames. Meanwhile the stream is flushed: TLS accepts bytes that the socket has no space for, and
/// sends them only when it is polled again.
fn poll_ready(outbox: &Outbox, cx: &mut Context<'_>) -> Poll<io::Result<Option<bool>>> {
    if let Poll::Ready(ready) = outbox.poll_ready(cx) {
        return Poll::Ready(Ok(ready));
    }
    match outbox.poll_line(|write| write.poll_flush(cx)) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }
}

fn poll_write(
    write: Pin<&mut (dyn AsyncWrite + Send + Unpin)>,
    cx: &mut Context<'_>,
    batch: &Batch,
) -> Poll<io::Result<usize>> {
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
                // A buffer that was written completely is cleared in place, which keeps its capacity for the
                // next batch.
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

/// Ends a write that makes no progress. The timer exists only while a write is pending.
struct StallTimer {
    stall: Duration,
    waits: Option<Waits>,
}

/// A pending write.
struct Waits {
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl StallTimer {
    fn check(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &Outbox,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.waits = None;
            return write;
        }
        let waits = self.waits.get_or_insert_with(|| Waits {
            since: Instant::now(),
            sleep: Box::pin(tokio::time::sleep(self.stall.min(CONTENDED_STALL))),
        });
        while waits.sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let end = waits.since + self.stall;
            if now >= end || outbox.blocks_others() {
                let message = format!("the peer read nothing for {:?}", now - waits.since);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            waits.sleep.as_mut().reset(end.min(now + CONTENDED_STALL));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::link::Backlog;

    const STALL: Duration = Duration::from_secs(10);

    /// How long the writer waits for a peer that reads nothing.
    async fn waited_for(outbox: &Outbox) -> Duration {
        let (near, _far) = tokio::io::duplex(1024);
        let start = Instant::now();
        let ended = write_all(outbox, Box::new(near), STALL).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        start.elapsed()
    }

    /// Accepts bytes as TLS does: what was written is sent when it is flushed.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_buffers_is_flushed_when_nothing_more_is_to_be_written() {
        let (near, mut far) = tokio::io::duplex(1024);
        let outbox = Outbox::new(usize::MAX);
        let buffering = tokio::io::BufWriter::with_capacity(64 * 1024, near);
        let mut read = vec![0; 5000];
        let reading = async {
            for round in 0..2_u8 {
                // The second frame is alone and finds a writer that sleeps: it is written in place.
                outbox
                    .push(&mut BytesMut::from(&[round; 5000][..]), &[], round == 1)
                    .unwrap();
                far.read_exact(&mut read).await.unwrap();
                assert!(read.iter().all(|byte| *byte == round));
            }
            outbox.close();
        };
        let both = async { tokio::join!(write_all(&outbox, Box::new(buffering), STALL), reading) };
        let (written, ()) = tokio::time::timeout(STALL, both).await.unwrap();
        written.unwrap();
    }

    fn filled(backlog: &Backlog) -> Outbox {
        let outbox = Outbox::new(usize::MAX).within(backlog.clone());
        outbox
            .push(&mut BytesMut::from(&[0; 100_000][..]), &[], false)
            .unwrap();
        outbox
    }

    #[tokio::test(start_paused = true)]
    async fn patience_with_those_who_do_not_read_is_short_only_while_memory_is() {
        let backlog = Backlog::new(1 << 20);
        assert_eq!(waited_for(&filled(&backlog)).await, STALL);
        let others: Vec<_> = (0..10).map(|_| filled(&backlog)).collect();
        assert!(waited_for(&others[0]).await <= 2 * CONTENDED_STALL);
        drop(others);
        assert_eq!(waited_for(&filled(&backlog)).await, STALL);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_is_waited_for_also_while_memory_is_short() {
        let backlog = Backlog::new(64 * 1024);
        let outbox = filled(&backlog);
        assert!(backlog.is_full());
        let (near, mut far) = tokio::io::duplex(1024);
        outbox.close();
        let reading = async {
            let mut read = Vec::new();
            while far.read_buf(&mut read).await.unwrap() > 0 {
                tokio::time::sleep(CONTENDED_STALL / 2).await;
            }
            read.len()
        };
        let (written, read) = tokio::join!(write_all(&outbox, Box::new(near), STALL), reading);
        written.unwrap();
        assert_eq!(read, 100_000);
        assert_eq!(backlog.bytes(), 0);
    }
}
