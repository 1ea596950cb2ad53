//! Transactions: decisions, checks, and what one transaction may hold.

use std::sync::Mutex;

use mq_client::async_trait;
use mq_client::{CheckedTransaction, Message, SendError, TransactionListener};
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
