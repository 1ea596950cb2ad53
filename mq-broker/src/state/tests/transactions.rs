//! Transactions: visibility, first decision, keys, memory of decisions, counted questions.

use super::effects::Half;
use super::*;

fn small() -> Limits {
    Limits {
        transactions_max: 100,
        decisions_max: 3,
        ..Limits::default()
    }
}

#[test]
fn half_messages_are_in_no_queue_until_committed_then_all_at_once() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 2);
    bench.apply(Command::Append(part(queues[0], 7)));
    let number = bench.open(&[part(queues[0], 2), part(queues[1], 3), part(queues[0], 1)]);
    let opened = bench.state.at().lsn;
    assert_eq!(
        number,
        TransactionNumber(opened.0),
        "counted from 0, the number is the lsn"
    );
    assert_eq!((bench.end(queues[0]), bench.end(queues[1])), (7, 0));
    assert_eq!(bench.effects.placements, []);

    let answer = ended(bench.apply(end(number, Decision::Commit)));
    assert_eq!(answer.state, TransactionState::Committed);
    assert!(!answer.already);
    let expected = [
        (queues[0], Offset(7)),
        (queues[1], Offset(0)),
        (queues[0], Offset(9)),
    ];
    assert_eq!(answer.placed, expected);
    assert_eq!((bench.end(queues[0]), bench.end(queues[1])), (10, 3));
    for (index, placement) in (0..).zip(&bench.effects.placements) {
        let batch = BatchAt { lsn: opened, index };
        assert_eq!(placement.source, Source::Half(batch));
    }
    assert_eq!(bench.effects.placements.len(), 3);
}

#[test]
fn rolled_back_messages_never_get_an_offset() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 2)]);
    let answer = ended(bench.apply(end(number, Decision::Rollback)));
    assert_eq!(answer.state, TransactionState::RolledBack);
    assert_eq!(answer.placed, []);
    assert_eq!(bench.effects.placements, []);
    assert_eq!(bench.end(queues[0]), 0);
}

#[test]
fn transaction_becomes_visible_at_the_strictest_floor_of_its_topics() {
    let mut bench = Bench::new();
    let mut memory = declaration("fast", 1, &["here"]);
    memory.durability = Durability::Memory;
    bench.apply(Command::CreateTopic(memory));
    let fast = QueueKey(0);
    let safe = bench.topic("safe", 1)[0];
    for (parts, level) in [
        (vec![part(fast, 1)], Durability::Memory),
        (vec![part(fast, 1), part(safe, 1)], Durability::Fsynced),
    ] {
        let number = bench.open(&parts);
        bench.apply(end(number, Decision::Commit));
        for placement in &bench.effects.placements {
            assert_eq!(placement.visible_at, level);
        }
    }
}

#[test]
fn unknown_changes_nothing() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 1)]);
    let before = bench.state.rows().transactions;
    let answer = ended(bench.apply(end(number, Decision::Unknown)));
    assert_eq!((answer.state, answer.already), (TransactionState::Open, false));
    assert_eq!(bench.state.rows().transactions, before);
    assert_eq!(bench.effects, Effects::default());
}

#[test]
fn repeated_decision_is_answered_already_with_the_same_placement() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 2)]);
    let first = ended(bench.apply(end(number, Decision::Commit)));
    bench.apply(Command::Append(part(queues[0], 5)));
    let again = ended(bench.apply(end(number, Decision::Commit)));
    assert!(again.already);
    assert_eq!((again.placed, again.lsn), (first.placed, first.lsn));
    assert_eq!(bench.end(queues[0]), 7);
}

