//! Mistakes are met with words that help, and with the right exit status.

use std::io::Write;
use std::process::Command;

use crate::support::{Broker, Running, mq, mq_in, mq_with_input};

#[test]
fn an_unknown_topic_names_the_command_that_creates_it() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq_with_input(at, &["produce", "nowhere"], b"a\n").fails(1, "mq topic create");
    mq(at, &["consume", "nowhere", "--group", "g", "--timeout", "1s"]).fails(1, "mq topic create");
    mq(at, &["topic", "describe", "nowhere"]).fails(1, "mq topic create");
    mq(at, &["bench", "produce", "nowhere", "--messages", "1"]).fails(1, "mq topic create");
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["topic", "create"][..],
        &["topic", "create", "a b"],
        &["topic", "create", "__mine"],
        &["topic", "create", "t", "--queues", "0"],
        &["topic", "create", "t", "--durability", "forever"],
        &["produce", "t", "--mode", "twice"],
        &["produce", "t", "--lines"],
        &["consume", "t"],
        &["consume", "t", "--group", "g", "--timeout", "20"],
        &["txn", "commit", "no-number"],
        &["bench", "produce", "t", "--in-flight", "0"],
        &["fly"],
    ] {
        let ran = mq("127.0.0.1:1", arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:#?}");
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
    mq("etcd://127.0.0.1:2379", &["topic", "list"]).fails(2, "--registry");
}

#[test]
fn an_unknown_registry_names_the_known_ones() {
    let run = Command::new(env!("CARGO_BIN_EXE_mq"))
        .args(["--registry", "carrier-pigeon://x", "topic", "list"])
        .output();
    let output = run.unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("carrier-pigeon") && words.contains("etcd://") && words.contains("mq://"),
        "{words}"
    );
    assert!(
        !words.contains("use its_crate"),
        "that is for programmers: {words}"
    );
    assert_eq!(output.status.code(), Some(2), "{words}");
}

#[test]
fn the_brokers_word_for_their_own_registry_is_explained() {
    mq_in(["--registry", "embedded"], &["topic", "list"], b"").fails(2, "--broker");
}

#[test]
fn a_registry_that_nobody_serves_is_said_so_with_its_address() {
    let ran = mq_in(
        ["--registry", "mq://127.0.0.1:1,127.0.0.1:2"],
        &["topic", "list"],
        b"",
    );
    let ran = ran.fails(1, "no broker answers");
    for address in ["`127.0.0.1:1`", "`127.0.0.1:2`"] {
        assert_eq!(ran.stderr.matches(address).count(), 1, "{ran:#?}");
    }
    for for_programs in ["Unavailable", "executed", "attempts"] {
        assert!(!ran.stderr.contains(for_programs), "{ran:#?}");
    }
}

#[test]
fn a_transaction_of_an_unknown_broker_names_it_and_those_known() {
    let broker = Broker::start_with(&["--name", "a"]);
    for command in ["commit", "rollback", "resume"] {
        let ran = mq(&broker.listen, &["txn", command, "zz:5"]);
        ran.fails(1, "broker `zz` is not registered, registered: `a`");
    }
}

#[test]
fn empty_input_to_an_unknown_topic_is_a_mistake_too() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    for mode in ["sync", "oneway", "callback", "transaction"] {
        mq(at, &["produce", "nowhere", "--mode", mode]).fails(1, "mq topic create");
    }
    mq(at, &["topic", "create", "here"]).ok();
    mq(at, &["produce", "here"]).ok();
}

#[test]
fn a_broker_that_is_still_starting_is_waited_for() {
    // Its first run gives it a free port, which it keeps.
    let mut broker = Broker::start();
    assert!(broker.stop().success());
    let mut early = Running::start(&broker.listen, &["topic", "create", "early", "--queues", "1"]);
    early.says(&format!("waiting for a broker at {}", broker.listen));
    broker.restart();
    assert!(early.wait().success());
    mq(&broker.listen, &["topic", "describe", "early"]).ok();
}

#[test]
fn what_listens_but_is_no_broker_is_reported_at_once() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap().to_string();
    // It greets like a mail server. The thread ends with the process.
    std::thread::spawn(move || {
        for connection in other.incoming() {
            connection.unwrap().write_all(b"220 mail ready\r\n").unwrap();
        }
    });
    let ran = mq(&at, &["topic", "list"]).fails(1, "no broker answers");
    assert!(!ran.stderr.contains("waiting for"), "{ran:#?}");
}

#[test]
fn no_broker_is_said_so() {
    let ran = mq("127.0.0.1:1", &["topic", "list"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(
        ran.stderr.contains("127.0.0.1:1") || ran.stderr.contains("no broker"),
        "{ran:#?}"
    );
}

#[test]
fn a_token_is_asked_for() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), b"secret\n").unwrap();
    let path = token.path().to_str().unwrap();
    let broker = Broker::start_with(&["--auth-token-file", path]);
    let ran = mq(&broker.listen, &["topic", "list"]).fails(1, "--token-file");
    assert!(!ran.stderr.contains("waiting for"), "{ran:#?}");
    mq(&broker.listen, &["--token-file", path, "topic", "create", "t"]).ok();
}

#[test]
fn help_is_complete() {
    let help = mq("127.0.0.1:1", &["--help"]).ok().stdout;
    for word in [
        "topic",
        "produce",
        "consume",
        "group",
        "txn",
        "cluster",
        "bench",
        "Examples:",
        "Exit status",
    ] {
        assert!(help.contains(word), "`{word}` is missing in:\n{help}");
    }
}
