//! What a provider bounds, on a clock that the tests move: requests and bytes at once, slow methods, slow peers,
//! blocking handlers, accept failures, panics. Test names begin with the class of `P1` to `P25` in the
//! reliability study where they cover one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rpc_core::frame;
use rpc_core::message::{Method, Request, Response, Route, Served, Service};
use rpc_core::provider::SlowMethods;
use rpc_core::transport::{Listener, Memory, Stream, Transport};
use rpc_core::{
    Attachment, BoxFuture, CallError, Code, Executed, Invoker, Provider, ProviderBuilder, ProviderError,
    RpcError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::raw;

mod at_once;
mod faults;
mod peers;
mod slow;

/// What the tests call.
#[rpc_core::service(name = "test.Work")]
pub(crate) trait Work {
    async fn echo(&self, text: String) -> String;
    async fn nap(&self, ms: u64);
    #[rpc(long_poll)]
    async fn poll(&self, ms: u64);
    #[rpc(in_flight_max = 2)]
    async fn narrow(&self);
    /// Holds its request until the gate opens.
    async fn hold(&self, bytes: Attachment);
    #[rpc(blocking)]
    async fn block(&self);
    async fn blob(&self, bytes: u32) -> ((), Attachment);
}

#[derive(Debug, Clone)]
struct Worker {
    gate: Arc<Semaphore>,
    started: Arc<AtomicUsize>,
}

impl Worker {
    fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            started: Arc::default(),
        }
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
    }
}

impl Work for Worker {
    async fn echo(&self, text: String) -> String {
        text
    }
    async fn nap(&self, ms: u64) {
        self.started.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(ms)).await;
    }
    async fn poll(&self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
    }
    async fn narrow(&self) {
        self.pass().await;
    }
    async fn hold(&self, _bytes: Attachment) {
        self.pass().await;
    }
    async fn block(&self) {
        self.pass().await;
    }
    async fn blob(&self, bytes: u32) -> ((), Attachment) {
        self.started.fetch_add(1, Ordering::SeqCst);
        ((), Attachment::from(bytes::Bytes::from(vec![7; bytes as usize])))
    }
}

/// A provider in memory, and calls to it that wait as long as it takes.
async fn pair(
    configure: impl FnOnce(ProviderBuilder) -> ProviderBuilder,
) -> (Provider, Worker, WorkClient, Memory) {
    let (network, worker) = (Memory::default(), Worker::new());
    let builder = Provider::builder()
        .listen("test:0")
        .transport(Arc::new(network.clone()))
        .serve(WorkServer::new(worker.clone()));
    let provider = configure(builder).start().await.unwrap();
    let client = client(&provider, &network, None).await;
    (provider, worker, client, network)
}

async fn client(provider: &Provider, network: &Memory, token: Option<&str>) -> WorkClient {
    let mut builder = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(Arc::new(network.clone()))
        .timeout(Duration::from_secs(3600));
    if let Some(token) = token {
        builder = builder.token(token);
    }
    WorkClient::refer(&builder.build().await.unwrap())
}

/// Lets everything run that can, until `reached`.
async fn until(reached: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if reached() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("not reached");
}

#[track_caller]
fn overloaded<T: std::fmt::Debug>(outcome: Result<T, CallError>) {
    let Err(CallError::Rpc(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (error.code, error.executed),
        (Code::Overloaded, Executed::No),
        "{error}"
    );
}
