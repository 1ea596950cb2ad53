//! Data folders of earlier formats: today's broker finds in them what their own broker left, and refuses what
//! a later one wrote without changing it.
//!
//! Each `tests/folders/format-N.tar.zst` holds two folders of one history, `killed` (SIGKILL in the midst of it)
//! and `stopped` (the same, then a clean stop), and `books.json`, what must be in them. They were made by the
//! broker of their time: `HC_MQ_BROKER=<its binary> HC_MQ_KEEP=<folder> cargo test -p mq-broker --test it
//! upgrade::a_history`, then `tar -C <folder> --format=ustar -cf - . | zstd -19`. Like golden files they are
//! added, never made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mq_common::ErrorCode;
use mq_common::api::admin::DeleteTopicRequest;
use mq_common::api::transaction::Decision;
use mq_common::api::{PageRequest, TopicSettings};
use mq_common::ids::{Durability, Offset, QueueNumber, TransactionId};
use rpc_core::CallError;
use serde::{Deserialize, Serialize};

use super::groups::{member, member_of};
use super::transactions::{end, half};
use crate::support::{BrokerProcess, Client, Options, eventually, eventually_within, shim, topic, values};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What a folder must hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Books {
    /// For each topic, the values of each queue.
    queues: BTreeMap<String, Vec<Vec<String>>>,
    /// Topic, group, and its cursor in each queue.
    cursors: Vec<(String, String, Vec<u64>)>,
    /// Undecided; committing it appends `opens` to queues 0 and 1 of `orders`.
    open: String,
    opens: [Vec<String>; 2],
    deleted: String,
    /// As `open`, from before it.
    #[serde(default)]
    opened_before: Option<String>,
    /// First offset of the only queue of topics that were trimmed. What groups had not acknowledged of it is
    /// lost.
    #[serde(default)]
    starts: BTreeMap<String, u64>,
    #[serde(default)]
    settings: BTreeMap<String, TopicSettings>,
}

/// Small segments, and no checkpoint within the history: the journal of the killed one is replayed.
fn options() -> Options {
    let options = Options::default()
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__RETENTION__CHECK_MS", "50")
        .variable("MQ__CHECKPOINT__EVERY_MS", "600000");
    match std::env::var("HC_MQ_BROKER") {
        Ok(binary) => options.binary(binary),
        Err(_) => options,
    }
}

/// What was there long before: an open transaction, messages that moved into queue files, others that their
/// topic let go although a group had not seen them, settings. All of it is in the checkpoint when the broker
/// stops.
async fn write_before(data: &Path) -> Books {
    let rounds = options()
        .variable("MQ__JOURNAL__BUDGET_BYTES", "1048576")
        .variable("MQ__JOURNAL__BYTES_MAX", "1000000000")
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200");
    let broker = BrokerProcess::start_with(data, &rounds);
    let client = Client::connect(&broker).await;
    let (orders, archive, brief, behind) =
        (topic("orders"), topic("archive"), topic("brief"), topic("limits"));
    let mut books = Books::default();
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let all = TopicSettings {
        retention_ms: Some(DAY_MS),
        retention_bytes: Some(1_000_000),
        consumed: true,
        hold_ms: Some(2 * DAY_MS),
        message_bytes_max: Some(1000),
        ..TopicSettings::default()
    };
    let nearest = TopicSettings {
        retention_bytes: Some(300_000),
        ..TopicSettings::default()
    };
    let declared = [
        (&archive, TopicSettings::of_new_topic()),
        (&brief, nearest),
        (&behind, all),
    ];
    for (name, settings) in declared {
        client
            .create_topic_with(name, 1, Durability::Memory, settings)
            .await;
        books.settings.insert(name.to_string(), settings);
    }
    member_of(&client, &brief, "slow", "one").beat(&[], false).await;
    let open = half(&client, &orders, Some("order-0"), None).await.transaction;
    books.opened_before = Some(open.to_string());
    let mut sent = Vec::new();
    for number in 0..60 {
        let value = format!("{number}-{}", "z".repeat(60_000));
        for name in [&archive, &brief] {
            client.send(name, 0, &[&value], None).await.unwrap();
        }
        sent.push(value);
    }
    // Five of these are a little more than the limit.
    let start = 55;
    eventually("the start moved", async || {
        client.start_of(&brief, 0).await == start
    })
    .await;
    eventually_within(
        std::time::Duration::from_secs(60),
        "most of it moved",
        async || {
            let folder = data.join("journal");
            let segments = std::fs::read_dir(folder).unwrap().filter(|file| {
                let name = file.as_ref().unwrap().file_name();
                name.to_str().unwrap().ends_with(".journal")
            });
            segments.count() <= 3
        },
    )
    .await;
    assert!(broker.stop().success());
    books.starts.insert(brief.to_string(), start);
    let kept = sent[sent.len() - 5..].to_vec();
    books
        .cursors
        .push((brief.to_string(), "slow".to_owned(), vec![start]));
    books.queues = BTreeMap::from([(archive.to_string(), vec![sent]), (brief.to_string(), vec![kept])]);
    books
}

