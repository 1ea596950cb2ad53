//! Questions about undecided transactions: when each is due, and which poller has it. Pure.
//!
//! Producers of the group poll for questions; a question goes to one poller. It counts when that poller's
//! answer or next poll names it, so a poller that dies with it costs no attempt: after a while the question
//! goes to another. While no producer polls, questions wait, uncounted, for as long as it takes. After a
//! start everything is rebuilt from the state; only which poller had which question is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mq_common::ids::{GroupName, MemberId, TransactionNumber};

use crate::state::Transaction;

/// A poll that waits for a question checks again at least this often, so it need not be notified of what
/// becomes due.
pub const POLL_TICK: Duration = Duration::from_secs(1);

/// When questions are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The wait after the first question that counted; doubled after each further one.
    pub again: Duration,
    /// The longest wait between two questions.
    pub again_max: Duration,
    /// A question that a poller took and never named goes to another after this.
    pub lost: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            again: Duration::from_secs(30),
            again_max: Duration::from_secs(600),
            lost: Duration::from_secs(30),
        }
    }
}

/// All questions of this broker.
#[derive(Debug, Default)]
pub struct Checks {
    schedule: Schedule,
    questions: BTreeMap<TransactionNumber, Question>,
    /// For each producer group, its questions in the order they are due.
    due: BTreeMap<GroupName, BTreeSet<(Instant, TransactionNumber)>>,
}

#[derive(Debug)]
struct Question {
    group: GroupName,
    asked: u32,
    due: Instant,
    /// The poller that has it.
    with: Option<MemberId>,
}

impl Checks {
    /// No questions yet.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            ..Self::default()
        }
    }

    /// A transaction is open: new, or found in the state at start. `age` is how long ago its half messages
    /// were stored.
    pub fn opened(&mut self, now: Instant, transaction: &Transaction, age: Duration, rng: &mut Rng) {
        if transaction.parked.is_some() {
            return;
        }
        let wait = if transaction.asked == 0 {
            Duration::from_millis(u64::from(transaction.check_after_ms)).saturating_sub(age)
        } else {
            self.wait_after(transaction.asked, rng)
        };
        self.forget(transaction.number);
        self.put(
            transaction.number,
            Question {
                group: transaction.producer_group.clone(),
                asked: transaction.asked,
                due: now + wait,
                with: None,
            },
        );
    }

    /// It is decided or parked: its producers are no longer asked.
    pub fn forget(&mut self, number: TransactionNumber) {
        if let Some(question) = self.questions.remove(&number) {
            self.unschedule(&question.group, question.due, number);
        }
    }

    /// A poller takes up to `max` questions that are due, the longest due first.
    pub fn poll(
        &mut self,
        now: Instant,
        group: &GroupName,
        poller: &MemberId,
        max: usize,
    ) -> Vec<TransactionNumber> {
        let Some(due) = self.due.get(group) else {
            return Vec::new();
        };
        let taken: Vec<TransactionNumber> = due
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(max)
            .map(|(_, number)| *number)
            .collect();
        let lost_at = now + self.schedule.lost;
        for number in &taken {
            self.reschedule(*number, lost_at, |question| question.with = Some(poller.clone()));
        }
        taken
    }

    /// A poller's answer or next poll names a question. `true`: it counts, log it. `false`: this poller does
    /// not have it, or no longer.
    pub fn named(
        &mut self,
        now: Instant,
        group: &GroupName,
        poller: &MemberId,
        number: TransactionNumber,
        rng: &mut Rng,
    ) -> bool {
        let counts = self
            .questions
            .get(&number)
            .filter(|question| question.group == *group && question.with.as_ref() == Some(poller))
            .map(|question| question.asked + 1);
        let Some(asked) = counts else { return false };
        let due = now + self.wait_after(asked, rng);
        self.reschedule(number, due, |question| {
            question.asked = asked;
            question.with = None;
        });
        true
    }

    /// When the next question of a group is due: a poll waits until then at most.
    #[must_use]
    pub fn next_due(&self, group: &GroupName) -> Option<Instant> {
        self.due.get(group)?.first().map(|(at, _)| *at)
    }

    /// Transactions whose producers are to be asked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// `again * 2^(asked-1)`, at most `again_max`, plus or minus a tenth: spreads transactions of the same
    /// moment.
    fn wait_after(&self, asked: u32, rng: &mut Rng) -> Duration {
        let doublings = asked.saturating_sub(1).min(20);
        let wait = self
            .schedule
            .again
            .saturating_mul(1 << doublings)
            .min(self.schedule.again_max);
        wait.mul_f64(0.9 + 0.2 * rng.f64())
    }

    fn put(&mut self, number: TransactionNumber, question: Question) {
        self.due
            .entry(question.group.clone())
            .or_default()
            .insert((question.due, number));
        self.questions.insert(number, question);
    }

    fn reschedule(&mut self, number: TransactionNumber, due: Instant, change: impl FnOnce(&mut Question)) {
        if let Some(mut question) = self.questions.remove(&number) {
            self.unschedule(&question.group, question.due, number);
            question.due = due;
            change(&mut question);
            self.put(number, question);
        }
    }

    fn unschedule(&mut self, group: &GroupName, due: Instant, number: TransactionNumber) {
        if let Some(questions) = self.due.get_mut(group) {
            questions.remove(&(due, number));
            if questions.is_empty() {
                self.due.remove(group);
            }
        }
    }
}
