//! The scrub finds what the disk damaged, before anybody asks for it; what is around it is served.

use std::path::{Path, PathBuf};
use std::process::Command;

use mq_broker::store::{SegmentId, layout};
use mq_common::ids::Durability;

use crate::support::{BrokerProcess, Client, Options, eventually_within, log_path, topic};

const WAIT: std::time::Duration = std::time::Duration::from_secs(60);
const MESSAGES: u64 = 40;

fn options() -> Options {
    Options::default()
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__STORE__TAIL_BYTES_MAX", "100000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__SCRUB__EVERY_MS", "100")
        .variable("MQ__SCRUB__BYTES_PER_S", "1000000000")
}

/// Flips a bit; again, and it is as it was.
fn flip(path: &Path, byte: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut found = [0];
    file.read_exact_at(&mut found, byte as u64).unwrap();
    file.write_all_at(&[found[0] ^ 4], byte as u64).unwrap();
}

/// What `dump` says of a file, one object a line.
fn dump(path: &Path) -> Vec<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    let output = command
        .args(["dump", "--output", "json"])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The middle of the batch of this offset.
fn middle_of(path: &Path, offset: u64) -> usize {
    let lines = dump(path);
    let holds = |line: &&serde_json::Value| {
        (line["kind"] == "placed" || line["kind"] == "stamped") && line["first_offset"] == offset
    };
    let batch = lines.iter().find(holds).unwrap_or_else(|| panic!("{lines:?}"));
    let number = |name: &str| usize::try_from(batch[name].as_u64().unwrap()).unwrap();
    number("position") + number("bytes") / 2
}

async fn fill(client: &Client) {
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    for number in 0..MESSAGES {
        let value = format!("{number}-{}", "x".repeat(80_000));
        client.send(&orders, 0, &[value], None).await.unwrap();
    }
}

/// The offsets served, and the holes.
async fn read(client: &Client) -> (Vec<u64>, Vec<(u64, u64)>) {
    client.offsets_and_holes(&topic("orders"), 0, MESSAGES).await
}

async fn all_but(client: &Client, offset: u64) {
    let (offsets, holes) = read(client).await;
    assert_eq!(holes, [(offset, offset + 1)]);
    let expected: Vec<u64> = (0..MESSAGES).filter(|other| *other != offset).collect();
    assert_eq!(offsets, expected);
}

async fn found(broker: &BrokerProcess) {
    eventually_within(WAIT, "the scrub finds it", async || {
        broker.metric("hc_mq_scrub_damaged_total ") >= 1
    })
    .await;
}

fn assert_told(data: &Path, offset: u64) {
    let log = std::fs::read_to_string(log_path(data)).unwrap();
    let line = log.lines().find(|line| line.contains("rot on the disk")).unwrap();
    for part in [
        "topic=\"orders\"".to_owned(),
        "queue=0".to_owned(),
        format!("first_offset={offset}"),
        format!("end_offset={}", offset + 1),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_scrub_finds_a_batch_of_the_journal_that_nobody_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    fill(&client).await;
    eventually_within(WAIT, "a pass without damage", async || {
        let passes = broker.metric("hc_mq_scrub_passes_total ");
        passes >= 2 && broker.metric("hc_mq_scrub_bytes_total ") > 1 << 20
    })
    .await;
    assert_eq!(broker.metric("hc_mq_scrub_damaged_total "), 0);
    let path = layout::segment_file(&data, SegmentId(1));
    let byte = middle_of(&path, 5);
    flip(&path, byte);
    found(&broker).await;
    assert_told(&data, 5);
    all_but(&client, 5).await;
    assert!(broker.stop().success());
}

/// The queue files of the only queue.
fn queue_files(data: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![layout::queues_folder(data)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains("queue_data.") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_scrub_verify_and_dump_find_a_damaged_batch_of_a_queue_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let small = options().variable("MQ__JOURNAL__BUDGET_BYTES", "2097152");
    let broker = BrokerProcess::start_with(&data, &small);
    let client = Client::connect(&broker).await;
    fill(&client).await;
    eventually_within(WAIT, "messages move into a queue file", async || {
        broker.metric("hc_mq_compaction_rounds_total ") >= 1 && !queue_files(&data).is_empty()
    })
    .await;
    assert_eq!(read(&client).await.1, []);
    assert!(broker.stop().success());
    let path = queue_files(&data).remove(0);
    let verify = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
        let output = command
            .args(["verify", "--data-dir"])
            .arg(&data)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = verify();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("queue_data."), "{text}");
    let byte = middle_of(&path, 3);
    flip(&path, byte);
    let (code, text) = verify();
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("topic orders queue 0 offsets 3..4: a batch is damaged"),
        "{text}"
    );
    assert_eq!(
        dump(&path).iter().filter(|line| line["damaged"] == true).count(),
        1
    );
    let broker = BrokerProcess::start_with(&data, &small);
    found(&broker).await;
    assert_told(&data, 3);
    all_but(&Client::connect(&broker).await, 3).await;
    assert!(broker.stop().success());
    // A stamp: what follows it is found without it.
    flip(&path, byte);
    let position = dump(&path)
        .iter()
        .find(|line| line["first_offset"] == 3 && line["kind"] == "stamped")
        .map(|line| usize::try_from(line["position"].as_u64().unwrap()).unwrap())
        .unwrap();
    flip(&path, position + 20);
    let (code, text) = verify();
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("topic orders queue 0 offsets 3..4: the bytes are not a batch"),
        "{text}"
    );
    std::fs::remove_file(&path).unwrap();
    let (code, text) = verify();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("missing"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_queue_file_that_somebody_removed_is_a_named_hole_and_the_rest_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let small = options()
        .variable("MQ__JOURNAL__BUDGET_BYTES", "2097152")
        .variable("MQ__FETCH__UNREADABLE_MS", "0");
    let broker = BrokerProcess::start_with(&data, &small);
    fill(&Client::connect(&broker).await).await;
    eventually_within(WAIT, "messages move into a queue file", async || {
        broker.metric("hc_mq_compaction_rounds_total ") >= 1 && !queue_files(&data).is_empty()
    })
    .await;
    assert!(broker.stop().success());
    std::fs::remove_file(queue_files(&data).remove(0)).unwrap();
    let broker = BrokerProcess::start_with(&data, &small);
    let client = Client::connect(&broker).await;
    let (offsets, holes) = read(&client).await;
    assert!(
        matches!(holes[..], [(0, end)] if end > 3 && end < MESSAGES),
        "{holes:?}"
    );
    assert!(offsets.iter().copied().eq(holes[0].1..MESSAGES), "{offsets:?}");
    assert_eq!(broker.metric("hc_mq_fetched_holes_total "), 1);
    assert_eq!(read(&client).await, (offsets, holes));
    assert_eq!(broker.metric("hc_mq_fetched_holes_total "), 2);
    let log = std::fs::read_to_string(log_path(&data)).unwrap();
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!(told("damaged messages cannot be served"), 1, "{log}");
    assert_eq!(
        told("messages that a consumer asked for cannot be read"),
        1,
        "{log}"
    );
    assert!(broker.stop().success());
}