/// Plain and transactional messages over several segments, decided and undecided transactions, a group, a
/// deleted topic.
async fn write(client: &Client, mut books: Books) -> Books {
    let (orders, notes, gone) = (topic("orders"), topic("notes"), topic("gone"));
    client.create_topic(&notes, 1, Durability::Memory).await;
    client.create_topic(&gone, 1, Durability::Fsynced).await;
    let mut queues = vec![Vec::new(), Vec::new()];
    // Its messages lie in the first segment, its commit comes in the third.
    let committed = half(client, &orders, Some("order-1"), None).await.transaction;
    let rolled_back = half(client, &orders, None, None).await.transaction;
    end(client, &rolled_back, Decision::Rollback).await.unwrap();
    for number in 0..60 {
        let value = format!("{number}-{}", "x".repeat(20_000));
        client.send(&orders, 0, &[&value], None).await.unwrap();
        queues[0].push(value);
        let values = [format!("one-{number}"), format!("two-{number}")];
        client.send(&orders, 1, &values, None).await.unwrap();
        queues[1].extend(values);
        client.send(&gone, 0, &["y".repeat(20_000)], None).await.unwrap();
    }
    end(client, &committed, Decision::Commit).await.unwrap();
    queues[0].extend(["a".to_owned(), "b".to_owned()]);
    queues[1].push("c".to_owned());
    let open = half(client, &orders, Some("order-2"), None).await.transaction;
    client.send(&notes, 0, &["note"], None).await.unwrap();
    let billing = member(client, &orders, "one");
    for assigned in billing.beat(&[], false).await.assigned {
        billing.fetch(&assigned).await.unwrap();
        let next = if assigned.queue == QueueNumber(0) { 30 } else { 7 };
        billing.ack(assigned.queue, assigned.epoch, next).await.unwrap();
    }
    let request = DeleteTopicRequest {
        name: gone.clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(request).await.unwrap();
    client.send(&orders, 0, &["last"], None).await.unwrap();
    queues[0].push("last".to_owned());
    books.queues.insert("orders".to_owned(), queues);
    books
        .queues
        .insert("notes".to_owned(), vec![vec!["note".to_owned()]]);
    books
        .cursors
        .push(("orders".to_owned(), "billing".to_owned(), vec![30, 7]));
    Books {
        open: open.to_string(),
        opens: [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]],
        deleted: "gone".to_owned(),
        ..books
    }
}

