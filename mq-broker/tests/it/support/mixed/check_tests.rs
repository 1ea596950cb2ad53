//! Planted violations: a check that finds none of them is none.

use mq_common::api::TopicSettings;
use mq_common::ids::{Durability, ShardName, TopicId, TransactionId, TransactionNumber};

use super::check::{Death, check};
use super::ledger::{Group, Known, Ledger, Progress, Sent, Topic, Transaction, Version};
use super::observed::{self, Observed};
use super::settle::settle;

/// When the broker died; everything else happened before, in order.
pub(super) const DEATH: u64 = 1_000_000_000;
pub(super) const KEPT: TopicSettings = TopicSettings {
    retention_ms: None,
    retention_bytes: None,
    consumed: false,
    hold_ms: None,
    message_bytes_max: None,
    compact: false,
};

pub(super) fn topic(name: &str, id: u64, settings: TopicSettings) -> Topic {
    Topic {
        name: name.to_owned(),
        durability: Durability::Fsynced,
        asked: 1,
        id: Known::There(2, TopicId(id)),
        versions: vec![Version {
            asked: 1,
            known: Known::There(2, ()),
            number: 1,
            queues: 1,
            settings,
        }],
        deletion: None,
    }
}

pub(super) fn sent(topic: usize, values: &[&str], asked: u64, placed: Known<(u64, Durability)>) -> Sent {
    Sent {
        topic,
        queue: 0,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
        asked,
        placed,
        below: u64::MAX,
        transaction: None,
    }
}

pub(super) fn at(time: u64, offset: u64) -> Known<(u64, Durability)> {
    Known::There(time, (offset, Durability::Fsynced))
}

fn id(number: u64) -> TransactionId {
    TransactionId {
        shard: ShardName::new("here").unwrap(),
        number: TransactionNumber(number),
    }
}

/// In topic 0: two batches with receipts, one without, a committed transaction; beside it an open one, a
/// rolled back one, a group, and topic 1, which is deleted.
fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.topics = vec![topic("t", 7, KEPT), topic("gone", 8, KEPT)];
    ledger.topics[1].deletion = Some((400, Some(410)));
    ledger.enter(sent(0, &["a.", "b."], 10, at(20, 0)));
    ledger.enter(sent(0, &["c."], 30, at(40, 2)));
    ledger.enter(sent(0, &["d.", "e."], 50, Known::Unknown));
    ledger.enter(sent(1, &["of gone."], 60, at(61, 0)));
    for (number, (commits, end)) in [
        (true, Some((100, Some(110)))),
        (true, None),
        (false, Some((100, Some(110)))),
        (true, Some((120, None))),
    ]
    .into_iter()
    .enumerate()
    {
        let value = format!("of {number}.");
        let placed = if number == 0 { at(110, 3) } else { Known::Unknown };
        let mut part = sent(0, &[&value], end.map_or(u64::MAX, |(asked, _)| asked), placed);
        part.transaction = Some(number);
        let part = ledger.enter(part);
        ledger.transactions.push(Transaction {
            key: format!("key-{number}"),
            asked: 70,
            id: Known::There(80, id(number as u64)),
            parts: vec![part],
            commits,
            end,
        });
    }
    let progress = Progress {
        began: 0,
        asked: vec![(200, 2), (220, 3)],
        acked: vec![(210, 2)],
    };
    ledger.groups.insert(
        "g".to_owned(),
        Group {
            topic: 0,
            known: Known::There(90, ()),
            queues: [(0, progress)].into(),
        },
    );
    ledger
}

fn observed() -> Observed {
    let values = ["a.", "b.", "c.", "of 0.", "d.", "e."].map(there);
    let queue = observed::Queue {
        start: 0,
        values: values.to_vec(),
    };
    let found = observed::Topic {
        id: TopicId(7),
        version: 1,
        settings: KEPT,
        queues: vec![queue],
    };
    let group = observed::Group {
        topic: "t".to_owned(),
        cursors: [(0, 3)].into(),
    };
    Observed {
        topics: [("t".to_owned(), found)].into(),
        open: [("key-1".to_owned(), (id(1), 1)), ("key-3".to_owned(), (id(3), 1))].into(),
        groups: [("g".to_owned(), group)].into(),
    }
}

