//! Brokers find each other's registrations, and clients find all of them by knowing one.

use std::time::Duration;

use mq_common::api::{DISCOVERY_SERVICE, GROUP, VERSION};
use rpc_core::registry::{Registry, ServiceKey};

use crate::support::{BrokerProcess, Options, eventually, eventually_within};

fn key() -> ServiceKey {
    ServiceKey {
        group: GROUP.to_owned(),
        service: DISCOVERY_SERVICE.to_owned(),
        version: VERSION.to_owned(),
    }
}

fn names(registry: &dyn Registry) -> Vec<(String, String)> {
    let picture = registry.subscribe(&key()).unwrap();
    let picture = picture.borrow();
    let mut names: Vec<_> = picture
        .instances
        .iter()
        .map(|instance| (instance.name.clone(), instance.http.clone().unwrap_or_default()))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broker_is_enough_to_find_all() {
    let folder = tempfile::tempdir().unwrap();
    let first = BrokerProcess::start(&folder.path().join("one"));
    let url = format!("mq://{}", first.listen);
    let options = Options::default().argument("--registry").argument(url);
    let second = BrokerProcess::start_with(&folder.path().join("two"), &options);
    assert_eq!(second.get("/readyz").0, 200);
    let both = |one: &BrokerProcess, two: &BrokerProcess| {
        let mut both = [one, two].map(|broker| (broker.name.clone(), broker.http.clone()));
        both.sort();
        both
    };
    for address in [&first.listen, &second.listen] {
        let registry = rpc_registry::mq(address);
        eventually("both brokers are shown", async || {
            names(&*registry) == both(&first, &second)
        })
        .await;
        registry.close().await;
    }
    let registry = rpc_registry::mq(&first.listen);
    eventually("both are there", async || names(&*registry).len() == 2).await;
    assert!(second.stop().success());
    let left = [(first.name.clone(), first.http.clone())];
    // For one lease after its own start the first broker may not know all members yet: clients then only add.
    let gone = async || names(&*registry) == left;
    eventually_within(
        Duration::from_secs(60),
        "a stopped broker is not shown any more",
        gone,
    )
    .await;
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_registry_delays_the_ready_line_two_seconds_and_shows() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let options = Options::default()
        .argument("--registry")
        .argument(format!("mq://{nobody}"));
    let started = std::time::Instant::now();
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    assert!(started.elapsed() < Duration::from_secs(60));
    let (status, text) = broker.get("/readyz");
    assert_eq!(status, 503);
    assert!(text.contains("registration"), "{text}");
    assert_eq!(broker.get("/healthz").0, 200);
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_peer_does_not_hold_the_stop_up() {
    let folder = tempfile::tempdir().unwrap();
    let peer = BrokerProcess::start(&folder.path().join("peer"));
    let url = format!("mq://{}", peer.listen);
    let other = BrokerProcess::start(&folder.path().join("other"));
    let options = Options::default()
        .argument("--registry")
        .argument(format!("{url},{}", other.listen));
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    peer.kill();
    let stopping = std::time::Instant::now();
    assert!(broker.stop().success());
    assert!(
        stopping.elapsed() < Duration::from_secs(8),
        "every service was waited for: {:?}",
        stopping.elapsed()
    );
    // The living one was notified.
    let registry = rpc_registry::mq(&other.listen);
    let left = [(other.name.clone(), other.http.clone())];
    eventually_within(
        Duration::from_secs(60),
        "the stopped broker is gone",
        async || names(&*registry) == left,
    )
    .await;
    registry.close().await;
}