/// Starts a broker on the folder and compares it with the books, also after retention looked at all of it;
/// decides the open transactions at the end, and looks again after a kill.
async fn audit(data: &Path, books: &Books) {
    let mut books = books.clone();
    let broker = BrokerProcess::start_with(data, &options());
    let client = Client::connect(&broker).await;
    compare(&client, &books).await;
    let probe = topic("probe");
    let last_only = TopicSettings {
        retention_bytes: Some(1),
        ..TopicSettings::default()
    };
    client
        .create_topic_with(&probe, 1, Durability::Memory, last_only)
        .await;
    for value in ["x", "y"] {
        client.send(&probe, 0, &[value], None).await.unwrap();
    }
    eventually("retention looked", async || client.start_of(&probe, 0).await == 1).await;
    compare(&client, &books).await;
    let listed = client.transaction.list(PageRequest::default()).await.unwrap();
    let open: Vec<_> = listed
        .items
        .iter()
        .map(|one| (one.transaction.to_string(), one.messages))
        .collect();
    let expected: Vec<_> = books.opened_before.iter().chain([&books.open]).cloned().collect();
    assert_eq!(
        open,
        expected.iter().map(|id| (id.clone(), 3)).collect::<Vec<_>>()
    );
    for number in expected {
        let number: TransactionId = number.parse().unwrap();
        end(&client, &number, Decision::Commit).await.unwrap();
        let queues = books.queues.get_mut("orders").unwrap();
        for (queue, values) in queues.iter_mut().zip(&books.opens) {
            queue.extend(values.iter().cloned());
        }
    }
    compare(&client, &books).await;
    broker.kill();
    let broker = BrokerProcess::start_with(data, &options());
    compare(&Client::connect(&broker).await, &books).await;
    assert!(broker.stop().success());
}

