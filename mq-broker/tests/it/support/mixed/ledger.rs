//! What was asked of a broker, and what it answered, with times: so that it can be said of any moment what
//! must be there and what may be.

use std::collections::{BTreeMap, HashMap};

use mq_common::api::TopicSettings;
use mq_common::ids::{Durability, TopicId, TransactionId};
use rustix::time::{ClockId, clock_gettime};

use super::value::{Made, name};

/// Nanoseconds of CLOCK_MONOTONIC, which logs of disks use too.
pub(crate) type Time = u64;

pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// What is known of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known<T> {
    /// No answer came: it may be there or not.
    Unknown,
    /// It was refused, or found not to be there: it must never appear.
    Nothing,
    /// It is there, known since then.
    There(Time, T),
}

impl<T: Clone> Known<T> {
    /// What was known at a moment.
    pub(crate) fn before(&self, moment: Time) -> Self {
        match self {
            Self::There(at, _) if *at >= moment => Self::Unknown,
            known => known.clone(),
        }
    }

    pub(crate) fn there(&self) -> Option<&T> {
        match self {
            Self::There(_, what) => Some(what),
            Self::Unknown | Self::Nothing => None,
        }
    }
}

/// A topic from its creation to its deletion: another one of the name later is another topic.
#[derive(Debug, Clone)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) durability: Durability,
    pub(crate) asked: Time,
    pub(crate) id: Known<TopicId>,
    /// As it was made, and each change that was asked for.
    pub(crate) versions: Vec<Version>,
    /// When its deletion was asked for, and when that was answered.
    pub(crate) deletion: Option<(Time, Option<Time>)>,
}

/// One version of a topic's declaration.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) asked: Time,
    pub(crate) known: Known<()>,
    /// 0 = not known: the first one of a name that was used before.
    pub(crate) number: u64,
    pub(crate) queues: u32,
    pub(crate) settings: TopicSettings,
}

impl Topic {
    pub(crate) fn is_alive(&self) -> bool {
        self.id.there().is_some() && self.deletion.is_none()
    }

    /// Its queues, as far as that was answered.
    pub(crate) fn queues(&self) -> u32 {
        let known = self.versions.iter().rev();
        let mut known = known.filter(|version| version.known.there().is_some());
        known.next().map_or(0, |version| version.queues)
    }
}

/// A batch that was sent, or a part of a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) topic: usize,
    pub(crate) queue: u32,
    pub(crate) values: Vec<String>,
    /// Of a part of a transaction: when its commit was asked for; before that it must not be seen.
    pub(crate) asked: Time,
    /// Its offset, and how safe it is there.
    pub(crate) placed: Known<(u64, Durability)>,
    /// Where it is not known whether it was stored: if it was, then below this offset.
    pub(crate) below: u64,
    pub(crate) transaction: Option<usize>,
}

/// What was asked of a transaction, and since when the answer is known.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) key: String,
    pub(crate) asked: Time,
    pub(crate) id: Known<TransactionId>,
    /// Its parts, as batches of the ledger.
    pub(crate) parts: Vec<usize>,
    /// Whoever ends it, commits it or not by this.
    pub(crate) commits: bool,
    /// When its end was asked for, and when it was answered.
    pub(crate) end: Option<(Time, Option<Time>)>,
}

/// A consumer group and how far it came in each queue.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) topic: usize,
    pub(crate) known: Known<()>,
    pub(crate) queues: BTreeMap<u32, Progress>,
}

/// How far a group came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Where it began, as far as that is known.
    pub(crate) began: u64,
    /// Acks that were asked for: everything before this offset.
    pub(crate) asked: Vec<(Time, u64)>,
    /// Acks that were answered.
    pub(crate) acked: Vec<(Time, u64)>,
}

impl Progress {
    /// Behind everything that was asked to be done, or that it never had to read.
    pub(crate) fn asked_before(&self, moment: Time) -> u64 {
        latest(&self.asked, moment).max(self.began)
    }

    pub(crate) fn acked_before(&self, moment: Time) -> u64 {
        latest(&self.acked, moment)
    }
}

fn latest(acks: &[(Time, u64)], moment: Time) -> u64 {
    let before = acks.iter().filter(|(at, _)| *at < moment);
    before.map(|(_, next)| *next).max().unwrap_or_default()
}

