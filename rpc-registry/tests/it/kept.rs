//! Lists that are kept on disk, for a start while the registry is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{Freshness, Registry, ServiceKey};
use rpc_core::{Invoker, Provider};
use rpc_registry::contract::{self, Fixture};
use tokio::net::TcpListener;

#[rpc_core::service(name = "test.Found")]
trait Found {
    async fn twice(&self, number: u32) -> u32;
}

struct Doubles;

impl Found for Doubles {
    async fn twice(&self, number: u32) -> u32 {
        number * 2
    }
}

struct Place(tempfile::TempDir);

#[async_trait]
impl Fixture for Place {
    async fn open(&self) -> Arc<dyn Registry> {
        rpc_registry::kept(rpc_registry::local("kept-contract"), self.0.path())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_keeps_the_contract() {
    contract::check(Arc::new(Place(tempfile::tempdir().unwrap()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_without_the_registry_calls_whom_it_knew_before() {
    let folder = tempfile::tempdir().unwrap();
    let registry = rpc_registry::local("kept-start");
    let provider = Provider::builder()
        .serve(FoundServer::new(Doubles))
        .registry(Arc::clone(&registry));
    let provider = provider.start().await.unwrap();
    let known = rpc_registry::kept(registry, folder.path());
    let invoker = Invoker::builder()
        .registry(Arc::clone(&known))
        .build()
        .await
        .unwrap();
    assert_eq!(FoundClient::refer(&invoker).twice(2).await.unwrap(), 4);
    invoker.shutdown().await;
    known.close().await;

    // Takes connections and never says a word: a registry that hangs.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "mq://{}?keep_dir={}",
        silent.local_addr().unwrap(),
        folder.path().display()
    );
    let invoker = Invoker::builder().registry(url).build().await.unwrap();
    assert_eq!(FoundClient::refer(&invoker).twice(4).await.unwrap(), 8);
    invoker.shutdown().await;
    drop(provider);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_the_registry_replaces_the_one_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let key = contract::unused_key("replaced");
    let keep = |place: &str| rpc_registry::kept(rpc_registry::local(place), folder.path());
    let sees = async |registry: &Arc<dyn Registry>, key: &ServiceKey| {
        let mut pictures = registry.subscribe(key).unwrap();
        let heard = pictures.wait_for(|picture| picture.freshness == Freshness::Fresh);
        let picture = tokio::time::timeout(Duration::from_secs(20), heard)
            .await
            .unwrap();
        picture.unwrap().instances.len()
    };
    let before = keep("kept-before");
    let old = contract::instance("h:1");
    before.register(&key, &old, Duration::ZERO).await.unwrap();
    assert_eq!(sees(&before, &key).await, 1);
    before.close().await;
    let after = keep("kept-after");
    assert_eq!(sees(&after, &key).await, 0, "what the registry says goes first");
    after.close().await;
}
