//! Transactions: half messages, one decision, questions counted. Pure.
//!
//! Undecided means `Open` or `Parked`; the first decision wins and is final. A commit assigns the offsets of
//! all batches of the transaction in one step; before it no queue knows of them.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::api::transaction::{Decision, TransactionState};
use mq_common::ids::{Durability, GroupName, Offset, Timestamp, TransactionNumber};

use super::command::{Part, SendHalf};
use super::decisions::{Decided, Decisions};
use super::effects::{Effects, Ended, Half, Outcome, Placement, Refusal, Source, TransactionChange};
use super::queues::Queues;
use super::{Limits, Moment, State};
use crate::ids::{BatchAt, QueueKey};

/// An undecided transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its number: the lsn of the entry that stored its half messages, plus what [`State::numbered_from`] was
    /// given; or the next free number, if one entry stored several transactions.
    pub number: TransactionNumber,
    /// Its first batch; the others follow in the same entry.
    pub first: BatchAt,
    /// The producer group that sent it.
    pub producer_group: GroupName,
    /// The application's key.
    pub key: Option<String>,
    /// Checksum of its messages.
    pub checksum: u64,
    /// When its half messages were stored, or when it was last resumed.
    pub since: Timestamp,
    /// First question after this many milliseconds.
    pub check_after_ms: u32,
    /// Questions counted.
    pub asked: u32,
    /// Why its producers are no longer asked; `None` = it is not parked.
    pub parked: Option<ParkReason>,
    /// Its batches and the queues that they are for.
    pub parts: Vec<Part>,
}

/// Why a transaction is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkReason {
    /// The maximum number of questions brought no decision.
    TooManyChecks,
    /// Its commit was requested, but one of its topics is deleted.
    TargetGone,
    /// It was not decided within a day.
    NoDecision,
}

impl ParkReason {
    /// As one word, which the catalog shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooManyChecks => "too_many_checks",
            Self::TargetGone => "target_gone",
            Self::NoDecision => "no_decision",
        }
    }

    /// Parses what [`Self::as_str`] returns.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::TooManyChecks, Self::TargetGone, Self::NoDecision]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

impl Transaction {
    /// Its state.
    #[must_use]
    pub const fn state(&self) -> TransactionState {
        if self.parked.is_some() {
            TransactionState::Parked
        } else {
            TransactionState::Open
        }
    }

    /// Its batches.
    #[must_use]
    pub fn half(&self) -> Half {
        Half {
            first: self.first,
            batches: u32::try_from(self.parts.len()).expect("an entry has fewer than 2^32 batches"),
        }
    }
}

/// All transactions: undecided, decided and remembered, and by key.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    pub(super) open: BTreeMap<TransactionNumber, Transaction>,
    /// Undecided transactions by the place of their half messages.
    pub(super) by_place: BTreeMap<BatchAt, TransactionNumber>,
    pub(super) decisions: Decisions,
    pub(super) last: TransactionNumber,
    /// Added to the lsn of an entry with half messages, this gives the transaction's number.
    pub(super) numbered_from: u64,
    /// Open ones that are not parked: the first has been open for longest.
    asked_for: BTreeSet<(Timestamp, TransactionNumber)>,
    keys: BTreeMap<(GroupName, String), TransactionNumber>,
    dirty: BTreeSet<TransactionNumber>,
    gone: Vec<TransactionNumber>,
}

impl State {
    pub(super) fn send_half(
        &mut self,
        at: &Moment,
        first: BatchAt,
        half: SendHalf,
        effects: &mut Effects,
    ) -> Outcome {
        if half.parts.is_empty() || half.parts.iter().any(|part| part.records == 0) {
            return Outcome::Refused(Refusal::Invalid(
                "a transaction has at least one batch, and a batch one record",
            ));
        }
        if let Some(known) = self.transactions.by_key(&half) {
            return known;
        }
        if half
            .parts
            .iter()
            .any(|part| self.queues.get(part.queue).is_none())
        {
            return Outcome::Refused(Refusal::UnknownQueue);
        }
        self.transactions.open(at, first, half, &self.limits, effects)
    }

    pub(super) fn end_transaction(
        &mut self,
        at: &Moment,
        number: TransactionNumber,
        decision: Decision,
        effects: &mut Effects,
    ) -> Outcome {
        let transactions = &mut self.transactions;
        if let Some(decided) = transactions.decisions.by_number.get(&number) {
            return repeated(decided, decision);
        }
        let Some(open) = transactions.open.get(&number) else {
            return Outcome::Refused(Refusal::UnknownTransaction(number));
        };
        match decision {
            Decision::Unknown => Outcome::Ended(Ended {
                state: open.state(),
                already: false,
                lsn: at.lsn,
                placed: Vec::new(),
            }),
            Decision::Rollback => {
                transactions.roll_back(at, number, effects);
                Outcome::Ended(Ended {
                    state: TransactionState::RolledBack,
                    already: false,
                    lsn: at.lsn,
                    placed: Vec::new(),
                })
            }
            Decision::Commit => transactions.commit(at, number, &mut self.queues, effects),
        }
    }

