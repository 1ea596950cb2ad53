//! Management over several brokers.

use mq_client::{AdminError, RouteError};
use mq_common::ids::Durability;

use super::Cluster;

#[tokio::test]
async fn topic_is_dealt_over_all_brokers_and_creation_can_be_repeated() {
    let cluster = Cluster::start(&["a", "b"], 5).await;
    let admin = cluster.client.admin();
    let again = admin.create_topic("t", 5, None).await.unwrap();
    let homes: Vec<_> = again.queues.iter().map(|home| home.shard.as_str()).collect();
    assert_eq!(homes, ["a", "b", "a", "b", "a"]);
    let described = admin.describe_topic("t").await.unwrap().items.remove(0);
    let numbers: Vec<_> = described.queues.iter().map(|queue| queue.queue.0).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    let other = admin.create_topic("t", 4, None).await.unwrap_err();
    assert!(
        matches!(other, AdminError::TopicExists { queues: 5, .. }),
        "{other}"
    );
    let other = admin
        .create_topic("t", 5, Some(Durability::Memory))
        .await
        .unwrap_err();
    assert!(matches!(other, AdminError::TopicExists { .. }), "{other}");
    cluster.stop().await;
}

#[tokio::test]
async fn deleted_topic_is_gone_at_every_broker() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let admin = cluster.client.admin();
    assert!(admin.delete_topic("t", false).await.unwrap().deleted);
    assert_eq!(admin.topics().await.unwrap().items, []);
    let gone = admin.describe_topic("t").await.unwrap_err();
    assert!(
        matches!(gone, AdminError::Route(RouteError::UnknownTopic { .. })),
        "{gone}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn creation_names_the_broker_it_did_not_reach_and_repeating_completes_it() {
    let mut cluster = Cluster::start(&["a", "b"], 2).await;
    let admin = cluster.client.admin();
    let b = cluster.brokers.pop().unwrap();
    b.stop().await;
    let status = admin.cluster_status().await.unwrap();
    assert_eq!(status.len(), 1);
    let partial = admin.create_topic("t", 2, None).await.unwrap_err();
    assert!(
        matches!(&partial, AdminError::Partial { failed, .. } if failed[0].0.as_str() == "b"),
        "{partial}"
    );
    let b = super::FakeBroker::start("b", &cluster.registry).await;
    cluster.brokers.push(b);
    let topic = admin.create_topic("t", 2, None).await.unwrap();
    assert_eq!(topic.queues.len(), 2);
    let described = admin.describe_topic("t").await.unwrap().items.remove(0);
    assert_eq!(described.queues.len(), 2);
    cluster.stop().await;
}