#[test]
fn opposite_decision_is_a_conflict_and_the_first_stays() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    for (first, second, state) in [
        (Decision::Commit, Decision::Rollback, TransactionState::Committed),
        (Decision::Rollback, Decision::Commit, TransactionState::RolledBack),
    ] {
        let number = bench.open(&[part(queues[0], 1)]);
        bench.apply(end(number, first));
        let end_before = bench.end(queues[0]);
        let refusal = refused(bench.apply(end(number, second)));
        assert_eq!(refusal, Refusal::Conflict { number, state });
        assert_eq!(bench.end(queues[0]), end_before);
        assert_eq!(bench.state.decided(number).unwrap().state(), state);
    }
}

#[test]
fn transaction_that_never_was_is_unknown() {
    let mut bench = Bench::new();
    bench.topic("t", 1);
    let refusal = refused(bench.apply(end(TransactionNumber(999), Decision::Commit)));
    assert_eq!(refusal, Refusal::UnknownTransaction(TransactionNumber(999)));
}

#[test]
fn halves_of_one_entry_get_numbers_of_their_own() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let parts = [part(queues[0], 1)];
    let outcomes = bench.entry(vec![
        half(None, 1, &parts),
        half(None, 1, &parts),
        half(None, 1, &parts),
    ]);
    let lsn = bench.state.at().lsn.0;
    let numbers: Vec<u64> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Half { number, .. } => number.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [lsn, lsn + 1, lsn + 2]);
    // The number of the next entry's lsn is taken: the next transaction gets the number after it.
    assert_eq!(bench.open(&parts).0, lsn + 3);
    let third = bench.state.transaction(TransactionNumber(lsn + 2)).unwrap().first;
    assert_eq!(
        third,
        BatchAt {
            lsn: Lsn(lsn),
            index: 2
        }
    );
}

#[test]
fn half_for_a_queue_that_is_gone_is_refused() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let refusal = refused(bench.apply(half(None, 1, &[part(queues[0], 1), part(QueueKey(9), 1)])));
    assert_eq!(refusal, Refusal::UnknownQueue);
    let refusal = refused(bench.apply(half(None, 1, &[])));
    assert!(matches!(refusal, Refusal::Invalid(_)));
    assert_eq!(bench.state.transactions().len(), 0);
}

#[test]
fn keys_belong_to_their_producer_group() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let parts = [part(queues[0], 1)];
    bench.apply(half(Some("k"), 1, &parts));
    let Command::SendHalf(mut other) = half(Some("k"), 2, &parts) else {
        unreachable!()
    };
    other.producer_group = group_name("payments");
    assert!(matches!(
        bench.apply(Command::SendHalf(other)),
        Outcome::Half { .. }
    ));
    assert_eq!(bench.state.transactions().len(), 2);
}

#[test]
fn decisions_are_kept_a_day_by_entry_time() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let parts = [part(queues[0], 1)];
    let Outcome::Half { number, .. } = bench.apply(half(Some("k"), 1, &parts)) else {
        panic!()
    };
    bench.apply(end(number, Decision::Commit));
    bench.pass(24 * 3_600_000 - 1);
    assert!(ended(bench.apply(end(number, Decision::Commit))).already);
    bench.pass(1);
    let refusal = refused(bench.apply(end(number, Decision::Commit)));
    assert_eq!(refusal, Refusal::UnknownTransaction(number));
    // The key is free again, for other messages too.
    let outcome = bench.apply(half(Some("k"), 2, &parts));
    assert!(matches!(
        outcome,
        Outcome::Half {
            state: TransactionState::Open,
            ..
        }
    ));
}

