//! Trimming, and changes of a topic.

use super::*;
use crate::state::effects::{GroupChange, Trimmed};

fn trim(starts: &[(QueueKey, u64)]) -> Command {
    Command::Trim {
        starts: starts
            .iter()
            .map(|(queue, offset)| (*queue, Offset(*offset)))
            .collect(),
    }
}

fn group(topic: &str, name: &str) -> Command {
    Command::CreateGroup(CreateGroup {
        name: group_name(name),
        topic: topic_name(topic),
        mode: GroupMode::Stream,
        cursors: Vec::new(),
    })
}

fn start(bench: &Bench, queue: QueueKey) -> u64 {
    bench.state.queue(queue).unwrap().start.0
}

#[test]
fn start_rises_up_to_the_end_and_never_goes_back() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 2);
    bench.apply(Command::Append(part(queues[0], 10)));
    assert_eq!(
        bench.apply(trim(&[(queues[0], 4), (QueueKey(99), 1)])),
        Outcome::Done
    );
    let moved = |from, to| Trimmed {
        queue: queues[0],
        from: Offset(from),
        to: Offset(to),
    };
    assert_eq!(bench.effects.trimmed, [moved(0, 4)]);
    bench.apply(trim(&[(queues[0], 3), (queues[0], 4), (queues[1], 7)]));
    assert_eq!(bench.effects.trimmed, []);
    bench.apply(trim(&[(queues[0], 99)]));
    assert_eq!(bench.effects.trimmed, [moved(4, 10)]);
    assert_eq!((start(&bench, queues[0]), bench.end(queues[0])), (10, 10));
    bench.restart();
    assert_eq!((start(&bench, queues[0]), start(&bench, queues[1])), (10, 0));
    // What comes later gets the next offsets.
    let outcome = bench.apply(Command::Append(part(queues[0], 1)));
    assert_eq!(
        outcome,
        Outcome::Appended {
            base_offset: Offset(10)
        }
    );
}

#[test]
fn group_that_was_not_done_is_told_what_it_lost_and_goes_on_at_the_start() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 2);
    let others = {
        bench.apply(Command::CreateTopic(declaration("u", 2, &["here"])));
        bench.state.topic(&topic_name("u")).unwrap().here[0].1
    };
    for queue in [queues[0], queues[1], others] {
        bench.apply(Command::Append(part(queue, 10)));
    }
    for (topic, name) in [("t", "behind"), ("t", "done"), ("u", "other")] {
        bench.apply(group(topic, name));
    }
    let acks = vec![Ack {
        group: GroupKey(1),
        queue: queues[0],
        next: Offset(8),
    }];
    bench.apply(Command::Progress { acks });
    bench.apply(trim(&[(queues[0], 6)]));
    let lost = GroupChange::Lost {
        group: GroupKey(0),
        queue: queues[0],
        from: Offset(0),
        to: Offset(6),
    };
    assert_eq!(bench.effects.groups, [lost]);
    bench.apply(trim(&[(queues[0], 9), (queues[1], 2)]));
    bench.restart();
    let lost = |group, queue| bench.state.group(GroupKey(group)).unwrap().lost(queue);
    assert_eq!((lost(0, queues[0]), lost(0, queues[1])), (9, 2));
    assert_eq!((lost(1, queues[0]), lost(1, queues[1])), (1, 2));
    assert_eq!(lost(2, others), 0);
    let group = bench.state.group(GroupKey(1)).unwrap();
    assert_eq!(group.cursor(queues[0]), Some(Offset(9)));
    assert_eq!(group.cursor(queues[1]), Some(Offset(2)));
}

#[test]
fn late_ack_below_the_start_moves_nothing() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(Command::Append(part(queues[0], 10)));
    bench.apply(group("t", "g"));
    bench.apply(trim(&[(queues[0], 6)]));
    let acks = vec![Ack {
        group: GroupKey(0),
        queue: queues[0],
        next: Offset(5),
    }];
    bench.apply(Command::Progress { acks });
    assert_eq!(bench.effects.groups, []);
    let group = bench.state.group(GroupKey(0)).unwrap();
    assert_eq!(
        (group.cursor(queues[0]), group.lost(queues[0])),
        (Some(Offset(6)), 6)
    );
}

