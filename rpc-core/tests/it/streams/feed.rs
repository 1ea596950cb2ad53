//! A service of streams and its wiring, with what tells that nothing is left of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rpc_core::{Attachment, CallError, Code, Executed, Invoker, Provider, RpcError, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FeedError {
    TooFar { at: u64 },
    Closed,
}

#[rpc_core::service(name = "test.Feed")]
pub(super) trait Feed {
    /// Numbers up to `end`, at once.
    async fn numbers(&self, end: u64) -> impl Stream<Item = u64>;
    /// The same, but fails at 3.
    async fn fallible(&self, end: u64) -> impl Stream<Item = Result<u64, FeedError>>;
    /// Never begins.
    async fn closed(&self) -> Result<impl Stream<Item = u64>, FeedError>;
    /// A framework's code instead of an item.
    async fn overloaded(
        &self,
    ) -> Result<impl Stream<Item = Result<u64, CallError<FeedError>>>, CallError<FeedError>>;
    /// So many pieces of so many bytes.
    async fn pieces(
        &self,
        count: u64,
        bytes: usize,
    ) -> impl Stream<Item = Result<(u64, Attachment), FeedError>>;
    /// `first`, and then nothing for ever.
    #[rpc(idempotent)]
    async fn follow(&self, first: u64) -> impl Stream<Item = u64>;
    /// Numbers in steps of so many milliseconds.
    async fn slowly(&self, every_ms: u64) -> impl Stream<Item = u64>;
    async fn once(&self, number: u64) -> u64;
    async fn panic(&self) -> impl Stream<Item = u64>;
}

#[derive(Debug, Default)]
pub(super) struct Source {
    /// Items that were asked of a stream.
    made: AtomicUsize,
    /// Streams that are there.
    pub(super) open: AtomicUsize,
    changed: Notify,
}

/// Counts a stream while it lives.
struct Open<'a>(&'a Source);

impl<'a> Open<'a> {
    fn new(source: &'a Source) -> Self {
        source.open.fetch_add(1, Ordering::SeqCst);
        source.changed.notify_waiters();
        Self(source)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Source {
    fn counted(&self, end: u64) -> impl Stream<Item = u64> {
        let open = Open::new(self);
        tokio_stream::iter((0..end).inspect(move |_| {
            let _open = &open;
            self.made.fetch_add(1, Ordering::SeqCst);
        }))
    }

    pub(super) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    pub(super) async fn until_open(&self, wanted: usize) {
        let wait = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.open.load(Ordering::SeqCst) == wanted {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        waited.unwrap_or_else(|_| panic!("{} streams are open", self.open.load(Ordering::SeqCst)));
    }
}

impl Feed for Arc<Source> {
    async fn numbers(&self, end: u64) -> impl Stream<Item = u64> {
        self.counted(end)
    }

    async fn fallible(&self, end: u64) -> impl Stream<Item = Result<u64, FeedError>> {
        self.counted(end).map(|number| match number {
            3 => Err(FeedError::TooFar { at: number }),
            _ => Ok(number),
        })
    }

    async fn closed(&self) -> Result<impl Stream<Item = u64>, FeedError> {
        Err::<tokio_stream::Empty<u64>, _>(FeedError::Closed)
    }

    async fn overloaded(
        &self,
    ) -> Result<impl Stream<Item = Result<u64, CallError<FeedError>>>, CallError<FeedError>> {
        let busy = RpcError::new(Code::Overloaded, Executed::No, "busy");
        Ok(tokio_stream::iter([Ok(1), Err(CallError::Rpc(busy)), Ok(2)]))
    }

    async fn pieces(
        &self,
        count: u64,
        bytes: usize,
    ) -> impl Stream<Item = Result<(u64, Attachment), FeedError>> {
        self.counted(count)
            .map(move |number| Ok((number, Attachment::from(Bytes::from(vec![7; bytes])))))
    }

    async fn follow(&self, first: u64) -> impl Stream<Item = u64> {
        let open = Open::new(self);
        let rest = tokio_stream::pending().map(move |()| {
            let _open = &open;
            0
        });
        tokio_stream::once(first).chain(rest)
    }

    async fn slowly(&self, every_ms: u64) -> impl Stream<Item = u64> {
        tokio_stream::iter(0..).throttle(Duration::from_millis(every_ms))
    }

    async fn once(&self, number: u64) -> u64 {
        number
    }

    async fn panic(&self) -> impl Stream<Item = u64> {
        tokio_stream::iter([1, 2]).map(|number| {
            assert!(number < 2, "on purpose");
            number
        })
    }
}

pub(super) struct Side {
    pub(super) provider: Provider,
    pub(super) source: Arc<Source>,
    pub(super) invoker: Invoker,
    pub(super) feed: FeedClient,
}

pub(super) async fn start(serializer: &str) -> Side {
    let source = Arc::new(Source::default());
    let served = FeedServer::new(Arc::clone(&source));
    let provider = Provider::builder().serve(served).start().await.unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .serializer(serializer)
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    let feed = FeedClient::refer(&invoker);
    Side {
        provider,
        source,
        invoker,
        feed,
    }
}

impl Side {
    /// Whether nothing is left of any stream, on both sides, as soon as that is so.
    pub(super) async fn drained(&self) {
        self.source.until_open(0).await;
        let wait = async {
            while self.provider.running() > 0 || self.invoker.statistics().in_flight > 0 {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        let left = (self.provider.running(), self.invoker.statistics().in_flight);
        assert!(waited.is_ok(), "{left:?} are left");
    }
}

pub(super) fn rpc<T: std::fmt::Debug>(item: Option<Result<T, impl Into<Failure>>>) -> RpcError {
    match item {
        Some(Err(error)) => error.into().0,
        other => panic!("{:?}", other.map(|item| item.ok())),
    }
}

pub(super) struct Failure(pub(super) RpcError);

impl<E: std::fmt::Debug> From<CallError<E>> for Failure {
    fn from(error: CallError<E>) -> Self {
        match error {
            CallError::Rpc(error) => Self(error),
            CallError::App(error) => panic!("the method's own error: {error:?}"),
        }
    }
}
