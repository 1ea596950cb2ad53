//! A graceful stop under load, and what is read from files afterwards.

use std::time::{Duration, Instant};

use mq_common::ids::{Durability, Offset};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::{BrokerProcess, Client, Options, topic};

/// The stop comes when this many were sent.
const RECEIPTS: usize = 100;
/// Requests in progress may delay the stop by this time, the most there can be; a long poll must not.
const DRAIN: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn b29_stop_under_load_keeps_every_receipt_and_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let drain = DRAIN.as_millis().to_string();
    let options = Options::default().variable("MQ__STOP__DRAIN_MS", drain);
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 4, Durability::Fsynced).await;
    let mut senders = JoinSet::new();
    let (count, mut counted) = mpsc::channel(RECEIPTS);
    for queue in 0..4 {
        let (client, orders, count) = (client.clone(), orders.clone(), count.clone());
        senders.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let value = format!("{queue}-{number}");
                let Ok(receipt) = client.send(&orders, queue, &[&value], None).await else {
                    break;
                };
                acknowledged.push((queue, receipt.base_offset.0, value));
                // Nothing is counted after the stop has begun.
                let _enough = count.try_send(());
            }
            acknowledged
        });
    }
    // A long poll must not hold the stop up.
    let mut waiting = JoinSet::new();
    waiting.spawn({
        let (client, orders) = (client.clone(), orders.clone());
        async move {
            client
                .fetch_once(&orders, 0, Offset(0), Duration::from_secs(30))
                .await
                .is_ok()
        }
    });
    for _ in 0..RECEIPTS {
        counted.recv().await.unwrap();
    }
    let started = Instant::now();
    assert!(broker.stop().success());
    assert!(
        started.elapsed() < DRAIN,
        "the long poll was waited for: {:?}",
        started.elapsed()
    );
    waiting.join_all().await;
    let acknowledged = senders.join_all().await.concat();
    assert!(acknowledged.len() >= RECEIPTS);
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    for queue in 0..4 {
        let read = client.read(&orders, queue, 0).await;
        for (_, offset, value) in acknowledged.iter().filter(|(of, ..)| *of == queue) {
            assert_eq!(read[usize::try_from(*offset).unwrap()].value, *value);
        }
    }
}

/// Segments of the backlog, about.
const SEGMENTS_MAX: u64 = 12;

/// Whether the file system of this folder answers a read that must not block.
fn tells_what_is_cached(folder: &std::path::Path) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};

    let path = folder.join("cached");
    std::fs::write(&path, b"x").unwrap();
    let file = std::fs::File::open(path).unwrap();
    let mut byte = [0];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    preadv2(&file, &mut buffers, 0, ReadWriteFlags::NOWAIT).is_ok()
}

/// Far more than memory holds, over several segments: every offset is served once, in order, also right after
/// a restart, and the files' bytes are what was sent.
#[tokio::test(flavor = "multi_thread")]
async fn backlog_beyond_memory_is_read_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 2, Durability::Memory).await;
    let filler = "x".repeat(9_000);
    let value = |queue: u32, number: u32| format!("{queue}-{number}-{filler}");
    for number in 0..500 {
        for queue in 0..2 {
            client
                .send(&orders, queue, &[value(queue, number)], None)
                .await
                .unwrap();
        }
    }
    let check = async |client: &Client| {
        for queue in 0..2 {
            let read = client.read(&orders, queue, 0).await;
            assert_eq!(read.len(), 500);
            for (number, message) in (0..).zip(&read) {
                assert_eq!(
                    (message.offset, &message.value),
                    (u64::from(number), &value(queue, number))
                );
            }
        }
    };
    check(&client).await;
    let (_, text) = broker.get("/metrics");
    assert!(
        !text.contains("hc_mq_fetched_file_bytes_total 0\n"),
        "files were not read"
    );
    // They were written a moment ago, so the page cache has them: where the file system can say so, hardly a
    // read is handed to a thread that waits, the first of each segment at most.
    let reads = |from: &str| -> u64 {
        let name = format!("hc_mq_fetch_reads_total{{from=\"{from}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |number| number.parse().unwrap())
    };
    let (cached, waited) = (reads("page_cache"), reads("disk"));
    assert!(cached + waited > 0, "{text}");
    if tells_what_is_cached(&data) {
        assert!(
            waited <= 2 * SEGMENTS_MAX && cached > 0,
            "{cached} of the page cache, {waited} waited"
        );
    }
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    check(&Client::connect(&broker).await).await;
    assert!(broker.stop().success());
    let broker = BrokerProcess::start_with(&data, &options);
    check(&Client::connect(&broker).await).await;
}
