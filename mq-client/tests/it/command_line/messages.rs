//! Produce and consume.

use std::collections::BTreeMap;

use crate::support::{Broker, Running, mq, mq_with_input};

fn broker_with_topic(queues: &str) -> Broker {
    let broker = Broker::start();
    mq(&broker.listen, &["topic", "create", "t", "--queues", queues]).ok();
    broker
}

#[test]
fn lines_go_in_and_come_out() {
    let broker = broker_with_topic("1");
    let at = broker.listen.as_str();
    let produced = mq_with_input(
        at,
        &["--output", "json", "produce", "t"],
        b"first\n\nthird\twith tab",
    )
    .ok();
    let summary = &produced.json()[0];
    assert_eq!((&summary["sent"], &summary["acked"]), (&3.into(), &3.into()));
    assert_eq!((&summary["failed"], &summary["unknown"]), (&0.into(), &0.into()));

    let consumed = mq(
        at,
        &[
            "--output",
            "json",
            "consume",
            "t",
            "--group",
            "g",
            "--count",
            "3",
            "--timeout",
            "10s",
        ],
    );
    let bodies: Vec<_> = consumed
        .ok()
        .json()
        .iter()
        .map(|line| line["body"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(bodies, ["first", "", "third\twith tab"]);

    // The group has acked them: nothing comes again.
    let again = mq(at, &["consume", "t", "--group", "g", "--timeout", "1s"]).ok();
    assert_eq!(again.stdout, "");
    // Another group gets everything.
    let other = mq(
        at,
        &["consume", "t", "--group", "h", "--count", "3", "--timeout", "10s"],
    )
    .ok();
    assert_eq!(
        other.rows()[2],
        ["t", "0", "2", "-", "-", "1", "third\\twith tab"]
    );
}

#[test]
fn every_mode_delivers() {
    let broker = broker_with_topic("4");
    let at = broker.listen.as_str();
    for mode in ["sync", "oneway", "callback", "transaction"] {
        mq_with_input(
            at,
            &["produce", "t", "--mode", mode],
            format!("{mode} 1\n{mode} 2\n").as_bytes(),
        )
        .ok();
    }
    let consumed = mq(
        at,
        &[
            "--output",
            "json",
            "consume",
            "t",
            "--group",
            "g",
            "--count",
            "8",
            "--timeout",
            "10s",
        ],
    );
    let mut bodies: Vec<_> = consumed
        .ok()
        .json()
        .iter()
        .map(|line| line["body"].as_str().unwrap().to_owned())
        .collect();
    bodies.sort();
    let expected = [
        "callback 1",
        "callback 2",
        "oneway 1",
        "oneway 2",
        "sync 1",
        "sync 2",
        "transaction 1",
        "transaction 2",
    ];
    assert_eq!(bodies, expected);
}

#[test]
fn receipts_name_place_and_durability() {
    let broker = broker_with_topic("1");
    let receipts = mq_with_input(&broker.listen, &["produce", "t", "-v"], b"a\nb\n").ok();
    assert_eq!(
        receipts.rows(),
        [["t", "0", "0", "fsynced"], ["t", "0", "1", "fsynced"]]
    );
    assert!(receipts.stderr.contains("acked 2"), "{receipts:?}");
}

#[test]
fn lines_of_one_key_stay_in_one_queue_in_order() {
    let broker = broker_with_topic("8");
    let at = broker.listen.as_str();
    let input: String = (0..200).map(|n| format!("k{}:{n}\n", n % 10)).collect();
    mq_with_input(
        at,
        &["produce", "t", "--key-separator", ":", "--tag", "x"],
        input.as_bytes(),
    )
    .ok();
    let consumed = mq(
        at,
        &[
            "--output",
            "json",
            "consume",
            "t",
            "--group",
            "g",
            "--count",
            "200",
            "--timeout",
            "10s",
        ],
    )
    .ok();
    let mut of_key: BTreeMap<String, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for line in consumed.json() {
        assert_eq!(line["tag"], "x");
        let place = (line["queue"].as_u64().unwrap(), line["offset"].as_u64().unwrap());
        let number = line["body"].as_str().unwrap().parse().unwrap();
        of_key
            .entry(line["key"].as_str().unwrap().to_owned())
            .or_default()
            .push((place.0, place.1, number));
    }
    assert_eq!(of_key.len(), 10);
    for (key, lines) in of_key {
        assert_eq!(lines.len(), 20, "{key}");
        assert!(
            lines.is_sorted_by(|a, b| a.0 == b.0 && a.1 < b.1 && a.2 < b.2),
            "{key}: {lines:?}"
        );
    }
}

#[test]
fn a_file_is_one_message_or_many() {
    let broker = broker_with_topic("1");
    let at = broker.listen.as_str();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"one\ntwo\xff\n").unwrap();
    let path = file.path().to_str().unwrap();
    mq(at, &["produce", "t", "--file", path]).ok();
    mq(at, &["produce", "t", "--file", path, "--lines"]).ok();
    let consumed = mq(
        at,
        &[
            "--output",
            "json",
            "consume",
            "t",
            "--group",
            "g",
            "--count",
            "3",
            "--timeout",
            "10s",
        ],
    )
    .ok()
    .json();
    assert_eq!(consumed[0]["body_base64"], "b25lCnR3b/8K");
    assert_eq!(consumed[1]["body"], "one");
    assert_eq!(consumed[2]["body_base64"], "dHdv/w==");
}

#[test]
fn terminal_escapes_in_a_body_are_shown_not_obeyed() {
    let broker = broker_with_topic("1");
    let at = broker.listen.as_str();
    mq_with_input(at, &["produce", "t"], b"\x1b[31mred\n").ok();
    let consumed = mq(
        at,
        &["consume", "t", "--group", "g", "--count", "1", "--timeout", "10s"],
    )
    .ok();
    assert_eq!(consumed.rows()[0][6], "\\x1b[31mred");
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let mut broker = broker_with_topic("2");
    mq_with_input(&broker.listen, &["produce", "t"], b"a\nb\nc\n").ok();
    mq(
        &broker.listen,
        &["consume", "t", "--group", "g", "--count", "3", "--timeout", "10s"],
    )
    .ok();
    mq_with_input(&broker.listen, &["produce", "t"], b"d\n").ok();
    broker.kill();
    broker.restart();
    let consumed = mq(
        &broker.listen,
        &[
            "--output",
            "json",
            "consume",
            "t",
            "--group",
            "h",
            "--count",
            "4",
            "--timeout",
            "10s",
        ],
    );
    assert_eq!(consumed.ok().json().len(), 4);
}

#[test]
fn a_count_that_is_not_reached_is_a_failure() {
    let broker = broker_with_topic("1");
    mq_with_input(&broker.listen, &["produce", "t"], b"a\n").ok();
    let consumed = mq(
        &broker.listen,
        &["consume", "t", "--group", "g", "--count", "2", "--timeout", "1s"],
    );
    assert_eq!(consumed.fails(1, "1 of 2").rows().len(), 1);
}

#[test]
fn a_new_group_starts_where_it_is_told() {
    let broker = broker_with_topic("1");
    let at = broker.listen.as_str();
    mq_with_input(at, &["produce", "t"], b"a\nb\nc\n").ok();
    let from_two = mq(
        at,
        &[
            "consume",
            "t",
            "--group",
            "g",
            "--from",
            "2",
            "--count",
            "1",
            "--timeout",
            "10s",
        ],
    )
    .ok();
    assert_eq!(from_two.rows()[0][6], "c");
    mq(
        at,
        &[
            "consume",
            "t",
            "--group",
            "h",
            "--from",
            "latest",
            "--timeout",
            "500ms",
        ],
    )
    .ok();
    mq_with_input(at, &["produce", "t"], b"d\n").ok();
    let latest = mq(
        at,
        &["consume", "t", "--group", "h", "--count", "1", "--timeout", "10s"],
    )
    .ok();
    assert_eq!(latest.rows()[0][6], "d");
}

#[test]
fn what_was_sent_before_a_lasting_error_is_counted_to_the_last_message() {
    let broker = broker_with_topic("2");
    for mode in ["sync", "callback"] {
        let flags = [
            "--output",
            "json",
            "produce",
            "t",
            "--durability",
            "memory",
            "--mode",
            mode,
        ];
        let produced =
            mq_with_input(&broker.listen, &flags, b"a\nb\nc\n").fails(1, "below the topic's floor");
        let summary = &produced.json()[0];
        let count = |name: &str| summary[name].as_u64().unwrap();
        assert!(count("sent") > 0, "{mode}: {summary}");
        assert_eq!(count("failed"), count("sent"), "{mode}: {summary}");
        if mode == "sync" {
            assert_eq!(count("sent"), 3, "they are read together");
        }
    }
}

#[test]
fn a_consumer_says_that_its_only_broker_died_and_that_it_is_back() {
    let mut broker = Broker::start_with(&["--name", "a"]);
    mq(&broker.listen, &["topic", "create", "t", "--queues", "2"]).ok();
    mq_with_input(&broker.listen, &["produce", "t"], b"before\n").ok();
    let mut consumer = Running::start(&broker.listen, &["consume", "t", "--group", "g"]);
    assert!(consumer.line().ends_with("before\n"));
    broker.kill();
    let silent = consumer.says("broker `a` is silent");
    assert!(silent.contains("2 queues"), "{silent}");
    broker.restart();
    consumer.says("broker `a` is back");
    mq_with_input(&broker.listen, &["produce", "t"], b"after\n").ok();
    // The first one comes again if its ack had not left by then.
    let mut line = consumer.line();
    while line.ends_with("before\n") {
        line = consumer.line();
    }
    assert!(line.ends_with("after\n"), "{line}");
}

#[test]
fn oneway_with_receipts_asked_for_prints_none_and_says_why() {
    let broker = Broker::start();
    mq(&broker.listen, &["topic", "create", "t"]).ok();
    let ran = mq_with_input(
        &broker.listen,
        &["produce", "t", "--mode", "oneway", "-v"],
        b"a\n",
    )
    .ok();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("no receipts"), "{ran:?}");
}
