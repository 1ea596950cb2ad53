//! Putting the answers of several brokers together.

use std::collections::BTreeMap;

use mq_common::api::admin::Topic;
use mq_common::api::group::GroupDescription;
use mq_common::ids::{GroupName, ShardName, TopicName};
use serde::Serialize;

use super::Failure;
use crate::error::{AdminError, RouteError};

/// A list merged from all brokers, with those that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Merged<T> {
    /// What those that answered have.
    pub items: Vec<T>,
    /// Who did not answer, and why.
    pub silent: Vec<(ShardName, String)>,
}

pub(super) fn unknown(topic: TopicName, silent: &[(ShardName, String)]) -> RouteError {
    if silent.is_empty() {
        return RouteError::UnknownTopic { topic };
    }
    let reasons: Vec<_> = silent
        .iter()
        .map(|(shard, reason)| format!("`{shard}`: {reason}"))
        .collect();
    RouteError::Unreachable {
        topic,
        reason: reasons.join("; "),
    }
}

pub(super) fn keep_newer(topics: &mut BTreeMap<TopicName, Topic>, topic: Topic) {
    match topics.get(&topic.name) {
        Some(known) if (known.id, known.version) >= (topic.id, topic.version) => {}
        _ => {
            topics.insert(topic.name.clone(), topic);
        }
    }
}

/// What answered; an error only if nobody did.
pub(super) fn merge<T>(answers: Vec<(ShardName, Result<T, Failure>)>) -> Result<Merged<T>, AdminError> {
    let mut merged = Merged {
        items: Vec::new(),
        silent: Vec::new(),
    };
    let mut first = None;
    for (shard, answer) in answers {
        match answer {
            Ok(item) => merged.items.push(item),
            Err(error) => {
                merged.silent.push((shard.clone(), error.to_string()));
                first.get_or_insert_with(|| AdminError::of(&shard, error));
            }
        }
    }
    match first {
        Some(error) if merged.items.is_empty() => Err(error),
        _ => Ok(merged),
    }
}

pub(super) fn merge_groups(merged: Merged<Vec<GroupDescription>>) -> Merged<GroupDescription> {
    let mut groups: BTreeMap<(GroupName, TopicName), GroupDescription> = BTreeMap::new();
    for group in merged.items.into_iter().flatten() {
        match groups.get_mut(&(group.group.clone(), group.topic.clone())) {
            Some(known) => {
                known.members.extend(group.members);
                known.members.sort();
                known.members.dedup();
                known.queues.extend(group.queues);
                known.queues.sort_by_key(|queue| queue.queue);
            }
            None => {
                groups.insert((group.group.clone(), group.topic.clone()), group);
            }
        }
    }
    Merged {
        items: groups.into_values().collect(),
        silent: merged.silent,
    }
}
