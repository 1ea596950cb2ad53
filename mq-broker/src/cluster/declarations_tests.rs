//! What a shard does about its peers' declarations.

use mq_common::api::admin::QueueHome;
use mq_common::ids::{Durability, QueueNumber};

use super::*;

fn shard(name: &str) -> ShardName {
    ShardName::new(name).unwrap()
}

/// A live topic whose queues are on these shards.
fn topic(id: u64, version: u64, homes: &[&str]) -> Declaration {
    let queues = (0..).zip(homes).map(|(number, home)| QueueHome {
        queue: QueueNumber(number),
        shard: shard(home),
    });
    let topic = Topic {
        name: TopicName::new("orders").unwrap(),
        id: TopicId(id),
        version,
        durability: Durability::Fsynced,
        queues: queues.collect(),
        deleted: false,
        settings: mq_common::api::TopicSettings::default(),
    };
    Declaration::new(&topic).unwrap()
}

fn deleted(topic: Declaration, version: u64) -> Declaration {
    Declaration {
        version,
        deleted: true,
        ..topic
    }
}

/// What shard `b` does.
fn at_b(known: Option<&Declaration>, offers: &[(&str, &Declaration)]) -> Verdict {
    let offers: Vec<Offer> = offers
        .iter()
        .map(|(from, declaration)| Offer {
            from: shard(from),
            declaration: Declaration::clone(declaration),
        })
        .collect();
    compare(known, &shard("b"), &offers)
}

#[test]
fn topic_that_names_this_shard_is_adopted_and_another_is_not() {
    let ours = topic(7, 1, &["a", "b"]);
    assert_eq!(at_b(None, &[("a", &ours)]), Verdict::Adopt(vec![ours]));
    assert_eq!(at_b(None, &[("a", &topic(7, 1, &["a", "c"]))]), Verdict::Current);
    assert_eq!(at_b(None, &[]), Verdict::Current);
}

#[test]
fn highest_version_of_all_answers_counts() {
    let (one, two) = (topic(7, 1, &["a", "b"]), topic(7, 2, &["a", "b", "a"]));
    let offers = [("a", &two), ("c", &one)];
    assert_eq!(at_b(Some(&one), &offers), Verdict::Adopt(vec![two.clone()]));
    assert_eq!(at_b(Some(&two), &offers), Verdict::Current);
    assert_eq!(at_b(Some(&topic(7, 3, &["a", "b"])), &offers), Verdict::Current);
}

#[test]
fn returning_shard_obeys_a_tombstone() {
    let live = topic(7, 1, &["a", "b"]);
    let tombstone = deleted(live.clone(), 2);
    let stale = [("c", &live), ("a", &tombstone)];
    assert_eq!(at_b(Some(&live), &stale), Verdict::Adopt(vec![tombstone.clone()]));
    assert_eq!(at_b(Some(&tombstone), &stale), Verdict::Current);
    assert_eq!(at_b(None, &stale), Verdict::Adopt(vec![tombstone]));
}

#[test]
fn same_name_created_again_by_the_same_authority_buries_the_old_topic() {
    let old = topic(7, 3, &["a", "b"]);
    let (with, without) = (topic(9, 4, &["a", "b"]), topic(9, 4, &["a"]));
    let grave = deleted(old.clone(), 4);
    assert_eq!(
        at_b(Some(&old), &[("a", &with)]),
        Verdict::Adopt(vec![grave.clone(), with.clone()])
    );
    assert_eq!(
        at_b(Some(&old), &[("a", &without)]),
        Verdict::Adopt(vec![grave.clone()]),
        "the new one has no queue here"
    );
    assert_eq!(
        at_b(Some(&old), &[("c", &with)]),
        Verdict::Adopt(vec![grave.clone(), with.clone()]),
        "a third shard may report it"
    );
    assert_eq!(at_b(Some(&grave), &[("a", &with)]), Verdict::Adopt(vec![with]));
    assert_eq!(at_b(Some(&grave), &[("a", &without)]), Verdict::Current);
}

#[test]
fn same_name_created_again_elsewhere_counts_when_the_old_authority_shows_it() {
    let old = topic(7, 1, &["a", "b"]);
    let new = topic(9, 1, &["c", "a"]);
    let grave = deleted(old.clone(), 2);
    assert_eq!(
        at_b(Some(&old), &[("c", &new)]),
        Verdict::Clash(new.clone(), Clash::TwoAuthorities),
        "the authority of the old one was not heard"
    );
    assert_eq!(
        at_b(Some(&old), &[("c", &new), ("a", &new)]),
        Verdict::Adopt(vec![grave.clone()])
    );
    let tombstone = deleted(old.clone(), 2);
    assert_eq!(
        at_b(Some(&old), &[("c", &new), ("d", &tombstone)]),
        Verdict::Adopt(vec![grave]),
        "or its tombstone was seen anywhere"
    );
}

#[test]
fn two_authorities_drop_nothing() {
    let ours = topic(7, 1, &["b", "a"]);
    let theirs = topic(9, 1, &["c", "b"]);
    let clash = Verdict::Clash(theirs.clone(), Clash::TwoAuthorities);
    assert_eq!(at_b(Some(&ours), &[("c", &theirs)]), clash);
    assert_eq!(
        at_b(Some(&ours), &[("c", &deleted(theirs.clone(), 2))]),
        Verdict::Current,
        "deleting the other one does not delete ours"
    );
    let higher = topic(10, 1, &["b"]);
    assert_eq!(at_b(Some(&higher), &[("c", &theirs)]), Verdict::Current);
}

#[test]
fn tombstone_of_a_third_topic_does_not_hide_the_live_one() {
    let live = topic(9, 1, &["c", "b"]);
    let grave = deleted(topic(11, 1, &["d", "b"]), 2);
    let offers = [("c", &live), ("d", &grave)];
    assert_eq!(at_b(None, &offers), Verdict::Adopt(vec![live.clone()]));
    let ours = topic(7, 1, &["b", "a"]);
    assert_eq!(
        at_b(Some(&ours), &offers),
        Verdict::Clash(live, Clash::TwoAuthorities)
    );
}

#[test]
fn nonsense_is_a_clash_and_changes_nothing() {
    let known = topic(7, 1, &["a", "b"]);
    let moved = topic(7, 2, &["b", "a"]);
    assert_eq!(
        at_b(Some(&known), &[("a", &moved)]),
        Verdict::Clash(moved, Clash::MovesQueues)
    );
    let revived = topic(7, 3, &["a", "b"]);
    assert_eq!(
        at_b(Some(&deleted(known, 2)), &[("a", &revived)]),
        Verdict::Clash(revived, Clash::Revived)
    );
}

#[test]
fn one_unreadable_declaration_does_not_hide_the_others() {
    let good = topic(7, 1, &["a"]).to_topic();
    let bad = Topic {
        queues: Vec::new(),
        ..good.clone()
    };
    let (declarations, wrong) = read(&[bad, good]);
    assert_eq!(declarations.len(), 1);
    assert!(wrong.unwrap().contains("`orders`"));
}
