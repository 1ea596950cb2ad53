//! The index at the end of a sealed journal segment is damaged, and every message is still served.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use mq_broker::store::{SegmentId, layout};
use mq_common::api::transaction::Decision;
use mq_common::ids::{Durability, TopicName};

use crate::support::{BrokerProcess, Client, Delivered, Options, topic};
use crate::transactions::{end, half};

/// Bytes of a segment.
const SEGMENT_BYTES: u32 = 1 << 20;

async fn fill(client: &Client, orders: &TopicName, name: &str) {
    let filler = "x".repeat(60_000);
    for number in 0..12 {
        for queue in 0..2 {
            let value = format!("{name}-{number}-{filler}");
            client.send(orders, queue, &[value], None).await.unwrap();
        }
    }
}

async fn read(client: &Client, orders: &TopicName) -> [Vec<Delivered>; 2] {
    [client.read(orders, 0, 0).await, client.read(orders, 1, 0).await]
}

/// Flips a bit this many bytes before the end of a segment's file.
fn damage(data: &Path, segment: u64, before_end: i64) {
    let path = layout::segment_file(data, SegmentId(segment));
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::End(-before_end)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::End(-before_end)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_messages_of_segments_with_damaged_footers_are_served_from_rows_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", SEGMENT_BYTES.to_string());
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 2, Durability::Memory).await;
    // One is committed in a later segment, one in its own, one not at all.
    let late = half(&client, &orders, None, None).await.transaction;
    let own = half(&client, &orders, None, None).await.transaction;
    let dropped = half(&client, &orders, None, None).await.transaction;
    end(&client, &own, Decision::Commit).await.unwrap();
    end(&client, &dropped, Decision::Rollback).await.unwrap();
    fill(&client, &orders, "first").await;
    end(&client, &late, Decision::Commit).await.unwrap();
    end(&client, &late, Decision::Commit).await.unwrap();
    assert!(end(&client, &dropped, Decision::Commit).await.is_err());
    fill(&client, &orders, "second").await;
    fill(&client, &orders, "third").await;
    let expected = read(&client, &orders).await;
    assert_eq!(expected[0].len(), 2 * 2 + 36);
    assert!(broker.stop().success());
    // The trailer of one, the rows of the next.
    damage(&data, 1, 10);
    damage(&data, 2, 64 + 100);
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    assert_eq!(read(&client, &orders).await, expected);
    assert_eq!(read(&client, &orders).await, expected, "and once more");
    let log = std::fs::read_to_string(folder.path().join("data.log")).unwrap();
    assert_eq!(log.matches("a damaged index was rebuilt").count(), 2, "{log}");
    assert!(broker.stop().success());
}
