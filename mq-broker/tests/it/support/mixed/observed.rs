//! What a broker shows: topics, every message, groups, open transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::TopicSettings;
use mq_common::api::page::all_pages;
use mq_common::ids::{Offset, TopicId, TransactionId};
use rpc_core::CallError;

use crate::support::{Client, topic};

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

/// All values from an offset on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) start: u64,
    pub(crate) values: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) topic: String,
    /// The cursor in each queue.
    pub(crate) cursors: BTreeMap<u32, u64>,
}

impl Queue {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.values.len() as u64
    }

    /// The value at an offset.
    pub(crate) fn at(&self, offset: u64) -> Option<&str> {
        let index = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.values.get(index).map(String::as_str)
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
            queues.push(read(client, &name, queue.queue.0).await?);
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

/// A queue from its start to its end. If its start moves meanwhile, what is below it is left out.
async fn read(client: &Client, name: &str, number: u32) -> Result<Queue, String> {
    let mut queue = Queue::default();
    loop {
        let next = Offset(queue.end());
        let fetched = client
            .fetch_once(&topic(name), number, next, Duration::ZERO)
            .await;
        let (found, after, end) = match fetched {
            Ok(fetched) => fetched,
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
            Err(error) => return Err(format!("queue {number} of `{name}` from {next} on: {error}")),
        };
        for message in found.into_iter().filter(|message| message.offset >= next.0) {
            if message.offset != queue.end() {
                return Err(format!(
                    "queue {number} of `{name}` has {} behind {}",
                    message.offset,
                    queue.end()
                ));
            }
            queue.values.push(message.value);
        }
        if after.0 != queue.end() {
            return Err(format!(
                "queue {number} of `{name}` goes on at {after}, served was all before {}",
                queue.end()
            ));
        }
        if after >= end {
            return Ok(queue);
        }
    }
}
