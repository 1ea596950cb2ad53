//! Merging the answers of several brokers.

use std::collections::BTreeMap;

use mq_common::api::admin::Topic;
use mq_common::api::group::GroupDescription;
use mq_common::ids::{GroupName, ShardName, TopicName};
use serde::Serialize;

use super::Failure;
use crate::error::{AdminError, RouteError, words};
use crate::route::true_topic;

/// A list merged from all brokers, with those that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Merged<T> {
    /// The items of the brokers that answered.
    pub items: Vec<T>,
    /// The brokers that did not answer, and why.
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

/// The valid declaration of each topic out of those that the brokers reported, sorted by name, without
/// tombstones.
pub(super) fn true_topics(said: impl IntoIterator<Item = (ShardName, Topic)>) -> Vec<Topic> {
    let mut by_name: BTreeMap<TopicName, Vec<(ShardName, Topic)>> = BTreeMap::new();
    for (from, topic) in said {
        by_name.entry(topic.name.clone()).or_default().push((from, topic));
    }
    let topics = by_name.values().filter_map(|said| true_topic(said).cloned());
    topics.filter(|topic| !topic.deleted).collect()
}

/// What each shard answered.
pub(super) type Answers<T> = Vec<(ShardName, Result<T, Failure>)>;

/// The answers, each with the name of its shard.
pub(super) fn with_names<T>(answers: Answers<T>) -> Answers<(ShardName, T)> {
    let named = answers.into_iter().map(|(shard, answer)| {
        let answer = answer.map(|answer| (shard.clone(), answer));
        (shard, answer)
    });
    named.collect()
}

/// The answers received; an error only if no broker answered.
pub(super) fn merge<T>(answers: Answers<T>) -> Result<Merged<T>, AdminError> {
    let mut merged = Merged {
        items: Vec::new(),
        silent: Vec::new(),
    };
    let mut first = None;
    for (shard, answer) in answers {
        match answer {
            Ok(item) => merged.items.push(item),
            Err(error) => {
                merged.silent.push((shard.clone(), words(&error)));
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
