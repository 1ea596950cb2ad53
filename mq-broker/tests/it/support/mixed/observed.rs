//! What a broker shows: topics, every message, groups, open transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::TopicSettings;
use mq_common::api::page::all_pages;
use mq_common::ids::{Offset, TopicId, TransactionId};
use rpc_core::CallError;

use super::value;
use crate::support::{Client, Read, topic};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Those that are not deleted.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Open transactions by their key, with the number of their messages.
    pub(crate) open: BTreeMap<String, (TransactionId, u64)>,
    pub(crate) groups: BTreeMap<String, Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: TopicId,
    pub(crate) version: u64,
    pub(crate) settings: TopicSettings,
    pub(crate) queues: Vec<Queue>,
}

/// All values from an offset on; `None` = the message went for a later one of its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) start: u64,
    pub(crate) values: Vec<Option<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) topic: String,
    /// The cursor in each queue.
    pub(crate) cursors: BTreeMap<u32, u64>,
}

impl Observed {
    /// Whether another start shows the same, but for what passes over keys let go, or for one that a death
    /// undid.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let is_like = |(name, topic): (&String, &Topic)| {
            other.topics.get(name).is_some_and(|other| topic.is_like(other))
        };
        self.topics.len() == other.topics.len()
            && self.topics.iter().all(is_like)
            && (&self.open, &self.groups) == (&other.open, &other.groups)
    }
}

impl Topic {
    fn is_like(&self, other: &Self) -> bool {
        let queues = self.queues.iter().zip(&other.queues);
        (self.id, self.version, self.settings) == (other.id, other.version, other.settings)
            && self.queues.len() == other.queues.len()
            && queues.into_iter().all(|(queue, other)| queue.is_like(other))
    }
}

impl Queue {
    fn is_like(&self, other: &Self) -> bool {
        let mut values = self.values.iter().zip(&other.values);
        (self.start, self.end()) == (other.start, other.end())
            && values.all(|(value, other)| value == other || value.is_none() || other.is_none())
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + self.values.len() as u64
    }

    /// The value at an offset.
    pub(crate) fn at(&self, offset: u64) -> Option<&str> {
        let index = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.values.get(index)?.as_deref()
    }

    /// Whether there was a message at an offset that went for a later one.
    pub(crate) fn is_compacted(&self, offset: u64) -> bool {
        (self.start..self.end()).contains(&offset) && self.at(offset).is_none()
    }

    /// What is there, with its offsets.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (u64, &str)> {
        let all = (self.start..).zip(&self.values);
        all.filter_map(|(offset, value)| Some((offset, value.as_deref()?)))
    }
}

/// Everything that a broker shows while nobody but retention works on it.
pub(crate) async fn observe(client: &Client) -> Result<Observed, String> {
    let said = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let mut observed = Observed::default();
    let groups = all_pages(|page| client.group.list(page)).await;
    for group in groups.map_err(|error| said("groups", &error))? {
        let cursors = group.queues.iter().map(|queue| (queue.queue.0, queue.cursor.0));
        let found = Group {
            topic: group.topic.to_string(),
            cursors: cursors.collect(),
        };
        observed.groups.insert(group.group.to_string(), found);
    }
    let topics = all_pages(|page| client.admin.topics(page)).await;
    let topics = topics.map_err(|error| said("topics", &error))?;
    for found in topics.into_iter().filter(|topic| !topic.deleted) {
        let name = found.name.to_string();
        let mut queues = Vec::new();
        for queue in &found.queues {
            queues.push(read_at_rest(client, &name, queue.queue.0, found.settings.compact).await?);
        }
        let topic = Topic {
            id: found.id,
            version: found.version,
            settings: found.settings,
            queues,
        };
        observed.topics.insert(name, topic);
    }
    let open = all_pages(|page| client.transaction.list(page)).await;
    for transaction in open.map_err(|error| said("transactions", &error))? {
        let key = transaction.key.unwrap_or_default();
        let before = observed
            .open
            .insert(key.clone(), (transaction.transaction, transaction.messages));
        if before.is_some() {
            return Err(format!("two open transactions have the key `{key}`"));
        }
    }
    Ok(observed)
}

/// A queue as it was at one moment: what a pass let go between two answers could else be missed in one and
/// not in another.
async fn read_at_rest(client: &Client, name: &str, number: u32, compacts: bool) -> Result<Queue, String> {
    let mut queue = read(client, name, number).await?;
    for _ in 0..100 {
        if !compacts {
            return Ok(queue);
        }
        let again = read(client, name, number).await?;
        if again == queue {
            return Ok(queue);
        }
        queue = again;
    }
    Err(format!("queue {number} of `{name}` is never twice the same"))
}

/// A queue from its start to its end. If its start moves meanwhile, what is below it is left out.
async fn read(client: &Client, name: &str, number: u32) -> Result<Queue, String> {
    let mut queue = Queue::default();
    loop {
        let next = Offset(queue.end());
        let fetched = client.fetch_all(&topic(name), number, next, Duration::ZERO).await;
        let place = || format!("queue {number} of `{name}` from {next} on");
        let read = match fetched {
            Ok(read) => read,
            Err(CallError::App(error)) if error.code == ErrorCode::OffsetOutOfRange => {
                let (start, _) = error.range.ok_or("out of range, and no range is given")?;
                if start <= next.0 {
                    return Err(format!("queue {number} of `{name}` ends before {next}: {error}"));
                }
                queue = Queue {
                    start,
                    values: Vec::new(),
                };
                continue;
            }
            Err(error) => return Err(format!("{}: {error}", place())),
        };
        let (after, end) = (read.next, read.end);
        for (offset, value) in in_order(read, next.0).map_err(|wrong| format!("{}: {wrong}", place()))? {
            if offset != queue.end() {
                return Err(format!("{}: {offset} behind {}", place(), queue.end()));
            }
            queue.values.push(value);
        }
        if after.0 != queue.end() {
            return Err(format!(
                "{}: it goes on at {after}, served was all before {}",
                place(),
                queue.end()
            ));
        }
        if after >= end {
            return Ok(queue);
        }
    }
}

/// Messages from an offset on, and what went between them.
fn in_order(read: Read, next: u64) -> Result<BTreeMap<u64, Option<String>>, String> {
    if read.holes != read.compacted {
        return Err(format!(
            "damage: of the holes {:?} only {:?} are compacted",
            read.holes, read.compacted
        ));
    }
    let mut all = BTreeMap::new();
    for message in read.messages {
        let offset = message.offset;
        if all.insert(offset, Some(value::text(message)?)).is_some() {
            return Err(format!("{offset} twice"));
        }
    }
    for offset in read.compacted.into_iter().flat_map(|(from, end)| from.0..end.0) {
        if all.insert(offset, None).is_some() {
            return Err(format!("{offset} is served, and compacted"));
        }
    }
    Ok(all.split_off(&next))
}