/// Everything that happened.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger {
    pub(crate) topics: Vec<Topic>,
    pub(crate) sent: BTreeMap<usize, Sent>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) groups: BTreeMap<String, Group>,
    /// Starts of queues that were looked at and found right.
    pub(crate) starts: HashMap<(usize, u32), u64>,
    /// Which batch has a value, by its name.
    by_name: HashMap<String, usize>,
    /// Values and batches so far.
    numbers: usize,
    pub(crate) acknowledged: u64,
}

impl Ledger {
    /// The topic that has this name now, if that is certain.
    pub(crate) fn alive(&self, name: &str) -> Option<usize> {
        let alive = |topic: &Topic| topic.name == name && topic.is_alive();
        self.topics.iter().rposition(alive)
    }

    /// Enters what is about to be sent: these new values. Answers its number.
    pub(crate) fn send(
        &mut self,
        topic: usize,
        queue: u32,
        made: &[Made],
        transaction: Option<usize>,
    ) -> usize {
        let values = made.iter().map(|made| {
            self.numbers += 1;
            made.text(&format!("{topic}.{queue}.{}", self.numbers))
        });
        let values: Vec<_> = values.collect();
        self.numbers += 1;
        self.enter(Sent {
            topic,
            queue,
            values,
            asked: now(),
            placed: Known::Unknown,
            below: u64::MAX,
            transaction,
        })
    }

    /// Enters a batch; answers its number.
    pub(crate) fn enter(&mut self, sent: Sent) -> usize {
        let number = self.sent.last_key_value().map_or(0, |(number, _)| number + 1);
        let number = number.max(self.numbers);
        for value in &sent.values {
            let before = self.by_name.insert(name(value).to_owned(), number);
            assert_eq!(before, None, "each value once");
        }
        self.sent.insert(number, sent);
        number
    }

    /// The batch that a value is of, with its number and the value's place in it.
    pub(crate) fn batch_of(&self, value: &str) -> Option<(usize, &Sent, usize)> {
        let number = *self.by_name.get(name(value))?;
        let sent = &self.sent[&number];
        let at = sent.values.iter().position(|sent| sent == value)?;
        Some((number, sent, at))
    }

    /// A batch that need not be known any longer.
    pub(crate) fn forget(&mut self, number: usize) {
        let sent = self.sent.remove(&number);
        for value in sent.iter().flat_map(|sent| &sent.values) {
            self.by_name.remove(name(value));
        }
    }

    /// A batch was acknowledged.
    pub(crate) fn acknowledge(&mut self, number: usize, offset: u64, durability: Durability) {
        let sent = self.sent.get_mut(&number).expect("what is acknowledged was sent");
        if let Known::There(_, (seen, _)) = sent.placed {
            assert_eq!(seen, offset, "a consumer saw it elsewhere than its receipt says");
        }
        sent.placed = Known::There(now(), (offset, durability));
        self.acknowledged += sent.values.len() as u64;
    }

    /// A batch was refused.
    pub(crate) fn refuse(&mut self, number: usize) {
        let sent = self.sent.get_mut(&number).expect("what is refused was sent");
        sent.placed = Known::Nothing;
    }

    /// A consumer was given a message: from now on it has to be there, as safe as its topic promises.
    pub(crate) fn saw(&mut self, topic: usize, queue: u32, offset: u64, value: &str) -> Result<(), String> {
        let of = &self.topics[topic];
        let durability = of.durability;
        let place = format!("{value:.40} at offset {offset} of queue {queue} of `{}`", of.name);
        let found = self.batch_of(value);
        let (number, sent, at) =
            found.ok_or_else(|| format!("a consumer got something invented: {place}"))?;
        let base = offset.checked_sub(at as u64);
        let base = base.filter(|_| (sent.topic, sent.queue) == (topic, queue));
        let base = base.ok_or_else(|| format!("a consumer got something of another queue: {place}"))?;
        match &sent.placed {
            Known::There(_, (offset, _)) if *offset == base => Ok(()),
            // Of a transaction's part its own answer says where; the next look at the broker compares.
            Known::Unknown if sent.transaction.is_some() => Ok(()),
            Known::Unknown => {
                let placed = Known::There(now(), (base, durability));
                self.sent.get_mut(&number).expect("it was just there").placed = placed;
                Ok(())
            }
            known => Err(format!("a consumer got {place}, known as {known:?}")),
        }
    }
}
