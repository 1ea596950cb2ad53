//! Instances that leave: connections that were under way to them, and registries that hang while they go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rpc_core::frame;
use rpc_core::registry::{Freshness, Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use rpc_core::transport::{Listener, Memory, Stream, Transport};
use rpc_core::{BoxFuture, Invoker, Provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::net::{Handlers, Watch, WireClient, WireServer, value};
use crate::raw;

/// A registry whose list the test writes, and that never finishes a withdrawal.
#[derive(Debug)]
struct Listing(watch::Sender<Snapshot>);

fn listing(addresses: &[&str]) -> Snapshot {
    let instance = |address: &&str| {
        let json = format!(r#"{{"address": "{address}"}}"#);
        let mut instance: Instance = serde_json::from_str(&json).unwrap();
        instance.id = InstanceId((*address).to_owned());
        Arc::new(instance)
    };
    Snapshot {
        instances: addresses.iter().map(instance).collect(),
        freshness: Freshness::Fresh,
    }
}

#[async_trait::async_trait]
impl Registry for Listing {
    async fn register(&self, _: &ServiceKey, _: &Instance, _: Duration) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn deregister(&self, _: &ServiceKey, _: &InstanceId) -> Result<(), RegistryError> {
        std::future::pending().await
    }

    fn subscribe(&self, _: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        Ok(self.0.subscribe())
    }

    async fn close(&self) {}
}

/// A network in which a connection takes until the gate opens.
#[derive(Debug, Clone)]
struct Gated {
    network: Memory,
    asked: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Transport for Gated {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            self.network.connect(address).await
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Listener>>> {
        self.network.bind(address)
    }
}

/// A network, a list with `test:1` in it, and a client that finds its instances there.
async fn listed() -> (Gated, Arc<Listing>, WireClient) {
    let gated = Gated {
        network: Memory::default(),
        asked: Arc::default(),
        gate: Arc::new(Semaphore::new(0)),
    };
    let registry = Arc::new(Listing(watch::Sender::new(listing(&["test:1"]))));
    let invoker = Invoker::builder()
        .registry(Arc::clone(&registry))
        .transport(Arc::new(gated.clone()))
        .timeout(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    (gated, registry, WireClient::refer(&invoker))
}

/// Until a connection is being made.
async fn connecting(gated: &Gated) {
    while gated.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_comes_when_its_instance_has_left_ends() {
    let (gated, registry, client) = listed().await;
    let listener = gated.bind("test:1").await.unwrap();
    let call = client.echo("x".to_owned()).future();
    connecting(&gated).await;
    drop(call);
    registry.0.send_replace(listing(&[]));
    sleep(Duration::from_millis(10)).await;
    gated.gate.add_permits(1);
    let mut peer = listener.accept().await.unwrap();
    let mut hello = BytesMut::new();
    frame::hello(&mut hello, &raw::hello(None));
    // It may have gone by now.
    drop(peer.write.write_all(&hello).await);
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(2), peer.read.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "nobody told it that it is not wanted any more");
}

#[tokio::test(start_paused = true)]
async fn call_that_waits_for_a_connection_while_its_instance_leaves_is_answered() {
    let (gated, registry, client) = listed().await;
    let provider = Provider::builder()
        .listen("test:1")
        .transport(Arc::new(gated.network.clone()))
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap();
    let call = client.echo("still".to_owned()).future();
    connecting(&gated).await;
    registry.0.send_replace(listing(&[]));
    sleep(Duration::from_millis(10)).await;
    gated.gate.add_permits(1);
    assert_eq!(call.await.unwrap(), "still");
    let ended = async {
        while provider.connections() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(Duration::from_secs(2), ended).await.is_ok());
    assert_eq!(gated.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn registry_that_hangs_leaves_a_stop_time_for_the_requests_that_run() {
    let (network, watch) = (Memory::default(), Watch::default());
    let provider = Provider::builder()
        .listen("test:1")
        .transport(Arc::new(network.clone()))
        .registry(Arc::new(Listing(watch::Sender::new(listing(&[])))))
        .serve(WireServer::new(Handlers(watch.clone())))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(Arc::new(network))
        .timeout(Duration::from_secs(60));
    let client = WireClient::refer(&invoker.build().await.unwrap());
    let call = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    let start = Instant::now();
    let mut stopping = JoinSet::new();
    stopping.spawn(provider.shutdown(Duration::from_secs(30)));
    // The registry has had its third of the time, and the request is still waited for.
    sleep(Duration::from_secs(20)).await;
    assert!(stopping.try_join_next().is_none());
    watch.gate.add_permits(1);
    assert_eq!(call.await.unwrap(), 1);
    stopping.join_next().await.unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
}
