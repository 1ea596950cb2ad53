//! S15: counters that begin just below their limits end in a refusal, and nothing wraps.

use super::*;
use crate::state::groups::GROUP_KEYS_MAX;
use crate::state::queues::{OFFSET_MAX, QUEUE_KEYS_MAX};
use crate::state::rows::Rows;

/// A state with a topic `old` of one queue, loaded after its counters were moved.
fn moved(change: impl FnOnce(&mut Rows)) -> Bench {
    let mut bench = Bench::new();
    bench.topic("old", 1);
    let mut rows = bench.state.rows();
    change(&mut rows);
    bench.state = State::load(shard(), Limits::default(), rows).unwrap();
    bench
}

fn create(name: &str, queues: usize) -> Command {
    Command::CreateTopic(declaration(name, 7, &vec!["here"; queues]))
}

#[test]
fn s15_the_last_queues_are_made_one_more_is_refused_and_topics_can_still_be_altered() {
    let mut bench = moved(|rows| rows.counters.next_queue = QueueKey(QUEUE_KEYS_MAX - 3));
    assert!(matches!(
        refused(bench.apply(create("large", 4))),
        Refusal::Invalid(_)
    ));
    let keys = bench.topic("last", 3);
    assert_eq!(keys.last(), Some(&QueueKey(QUEUE_KEYS_MAX - 1)));
    assert!(matches!(
        refused(bench.apply(create("more", 1))),
        Refusal::Invalid(_)
    ));
    let elsewhere = Command::CreateTopic(declaration("elsewhere", 8, &["here", "there"]));
    assert!(matches!(refused(bench.apply(elsewhere)), Refusal::Invalid(_)));
    let known = bench.state.topic(&topic_name("old")).unwrap();
    let mut altered = known.declaration.clone();
    altered.settings.retention_ms = Some(1000);
    let altered = bench.apply(Command::AlterTopic(altered));
    assert!(matches!(altered, Outcome::Topic(_)), "{altered:?}");
    bench.restart();
    assert!(matches!(
        refused(bench.apply(create("more", 1))),
        Refusal::Invalid(_)
    ));
    let appended = bench.apply(Command::Append(part(QueueKey(QUEUE_KEYS_MAX - 1), 2)));
    assert!(matches!(appended, Outcome::Appended { .. }), "{appended:?}");
}

#[test]
fn s15_the_last_groups_are_made_and_one_more_is_refused() {
    let mut bench = moved(|rows| rows.counters.next_group = GroupKey(GROUP_KEYS_MAX - 3));
    let group = |name: &str| {
        Command::CreateGroup(CreateGroup {
            name: group_name(name),
            topic: topic_name("old"),
            mode: GroupMode::Stream,
            cursors: Vec::new(),
        })
    };
    for (name, key) in [("a", 3), ("b", 2), ("c", 1)] {
        let made = bench.apply(group(name));
        assert_eq!(made, Outcome::Group(GroupKey(GROUP_KEYS_MAX - key)));
    }
    assert!(matches!(refused(bench.apply(group("d"))), Refusal::Invalid(_)));
    bench.restart();
    assert!(matches!(refused(bench.apply(group("d"))), Refusal::Invalid(_)));
    assert_eq!(
        bench.apply(group("c")),
        Outcome::Group(GroupKey(GROUP_KEYS_MAX - 1)),
        "known"
    );
}

#[test]
fn s15_the_last_offsets_are_given_and_a_batch_beyond_them_is_refused() {
    let mut bench = moved(|rows| {
        rows.queues[0].start = Offset(OFFSET_MAX.0 - 3);
        rows.queues[0].end = Offset(OFFSET_MAX.0 - 3);
    });
    let queue = QueueKey(0);
    let append = |records| Command::Append(part(queue, records));
    let open = bench.open(&[part(queue, 2), part(queue, 2)]);
    assert!(matches!(refused(bench.apply(append(4))), Refusal::Invalid(_)));
    let largest = Command::Append(Part {
        records: u32::MAX,
        ..part(queue, 1)
    });
    assert!(matches!(refused(bench.apply(largest)), Refusal::Invalid(_)));
    let committed = bench.apply(end(open, Decision::Commit));
    assert!(matches!(refused(committed), Refusal::Invalid(_)));
    let base_offset = Offset(OFFSET_MAX.0 - 3);
    assert_eq!(bench.apply(append(3)), Outcome::Appended { base_offset });
    assert!(matches!(refused(bench.apply(append(1))), Refusal::Invalid(_)));
    bench.restart();
    assert_eq!(bench.end(queue), OFFSET_MAX.0);
    assert!(matches!(refused(bench.apply(append(1))), Refusal::Invalid(_)));
    ended(bench.apply(end(open, Decision::Rollback)));
}
