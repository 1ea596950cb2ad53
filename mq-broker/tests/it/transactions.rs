//! Transactions across kills, and the check-back.

use mq_common::ErrorCode;
use mq_common::api::PageRequest;
use mq_common::api::transaction::{
    Decision, EndTransactionRequest, EndTransactionResponse, PollChecksRequest, SendHalfRequest,
    SendHalfResponse, TransactionState,
};
use mq_common::ids::{Durability, GroupName, MemberId, TopicName, TransactionId};
use rpc_core::{Attachment, CallError};

use crate::support::{BrokerProcess, Client, Options, batch, eventually, topic, topic_batches, values};

fn producers() -> GroupName {
    GroupName::new("producers").unwrap()
}

pub(crate) async fn half(
    client: &Client,
    topic: &TopicName,
    key: Option<&str>,
    check_after_ms: Option<u32>,
) -> SendHalfResponse {
    try_half(client, topic, key, check_after_ms).await.unwrap()
}

pub(crate) async fn try_half(
    client: &Client,
    topic: &TopicName,
    key: Option<&str>,
    check_after_ms: Option<u32>,
) -> Result<SendHalfResponse, CallError<mq_common::Error>> {
    let (one, two) = (batch(&["a", "b"]), batch(&["c"]));
    let topics = vec![topic_batches(topic, &[(0, &one), (1, &two)])];
    let attachment = Attachment::from(vec![one.into_bytes(), two.into_bytes()]);
    let request = SendHalfRequest {
        producer_group: producers(),
        key: key.map(str::to_owned),
        digest: None,
        topics,
        check_after_ms,
    };
    client.transaction.send_half(request, attachment).await
}

pub(crate) async fn end(
    client: &Client,
    transaction: &TransactionId,
    decision: Decision,
) -> Result<EndTransactionResponse, CallError<mq_common::Error>> {
    let request = EndTransactionRequest {
        transaction: transaction.clone(),
        decision,
        answers: None,
    };
    client.transaction.end(request).await
}

async fn start(data: &std::path::Path) -> (BrokerProcess, Client) {
    let broker = BrokerProcess::start(data);
    let client = Client::connect(&broker).await;
    (broker, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_is_invisible_until_committed_and_survives_kills() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let (broker, client) = start(&data).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    client.send(&orders, 0, &["x"], None).await.unwrap();
    let sent = half(&client, &orders, None, None).await;
    assert_eq!(
        (sent.state, sent.durability),
        (TransactionState::Open, Durability::Fsynced)
    );
    let rolled = half(&client, &orders, None, None).await.transaction;
    end(&client, &rolled, Decision::Rollback).await.unwrap();
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["x"]);
    broker.kill();

    let (broker, client) = start(&data).await;
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["x"]);
    let open = client
        .transaction
        .list(PageRequest::default())
        .await
        .unwrap()
        .items;
    assert_eq!(open.len(), 1);
    assert_eq!((&open[0].transaction, open[0].messages), (&sent.transaction, 3));
    client.send(&orders, 0, &["y"], None).await.unwrap();
    let ended = end(&client, &sent.transaction, Decision::Commit).await.unwrap();
    assert!(!ended.already && ended.receipt.is_some());
    assert_eq!(ended.placed.len(), 2);
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["x", "y", "a", "b"]);
    assert_eq!(values(&client.read(&orders, 1, 0).await), ["c"]);
    broker.kill();

    let (broker, client) = start(&data).await;
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["x", "y", "a", "b"]);
    assert_eq!(values(&client.read(&orders, 1, 0).await), ["c"]);
    let again = end(&client, &sent.transaction, Decision::Commit).await.unwrap();
    assert!(again.already && again.state == TransactionState::Committed);
    assert_eq!(again.placed, ended.placed);
    let opposite = end(&client, &sent.transaction, Decision::Rollback)
        .await
        .unwrap_err();
    assert!(
        matches!(&opposite, CallError::App(error) if error.code == ErrorCode::TransactionConflict),
        "{opposite}"
    );
    let late = end(&client, &rolled, Decision::Commit).await.unwrap_err();
    assert!(
        matches!(&late, CallError::App(error) if error.code == ErrorCode::TransactionConflict),
        "{late}"
    );
    assert!(broker.stop().success());
    let (_broker, client) = start(&data).await;
    assert_eq!(values(&client.read(&orders, 0, 2).await), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_makes_a_half_repeatable() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let (broker, client) = start(&data).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let first = half(&client, &orders, Some("order-1"), None).await;
    broker.kill();
    let (_broker, client) = start(&data).await;
    let second = half(&client, &orders, Some("order-1"), None).await;
    assert_eq!(first.transaction, second.transaction);
    end(&client, &first.transaction, Decision::Commit).await.unwrap();
    assert_eq!(
        half(&client, &orders, Some("order-1"), None).await.state,
        TransactionState::Committed
    );
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_back_reaches_another_producer_of_the_group_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let (broker, client) = start(&data).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let sent = half(&client, &orders, Some("order-7"), Some(200)).await;
    client.invoker.shutdown().await;
    broker.kill();
    let options = Options::default().variable("MQ__TRANSACTION__CHECK_AGAIN_MS", "100");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let poll = |received: Vec<TransactionId>, wait_ms| PollChecksRequest {
        producer_group: producers(),
        member: MemberId("another".into()),
        received,
        max: 10,
        wait_ms,
    };
    let (response, attachment) = client
        .transaction
        .poll_checks(poll(Vec::new(), 5000))
        .await
        .unwrap();
    let check = &response.checks[0];
    assert_eq!(
        (&check.transaction, check.key.as_deref(), check.asked),
        (&sent.transaction, Some("order-7"), 0)
    );
    let bytes: u32 = check.topics[0].batches.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(attachment.len(), bytes as usize);
    // It does not know yet: the question counts and comes again.
    let (response, _) = client
        .transaction
        .poll_checks(poll(vec![sent.transaction.clone()], 5000))
        .await
        .unwrap();
    assert_eq!(response.checks[0].asked, 1);
    let request = EndTransactionRequest {
        transaction: sent.transaction.clone(),
        decision: Decision::Commit,
        answers: Some((producers(), MemberId("another".into()))),
    };
    assert_eq!(
        client.transaction.end(request).await.unwrap().state,
        TransactionState::Committed
    );
    assert_eq!(values(&client.read(&orders, 1, 0).await), ["c"]);
    let (response, _) = client
        .transaction
        .poll_checks(poll(Vec::new(), 300))
        .await
        .unwrap();
    assert!(response.checks.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_half_wakes_a_waiting_poll() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, client) = start(&folder.path().join("data")).await;
    let orders = topic("orders");
    client.create_topic(&orders, 2, Durability::Memory).await;
    let request = PollChecksRequest {
        producer_group: producers(),
        member: MemberId("m".into()),
        received: Vec::new(),
        max: 10,
        wait_ms: 9000,
    };
    let polling = client.transaction.poll_checks(request);
    let sending = async {
        eventually("the poll waits", async || {
            let (_, text) = broker.get("/metrics");
            text.contains("\nhc_mq_rpc_calls_in_flight 1\n")
        })
        .await;
        half(&client, &orders, None, Some(50)).await
    };
    let (polled, sent) = tokio::join!(polling, sending);
    // Its id must outlive a power loss, whatever its topics' floor.
    assert_eq!(sent.durability, Durability::Fsynced);
    assert_eq!(polled.unwrap().0.checks[0].transaction, sent.transaction);
}

