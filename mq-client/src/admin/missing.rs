//! Brokers that are not registered although topics have queues on them: whatever lists topics or groups must
//! say what is missing from the list.

use std::collections::BTreeMap;

use mq_common::api::admin::Topic;
use mq_common::ids::{QueueNumber, ShardName, TopicName};

use super::{Admin, Brokers, Silent};

/// Queues listed by number; of more than this only the count is given.
const QUEUES_NAMED: usize = 8;
/// Topics listed by name.
const TOPICS_NAMED: usize = 3;

/// A broker that is not registered, and the queues it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingShard {
    /// Its name.
    pub shard: ShardName,
    /// The topics that have queues there, by name, with these queues; never empty.
    pub topics: Vec<(TopicName, Vec<QueueNumber>)>,
}

impl std::fmt::Display for MissingShard {
    /// The queues it holds, in words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not registered now; it has ")?;
        for (index, (topic, queues)) in self.topics.iter().take(TOPICS_NAMED).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} of topic `{topic}`", queue_words(queues))?;
        }
        match self.topics.len().saturating_sub(TOPICS_NAMED) {
            0 => Ok(()),
            more => write!(f, ", and queues of {more} more"),
        }
    }
}

impl Admin {
    /// The shards of these topics that are not registered.
    pub(super) fn missing(&self, topics: &[Topic], brokers: &Brokers) -> Vec<MissingShard> {
        if self.client.routes.is_unheard() {
            return Vec::new();
        }
        missing(topics, |shard| brokers.contains_key(shard))
    }

    /// Adds them to the brokers that did not answer.
    pub(super) fn add_missing(&self, silent: &mut Silent, topics: &[Topic], brokers: &Brokers) {
        let missing = self.missing(topics, brokers).into_iter();
        silent.extend(missing.map(|missing| (missing.shard.clone(), missing.to_string())));
        silent.sort();
        silent.dedup_by(|next, first| next.0 == first.0);
    }

    /// The same for all topics. Brokers already listed as silent are not repeated.
    pub(super) async fn add_all_missing(&self, silent: &mut Silent) {
        let Ok(topics) = self.topics().await else { return };
        let known = |shard: &ShardName| silent.iter().any(|(silent, _)| silent == shard);
        let new: Vec<_> = topics
            .silent
            .into_iter()
            .filter(|(shard, _)| !known(shard))
            .collect();
        silent.extend(new);
        silent.sort();
    }
}

fn missing(topics: &[Topic], is_registered: impl Fn(&ShardName) -> bool) -> Vec<MissingShard> {
    let mut by_shard: BTreeMap<&ShardName, BTreeMap<&TopicName, Vec<QueueNumber>>> = BTreeMap::new();
    for topic in topics.iter().filter(|topic| !topic.deleted) {
        for home in topic.queues.iter().filter(|home| !is_registered(&home.shard)) {
            let topics = by_shard.entry(&home.shard).or_default();
            topics.entry(&topic.name).or_default().push(home.queue);
        }
    }
    let shards = by_shard.into_iter().map(|(shard, topics)| MissingShard {
        shard: shard.clone(),
        topics: topics
            .into_iter()
            .map(|(topic, queues)| (topic.clone(), queues))
            .collect(),
    });
    shards.collect()
}

/// `queue 3`, `queues 1, 3, 5`, or only the count if there are many.
pub(crate) fn queue_words(queues: &[QueueNumber]) -> String {
    match queues {
        [queue] => format!("queue {queue}"),
        queues if queues.len() > QUEUES_NAMED => format!("{} queues", queues.len()),
        queues => {
            let numbers: Vec<_> = queues.iter().map(ToString::to_string).collect();
            format!("queues {}", numbers.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use mq_common::api::admin::QueueHome;
    use mq_common::ids::{Durability, TopicId};

    use super::*;

    fn topic(name: &str, shards: &[&str]) -> Topic {
        let homes = shards.iter().zip(0..).map(|(shard, queue)| QueueHome {
            queue: QueueNumber(queue),
            shard: ShardName::new(*shard).unwrap(),
        });
        Topic {
            name: TopicName::new(name).unwrap(),
            id: TopicId(1),
            version: 1,
            durability: Durability::Fsynced,
            queues: homes.collect(),
            deleted: false,
            settings: mq_common::api::TopicSettings::default(),
        }
    }

    #[test]
    fn shards_that_hold_queues_and_are_not_registered_are_named_with_them() {
        let mut gone = topic("gone", &["c"]);
        gone.deleted = true;
        let topics = [
            topic("t", &["a", "b", "b"]),
            topic("u", &["b"]),
            topic("v", &["a"]),
            gone,
        ];
        let found = missing(&topics, |shard| shard.as_str() == "a");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].shard.as_str(), "b");
        assert_eq!(
            found[0].to_string(),
            "not registered now; it has queues 1, 2 of topic `t`, queue 0 of topic `u`"
        );
        assert_eq!(missing(&topics, |_| true), []);
    }

    #[test]
    fn long_lists_are_counted() {
        let many = ["b"; 20];
        let topics: Vec<_> = ["t", "u", "v", "w", "x"]
            .iter()
            .map(|name| topic(name, &many))
            .collect();
        assert_eq!(
            missing(&topics, |_| false)[0].to_string(),
            "not registered now; it has 20 queues of topic `t`, 20 queues of topic `u`, 20 queues of topic `v`, and queues of 2 more"
        );
    }
}