fn there(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn values(observed: &mut Observed) -> &mut Vec<Option<String>> {
    &mut observed.topics.get_mut("t").unwrap().queues[0].values
}

/// What the check says of a change of what a good broker shows.
fn said(change: impl FnOnce(&mut Observed)) -> String {
    let mut observed = observed();
    change(&mut observed);
    check(&ledger(), &observed, Death::Killed, DEATH).expect_err("a violation")
}

#[test]
fn what_was_promised_holds_with_and_without_what_was_not() {
    check(&ledger(), &observed(), Death::Killed, DEATH).unwrap();
    let mut without = observed();
    values(&mut without).truncate(4);
    without.groups.get_mut("g").unwrap().cursors.insert(0, 2);
    check(&ledger(), &without, Death::Killed, DEATH).unwrap();
    // The other outcome of the end that was not answered.
    let mut committed = observed();
    values(&mut committed).push(there("of 3."));
    committed.open.remove("key-3");
    check(&ledger(), &committed, Death::Killed, DEATH).unwrap();
}

#[test]
fn messages_that_are_lost_doubled_reordered_torn_or_invented_are_found() {
    let lost = said(|observed| values(observed).truncate(2));
    assert!(lost.contains("lost: `c.`"), "{lost}");
    let doubled = said(|observed| values(observed).push(there("c.")));
    assert!(doubled.contains("twice"), "{doubled}");
    let other = said(|observed| values(observed)[2] = there("z."));
    assert!(other.contains("invented"), "{other}");
    let half = said(|observed| values(observed).truncate(5));
    assert!(half.contains("not whole"), "{half}");
    let tail = said(|observed| drop(values(observed).remove(4)));
    assert!(tail.contains("does not begin with it"), "{tail}");
    let mixed = said(|observed| values(observed).swap(0, 1));
    assert!(mixed.contains("does not begin with it"), "{mixed}");
    let garbled = said(|observed| values(observed)[2] = there("c.x"));
    assert!(garbled.contains("invented"), "{garbled}");
}

#[test]
fn what_was_sent_after_an_answer_stands_behind_it() {
    let mut ledger = ledger();
    // By their receipts `c` was sent after `a` was there; a broker that puts it first has mixed them up.
    let number = ledger.batch_of("a.").unwrap().0;
    ledger.sent.get_mut(&number).unwrap().placed = at(20, 1);
    let number = ledger.batch_of("c.").unwrap().0;
    ledger.sent.get_mut(&number).unwrap().placed = at(40, 0);
    let mut observed = observed();
    *values(&mut observed) = ["c.", "a.", "b.", "of 0."].map(there).to_vec();
    let said = check(&ledger, &observed, Death::Killed, DEATH).unwrap_err();
    assert!(said.contains("sent after it was there"), "{said}");
}

#[test]
fn starts_that_nothing_explains_are_found() {
    let trim = |observed: &mut Observed| {
        let queue = &mut observed.topics.get_mut("t").unwrap().queues[0];
        queue.start = 2;
        drop(queue.values.drain(..2));
    };
    let unexplained = said(trim);
    assert!(unexplained.contains("starts at 2"), "{unexplained}");
    let with = |settings: TopicSettings| {
        let (mut ledger, mut observed) = (ledger(), observed());
        ledger.topics[0].versions[0].settings = settings;
        observed.topics.get_mut("t").unwrap().settings = settings;
        trim(&mut observed);
        check(&ledger, &observed, Death::Killed, DEATH)
    };
    // 4 messages of some 130 bytes are left; the last one that went was a second old.
    let far = |bytes| TopicSettings {
        retention_bytes: Some(bytes),
        ..KEPT
    };
    with(far(500)).unwrap();
    with(far(1_000)).unwrap_err();
    let old = |ms| TopicSettings {
        retention_ms: Some(ms),
        ..KEPT
    };
    with(old(900)).unwrap();
    with(old(2_000)).unwrap_err();
    with(TopicSettings {
        consumed: true,
        ..KEPT
    })
    .unwrap();
    with(TopicSettings {
        hold_ms: Some(5_000),
        ..far(500)
    })
    .unwrap();
    let mut ledger = ledger();
    ledger.starts.insert((0, 0), 1);
    let back = check(&ledger, &observed(), Death::Killed, DEATH).unwrap_err();
    assert!(back.contains("went back"), "{back}");
}

#[test]
fn what_a_group_has_not_acknowledged_explains_no_start() {
    let settings = TopicSettings {
        consumed: true,
        ..KEPT
    };
    let (mut ledger, mut observed) = (ledger(), observed());
    ledger.topics[0].versions[0].settings = settings;
    let progress = ledger.groups.get_mut("g").unwrap().queues.get_mut(&0).unwrap();
    (progress.asked, progress.acked) = (vec![(200, 1)], Vec::new());
    let topic = observed.topics.get_mut("t").unwrap();
    topic.settings = settings;
    topic.queues[0].start = 2;
    drop(topic.queues[0].values.drain(..2));
    let said = check(&ledger, &observed, Death::Killed, DEATH).unwrap_err();
    assert!(said.contains("starts at 2"), "{said}");
}

#[test]
fn transactions_that_are_lost_shown_early_or_undone_are_found() {
    let early = said(|observed| values(observed).push(there("of 1.")));
    assert!(early.contains("never stored"), "{early}");
    let undone = said(|observed| values(observed).push(there("of 2.")));
    assert!(undone.contains("was not committed"), "{undone}");
    let lost = said(|observed| drop(observed.open.remove("key-1")));
    assert!(lost.contains("it was open"), "{lost}");
    let nowhere = said(|observed| drop(observed.open.remove("key-3")));
    assert!(nowhere.contains("neither open nor committed"), "{nowhere}");
    let again = said(|observed| drop(observed.open.insert("key-2".to_owned(), (id(2), 1))));
    assert!(again.contains("it was decided"), "{again}");
    let other = said(|observed| drop(observed.open.insert("key-1".to_owned(), (id(9), 1))));
    assert!(other.contains("has become"), "{other}");
    let parts = said(|observed| drop(observed.open.insert("key-1".to_owned(), (id(1), 2))));
    assert!(parts.contains("2 messages of 1"), "{parts}");
    let both = said(|observed| values(observed).push(there("of 3.")));
    assert!(both.contains("open and visible"), "{both}");
}

#[test]
fn topics_and_groups_that_are_lost_back_or_changed_are_found() {
    let lost = said(|observed| observed.topics.clear());
    assert!(lost.contains("topic `t` is lost"), "{lost}");
    let back = said(|observed| {
        let mut gone = observed.topics["t"].clone();
        gone.id = TopicId(8);
        gone.queues[0].values.clear();
        observed.topics.insert("gone".to_owned(), gone);
    });
    assert!(back.contains("topic `gone` is back"), "{back}");
    let other = said(|observed| observed.topics.get_mut("t").unwrap().id = TopicId(9));
    assert!(other.contains("invented"), "{other}");
    let changed = said(|observed| observed.topics.get_mut("t").unwrap().settings.consumed = true);
    assert!(changed.contains("expected was"), "{changed}");
    let lost = said(|observed| observed.groups.clear());
    assert!(lost.contains("group `g` is lost"), "{lost}");
    let cursor = |cursor| {
        said(move |observed| {
            let group = observed.groups.get_mut("g").unwrap();
            group.cursors.insert(0, cursor);
        })
    };
    assert!(cursor(1).contains("everything before 2 was acknowledged"));
    assert!(cursor(4).contains("asked for no more than 3"));
}

#[test]
fn a_cut_of_the_power_takes_what_was_only_in_memory_and_what_came_later() {
    let (mut ledger, mut observed) = (ledger(), observed());
    let number = ledger.batch_of("c.").unwrap().0;
    ledger.sent.get_mut(&number).unwrap().placed = Known::There(40, (2, Durability::Memory));
    values(&mut observed).truncate(2);
    let cursors = &mut observed.groups.get_mut("g").unwrap().cursors;
    cursors.insert(0, 1);
    // Before the transaction was committed.
    observed.open = [
        ("key-0".to_owned(), (id(0), 1)),
        ("key-1".to_owned(), (id(1), 1)),
        ("key-2".to_owned(), (id(2), 1)),
        ("key-3".to_owned(), (id(3), 1)),
    ]
    .into();
    check(&ledger, &observed, Death::PowerCut, 95).unwrap_err();
    observed.groups.get_mut("g").unwrap().cursors.insert(0, 0);
    let mut gone = observed.topics["t"].clone();
    gone.id = TopicId(8);
    gone.queues[0].values = vec![there("of gone.")];
    observed.topics.insert("gone".to_owned(), gone);
    check(&ledger, &observed, Death::PowerCut, 95).unwrap();
    // And later than what is there.
    let said = check(&ledger, &observed, Death::PowerCut, DEATH).unwrap_err();
    assert!(said.contains("is back"), "{said}");
}

#[test]
fn what_was_settled_stays_so() {
    let mut ledger = ledger();
    let mut without = observed();
    values(&mut without).truncate(4);
    settle(&mut ledger, &without);
    check(&ledger, &without, Death::Killed, u64::MAX).unwrap();
    let came = check(&ledger, &observed(), Death::Killed, u64::MAX).unwrap_err();
    assert!(came.contains("never stored"), "{came}");
    let mut ledger = self::ledger();
    settle(&mut ledger, &observed());
    let went = check(&ledger, &without, Death::Killed, u64::MAX).unwrap_err();
    assert!(went.contains("lost: `d.`"), "{went}");
}