fn known(bench: &Bench) -> Declaration {
    bench.state.topic(&topic_name("t")).unwrap().declaration.clone()
}

#[test]
fn altered_topic_gets_the_next_version_and_its_new_queues() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.apply(Command::Append(part(queues[0], 3)));
    bench.apply(group("t", "g"));
    let mut wanted = known(&bench);
    wanted.settings.retention_ms = Some(5);
    wanted.durability = Durability::Memory;
    wanted.shards.push(ShardName::new("there").unwrap());
    wanted.homes.extend([1, 0]);
    let outcome = bench.apply(Command::AlterTopic(wanted.clone()));
    assert!(
        matches!(outcome, Outcome::Topic(ref topic) if topic.version == 2),
        "{outcome:?}"
    );
    assert_eq!(bench.effects.queues_created, [QueueKey(1)]);
    assert_eq!(bench.effects.groups, [GroupChange::Queues(GroupKey(0))]);
    let expected = Declaration {
        version: 2,
        ..wanted.clone()
    };
    assert_eq!(known(&bench), expected);
    assert_eq!(bench.state.queue(queues[0]).unwrap().floor, Durability::Memory);
    assert_eq!(bench.end(queues[0]), 3, "nothing of what was there is touched");
    // A repetition is answered with what came of it, and so is a change of nothing.
    for again in [wanted, expected] {
        let outcome = bench.apply(Command::AlterTopic(again));
        assert!(
            matches!(outcome, Outcome::Topic(ref topic) if topic.version == 2),
            "{outcome:?}"
        );
        assert_eq!(bench.effects.topics, []);
    }
}

#[test]
fn change_of_another_version_or_of_fewer_or_moved_queues_is_refused() {
    let mut bench = Bench::new();
    bench.topic("t", 2);
    let now = known(&bench);
    let change = |bench: &mut Bench, change: &dyn Fn(&mut Declaration)| {
        let mut wanted = now.clone();
        wanted.settings.consumed = true;
        change(&mut wanted);
        refused(bench.apply(Command::AlterTopic(wanted)))
    };
    let outdated = |refusal: &Refusal| matches!(refusal, Refusal::Outdated { .. });
    assert!(outdated(&change(&mut bench, &|wanted| wanted.version = 0)));
    assert!(outdated(&change(&mut bench, &|wanted| wanted.version = 2)));
    assert!(outdated(&change(&mut bench, &|wanted| wanted.id = TopicId(9))));
    let fewer = change(&mut bench, &|wanted| wanted.homes.truncate(1));
    assert!(fewer.to_string().contains("only get more"), "{fewer}");
    let moved = change(&mut bench, &|wanted| {
        wanted.shards.push(ShardName::new("there").unwrap());
        wanted.homes[1] = 1;
    });
    assert!(moved.to_string().contains("only get more"), "{moved}");
    let unknown = change(&mut bench, &|wanted| wanted.name = topic_name("u"));
    assert_eq!(unknown, Refusal::UnknownTopic(topic_name("u")));
    assert_eq!(known(&bench), now);
}

#[test]
fn only_the_authority_changes_a_topic_and_the_others_adopt_it() {
    let mut bench = Bench::new();
    let mut list = declaration("t", 1, &["there", "here"]);
    list.version = 1;
    let adopt = |declaration| Command::AdoptTopic {
        declaration,
        drop_transactions: false,
    };
    bench.apply(adopt(list.clone()));
    let mut wanted = list;
    wanted.settings.retention_bytes = Some(1000);
    let refusal = refused(bench.apply(Command::AlterTopic(wanted.clone())));
    assert!(matches!(refusal, Refusal::NotAuthority { .. }), "{refusal}");
    wanted.version = 2;
    bench.apply(adopt(wanted.clone()));
    assert_eq!(known(&bench), wanted);
}

#[test]
fn creation_with_other_settings_names_the_way_to_change_them() {
    let mut bench = Bench::new();
    bench.topic("t", 1);
    let mut wanted = declaration("t", 1, &["here"]);
    wanted.settings = TopicSettings::of_new_topic();
    let refusal = refused(bench.apply(Command::CreateTopic(wanted)));
    assert!(refusal.to_string().contains("mq topic alter t"), "{refusal}");
}
