//! Topics: authority, adoption, deletion.

use mq_common::limits::TOPIC_SHARDS_MAX;

use super::*;
use crate::state::effects::GroupChange;

fn created(outcome: Outcome) -> Declaration {
    match outcome {
        Outcome::Topic(topic) => Declaration::new(&topic).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn adopt(declaration: Declaration) -> Command {
    Command::AdoptTopic {
        declaration,
        drop_transactions: false,
    }
}

fn delete(name: &str, drop_transactions: bool) -> Command {
    Command::DeleteTopic {
        name: topic_name(name),
        drop_transactions,
    }
}

fn version(mut declaration: Declaration, version: u64) -> Declaration {
    declaration.version = version;
    declaration
}

#[test]
fn authority_numbers_the_topic_and_makes_its_own_queues() {
    let mut bench = Bench::new();
    let wanted = declaration("t", 9, &["here", "there", "here"]);
    let topic = created(bench.apply(Command::CreateTopic(wanted)));
    assert_eq!((topic.version, topic.id, topic.homes.len()), (1, TopicId(9), 3));
    assert_eq!(bench.effects.queues_created, [QueueKey(0), QueueKey(1)]);
    let name = topic_name("t");
    assert_eq!(bench.state.queue_key(&name, QueueNumber(0)), Some(QueueKey(0)));
    assert_eq!(
        bench.state.queue_key(&name, QueueNumber(1)),
        None,
        "it lies there"
    );
    assert_eq!(bench.state.queue_key(&name, QueueNumber(2)), Some(QueueKey(1)));
    assert_eq!(bench.state.queue_count(), 2);
}

#[test]
fn repeated_creation_gets_the_first_answer() {
    let mut bench = Bench::new();
    let first = bench.apply(Command::CreateTopic(declaration("t", 9, &["here", "there"])));
    // Another id, and dealt over the shards in another way: it is the same wish.
    let again = bench.apply(Command::CreateTopic(declaration("t", 10, &["here", "elsewhere"])));
    assert_eq!(again, first);
    assert_eq!(bench.effects, Effects::default());
}

#[test]
fn creation_with_other_properties_is_refused() {
    let mut bench = Bench::new();
    bench.topic("t", 2);
    let refusal = refused(bench.apply(Command::CreateTopic(declaration("t", 2, &["here"]))));
    assert!(
        matches!(refusal, Refusal::TopicExists { queues: 2, .. }),
        "{refusal}"
    );
    let mut memory = declaration("t", 2, &["here", "here"]);
    memory.durability = Durability::Memory;
    let refusal = refused(bench.apply(Command::CreateTopic(memory)));
    assert!(matches!(refusal, Refusal::TopicExists { .. }), "{refusal}");
}

#[test]
fn only_the_first_shard_of_the_list_creates_and_deletes() {
    let mut bench = Bench::new();
    let list = declaration("t", 1, &["there", "here"]);
    let refusal = refused(bench.apply(Command::CreateTopic(list.clone())));
    assert!(matches!(refusal, Refusal::NotAuthority { .. }), "{refusal}");
    bench.apply(adopt(version(list, 1)));
    let refusal = refused(bench.apply(delete("t", false)));
    assert!(matches!(refusal, Refusal::NotAuthority { .. }), "{refusal}");
}

#[test]
fn higher_version_is_adopted_and_a_lower_one_changes_nothing() {
    let mut bench = Bench::new();
    let two = declaration("t", 1, &["there", "here"]);
    created(bench.apply(adopt(version(two.clone(), 1))));
    let mut three = version(declaration("t", 1, &["there", "here", "here"]), 3);
    three.durability = Durability::Memory;
    assert_eq!(created(bench.apply(adopt(three.clone()))), three);
    assert_eq!(
        bench.effects.queues_created,
        [QueueKey(1)],
        "only the new queue is made"
    );
    assert_eq!(bench.state.queue(QueueKey(0)).unwrap().floor, Durability::Memory);
    assert_eq!(created(bench.apply(adopt(version(two, 2)))), three);
    assert_eq!(bench.effects, Effects::default());
}

#[test]
fn version_that_moves_a_queue_or_does_not_name_this_shard_is_refused() {
    let mut bench = Bench::new();
    bench.apply(adopt(version(declaration("t", 1, &["there", "here"]), 1)));
    for list in [&["here", "there"][..], &["here"], &["there", "elsewhere"]] {
        let refusal = refused(bench.apply(adopt(version(declaration("t", 1, list), 2))));
        assert!(matches!(refusal, Refusal::Invalid(_)), "{list:?}: {refusal}");
    }
}

#[test]
fn absurd_identity_from_a_peer_is_refused() {
    let mut bench = Bench::new();
    for (id, number) in [(u64::MAX, 1), (1, u64::MAX), (1, 0)] {
        let refusal = refused(bench.apply(adopt(version(declaration("t", id, &["there", "here"]), number))));
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
    }
}

#[test]
fn deletion_leaves_a_tombstone_and_drops_queues_and_groups() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 2);
    let other = bench.topic("other", 1);
    bench.apply(Command::CreateGroup(CreateGroup {
        name: group_name("g"),
        topic: topic_name("t"),
        mode: GroupMode::Stream,
        cursors: vec![],
    }));
    let tombstone = created(bench.apply(delete("t", false)));
    assert!(tombstone.deleted);
    assert_eq!(tombstone.version, 2);
    assert_eq!(bench.effects.queues_dropped, queues);
    assert_eq!(bench.effects.groups, [GroupChange::Deleted(GroupKey(0))]);
    assert!(bench.state.topic(&topic_name("t")).is_none());
    assert!(bench.state.topic_or_tombstone(&topic_name("t")).is_some());
    assert!(bench.state.group_by_name(&group_name("g")).is_none());
    let refusal = refused(bench.apply(Command::Append(part(queues[0], 1))));
    assert_eq!(refusal, Refusal::UnknownQueue);
    assert_eq!(bench.end(other[0]), 0, "other topics stay");
    assert_eq!(
        created(bench.apply(delete("t", false))),
        tombstone,
        "repeating it is harmless"
    );
}

