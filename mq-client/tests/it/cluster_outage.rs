//! etcd is away for 30 seconds, three leases, under load: producers and consumers do not notice, and when it
//! is back the brokers are in it again without a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_client::{Client, NewTopic};

use crate::cluster_ledger::{Ledger, Load};
use crate::cluster_pair::{PATIENCE, Pair, names, tell, until};
use crate::support::{Broker, EtcdServer, mq};

const OUTAGE: Duration = Duration::from_secs(30);
/// A message reaches its consumer by then, whatever happens to etcd.
const LAG: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_etcd_is_not_missed_and_has_everybody_again_after_its_restart() {
    let mut pair = Pair::in_etcd().await;
    let load = Watched::start(&pair).await;
    etcd(&mut pair).kill();
    load.goes_on_for(OUTAGE, &pair).await;
    etcd(&mut pair).restart().await;
    load.ends_well("kill -9", &pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_etcd_is_not_missed_and_has_everybody_again_when_it_goes_on() {
    let mut pair = Pair::in_etcd().await;
    let load = Watched::start(&pair).await;
    etcd(&mut pair).pause();
    load.goes_on_for(OUTAGE, &pair).await;
    etcd(&mut pair).resume();
    load.ends_well("SIGSTOP", &pair).await;
}

fn etcd(pair: &mut Pair) -> &mut EtcdServer {
    pair.etcd.as_mut().unwrap()
}

/// A load that must not fail.
struct Watched {
    client: Client,
    ledger: Arc<Ledger>,
    load: Load,
    consumer: mq_client::Consumer,
    processes: [Option<u32>; 2],
    registrations: BTreeMap<String, i64>,
}

impl Watched {
    async fn start(pair: &Pair) -> Self {
        let client = pair.client().await;
        client
            .admin()
            .create_topic(NewTopic::new("t").queues(8))
            .await
            .unwrap();
        let ledger = Arc::new(Ledger::default());
        let consumer = ledger.consumer(&client, "g").await;
        let load = Load::start(&ledger, &client.producer().build(), None);
        until("load", PATIENCE, async || ledger.acked().len() > 200).await;
        Self {
            client,
            ledger,
            load,
            consumer,
            processes: pair.brokers.each_ref().map(Broker::process),
            registrations: pair.registrations().await,
        }
    }

    /// Messages are acknowledged and received all the time.
    async fn goes_on_for(&self, time: Duration, pair: &Pair) {
        let start = Instant::now();
        let mut worst = Duration::ZERO;
        while start.elapsed() < time {
            let now = Instant::now();
            until("messages being acknowledged", LAG, async || {
                self.ledger.acked_since(now) > 50
            })
            .await;
            let known = self.ledger.acked();
            worst = worst.max(
                until("messages being received", LAG, async || {
                    self.ledger.missing_of("g", &known) == 0
                })
                .await,
            );
            self.ledger.none_failed();
        }
        tell(&format!("consumer's lag during the outage at most {worst:?}"));
        // Brokers still tell of each other.
        let status = mq(
            &pair.brokers[0].listen,
            &["--output", "json", "cluster", "status"],
        )
        .ok();
        assert_eq!(names(&status.json()), ["a", "b"]);
    }

    async fn ends_well(self, form: &str, pair: &Pair) {
        let returned = Instant::now();
        // The old leases have ended by now, whether or not etcd has noticed: only new ones count.
        let is_old = |lease: &i64| self.registrations.values().any(|old| old == lease);
        until(
            "both brokers in etcd with all their services",
            PATIENCE,
            async || {
                let now = pair.registrations().await;
                now.keys().eq(self.registrations.keys()) && !now.values().any(is_old)
            },
        )
        .await;
        tell(&format!(
            "{form}: registrations back {:?} after etcd",
            returned.elapsed()
        ));
        let fresh = pair.client().await;
        let members = fresh.admin().cluster_status().await.unwrap();
        let names: Vec<_> = members.iter().map(|member| member.shard.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        fresh.shutdown().await;
        let now = Instant::now();
        until("a load as before", PATIENCE, async || {
            self.ledger.acked_since(now) > 500
        })
        .await;
        self.load.stop().await;
        self.ledger.none_failed();
        let processes = pair.brokers.each_ref().map(Broker::process);
        assert_eq!(processes, self.processes, "no restart");
        until("everything received", PATIENCE, async || {
            self.ledger.missing("g") == 0
        })
        .await;
        self.ledger.prove("g");
        self.consumer.stop().await.unwrap();
        self.client.shutdown().await;
    }
}