    /// Restarts the questions and the time of a parked transaction. One that can only be rolled back stays
    /// parked.
    pub(super) fn resume_transaction(
        &mut self,
        at: &Moment,
        number: TransactionNumber,
        effects: &mut Effects,
    ) -> Outcome {
        let transactions = &mut self.transactions;
        if let Some(decided) = transactions.decisions.by_number.get(&number) {
            let state = decided.state();
            return Outcome::Refused(Refusal::Conflict { number, state });
        }
        let Some(parked) = transactions.open.get_mut(&number) else {
            return Outcome::Refused(Refusal::UnknownTransaction(number));
        };
        if parked.parked.is_none() {
            return Outcome::Resumed { already: true };
        }
        if parked
            .parts
            .iter()
            .any(|part| self.queues.get(part.queue).is_none())
        {
            return Outcome::Refused(Refusal::TargetGone(number));
        }
        parked.parked = None;
        parked.asked = 0;
        parked.check_after_ms = 0;
        parked.since = at.time;
        transactions.asked_for.insert((at.time, number));
        transactions.dirty.insert(number);
        effects.transactions.push(TransactionChange::Resumed { number });
        Outcome::Resumed { already: false }
    }
}

impl Transactions {
    /// The answer for a half whose key is known.
    fn by_key(&self, half: &SendHalf) -> Option<Outcome> {
        let key = (half.producer_group.clone(), half.key.clone()?);
        let number = *self.keys.get(&key)?;
        let (checksum, state) = match (self.open.get(&number), self.decisions.by_number.get(&number)) {
            (Some(open), _) => (open.checksum, open.state()),
            (None, Some(decided)) => (decided.checksum, decided.state()),
            (None, None) => return None,
        };
        Some(if checksum == half.checksum {
            Outcome::Half { number, state }
        } else {
            Outcome::Refused(Refusal::KeyReused(number))
        })
    }

    fn open(
        &mut self,
        at: &Moment,
        first: BatchAt,
        half: SendHalf,
        limits: &Limits,
        effects: &mut Effects,
    ) -> Outcome {
        // Decisions that may be forgotten were forgotten when this entry began, so only decisions that are
        // still too young exceed the limit. (Exactly at the limit there is room: the oldest decision is
        // forgotten after the next one.)
        if self.decisions.by_number.len() > limits.decisions_max || self.open.len() >= limits.transactions_max
        {
            return Outcome::Refused(Refusal::TransactionsFull {
                remembered: self.decisions.by_number.len() + self.open.len(),
            });
        }
        let number = TransactionNumber(self.numbered_from.saturating_add(at.lsn.0))
            .max(TransactionNumber(self.last.0 + 1));
        self.last = number;
        let transaction = Transaction {
            number,
            first,
            producer_group: half.producer_group,
            key: half.key,
            checksum: half.checksum,
            since: at.time,
            check_after_ms: half.check_after_ms,
            asked: 0,
            parked: None,
            parts: half.parts,
        };
        effects.transactions.push(TransactionChange::Opened {
            number,
            half: transaction.half(),
        });
        self.dirty.insert(number);
        self.load(transaction);
        Outcome::Half {
            number,
            state: TransactionState::Open,
        }
    }

    /// Adds a transaction, new or loaded.
    pub(super) fn load(&mut self, transaction: Transaction) {
        if let Some(key) = &transaction.key {
            self.keys.insert(
                (transaction.producer_group.clone(), key.clone()),
                transaction.number,
            );
        }
        if transaction.parked.is_none() {
            self.asked_for.insert((transaction.since, transaction.number));
        }
        self.by_place.insert(transaction.first, transaction.number);
        self.open.insert(transaction.number, transaction);
    }

    /// Adds a loaded decision.
    pub(super) fn load_decision(&mut self, decided: Decided) {
        if let Some(key) = &decided.key {
            self.keys
                .insert((decided.producer_group.clone(), key.clone()), decided.number);
        }
        self.decisions.load(decided);
    }

    fn commit(
        &mut self,
        at: &Moment,
        number: TransactionNumber,
        queues: &mut Queues,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(open) = self.open.get(&number) else {
            return Outcome::Refused(Refusal::UnknownTransaction(number));
        };
        let mut level = Durability::Memory;
        let records = open.parts.iter().map(|part| u64::from(part.records)).sum();
        for part in &open.parts {
            let Some(queue) = queues.get(part.queue) else {
                self.park(number, ParkReason::TargetGone, effects);
                return Outcome::Refused(Refusal::TargetGone(number));
            };
            if !queues.have_offsets(part.queue, records) {
                return Outcome::Refused(Refusal::Invalid(super::OFFSETS_GONE));
            }
            level = level.max(queue.floor);
        }
        let mut placed = Vec::with_capacity(open.parts.len());
        for (index, part) in (open.first.index..).zip(&open.parts) {
            let base_offset = queues
                .append(part.queue, part.records, part.bytes)
                .expect("the queue was there a moment ago");
            placed.push((part.queue, base_offset));
            effects.placements.push(Placement {
                queue: part.queue,
                base_offset,
                records: part.records,
                source: Source::Half(BatchAt {
                    lsn: open.first.lsn,
                    index,
                }),
                visible_at: level,
            });
        }
        self.decide(at, number, Some(placed.clone()), effects);
        Outcome::Ended(Ended {
            state: TransactionState::Committed,
            already: false,
            lsn: at.lsn,
            placed,
        })
    }

