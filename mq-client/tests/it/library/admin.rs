//! Management over several brokers.

use mq_client::{
    AdminError, CheckedTransaction, Message, NewTopic, RouteError, TransactionListener, async_trait,
};
use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::transaction::Decision;
use mq_common::ids::{Durability, QueueNumber, ShardName, TopicId, TopicName, TransactionId};

use super::Cluster;

/// Never decides.
struct Undecided;

#[async_trait]
impl TransactionListener for Undecided {
    type Argument = ();

    async fn execute_local_transaction(&self, _: &TransactionId, _: &[Message], (): &()) -> Decision {
        Decision::Unknown
    }

    async fn check_local_transaction(&self, _: &CheckedTransaction) -> Decision {
        Decision::Unknown
    }
}

#[tokio::test]
async fn topic_is_dealt_over_all_brokers_and_creation_can_be_repeated() {
    let cluster = Cluster::start(&["a", "b"], 5).await;
    let admin = cluster.client.admin();
    let again = admin.create_topic(NewTopic::new("t").queues(5)).await.unwrap();
    let homes: Vec<_> = again.queues.iter().map(|home| home.shard.as_str()).collect();
    assert_eq!(homes, ["a", "b", "a", "b", "a"]);
    let described = admin.describe_topic("t").await.unwrap().items.remove(0);
    let numbers: Vec<_> = described.queues.iter().map(|queue| queue.queue.0).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    let other = admin
        .create_topic(NewTopic::new("t").queues(4))
        .await
        .unwrap_err();
    assert!(
        matches!(other, AdminError::TopicExists { queues: 5, .. }),
        "{other}"
    );
    let other = admin
        .create_topic(NewTopic::new("t").queues(5).durability(Durability::Memory))
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
    let partial = admin
        .create_topic(NewTopic::new("t").queues(2))
        .await
        .unwrap_err();
    assert!(
        matches!(&partial, AdminError::Partial { failed, .. } if failed[0].0.as_str() == "b"),
        "{partial}"
    );
    let b = super::FakeBroker::start("b", &cluster.registry).await;
    cluster.brokers.push(b);
    let topic = admin.create_topic(NewTopic::new("t").queues(2)).await.unwrap();
    assert_eq!(topic.queues.len(), 2);
    let described = admin.describe_topic("t").await.unwrap().items.remove(0);
    assert_eq!(described.queues.len(), 2);
    cluster.stop().await;
}

#[tokio::test]
async fn lists_longer_than_one_answer_are_followed_to_their_end() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let admin = cluster.client.admin();
    for number in 0..5 {
        admin
            .create_topic(NewTopic::new(format!("u{number}")).queues(2))
            .await
            .unwrap();
    }
    let topics = admin.topics().await.unwrap().items;
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["t", "u0", "u1", "u2", "u3", "u4"]);

    let producer = cluster
        .client
        .transaction_producer("p", Undecided)
        .unwrap()
        .build();
    for _ in 0..5 {
        let messages = vec![Message::new("t", "x").unwrap().queue(QueueNumber(0))];
        producer
            .send_messages_in_transaction(messages, &())
            .await
            .unwrap();
    }
    assert_eq!(admin.transactions().await.unwrap().items.len(), 5);

    let mut consumers = Vec::new();
    for group in ["g0", "g1", "g2", "g3", "g4"] {
        let consumer = cluster.client.consumer("t", group).unwrap();
        consumers.push(
            consumer
                .run(|_| async { Ok::<_, std::io::Error>(()) })
                .await
                .unwrap(),
        );
    }
    assert_eq!(admin.groups().await.unwrap().items.len(), 5);
    cluster.stop().await;
}