#[test]
fn deletion_of_an_unknown_topic_names_the_command_that_makes_it() {
    let mut bench = Bench::new();
    let refusal = refused(bench.apply(delete("t", false)));
    assert_eq!(refusal, Refusal::UnknownTopic(topic_name("t")));
    assert!(refusal.to_string().contains("mq topic create t"));
}

#[test]
fn deletion_is_refused_while_transactions_are_open() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 1)]);
    let refusal = refused(bench.apply(delete("t", false)));
    assert!(
        matches!(refusal, Refusal::OpenTransactions { open: 1, .. }),
        "{refusal}"
    );
    created(bench.apply(delete("t", true)));
    assert!(matches!(
        bench.effects.transactions[..],
        [TransactionChange::Decided { committed: false, .. }]
    ));
    let answer = ended(bench.apply(end(number, Decision::Rollback)));
    assert_eq!(
        (answer.state, answer.already),
        (TransactionState::RolledBack, true)
    );
}

#[test]
fn same_name_later_is_another_topic_with_new_queues() {
    let mut bench = Bench::new();
    let old = bench.topic("t", 1);
    bench.apply(Command::Append(part(old[0], 5)));
    bench.apply(delete("t", false));
    // Even when the clock that made the id went back.
    let topic = created(bench.apply(Command::CreateTopic(declaration("t", 1, &["here"]))));
    assert_eq!((topic.id, topic.version), (TopicId(2), 3));
    let new = bench.state.queue_key(&topic_name("t"), QueueNumber(0)).unwrap();
    assert!(new > old[0], "keys are never used again");
    assert_eq!(bench.end(new), 0);
    let refusal = refused(bench.apply(Command::Append(part(old[0], 1))));
    assert_eq!(
        refusal,
        Refusal::UnknownQueue,
        "a late append does not land in the new topic"
    );
}

