//! The broker's state: everything that the log's commands made of it.
//!
//! [`State::apply`] takes one entry after the other, in the order of the log, and answers with an [`Outcome`]
//! for each command and with [`Effects`] for the layers beside it. The same entries always give the same
//! state, on every broker and in every replay: there is no clock, no random number, no file, socket or task
//! in this folder, and nothing here decides by the order of a hash map. Where bytes lie is not here either,
//! but in the store.
//!
//! A checkpoint is [`State::take_changes`] after an entry; [`State::load`] of what was saved, then applying the
//! entries after it, is the same as applying all of them.

mod codec;
mod codes;
pub mod command;
mod decisions;
pub mod declaration;
pub mod effects;
mod groups;
mod load;
mod pauses;
mod queues;
pub mod rows;
mod slots;
mod topics;
mod transactions;
mod trim;

use std::ops::Bound;

use mq_common::ids::{GroupName, Lsn, QueueNumber, ShardName, Term, Timestamp, TopicName, TransactionNumber};

pub use command::Command;
pub use decisions::Decided;
pub use declaration::{Declaration, InvalidDeclaration};
pub use effects::{Effects, Outcome, Placement, Refusal, Source};
pub use groups::Group;
pub use pauses::{Pause, Pauses};
pub use queues::Queue;
pub use topics::Topic;
pub use transactions::{ParkReason, Transaction};

use crate::ids::{BatchAt, GroupKey, QueueKey};
use command::Part;
use groups::Groups;
use queues::Queues;
use rows::{Changes, Counters, Rows};
use topics::Topics;
use transactions::Transactions;

/// The position of an entry in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its log sequence number: higher than that of every entry before it.
    pub lsn: Lsn,
    /// The term of the leader that wrote it: never lower than that of the entry before.
    pub term: Term,
    /// Its time: never lower than that of the entry before.
    pub time: Timestamp,
}

/// Limits that `apply` decides by. All replicas must have the same ones, and a log must be replayed with
/// those it was written with, so they are constants of the format and not settings. Tests use small ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Undecided transactions, parked ones included.
    pub transactions_max: usize,
    /// Decisions remembered.
    pub decisions_max: usize,
    /// A decision is forgotten at this age.
    pub decision_age_ms_max: u64,
    /// No decision is forgotten before this age.
    pub decision_age_ms_min: u64,
    /// Questions counted before a transaction is parked.
    pub checks_max: u32,
    /// An undecided transaction is parked at this age.
    pub undecided_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transactions_max: 1_000_000,
            decisions_max: 1_000_000,
            decision_age_ms_max: 24 * 60 * 60 * 1000,
            decision_age_ms_min: 10 * 60 * 1000,
            checks_max: 15,
            undecided_ms_max: 24 * 60 * 60 * 1000,
        }
    }
}

const OFFSETS_GONE: &str = "the queue has no offsets left for these messages; send to another one";

/// The state of one shard.
#[derive(Debug)]
pub struct State {
    shard: ShardName,
    limits: Limits,
    at: Moment,
    pauses: Pauses,
    topics: Topics,
    queues: Queues,
    groups: Groups,
    transactions: Transactions,
}

impl State {
    /// Sets the base of transaction numbers: a transaction's number is this plus the lsn of the entry that
    /// stores its half messages. It must be the same for all entries of a journal.
    #[must_use]
    pub const fn numbered_from(mut self, transactions_from: u64) -> Self {
        self.transactions.numbered_from = transactions_from;
        self
    }

    /// The state before the first entry.
    #[must_use]
    pub fn new(shard: ShardName, limits: Limits) -> Self {
        Self {
            shard,
            limits,
            at: Moment {
                lsn: Lsn(0),
                term: Term(0),
                time: Timestamp(0),
            },
            pauses: Pauses::default(),
            topics: Topics::default(),
            queues: Queues::default(),
            groups: Groups::default(),
            transactions: Transactions::default(),
        }
    }

    /// Applies an entry: one outcome for each of its commands, in order; effects are added to `effects`.
    ///
    /// # Panics
    /// If the entry does not follow the last one: the log delivered it out of order, and the resulting state
    /// would be wrong.
    pub fn apply(
        &mut self,
        at: Moment,
        commands: impl IntoIterator<Item = Command>,
        effects: &mut Effects,
    ) -> Vec<Outcome> {
        let last = &self.at;
        assert!(at.lsn > last.lsn, "entry {at:?} is applied after {last:?}");
        assert!(at.term >= last.term, "the term went back: {at:?} after {last:?}");
        assert!(
            at.time >= last.time,
            "the entry time went back: {at:?} after {last:?}"
        );
        self.pauses.note(last.time, at.time);
        self.at = at;
        self.transactions.pass_time(at.time, &self.limits, effects);
        let mut first = BatchAt {
            lsn: at.lsn,
            index: 0,
        };
        let commands = commands.into_iter();
        let mut outcomes = Vec::with_capacity(commands.size_hint().0);
        for command in commands {
            let batches = command.batches();
            outcomes.push(self.apply_one(&at, first, command, effects));
            first.index += batches;
        }
        outcomes
    }

