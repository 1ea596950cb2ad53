//! Planted violations in a topic that compacts.

use mq_common::api::TopicSettings;
use mq_common::ids::{Durability, TopicId};

use super::check::{Death, check};
use super::check_tests::{DEATH, KEPT, at, sent, topic};
use super::ledger::{Known, Ledger};
use super::observed::{self, Observed};
use super::settle::settle;
use super::value::TOMBSTONE_MS;

const COMPACTING: TopicSettings = TopicSettings {
    compact: true,
    ..KEPT
};

/// What was sent to offsets 0 to 5; of the last one no receipt came.
const ALL: [&str; 6] = ["a=1.", "b=2.", "c=1.", "d.", "e=2.gone", "f=3."];

/// The tombstone is older than it has to be.
fn ledger(settings: TopicSettings) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.topics = vec![topic("t", 7, settings)];
    ledger.enter(sent(0, &ALL[..2], 10, at(20, 0)));
    ledger.enter(sent(0, &ALL[2..4], 30, at(40, 2)));
    ledger.enter(sent(0, &ALL[4..5], 50, at(60, 4)));
    ledger.enter(sent(0, &ALL[5..], 70, Known::Unknown));
    ledger
}

/// A hole where the text is empty.
fn observed(settings: TopicSettings, values: &[&str]) -> Observed {
    let values = values.iter().map(|value| match value.is_empty() {
        true => None,
        false => Some((*value).to_owned()),
    });
    let queue = observed::Queue {
        start: 0,
        values: values.collect(),
    };
    let found = observed::Topic {
        id: TopicId(7),
        version: 1,
        settings,
        queues: vec![queue],
    };
    Observed {
        topics: [("t".to_owned(), found)].into(),
        ..Observed::default()
    }
}

fn checked(values: &[&str]) -> Result<(), String> {
    let observed = observed(COMPACTING, values);
    check(&ledger(COMPACTING), &observed, Death::Killed, DEATH)
}

#[test]
fn what_a_later_message_of_the_key_took_the_place_of_may_be_there_or_not() {
    checked(&ALL).unwrap();
    checked(&ALL[..5]).unwrap();
    checked(&["", "b=2.", "c=1.", "d.", "e=2.gone", "f=3."]).unwrap();
    checked(&["", "", "c=1.", "d.", "e=2.gone"]).unwrap();
    checked(&["", "", "c=1.", "d.", ""]).unwrap();
    // Or the one without a receipt was there, and has gone for one that has none either.
    checked(&["", "", "c=1.", "d.", "", ""]).unwrap();
}

#[test]
fn the_newest_of_a_key_and_messages_without_one_that_are_gone_are_found() {
    let newest = checked(&["a=1.", "b=2.", "", "d.", "e=2.gone"]).unwrap_err();
    assert!(newest.contains("not whole: `d.`"), "{newest}");
    let both = checked(&["", "b=2.", "", "d.", "e=2.gone"]).unwrap_err();
    assert!(both.contains("not whole: `b=2.`"), "{both}");
    let without = checked(&["a=1.", "b=2.", "c=1.", "", "e=2.gone"]).unwrap_err();
    assert!(without.contains("not whole: `c=1.`"), "{without}");
    let batch = checked(&["", "", "", "", "e=2.gone"]).unwrap_err();
    assert!(batch.contains("lost: `a=1.`"), "{batch}");
    let cut = checked(&["a=1.", "b=2.", "c=1.", "d."]).unwrap_err();
    assert!(cut.contains("lost: `e=2.gone`"), "{cut}");
    let moved = checked(&["b=2.", "c=1.", "d.", "e=2.gone"]).unwrap_err();
    assert!(moved.contains("does not begin with it"), "{moved}");
    let other = checked(&["a=1.", "b=2.", "c=1.", "d.", "e=1.gone"]).unwrap_err();
    assert!(other.contains("invented"), "{other}");
}

#[test]
fn a_tombstone_goes_in_time_and_what_it_deleted_does_not_come_back() {
    let back = checked(&["", "b=2.", "c=1.", "d.", ""]).unwrap_err();
    assert!(back.contains("has key `2` at 1 again"), "{back}");
    let gone = observed(COMPACTING, &["", "", "c=1.", "d.", ""]);
    let mut ledger = ledger(COMPACTING);
    let number = ledger.batch_of("e=2.gone").unwrap().0;
    ledger.sent.get_mut(&number).unwrap().asked = DEATH - TOMBSTONE_MS * 1_000_000 / 2;
    let early = check(&ledger, &gone, Death::Killed, DEATH).unwrap_err();
    assert!(early.contains("lost: `b=2.`"), "{early}");
}

#[test]
fn holes_where_nothing_was_or_where_nothing_compacts_are_found() {
    let nothing = checked(&["", "b=2.", "c=1.", "d.", "e=2.gone", "", ""]).unwrap_err();
    assert!(nothing.contains("2 offsets in holes"), "{nothing}");
    let settled = observed(KEPT, &["", "b=2.", "c=1.", "d.", "e=2.gone"]);
    let kept = check(&ledger(KEPT), &settled, Death::Killed, DEATH).unwrap_err();
    assert!(kept.contains("never compacted"), "{kept}");
}

#[test]
fn a_pass_that_a_death_undid_is_none_and_what_never_came_does_not_come_later() {
    let mut ledger = ledger(COMPACTING);
    let compacted = observed(COMPACTING, &["", "", "c=1.", "d.", ""]);
    settle(&mut ledger, &compacted);
    check(&ledger, &compacted, Death::Killed, u64::MAX).unwrap();
    let undone = observed(COMPACTING, &ALL[..5]);
    check(&ledger, &undone, Death::Killed, u64::MAX).unwrap();
    assert!(compacted.is_like(&undone) && undone.is_like(&compacted));
    let late = observed(COMPACTING, &ALL);
    assert!(!late.is_like(&undone));
    let said = check(&ledger, &late, Death::Killed, u64::MAX).unwrap_err();
    assert!(said.contains("never stored"), "{said}");
    let other = observed(COMPACTING, &["", "", "c=1.", "d.", "f=3."]);
    assert!(!other.is_like(&undone));
}

#[test]
fn a_message_that_came_unanswered_and_went_for_a_later_one_may_come_back() {
    let mut ledger = ledger(COMPACTING);
    ledger.enter(sent(0, &["g=3."], 80, at(90, 6)));
    let values = |f: &'static str| ["", "", "c=1.", "d.", "e=2.gone", f, "g=3."];
    settle(&mut ledger, &observed(COMPACTING, &values("")));
    let back = observed(COMPACTING, &values("f=3."));
    check(&ledger, &back, Death::Killed, u64::MAX).unwrap();
    let (number, sent, _) = ledger.batch_of("f=3.").unwrap();
    assert_eq!((sent.placed, sent.below), (Known::Unknown, 7));
    settle(&mut ledger, &back);
    let placed = ledger.sent[&number].placed;
    assert_eq!(placed.there(), Some(&(5, Durability::Fsynced)));
}
