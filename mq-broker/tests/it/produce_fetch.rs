//! Producing and fetching, across restarts.

use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::admin::DeleteTopicRequest;
use mq_common::ids::{Durability, Offset};
use rpc_core::CallError;

use crate::support::{BrokerProcess, Client, Delivered, topic, values};

fn code<T: std::fmt::Debug>(outcome: Result<T, CallError<mq_common::Error>>) -> ErrorCode {
    match outcome.unwrap_err() {
        CallError::App(error) => error.code,
        CallError::Rpc(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_served_in_order_with_dense_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let first = client.send(&orders, 1, &["a", "b"], None).await.unwrap();
    let second = client.send(&orders, 1, &["c"], None).await.unwrap();
    assert_eq!((first.base_offset, second.base_offset), (Offset(0), Offset(2)));
    assert_eq!(first.durability, Durability::Fsynced);
    let read = client.read(&orders, 1, 0).await;
    assert_eq!(values(&read), ["a", "b", "c"]);
    assert_eq!(
        read[2],
        Delivered {
            offset: 2,
            key: None,
            tag: None,
            value: "c".into()
        }
    );
    assert_eq!(values(&client.read(&orders, 1, 1).await), ["b", "c"]);
    assert!(client.read(&orders, 0, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_wakes_when_something_comes() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    // Longer than the client waits for the answer: only one that comes early is an answer.
    let waiting = client.fetch_once(&orders, 0, Offset(0), Duration::from_secs(30));
    let sending = async {
        tokio::task::yield_now().await;
        client.send(&orders, 0, &["x"], None).await.unwrap()
    };
    let (found, _) = tokio::join!(waiting, sending);
    assert_eq!(values(&found.unwrap().0), ["x"]);
    let empty = client
        .fetch_once(&orders, 0, Offset(1), Duration::from_millis(50))
        .await;
    assert!(empty.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_topics_messages_and_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let broker = BrokerProcess::start(&data);
    let name = broker.name.clone();
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["a", "b"], None).await.unwrap();
    assert!(broker.stop().success());
    let broker = BrokerProcess::start(&data);
    assert_eq!(broker.name, name);
    let client = Client::connect(&broker).await;
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["a", "b"]);
    let receipt = client.send(&orders, 0, &["c"], None).await.unwrap();
    assert_eq!(receipt.base_offset, Offset(2));
    broker.kill();
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_floor_answers_memory_and_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fast = topic("fast");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&fast, 1, Durability::Memory).await;
    let receipt = client.send(&fast, 0, &["a"], None).await.unwrap();
    assert_eq!(receipt.durability, Durability::Memory);
    let receipt = client
        .send(&fast, 0, &["b"], Some(Durability::Fsynced))
        .await
        .unwrap();
    assert_eq!(receipt.durability, Durability::Fsynced);
    client.send(&fast, 0, &["c"], None).await.unwrap();
    assert_eq!(values(&client.read(&fast, 0, 0).await), ["a", "b", "c"]);
    broker.kill();
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    assert_eq!(values(&client.read(&fast, 0, 0).await), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_with_what_was_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    let below = client.send(&orders, 0, &["a"], Some(Durability::Memory)).await;
    assert_eq!(code(below), ErrorCode::DurabilityBelowFloor);
    let replicated = client
        .send(&orders, 0, &["a"], Some(Durability::ReplicatedFsynced(2)))
        .await;
    assert_eq!(code(replicated), ErrorCode::Unsupported);
    assert_eq!(
        code(client.send(&orders, 7, &["a"], None).await),
        ErrorCode::UnknownQueue
    );
    let unknown = client.send(&topic("none"), 0, &["a"], None).await;
    assert!(
        format!("{unknown:?}").contains("mq topic create none"),
        "{unknown:?}"
    );
    assert_eq!(code(unknown), ErrorCode::UnknownTopic);
    let beyond = client.fetch_once(&orders, 0, Offset(5), Duration::ZERO).await;
    assert_eq!(code(beyond), ErrorCode::OffsetOutOfRange);
    assert!(client.read(&orders, 0, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn late_send_to_a_deleted_topic_does_not_reach_the_next_one_of_that_name() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    let old = client.create_topic(&orders, 1, Durability::Fsynced).await.id;
    let delete = DeleteTopicRequest {
        name: orders.clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(delete).await.unwrap();
    let new = client.create_topic(&orders, 1, Durability::Fsynced).await.id;
    assert_ne!(old, new);
    let late = client.send_to(&orders, Some(old), 0, &["late"], None).await;
    assert_eq!(code(late), ErrorCode::UnknownTopic);
    client
        .send_to(&orders, Some(new), 0, &["new"], None)
        .await
        .unwrap();
    client.send_to(&orders, None, 0, &["either"], None).await.unwrap();
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["new", "either"]);
}
