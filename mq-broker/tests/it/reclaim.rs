//! Disk space comes back, on a real file system.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_broker::log::{Command, Log, SegmentId, Settings, Solo, Want};
use mq_broker::store::disk::StdDisk;
use mq_broker::store::{Folder, layout};
use mq_common::api::admin::DeleteTopicRequest;
use mq_common::ids::{Durability, Lsn, Timestamp};

use crate::support::journal::{Ignoring, batch};
use crate::support::shim::extents;
use crate::support::{BrokerProcess, Client, Options, eventually, topic};

/// Bytes of blocks that the journal's files hold, spares too.
pub(crate) fn journal_blocks(data: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let files = std::fs::read_dir(data.join("journal")).unwrap();
    // A file may be renamed or removed meanwhile.
    files
        .filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_topic_gives_its_disk_space_back_and_what_is_left_is_served_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let (kept, dropped) = (topic("kept"), topic("dropped"));
    client.create_topic(&kept, 1, Durability::Memory).await;
    client.create_topic(&dropped, 1, Durability::Memory).await;
    let filler = "x".repeat(100_000);
    for number in 0..300 {
        if number % 100 == 0 {
            client.send(&kept, 0, &[number.to_string()], None).await.unwrap();
        }
        client.send(&dropped, 0, &[&filler], None).await.unwrap();
    }
    let before = journal_blocks(&data);
    assert!(before > 25 << 20, "{before}");
    let request = DeleteTopicRequest {
        name: dropped.clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(request).await.unwrap();
    // Three segments with a message of the other topic, the one being written, and at most four spares.
    eventually("the space is free", async || journal_blocks(&data) <= 9 << 20).await;
    let recycled = broker.metric("hc_mq_journal_segments_recycled_total");
    let unlinked = broker.metric("hc_mq_journal_segments_unlinked_total");
    assert!(
        recycled >= 1 && recycled + unlinked >= 20,
        "{recycled}, {unlinked}"
    );
    let check = async |client: &Client| {
        let read = client.read(&kept, 0, 0).await;
        let values: Vec<_> = read.iter().map(|message| message.value.as_str()).collect();
        assert_eq!(values, ["0", "100", "200"]);
    };
    check(&client).await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    check(&Client::connect(&broker).await).await;
    assert!(broker.stop().success());
    // A segment that somebody else removed is missed.
    std::fs::remove_file(layout::segment_file(&data, SegmentId(1))).unwrap();
    let refused = BrokerProcess::command(&data, &options).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("0000000000000001.journal"), "{said}");
}

/// A journal on the real disk, and a write that waits for its sync.
struct Journal {
    folder: tempfile::TempDir,
    log: Solo<()>,
}

impl Journal {
    fn open(settings: Settings) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = Folder::open(Arc::new(StdDisk), folder.path()).unwrap();
        let log = Solo::open(&data, settings, Lsn(0), Timestamp(1), &mut Ignoring).unwrap();
        Self { folder, log }
    }

    fn write(&mut self, bytes: usize) {
        let command = Command::new(b"m".to_vec().into(), vec![batch(1, bytes)]);
        self.log.propose(command, Want::Synced).unwrap();
        self.log.turn(Timestamp(1), &mut Ignoring).unwrap();
    }

    fn extents(&self, segment: u64) -> Vec<String> {
        extents(&layout::segment_file(self.folder.path(), SegmentId(segment)))
    }

    /// Each sync of a small write into this segment of 1 MiB commits bytes alone, no metadata.
    fn writes_leave_as_it_is(&mut self, segment: u64) {
        let before = self.extents(segment);
        assert!(before[0].starts_with("size 1048576 blocks "), "{before:?}");
        for _ in 0..300 {
            self.write(500);
        }
        let after = self.extents(segment);
        assert_eq!(after, before);
        assert!(after.iter().all(|line| !line.ends_with("unwritten")), "{after:?}");
        // The one if the file system cannot tell; else nothing passes on the size alone.
        let is_told = |line: &String| line == "no extents" || line.starts_with("extent ");
        assert!(after.iter().any(is_told), "{after:?}");
    }
}

#[test]
fn small_synced_writes_into_a_recycled_segment_change_neither_its_size_nor_its_extents() {
    let mut journal = Journal::open(Settings {
        segment_bytes: 1 << 20,
        segments_ahead: 0,
        spares_max: 1,
        ..Settings::default()
    });
    let recycler = journal.log.recycler();
    while recycler.sealed().is_empty() {
        journal.write(200_000);
    }
    recycler.free(SegmentId(1)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while recycler.spares() < 1 {
        assert!(Instant::now() < deadline, "no spare was made");
        std::thread::yield_now();
    }
    while recycler.sealed() != [SegmentId(2)] {
        journal.write(200_000);
    }
    journal.writes_leave_as_it_is(3);
    assert_eq!(recycler.sealed(), [SegmentId(2)], "still the same segment");
}

#[test]
fn small_synced_writes_into_a_new_segment_that_was_filled_ahead_change_neither_its_size_nor_its_extents() {
    let mut journal = Journal::open(Settings {
        segment_bytes: 1 << 20,
        segments_ahead: 1,
        spares_max: 1,
        ..Settings::default()
    });
    let recycler = journal.log.recycler();
    let deadline = Instant::now() + Duration::from_secs(30);
    while recycler.spares() < 1 {
        assert!(Instant::now() < deadline, "no spare was made");
        std::thread::yield_now();
    }
    while recycler.sealed().is_empty() {
        journal.write(200_000);
    }
    journal.writes_leave_as_it_is(2);
    assert_eq!(recycler.sealed(), [SegmentId(1)], "still the same segment");
}

#[test]
fn small_synced_writes_into_a_plain_segment_change_its_extents_once_in_many() {
    let mut journal = Journal::open(Settings {
        segments_ahead: 0,
        spares_max: 0,
        zeros_ahead_bytes: 100_000,
        ..Settings::default()
    });
    let mut changes = 0;
    let mut last = journal.extents(1);
    for _ in 0..300 {
        journal.write(500);
        let now = journal.extents(1);
        // What is reserved after the zeros is not written yet; nothing before its end is in that state.
        let number = |line: &str, at: usize| line.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
        let size = number(&now[0], 1);
        let reserved = now.iter().filter(|line| line.ends_with("unwritten"));
        assert!(
            reserved.into_iter().all(|line| number(line, 1) >= size),
            "{now:?}"
        );
        changes += u32::from(now != last);
        last = now;
    }
    // 300 writes of about 660 bytes.
    assert!((1..=3).contains(&changes), "{changes} times");
}
