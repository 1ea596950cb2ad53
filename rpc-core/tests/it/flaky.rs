//! A network that tears streams into odd pieces and cuts connections at random, for tests of what survives that.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use rpc_core::transport::{Listener, Stream, Tcp, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// TCP whose connections break after a random number of bytes, about `mean_bytes` of them.
#[derive(Debug)]
pub(crate) struct Flaky {
    mean_bytes: u64,
    /// Connections that were cut so far.
    cuts: Arc<AtomicU64>,
    /// One random stream for each connection follows from it.
    seed: AtomicU64,
}

impl Flaky {
    pub(crate) fn new(mean_bytes: u64, seed: u64) -> Self {
        Self {
            mean_bytes,
            cuts: Arc::default(),
            seed: AtomicU64::new(seed),
        }
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    fn wrap(&self, stream: Stream) -> Stream {
        let mut random = fastrand::Rng::with_seed(self.seed.fetch_add(1, Ordering::Relaxed));
        let rope = Arc::new(Rope {
            left: AtomicU64::new(random.u64(1..=2 * self.mean_bytes)),
            cuts: Arc::clone(&self.cuts),
        });
        Stream {
            read: Box::new(Half {
                inner: stream.read,
                rope: Arc::clone(&rope),
                random: random.fork(),
            }),
            write: Box::new(Half {
                inner: stream.write,
                rope,
                random,
            }),
            peer: stream.peer,
        }
    }
}

impl Transport for Flaky {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { Ok(self.wrap(Tcp.connect(address).await?)) })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Tcp.bind(address)
    }
}

/// How many bytes a connection still lives.
#[derive(Debug)]
struct Rope {
    left: AtomicU64,
    cuts: Arc<AtomicU64>,
}

impl Rope {
    fn hold(&self) -> io::Result<()> {
        match self.left.load(Ordering::Relaxed) {
            0 => Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut by the test")),
            _ => Ok(()),
        }
    }

    /// Takes `bytes` that have passed; the last of them cuts it.
    fn pass(&self, bytes: usize) {
        let take = |left: u64| (left > 0).then(|| left.saturating_sub(bytes as u64));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        if before.is_ok_and(|left| left <= bytes as u64) {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One direction of a connection: moves a random part of what it is asked to.
struct Half<T> {
    inner: T,
    rope: Arc<Rope>,
    random: fastrand::Rng,
}

impl<T> Half<T> {
    /// Often everything, sometimes a byte or a few.
    fn part(&mut self, wanted: usize) -> usize {
        match self.random.u8(..8) {
            0 => 1,
            1 => self.random.usize(1..=wanted.clamp(1, 64)),
            _ => wanted,
        }
    }
}

impl AsyncRead for Half<Box<dyn AsyncRead + Send + Unpin>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.rope.hold()?;
        let mut own = [0; 16 * 1024];
        let part = self.part(buffer.remaining()).min(own.len());
        let mut piece = ReadBuf::new(&mut own[..part]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece))?;
        buffer.put_slice(piece.filled());
        self.rope.pass(piece.filled().len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Half<Box<dyn AsyncWrite + Send + Unpin>> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.rope.hold()?;
        let part = self.part(bytes.len()).min(bytes.len());
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..part]))?;
        self.rope.pass(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
