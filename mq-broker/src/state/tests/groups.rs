//! Groups: made by their first member, one subscription, cursors that only go forward.

use super::*;
use crate::state::effects::GroupChange;

fn create(name: &str, topic: &str, cursors: &[(QueueKey, u64)]) -> Command {
    Command::CreateGroup(CreateGroup {
        name: group_name(name),
        topic: topic_name(topic),
        mode: GroupMode::Stream,
        cursors: cursors
            .iter()
            .map(|(queue, offset)| (*queue, Offset(*offset)))
            .collect(),
    })
}

fn progress(acks: &[(u32, QueueKey, u64)]) -> Command {
    Command::Progress {
        acks: acks
            .iter()
            .map(|(group, queue, next)| Ack {
                group: GroupKey(*group),
                queue: *queue,
                next: Offset(*next),
            })
            .collect(),
    }
}

fn cursor(bench: &Bench, queue: QueueKey) -> u64 {
    bench.state.group(GroupKey(0)).unwrap().cursor(queue).unwrap().0
}

#[test]
fn group_starts_where_its_creation_says_within_the_queue() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 3);
    bench.apply(Command::Append(part(queues[0], 10)));
    bench.apply(Command::Append(part(queues[1], 10)));
    let outcome = bench.apply(create("g", "t", &[(queues[0], 4), (queues[1], 99)]));
    assert_eq!(outcome, Outcome::Group(GroupKey(0)));
    assert_eq!(cursor(&bench, queues[0]), 4);
    assert_eq!(cursor(&bench, queues[1]), 10, "not beyond the end");
    assert_eq!(
        cursor(&bench, queues[2]),
        0,
        "from the start when nothing is said"
    );
}

#[test]
fn second_creation_is_the_same_group_and_keeps_its_cursors() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(Command::Append(part(queues[0], 10)));
    bench.apply(create("g", "t", &[(queues[0], 4)]));
    assert_eq!(
        bench.apply(create("g", "t", &[(queues[0], 9)])),
        Outcome::Group(GroupKey(0))
    );
    assert_eq!(cursor(&bench, queues[0]), 4);
}

#[test]
fn member_with_another_topic_is_refused_and_told_the_groups_own() {
    let mut bench = Bench::new();
    bench.topic("t", 1);
    bench.topic("u", 1);
    bench.apply(create("g", "t", &[]));
    let refusal = refused(bench.apply(create("g", "u", &[])));
    assert!(refusal.to_string().contains("`t`"), "{refusal}");
}

#[test]
fn group_of_an_unknown_topic_is_refused() {
    let refusal = refused(Bench::new().apply(create("g", "t", &[])));
    assert_eq!(refusal, Refusal::UnknownTopic(topic_name("t")));
}

#[test]
fn progress_goes_forward_only_and_not_beyond_the_end() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(Command::Append(part(queues[0], 10)));
    bench.apply(create("g", "t", &[]));
    bench.apply(progress(&[(0, queues[0], 6)]));
    assert_eq!(cursor(&bench, queues[0]), 6);
    assert_eq!(
        bench.effects.groups,
        [GroupChange::Progress(GroupKey(0), queues[0], Offset(6))]
    );
    for next in [3, 6, 11, u64::MAX] {
        bench.apply(progress(&[(0, queues[0], next)]));
        assert_eq!(cursor(&bench, queues[0]), 6, "{next}");
        assert_eq!(bench.effects.groups, []);
    }
}

#[test]
fn progress_of_an_unknown_group_or_queue_is_ignored_and_the_rest_counts() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(Command::Append(part(queues[0], 10)));
    bench.apply(create("g", "t", &[]));
    let outcome = bench.apply(progress(&[
        (5, queues[0], 1),
        (0, QueueKey(9), 1),
        (0, queues[0], 2),
    ]));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(cursor(&bench, queues[0]), 2);
}

#[test]
fn queue_added_later_is_read_from_its_first_message() {
    let mut bench = Bench::new();
    let mut list = declaration("t", 1, &["there", "here"]);
    list.version = 1;
    let adopt = |declaration| Command::AdoptTopic {
        declaration,
        drop_transactions: false,
    };
    bench.apply(adopt(list));
    bench.apply(create("g", "t", &[]));
    let mut more = declaration("t", 1, &["there", "here", "here"]);
    more.version = 2;
    bench.apply(adopt(more));
    assert_eq!(bench.effects.groups, [GroupChange::Queues(GroupKey(0))]);
    assert_eq!(cursor(&bench, QueueKey(1)), 0);
}

#[test]
fn group_made_again_after_its_topic_does_not_inherit_late_acks() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(create("g", "t", &[]));
    bench.apply(Command::DeleteTopic {
        name: topic_name("t"),
        drop_transactions: false,
    });
    bench.apply(Command::CreateTopic(declaration("t", 2, &["here"])));
    assert_eq!(bench.apply(create("g", "t", &[])), Outcome::Group(GroupKey(1)));
    let new = bench.state.queue_key(&topic_name("t"), QueueNumber(0)).unwrap();
    bench.apply(Command::Append(part(new, 3)));
    bench.apply(progress(&[(0, queues[0], 3), (0, new, 3), (1, queues[0], 3)]));
    let group = bench.state.group(GroupKey(1)).unwrap();
    assert_eq!(group.cursor(new), Some(Offset(0)));
}