    /// Whether an entry of this moment can come next: numbers rise, terms and times do not go back.
    #[must_use]
    pub fn precedes(&self, at: &Moment) -> bool {
        let last = &self.at;
        at.lsn > last.lsn && at.term >= last.term && at.time >= last.time
    }

    fn apply_one(&mut self, at: &Moment, first: BatchAt, command: Command, effects: &mut Effects) -> Outcome {
        match command {
            Command::Append(part) => self.append(first.index, part, effects),
            Command::CreateTopic(declaration) => self.create_topic(declaration, effects),
            Command::AdoptTopic {
                declaration,
                drop_transactions,
            } => self.adopt_topic(at, declaration, drop_transactions, effects),
            Command::DeleteTopic {
                name,
                drop_transactions,
            } => self.delete_topic(at, name, drop_transactions, effects),
            Command::SendHalf(half) => self.send_half(at, first, half, effects),
            Command::EndTransaction { number, decision } => {
                self.end_transaction(at, number, decision, effects)
            }
            Command::CountChecks { numbers } => {
                self.transactions.count_checks(&numbers, &self.limits, effects)
            }
            Command::ResumeTransaction { number } => self.resume_transaction(at, number, effects),
            Command::CreateGroup(group) => self.create_group(at, group, effects),
            Command::Progress { acks } => self.groups.progress(&acks, &mut self.queues, effects),
            Command::Trim { starts } => self.trim(&starts, effects),
            Command::AlterTopic(declaration) => self.alter_topic(declaration, effects),
            Command::MoveHalf { number, parts } => {
                self.transactions.move_half(number, &parts, first, effects)
            }
        }
    }

    fn append(&mut self, index: u32, part: Part, effects: &mut Effects) -> Outcome {
        if part.records == 0 {
            return Outcome::Refused(Refusal::Invalid("a batch has at least one record"));
        }
        let Some(floor) = self.queues.get(part.queue).map(|queue| queue.floor) else {
            return Outcome::Refused(Refusal::UnknownQueue);
        };
        if !self.queues.have_offsets(part.queue, part.records.into()) {
            return Outcome::Refused(Refusal::Invalid(OFFSETS_GONE));
        }
        let base_offset = self
            .queues
            .append(part.queue, part.records, part.bytes)
            .expect("the queue was there a moment ago");
        effects.placements.push(Placement {
            queue: part.queue,
            base_offset,
            records: part.records,
            source: Source::Here(index),
            visible_at: floor,
        });
        Outcome::Appended { base_offset }
    }

    /// The last entry applied.
    #[must_use]
    pub const fn at(&self) -> Moment {
        self.at
    }

    /// Long periods without an entry.
    #[must_use]
    pub const fn pauses(&self) -> &Pauses {
        &self.pauses
    }