#[tokio::test(flavor = "multi_thread")]
async fn digest_says_what_a_repetition_is_whatever_became_of_its_batches() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let (broker, client) = start(&data).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let send = async |client: &Client, digest, queue, values: &[&str]| {
        let half = batch(values);
        let request = SendHalfRequest {
            producer_group: producers(),
            key: Some("order-1".to_owned()),
            digest: Some(digest),
            topics: vec![topic_batches(&orders, &[(queue, &half)])],
            check_after_ms: None,
        };
        let attachment = Attachment::from(vec![half.into_bytes()]);
        client.transaction.send_half(request, attachment).await
    };
    let first = send(&client, 7, 0, &["a"]).await.unwrap();
    broker.kill();
    let (_broker, client) = start(&data).await;
    let again = send(&client, 7, 1, &["built anew"]).await.unwrap();
    assert_eq!(again.transaction, first.transaction);
    let other = send(&client, 8, 0, &["a"]).await.unwrap_err();
    assert!(
        matches!(&other, CallError::App(error) if error.code == ErrorCode::TransactionKeyReused),
        "{other}"
    );
    end(&client, &first.transaction, Decision::Commit).await.unwrap();
    assert_eq!(values(&client.read(&orders, 0, 0).await), ["a"]);
    assert_eq!(values(&client.read(&orders, 1, 0).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_transaction_is_asked_about_again_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let options = Options::default()
        .variable("MQ__TRANSACTION__CHECK_AGAIN_MS", "1")
        .variable("MQ__TRANSACTION__CHECK_INTERVAL_MS_MAX", "1");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let sent = half(&client, &orders, None, Some(1)).await.transaction;
    let poll = async |client: &Client, received: Vec<TransactionId>, wait_ms| {
        let request = PollChecksRequest {
            producer_group: producers(),
            member: MemberId("m".into()),
            received,
            max: 10,
            wait_ms,
        };
        client.transaction.poll_checks(request).await.unwrap().0.checks
    };
    let mut received = Vec::new();
    for asked in 0..15 {
        let checks = poll(&client, received, 10_000).await;
        assert_eq!(checks[0].asked, asked);
        received = vec![sent.clone()];
    }
    assert_eq!(poll(&client, received, 50).await, []);
    let parked = client
        .transaction
        .list(PageRequest::default())
        .await
        .unwrap()
        .items;
    assert_eq!(parked[0].state, TransactionState::Parked);

    assert!(!client.transaction.resume(sent.clone()).await.unwrap().already);
    assert!(client.transaction.resume(sent.clone()).await.unwrap().already);
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let checks = poll(&client, Vec::new(), 10_000).await;
    assert_eq!((&checks[0].transaction, checks[0].asked), (&sent, 0));
    end(&client, &sent, Decision::Commit).await.unwrap();
    let decided = client.transaction.resume(sent.clone()).await.unwrap_err();
    assert!(
        matches!(&decided, CallError::App(error) if error.code == ErrorCode::TransactionConflict),
        "{decided}"
    );
}
