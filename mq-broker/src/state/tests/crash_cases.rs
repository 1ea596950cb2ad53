//! The table of crash cases of transactions, as far as the state decides them: after each step the process
//! may die and start again from a checkpoint.

use super::*;

/// Runs a case with and without a restart after each step.
fn each_way(case: impl Fn(&mut Bench, &mut dyn FnMut(&mut Bench))) {
    for restarts in [false, true] {
        let mut bench = Bench::new();
        case(&mut bench, &mut |bench: &mut Bench| {
            if restarts {
                bench.restart();
            }
        });
    }
}

#[test]
fn producer_dies_before_its_local_commit_and_another_answers_rollback() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        crash(bench);
        // Another producer of the group finds no row in its database.
        let answer = ended(bench.apply(end(number, Decision::Rollback)));
        assert_eq!(answer.state, TransactionState::RolledBack);
        crash(bench);
        assert_eq!(bench.end(queues[0]), 0);
        assert_eq!(bench.state.transactions().len(), 0);
    });
}

#[test]
fn producer_dies_after_its_local_commit_and_another_answers_commit() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 2);
        let number = bench.open(&[part(queues[0], 1), part(queues[1], 2)]);
        crash(bench);
        bench.apply(Command::CountChecks {
            numbers: vec![number],
        });
        crash(bench);
        assert_eq!(bench.state.transaction(number).unwrap().asked, 1);
        ended(bench.apply(end(number, Decision::Commit)));
        crash(bench);
        assert_eq!((bench.end(queues[0]), bench.end(queues[1])), (1, 2));
    });
}

#[test]
fn answer_to_the_end_is_lost_and_the_retry_gets_the_same_offset() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        let lost = ended(bench.apply(end(number, Decision::Commit)));
        crash(bench);
        let retry = ended(bench.apply(end(number, Decision::Commit)));
        assert!(retry.already);
        assert_eq!(retry.placed, lost.placed);
        assert_eq!(bench.end(queues[0]), 1, "committed once");
    });
}

#[test]
fn broker_dies_before_the_decision_is_in_the_log_and_it_is_still_open() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        let rows = bench.state.rows();
        bench.apply(end(number, Decision::Commit));
        // The entry was never synced: the next process knows nothing of it.
        bench.state = State::load(shard(), Limits::default(), rows).unwrap();
        crash(bench);
        assert_eq!(
            bench.state.transaction(number).unwrap().state(),
            TransactionState::Open
        );
        let retry = ended(bench.apply(end(number, Decision::Commit)));
        assert!(!retry.already);
        assert_eq!(bench.end(queues[0]), 1);
    });
}

#[test]
fn half_sent_twice_with_its_key_is_one_transaction() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let send = || half(Some("order-17"), 0xabc, &[part(queues[0], 1)]);
        let first = bench.apply(send());
        crash(bench);
        assert_eq!(bench.apply(send()), first);
        assert_eq!(
            bench.effects,
            Effects::default(),
            "its batches are not kept a second time"
        );
        let Outcome::Half { number, .. } = first else {
            panic!()
        };
        ended(bench.apply(end(number, Decision::Commit)));
        crash(bench);
        let late = bench.apply(send());
        assert_eq!(
            late,
            Outcome::Half {
                number,
                state: TransactionState::Committed
            },
            "a late repetition learns how it ended"
        );
        assert_eq!(bench.end(queues[0]), 1);
    });
}

#[test]
fn same_key_with_other_messages_is_an_error_before_and_after_the_decision() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let parts = [part(queues[0], 1)];
        let Outcome::Half { number, .. } = bench.apply(half(Some("order-17"), 1, &parts)) else {
            panic!()
        };
        crash(bench);
        let refusal = refused(bench.apply(half(Some("order-17"), 2, &parts)));
        assert_eq!(refusal, Refusal::KeyReused(number));
        ended(bench.apply(end(number, Decision::Rollback)));
        crash(bench);
        let refusal = refused(bench.apply(half(Some("order-17"), 2, &parts)));
        assert_eq!(refusal, Refusal::KeyReused(number));
    });
}

#[test]
fn local_transaction_slower_than_the_first_question_costs_one_count() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        // The answer is `unknown`: the question counts, nothing else happens.
        bench.apply(Command::CountChecks {
            numbers: vec![number],
        });
        crash(bench);
        let open = bench.state.transaction(number).unwrap();
        assert_eq!((open.asked, open.state()), (1, TransactionState::Open));
        let answer = ended(bench.apply(end(number, Decision::Commit)));
        assert_eq!(answer.state, TransactionState::Committed);
    });
}

#[test]
fn target_deleted_before_the_commit_parks_it_and_places_nothing() {
    each_way(|bench, crash| {
        let kept = bench.topic("kept", 1);
        let mut list = declaration("gone", 1, &["there", "here"]);
        list.version = 1;
        let adopt = |declaration| Command::AdoptTopic {
            declaration,
            drop_transactions: false,
        };
        bench.apply(adopt(list.clone()));
        let gone = bench
            .state
            .queue_key(&topic_name("gone"), QueueNumber(1))
            .unwrap();
        let number = bench.open(&[part(kept[0], 1), part(gone, 1)]);
        list.version = 2;
        list.deleted = true;
        bench.apply(adopt(list));
        crash(bench);
        for _ in 0..2 {
            let refusal = refused(bench.apply(end(number, Decision::Commit)));
            assert_eq!(refusal, Refusal::TargetGone(number));
            crash(bench);
            assert_eq!(bench.end(kept[0]), 0, "all or nothing");
            let open = bench.state.transaction(number).unwrap();
            assert_eq!(open.parked, Some(ParkReason::TargetGone));
            assert_eq!(open.parts.len(), 2, "nothing of it is dropped");
        }
    });
}

#[test]
fn producer_group_that_never_returns_leaves_it_parked() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        crash(bench);
        bench.pass(24 * 3_600_000);
        bench.entry(vec![]);
        crash(bench);
        let open = bench.state.transaction(number).unwrap();
        assert_eq!((open.asked, open.parked), (0, Some(ParkReason::NoDecision)));
    });
}

#[test]
fn decisions_that_race_are_ordered_by_the_log_and_the_first_wins() {
    each_way(|bench, crash| {
        let queues = bench.topic("t", 1);
        let number = bench.open(&[part(queues[0], 1)]);
        crash(bench);
        let outcomes = bench.entry(vec![
            end(number, Decision::Rollback),
            end(number, Decision::Commit),
            end(number, Decision::Rollback),
        ]);
        assert_eq!(ended(outcomes[0].clone()).state, TransactionState::RolledBack);
        assert!(matches!(outcomes[1], Outcome::Refused(Refusal::Conflict { .. })));
        assert!(ended(outcomes[2].clone()).already);
        crash(bench);
        assert_eq!(bench.end(queues[0]), 0);
    });
}
