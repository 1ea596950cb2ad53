//! Checkpoints that cannot be saved, and queue files that wait for their removal.

use super::*;
use crate::background::reclaim;

#[tokio::test]
async fn checkpoints_that_fail_are_counted_and_for_long_make_the_broker_not_ready() {
    let mut kept = Kept::new(1000).await;
    let metrics = kept.upkeep.metrics.checkpoints.clone();
    kept.append(3).await;
    kept.saves(false).await;
    assert!(!kept.look().await);
    assert_eq!((metrics.failures.get(), metrics.overdue.get()), (1, 0));
    kept.upkeep.note_failure(Instant::now() + schedule::OVERDUE);
    assert_eq!((metrics.failures.get(), metrics.overdue.get()), (2, 1));
    kept.saves(true).await;
    assert!(kept.look().await);
    assert_eq!(metrics.overdue.get(), 0);
}

#[tokio::test]
async fn queue_files_that_nothing_needs_are_removed_some_at_a_time() {
    let kept = Kept::new(1000).await;
    let name = store::QueueName {
        topic: Arc::new(TopicName::new("gone").unwrap()),
        topic_id: TopicId(9),
        number: QueueNumber(0),
    };
    let file = |first| store::FileRow {
        queue: QUEUE,
        first: Offset(first),
        generation: 0,
        segment: store::FileSegment {
            end: Offset(first + 1),
            bytes: 1,
            planned_bytes: 1,
        },
        name: name.clone(),
        is_gone: true,
    };
    let dead = |files: std::ops::Range<u64>| Dead {
        files: files.map(file).collect(),
        ..Dead::default()
    };
    let removed = || kept.upkeep.metrics.queue_files_removed.get();
    let reclaim = |dead| reclaim::reclaim(&kept.upkeep.core, &kept.upkeep.metrics, &dead);
    assert!(reclaim(dead(0..501)), "there is more");
    assert_eq!(removed(), 500);
    assert!(!reclaim(dead(500..501)));
    assert_eq!(removed(), 501);
}
