//! The etcd registry against a real etcd: the contract, and what users, strangers and garbage do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use rpc_core::registry::{Freshness, Registry, RegistryError, ServiceKey, Snapshot};
use rpc_registry::Etcd;
use rpc_registry::contract::{self, Fixture, addresses, instance, until, unused_key};
use tokio::sync::watch;

use crate::etcd_server::EtcdServer;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const LEASE: Duration = Duration::from_secs(3);

struct Cluster(EtcdServer);

#[async_trait]
impl Fixture for Cluster {
    async fn open(&self) -> Arc<dyn Registry> {
        registry(&self.0)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

pub(crate) fn registry(server: &EtcdServer) -> Arc<dyn Registry> {
    Arc::new(Etcd::builder(&server.address()).lease(LEASE).build())
}

pub(crate) async fn see(
    receiver: &mut watch::Receiver<Snapshot>,
    what: &str,
    expected: impl FnMut(&Snapshot) -> bool,
) {
    until(receiver, PATIENCE, what, expected).await;
}

pub(crate) fn is_fresh_with(shown: &Snapshot, expected: &[&str]) -> bool {
    let mut shown_addresses = addresses(shown);
    shown_addresses.sort_unstable();
    shown.freshness == Freshness::Fresh && shown_addresses == expected
}

/// A provider with one instance at `h:1` and a client that sees it.
pub(crate) struct Pair {
    pub(crate) provider: Arc<dyn Registry>,
    pub(crate) client: Arc<dyn Registry>,
    pub(crate) key: ServiceKey,
    pub(crate) receiver: watch::Receiver<Snapshot>,
}

impl Pair {
    pub(crate) async fn new(server: &EtcdServer) -> Self {
        let (provider, client) = (registry(server), registry(server));
        let key = unused_key("pair");
        let mut receiver = client.subscribe(&key).expect("subscribe");
        provider
            .register(&key, &instance("h:1"), PATIENCE)
            .await
            .expect("register");
        see(&mut receiver, "h:1", |shown| is_fresh_with(shown, &["h:1"])).await;
        Self {
            provider,
            client,
            key,
            receiver,
        }
    }

    pub(crate) async fn close(self) {
        self.provider.close().await;
        self.client.close().await;
    }
}

/// Keys below `/hc-rpc/` and their leases.
pub(crate) async fn stored(server: &EtcdServer) -> Vec<(String, i64)> {
    let options = GetOptions::new().with_prefix();
    let found = server
        .client()
        .await
        .get("/hc-rpc/", Some(options))
        .await
        .expect("get");
    let found = found.kvs().iter();
    found
        .map(|kv| (kv.key_str().expect("our keys are ASCII").to_owned(), kv.lease()))
        .collect()
}

/// Asks again until the answer is yes.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "expected {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    contract::check(Arc::new(Cluster(EtcdServer::start().await))).await;
}

#[tokio::test]
async fn only_a_key_under_our_own_lease_is_deleted() {
    let server = EtcdServer::start().await;
    let pair = Pair::new(&server).await;
    let me = pair.receiver.borrow().instances[0].clone();
    // Somebody else has taken the key over.
    let [(path, _)] = stored(&server).await.try_into().expect("one key");
    let mut admin = server.client().await;
    let theirs = admin.lease_grant(60, None).await.expect("grant").id();
    let options = PutOptions::new().with_lease(theirs);
    admin
        .put(path.as_str(), r#"{"address": "h:7"}"#, Some(options))
        .await
        .expect("put");
    pair.provider
        .deregister(&pair.key, &me.id)
        .await
        .expect("deregister");
    assert_eq!(stored(&server).await, [(path.clone(), theirs)]);
    pair.close().await;
    assert_eq!(stored(&server).await, [(path, theirs)], "nor with the lease");
}

#[tokio::test]
async fn garbage_below_the_prefix_harms_nobody() {
    let server = EtcdServer::start().await;
    let mut pair = Pair::new(&server).await;
    let prefix = format!("/hc-rpc/default/{}:1.0/", pair.key.service);
    let mut admin = server.client().await;
    for (key, value) in [
        ("x", "not json"),
        ("y", "{}"),
        ("z/z", r#"{"address": "h:8"}"#),
        ("%ff", "{}"),
    ] {
        admin
            .put(format!("{prefix}{key}"), value, None)
            .await
            .expect("put");
    }
    let good = r#"{"address": "h:2", "unheard_of": {"a": 1}}"#;
    admin.put(format!("{prefix}good"), good, None).await.expect("put");
    see(&mut pair.receiver, "the good ones", |shown| {
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;
    // A new client meets the same in its first list.
    let client = registry(&server);
    let mut receiver = client.subscribe(&pair.key).expect("subscribe");
    see(&mut receiver, "the good ones", |shown| {
        is_fresh_with(shown, &["h:1", "h:2"])
    })
    .await;
    client.close().await;
    pair.close().await;
}

#[tokio::test]
async fn long_lists_come_whole() {
    let server = EtcdServer::start().await;
    let key = unused_key("long");
    let mut admin = server.client().await;
    // Three pages; in transactions, since etcd syncs each.
    for hundred in 0..5 {
        let puts: Vec<_> = (0..100)
            .map(|number| {
                let path = format!("/hc-rpc/default/{}:1.0/{hundred}-{number}", key.service);
                TxnOp::put(path, format!(r#"{{"address": "h:{number}"}}"#), None)
            })
            .collect();
        admin.txn(Txn::new().and_then(puts)).await.expect("puts");
    }
    let client = registry(&server);
    let mut receiver = client.subscribe(&key).expect("subscribe");
    see(&mut receiver, "500", |shown| shown.instances.len() == 500).await;
    client.close().await;
}

#[tokio::test]
async fn users_and_passwords_are_used() {
    let server = EtcdServer::start().await;
    let mut admin = server.client().await;
    admin.user_add("root", "secret", None).await.expect("user");
    admin.role_add("root").await.expect("role");
    admin.user_grant_role("root", "root").await.expect("grant");
    admin.auth_enable().await.expect("enable");
    let key = unused_key("auth");
    let with = |password: &str| {
        Etcd::builder(&server.address())
            .lease(LEASE)
            .user("root", password)
            .build()
    };
    let good = with("secret");
    let mut receiver = good.subscribe(&key).expect("subscribe");
    good.register(&key, &instance("h:1"), PATIENCE)
        .await
        .expect("register");
    see(&mut receiver, "h:1", |shown| is_fresh_with(shown, &["h:1"])).await;

    let bad = with("wrong");
    let refused = bad.register(&key, &instance("h:2"), Duration::from_secs(1)).await;
    let Err(RegistryError::Unreachable { reason, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("password"), "the reason is told: {reason}");
    bad.close().await;
    good.close().await;
}

/// What deleting only our own keys rests on.
#[tokio::test]
async fn absent_key_is_under_no_lease() {
    let server = EtcdServer::start().await;
    let mut admin = server.client().await;
    let absent = Compare::lease("absent", CompareOp::Equal, 4711);
    let answer = admin.txn(Txn::new().when([absent])).await.expect("txn");
    assert!(!answer.succeeded());
}
