//! A compacted topic on a real disk: `verify` finds it whole, a backup of it restores to the same, and kills
//! change nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use mq_common::api::TopicSettings;
use mq_common::api::admin::{CreateTopicRequest, QueueHome};
use mq_common::api::produce::ProduceRequest;
use mq_common::batch::{Batch, Builder, BuilderOptions, Compression, Record};
use mq_common::ids::{Durability, QueueNumber, ShardName, Timestamp, TopicName};
use rpc_core::Attachment;

use crate::support::{BrokerProcess, Client, Options, eventually, topic, topic_batches};

const MIB: u64 = 1 << 20;
const KEYS: u64 = 6;
/// Some six segments of the journal, of which it may keep two.
const SENT: u64 = 1200;

fn options() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "100000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", MIB.to_string())
        .variable("MQ__JOURNAL__BUDGET_BYTES", (2 * MIB).to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", (1 << 30).to_string())
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
}

async fn create(client: &Client, broker: &BrokerProcess, name: &TopicName) {
    let request = CreateTopicRequest {
        name: name.clone(),
        identity: None,
        durability: Durability::Fsynced,
        queues: vec![QueueHome {
            queue: QueueNumber(0),
            shard: ShardName::new(broker.name.as_str()).unwrap(),
        }],
        settings: Some(TopicSettings {
            compact: true,
            ..TopicSettings::default()
        }),
    };
    client.admin.create_topic(request).await.unwrap();
}

fn value(offset: u64) -> String {
    format!("{offset} {}", "x".repeat(10_000))
}

/// Two messages, of two keys.
fn batch(base: u64) -> Batch {
    let mut builder = Builder::new(BuilderOptions {
        compression: if base.is_multiple_of(4) {
            Compression::None
        } else {
            Compression::Lz4
        },
        ..BuilderOptions::default()
    });
    for offset in [base, base + 1] {
        let key = (offset % KEYS).to_be_bytes();
        let value = value(offset);
        let record = Record {
            key: Some(&key),
            ..Record::new(value.as_bytes(), Timestamp(1))
        };
        builder.push(&record).unwrap();
    }
    builder.finish().unwrap()
}

async fn fill(client: &Client, name: &TopicName, from: u64, end: u64) {
    for base in (from..end).step_by(2) {
        let batch = batch(base);
        let request = ProduceRequest {
            topics: vec![topic_batches(name, &[(0, &batch)])],
            durability: None,
        };
        let attachment = Attachment::from(batch.into_bytes());
        client.produce.produce(request, attachment).await.unwrap();
    }
}

/// The offsets there are; all of them hold what was sent, no key has lost its last one, and the others are
/// holes.
async fn check(client: &Client, name: &TopicName, end: u64) -> Vec<u64> {
    let (mut next, mut there, mut missing) = (0, Vec::new(), Vec::new());
    while next < end {
        let (found, after, holes) = client.fetch_with_holes(name, 0, next).await;
        assert!(after > next, "{next}");
        for message in found.into_iter().filter(|message| message.offset >= next) {
            assert_eq!(message.value, value(message.offset));
            there.push(message.offset);
        }
        missing.extend(holes.into_iter().flat_map(|(from, end)| from..end));
        next = after;
    }
    let mut all = [&there[..], &missing[..]].concat();
    all.sort_unstable();
    assert_eq!(all, (0..end).collect::<Vec<_>>(), "each is there or in a hole");
    let last: BTreeMap<u64, u64> = there.iter().map(|offset| (offset % KEYS, *offset)).collect();
    assert!((0..KEYS).all(|key| last[&key] + KEYS >= end), "{last:?}");
    there
}

fn tool(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_whole_for_verify_and_comes_back_from_a_backup_and_after_kills() {
    let folder = tempfile::tempdir().unwrap();
    let (data, backup) = (folder.path().join("data"), folder.path().join("backup"));
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    let latest = topic("latest");
    create(&client, &broker, &latest).await;
    fill(&client, &latest, 0, SENT).await;
    eventually(
        "what two segments held, but for the last ones, went",
        async || {
            check(&client, &latest, SENT).await.len() < 900
                && broker.metric("hc_mq_key_compaction_messages_total ") > 300
                // Those are removed when a checkpoint has the others.
                && broker.metric("hc_mq_queue_files_removed_total ") > 0
        },
    )
    .await;
    assert!(broker.metric("hc_mq_key_compaction_passes_total ") >= 1);
    assert_eq!(broker.metric("hc_mq_key_compaction_files_left_total "), 0);
    assert_eq!(broker.metric("hc_mq_compaction_holes_total "), 0);
    let said = tool(&["verify", "--data-dir", text(&data)]);
    assert!(said.contains("compacted by keys"), "{said}");
    tool(&["backup", "--to", text(&backup), "--broker", &broker.listen]);
    let end = SENT + 300;
    fill(&client, &latest, SENT, end).await;
    check(&client, &latest, end).await;
    broker.kill();
    // What a round deleted without a checkpoint may be back: all of it, and the last messages in any case.
    let broker = BrokerProcess::start_with(&data, &options());
    check(&Client::connect(&broker).await, &latest, end).await;
    assert!(broker.stop().success());
    tool(&["verify", "--data-dir", text(&data)]);
    let restored = folder.path().join("restored");
    tool(&["restore", "--from", text(&backup), "--data-dir", text(&restored)]);
    tool(&["verify", "--data-dir", text(&restored)]);
    let broker = BrokerProcess::start_with(&restored, &options());
    let there = check(&Client::connect(&broker).await, &latest, SENT).await;
    assert!(there.len() < 900, "{}", there.len());
}
