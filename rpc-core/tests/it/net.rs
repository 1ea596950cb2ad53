//! A small service and its wiring, shared by the tests of the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rpc_core::{Attachment, Context, Invoker, Provider};
use tokio::sync::{Notify, Semaphore};

/// What the tests call.
#[rpc_core::service(name = "test.Wire")]
pub(crate) trait Wire {
    async fn echo(&self, text: String) -> String;
    async fn fail(&self, text: String) -> Result<u32, String>;
    /// Waits until the test opens the gate, or the caller goes away.
    async fn wait(&self) -> u32;
    /// Gives the attachment back, doubled, in two parts.
    async fn double(&self, attachment: Attachment) -> (u32, Attachment);
    /// Answers with so many bytes.
    async fn blob(&self, bytes: u32) -> (u32, Attachment);
    async fn note(&self) -> ();
    #[rpc(blocking)]
    async fn block(&self, ms: u64) -> u32;
    async fn panic(&self) -> u32;
    /// The time left, in ms.
    async fn left(&self) -> u64;
}

/// What the handlers share with the test.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) started: Arc<AtomicUsize>,
    pub(crate) cancelled: Arc<AtomicUsize>,
    pub(crate) noted: Arc<AtomicUsize>,
    pub(crate) changed: Arc<Notify>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            started: Arc::default(),
            cancelled: Arc::default(),
            noted: Arc::default(),
            changed: Arc::default(),
        }
    }
}

impl Watch {
    /// Waits, at most 10 s, until `reached` of the counters.
    pub(crate) async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if reached(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the handlers get there");
    }

    fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

pub(crate) fn value(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

pub(crate) struct Handlers(pub(crate) Watch);

impl Wire for Handlers {
    async fn echo(&self, text: String) -> String {
        text
    }

    async fn fail(&self, text: String) -> Result<u32, String> {
        Err(text)
    }

    async fn wait(&self) -> u32 {
        self.0.count(&self.0.started);
        let context = Context::current();
        tokio::select! {
            permit = self.0.gate.acquire() => {
                permit.expect("the gate stays").forget();
                1
            }
            () = context.cancelled() => {
                self.0.count(&self.0.cancelled);
                2
            }
        }
    }

    async fn double(&self, attachment: Attachment) -> (u32, Attachment) {
        let bytes = attachment.into_bytes();
        let mut twice = Attachment::new();
        twice.push(bytes.clone());
        twice.push(bytes.clone());
        (u32::try_from(bytes.len()).unwrap(), twice)
    }

    async fn blob(&self, bytes: u32) -> (u32, Attachment) {
        self.0.count(&self.0.started);
        (bytes, Attachment::from(Bytes::from(vec![7; bytes as usize])))
    }

    async fn note(&self) {
        self.0.count(&self.0.noted);
    }

    async fn block(&self, ms: u64) -> u32 {
        let wait = std::time::Instant::now() + Duration::from_millis(ms);
        while std::time::Instant::now() < wait {
            std::hint::spin_loop();
        }
        3
    }

    async fn panic(&self) -> u32 {
        panic!("on purpose")
    }

    async fn left(&self) -> u64 {
        let left = Context::current().time_left().expect("a call has a deadline");
        u64::try_from(left.as_millis()).unwrap()
    }
}

/// A provider of [`Wire`] on a free port.
pub(crate) async fn provider() -> (Provider, Watch) {
    let watch = Watch::default();
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(WireServer::new(Handlers(watch.clone())))
        .start()
        .await
        .expect("a free port");
    (provider, watch)
}

/// An invoker of one address.
pub(crate) async fn invoker(address: &str) -> Invoker {
    Invoker::builder()
        .direct([address])
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .expect("nothing to refuse")
}

/// Provider, what its handlers say, invoker, client.
pub(crate) async fn pair() -> (Provider, Watch, Invoker, WireClient) {
    let (provider, watch) = provider().await;
    let invoker = invoker(provider.local_addr()).await;
    let client = WireClient::refer(&invoker);
    (provider, watch, invoker, client)
}
