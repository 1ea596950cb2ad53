//! When questions are asked, of whom, and what counts.

use std::time::{Duration, Instant};

use fastrand::Rng;
use mq_common::ids::{GroupName, MemberId, Timestamp, TransactionNumber};

use crate::ids::BatchAt;
use crate::state::{ParkReason, Transaction};
use crate::volatile::{Checks, Schedule};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    checks: Checks,
    start: Instant,
    rng: Rng,
}

fn group() -> GroupName {
    GroupName::new("orders").unwrap()
}

fn poller(name: &str) -> MemberId {
    MemberId(name.to_owned())
}

fn transaction(number: u64, asked: u32) -> Transaction {
    Transaction {
        number: TransactionNumber(number),
        first: BatchAt::default(),
        producer_group: group(),
        key: None,
        checksum: 0,
        since: Timestamp(0),
        check_after_ms: 6000,
        asked,
        parked: None,
        parts: vec![],
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            checks: Checks::new(Schedule::default()),
            start: Instant::now(),
            rng: Rng::with_seed(1),
        }
    }

    fn opened(&mut self, at: Duration, number: u64) {
        let now = self.start + at;
        self.checks
            .opened(now, &transaction(number, 0), Duration::ZERO, &mut self.rng);
    }

    fn poll(&mut self, at: Duration, who: &str) -> Vec<u64> {
        let taken = self.checks.poll(self.start + at, &group(), &poller(who), 32);
        taken.into_iter().map(|number| number.0).collect()
    }

    fn named(&mut self, at: Duration, who: &str, number: u64) -> bool {
        let now = self.start + at;
        self.checks.named(
            now,
            &group(),
            &poller(who),
            TransactionNumber(number),
            &mut self.rng,
        )
    }

    fn due(&self) -> Duration {
        self.checks.next_due(&group()).unwrap() - self.start
    }
}

#[test]
fn first_question_comes_after_its_own_delay_and_not_before() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    assert_eq!(bench.due(), 6 * SECOND);
    assert!(bench.poll(6 * SECOND - Duration::from_millis(1), "a").is_empty());
    assert_eq!(bench.poll(6 * SECOND, "a"), [1]);
}

#[test]
fn question_goes_to_one_poller_at_a_time() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    assert_eq!(bench.poll(7 * SECOND, "a"), [1]);
    assert!(bench.poll(7 * SECOND, "b").is_empty());
    assert!(bench.poll(8 * SECOND, "a").is_empty());
}

#[test]
fn question_counts_once_and_only_from_the_poller_that_has_it() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    assert!(!bench.named(7 * SECOND, "a", 1), "nobody has it");
    bench.poll(7 * SECOND, "a");
    assert!(!bench.named(8 * SECOND, "b", 1), "another one has it");
    assert!(bench.named(8 * SECOND, "a", 1));
    assert!(!bench.named(8 * SECOND, "a", 1), "it counted already");
}

#[test]
fn question_of_another_group_does_not_count() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    bench.poll(7 * SECOND, "a");
    let other = GroupName::new("payments").unwrap();
    let now = bench.start + 8 * SECOND;
    assert!(
        !bench
            .checks
            .named(now, &other, &poller("a"), TransactionNumber(1), &mut bench.rng)
    );
}

#[test]
fn question_that_died_with_its_poller_goes_to_another_uncounted() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    assert_eq!(bench.poll(6 * SECOND, "a"), [1]);
    assert!(bench.poll(35 * SECOND, "b").is_empty());
    assert_eq!(bench.poll(36 * SECOND, "b"), [1]);
    assert!(!bench.named(37 * SECOND, "a", 1), "it came back too late");
    assert!(bench.named(37 * SECOND, "b", 1));
}

#[test]
fn without_pollers_a_question_waits_and_does_not_count() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    let day = 86_400 * SECOND;
    assert_eq!(bench.due(), 6 * SECOND);
    assert_eq!(bench.poll(day, "a"), [1], "the first one that comes gets it");
    assert!(bench.named(day, "a", 1));
    let wait = bench.due().saturating_sub(day);
    assert!(wait < 34 * SECOND, "and it was the first that counts: {wait:?}");
}

#[test]
fn waits_double_up_to_ten_minutes_with_a_tenth_of_jitter() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    let mut now = 6 * SECOND;
    for expected in [30, 60, 120, 240, 480, 600, 600, 600] {
        assert_eq!(bench.poll(now, "a"), [1]);
        assert!(bench.named(now, "a", 1));
        let wait = (bench.due() - now).as_secs_f64() / f64::from(expected);
        assert!((0.9..=1.1).contains(&wait), "{wait} of {expected} s");
        now = bench.due();
    }
}

#[test]
fn jitter_spreads_transactions_of_one_moment() {
    let mut bench = Bench::new();
    for number in 0..100_u64 {
        bench.opened(Duration::ZERO, number);
    }
    let mut dues = Vec::new();
    for _ in 0..4 {
        for number in bench.poll(6 * SECOND, "a") {
            assert!(bench.named(6 * SECOND, "a", number));
        }
    }
    while let Some(due) = bench.checks.next_due(&group()) {
        let number = bench.checks.poll(due, &group(), &poller("a"), 1)[0];
        dues.push(due);
        bench.checks.forget(number);
    }
    assert_eq!(dues.len(), 100);
    assert!(dues[99] - dues[0] > 4 * SECOND, "over six seconds, about");
}

#[test]
fn poll_takes_no_more_than_it_asks_for_and_the_longest_due_first() {
    let mut bench = Bench::new();
    for number in [3, 1, 2] {
        bench.opened(number * SECOND, u64::from(number));
    }
    let taken = bench
        .checks
        .poll(bench.start + 60 * SECOND, &group(), &poller("a"), 2);
    assert_eq!(taken, [TransactionNumber(1), TransactionNumber(2)]);
}

#[test]
fn decided_or_parked_transaction_is_not_asked_about() {
    let mut bench = Bench::new();
    bench.opened(Duration::ZERO, 1);
    bench.checks.forget(TransactionNumber(1));
    assert!(bench.checks.is_empty());
    assert_eq!(bench.checks.next_due(&group()), None);
    assert!(bench.poll(60 * SECOND, "a").is_empty());
    let parked = Transaction {
        parked: Some(ParkReason::TooManyChecks),
        ..transaction(2, 15)
    };
    let now = bench.start;
    bench.checks.opened(now, &parked, Duration::ZERO, &mut bench.rng);
    assert_eq!(bench.checks.len(), 0);
}

#[test]
fn after_a_restart_questions_go_on_from_the_state() {
    let mut bench = Bench::new();
    let now = bench.start;
    // Never asked and four seconds old; never asked and overdue; asked three times.
    bench
        .checks
        .opened(now, &transaction(1, 0), 4 * SECOND, &mut bench.rng);
    bench
        .checks
        .opened(now, &transaction(2, 0), 60 * SECOND, &mut bench.rng);
    bench
        .checks
        .opened(now, &transaction(3, 3), 600 * SECOND, &mut bench.rng);
    assert_eq!(bench.poll(Duration::ZERO, "a"), [2]);
    assert_eq!(bench.poll(2 * SECOND, "a"), [1]);
    bench.checks.forget(TransactionNumber(1));
    bench.checks.forget(TransactionNumber(2));
    let due = bench.due();
    assert!(
        (108 * SECOND..=132 * SECOND).contains(&due),
        "two minutes, give or take a tenth: {due:?}"
    );
    assert_eq!(bench.poll(132 * SECOND, "b"), [3]);
}
