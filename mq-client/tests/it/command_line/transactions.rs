//! Transactions, as far as the command line goes.

use mq_client::{CheckedTransaction, Client, Message, TransactionListener, async_trait};
use mq_common::api::transaction::Decision;
use mq_common::ids::TransactionId;
use tokio::sync::mpsc;

use crate::support::{Broker, mq, mq_with_input};

/// Does not know, and says when it is asked.
struct Undecided(mpsc::Sender<u32>);

#[async_trait]
impl TransactionListener for Undecided {
    type Argument = ();

    async fn execute_local_transaction(&self, _: &TransactionId, _: &[Message], (): &()) -> Decision {
        Decision::Unknown
    }

    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision {
        self.0.send(checked.asked).await.unwrap();
        Decision::Unknown
    }
}

#[test]
fn a_transaction_is_visible_as_a_whole() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "4"]).ok();
    let input: String = (0..100).map(|n| format!("{n}\n")).collect();
    let produced = mq_with_input(
        at,
        &["--output", "json", "produce", "t", "--mode", "transaction"],
        input.as_bytes(),
    );
    assert_eq!(produced.ok().json()[0]["acked"], 100);
    mq(
        at,
        &[
            "consume",
            "t",
            "--group",
            "g",
            "--count",
            "100",
            "--timeout",
            "10s",
        ],
    )
    .ok();
    assert_eq!(mq(at, &["txn", "list"]).ok().stdout, "");
}

#[test]
fn an_unknown_transaction_is_said_so() {
    let broker = Broker::start_with(&["--name", "a"]);
    mq(&broker.listen, &["txn", "commit", "a:999999"]).fails(1, "mq txn list");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_transaction_is_resumed_and_its_producer_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("broker.toml");
    std::fs::write(
        &config,
        "[transaction]\ncheck_again_ms = 1\ncheck_interval_ms_max = 1\n",
    )
    .unwrap();
    let broker = Broker::start_with(&["--config", config.to_str().unwrap()]);
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "1"]).ok();
    let client = Client::builder().brokers([at]).build().await.unwrap();
    let (sender, mut asked) = mpsc::channel(100);
    let producer = client.transaction_producer("p", Undecided(sender)).unwrap();
    let producer = producer.check_after(std::time::Duration::from_millis(1)).build();
    let messages = vec![Message::new("t", "x").unwrap()];
    let sent = producer
        .send_messages_in_transaction(messages, &())
        .await
        .unwrap();
    let id = sent.transaction.to_string();
    for number in 0..15 {
        assert_eq!(asked.recv().await, Some(number));
    }
    let listed = || mq(at, &["--output", "json", "txn", "list"]).ok().json().remove(0);
    // The last answer is on its way.
    assert!((0..100).any(|_| listed()["state"] == "parked"), "{}", listed());
    let resumed = mq(at, &["--output", "json", "txn", "resume", &id]).ok().json();
    assert_eq!(
        (&resumed[0]["state"], &resumed[0]["already"]),
        (&"open".into(), &false.into())
    );
    assert_eq!(asked.recv().await, Some(0), "from the beginning");
    mq(at, &["txn", "rollback", &id]).ok();
    mq(at, &["txn", "resume", &id]).fails(1, "rolled back");
    client.shutdown().await;
}
