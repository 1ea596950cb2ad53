//! Starts of the core: with a journal of a later version, one whose time is in the future, and the checkpoint
//! of another journal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mq_broker::core::{Answer, Core, StartError};
use mq_broker::ids::QueueKey;
use mq_broker::log::{Command, Log, Solo, Want};
use mq_broker::state::rows::Counters;
use mq_broker::state::{self, Limits, State};
use mq_broker::store::disk::TestDisk;
use mq_broker::store::{Folder, Location, PlacedRow, Rows, SegmentId, layout};
use mq_common::ids::{Lsn, Offset, Term, Timestamp};

use super::core_turns::{append, create_topic, log_settings, open, parts, shard};
use crate::support::journal::Ignoring;

const QUEUE: QueueKey = QueueKey(0);

#[tokio::test(flavor = "multi_thread")]
async fn journal_with_a_command_of_a_later_version_is_refused_and_left_as_it_is() {
    let disk = TestDisk::default();
    let fixture = open(&disk, 1 << 20);
    create_topic(&fixture.core).await;
    fixture.thread.stop().unwrap();
    drop(fixture.core);
    // The entry of another version after it.
    let folder = Folder::open(Arc::new(disk.clone()), Path::new("data")).unwrap();
    let mut log = Solo::open(&folder, log_settings(), Lsn(0), Timestamp(0), &mut Ignoring).unwrap();
    let unknown = Command::new(bytes::Bytes::from_static(&[1, 99]), Vec::new());
    log.propose(unknown, Want::Synced).unwrap();
    log.turn(Timestamp(0), &mut Ignoring).unwrap();
    drop((log, folder));

    let path = Path::new("data/journal/0000000000000001.journal");
    let before = disk.content(path).unwrap();
    for _ in 0..3 {
        let state = State::new(shard(), Limits::default());
        let refused = Core::open(parts(&disk, state, Rows::default(), 1 << 20).0);
        assert!(
            matches!(refused, Err(StartError::Unreadable { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(disk.content(path).unwrap(), before);
}

/// The machine's clock was a day ahead once: the log's time, which never goes back, must not stand still for
/// a day.
#[tokio::test(flavor = "multi_thread")]
async fn s16_log_whose_last_entry_lies_ahead_of_the_clock_still_syncs_what_is_left() {
    let disk = TestDisk::default();
    let ahead = {
        let folder = Folder::open(Arc::new(disk.clone()), Path::new("data")).unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let ahead = Timestamp(u64::try_from(now.as_millis()).unwrap() + 86_400_000);
        drop(Solo::open(&folder, log_settings(), Lsn(0), ahead, &mut Ignoring).unwrap());
        ahead
    };
    let fixture = open(&disk, 1 << 20);
    create_topic(&fixture.core).await;
    let answer = fixture.core.propose_one(append("a"), Want::Flushed).await;
    let Answer::Applied { lsn, .. } = answer else {
        panic!("{answer:?}");
    };
    assert!(fixture.core.clock().now() >= ahead);
    let synced = async {
        while fixture.core.watermarks().synced < lsn {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), synced)
        .await
        .unwrap();
}

/// A checkpoint that is sound in itself, but of another journal.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_that_contradicts_the_journal_is_refused_in_words() {
    let disk = TestDisk::default();
    let fixture = open(&disk, 1 << 20);
    create_topic(&fixture.core).await;
    fixture.core.propose_one(append("x"), Want::Synced).await;
    fixture.thread.stop().unwrap();
    let snapshot = fixture.core.last_snapshot().unwrap();
    drop(fixture.core);

    for counters in [
        Counters {
            term: Term(99),
            ..Counters::default()
        },
        Counters {
            time: Timestamp(1 << 60),
            ..Counters::default()
        },
    ] {
        let rows = state::rows::Rows {
            counters,
            ..state::rows::Rows::default()
        };
        let state = State::load(shard(), Limits::default(), rows).unwrap();
        let refused = Core::open(parts(&disk, state, Rows::default(), 1 << 20).0);
        assert!(
            matches!(refused, Err(StartError::Contradiction { .. })),
            "{refused:?}"
        );
    }

    // Rows of a segment that the journal has not reached.
    let row = PlacedRow {
        queue: QUEUE,
        base_offset: Offset(0),
        count: 1,
        location: Location {
            segment: SegmentId(7),
            position: 64,
            bytes: 100,
        },
        checksum: 0,
        lsn: Lsn(0),
        term: Term(0),
        time: Timestamp(0),
        flags: 0,
    };
    let rows = Rows {
        placed: vec![(SegmentId(7), row)],
        ..Rows::default()
    };
    let state = State::load(shard(), Limits::default(), snapshot.state.rows).unwrap();
    let refused = Core::open(parts(&disk, state, rows, 1 << 20).0);
    let missing = layout::segment_file(Path::new("data"), SegmentId(7));
    assert!(
        matches!(&refused, Err(StartError::Missing { path }) if *path == missing),
        "{refused:?}"
    );
}
