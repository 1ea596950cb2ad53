//! Writing in place: a single frame is given to the operating system by the task that queues it. Waking the
//! writer for it would cost a task switch, and a thread switch if the caller is not on a worker thread of the
//! runtime.
//!
//! The writer sleeps meanwhile. Bytes that could not be written go to the front of the queue, and the writer
//! continues with them.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;

use super::{Outbox, REFERENCE_BYTES_MIN};

/// Most pieces of a frame that is written in place.
const SLICES_MAX: usize = 8;

/// The writing half of a stream.
pub(crate) type Write = Box<dyn AsyncWrite + Send + Unpin>;

/// The stream, while there is a writer.
#[derive(Default)]
pub(super) struct Line(Mutex<Option<Write>>);

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// Takes the stream away when the writer ends, even if the writer is cancelled.
pub(crate) struct Laid<'a>(&'a Outbox);

impl Drop for Laid<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl Laid<'_> {
    pub(crate) fn take(&self) -> Option<Write> {
        self.0.line.lock().take()
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Option<Write>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a frame of this many bytes and parts may be written where it is queued: the head of a large frame
/// has already been split off, and a transport may need its runtime.
pub(super) fn is_possible(bytes: usize, parts: usize) -> bool {
    bytes < REFERENCE_BYTES_MIN && parts < SLICES_MAX && Handle::try_current().is_ok()
}

impl Outbox {
    /// The writer's side: writes go to this stream from now on.
    pub(crate) fn lay(&self, write: Write) -> Laid<'_> {
        *self.line.lock() = Some(write);
        Laid(self)
    }

    /// The writer's side: writes once, or flushes.
    pub(crate) fn poll_line<T>(
        &self,
        write: impl FnOnce(Pin<&mut (dyn AsyncWrite + Send + Unpin)>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.line.lock() {
            Some(line) => write(Pin::new(&mut **line)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Writes a frame that has been accepted, while `writer` sleeps.
    pub(super) fn write_in_place(&self, head: &[u8], parts: &[Bytes], writer: &Waker) {
        let mut ends = Ends {
            outbox: self,
            left: None,
        };
        let mut line = self.line.lock();
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let pieces = std::iter::once(head).chain(parts.iter().map(|part| &part[..]));
        let mut used = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        let cx = &mut Context::from_waker(writer);
        let written = match &mut *line {
            Some(line) if used == 1 => Pin::new(line).poll_write(cx, head),
            Some(line) => Pin::new(line).poll_write_vectored(cx, &slices[..used]),
            None => Poll::Pending,
        };
        // The writer sees the same error.
        let written = match written {
            Poll::Ready(Ok(written)) => written,
            _ => 0,
        };
        if let Some(line) = &mut *line {
            // What TLS keeps back wakes the writer when the socket has room.
            let _is_flushed = Pin::new(line).poll_flush(cx).is_ready();
        }
        self.wrote(written);
        drop(line);
        ends.left = Some(rest(head, parts, written));
    }
}

/// The rest of a frame of which `written` bytes were written.
fn rest(head: &[u8], parts: &[Bytes], written: usize) -> Vec<Bytes> {
    let mut skip = written;
    let mut left = Vec::new();
    if skip < head.len() {
        left.push(Bytes::copy_from_slice(&head[skip..]));
    }
    skip = skip.saturating_sub(head.len());
    for part in parts {
        let passed = skip.min(part.len());
        skip -= passed;
        if passed < part.len() {
            left.push(part.slice(passed..));
        }
    }
    left
}

/// Ends a write in place: the writer may continue.
struct Ends<'a> {
    outbox: &'a Outbox,
    /// None: the transport panicked, and it is unknown how much of the frame was sent.
    left: Option<Vec<Bytes>>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if self.left.is_none() {
            drop(self.outbox.line.lock().take());
        }
        let mut state = self.outbox.state();
        state.in_place = false;
        state.closed |= self.left.is_none();
        let left = self.left.take().filter(|_| !state.abandoned);
        for piece in left.into_iter().flatten().rev() {
            state.batch.segments.push_front(piece);
        }
        let has_work = (!state.batch.is_empty() && !state.corked) || state.closed;
        let writer = if has_work { state.parked.take() } else { None };
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use bytes::BytesMut;

    use super::super::Batch;
    use super::*;

    /// A stream whose every write is answered by the test.
    struct Scripted<F>(F);

    impl<F: FnMut(&[u8]) -> Poll<io::Result<usize>> + Unpin> AsyncWrite for Scripted<F> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            (self.0)(bytes)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A writer that sleeps.
    fn asleep(outbox: &Outbox) -> Arc<Woken> {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(outbox.poll_ready(&Context::from_waker(&waker)).is_pending());
        woken
    }

    fn push(outbox: &Outbox, bytes: &[u8], urgent: bool) {
        outbox
            .push(&mut BytesMut::from(bytes), &[Bytes::from_static(b"!")], urgent)
            .unwrap();
    }

    /// The bytes that the writer finds.
    fn queued(outbox: &Outbox) -> Vec<u8> {
        let mut batch = Batch::default();
        outbox.take(&mut batch);
        let mut found: Vec<u8> = batch.segments.iter().flatten().copied().collect();
        found.extend_from_slice(&batch.small);
        found
    }

    #[tokio::test]
    async fn frame_that_is_alone_is_written_where_it_is_queued() {
        let outbox = Outbox::new(1000);
        let (sent, seen) = std::sync::mpsc::sync_channel(8);
        let _laid = outbox.lay(Box::new(Scripted(move |bytes: &[u8]| {
            sent.send(bytes.to_vec()).unwrap();
            Poll::Ready(Ok(bytes.len()))
        })));
        let writer = asleep(&outbox);
        // A stream without vectored writes takes the pieces of a frame one by one; the rest is left to the
        // writer.
        push(&outbox, b"one", true);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [b"one".to_vec()]);
        assert_eq!((queued(&outbox), outbox.written()), (b"!".to_vec(), 3));
        assert_eq!(writer.0.load(Ordering::Relaxed), 1);
        outbox.wrote(1);

        let writer = asleep(&outbox);
        outbox.push(&mut BytesMut::from(&b"two"[..]), &[], true).unwrap();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [b"two".to_vec()]);
        assert_eq!((queued(&outbox), outbox.unwritten()), (vec![], 0));
        assert_eq!(
            writer.0.load(Ordering::Relaxed),
            0,
            "nothing is left for it to do"
        );

        push(&outbox, b"three", false);
        assert_eq!(seen.try_iter().count(), 0, "other frames may follow");
        assert_eq!(writer.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn rest_of_a_frame_stands_before_what_was_queued_meanwhile() {
        for first in [
            Poll::Ready(Ok(2)),
            Poll::Pending,
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        ] {
            let outbox = Arc::new(Outbox::new(1000));
            let other = Arc::clone(&outbox);
            let mut first = Some(first);
            let laid = Arc::clone(&outbox);
            let _laid = laid.lay(Box::new(Scripted(move |_: &[u8]| {
                push(&other, b"two", true);
                first.take().unwrap()
            })));
            let writer = asleep(&outbox);
            push(&outbox, b"one", true);
            let skip = usize::try_from(outbox.written()).unwrap();
            assert_eq!(queued(&outbox), b"one!two!"[skip..]);
            assert_eq!(writer.0.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn writer_that_is_woken_waits_for_the_end_of_a_write_in_place() {
        let outbox = Arc::new(Outbox::new(1000));
        let other = Arc::clone(&outbox);
        let laid = Arc::clone(&outbox);
        let _laid = laid.lay(Box::new(Scripted(move |bytes: &[u8]| {
            push(&other, b"two", false);
            asleep(&other);
            other.close();
            asleep(&other);
            Poll::Ready(Ok(bytes.len()))
        })));
        asleep(&outbox);
        outbox.push(&mut BytesMut::from(&b"one"[..]), &[], true).unwrap();
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(outbox.poll_ready(&cx), Poll::Ready(Some(true)));
        assert_eq!(queued(&outbox), b"two!");
        assert_eq!(outbox.poll_ready(&cx), Poll::Ready(None));
    }

    #[tokio::test]
    async fn stream_that_panics_is_given_up() {
        let outbox = Outbox::new(1000);
        let laid = outbox.lay(Box::new(Scripted(|_: &[u8]| panic!("of the test"))));
        let writer = asleep(&outbox);
        let pushing = std::panic::AssertUnwindSafe(|| push(&outbox, b"one", true));
        assert!(std::panic::catch_unwind(pushing).is_err());
        assert!(outbox.is_closed());
        assert!(laid.take().is_none());
        assert_eq!(writer.0.load(Ordering::Relaxed), 1);
    }
}
