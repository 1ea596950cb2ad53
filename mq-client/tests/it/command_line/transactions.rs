//! Transactions, as far as the command line goes.

use crate::support::{Broker, mq, mq_with_input};

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
