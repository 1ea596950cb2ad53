//! A disk whose syncs fail: no receipt after the first failure, the process ends at once, and the next start
//! serves everything that was acknowledged. (Issue: fsync fails once, then "succeeds" on pages that never
//! reached the disk.)

use std::path::Path;
use std::time::{Duration, SystemTime};

use mq_common::ids::Durability;

use crate::support::{BrokerProcess, Client, Options, eventually, log_path, shim, topic};

/// The exit code of a failed disk.
const EXIT_IO: i32 = 74;

fn failing(failures: &Path, after: u32) -> Options {
    Options::default()
        .variable("LD_PRELOAD", shim::fail_sync().to_str().unwrap())
        .variable("FAIL_SYNC_AFTER", after.to_string())
        .variable("FAIL_SYNC_LOG", failures.to_str().unwrap())
        // Checkpoints often, so that their syncs fail too.
        .variable("MQ__CHECKPOINT__EVERY_MS", "30")
}

/// The broker ends within 2 s; on a busy machine the process that runs it, and this one, may get their turn
/// later.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// When the first sync failed, as the shim saw it.
fn first_failure(failures: &Path) -> Option<SystemTime> {
    let text = std::fs::read_to_string(failures).ok()?;
    let stamp = text.lines().next()?.rsplit(' ').next()?.to_owned();
    let (seconds, nanoseconds) = stamp.split_once('.')?;
    let since = Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?);
    Some(SystemTime::UNIX_EPOCH + since)
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_failed_sync_ends_receipts_and_the_process_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    assert!(broker.stop().success());
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    let mut quickest = Duration::MAX;
    // The failure hits the start of the load, or is deep in it; always past the broker's own start.
    for (round, after) in [20, 23, 60, 200].into_iter().enumerate() {
        let failures = folder.path().join(format!("failures-{round}"));
        let mut broker = BrokerProcess::start_with(&data, &failing(&failures, after));
        let client = Client::connect(&broker).await;
        let mut last_taken = SystemTime::UNIX_EPOCH;
        for number in 0.. {
            let value = format!("{round}-{number}");
            let begun = SystemTime::now();
            match client.send(&orders, 0, &[&value], None).await {
                Ok(receipt) => {
                    last_taken = begun;
                    acknowledged.push((receipt.base_offset.0, value));
                }
                Err(_) => break,
            }
        }
        let status = broker.exit_within(ENDS_WITHIN);
        let ended = SystemTime::now();
        assert_eq!(status.code(), Some(EXIT_IO), "round {round}");
        let failed = first_failure(&failures).expect("the shim failed a sync");
        quickest = quickest.min(ended.duration_since(failed).unwrap());
        // The thread whose sync failed may need a moment to tell the core.
        let grace = Duration::from_secs(1);
        assert!(
            last_taken < failed + grace,
            "round {round}: what was sent after the failure was acknowledged"
        );
    }
    assert!(quickest < Duration::from_secs(2), "{quickest:?}");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let read = client.read(&orders, 0, 0).await;
    assert!(acknowledged.len() > 50, "{} acknowledged", acknowledged.len());
    for (offset, value) in &acknowledged {
        assert_eq!(
            read[usize::try_from(*offset).unwrap()].value,
            *value,
            "a receipt was a lie"
        );
    }
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_receipts_end_with_the_first_failed_sync_too() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fast = topic("fast");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&fast, 1, Durability::Memory).await;
    assert!(broker.stop().success());
    let failures = folder.path().join("failures");
    let mut broker = BrokerProcess::start_with(&data, &failing(&failures, 20));
    let client = Client::connect(&broker).await;
    let mut acknowledged = Vec::new();
    while let Ok(receipt) = client.send(&fast, 0, &["x"], None).await {
        acknowledged.push(receipt.base_offset.0);
    }
    assert_eq!(broker.exit_within(ENDS_WITHIN).code(), Some(EXIT_IO));
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let read = client.read(&fast, 0, 0).await;
    let last = acknowledged
        .last()
        .expect("messages were acknowledged before the failure");
    assert!(*last < read.len() as u64);
}

/// The first compaction round ends the broker: the round's copies count nowhere, and the journal still has
/// the messages.
#[tokio::test(flavor = "multi_thread")]
async fn s4_failed_sync_of_the_file_system_in_a_round_ends_the_process_and_loses_nothing() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", MIB.to_string())
        .variable("MQ__JOURNAL__BUDGET_BYTES", (4 * MIB).to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", (1 << 30).to_string())
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100");
    let failing = options
        .clone()
        .variable("LD_PRELOAD", shim::fail_syncfs().to_str().unwrap());
    let mut broker = BrokerProcess::start_with(&data, &failing);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    let filler = "x".repeat(50_000);
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    for number in 0.. {
        let value = format!("{number} {filler}");
        let Ok(receipt) = client.send(&orders, 0, &[&value], None).await else {
            break;
        };
        acknowledged.push((receipt.base_offset.0, value));
    }
    assert_eq!(broker.exit_within(ENDS_WITHIN).code(), Some(EXIT_IO));
    let log = std::fs::read_to_string(log_path(&data)).unwrap();
    assert!(log.contains("cannot sync queue files"), "{log}");
    assert!(acknowledged.len() > 50, "{} acknowledged", acknowledged.len());
    let check = async |client: &Client| {
        let read = client.read(&orders, 0, 0).await;
        for (offset, value) in &acknowledged {
            assert_eq!(
                read[usize::try_from(*offset).unwrap()].value,
                *value,
                "a receipt was a lie"
            );
        }
    };
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    check(&client).await;
    // The next round overwrites what the failed one left.
    eventually("a round is done", async || {
        let (_, text) = broker.get("/metrics");
        text.contains("hc_mq_compaction_rounds_total ") && !text.contains("hc_mq_compaction_rounds_total 0")
    })
    .await;
    check(&client).await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    check(&Client::connect(&broker).await).await;
    assert!(broker.stop().success());
}
