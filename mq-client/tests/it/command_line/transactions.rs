//! Transactions, as far as the command line goes.

use std::collections::BTreeSet;
use std::time::Duration;

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
    let producer = producer.check_after(Duration::from_millis(1)).build();
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

/// Transactions of one message each in topic `t`, which nobody is asked about.
async fn halves(broker: &str, payloads: &[&str]) -> Vec<String> {
    let client = Client::builder().brokers([broker]).build().await.unwrap();
    let (sender, _asked) = mpsc::channel(1);
    let producer = client.transaction_producer("shop", Undecided(sender)).unwrap();
    let producer = producer.check_after(Duration::from_secs(3600)).build();
    let mut ids = Vec::new();
    for payload in payloads {
        let message = Message::new("t", (*payload).to_owned()).unwrap();
        let key = Some(format!("key of {payload}"));
        let half = producer.send_half(&[message], key).await.unwrap();
        ids.push(half.transaction.to_string());
    }
    client.shutdown().await;
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transactions_are_listed_and_decided_by_hand() {
    let broker = Broker::start_with(&["--name", "a"]);
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "1"]).ok();
    let ids = halves(at, &["one", "two"]).await;
    let (one, two) = (ids[0].as_str(), ids[1].as_str());

    let listed = mq(at, &["--output", "json", "txn", "list"]).ok().json();
    assert_eq!(listed.len(), 2, "{listed:#?}");
    for (row, (id, payload)) in listed.iter().zip([(one, "one"), (two, "two")]) {
        assert_eq!(row["transaction"], id);
        assert_eq!((&row["state"], &row["asked"]), (&"open".into(), &0.into()));
        assert_eq!(
            (&row["producer_group"], &row["messages"]),
            (&"shop".into(), &1.into())
        );
        assert_eq!(row["key"], format!("key of {payload}"));
        assert_eq!(row["topics"], serde_json::json!(["t"]));
        assert!(row["since_ms"].is_number() && row["age_s"].is_number(), "{row}");
    }
    mq(at, &["topic", "delete", "t"]).fails(1, "--drop-transactions");

    assert_eq!(
        mq(at, &["txn", "commit", one]).ok().rows(),
        [[one, "committed", "false"]]
    );
    assert_eq!(
        mq(at, &["txn", "commit", one]).ok().rows(),
        [[one, "committed", "true"]]
    );
    let conflict = mq(at, &["txn", "rollback", one]).fails(1, "first decision wins");
    assert!(conflict.stderr.contains(one), "{conflict:?}");
    assert_eq!(
        mq(at, &["txn", "rollback", two]).ok().rows(),
        [[two, "rolled_back", "false"]]
    );
    mq(at, &["txn", "commit", two]).fails(1, "first decision wins");

    assert_eq!(mq(at, &["txn", "list"]).ok().stdout, "");
    let consumed = mq(at, &["consume", "t", "--group", "g", "--timeout", "1s"]).ok();
    assert_eq!(consumed.rows().len(), 1, "{consumed:?}");
    assert_eq!(consumed.rows()[0][6], "one");
}

#[test]
fn each_message_of_a_transaction_has_its_receipt() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "4"]).ok();
    let input: String = (0..100).map(|n| format!("k{n}:{n}\n")).collect();
    let flags = [
        "produce",
        "t",
        "--mode",
        "transaction",
        "--key-separator",
        ":",
        "-v",
    ];
    let produced = mq_with_input(at, &flags, input.as_bytes()).ok();
    let rows = produced.rows();
    assert_eq!(rows.len(), 100);
    let places: BTreeSet<_> = rows.iter().map(|row| (row[1], row[2])).collect();
    assert_eq!(places.len(), 100, "each has a place of its own");
    assert!(
        rows.iter().all(|row| row[0] == "t" && row[3] == "fsynced"),
        "{rows:?}"
    );
}

#[test]
fn input_beyond_a_transaction_is_refused_while_it_is_read() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "1"]).ok();
    let input = [&[b'x'; 1 << 20][..], b"\n"].concat().repeat(9);
    let flags = ["--output", "json", "produce", "t", "--mode", "transaction"];
    let produced = mq_with_input(at, &flags, &input).fails(1, "8388608 bytes");
    assert_eq!(produced.json()[0]["sent"], 0);
    assert_eq!(mq(at, &["txn", "list"]).ok().stdout, "");
}

#[test]
fn half_that_fails_is_counted() {
    let broker = Broker::start();
    let flags = ["--output", "json", "produce", "nowhere", "--mode", "transaction"];
    let produced = mq_with_input(&broker.listen, &flags, b"a\nb\n").fails(1, "mq topic create");
    let summary = &produced.json()[0];
    assert_eq!((&summary["sent"], &summary["failed"]), (&2.into(), &2.into()));
}