    /// The bounds.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A topic that is not deleted.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<&Topic> {
        self.topic_or_tombstone(name)
            .filter(|topic| !topic.declaration.deleted)
    }

    /// A topic, or the tombstone of a deleted one.
    #[must_use]
    pub fn topic_or_tombstone(&self, name: &TopicName) -> Option<&Topic> {
        self.topics.by_name.get(name)
    }

    /// All topics in order of their names, tombstones too.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.by_name.values()
    }

    /// The key of a queue on this shard.
    #[must_use]
    pub fn queue_key(&self, topic: &TopicName, number: QueueNumber) -> Option<QueueKey> {
        self.topic(topic)?.key(number)
    }

    /// A queue.
    #[must_use]
    pub fn queue(&self, key: QueueKey) -> Option<&Queue> {
        self.queues.get(key)
    }

    /// All queues in order of their keys.
    pub fn queues(&self) -> impl Iterator<Item = (QueueKey, &Queue)> {
        self.queues.iter()
    }

    /// How many queues there are.
    #[must_use]
    pub const fn queue_count(&self) -> u32 {
        self.queues.live()
    }

    /// A group by its name.
    #[must_use]
    pub fn group_by_name(&self, name: &GroupName) -> Option<(GroupKey, &Group)> {
        let key = *self.groups.by_name.get(name)?;
        Some((key, self.groups.by_key.get(&key)?))
    }

    /// A group.
    #[must_use]
    pub fn group(&self, key: GroupKey) -> Option<&Group> {
        self.groups.by_key.get(&key)
    }

    /// Groups whose names sort after this one, in order of their names.
    pub fn groups_after(&self, name: Option<&GroupName>) -> impl Iterator<Item = &Group> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.groups.by_name.range((from, Bound::Unbounded));
        later.filter_map(|(_, key)| self.groups.by_key.get(key))
    }

    /// All groups in order of their keys.
    pub fn groups(&self) -> impl Iterator<Item = (GroupKey, &Group)> {
        self.groups.by_key.iter().map(|(key, group)| (*key, group))
    }

    /// An undecided transaction.
    #[must_use]
    pub fn transaction(&self, number: TransactionNumber) -> Option<&Transaction> {
        self.transactions.open.get(&number)
    }

    /// All undecided transactions, oldest first.
    pub fn transactions(&self) -> impl ExactSizeIterator<Item = &Transaction> {
        self.transactions.open.values()
    }

    /// Undecided transactions with a higher number, oldest first.
    pub fn transactions_after(
        &self,
        number: Option<TransactionNumber>,
    ) -> impl Iterator<Item = &Transaction> {
        let from = number.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.transactions.open.range((from, Bound::Unbounded));
        later.map(|(_, transaction)| transaction)
    }

    /// The undecided transactions whose half messages are in this entry.
    pub fn transactions_in(&self, entry: Lsn) -> impl Iterator<Item = &Transaction> {
        let from = BatchAt { lsn: entry, index: 0 };
        let placed = self.transactions.by_place.range(from..);
        let here = placed.take_while(move |(at, _)| at.lsn == entry);
        here.filter_map(|(_, number)| self.transaction(*number))
    }

    /// A decision that is still remembered.
    #[must_use]
    pub fn decided(&self, number: TransactionNumber) -> Option<&Decided> {
        self.transactions.decisions.by_number.get(&number)
    }

    /// Returns what changed since the last call. If saving it fails, retry with the same rows before the next
    /// call: rows that were taken are not returned a second time.
    pub fn take_changes(&mut self) -> Changes {
        let topics = std::mem::take(&mut self.topics.dirty)
            .into_iter()
            .filter_map(|name| Some(self.topics.by_name.get(&name)?.declaration.clone()))
            .collect();
        let (queues, queues_gone) = self.queues.take_dirty();
        let (groups, cursors, groups_gone) = self.groups.take_dirty();
        let (transactions, transactions_gone) = self.transactions.take_dirty();
        let (decisions, decisions_gone) = self.transactions.decisions.take_dirty();
        Changes {
            rows: Rows {
                topics,
                queues,
                groups,
                cursors,
                transactions,
                decisions,
                pauses: self.pauses.all().to_vec(),
                counters: self.counters(),
            },
            queues_gone,
            groups_gone,
            transactions_gone,
            decisions_gone,
        }
    }

    /// Takes up to `max` of the queues that changed since they were last taken, earliest change first. A
    /// change concerns their messages, their start, their topic's settings or how far groups have read them;
    /// deletion counts too, and after a start all queues that hold messages count as changed. Only one caller
    /// may take them.
    pub fn take_touched(&mut self, max: usize) -> Vec<QueueKey> {
        self.queues.take_touched(max)
    }

    /// Makes [`Self::take_touched`] return every queue that contains messages, as it does first: the caller lost
    /// what it knew of them.
    pub fn touch_filled(&mut self) {
        self.queues.touch_filled();
    }

    /// How many queues [`Self::take_touched`] could return.
    #[must_use]
    pub fn touched(&self) -> usize {
        self.queues.touched()
    }

    /// The whole state as rows, as [`Self::load`] takes them.
    #[must_use]
    pub fn rows(&self) -> Rows {
        let (groups, cursors) = self.groups.rows();
        Rows {
            topics: self.topics().map(|topic| topic.declaration.clone()).collect(),
            queues: self.queues.rows(),
            groups,
            cursors,
            transactions: self.transactions().cloned().collect(),
            decisions: self.transactions.decisions.rows(),
            pauses: self.pauses.all().to_vec(),
            counters: self.counters(),
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            lsn: self.at.lsn,
            term: self.at.term,
            time: self.at.time,
            next_queue: self.queues.next_key(),
            next_group: self.groups.next,
            last_transaction: self.transactions.last,
            decisions: self.transactions.decisions.next_order,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
