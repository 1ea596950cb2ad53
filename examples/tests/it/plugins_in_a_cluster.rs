//! What a stranger's crate adds by name is used in a cluster of real brokers: a producer's brokers are balanced
//! by its load balancer, and its serializer is asked for.

use std::collections::BTreeMap;

use mq_client::{Client, Message, NewTopic};
use mq_common::api::AdminClient;
use mq_common::ids::QueueNumber;
use rpc_core::{CallError, Executed, Invoker};

use crate::broker::Broker;

// All that a program says to have its plug-ins.
use own_plugins as _;

const MESSAGES: usize = 100;

/// Two brokers of which the stranger's `primary_first` prefers the first.
struct Cluster {
    primary: Broker,
    spare: Broker,
}

impl Cluster {
    fn start() -> Self {
        let spare = Broker::start_with(&["--name", "b-spare"]);
        let registry = format!("mq://{}", spare.listen);
        let primary = Broker::start_with(&["--name", "a-primary", "--registry", &registry]);
        Self { primary, spare }
    }

    async fn client(&self, balancer: &str) -> Client {
        let client = Client::builder()
            .brokers([&self.spare.listen])
            .load_balancer(balancer);
        client.build().await.unwrap()
    }
}

/// How many of the messages went to which broker.
async fn shares(client: &Client) -> BTreeMap<String, usize> {
    let description = client.admin().describe_topic("t").await.unwrap();
    let homes = &description.items[0].topic.queues;
    let home = |queue: QueueNumber| homes.iter().find(|home| home.queue == queue).unwrap();
    let producer = client.producer().build();
    let mut shares = BTreeMap::new();
    for _ in 0..MESSAGES {
        let receipt = producer.send(Message::new("t", "m").unwrap()).await.unwrap();
        *shares.entry(home(receipt.queue).shard.to_string()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producer_is_balanced_by_a_strangers_load_balancer() {
    let mut cluster = Cluster::start();
    let usual = cluster.client("round_robin").await;
    usual
        .admin()
        .create_topic(NewTopic::new("t").queues(8))
        .await
        .unwrap();
    let both = [("a-primary", MESSAGES / 2), ("b-spare", MESSAGES / 2)];
    let both = both.map(|(name, share)| (name.to_owned(), share));
    assert_eq!(shares(&usual).await, BTreeMap::from(both));
    usual.shutdown().await;

    let client = cluster.client("primary_first").await;
    let primary = BTreeMap::from([("a-primary".to_owned(), MESSAGES)]);
    assert_eq!(shares(&client).await, primary);

    // A client of its own: this one cannot have anything under way at the dead broker.
    cluster.primary.kill();
    let client_of_spare = cluster.client("primary_first").await;
    let spare = BTreeMap::from([("b-spare".to_owned(), MESSAGES)]);
    assert_eq!(shares(&client_of_spare).await, spare);
    client_of_spare.shutdown().await;
    client.shutdown().await;

    let nobody = Client::builder()
        .brokers([&cluster.spare.listen])
        .load_balancer("by_moon_phase")
        .build()
        .await;
    let words = nobody.unwrap_err().to_string();
    assert!(
        words.contains("by_moon_phase") && words.contains("primary_first"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_without_a_strangers_serializer_says_so() {
    let broker = Broker::start();
    let with = async |serializer: &str| {
        let invoker = Invoker::builder().direct([&broker.listen]).serializer(serializer);
        let invoker = invoker.build().await.unwrap();
        let status = AdminClient::refer(&invoker).status().await;
        invoker.shutdown().await;
        status
    };
    assert_eq!(with("json").await.unwrap().shard.as_str(), broker.name);
    let error = with("checked_json").await.unwrap_err();
    let CallError::Rpc(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.executed, Executed::No, "{error}");
    assert!(error.to_string().contains("checked_json"), "{error}");
}
