//! Tests of the state: each rule by itself, the crash cases of transactions, and random histories against a
//! model.

mod appends;
mod codec;
mod crash_cases;
mod groups;
mod histories;
mod limits;
mod topics;
mod transactions;
mod trims;

pub(crate) use histories::History;

use mq_common::api::TopicSettings;
use mq_common::api::group::GroupMode;
use mq_common::api::transaction::{Decision, TransactionState};
use mq_common::ids::{
    Durability, GroupName, Lsn, Offset, QueueNumber, ShardName, Term, Timestamp, TopicId, TopicName,
    TransactionNumber,
};

use super::command::{Ack, CreateGroup, Part, SendHalf};
use super::effects::{Ended, TransactionChange};
use super::*;

pub(crate) fn shard() -> ShardName {
    ShardName::new("here").unwrap()
}

fn topic_name(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn group_name(name: &str) -> GroupName {
    GroupName::new(name).unwrap()
}

/// A declaration with the queues on these shards.
fn declaration(name: &str, id: u64, homes: &[&str]) -> Declaration {
    let mut shards: Vec<ShardName> = Vec::new();
    let mut indexes = Vec::new();
    for home in homes {
        let home = ShardName::new(*home).unwrap();
        let index = shards.iter().position(|shard| *shard == home).unwrap_or_else(|| {
            shards.push(home);
            shards.len() - 1
        });
        indexes.push(u16::try_from(index).unwrap());
    }
    Declaration {
        name: topic_name(name),
        id: TopicId(id),
        version: 0,
        durability: Durability::Fsynced,
        deleted: false,
        settings: TopicSettings::default(),
        shards,
        homes: indexes,
    }
}

const fn part(queue: QueueKey, records: u32) -> Part {
    Part {
        queue,
        records,
        bytes: records * 100,
    }
}

fn half(key: Option<&str>, checksum: u64, parts: &[Part]) -> Command {
    Command::SendHalf(SendHalf {
        producer_group: group_name("orders"),
        key: key.map(str::to_owned),
        check_after_ms: 6000,
        checksum,
        parts: parts.to_vec(),
    })
}

const fn end(number: TransactionNumber, decision: Decision) -> Command {
    Command::EndTransaction { number, decision }
}

/// A state, one command to an entry, and the effects of the last one.
struct Bench {
    state: State,
    effects: Effects,
    now: Timestamp,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            state: State::new(shard(), limits),
            effects: Effects::default(),
            now: Timestamp(1_000_000),
        }
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let mut outcomes = self.entry(vec![command]);
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    fn entry(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        self.effects.clear();
        let at = Moment {
            lsn: Lsn(self.state.at().lsn.0 + 1),
            term: Term(1),
            time: self.now,
        };
        self.state.apply(at, commands, &mut self.effects)
    }

    fn pass(&mut self, ms: u64) {
        self.now.0 += ms;
    }

    /// A topic with `queues` queues, all here.
    fn topic(&mut self, name: &str, queues: usize) -> Vec<QueueKey> {
        let outcome = self.apply(Command::CreateTopic(declaration(name, 1, &vec!["here"; queues])));
        assert!(matches!(outcome, Outcome::Topic(_)), "{outcome:?}");
        let topic = self.state.topic(&topic_name(name)).unwrap();
        topic.here.iter().map(|(_, key)| *key).collect()
    }

    fn open(&mut self, parts: &[Part]) -> TransactionNumber {
        match self.apply(half(None, 1, parts)) {
            Outcome::Half {
                number,
                state: TransactionState::Open,
            } => number,
            other => panic!("{other:?}"),
        }
    }

    fn end(&self, key: QueueKey) -> u64 {
        self.state.queue(key).unwrap().end.0
    }

    /// As after a crash: a checkpoint was saved, and a new process loads it.
    fn restart(&mut self) {
        let rows = self.state.rows();
        self.state = State::load(shard(), self.state.limits().clone(), rows).unwrap();
    }
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn ended(outcome: Outcome) -> Ended {
    match outcome {
        Outcome::Ended(ended) => ended,
        other => panic!("not ended: {other:?}"),
    }
}
