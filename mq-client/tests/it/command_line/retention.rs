//! Settings of topics: made, altered, shown, carried to another cluster; and what a reader is told of deleted
//! messages.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Broker, mq, mq_with_input};

fn json_of(at: &str, arguments: &[&str]) -> Vec<Value> {
    let arguments: Vec<&str> = ["--output", "json"].iter().chain(arguments).copied().collect();
    mq(at, &arguments).ok().json()
}

fn settings(record: &Value) -> Value {
    let names = [
        "retention_ms",
        "retention_bytes",
        "consumed",
        "hold_ms",
        "message_bytes_max",
        "compact",
    ];
    names.iter().map(|name| record[name].clone()).collect()
}

#[test]
fn settings_are_given_at_creation_altered_and_shown() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    let usual = json_of(at, &["topic", "create", "usual", "--queues", "1"]);
    assert_eq!(
        settings(&usual[0]),
        json!([604_800_000, null, false, null, null, false])
    );
    let create = [
        "topic",
        "create",
        "own",
        "--queues",
        "2",
        "--retention",
        "12h",
        "--retention-bytes",
        "1GiB",
        "--consumed",
        "--hold-until-consumed",
        "--max-message-bytes",
        "64KiB",
    ];
    let day = 86_400_000_u64;
    let expected = json!([day / 2, 1 << 30, true, 30 * day, 65_536, false]);
    assert_eq!(settings(&json_of(at, &create)[0]), expected);
    // Repeating it is harmless, and so is leaving out what was given; other settings are another topic.
    mq(at, &create).ok();
    mq(at, &["topic", "create", "own", "--queues", "2"]).ok();
    mq(
        at,
        &["topic", "create", "own", "--queues", "2", "--retention", "1d"],
    )
    .fails(1, "mq topic alter own");

    let described = json_of(at, &["topic", "describe", "own"]);
    assert_eq!((described.len(), settings(&described[1])), (2, expected));
    let shown = mq(at, &["topic", "list"]).ok();
    assert!(shown.rows()[0].contains(&"12h"), "{shown:#?}");

    let alter = [
        "topic",
        "alter",
        "own",
        "--queues",
        "5",
        "--retention",
        "forever",
        "--consumed=false",
        "--compact",
        "--hold-until-consumed",
        "none",
        "--max-message-bytes",
        "none",
        "--durability",
        "memory",
    ];
    let altered = json_of(at, &alter);
    assert_eq!(
        settings(&altered[0]),
        json!([null, 1 << 30, false, null, null, true])
    );
    assert_eq!(
        (&altered[0]["queues"], &altered[0]["durability"]),
        (&5.into(), &"memory".into())
    );
    assert_eq!(altered[0]["version"], 2);
    assert_eq!(json_of(at, &alter), altered, "a change of nothing");
    assert_eq!(json_of(at, &["topic", "describe", "own"]).len(), 5);
    let sent = mq_with_input(
        at,
        &["produce", "own", "--key-separator", ":"],
        b"a:1\nb:2\nc:3\nd:4\n",
    )
    .ok();
    assert_eq!(sent.status, 0);
}

#[test]
fn new_topic_that_compacts_has_no_age_unless_one_is_named() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    let prices = json_of(at, &["topic", "create", "prices", "--queues", "1", "--compact"]);
    assert_eq!(settings(&prices[0]), json!([null, null, false, null, null, true]));
    let back = json_of(at, &["topic", "alter", "prices", "--compact=false"]);
    assert_eq!(back[0]["compact"], false);
    let aged = [
        "topic",
        "create",
        "aged",
        "--queues",
        "1",
        "--compact",
        "--retention",
        "1d",
    ];
    assert_eq!(
        settings(&json_of(at, &aged)[0]),
        json!([86_400_000, null, false, null, null, true])
    );
}

#[test]
fn what_cannot_be_is_refused_in_plain_words() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "t", "--queues", "3"]).ok();
    mq(at, &["topic", "alter", "t", "--queues", "2"]).fails(1, "never removed");
    mq(at, &["topic", "alter", "t"]).fails(2, "nothing to change");
    mq(at, &["topic", "alter", "u", "--queues", "2"]).fails(1, "mq topic create u");
    mq(at, &["topic", "alter", "t", "--retention", "0s"]).fails(2, "expected 1 to");
    mq(at, &["topic", "alter", "t", "--hold-until-consumed", "1h"]).fails(2, "at least as long");
    mq(at, &["topic", "alter", "t", "--compact", "--consumed"]).fails(2, "set only one of them");
    mq(at, &["topic", "create", "__t"]).fails(2, "reserved");
    mq(at, &["topic", "create", "v", "--queues", "100001"]).fails(2, "100000");
    mq(at, &["topic", "create", "v", "--max-message-bytes", "5MiB"]).fails(2, "4194304");
    let many = mq(at, &["topic", "create", "v", "--queues", "20000"]).ok();
    assert!(many.stderr.contains("20000 queues"), "{many:#?}");

    mq(at, &["topic", "alter", "t", "--max-message-bytes", "10"]).ok();
    let large = mq_with_input(at, &["produce", "t"], b"fits\ndoes not fit\nfits too\n");
    let large = large.fails(1, "the limit is 10");
    assert!(large.stderr.contains("12 bytes"), "{large:#?}");
    let ends = json_of(at, &["topic", "describe", "t"]);
    let messages: u64 = ends.iter().map(|queue| queue["messages"].as_u64().unwrap()).sum();
    assert_eq!(messages, 2, "its neighbours are sent");
}