async fn compare(client: &Client, books: &Books) {
    for (name, queues) in &books.queues {
        let start = books.starts.get(name).copied().unwrap_or_default();
        for (queue, expected) in (0..).zip(queues) {
            assert_eq!(client.start_of(&topic(name), queue).await, start, "of `{name}`");
            let read = client.read(&topic(name), queue, start).await;
            let offsets: Vec<_> = read.iter().map(|message| message.offset).collect();
            assert_eq!(
                offsets,
                (start..).take(expected.len()).collect::<Vec<_>>(),
                "queue {queue} of `{name}`"
            );
            assert!(
                values(&read) == *expected,
                "messages of queue {queue} of `{name}` differ"
            );
        }
    }
    for (of, group, cursors) in &books.cursors {
        let described = client.group.describe(group.parse().unwrap()).await.unwrap();
        assert_eq!(described.len(), 1);
        assert_eq!(described[0].topic, topic(of));
        let found: Vec<_> = described[0].queues.iter().map(|queue| queue.cursor.0).collect();
        assert_eq!(found, *cursors, "cursors of `{group}`");
        let lost: u64 = described[0].queues.iter().map(|queue| queue.expired_unread).sum();
        assert_eq!(
            lost,
            books.starts.get(of).copied().unwrap_or_default(),
            "`{group}`"
        );
    }
    for (name, settings) in &books.settings {
        let described = client.admin.describe_topic(topic(name)).await.unwrap();
        assert_eq!(described.topic.settings, *settings, "of `{name}`");
    }
    let deleted = client
        .fetch_once(&topic(&books.deleted), 0, Offset(0), std::time::Duration::ZERO)
        .await
        .unwrap_err();
    assert!(
        matches!(&deleted, CallError::App(error) if error.code == ErrorCode::UnknownTopic),
        "{deleted}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_found_again_after_a_kill_and_after_a_stop() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var("HC_MQ_KEEP").map_or_else(|_| temporary.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    let (killed, stopped) = (folder.join("killed"), folder.join("stopped"));
    let books = write_before(&stopped).await;
    // A month without an entry: what is a week old by the clock is not deleted for it.
    let month = folder.join("month");
    std::fs::write(&month, (30 * DAY_MS / 1000).to_string()).unwrap();
    let later = options()
        .variable("LD_PRELOAD", shim::shift_clock().to_str().unwrap())
        .variable("CLOCK_SHIFT_FILE", month.to_str().unwrap());
    let broker = BrokerProcess::start_with(&stopped, &later);
    let books = write(&Client::connect(&broker).await, books).await;
    broker.kill();
    copy(&stopped, &killed);
    let broker = BrokerProcess::start_with(&stopped, &later);
    assert!(broker.stop().success());
    std::fs::write(folder.join("books.json"), serde_json::to_vec(&books).unwrap()).unwrap();
    for data in [&killed, &stopped] {
        // What is kept stays as it was left.
        let looked_at = temporary.path().join("looked-at");
        copy(data, &looked_at);
        audit(&looked_at, &books).await;
        std::fs::remove_dir_all(&looked_at).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_of_format_1_are_read() {
    read_folders("format-1.tar.zst").await;
}

/// Queue files, trimmed queues with what groups lost by it, settings, and a month without an entry.
#[tokio::test(flavor = "multi_thread")]
async fn folders_of_format_4_are_read() {
    let folder = read_folders("format-4.tar.zst").await;
    let moved = std::fs::read_dir(folder.path().join("killed/queues")).unwrap();
    assert!(moved.count() > 0, "nothing is in queue files");
}

async fn read_folders(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let books = unpack(name, folder.path());
    for data in ["killed", "stopped"] {
        audit(&folder.path().join(data), &books).await;
    }
    folder
}

#[test]
fn folders_of_a_later_format_are_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    unpack("format-1.tar.zst", folder.path());
    let segment = |number: u64| format!("killed/journal/{number:016x}.journal");
    let later: [(&str, String, usize, bool, &str); 4] = [
        ("stopped", "stopped/state.db".to_owned(), 60, false, "format 1"),
        ("killed", segment(1), 8, true, "version"),
        ("killed", segment(3), 8, true, "version"),
        ("killed", segment(2), (1 << 20) - 64 + 8, true, "version"),
    ];
    for (data, file, position, summed, said) in later {
        let file = folder.path().join(file);
        let before = std::fs::read(&file).unwrap();
        let mut changed = before.clone();
        changed[position..position + 2].copy_from_slice(&[0x63, 0x63]);
        if summed {
            // A header or trailer: 64 bytes, summed up but for the sum itself.
            let start = position - 8;
            let sum = crc32c::crc32c(&changed[start..start + 12]);
            let sum = crc32c::crc32c_append(sum, &changed[start + 16..start + 64]);
            changed[start + 12..start + 16].copy_from_slice(&sum.to_be_bytes());
        }
        std::fs::write(&file, &changed).unwrap();
        let data = folder.path().join(data);
        let journal_before = contents(&data.join("journal"));
        let refused = BrokerProcess::command(&data, &options()).output().unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{}", file.display());
        assert!(
            stderr.contains(said) && stderr.contains(&*file.file_name().unwrap().to_string_lossy()),
            "{}: {stderr}",
            file.display()
        );
        assert!(std::fs::read(&file).unwrap() == changed, "{}", file.display());
        assert!(contents(&data.join("journal")) == journal_before);
        std::fs::write(&file, before).unwrap();
    }
}

#[test]
fn a_backup_of_a_stopped_folder_of_an_earlier_format_is_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    unpack("format-4.tar.zst", folder.path());
    let (data, to) = (folder.path().join("stopped"), folder.path().join("backup"));
    let state = data.join("state.db");
    let before = std::fs::read(&state).unwrap();
    let mut backup = std::process::Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    backup
        .arg("backup")
        .arg("--to")
        .arg(&to)
        .arg("--data-dir")
        .arg(&data);
    let refused = backup.output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && stderr.contains("format 4"),
        "{stderr}"
    );
    assert!(std::fs::read(&state).unwrap() == before);
    assert!(!to.exists());
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Unpacks regular files of a ustar archive; answers its books.
fn unpack(name: &str, to: &Path) -> Books {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/folders")
        .join(name);
    let archive = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    };
    let mut rest = &archive[..];
    while rest[0] != 0 {
        let (header, behind) = rest.split_at(512);
        let bytes = usize::from_str_radix(text(&header[124..136]).trim(), 8).unwrap();
        let target = to.join(text(&header[..100]));
        if header[156] == b'0' {
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::write(target, &behind[..bytes]).unwrap();
        }
        rest = &behind[bytes.next_multiple_of(512)..];
    }
    serde_json::from_slice(&std::fs::read(to.join("books.json")).unwrap()).unwrap()
}
