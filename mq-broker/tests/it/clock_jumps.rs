//! The wall clock jumps under a broker, and is wrong when it starts: the log's time does not go back, nothing
//! is deleted too early, and no identity is used twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use mq_broker::store::layout;
use mq_common::api::TopicSettings;
use mq_common::ids::{Durability, TopicName};

use crate::support::{BrokerProcess, Client, Options, eventually, shim, topic};
use crate::transactions::half;

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

async fn create(client: &Client, name: &TopicName, retention_ms: u64) {
    let settings = TopicSettings {
        retention_ms: Some(retention_ms),
        ..TopicSettings::default()
    };
    client
        .create_topic_with(name, 2, Durability::Fsynced, settings)
        .await;
}

async fn start_of(client: &Client, name: &TopicName) -> u64 {
    client.start_of(name, 0).await
}

/// The times of all entries of the journal, in order.
fn entry_times(data: &Path) -> Vec<u64> {
    let mut files: Vec<_> = std::fs::read_dir(layout::journal_folder(data))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "journal"))
        .collect();
    files.sort();
    let mut times = Vec::new();
    for file in files {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
        let output = command
            .args(["dump", "--output", "json"])
            .arg(file)
            .output()
            .unwrap();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["kind"] == "entry" {
                times.push(line["time_ms"].as_u64().unwrap());
            }
        }
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_jumps_of_the_wall_clock_delete_nothing_early_and_repeat_no_identity() {
    let folder = tempfile::tempdir().unwrap();
    let (data, shift) = (folder.path().join("data"), folder.path().join("shift"));
    let options = Options::default()
        .variable("LD_PRELOAD", shim::shift_clock().to_str().unwrap())
        .variable("CLOCK_SHIFT_FILE", shift.to_str().unwrap())
        .variable("MQ__RETENTION__CHECK_MS", "20");
    let (kept, brief) = (topic("kept"), topic("brief"));
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    create(&client, &kept, 3_600_000).await;
    create(&client, &brief, 1).await;
    let mut sent = 0;
    for seconds in [HOUR, -HOUR, 24 * HOUR, -24 * HOUR, 10 * YEAR, -10 * YEAR] {
        std::fs::write(&shift, seconds.to_string()).unwrap();
        client.send(&kept, 0, &["x"], None).await.unwrap();
        let receipt = client.send(&brief, 0, &["x"], None).await.unwrap();
        sent += 1;
        // Retention has run with this time now.
        eventually("the brief one goes", async || {
            start_of(&client, &brief).await > receipt.base_offset.0
        })
        .await;
        assert_eq!(start_of(&client, &kept).await, 0, "after a jump of {seconds} s");
    }
    let mut transactions = BTreeSet::from([half(&client, &kept, None, None).await.transaction]);
    assert!(broker.stop().success());
    // The clock is ten years behind, then right again.
    for seconds in [-10 * YEAR, 0] {
        std::fs::write(&shift, seconds.to_string()).unwrap();
        let broker = BrokerProcess::start_with(&data, &options);
        let client = Client::connect(&broker).await;
        client.send(&kept, 0, &["x"], None).await.unwrap();
        sent += 1;
        let transaction = half(&client, &kept, None, None).await.transaction;
        assert!(transactions.insert(transaction), "an identity came twice");
        assert_eq!(client.read(&kept, 0, 0).await.len(), sent);
        assert!(broker.stop().success());
    }
    let times = entry_times(&data);
    assert!(times.is_sorted(), "{times:?}");
    let took = times.last().unwrap() - times[0];
    assert!(took < 600_000, "the log's time went {took} ms ahead in this test");
}