#[test]
fn too_many_decisions_push_out_the_oldest_but_none_younger_than_ten_minutes() {
    let mut bench = Bench::with(small());
    let queues = bench.topic("t", 1);
    let parts = [part(queues[0], 1)];
    let waiting: Vec<TransactionNumber> = (0..5).map(|_| bench.open(&parts)).collect();
    for number in &waiting[..4] {
        bench.apply(end(*number, Decision::Commit));
        bench.pass(1000);
    }
    // Four are remembered, one more than the limit, and all are young: no new halves, but decisions are
    // always taken.
    let refusal = refused(bench.apply(half(None, 1, &parts)));
    assert!(matches!(refusal, Refusal::TransactionsFull { .. }), "{refusal}");
    let definite = refusal.to_error(bench.state.shard());
    assert_eq!(definite.code, mq_common::ErrorCode::Overloaded);
    ended(bench.apply(end(waiting[4], Decision::Rollback)));
    for number in &waiting[..4] {
        assert!(ended(bench.apply(end(*number, Decision::Commit))).already);
    }
    bench.pass(600_000);
    bench.entry(vec![]);
    assert!(bench.state.decided(waiting[0]).is_none());
    assert!(bench.state.decided(waiting[1]).is_none());
    assert!(bench.state.decided(waiting[2]).is_some(), "three stay");
    // What is left is old enough to go: a day of more transactions than are remembered must not stop.
    for _ in 0..10 {
        let number = bench.open(&parts);
        ended(bench.apply(end(number, Decision::Commit)));
        bench.pass(600_000);
    }
}

#[test]
fn fifteen_counted_questions_park_a_transaction() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 1)]);
    let count = || Command::CountChecks {
        numbers: vec![number],
    };
    for asked in 1..=14 {
        bench.apply(count());
        let open = bench.state.transaction(number).unwrap();
        assert_eq!((open.asked, open.state()), (asked, TransactionState::Open));
    }
    bench.apply(count());
    assert!(
        bench
            .effects
            .transactions
            .contains(&TransactionChange::Parked { number })
    );
    let open = bench.state.transaction(number).unwrap();
    assert_eq!(open.parked, Some(ParkReason::TooManyChecks));
    bench.apply(count());
    assert_eq!(
        bench.state.transaction(number).unwrap().asked,
        15,
        "a parked one is not asked for"
    );
}

#[test]
fn parked_transaction_is_decided_by_a_person_or_a_late_producer() {
    for decision in [Decision::Commit, Decision::Rollback] {
        let mut bench = Bench::new();
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 4)]);
        for _ in 0..15 {
            bench.apply(Command::CountChecks {
                numbers: vec![number],
            });
        }
        let unknown = ended(bench.apply(end(number, Decision::Unknown)));
        assert_eq!(unknown.state, TransactionState::Parked);
        let answer = ended(bench.apply(end(number, decision)));
        let committed = decision == Decision::Commit;
        assert_eq!(answer.state == TransactionState::Committed, committed);
        assert_eq!(bench.end(queues[0]), if committed { 4 } else { 0 });
    }
}

#[test]
fn transaction_that_nobody_decides_for_a_day_is_parked_not_dropped() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let old = bench.open(&[part(queues[0], 1)]);
    bench.pass(3_600_000);
    let young = bench.open(&[part(queues[0], 1)]);
    bench.pass(23 * 3_600_000);
    bench.entry(vec![]);
    assert_eq!(
        bench.state.transaction(old).unwrap().parked,
        Some(ParkReason::NoDecision)
    );
    assert_eq!(bench.state.transaction(young).unwrap().parked, None);
    ended(bench.apply(end(old, Decision::Commit)));
    assert_eq!(bench.end(queues[0]), 1);
}

