//! Backups: taken under load they hold exactly one moment, the broker goes on, and nothing that was cut short
//! passes for a backup or for a restored folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mq_common::api::PageRequest;
use mq_common::ids::Durability;
use tokio::task::JoinSet;

use crate::groups::member;
use crate::support::mount::SmallDisk;
use crate::support::{BrokerProcess, Client, Options, topic};

/// Small segments and a small journal, so that a backup has many files of every kind.
fn small() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "100")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__JOURNAL__BUDGET_BYTES", "4194304")
        .variable("MQ__JOURNAL__BYTES_MAX", "400000000")
}

fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    tool(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Its output, of a command that did what it was asked.
fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it said, of a command that refused.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lsn_of(said: &str) -> u64 {
    let field = said.split_whitespace().find_map(|word| word.strip_prefix("lsn="));
    field.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
}

/// What was acknowledged: queue, offset, entry, value.
type Ledger = Vec<(u32, u64, u64, String)>;

async fn load(client: Client, stop: Arc<AtomicBool>) -> Ledger {
    let (orders, filler) = (topic("orders"), "x".repeat(20_000));
    let mut ledger = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = ledger.len();
        let queue = u32::try_from(number % 3).unwrap();
        let value = format!("{number} {filler}");
        let receipt = client.send(&orders, queue, &[&value], None).await.unwrap();
        ledger.push((queue, receipt.base_offset.0, receipt.lsn.0, value));
    }
    ledger
}