#[test]
fn returning_shard_obeys_a_tombstone() {
    let mut bench = Bench::new();
    let list = declaration("t", 1, &["there", "here"]);
    bench.apply(adopt(version(list.clone(), 1)));
    let mut tombstone = version(list.clone(), 2);
    tombstone.deleted = true;
    created(bench.apply(adopt(tombstone)));
    assert_eq!(bench.effects.queues_dropped, [QueueKey(0)]);
    let again = created(bench.apply(adopt(version(list.clone(), 1))));
    assert!(again.deleted, "an old declaration does not bring it back");
    let refusal = refused(bench.apply(adopt(version(list, 3))));
    assert!(
        matches!(refusal, Refusal::Invalid(_)),
        "nor does a new version of it: {refusal}"
    );
}

#[test]
fn returning_shard_follows_its_authority_to_a_later_topic_of_the_name() {
    let mut bench = Bench::new();
    bench.apply(adopt(version(declaration("t", 1, &["there", "here"]), 1)));
    let later = version(declaration("t", 2, &["there", "here"]), 3);
    assert_eq!(created(bench.apply(adopt(later.clone()))), later);
    assert_eq!(bench.effects.queues_dropped, [QueueKey(0)]);
    assert_eq!(bench.effects.queues_created, [QueueKey(1)]);
    let refusal = refused(bench.apply(adopt(version(declaration("t", 1, &["there", "here"]), 9))));
    assert!(matches!(refusal, Refusal::TopicExists { .. }), "{refusal}");
}

#[test]
fn two_authorities_for_one_name_are_a_clash_that_drops_nothing() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let theirs = version(declaration("t", 99, &["there", "here"]), 5);
    let refusal = refused(bench.apply(adopt(theirs)));
    assert!(matches!(refusal, Refusal::TopicExists { .. }), "{refusal}");
    assert_eq!(bench.end(queues[0]), 0);
}

#[test]
fn adopted_tombstone_keeps_open_transactions_for_a_person() {
    let mut bench = Bench::new();
    let list = declaration("t", 1, &["there", "here"]);
    bench.apply(adopt(version(list.clone(), 1)));
    let number = bench.open(&[part(QueueKey(0), 1)]);
    let mut tombstone = version(list, 2);
    tombstone.deleted = true;
    created(bench.apply(adopt(tombstone)));
    assert_eq!(
        bench.state.transaction(number).unwrap().state(),
        TransactionState::Open
    );
    let refusal = refused(bench.apply(end(number, Decision::Commit)));
    assert_eq!(refusal, Refusal::TargetGone(number));
    let words = refusal.to_error(bench.state.shard()).message;
    let rollback = format!("`mq txn rollback here:{number}`");
    assert!(words.contains(&rollback), "{words}");
    assert!(
        !words.contains("topic create"),
        "a topic created again is another one: {words}"
    );
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        Some(ParkReason::TargetGone)
    );
    let answer = ended(bench.apply(end(number, Decision::Rollback)));
    assert_eq!(answer.state, TransactionState::RolledBack);
}

#[test]
fn declared_list_must_be_numbered_without_a_gap() {
    let mut topic = declaration("t", 1, &["here", "there"]).to_topic();
    assert_eq!(Declaration::new(&topic).unwrap().to_topic(), topic);
    topic.queues.swap(0, 1);
    assert_eq!(Declaration::new(&topic), Err(InvalidDeclaration::Numbers));
    topic.queues.clear();
    assert_eq!(Declaration::new(&topic), Err(InvalidDeclaration::NoQueues));
}

#[test]
fn topic_lies_on_a_bounded_number_of_shards() {
    let most = usize::from(TOPIC_SHARDS_MAX);
    let names: Vec<String> = (0..=most).map(|shard| format!("s{shard}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let on = |shards: &[&str]| Declaration::new(&declaration("t", 1, shards).to_topic());
    let twice: Vec<&str> = names[..most].iter().chain(&names[..most]).copied().collect();
    let declared = on(&twice).unwrap();
    assert_eq!(declared.shards.len(), most);
    assert_eq!(declared.homes[..most], declared.homes[most..]);
    assert_eq!(on(&names), Err(InvalidDeclaration::TooManyShards));
}

#[test]
fn place_in_the_row_of_all_queues_counts_the_shards_before() {
    let list = declaration("t", 1, &["a", "here", "a", "here", "b"]);
    let before = |shard: &str| list.queues_before(&ShardName::new(shard).unwrap());
    assert_eq!((before("a"), before("here"), before("b")), (0, 2, 4));
}
