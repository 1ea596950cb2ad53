//! The etcd registry and what happens to etcd: outages, restarts, lost leases, compaction, a wiped data folder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::registry::{Freshness, Registry, RegistryError};
use rpc_registry::Etcd;
use rpc_registry::contract::{addresses, instance, unused_key};

use crate::etcd::{LEASE, PATIENCE, Pair, eventually, is_fresh_with, registry, see, stored};
use crate::etcd_server::EtcdServer;

#[tokio::test]
async fn killed_and_restarted_etcd_loses_nobody() {
    let mut server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    server.kill();
    see(&mut pair.receiver, "the old list", |shown| {
        shown.freshness == Freshness::Stale
    })
    .await;
    assert_eq!(
        addresses(&pair.receiver.borrow()),
        ["h:1"],
        "the last known list is kept"
    );

    // What is announced meanwhile comes true afterwards.
    let late = pair
        .provider
        .register(&pair.key, &instance("h:2"), Duration::from_millis(300))
        .await;
    assert!(matches!(late, Err(RegistryError::Unreachable { .. })), "{late:?}");

    let mut seen = Vec::new();
    server.restart().await;
    see(&mut pair.receiver, "both", |shown| {
        seen.push(shown.clone());
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;
    assert!(
        seen.iter().all(|shown| addresses(shown).contains(&"h:1")),
        "h:1 was there all the time: {seen:?}"
    );
    pair.close().await;
}

#[tokio::test]
async fn etcd_that_is_away_longer_than_a_lease_loses_nobody() {
    let mut server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    let before = stored(&server).await;
    server.kill();
    // The provider has given its lease up by then and takes another.
    let given_up = Instant::now() + LEASE * 2;
    while Instant::now() < given_up {
        assert_eq!(addresses(&pair.receiver.borrow()), ["h:1"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.restart().await;
    eventually("a new lease", async || {
        let now = stored(&server).await;
        now.len() == 1 && now[0].1 != before[0].1
    })
    .await;
    see(&mut pair.receiver, "h:1", |shown| is_fresh_with(shown, &["h:1"])).await;
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_hangs_longer_than_a_lease_empties_no_list() {
    let server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    let before = stored(&server).await;
    server.pause();
    let given_up = Instant::now() + LEASE * 3;
    while Instant::now() < given_up {
        assert_eq!(addresses(&pair.receiver.borrow()), ["h:1"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Now it finds that the old lease has ended long ago, and its key with it.
    server.resume();
    let mut seen = Vec::new();
    see(&mut pair.receiver, "h:1", |shown| {
        seen.push(shown.clone());
        is_fresh_with(shown, &["h:1"])
    })
    .await;
    eventually("a new lease", async || {
        let now = stored(&server).await;
        now.len() == 1 && now[0].1 != before[0].1
    })
    .await;
    see(&mut pair.receiver, "h:1", |shown| {
        seen.push(shown.clone());
        is_fresh_with(shown, &["h:1"])
    })
    .await;
    assert!(
        seen.iter().all(|shown| addresses(shown).contains(&"h:1")),
        "h:1 was there all the time: {seen:?}"
    );
    pair.close().await;
}

#[tokio::test]
async fn lost_lease_is_replaced_and_everything_registered_again() {
    let server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    let other = unused_key("other");
    pair.provider
        .register(&other, &instance("h:9"), PATIENCE)
        .await
        .expect("register");
    for _ in 0..2 {
        let before = stored(&server).await;
        assert_eq!(before.len(), 2);
        assert_eq!(before[0].1, before[1].1, "one lease a process");
        server
            .client()
            .await
            .lease_revoke(before[0].1)
            .await
            .expect("revoke");
        see(&mut pair.receiver, "nobody", |shown| shown.instances.is_empty()).await;
        see(&mut pair.receiver, "h:1 again", |shown| {
            is_fresh_with(shown, &["h:1"])
        })
        .await;
        eventually("both keys under a new lease", async || {
            let now = stored(&server).await;
            now.len() == 2 && now.iter().all(|(_, lease)| *lease != before[0].1)
        })
        .await;
    }
    pair.close().await;
    assert_eq!(stored(&server).await, []);
}

#[tokio::test]
async fn p17_wiped_etcd_does_not_empty_the_list() {
    let mut server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    // One who does not come back, to see that it goes in the end.
    let gone = registry(&server);
    gone.register(&pair.key, &instance("h:2"), PATIENCE)
        .await
        .expect("register");
    see(&mut pair.receiver, "both", |shown| {
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;
    for number in 0..50 {
        server
            .client()
            .await
            .put("noise", format!("{number}"), None)
            .await
            .expect("put");
    }
    server.wipe();
    // Nothing is left to revoke, and nobody is left to renew.
    drop(gone);
    see(&mut pair.receiver, "the old list", |shown| {
        shown.freshness == Freshness::Stale
    })
    .await;
    server.restart().await;
    let mut seen = Vec::new();
    see(&mut pair.receiver, "h:1 alone", |shown| {
        seen.push(shown.clone());
        is_fresh_with(shown, &["h:1"])
    })
    .await;
    assert!(
        seen.iter().all(|shown| addresses(shown).contains(&"h:1")),
        "never without h:1: {seen:?}"
    );
    // And the watch works on the new history.
    pair.provider
        .register(&pair.key, &instance("h:3"), PATIENCE)
        .await
        .expect("register");
    see(&mut pair.receiver, "h:3", |shown| {
        is_fresh_with(shown, &["h:1", "h:3"])
    })
    .await;
    pair.close().await;
}

/// Forwards to etcd until it is cut, so that one side can be away while etcd lives.
struct Wire {
    address: String,
    etcd: String,
    forward: tokio::task::JoinSet<()>,
}

impl Wire {
    async fn new(server: &EtcdServer) -> Self {
        let mut wire = Self {
            address: "127.0.0.1:0".into(),
            etcd: server.address(),
            forward: tokio::task::JoinSet::new(),
        };
        wire.mend().await;
        wire
    }

    async fn mend(&mut self) {
        let listener = tokio::net::TcpListener::bind(&self.address).await.expect("bind");
        self.address = listener.local_addr().expect("bound").to_string();
        let etcd = self.etcd.clone();
        self.forward.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let etcd = etcd.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = tokio::net::TcpStream::connect(etcd).await {
                        // Ends with either side.
                        drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                    }
                });
            }
        });
    }

    async fn cut(&mut self) {
        self.forward.shutdown().await;
    }
}

#[tokio::test]
async fn compaction_while_the_watcher_is_away_is_no_gap() {
    let server = EtcdServer::start().await;
    let mut wire = Wire::new(&server).await;
    let provider = registry(&server);
    let client: Arc<dyn Registry> = Arc::new(Etcd::builder(&wire.address).lease(LEASE).build());
    let key = unused_key("compacted");
    let mut receiver = client.subscribe(&key).expect("subscribe");
    let (stays, goes, comes) = (instance("h:1"), instance("h:2"), instance("h:3"));
    for one in [&stays, &goes] {
        provider.register(&key, one, PATIENCE).await.expect("register");
    }
    see(&mut receiver, "two", |shown| {
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;

    wire.cut().await;
    see(&mut receiver, "the old list", |shown| {
        shown.freshness == Freshness::Stale
    })
    .await;
    provider.deregister(&key, &goes.id).await.expect("deregister");
    provider.register(&key, &comes, PATIENCE).await.expect("register");
    let mut admin = server.client().await;
    let put = admin.put("noise", "", None).await.expect("put");
    let revision = put.header().expect("a header").revision();
    admin.compact(revision, None).await.expect("compact");
    assert_eq!(receiver.borrow().instances.len(), 2);

    wire.mend().await;
    see(&mut receiver, "what is now", |shown| {
        is_fresh_with(shown, &["h:1", "h:3"])
    })
    .await;
    provider.close().await;
    client.close().await;
}

#[tokio::test]
async fn network_that_was_away_longer_than_a_lease_empties_no_list() {
    let server = EtcdServer::start().await;
    let mut wire = Wire::new(&server).await;
    let cut_off = || -> Arc<dyn Registry> { Arc::new(Etcd::builder(&wire.address).lease(LEASE).build()) };
    let (provider, gone, client) = (cut_off(), cut_off(), cut_off());
    let key = unused_key("partition");
    let mut receiver = client.subscribe(&key).expect("subscribe");
    provider
        .register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    gone.register(&key, &instance("h:2"), PATIENCE)
        .await
        .expect("register");
    see(&mut receiver, "both", |shown| {
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;

    // etcd lives on without them and ends their leases; one of them dies meanwhile.
    wire.cut().await;
    drop(gone);
    eventually("the leases to end", async || stored(&server).await.is_empty()).await;
    wire.mend().await;
    let mut seen = Vec::new();
    see(&mut receiver, "h:1 alone", |shown| {
        seen.push(shown.clone());
        is_fresh_with(shown, &["h:1"])
    })
    .await;
    assert!(
        seen.iter().all(|shown| addresses(shown).contains(&"h:1")),
        "h:1 was there all the time: {seen:?}"
    );
    provider.close().await;
    client.close().await;
}

#[tokio::test]
async fn one_dead_endpoint_of_two_does_no_harm() {
    let server = EtcdServer::start().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("bind")
        .local_addr()
        .expect("bound");
    let endpoints = format!("{nobody},{}", server.address());
    let both: Arc<dyn Registry> = Arc::new(Etcd::builder(&endpoints).lease(LEASE).build());
    let key = unused_key("two");
    let mut receiver = both.subscribe(&key).expect("subscribe");
    both.register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    see(&mut receiver, "h:1", |shown| is_fresh_with(shown, &["h:1"])).await;
    both.close().await;
}

#[tokio::test]
async fn start_without_etcd_waits_only_as_long_as_asked_and_recovers() {
    let mut server = EtcdServer::start().await;
    server.kill();
    let (provider, client) = (registry(&server), registry(&server));
    let key = unused_key("early");
    let mut receiver = client.subscribe(&key).expect("subscribe");
    let started = Instant::now();
    let refused = provider
        .register(&key, &instance("h:1"), Duration::from_millis(500))
        .await;
    assert!(
        matches!(refused, Err(RegistryError::Unreachable { .. })),
        "{refused:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(
        receiver.borrow().freshness,
        Freshness::Unknown,
        "nothing was heard yet"
    );
    server.restart().await;
    see(&mut receiver, "h:1", |shown| is_fresh_with(shown, &["h:1"])).await;
    provider.close().await;
    client.close().await;
}

#[tokio::test]
async fn close_without_etcd_takes_no_longer_than_promised() {
    let mut server = EtcdServer::start().await;
    let pair = Pair::new(&server).await;
    server.kill();
    let started = Instant::now();
    pair.close().await;
    assert!(
        started.elapsed() < Duration::from_secs(7),
        "{:?} for two",
        started.elapsed()
    );
}
