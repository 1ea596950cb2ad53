//! S26 with a whole broker: a start reads no queue's folder, however many there are and whatever it died of.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use mq_common::ids::Durability;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::support::{BrokerProcess, Client, Options, eventually, topic};

const QUEUES: u32 = 300;

/// A journal of a few segments; a start does not reread what is stored to check it.
fn options() -> Options {
    Options::default()
        .variable("MQ__CHECKPOINT__EVERY_MS", "100")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__JOURNAL__BUDGET_BYTES", "1048576")
        .variable("MQ__JOURNAL__BYTES_MAX", "1073741824")
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
        .variable("MQ__SCRUB__BYTES_PER_S", "0")
}

/// The folders of all queues that have files.
fn queue_folders(data: &Path) -> BTreeSet<PathBuf> {
    let entries = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let topics = entries(&data.join("queues")).into_iter();
    topics.flat_map(|topic| entries(&topic)).collect()
}

/// Reports each listing of these folders and each file that is opened in them.
fn watch(folders: &BTreeSet<PathBuf>) -> OwnedFd {
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    for folder in folders {
        inotify::add_watch(&watch, folder, WatchFlags::OPEN).unwrap();
    }
    watch
}

/// What was opened so far.
fn opened(watch: &OwnedFd) -> Vec<String> {
    let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut all = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => all.push(format!("{event:?}")),
            Err(Errno::AGAIN) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s26_a_broker_with_many_queue_files_starts_without_a_look_at_any() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    let wide = topic("wide");
    client.create_topic(&wide, QUEUES, Durability::Memory).await;
    let value = "x".repeat(10_000);
    for queue in 0..QUEUES {
        client.send(&wide, queue, &[&value], None).await.unwrap();
    }
    // So that what they have is moved.
    eventually("each queue has its files", async || {
        for _ in 0..10 {
            client.send(&wide, 0, &["y".repeat(100_000)], None).await.unwrap();
        }
        broker.metric("hc_mq_queue_files_bytes ") >= u64::from(QUEUES) * 10_000
    })
    .await;
    assert!(broker.stop().success());
    let folders = queue_folders(&data);
    for is_clean in [true, false] {
        let watch = watch(&folders);
        // Nothing is to be moved.
        let options = options().variable("MQ__JOURNAL__BUDGET_BYTES", "1073741824");
        let broker = BrokerProcess::start_with(&data, &options);
        assert_eq!(
            opened(&watch),
            Vec::<String>::new(),
            "after a clean stop: {is_clean}"
        );
        let client = Client::connect(&broker).await;
        let described = client.admin.describe_topic(wide.clone()).await.unwrap();
        assert_eq!(described.queues.len(), QUEUES as usize);
        assert_eq!(
            opened(&watch),
            Vec::<String>::new(),
            "after a clean stop: {is_clean}"
        );
        // The watch would tell.
        let read = client.read(&wide, QUEUES - 1, 0).await;
        assert_eq!(read.len(), 1);
        assert_ne!(opened(&watch), Vec::<String>::new());
        broker.kill();
    }
}
