//! A topic that compacts, as a person sees it: values and deletions are sent as lines, and who comes later
//! gets the last ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::support::{Broker, mq, mq_with_input};

/// A small journal, so that messages leave it soon.
const CONFIG: &str = r#"
[journal]
segment_bytes = "1MiB"
budget_bytes = "2MiB"
bytes_max = "1GiB"
[checkpoint]
every_ms = 200
[store]
tail_bytes_max = 1000000
compaction_disk_percent = 100
"#;

const LINES: u64 = 400;

#[test]
fn last_values_are_left_and_the_consumer_says_how_many_offsets_hold_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("broker.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let broker = Broker::start_with(&["--config", config.to_str().unwrap()]);
    let at = broker.listen.as_str();
    let create = [
        "topic",
        "create",
        "prices",
        "--queues",
        "1",
        "--durability",
        "memory",
        "--compact",
    ];
    mq(at, &create).ok();
    let mut lines = "milk:1.10\nmilk:\n".to_owned();
    for number in 2..LINES {
        writeln!(lines, "k{}:{number} {}", number % 3, "x".repeat(20_000)).unwrap();
    }
    let produce = ["produce", "prices", "--key-separator", ":"];
    mq_with_input(at, &produce, lines.as_bytes()).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    for number in 0.. {
        assert!(Instant::now() < deadline, "nothing was compacted");
        let group = format!("g{number}");
        let consume = [
            "--output",
            "json",
            "consume",
            "prices",
            "--group",
            &group,
            "--timeout",
            "1s",
        ];
        let read = mq(at, &consume).ok();
        let printed = read.json();
        let bodies = printed
            .iter()
            .map(|line| (line["key"].to_string(), line["body"].to_string()));
        let last: BTreeMap<String, String> = bodies.collect();
        assert_eq!(last["\"milk\""], "\"\"", "it is deleted");
        for key in 0..3 {
            let last = &last[&format!("\"k{key}\"")];
            let number = (LINES - 3..LINES).find(|number| number % 3 == key).unwrap();
            assert!(last.starts_with(&format!("\"{number} ")), "{key}");
        }
        let printed = printed.len() as u64;
        if printed < LINES {
            let said = format!("{} offsets were removed by key compaction", LINES - printed);
            assert!(read.stderr.contains(&said), "{said}: {}", read.stderr);
            assert!(!read.stderr.contains("damaged"), "{}", read.stderr);
            let described = mq(at, &["--output", "json", "group", "describe", &group]).ok();
            assert_eq!(described.json()[0]["lag"], 0, "{described:#?}");
            return;
        }
    }
}
