//! Brokers compare their topics: one that was away obeys a deletion, one that a creation did not reach makes up for it.

use std::path::Path;

use mq_common::ErrorCode;
use mq_common::api::PageRequest;
use mq_common::api::admin::{CreateTopicRequest, DeleteTopicRequest, QueueHome, Topic};
use mq_common::ids::{Durability, QueueNumber, ShardName, TopicName};
use rpc_core::CallError;

use crate::support::{BrokerProcess, Client, Options, eventually, topic, values};

/// Two brokers that know each other: `a` carries the registry.
struct Pair {
    folder: tempfile::TempDir,
    a: BrokerProcess,
    b: BrokerProcess,
    at_a: Client,
    at_b: Client,
}

fn options(name: &str) -> Options {
    Options::default()
        .argument("--name")
        .argument(name)
        .variable("MQ__CLUSTER__COMPARE_MS", "100")
}

fn start_b(folder: &Path, a: &BrokerProcess) -> BrokerProcess {
    let options = options("b")
        .argument("--registry")
        .argument(format!("mq://{}", a.listen));
    BrokerProcess::start_with(&folder.join("b"), &options)
}

impl Pair {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let a = BrokerProcess::start_with(&folder.path().join("a"), &options("a"));
        let b = start_b(folder.path(), &a);
        let (at_a, at_b) = (Client::connect(&a).await, Client::connect(&b).await);
        Self {
            folder,
            a,
            b,
            at_a,
            at_b,
        }
    }

    /// `b` dies; `meanwhile` happens; `b` comes back.
    async fn without_b(self, meanwhile: impl AsyncFnOnce(&Client)) -> Self {
        let Self {
            folder, a, b, at_a, ..
        } = self;
        b.kill();
        meanwhile(&at_a).await;
        let b = start_b(folder.path(), &a);
        let at_b = Client::connect(&b).await;
        Self {
            folder,
            a,
            b,
            at_a,
            at_b,
        }
    }
}

fn request(name: &TopicName, shards: &[&str], identity: Option<&Topic>) -> CreateTopicRequest {
    let queues = (0..).zip(shards).map(|(queue, shard)| QueueHome {
        queue: QueueNumber(queue),
        shard: ShardName::new(*shard).unwrap(),
    });
    CreateTopicRequest {
        name: name.clone(),
        identity: identity.map(|topic| (topic.id, topic.version)),
        durability: Durability::Fsynced,
        queues: queues.collect(),
        settings: identity.map(|topic| topic.settings),
    }
}

async fn create(client: &Client, name: &TopicName, shards: &[&str]) -> Topic {
    client
        .admin
        .create_topic(request(name, shards, None))
        .await
        .unwrap()
}

async fn delete(client: &Client, name: &TopicName) -> Topic {
    let request = DeleteTopicRequest {
        name: name.clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(request).await.unwrap()
}

async fn known(client: &Client, name: &TopicName) -> Option<Topic> {
    let topics = client.admin.topics(PageRequest::default()).await.unwrap().items;
    topics.into_iter().find(|topic| topic.name == *name)
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_that_was_away_obeys_a_deletion_and_the_name_begins_anew() {
    let orders = topic("orders");
    let pair = Pair::start().await;
    let first = create(&pair.at_a, &orders, &["a", "b"]).await;
    // Nobody tells `b`: it finds out.
    eventually("the other broker adopts the topic", async || {
        known(&pair.at_b, &orders).await.as_ref() == Some(&first)
    })
    .await;
    pair.at_b.send(&orders, 1, &["old", "older"], None).await.unwrap();
    let pair = pair
        .without_b(async |at_a| drop(delete(at_a, &orders).await))
        .await;
    eventually("the returning broker obeys the deletion", async || {
        known(&pair.at_b, &orders)
            .await
            .is_some_and(|topic| topic.deleted && topic.id == first.id)
    })
    .await;
    let refused = pair.at_b.send(&orders, 1, &["late"], None).await.unwrap_err();
    assert!(
        matches!(&refused, CallError::App(error) if error.code == ErrorCode::UnknownTopic),
        "{refused}"
    );
    let tombstone = pair.at_b.admin.describe_topic(orders.clone()).await.unwrap();
    assert!(
        tombstone.topic.deleted && tombstone.queues.is_empty(),
        "{tombstone:?}"
    );

    let second = create(&pair.at_a, &orders, &["a", "b"]).await;
    assert!(second.id > first.id);
    eventually("the other broker adopts the new topic", async || {
        known(&pair.at_b, &orders).await.as_ref() == Some(&second)
    })
    .await;
    assert_eq!(values(&pair.at_b.read(&orders, 1, 0).await), [""; 0]);
    pair.at_b.send(&orders, 1, &["new"], None).await.unwrap();
    assert_eq!(values(&pair.at_b.read(&orders, 1, 0).await), ["new"]);
    assert!(pair.b.stop().success());
    assert!(pair.a.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_that_was_away_gives_up_a_topic_that_was_made_again_without_it() {
    let orders = topic("orders");
    let pair = Pair::start().await;
    let first = create(&pair.at_a, &orders, &["a", "b"]).await;
    eventually("the other broker adopts the topic", async || {
        known(&pair.at_b, &orders).await.as_ref() == Some(&first)
    })
    .await;
    let meanwhile = async |at_a: &Client| {
        delete(at_a, &orders).await;
        create(at_a, &orders, &["a"]).await;
    };
    let pair = pair.without_b(meanwhile).await;
    eventually("the returning broker gives the old topic up", async || {
        known(&pair.at_b, &orders)
            .await
            .is_some_and(|topic| topic.deleted && topic.id == first.id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_declared_twice_is_told_once_and_drops_nothing() {
    let orders = topic("orders");
    let pair = Pair::start().await;
    let at_a = create(&pair.at_a, &orders, &["a"]).await;
    pair.at_a.send(&orders, 0, &["mine"], None).await.unwrap();
    let at_b = create(&pair.at_b, &orders, &["b"]).await;
    assert!(at_b.id > at_a.id);
    let log = pair.folder.path().join("a.log");
    let told = || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.matches("contradicts the one here").count()
    };
    eventually("the clash is told", async || told() > 0).await;
    // Later rounds have passed when this one was adopted.
    let other = topic("other");
    for _ in 0..3 {
        let made = create(&pair.at_b, &other, &["b", "a"]).await;
        eventually("a round passes", async || {
            known(&pair.at_a, &other).await.as_ref() == Some(&made)
        })
        .await;
        let gone = delete(&pair.at_b, &other).await;
        eventually("a round passes", async || {
            known(&pair.at_a, &other).await.as_ref() == Some(&gone)
        })
        .await;
    }
    assert_eq!(told(), 1);
    assert_eq!(known(&pair.at_a, &orders).await, Some(at_a));
    assert_eq!(known(&pair.at_b, &orders).await, Some(at_b));
    assert_eq!(values(&pair.at_a.read(&orders, 0, 0).await), ["mine"]);
}
