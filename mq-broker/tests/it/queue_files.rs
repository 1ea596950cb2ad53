//! The journal has a budget: what outlives it moves into queue files and is served from there.

use std::path::{Path, PathBuf};

use mq_common::ErrorCode;
use mq_common::api::admin::DeleteTopicRequest;
use mq_common::api::transaction::Decision;
use mq_common::ids::{Durability, QueueNumber, Timestamp, TopicName};
use rpc_core::CallError;

use crate::support::{BrokerProcess, Client, Options, eventually, topic};
use crate::transactions::{end, try_half};

const MIB: u64 = 1 << 20;

/// Segments of 1 MiB, of which four are kept.
fn options() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", MIB.to_string())
        .variable("MQ__JOURNAL__BUDGET_BYTES", (4 * MIB).to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", (1 << 30).to_string())
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
}

/// Segments of the journal: spares are none.
fn segments(data: &Path) -> usize {
    let names = std::fs::read_dir(data.join("journal")).unwrap();
    names
        .filter(|name| {
            let name = name.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".journal")
        })
        .count()
}

fn folder_of(data: &Path, topic: &TopicName) -> Option<PathBuf> {
    let prefix = format!("{topic}-");
    let folders = std::fs::read_dir(data.join("queues")).ok()?;
    let mut folders = folders.map(|folder| folder.unwrap().path());
    folders.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
}

fn value(topic: &TopicName, number: u32) -> String {
    format!("{topic} {number} {}", "x".repeat(60_000))
}

async fn fill(client: &Client, topics: &[TopicName], numbers: std::ops::Range<u32>) {
    for number in numbers {
        for topic in topics {
            let value = value(topic, number);
            client.send(topic, number % 2, &[&value], None).await.unwrap();
        }
    }
}

async fn check(client: &Client, topic: &TopicName, numbers: u32) {
    for queue in 0..2 {
        let read = client.read(topic, queue, 0).await;
        let expected = (0..numbers).filter(|number| number % 2 == queue);
        assert!(
            expected.clone().count() == read.len()
                && expected
                    .zip(&read)
                    .all(|(number, message)| message.value == value(topic, number)),
            "queue {queue} of {topic}: {} messages",
            read.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_keeps_to_its_budget_and_all_is_served_from_queue_files_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let topics = [topic("kept"), topic("dropped")];
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    for topic in &topics {
        client.create_topic(topic, 2, Durability::Memory).await;
    }
    fill(&client, &topics, 0..200).await;
    eventually("the journal is within its budget", async || segments(&data) <= 4).await;
    assert!(broker.metric("hc_mq_compaction_rounds_total") >= 3);
    assert!(broker.metric("hc_mq_compaction_bytes_total") > 15 * MIB);
    assert_eq!(broker.metric("hc_mq_compaction_holes_total"), 0);
    assert!(broker.metric("hc_mq_queue_files_bytes") > 15 * MIB);
    let kept = folder_of(&data, &topics[0]).unwrap();
    let stat = std::fs::read_to_string(kept.join("0/queue_stat.txt")).unwrap();
    assert!(stat.contains("first_offset 0\n"), "{stat}");
    for topic in &topics {
        check(&client, topic, 200).await;
    }
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    for topic in &topics {
        check(&client, topic, 200).await;
    }
    fill(&client, &topics, 200..240).await;
    let request = DeleteTopicRequest {
        name: topics[1].clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(request).await.unwrap();
    eventually("the files of the deleted topic are gone", async || {
        folder_of(&data, &topics[1]).is_none()
    })
    .await;
    check(&client, &topics[0], 240).await;
    assert!(broker.stop().success());
    let broker = BrokerProcess::start_with(&data, &options());
    check(&Client::connect(&broker).await, &topics[0], 240).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_found_in_queue_files_as_it_was_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let name = topic("times");
    let options = options().variable("MQ__JOURNAL__BUDGET_BYTES", (64 * MIB).to_string());
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.create_topic(&name, 2, Durability::Memory).await;
    fill(&client, std::slice::from_ref(&name), 0..120).await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    let times: Vec<u64> = (0..40).map(|step| now.saturating_sub(step * 20)).collect();
    let find = async |client: &Client| {
        let mut found = Vec::new();
        for time in &times {
            let at = client
                .fetch
                .offset_at(name.clone(), QueueNumber(0), Timestamp(*time));
            found.push(at.await.unwrap());
        }
        found
    };
    let before = find(&client).await;
    assert!(broker.stop().success());
    let broker = BrokerProcess::start_with(&data, &self::options());
    let client = Client::connect(&broker).await;
    eventually("most of it has moved", async || segments(&data) <= 4).await;
    assert_eq!(find(&client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_at_its_limit_refuses_messages_and_still_takes_decisions() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let name = topic("orders");
    let options = options()
        .variable("MQ__JOURNAL__BUDGET_BYTES", (2 * MIB).to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", (6 * MIB).to_string());
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.create_topic(&name, 2, Durability::Memory).await;
    // An undecided half in every segment: none of them can go.
    let mut open = Vec::new();
    let large = "x".repeat(200_000);
    let refused = loop {
        let mut sent = try_half(&client, &name, None, None).await;
        if let Ok(sent) = &sent {
            open.push(sent.transaction.clone());
        }
        for _ in 0..4 {
            if let Err(error) = client.send(&name, 0, &[&large], None).await {
                sent = Err(error);
            }
        }
        if let Err(error) = sent {
            break error;
        }
        assert!(open.len() < 1000, "nothing is refused");
    };
    let CallError::App(error) = refused else {
        panic!("{refused}")
    };
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(error.message.contains("6291456"), "{error}");
    let end_before = client.read(&name, 0, 0).await.len();
    for transaction in &open {
        end(&client, transaction, Decision::Commit).await.unwrap();
    }
    eventually("messages are taken again", async || {
        client.send(&name, 0, &["again"], None).await.is_ok()
    })
    .await;
    let read = client.read(&name, 0, 0).await;
    assert_eq!(read.len(), end_before + 2 * open.len() + 1);
}