#[tokio::test]
async fn tombstone_of_one_of_two_clashing_authorities_is_not_the_end_of_the_other_topic() {
    let cluster = Cluster::start(&["a", "b"], 1).await;
    let admin = cluster.client.admin();
    let mine = admin.describe_topic("t").await.unwrap().items.remove(0).topic;
    assert_eq!(mine.authority().map(ShardName::as_str), Some("a"));
    cluster.brokers[1].declare(Topic {
        name: TopicName::new("t").unwrap(),
        id: TopicId(mine.id.0 + 1),
        version: 2,
        durability: Durability::Fsynced,
        queues: vec![QueueHome {
            queue: QueueNumber(0),
            shard: ShardName::new("b").unwrap(),
        }],
        deleted: true,
        settings: mine.settings,
    });
    assert_eq!(admin.topics().await.unwrap().items, std::slice::from_ref(&mine));
    assert_eq!(admin.describe_topic("t").await.unwrap().items[0].topic, mine);
    assert_eq!(
        admin.create_topic(NewTopic::new("t").queues(1)).await.unwrap(),
        mine
    );
    let producer = cluster.client.producer().build();
    producer.send(Message::new("t", "x").unwrap()).await.unwrap();
    assert!(admin.delete_topic("t", false).await.unwrap().deleted);
    assert_eq!(cluster.brokers[0].payloads("t", 0), ["x"]);
    assert_eq!(admin.topics().await.unwrap().items, []);
    cluster.stop().await;
}

#[tokio::test]
async fn what_a_silent_broker_may_know_is_not_said_to_be_missing() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let admin = cluster.client.admin();
    cluster.brokers[1].fall_ill();
    // The topic is there: completing its creation needs nobody's word but names who was not told.
    let partial = admin
        .create_topic(NewTopic::new("t").queues(2))
        .await
        .unwrap_err();
    assert!(matches!(partial, AdminError::Partial { .. }), "{partial}");
    let made = admin
        .create_topic(NewTopic::new("u").queues(2))
        .await
        .unwrap_err();
    assert!(
        matches!(&made, AdminError::MayExist { silent, .. } if silent[0].0.as_str() == "b"),
        "{made}"
    );
    let deleted = admin.delete_topic("u", false).await.unwrap_err();
    assert!(
        matches!(&deleted, AdminError::Route(RouteError::Unreachable { reason, .. }) if reason.contains("`b`")),
        "{deleted}"
    );
    assert!(!cluster.brokers[0].has_topic("u"));
    let group = admin.describe_group("g").await.unwrap();
    assert_eq!((group.items, group.silent.len()), (Vec::new(), 1));
    cluster.brokers[0].fall_ill();
    let nobody = admin.describe_group("g").await.unwrap_err();
    assert!(matches!(nobody, AdminError::Broker { .. }), "{nobody}");
    cluster.stop().await;
}

#[tokio::test]
async fn broker_that_holds_queues_and_is_not_registered_is_missed() {
    let mut cluster = Cluster::start(&["a", "b"], 3).await;
    let admin = cluster.client.admin();
    assert_eq!(admin.missing_shards().await.unwrap(), []);
    assert_eq!(admin.describe_topic("t").await.unwrap().silent, []);
    cluster.brokers.pop().unwrap().stop().await;
    let missing = admin.missing_shards().await.unwrap();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(missing[0].shard.as_str(), "b");
    assert_eq!(
        missing[0].topics,
        [(TopicName::new("t").unwrap(), vec![QueueNumber(1)])]
    );
    let names = |silent: &[(ShardName, String)]| -> Vec<String> {
        silent.iter().map(|(shard, _)| shard.to_string()).collect()
    };
    assert_eq!(names(&admin.describe_topic("t").await.unwrap().silent), ["b"]);
    assert_eq!(names(&admin.topics().await.unwrap().silent), ["b"]);
    assert_eq!(names(&admin.groups().await.unwrap().silent), ["b"]);
    assert_eq!(names(&admin.describe_group("g").await.unwrap().silent), ["b"]);
    assert_eq!(names(&admin.transactions().await.unwrap().silent), ["b"]);
    cluster.stop().await;
}
