//! Transactions: decisions, checks, and what one transaction may hold.

use std::sync::Mutex;

use std::time::Duration;

use mq_client::async_trait;
use mq_client::producer::transaction::TransactionError;
use mq_client::{CheckedTransaction, Message, Outcome, SendError, TransactionListener};
use mq_common::ErrorCode;
use mq_common::api::transaction::{Decision, TransactionState};
use mq_common::ids::{QueueNumber, TransactionId};

use super::Cluster;

/// Decides as its argument says, and later as it was told.
#[derive(Default)]
struct Listener {
    checked: Mutex<Vec<CheckedTransaction>>,
}

#[async_trait]
impl TransactionListener for Listener {
    type Argument = Decision;

    async fn execute_local_transaction(
        &self,
        _: &TransactionId,
        messages: &[Message],
        argument: &Decision,
    ) -> Decision {
        assert!(!messages.is_empty());
        *argument
    }

    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision {
        self.checked.lock().unwrap().push(checked.clone());
        match checked.asked {
            0 => Decision::Unknown,
            1 => panic!("counts as unknown"),
            _ => Decision::Commit,
        }
    }
}

fn message(payload: &str) -> Message {
    Message::new("t", payload.to_owned()).unwrap()
}

#[tokio::test]
async fn committed_messages_appear_and_rolled_back_ones_do_not() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .build();
    let messages = vec![message("1"), message("2").tag("x")];
    let receipt = producer
        .send_messages_in_transaction(messages, &Decision::Commit)
        .await
        .unwrap();
    assert_eq!(receipt.state, TransactionState::Committed);
    let dropped = producer
        .send_messages_in_transaction(vec![message("3")], &Decision::Rollback)
        .await
        .unwrap();
    assert_eq!(dropped.state, TransactionState::RolledBack);
    assert_eq!(cluster.brokers[0].payloads("t", 0), ["1", "2"]);
    cluster.stop().await;
}

#[tokio::test]
async fn commit_gives_a_receipt_for_each_message_in_their_order() {
    let cluster = Cluster::start(&["a"], 4).await;
    let broker = &cluster.brokers[0];
    cluster
        .client
        .producer()
        .build()
        .send(message("before"))
        .await
        .unwrap();
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .build();
    let payloads: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let messages = payloads.iter().zip(0..).map(|(payload, n)| match n % 3 {
        0 => message(payload),
        key => message(payload).key(format!("key-{key}")),
    });
    let receipt = producer
        .send_messages_in_transaction(messages.collect(), &Decision::Commit)
        .await
        .unwrap();
    let found: Vec<String> = receipt
        .receipts
        .iter()
        .map(|receipt| {
            let offset = usize::try_from(receipt.base_offset.0).unwrap();
            broker.payloads("t", receipt.queue.0)[offset].clone()
        })
        .collect();
    assert_eq!(found, payloads);
    cluster.stop().await;
}

#[tokio::test]
async fn undecided_transaction_is_answered_through_the_listener() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .build();
    let messages = vec![message("1").key("k").property("a", "b")];
    let receipt = producer
        .send_messages_in_transaction(messages, &Decision::Unknown)
        .await
        .unwrap();
    assert_eq!(receipt.state, TransactionState::Open);
    let home = receipt.transaction.shard.as_str();
    let broker = cluster
        .brokers
        .iter()
        .find(|broker| broker.name() == home)
        .unwrap();
    broker
        .until(|broker| broker.transaction(&receipt.transaction) == TransactionState::Committed)
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn transaction_over_several_brokers_is_refused() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .build();
    let messages = [
        message("1").queue(QueueNumber(0)),
        message("2").queue(QueueNumber(1)),
    ];
    let error = producer.send_half(&messages, None).await.unwrap_err();
    assert!(matches!(error, SendError::SeveralBrokers { .. }), "{error}");
    let error = producer.send_half(&[], None).await.unwrap_err();
    assert_eq!(error, SendError::Empty);
    cluster.stop().await;
}

#[tokio::test]
async fn half_with_a_key_is_repeated_as_it_was_built_at_the_same_broker() {
    let cluster = Cluster::start(&["a", "b", "c"], 6).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .build();
    for broker in &cluster.brokers {
        broker.half_codes([ErrorCode::OutcomeUnknown, ErrorCode::Overloaded]);
    }
    let messages = [message("1"), message("2")];
    producer
        .send_half(&messages, Some("order-7".into()))
        .await
        .unwrap();
    let sends: Vec<_> = cluster
        .brokers
        .iter()
        .map(|broker| broker.half_sends())
        .filter(|sends| !sends.is_empty())
        .collect();
    assert_eq!(sends.len(), 1, "a key is unique at one broker");
    assert_eq!(sends[0].len(), 3);
    assert!(sends[0].iter().all(|send| *send == sends[0][0]), "{sends:?}");
    // So does a later call with the key.
    producer
        .send_half(&messages, Some("order-7".into()))
        .await
        .unwrap();
    let asked: Vec<_> = cluster
        .brokers
        .iter()
        .filter(|broker| !broker.half_sends().is_empty())
        .collect();
    assert_eq!(asked.len(), 1);
    let sends = asked[0].half_sends();
    let digests: Vec<_> = sends.iter().map(|send| send.digest).collect();
    assert!(
        digests[0].is_some() && digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    assert_ne!(sends[0].bytes, sends[3].bytes, "built anew, at another time");
    cluster.stop().await;
}

#[tokio::test]
async fn doubt_about_an_attempt_is_not_undone_by_a_later_refusal() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .timeout(Duration::from_millis(500))
        .build();
    let broker = &cluster.brokers[0];
    let refusals = || std::iter::repeat_n(ErrorCode::Overloaded, 20);
    broker.half_codes(std::iter::once(ErrorCode::OutcomeUnknown).chain(refusals()));
    let error = producer
        .send_half(&[message("1")], Some("k".into()))
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");

    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster
        .client
        .transaction_producer("p", Listener::default())
        .unwrap()
        .timeout(Duration::from_millis(500))
        .build();
    let broker = &cluster.brokers[0];
    let half = producer.send_half(&[message("1")], None).await.unwrap();
    broker.end_codes(std::iter::once(ErrorCode::OutcomeUnknown).chain(refusals()));
    let ended = producer.end(&half, Decision::Commit).await;
    let Err(TransactionError::End { error, .. }) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    cluster.stop().await;
}