#[test]
fn export_brings_topics_and_groups_to_another_cluster_and_says_what_differs() {
    let (from, to) = (Broker::start(), Broker::start());
    let at = from.listen.as_str();
    mq(
        at,
        &[
            "topic",
            "create",
            "a",
            "--queues",
            "3",
            "--retention",
            "1d",
            "--compact",
        ],
    )
    .ok();
    mq(
        at,
        &["topic", "create", "b", "--queues", "1", "--durability", "memory"],
    )
    .ok();
    mq_with_input(at, &["produce", "a"], b"x\n").ok();
    mq(
        at,
        &["consume", "a", "--group", "g", "--count", "1", "--timeout", "10s"],
    )
    .ok();
    let exported = mq(at, &["topic", "export"]).ok();
    assert_eq!(
        exported.json()[0]["groups"],
        json!([{"group": "g", "mode": "stream"}])
    );
    assert_eq!(
        mq(at, &["topic", "export", "b"]).ok().json(),
        exported.json()[1..]
    );
    mq(at, &["topic", "export", "c"]).fails(1, "no topic `c`");

    let there = to.listen.as_str();
    let import = |status| {
        let arguments = ["--output", "json", "topic", "import"];
        let ran = mq_with_input(there, &arguments, exported.stdout.as_bytes());
        assert_eq!(ran.status, status, "{ran:#?}");
        let results = ran.json();
        let word = |record: &Value| format!("{}/{} {}", record["topic"], record["group"], record["result"]);
        (results.iter().map(word).collect::<Vec<_>>(), results)
    };
    let first = import(0).0;
    let named = |a: &str, g: &str, b: &str| {
        vec![
            format!(r#""a"/null "{a}""#),
            format!(r#""a"/"g" "{g}""#),
            format!(r#""b"/null "{b}""#),
        ]
    };
    assert_eq!(first, named("created", "created", "created"));
    assert_eq!(import(0).0, named("unchanged", "unchanged", "unchanged"));
    assert_eq!(mq(there, &["topic", "export"]).ok().stdout, exported.stdout);
    let members = json_of(there, &["group", "list"]);
    assert_eq!(members[0]["members"], 0, "nobody stays in the group");

    mq(
        there,
        &["topic", "alter", "b", "--queues", "2", "--retention", "2d"],
    )
    .ok();
    let (words, results) = import(1);
    assert_eq!(words, named("unchanged", "unchanged", "differs"));
    let difference = results[2]["difference"].as_str().unwrap();
    assert!(difference.contains("queues is 2, not 1"), "{difference}");
    assert!(
        difference.contains("retention_ms is 172800000, not 604800000"),
        "{difference}"
    );
}

#[test]
fn reader_that_is_overtaken_is_told_how_much_it_missed_and_the_group_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("broker.toml");
    std::fs::write(&config, "[retention]\ncheck_ms = 100\n").unwrap();
    let broker = Broker::start_with(&["--config", config.to_str().unwrap()]);
    let at = broker.listen.as_str();
    mq(
        at,
        &["topic", "create", "t", "--queues", "1", "--durability", "memory"],
    )
    .ok();
    let line = "x".repeat(20_000) + "\n";
    let lines = |count| line.repeat(count).into_bytes();
    mq_with_input(at, &["produce", "t"], &lines(100)).ok();
    // Nobody reads what it writes: it stands still with what it has.
    let mut reader = Command::new(env!("CARGO_BIN_EXE_mq"))
        .args(["--broker", at, "consume", "t", "--group", "g", "--timeout", "5s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut messages = BufReader::new(reader.stdout.take().unwrap());
    messages.read_line(&mut String::new()).unwrap();
    mq_with_input(at, &["produce", "t"], &lines(2000)).ok();
    mq(at, &["topic", "alter", "t", "--retention-bytes", "100KB"]).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    let start = || {
        json_of(at, &["topic", "describe", "t"])[0]["start"]
            .as_u64()
            .unwrap()
    };
    while start() == 0 {
        assert!(Instant::now() < deadline, "nothing was deleted");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let read = 1 + messages.lines().map(Result::unwrap).count();
    let output = reader.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let told: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("were deleted before"))
        .collect();
    assert_eq!(told.len(), 1, "{said}");
    let words: Vec<&str> = told[0].split(' ').collect();
    let missed: usize = words[3].parse().unwrap();
    assert_eq!(missed + read, 2100, "{said}");
    let described = json_of(at, &["group", "describe", "g"]);
    let expired = described[0]["expired_unread"].as_u64().unwrap();
    assert!(expired >= missed as u64, "{described:?}");
}