    /// Records the new place of a transaction's half messages. Visibility, questions and their count stay as
    /// they are.
    pub(super) fn move_half(
        &mut self,
        number: TransactionNumber,
        parts: &[Part],
        first: BatchAt,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(open) = self.open.get_mut(&number) else {
            return Outcome::Refused(Refusal::UnknownTransaction(number));
        };
        if open.parts != parts {
            return Outcome::Refused(Refusal::Invalid("half messages are moved as they are"));
        }
        let from = open.half();
        open.first = first;
        self.by_place.remove(&from.first);
        self.by_place.insert(first, number);
        self.dirty.insert(number);
        effects.transactions.push(TransactionChange::Moved {
            number,
            from,
            to: Half { first, ..from },
        });
        Outcome::Done
    }

    pub(super) fn roll_back(&mut self, at: &Moment, number: TransactionNumber, effects: &mut Effects) {
        self.decide(at, number, None, effects);
    }

    fn decide(
        &mut self,
        at: &Moment,
        number: TransactionNumber,
        placed: Option<Vec<(QueueKey, Offset)>>,
        effects: &mut Effects,
    ) {
        let Some(open) = self.open.remove(&number) else {
            return;
        };
        self.asked_for.remove(&(open.since, number));
        self.by_place.remove(&open.first);
        // One that no checkpoint saw may be among them: deleting a row that is not there does no harm.
        self.dirty.remove(&number);
        self.gone.push(number);
        let committed = placed.is_some();
        effects.transactions.push(TransactionChange::Decided {
            number,
            half: open.half(),
            committed,
        });
        self.decisions.insert(Decided {
            number,
            order: 0,
            committed,
            lsn: at.lsn,
            time: at.time,
            producer_group: open.producer_group,
            key: open.key,
            checksum: open.checksum,
            placed: placed.unwrap_or_default(),
        });
    }

    /// Counts one question for each; at the maximum the transaction is parked.
    pub(super) fn count_checks(
        &mut self,
        numbers: &[TransactionNumber],
        limits: &Limits,
        effects: &mut Effects,
    ) -> Outcome {
        for number in numbers {
            let Some(open) = self.open.get_mut(number).filter(|open| open.parked.is_none()) else {
                continue;
            };
            open.asked += 1;
            let last = open.asked >= limits.checks_max;
            self.dirty.insert(*number);
            effects
                .transactions
                .push(TransactionChange::Asked { number: *number });
            if last {
                self.park(*number, ParkReason::TooManyChecks, effects);
            }
        }
        Outcome::Done
    }

    /// Applies what follows from time alone: forgets old decisions, parks transactions that were not decided
    /// within a day.
    pub(super) fn pass_time(&mut self, now: Timestamp, limits: &Limits, effects: &mut Effects) {
        for forgotten in self.decisions.forget(now, limits) {
            if let Some(key) = forgotten.key {
                self.keys.remove(&(forgotten.producer_group, key));
            }
        }
        while let Some((since, number)) = self.asked_for.first().copied() {
            if now.0.saturating_sub(since.0) < limits.undecided_ms_max {
                break;
            }
            self.park(number, ParkReason::NoDecision, effects);
        }
    }

    fn park(&mut self, number: TransactionNumber, reason: ParkReason, effects: &mut Effects) {
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        self.asked_for.remove(&(open.since, number));
        if open.parked.is_none() {
            effects.transactions.push(TransactionChange::Parked { number });
        }
        open.parked = Some(reason);
        self.dirty.insert(number);
    }

    pub(super) fn take_dirty(&mut self) -> (Vec<Transaction>, Vec<TransactionNumber>) {
        let rows = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|number| self.open.get(&number).cloned())
            .collect();
        (rows, std::mem::take(&mut self.gone))
    }
}

fn repeated(decided: &Decided, decision: Decision) -> Outcome {
    let same = match decision {
        Decision::Commit => decided.committed,
        Decision::Rollback => !decided.committed,
        Decision::Unknown => true,
    };
    if !same {
        return Outcome::Refused(Refusal::Conflict {
            number: decided.number,
            state: decided.state(),
        });
    }
    Outcome::Ended(Ended {
        state: decided.state(),
        already: true,
        lsn: decided.lsn,
        placed: decided.placed.clone(),
    })
}
