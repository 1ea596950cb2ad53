//! The contract of every registry, as checks that any of them can be put through: those of this crate, and
//! yours. A failed check panics with what was expected and the last list seen; none waits longer than
//! [`Fixture::patience`].
//!
//! ```
//! # use std::sync::Arc;
//! use rpc_core::registry::Registry;
//! use rpc_registry::contract::{self, Fixture};
//!
//! struct InProcess;
//!
//! #[async_trait::async_trait]
//! impl Fixture for InProcess {
//!     async fn open(&self) -> Arc<dyn Registry> {
//!         rpc_registry::local("contract-example")
//!     }
//! }
//!
//! # fn main() -> Result<(), std::io::Error> {
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! contract::check(Arc::new(InProcess)).await;
//! # });
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{Freshness, Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use tokio::sync::watch;

/// Provides the checks with handles of the registry under test.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// A new handle, as in another process; all handles see the same registry.
    async fn open(&self) -> Arc<dyn Registry>;

    /// How long a check waits for something to become visible. Must be more than a lease, which some of them
    /// wait for.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// Runs all checks.
///
/// # Panics
/// A promise is broken.
pub async fn check(fixture: Arc<dyn Fixture>) {
    announced_is_seen_until_taken_back(&*fixture).await;
    nobody_is_a_fresh_empty_picture(&*fixture).await;
    pictures_are_sorted_and_whole(&*fixture).await;
    services_do_not_mix(&*fixture).await;
    odd_names_are_kept(&*fixture).await;
    registering_again_replaces(&*fixture).await;
    one_address_can_serve_twice(&*fixture).await;
    unknown_is_forgotten_gladly(&*fixture).await;
    closing_takes_everything_back(&*fixture).await;
    announcements_end_with_their_process(&fixture).await;
}

/// A key that no other check uses.
#[must_use]
pub fn unused_key(service: &str) -> ServiceKey {
    ServiceKey {
        group: "default".into(),
        service: format!("{service}-{:08x}", fastrand::u32(..)),
        version: "1.0".into(),
    }
}

/// An instance with a random id at `address`.
#[must_use]
pub fn instance(address: &str) -> Instance {
    Instance {
        id: InstanceId::random(),
        address: address.to_owned(),
        name: "somebody".into(),
        http: None,
        weight: 100,
        zone: None,
        started_ms: 0,
        serializers: vec!["msgpack".into()],
        meta: BTreeMap::new(),
    }
}

/// Waits until `receiver` has a snapshot that is `expected`.
///
/// # Panics
/// It had none within `patience`.
pub async fn until(
    receiver: &mut watch::Receiver<Snapshot>,
    patience: Duration,
    what: &str,
    mut expected: impl FnMut(&Snapshot) -> bool,
) -> Snapshot {
    let waited = tokio::time::timeout(patience, receiver.wait_for(|shown| expected(shown))).await;
    if let Ok(Ok(shown)) = waited {
        return shown.clone();
    }
    drop(waited);
    panic!(
        "expected {what} within {patience:?}; last seen: {:?}",
        receiver.borrow()
    );
}

/// The addresses in a snapshot, in its order.
#[must_use]
pub fn addresses(shown: &Snapshot) -> Vec<&str> {
    shown
        .instances
        .iter()
        .map(|instance| instance.address.as_str())
        .collect()
}

fn ok<T>(result: Result<T, impl Debug>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

async fn register(
    fixture: &dyn Fixture,
    registry: &Arc<dyn Registry>,
    key: &ServiceKey,
    instance: &Instance,
) {
    ok(
        registry.register(key, instance, fixture.patience()).await,
        "register",
    );
}

/// One handle announces an instance; another sees it unchanged, and sees it disappear, whether it subscribed
/// before or after.
///
/// # Panics
/// It was not seen, was changed, or did not disappear.
pub async fn announced_is_seen_until_taken_back(fixture: &dyn Fixture) {
    let key = unused_key("seen");
    let (provider, client) = (fixture.open().await, fixture.open().await);
    let mut before = ok(client.subscribe(&key), "subscribe");
    let mut me = instance("10.0.0.1:9090");
    me.http = Some("10.0.0.1:8080".into());
    me.zone = Some("a".into());
    me.started_ms = 1_761_000_000_123;
    me.weight = 7;
    me.meta.insert("colour".into(), "blå".into());
    register(fixture, &provider, &key, &me).await;
    let mut after = ok(client.subscribe(&key), "subscribe");
    for receiver in [&mut before, &mut after] {
        let shown = until(receiver, fixture.patience(), "one instance", |shown| {
            shown.instances.len() == 1
        });
        let shown = shown.await;
        assert_eq!(
            *shown.instances[0], me,
            "an instance must arrive as it was announced"
        );
        assert_eq!(shown.freshness, Freshness::Fresh);
    }
    ok(provider.deregister(&key, &me.id).await, "deregister");
    for receiver in [&mut before, &mut after] {
        until(receiver, fixture.patience(), "nobody", |shown| {
            shown.instances.is_empty()
        })
        .await;
    }
    provider.close().await;
    client.close().await;
}

/// A service without instances is known to have none.
///
/// # Panics
/// It stayed unknown.
pub async fn nobody_is_a_fresh_empty_picture(fixture: &dyn Fixture) {
    let client = fixture.open().await;
    let mut receiver = ok(client.subscribe(&unused_key("nobody")), "subscribe");
    let shown = until(&mut receiver, fixture.patience(), "a fresh picture", |shown| {
        shown.freshness == Freshness::Fresh
    });
    assert!(shown.await.instances.is_empty());
    client.close().await;
}

/// Lists contain all instances, sorted by instance id.
///
/// # Panics
/// One was missing, or the order was different.
pub async fn pictures_are_sorted_and_whole(fixture: &dyn Fixture) {
    let key = unused_key("sorted");
    let (one, other, client) = (fixture.open().await, fixture.open().await, fixture.open().await);
    let mut receiver = ok(client.subscribe(&key), "subscribe");
    for number in 0..20u32 {
        let registry = if number % 2 == 0 { &one } else { &other };
        register(fixture, registry, &key, &instance(&format!("h:{number}"))).await;
    }
    let shown = until(&mut receiver, fixture.patience(), "20 instances", |shown| {
        shown.instances.len() == 20
    });
    let shown = shown.await;
    assert!(
        shown.instances.is_sorted_by(|a, b| a.id < b.id),
        "pictures are sorted by instance id: {shown:?}"
    );
    for registry in [one, other, client] {
        registry.close().await;
    }
}

/// Groups, versions and names with a common prefix are different services; one instance may serve several.
///
/// # Panics
/// An instance appeared under another key, or disappeared with another one.
pub async fn services_do_not_mix(fixture: &dyn Fixture) {
    let base = unused_key("Bank");
    let mut keys = vec![base.clone()];
    for (group, service, version) in [
        ("default", "2", "1.0"),
        ("blue", "", "1.0"),
        ("default", "", "1.0.1"),
    ] {
        keys.push(ServiceKey {
            group: group.into(),
            service: format!("{}{service}", base.service),
            version: version.into(),
        });
    }
    let (provider, client) = (fixture.open().await, fixture.open().await);
    let id = InstanceId::random();
    let mut receivers = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let mut me = instance(&format!("h:{number}"));
        me.id = id.clone();
        register(fixture, &provider, key, &me).await;
        receivers.push(ok(client.subscribe(key), "subscribe"));
    }
    for (number, receiver) in receivers.iter_mut().enumerate() {
        let only = format!("h:{number}");
        let what = format!("only {only} under {}", keys[number]);
        until(receiver, fixture.patience(), &what, |shown| {
            addresses(shown) == [&only]
        })
        .await;
    }
    ok(provider.deregister(&keys[1], &id).await, "deregister");
    until(&mut receivers[1], fixture.patience(), "nobody", |shown| {
        shown.instances.is_empty()
    })
    .await;
    for number in [0, 2, 3] {
        assert_eq!(
            receivers[number].borrow().instances.len(),
            1,
            "{} disappeared with {}",
            keys[number],
            keys[1]
        );
    }
    provider.close().await;
    client.close().await;
}

/// Names may contain any character.
///
/// # Panics
/// One of them was lost or led to another service.
pub async fn odd_names_are_kept(fixture: &dyn Fixture) {
    let (provider, client) = (fixture.open().await, fixture.open().await);
    let salt = unused_key("odd").service;
    let odd = [
        "a/b",
        "a%2Fb",
        "a%b",
        "a:b",
        "a b",
        "..",
        "",
        "ÄÖ\u{1F600}",
        "a\"b\\c",
        "*",
        "a?b=c&d#e",
        "\u{0}\n",
    ];
    let mut receivers = Vec::new();
    for (number, name) in odd.iter().enumerate() {
        let key = ServiceKey {
            group: format!("{salt}{name}"),
            service: (*name).to_owned(),
            version: (*name).to_owned(),
        };
        let mut me = instance(&format!("h:{number}"));
        me.id = InstanceId(format!("{salt}{name}"));
        me.name = (*name).to_owned();
        register(fixture, &provider, &key, &me).await;
        receivers.push((me, ok(client.subscribe(&key), "subscribe")));
    }
    for (me, receiver) in &mut receivers {
        let what = format!("the instance `{}` only", me.id);
        until(receiver, fixture.patience(), &what, |shown| {
            shown.instances.len() == 1 && *shown.instances[0] == *me
        })
        .await;
    }
    provider.close().await;
    client.close().await;
}

/// Registering the same id again replaces the previous registration.
///
/// # Panics
/// Both were seen, or only the first.
pub async fn registering_again_replaces(fixture: &dyn Fixture) {
    let key = unused_key("again");
    let (provider, client) = (fixture.open().await, fixture.open().await);
    let mut receiver = ok(client.subscribe(&key), "subscribe");
    let mut me = instance("h:1");
    register(fixture, &provider, &key, &me).await;
    me.weight = 0;
    register(fixture, &provider, &key, &me).await;
    until(
        &mut receiver,
        fixture.patience(),
        "one instance of weight 0",
        |shown| shown.instances.len() == 1 && shown.instances[0].weight == 0,
    )
    .await;
    ok(provider.deregister(&key, &me.id).await, "deregister");
    register(fixture, &provider, &key, &me).await;
    until(&mut receiver, fixture.patience(), "the instance again", |shown| {
        shown.instances.len() == 1
    })
    .await;
    provider.close().await;
    client.close().await;
}

/// A restarted process has its predecessor's address and a different id: neither removes the other.
///
/// # Panics
/// One of them was lost.
pub async fn one_address_can_serve_twice(fixture: &dyn Fixture) {
    let key = unused_key("twice");
    let (old, new, client) = (fixture.open().await, fixture.open().await, fixture.open().await);
    let mut receiver = ok(client.subscribe(&key), "subscribe");
    let (was, is) = (instance("h:1"), instance("h:1"));
    register(fixture, &old, &key, &was).await;
    register(fixture, &new, &key, &is).await;
    until(&mut receiver, fixture.patience(), "two instances", |shown| {
        shown.instances.len() == 2
    })
    .await;
    ok(old.deregister(&key, &was.id).await, "deregister");
    let shown = until(&mut receiver, fixture.patience(), "one instance", |shown| {
        shown.instances.len() == 1
    });
    assert_eq!(shown.await.instances[0].id, is.id);
    for registry in [old, new, client] {
        registry.close().await;
    }
}

/// Withdrawing an announcement that was never made is not an error, and withdraws nothing else.
///
/// # Panics
/// It was an error.
pub async fn unknown_is_forgotten_gladly(fixture: &dyn Fixture) {
    let key = unused_key("unknown");
    let (provider, stranger) = (fixture.open().await, fixture.open().await);
    let me = instance("h:1");
    register(fixture, &provider, &key, &me).await;
    ok(
        stranger.deregister(&key, &InstanceId::random()).await,
        "deregister",
    );
    ok(stranger.deregister(&key, &me.id).await, "deregister");
    let mut receiver = ok(stranger.subscribe(&key), "subscribe");
    let shown = until(&mut receiver, fixture.patience(), "the instance", |shown| {
        !shown.instances.is_empty()
    });
    assert_eq!(shown.await.instances[0].id, me.id, "only its owner withdraws it");
    provider.close().await;
    stranger.close().await;
}

/// Closing withdraws every announcement; a closed registry returns `Closed`.
///
/// # Panics
/// An announcement stayed, or the closed handle still worked.
pub async fn closing_takes_everything_back(fixture: &dyn Fixture) {
    let keys = [unused_key("close"), unused_key("close")];
    let (provider, client) = (fixture.open().await, fixture.open().await);
    let me = instance("h:1");
    let mut receivers = Vec::new();
    for key in &keys {
        let mut receiver = ok(client.subscribe(key), "subscribe");
        register(fixture, &provider, key, &me).await;
        until(&mut receiver, fixture.patience(), "the instance", |shown| {
            shown.instances.len() == 1
        })
        .await;
        receivers.push(receiver);
    }
    provider.close().await;
    for receiver in &mut receivers {
        until(receiver, fixture.patience(), "nobody", |shown| {
            shown.instances.is_empty()
        })
        .await;
    }
    let refused = provider.register(&keys[0], &me, fixture.patience()).await;
    assert!(matches!(refused, Err(RegistryError::Closed)), "{refused:?}");
    let refused = provider.subscribe(&keys[0]);
    assert!(matches!(refused, Err(RegistryError::Closed)), "{refused:?}");
    ok(
        provider.deregister(&keys[0], &me.id).await,
        "deregister after close",
    );
    provider.close().await;
    client.close().await;
}

/// The announcements of a process end with it, even if it dies without deregistering.
///
/// # Panics
/// They stayed.
pub async fn announcements_end_with_their_process(fixture: &Arc<dyn Fixture>) {
    let key = unused_key("dies");
    let client = fixture.open().await;
    let mut receiver = ok(client.subscribe(&key), "subscribe");
    // Its tasks live on a runtime of their own, which ends without letting them finish: like a death, but
    // within one process.
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let doomed = ok(doomed, "a runtime");
    let (its_fixture, its_key) = (Arc::clone(fixture), key.clone());
    let registry = doomed.spawn(async move {
        let registry = its_fixture.open().await;
        register(&*its_fixture, &registry, &its_key, &instance("h:1")).await;
        registry
    });
    let registry = ok(registry.await, "the doomed process");
    until(&mut receiver, fixture.patience(), "the instance", |shown| {
        shown.instances.len() == 1
    })
    .await;
    doomed.shutdown_background();
    drop(registry);
    until(&mut receiver, fixture.patience(), "nobody", |shown| {
        shown.instances.is_empty()
    })
    .await;
    client.close().await;
}
