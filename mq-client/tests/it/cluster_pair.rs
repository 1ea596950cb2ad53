//! Two brokers of one cluster, found through etcd or through the registry that they carry with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use etcd_client::GetOptions;
use mq_client::Client;
use mq_common::ids::QueueNumber;
use serde_json::Value;

use crate::support::{Broker, EtcdServer, Ran, mq_in};

/// How long anything may take that has no promise of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(20);

/// Two brokers.
pub(crate) struct Pair {
    pub(crate) brokers: [Broker; 2],
    /// Gone with the pair.
    pub(crate) etcd: Option<EtcdServer>,
    /// The registry's URL, as brokers and clients are given it.
    pub(crate) url: String,
    /// The same for the command line.
    flags: [String; 2],
}

impl Pair {
    /// Brokers `a` and `b` in an etcd of their own.
    pub(crate) async fn in_etcd() -> Self {
        let etcd = EtcdServer::start().await;
        let url = format!("etcd://{}", etcd.address());
        let broker = |name| Broker::start_with(&["--name", name, "--registry", &url]);
        Self {
            brokers: [broker("a"), broker("b")],
            etcd: Some(etcd),
            flags: ["--registry".to_owned(), url.clone()],
            url,
        }
    }

    /// Brokers `a` and `b` that register at each other.
    pub(crate) fn embedded() -> Self {
        let addresses = free_addresses();
        let both = addresses.join(",");
        let url = format!("mq://{both}");
        let broker = |name, at| Broker::start_at(at, &["--name", name, "--registry", &url]);
        Self {
            brokers: [broker("a", &addresses[0]), broker("b", &addresses[1])],
            etcd: None,
            url,
            flags: ["--broker".to_owned(), both],
        }
    }

    /// `mq` in this cluster.
    pub(crate) fn mq(&self, arguments: &[&str], input: &[u8]) -> Ran {
        mq_in(self.flags.each_ref().map(String::as_str), arguments, input)
    }

    /// A client of this cluster.
    pub(crate) async fn client(&self) -> Client {
        Client::builder()
            .registry(self.url.as_str())
            .build()
            .await
            .unwrap()
    }

    /// What `mq cluster status` shows, by name, and its exit status.
    pub(crate) fn status(&self) -> (Vec<Value>, i32) {
        let ran = self.mq(&["--output", "json", "cluster", "status"], b"");
        (ran.json(), ran.status)
    }

    /// The keys in etcd with their leases.
    pub(crate) async fn registrations(&self) -> BTreeMap<String, i64> {
        let mut client = self.etcd.as_ref().unwrap().client().await;
        let all = Some(GetOptions::new().with_prefix());
        let found = client.get("/hc-rpc/", all).await.unwrap();
        let keys = found.kvs().iter();
        keys.map(|kv| (kv.key_str().unwrap().to_owned(), kv.lease()))
            .collect()
    }

    /// The queues of topic `t` that lie on this broker.
    pub(crate) async fn queues_of(&self, client: &Client, broker: usize) -> BTreeSet<QueueNumber> {
        let description = client.admin().describe_topic("t").await.unwrap();
        let declared = &description.items[0].topic.queues;
        let name = self.brokers[broker].name.as_str();
        let here = declared.iter().filter(|home| home.shard.as_str() == name);
        here.map(|home| home.queue).collect()
    }
}

/// The names in `mq cluster status`.
pub(crate) fn names(status: &[Value]) -> Vec<&str> {
    status.iter().map(|row| row["broker"].as_str().unwrap()).collect()
}

/// Waits until the answer is yes, and says how long that took.
pub(crate) async fn until(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < within, "expected {what} within {within:?}");
        tokio::time::sleep(TURN).await;
    }
    start.elapsed()
}

/// Tells a figure to whoever looks at the output.
#[expect(clippy::print_stderr, reason = "shown by `cargo test -- --nocapture`")]
pub(crate) fn tell(figure: &str) {
    eprintln!("figure: {figure}");
}

/// Two addresses that brokers can be told of before they listen. They lie on an address of the loopback
/// network that no other test has, so a port that was free stays free until its broker binds it.
fn free_addresses() -> [String; 2] {
    let own = Ipv4Addr::new(
        127,
        fastrand::u8(1..=254),
        fastrand::u8(..),
        fastrand::u8(1..=254),
    );
    let listeners = [(); 2].map(|()| TcpListener::bind((own, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}