#[test]
fn parked_transaction_that_is_resumed_begins_anew_with_its_questions_and_its_time() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 1)]);
    let resume = Command::ResumeTransaction { number };
    assert_eq!(bench.apply(resume.clone()), Outcome::Resumed { already: true });
    let count = || Command::CountChecks {
        numbers: vec![number],
    };
    bench.pass(24 * 3_600_000);
    bench.entry(vec![]);
    bench.restart();
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        Some(ParkReason::NoDecision)
    );

    assert_eq!(bench.apply(resume.clone()), Outcome::Resumed { already: false });
    assert_eq!(
        bench.effects.transactions,
        [TransactionChange::Resumed { number }]
    );
    let dirty = bench.state.take_changes().rows.transactions;
    assert_eq!(dirty.iter().map(|row| row.parked).collect::<Vec<_>>(), [None]);
    bench.restart();
    for _ in 0..14 {
        bench.apply(count());
    }
    bench.pass(24 * 3_600_000 - 1);
    bench.entry(vec![]);
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        None,
        "a day from now on"
    );
    bench.apply(count());
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        Some(ParkReason::TooManyChecks)
    );

    assert_eq!(bench.apply(resume.clone()), Outcome::Resumed { already: false });
    bench.pass(24 * 3_600_000);
    bench.entry(vec![]);
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        Some(ParkReason::NoDecision)
    );
    ended(bench.apply(end(number, Decision::Commit)));
    let refusal = refused(bench.apply(resume));
    assert!(matches!(refusal, Refusal::Conflict { .. }), "{refusal}");
    let unknown = refused(bench.apply(Command::ResumeTransaction {
        number: TransactionNumber(999),
    }));
    assert_eq!(unknown, Refusal::UnknownTransaction(TransactionNumber(999)));
}

#[test]
fn transaction_that_can_only_be_rolled_back_is_not_resumed() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let number = bench.open(&[part(queues[0], 1)]);
    let mut tombstone = bench.state.topic(&topic_name("t")).unwrap().declaration.clone();
    (tombstone.version, tombstone.deleted) = (2, true);
    bench.apply(Command::AdoptTopic {
        declaration: tombstone,
        drop_transactions: false,
    });
    assert_eq!(
        refused(bench.apply(end(number, Decision::Commit))),
        Refusal::TargetGone(number)
    );
    let resumed = bench.apply(Command::ResumeTransaction { number });
    assert_eq!(refused(resumed), Refusal::TargetGone(number));
    assert_eq!(
        bench.state.transaction(number).unwrap().parked,
        Some(ParkReason::TargetGone)
    );
    ended(bench.apply(end(number, Decision::Rollback)));
}

#[test]
fn moved_half_messages_are_as_before_but_for_where_they_lie() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let parts = [part(queues[0], 2), part(queues[0], 1)];
    let number = bench.open(&parts);
    let before = bench.state.transaction(number).unwrap().clone();
    let move_to = |parts: &[Part]| Command::MoveHalf {
        number,
        parts: parts.to_vec(),
    };
    for parts in [&parts[..1], &[parts[1], parts[0]]] {
        let refusal = refused(bench.apply(move_to(parts)));
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
        assert_eq!(bench.state.transaction(number), Some(&before));
    }
    assert_eq!(bench.apply(move_to(&parts)), Outcome::Done);
    let first = BatchAt {
        lsn: bench.state.at().lsn,
        index: 0,
    };
    let to = Half { first, batches: 2 };
    let moved = TransactionChange::Moved {
        number,
        from: before.half(),
        to,
    };
    assert_eq!(bench.effects.transactions, [moved]);
    assert_eq!(bench.end(queues[0]), 0);
    bench.restart();
    let expected = Transaction { first, ..before };
    assert_eq!(bench.state.transaction(number), Some(&expected));
    assert!(bench.state.transactions_in(first.lsn).eq([&expected]));
    assert_eq!(bench.state.transactions_in(before.first.lsn).count(), 0);
    ended(bench.apply(end(number, Decision::Commit)));
    let sources: Vec<_> = bench
        .effects
        .placements
        .iter()
        .map(|placed| placed.source)
        .collect();
    let expected = [0, 1].map(|index| Source::Half(BatchAt { index, ..first }));
    assert_eq!(sources, expected);
    assert_eq!(bench.state.transactions_in(first.lsn).count(), 0);
    let refusal = refused(bench.apply(move_to(&parts)));
    assert_eq!(refusal, Refusal::UnknownTransaction(number));
    assert_eq!(bench.effects.transactions, []);
}