/// Everything of the ledger up to this entry is there, byte for byte, and nothing else.
async fn check(client: &Client, ledger: &Ledger, lsn: u64) {
    let orders = topic("orders");
    for queue in 0..3 {
        let read = client.read(&orders, queue, 0).await;
        let expected: Vec<_> = ledger
            .iter()
            .filter(|(of, _, at, _)| *of == queue && *at <= lsn)
            .collect();
        assert_eq!(read.len(), expected.len(), "queue {queue} up to {lsn}");
        for (message, (_, offset, _, value)) in read.iter().zip(expected) {
            assert!(
                message.offset == *offset && message.value == *value,
                "offset {offset}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_load_is_one_moment_and_the_broker_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 3, Durability::Fsynced).await;
    client.send(&orders, 0, &["first"], None).await.unwrap();
    let consumer = member(&client, &orders, "a");
    let own = consumer.beat(&[], false).await.assigned[0];
    consumer.fetch(&own).await.unwrap();
    consumer.ack(own.queue, own.epoch, 1).await.unwrap();
    let half = crate::transactions::half(&client, &orders, Some("undecided"), Some(3_600_000)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sending = JoinSet::new();
    sending.spawn(load(client.clone(), Arc::clone(&stop)));
    let mut taken = Vec::new();
    for number in 0..3 {
        let before = client.admin.status().await.unwrap().journal_bytes;
        // Each holds more than the one before.
        while client.admin.status().await.unwrap().appended.0 < (number + 1) * 150 {
            tokio::task::yield_now().await;
        }
        let to = folder.path().join(format!("backup-{number}"));
        let said = {
            let (to, listen) = (to.clone(), broker.listen.clone());
            let taking = move || run(&["backup", "--to", text(&to), "--broker", &listen]);
            done(&tokio::task::spawn_blocking(taking).await.unwrap())
        };
        assert!(before > 0 && to.join("manifest").exists());
        taken.push((to, lsn_of(&said)));
    }
    let last = &taken[2].0;
    let again = run(&["backup", "--to", text(last), "--broker", &broker.listen]);
    assert!(refused(&again).contains("exists already"));
    let relative = run(&["backup", "--to", "here", "--broker", &broker.listen]);
    assert!(refused(&relative).contains("absolute"));
    let inside = data.join("backup");
    let inside = run(&["backup", "--to", text(&inside), "--broker", &broker.listen]);
    assert!(refused(&inside).contains("is in the data folder"));
    // A backup that fails half way gives back what it held.
    std::fs::rename(data.join("name"), folder.path().join("name")).unwrap();
    let halfway = folder.path().join("halfway");
    let halfway = run(&["backup", "--to", text(&halfway), "--broker", &broker.listen]);
    assert!(refused(&halfway).contains("name"));
    assert!(!data.join("backup.partial").exists());
    std::fs::rename(folder.path().join("name"), data.join("name")).unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut ledger = sending.join_all().await.remove(0);
    ledger.insert(0, (0, 0, 0, "first".to_owned()));
    check(&client, &ledger, u64::MAX).await;
    assert!(!data.join("backup.partial").exists());
    assert!(broker.stop().success());
    let mut counts = Vec::new();
    for (number, (from, lsn)) in taken.into_iter().enumerate() {
        let other = folder.path().join(format!("restored-{number}"));
        let said = run(&["restore", "--from", text(&from), "--data-dir", text(&other)]);
        assert_eq!(lsn_of(&done(&said)), lsn);
        let broker = BrokerProcess::start_with(&other, &small());
        let client = Client::connect(&broker).await;
        check(&client, &ledger, lsn).await;
        counts.push(ledger.iter().filter(|(_, _, at, _)| *at <= lsn).count());
        let consumer = member(&client, &orders, "b");
        assert_eq!(consumer.beat(&[], false).await.assigned[0].cursor.0, 1);
        let page = client.transaction.list(PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), 1);
        assert_eq!(page.items[0].transaction, half.transaction);
        client.send(&orders, 0, &["more"], None).await.unwrap();
        assert!(broker.stop().success());
    }
    assert!(
        counts.is_sorted() && counts[0] > 50 && counts[2] > counts[0],
        "{counts:?}"
    );
}

/// A stopped broker's folder with some data, and its ledger.
async fn stopped(folder: &Path) -> (PathBuf, Ledger) {
    let data = folder.join("data");
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    client
        .create_topic(&topic("orders"), 3, Durability::Fsynced)
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sending = JoinSet::new();
    sending.spawn(load(client.clone(), Arc::clone(&stop)));
    while client.admin.status().await.unwrap().appended.0 < 600 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    let ledger = sending.join_all().await.remove(0);
    assert!(broker.stop().success());
    (data, ledger)
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_of_a_stopped_broker_is_restored_and_damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (data, ledger) = stopped(folder.path()).await;
    let to = folder.path().join("backup");
    done(&run(&["backup", "--to", text(&to), "--data-dir", text(&data)]));
    let full = run(&["restore", "--from", text(&to), "--data-dir", text(&data)]);
    assert!(refused(&full).contains("not empty"));
    let other = folder.path().join("other");
    let restored = run(&["restore", "--from", text(&to), "--data-dir", text(&other)]);
    assert!(done(&restored).starts_with("restored broker="));
    let broker = BrokerProcess::start_with(&other, &small());
    check(&Client::connect(&broker).await, &ledger, u64::MAX).await;
    assert!(broker.stop().success());
    // Onto another file system it is copied.
    let elsewhere = SmallDisk::of_megabytes(400);
    let copied = elsewhere.path().join("backup");
    done(&run(&[
        "backup",
        "--to",
        text(&copied),
        "--data-dir",
        text(&data),
    ]));
    let of_copy = folder.path().join("of-copy");
    done(&run(&[
        "restore",
        "--from",
        text(&copied),
        "--data-dir",
        text(&of_copy),
    ]));
    let broker = BrokerProcess::start_with(&of_copy, &small());
    check(&Client::connect(&broker).await, &ledger, u64::MAX).await;
    assert!(broker.stop().success());
    // Where there is no space for it, nothing is left of it.
    let small_disk = SmallDisk::of_megabytes(4);
    let no_room = small_disk.path().join("backup");
    let error = refused(&run(&[
        "backup",
        "--to",
        text(&no_room),
        "--data-dir",
        text(&data),
    ]));
    assert!(error.contains("space"), "{error}");
    assert_eq!(std::fs::read_dir(small_disk.path()).unwrap().count(), 0);
    assert!(!data.join("backup.partial").exists());
    // What the restored broker writes does not reach the backup.
    let third = folder.path().join("third");
    done(&run(&[
        "restore",
        "--from",
        text(&to),
        "--data-dir",
        text(&third),
    ]));
    // One bit of one file.
    let segments = std::fs::read_dir(to.join("journal")).unwrap();
    let victim = segments.map(|found| found.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes[5000] ^= 1;
    std::fs::remove_file(&victim).unwrap();
    std::fs::write(&victim, bytes).unwrap();
    let fourth = folder.path().join("fourth");
    let damaged = refused(&run(&[
        "restore",
        "--from",
        text(&to),
        "--data-dir",
        text(&fourth),
    ]));
    assert!(
        damaged.contains("damaged") && damaged.contains("journal"),
        "{damaged}"
    );
    let start = BrokerProcess::command(&fourth, &small()).output().unwrap();
    assert!(refused(&start).contains("restore it again"));
    let nothing = run(&["restore", "--from", text(&data), "--data-dir", text(&fourth)]);
    assert!(refused(&nothing).contains("no backup"));
    let empty = folder.path().join("empty");
    let nothing = run(&["backup", "--to", text(&to), "--data-dir", text(&empty)]);
    assert!(refused(&nothing).contains("no broker's data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_that_are_killed_leave_nothing_that_passes_for_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (data, ledger) = stopped(folder.path()).await;
    let whole = folder.path().join("whole");
    done(&run(&["backup", "--to", text(&whole), "--data-dir", text(&data)]));
    for round in 0..5 {
        // Killed as soon as something of it is to be seen, and a little later each time.
        let to = folder.path().join(format!("backup-{round}"));
        let partial = folder.path().join(format!("backup-{round}.partial"));
        let mut taking = tool(&["backup", "--to", text(&to), "--data-dir", text(&data)])
            .spawn()
            .unwrap();
        while !partial.exists() && taking.try_wait().unwrap().is_none() {}
        let files = |folder: &Path| std::fs::read_dir(folder.join("journal")).map_or(0, Iterator::count);
        while files(&partial) < round && taking.try_wait().unwrap().is_none() {}
        taking.kill().unwrap();
        taking.wait().unwrap();
        let other = folder.path().join(format!("of-killed-{round}"));
        if to.exists() {
            done(&run(&[
                "restore",
                "--from",
                text(&to),
                "--data-dir",
                text(&other),
            ]));
        } else {
            refused(&run(&[
                "restore",
                "--from",
                text(&partial),
                "--data-dir",
                text(&other),
            ]));
        }
        let into = folder.path().join(format!("killed-{round}"));
        let mut restoring = tool(&["restore", "--from", text(&whole), "--data-dir", text(&into)])
            .spawn()
            .unwrap();
        while !into.join("restoring").exists() && restoring.try_wait().unwrap().is_none() {}
        while files(&into) < round && restoring.try_wait().unwrap().is_none() {}
        restoring.kill().unwrap();
        if restoring.wait().unwrap().success() {
            continue;
        }
        if into.join("restoring").exists() {
            let start = BrokerProcess::command(&into, &small()).output().unwrap();
            assert!(refused(&start).contains("restore it again"));
        }
    }
    // The broker whose backups were killed is none the worse.
    let broker = BrokerProcess::start_with(&data, &small());
    check(&Client::connect(&broker).await, &ledger, u64::MAX).await;
    assert!(
        !data.join("backup.partial").exists(),
        "what they left is removed at the start"
    );
    assert!(broker.stop().success());
}
