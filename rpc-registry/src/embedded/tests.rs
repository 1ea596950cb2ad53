//! The embedded registry against the contract, with server and clients in one process: everything but the network.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{Freshness, Registry, RegistryError};

use super::api::Watch;
use super::client::Mq;
use super::server::EmbeddedRegistry;
use crate::contract::{self, Fixture, addresses, instance, until, unused_key};

const LEASE: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(20);

/// Handles of the process that serves.
struct Inside(EmbeddedRegistry);

#[async_trait]
impl Fixture for Inside {
    async fn open(&self) -> Arc<dyn Registry> {
        self.0.registry()
    }
}

/// Members and clients elsewhere.
struct Outside(EmbeddedRegistry);

#[async_trait]
impl Fixture for Outside {
    async fn open(&self) -> Arc<dyn Registry> {
        Arc::new(Mq::in_process(&self.0, LEASE))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_keeps_the_contract() {
    contract::check(Arc::new(Inside(EmbeddedRegistry::new(LEASE)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outside_keeps_the_contract() {
    contract::check(Arc::new(Outside(EmbeddedRegistry::new(LEASE)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_in_front_of_another_registry_keeps_the_contract() {
    let behind = crate::local("server_in_front");
    contract::check(Arc::new(Outside(EmbeddedRegistry::in_front_of(behind, LEASE)))).await;
}

#[tokio::test]
async fn server_shows_what_its_own_registry_shows() {
    let behind = crate::local("server_shows");
    let embedded = EmbeddedRegistry::in_front_of(Arc::clone(&behind), LEASE);
    let client: Arc<dyn Registry> = Arc::new(Mq::in_process(&embedded, LEASE));
    let key = unused_key("both");
    let mut receiver = client.subscribe(&key).unwrap();
    behind.register(&key, &instance("h:1"), PATIENCE).await.unwrap();
    client.register(&key, &instance("h:2"), PATIENCE).await.unwrap();
    let shown = until(&mut receiver, PATIENCE, "both", |shown| {
        shown.instances.len() == 2
    })
    .await;
    let mut shown = addresses(&shown);
    shown.sort_unstable();
    assert_eq!(shown, ["h:1", "h:2"]);

    // Another server is told only what was announced here.
    let server: Arc<dyn Registry> = Arc::new(Mq::in_process_server(&embedded, LEASE));
    let mut receiver = server.subscribe(&key).unwrap();
    let shown = until(&mut receiver, PATIENCE, "one", |shown| {
        shown.freshness == Freshness::Fresh
    })
    .await;
    assert_eq!(addresses(&shown), ["h:2"]);
    behind.close().await;
    client.close().await;
    server.close().await;
}

#[tokio::test]
async fn service_nobody_announced_yet_is_unknown_while_the_server_warms() {
    let embedded = EmbeddedRegistry::new(Duration::from_secs(3600));
    let (inside, outside) = (embedded.registry(), Mq::in_process(&embedded, LEASE));
    let key = unused_key("warming");
    let other = unused_key("other");
    inside.register(&other, &instance("h:1"), PATIENCE).await.unwrap();
    for registry in [&*inside, &outside as &dyn Registry] {
        let mut there = registry.subscribe(&other).unwrap();
        until(&mut there, PATIENCE, "h:1", |shown| {
            shown.freshness == Freshness::Fresh && shown.instances.len() == 1
        })
        .await;
        let nobody = registry.subscribe(&key).unwrap();
        assert_eq!(nobody.borrow().freshness, Freshness::Unknown);
    }
    inside.close().await;
    outside.close().await;
}

#[tokio::test]
async fn stopping_server_keeps_nobody_waiting() {
    let embedded = EmbeddedRegistry::new(Duration::from_secs(3600));
    let client = embedded.client();
    let watch = |known| Watch {
        key: unused_key("stopping"),
        all: true,
        known,
        wait_ms: 60_000,
    };
    let known = client.watch(watch(None)).await.unwrap().state;
    let waiting = client.watch(watch(Some(known))).timeout(PATIENCE).future();
    tokio::task::yield_now().await;
    embedded.begin_stop();
    assert_eq!(waiting.await.unwrap().state, known);
    // One that asks again waits a little, so that it does not ask in a loop, but not for long.
    let asked = std::time::Instant::now();
    let again = client.watch(watch(Some(known))).timeout(PATIENCE);
    assert_eq!(again.await.unwrap().state, known);
    let waited = asked.elapsed();
    assert!(
        (Duration::from_millis(100)..PATIENCE).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test]
async fn server_in_front_of_a_registry_that_is_away_still_knows_its_own_process() {
    let nobody = Arc::new(Mq::builder("127.0.0.1:1").build());
    let embedded = EmbeddedRegistry::in_front_of(nobody, LEASE);
    let key = unused_key("away");
    let me = embedded.registry();
    let registered = me
        .register(&key, &instance("h:1"), Duration::from_millis(50))
        .await;
    assert!(
        matches!(registered, Err(RegistryError::Unreachable { .. })),
        "{registered:?}"
    );
    let client: Arc<dyn Registry> = Arc::new(Mq::in_process(&embedded, LEASE));
    let mut receiver = client.subscribe(&key).unwrap();
    until(&mut receiver, PATIENCE, "h:1", |shown| {
        addresses(shown) == ["h:1"]
    })
    .await;
    client.close().await;
    me.close().await;
}
