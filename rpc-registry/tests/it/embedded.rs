//! The embedded registry over real connections: providers that mount it, members and clients, and servers that come, go
//! and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rpc_core::Provider;
use rpc_core::registry::{Freshness, Registry, RegistryError, ServiceKey};
use rpc_registry::contract::{self, Fixture, addresses, instance, until, unused_key};
use rpc_registry::{EmbeddedRegistry, Mq};

const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// A provider that mounts a registry.
struct Server {
    provider: Provider,
    embedded: EmbeddedRegistry,
    address: String,
}

impl Server {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    async fn start_at(address: &str) -> Self {
        let embedded = EmbeddedRegistry::new(LEASE);
        let provider = Provider::builder().listen(address).serve(embedded.served());
        let provider = provider.start().await.expect("start");
        let address = provider.local_addr().to_owned();
        Self {
            provider,
            embedded,
            address,
        }
    }

    async fn stop(self) {
        self.provider.shutdown(Duration::ZERO).await;
    }
}

fn mq(servers: &[&str]) -> Arc<dyn Registry> {
    Arc::new(Mq::builder(&servers.join(",")).lease(LEASE).build())
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("bound").to_string()
}

struct Remote(Server);

#[async_trait]
impl Fixture for Remote {
    async fn open(&self) -> Arc<dyn Registry> {
        mq(&[&self.0.address])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_keeps_the_contract_over_connections() {
    contract::check(Arc::new(Remote(Server::start().await))).await;
}

#[tokio::test]
async fn one_server_of_two_suffices() {
    let server = Server::start().await;
    let dead = nobody();
    let (provider, client) = (mq(&[&dead, &server.address]), mq(&[&server.address, &dead]));
    let key = unused_key("one");
    let mut receiver = client.subscribe(&key).expect("subscribe");
    let started = Instant::now();
    provider
        .register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "does not wait for the dead one"
    );
    until(&mut receiver, PATIENCE, "h:1", |shown| {
        addresses(shown) == ["h:1"]
    })
    .await;
    provider.close().await;
    client.close().await;
    server.stop().await;
}

#[tokio::test]
async fn no_server_at_all_is_told_within_the_wait() {
    let client = mq(&[&nobody()]);
    let key = unused_key("none");
    let wait = Duration::from_millis(500);
    let refused = client.register(&key, &instance("h:1"), wait).await;
    assert!(
        matches!(refused, Err(RegistryError::Unreachable { .. })),
        "{refused:?}"
    );
    let receiver = client.subscribe(&key).expect("subscribe");
    assert_eq!(receiver.borrow().freshness, Freshness::Unknown);
    let started = Instant::now();
    client.close().await;
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn restarted_server_loses_nobody() {
    let server = Server::start().await;
    let address = server.address.clone();
    let (provider, client) = (mq(&[&address]), mq(&[&address]));
    let key = unused_key("restart");
    let mut receiver = client.subscribe(&key).expect("subscribe");
    provider
        .register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    until(&mut receiver, PATIENCE, "h:1", |shown| {
        addresses(shown) == ["h:1"]
    })
    .await;

    server.stop().await;
    until(&mut receiver, PATIENCE, "the old list", |shown| {
        shown.freshness == Freshness::Stale
    })
    .await;
    assert_eq!(addresses(&receiver.borrow()), ["h:1"]);

    let server = Server::start_at(&address).await;
    let mut seen = Vec::new();
    until(&mut receiver, PATIENCE, "a fresh h:1", |shown| {
        seen.push(shown.clone());
        shown.freshness == Freshness::Fresh
    })
    .await;
    let inside = server.embedded.registry();
    let mut there = inside.subscribe(&key).expect("subscribe");
    until(&mut there, PATIENCE, "h:1, announced again", |shown| {
        addresses(shown) == ["h:1"]
    })
    .await;
    assert!(
        seen.iter().all(|shown| addresses(shown) == ["h:1"]),
        "it was there all the time: {seen:?}"
    );
    for registry in [provider, client, inside] {
        registry.close().await;
    }
    server.stop().await;
}

/// A broker with `--registry <url>` that announces itself.
async fn broker(url: &str, address: &str, key: &ServiceKey) -> (Provider, Arc<dyn Registry>) {
    let embedded = EmbeddedRegistry::open(url, LEASE).expect("a good URL");
    let provider = Provider::builder().listen(address).serve(embedded.served());
    let provider = provider.start().await.expect("start");
    let registry = embedded.registry();
    let me = instance(address);
    registry.register(key, &me, PATIENCE).await.expect("register");
    (provider, registry)
}

#[tokio::test]
async fn servers_know_each_other_and_forget_the_dead() {
    // Three brokers with `--registry mq://a,b,c`; each announces itself, a client asks only the first.
    let (a, b, c) = (nobody(), nobody(), nobody());
    let url = format!("mq://{a},{b},{c}?lease_ms={}", LEASE.as_millis());
    let key = unused_key("brokers");
    let brokers = [broker(&url, &a, &key).await, broker(&url, &b, &key).await];
    // The third has a runtime of its own, to die with it.
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let doomed = doomed.expect("a runtime");
    let (its_url, its_address, its_key) = (url.clone(), c.clone(), key.clone());
    let third = doomed.spawn(async move { broker(&its_url, &its_address, &its_key).await });
    let third = third.await.expect("starts");
    let mut all = vec![a.as_str(), &b, &c];
    all.sort_unstable();
    let client = mq(&[&a]);
    let mut receiver = client.subscribe(&key).expect("subscribe");
    let are = |expected: Vec<String>| {
        move |shown: &rpc_core::registry::Snapshot| {
            let mut shown = addresses(shown);
            shown.sort_unstable();
            shown == expected
        }
    };
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    until(&mut receiver, PATIENCE, "all three", are(names(&all))).await;

    // Nobody may keep it alive by telling of it.
    doomed.shutdown_background();
    drop(third);
    let mut left = vec![a.as_str(), b.as_str()];
    left.sort_unstable();
    until(&mut receiver, PATIENCE, "two", are(names(&left))).await;
    client.close().await;
    for (provider, registry) in brokers {
        registry.close().await;
        provider.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn token_is_asked_for_and_given() {
    let embedded = EmbeddedRegistry::new(LEASE);
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .token("secret")
        .serve(embedded.served());
    let provider = provider.start().await.expect("start");
    let key = unused_key("token");
    let with = Mq::builder(provider.local_addr())
        .lease(LEASE)
        .token("secret")
        .build();
    with.register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    let without = Mq::builder(provider.local_addr()).lease(LEASE).build();
    let refused = without
        .register(&key, &instance("h:2"), Duration::from_millis(500))
        .await;
    let Err(RegistryError::Unreachable { reason, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("token"), "the reason is told: {reason}");
    with.close().await;
    without.close().await;
    provider.shutdown(Duration::ZERO).await;
}
