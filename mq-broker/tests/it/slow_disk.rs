//! A disk whose syncs do not return for a while: memory stays bounded, producers are told to wait, readers
//! are served, and what is acknowledged in the end is stored.

use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::ids::Durability;
use rpc_core::CallError;
use tokio::task::JoinSet;

use crate::support::{BrokerProcess, Client, Options, eventually_within, shim, topic};

const SENDS: usize = 300;
const BYTES: usize = 60_000;
/// Requests that may wait for the disk.
const INBOX_BYTES: usize = 2 << 20;

fn refused(broker: &BrokerProcess) -> u64 {
    let (_, text) = broker.get("/metrics");
    let name = "hc_mq_refused_total{code=\"Overloaded\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn s21_a_disk_that_hangs_bounds_memory_refuses_producers_serves_readers_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, gate) = (folder.path().join("data"), folder.path().join("gate"));
    let options = Options::default()
        .variable("LD_PRELOAD", shim::slow_sync().to_str().unwrap())
        .variable("SLOW_SYNC_WHILE", gate.to_str().unwrap())
        .variable("MQ__JOURNAL__INBOX_BYTES_MAX", INBOX_BYTES.to_string());
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["before"], None).await.unwrap();
    let resident = broker.resident_bytes();
    std::fs::write(&gate, b"").unwrap();
    let mut sends = JoinSet::new();
    for number in 0..SENDS {
        let (client, orders) = (client.clone(), orders.clone());
        sends.spawn(async move {
            let value = format!("{number:06}{}", "x".repeat(BYTES));
            (number, client.send(&orders, 0, &[value], None).await)
        });
    }
    // What does not fit is refused while the disk still hangs.
    let fitting = (INBOX_BYTES / BYTES) * 2;
    // Before the client gives up.
    let wait = Duration::from_secs(15);
    eventually_within(wait, "refusals", async || {
        refused(&broker) >= (SENDS - fitting) as u64
    })
    .await;
    let read = client.read(&orders, 0, 0).await;
    assert_eq!(read.len(), 1, "what is not on the disk is not shown");
    let grown = broker.resident_bytes().saturating_sub(resident);
    assert!(grown < 64 << 20, "{grown} bytes more");
    std::fs::remove_file(&gate).unwrap();
    let mut acknowledged = Vec::new();
    while let Some(sent) = sends.join_next().await {
        match sent.unwrap() {
            (number, Ok(receipt)) => acknowledged.push((receipt.base_offset.0, number)),
            (_, Err(CallError::App(error))) => assert_eq!(error.code, ErrorCode::Overloaded, "{error}"),
            (_, Err(error)) => panic!("neither stored nor refused: {error}"),
        }
    }
    assert!(
        acknowledged.len() >= 2 && acknowledged.len() <= fitting,
        "{}",
        acknowledged.len()
    );
    broker.kill();
    let broker = BrokerProcess::start(&data);
    let read = Client::connect(&broker).await.read(&orders, 0, 0).await;
    assert_eq!(read.len(), acknowledged.len() + 1, "refused is refused");
    for (offset, number) in acknowledged {
        let value = &read[usize::try_from(offset).unwrap()].value;
        assert!(value.starts_with(&format!("{number:06}")), "offset {offset}");
    }
}
