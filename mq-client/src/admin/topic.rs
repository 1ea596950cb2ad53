//! Creating and changing topics: the topic's authority decides first, then its other brokers are informed.

use std::collections::BTreeSet;
use std::time::Duration;

use mq_common::api::SettingsChange;
use mq_common::api::admin::{AlterTopicRequest, CreateTopicRequest, QueueHome, Topic};
use mq_common::api::group::{GroupMode, HeartbeatRequest, StartAt};
use mq_common::ids::{Durability, GroupName, QueueNumber, ShardName, TopicName};
use mq_common::limits::TOPIC_QUEUES_MAX;
use rpc_core::CallError;
use rpc_core::registry::Instance;

use super::merge::unknown;
use super::{Admin, Brokers};
use crate::client::random_member;
use crate::error::{AdminError, RouteError, words};

/// A topic to be created with [`Admin::create_topic`]: 8 queues, every receipt `fsynced`, messages retained
/// for seven days, unless set otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct NewTopic {
    /// Its name: 1 to 127 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Queues in all, dealt over the brokers. Default 8.
    pub queues: u32,
    /// The least durability of a send. Default `fsynced`.
    pub durability: Durability,
    /// How its settings differ from those of a new topic ([`SettingsChange::of_new_topic`]). Default: not at
    /// all.
    pub settings: SettingsChange,
}

impl NewTopic {
    /// A topic of this name with the default properties. [`Admin::create_topic`] checks the name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            queues: 8,
            durability: Durability::Fsynced,
            settings: SettingsChange::default(),
        }
    }

    /// The same with this many queues in all.
    pub const fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// The same with this least durability of a send.
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The same with messages deleted at this age, in whole milliseconds.
    pub fn retention(mut self, age: Duration) -> Self {
        self.settings.retention_ms = Some(Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
        self
    }

    /// The same with key compaction: only the last message of each key is retained, however old it is unless
    /// [`NewTopic::retention`] sets an age.
    pub const fn compact(mut self) -> Self {
        self.settings.compact = Some(true);
        self
    }

    /// The same with these settings; replaces what [`NewTopic::retention`] and [`NewTopic::compact`] set.
    pub const fn settings(mut self, settings: SettingsChange) -> Self {
        self.settings = settings;
        self
    }
}

/// A change of a topic; `None` = as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicChange {
    /// Queues in all, not fewer than now.
    pub queues: Option<u32>,
    /// The least durability of a send.
    pub durability: Option<Durability>,
    /// Its settings.
    pub settings: SettingsChange,
}

impl Admin {
    /// Creates a topic; its queues are dealt over the brokers reachable now. The topic's authority (the
    /// broker of its first queue) creates it first, then the others. If the topic exists with the same
    /// properties, the call completes a creation that had failed at some brokers; settings that the call does
    /// not name may differ then.
    ///
    /// # Errors
    /// `TopicExists` if it exists with other queues or another durability, `OtherSettings` if with other
    /// settings than named; `Queues` if the number of queues is out of range; `Settings` if the settings
    /// contradict each other or are out of range; `Partial` names the brokers that could not be reached: the
    /// rest of the topic is usable, and repeating the call completes it; `MayExist` if a registered broker
    /// did not answer whether it has the topic.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the topic created at some brokers; repeating the call completes it.
    pub async fn create_topic(&self, new: NewTopic) -> Result<Topic, AdminError> {
        let NewTopic {
            name,
            queues,
            durability,
            settings: change,
        } = new;
        let name = TopicName::new(name)?;
        in_range(queues)?;
        change.of_new_topic().check()?;
        let brokers = self.brokers().await?;
        let (declared, silent) = self.declared(&name, &brokers).await?;
        let (homes, settings) = match declared.filter(|topic| !topic.deleted) {
            Some(topic) if topic.queues.len() != queues as usize || topic.durability != durability => {
                return Err(AdminError::TopicExists {
                    topic: name,
                    queues: topic.queues.len(),
                    durability: topic.durability,
                });
            }
            Some(topic) if change.of(topic.settings) != topic.settings => {
                return Err(AdminError::OtherSettings { topic: name });
            }
            Some(topic) => (topic.queues, topic.settings),
            // A silent broker may have it: created a second time, the name would have two authorities.
            None if !silent.is_empty() => {
                return Err(AdminError::MayExist { topic: name, silent });
            }
            None => {
                let homes = self.deal(queues, &brokers).await?;
                (homes, change.of_new_topic())
            }
        };
        let authority = authority(&homes)?.clone();
        let mut request = CreateTopicRequest {
            name,
            identity: None,
            durability,
            queues: homes,
            settings: Some(settings),
        };
        let topic = self.tell_authority(&authority, &brokers, |broker| {
            self.client.admin.create_topic(request.clone()).to(broker)
        });
        let topic = topic.await?;
        request.identity = Some((topic.id, topic.version));
        let tell = |broker: &Instance| self.client.admin.create_topic(request.clone()).to(broker);
        self.tell_others(&authority, &topic, &brokers, tell).await?;
        Ok(topic)
    }

    /// Changes a topic: more queues (dealt over the brokers reachable now, those with the fewest of its
    /// queues first), another durability floor, other settings. Its authority applies the change first, then
    /// its other brokers. An empty change is harmless.
    ///
    /// With more queues, messages with a key go to the queue that the new number of queues gives the key, as
    /// soon as their producer has learned of it: the messages of one key may then be in two queues.
    ///
    /// # Errors
    /// `UnknownTopic`; `FewerQueues` with fewer queues than now; `Queues` with too many; `Settings` if the
    /// settings contradict each other or are out of range; `Broker` with `InvalidArgument` if the topic was
    /// changed concurrently: look at it and try again; `Partial` as for [`Admin::create_topic`]: the change
    /// is valid, and repeating it informs the other brokers.
    ///
    /// # Cancel safety
    /// As for [`Admin::create_topic`].
    pub async fn alter_topic(
        &self,
        name: impl Into<String> + Send,
        change: TopicChange,
    ) -> Result<Topic, AdminError> {
        let name = TopicName::new(name)?;
        let brokers = self.brokers().await?;
        let (declared, silent) = self.declared(&name, &brokers).await?;
        let Some(mut wanted) = declared.filter(|topic| !topic.deleted) else {
            return Err(unknown(name, &silent).into());
        };
        wanted.settings = change.settings.of(wanted.settings);
        wanted.settings.check()?;
        wanted.durability = change.durability.unwrap_or(wanted.durability);
        if let Some(queues) = change.queues {
            in_range(queues)?;
            self.add_queues(&mut wanted, queues, &brokers).await?;
        }
        let authority = authority(&wanted.queues)?.clone();
        let request = AlterTopicRequest { topic: wanted };
        let altered = self.tell_authority(&authority, &brokers, |broker| {
            self.client.admin.alter_topic(request.clone()).to(broker)
        });
        let altered = altered.await?;
        let request = CreateTopicRequest {
            name: altered.name.clone(),
            identity: Some((altered.id, altered.version)),
            durability: altered.durability,
            queues: altered.queues.clone(),
            settings: Some(altered.settings),
        };
        let tell = |broker: &Instance| self.client.admin.create_topic(request.clone()).to(broker);
        self.tell_others(&authority, &altered, &brokers, tell).await?;
        Ok(altered)
    }

    /// Creates a consumer group without members at all brokers of its topic; it starts at the first messages
    /// retained. An existing group is left as it is.
    ///
    /// # Errors
    /// `Broker` with `SubscriptionMismatch` if the group reads another topic; `Partial` names the brokers
    /// that were not reached: the first member that reaches them creates the group there.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the group created at some brokers; repeating the call completes it.
    pub async fn create_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        mode: GroupMode,
    ) -> Result<(), AdminError> {
        let brokers = self.brokers().await?;
        let (declared, silent) = self.declared(topic, &brokers).await?;
        let Some(declared) = declared.filter(|topic| !topic.deleted) else {
            return Err(unknown(topic.clone(), &silent).into());
        };
        let shards: BTreeSet<&ShardName> = declared.queues.iter().map(|home| &home.shard).collect();
        let mut beat = HeartbeatRequest {
            group: group.clone(),
            member: random_member(),
            topic: topic.clone(),
            mode,
            start: Some(StartAt::Earliest),
            owned: Vec::new(),
            leaving: false,
        };
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for shard in shards {
            let Some(broker) = brokers.get(shard) else {
                failed.push((shard.clone(), "not registered now".to_owned()));
                continue;
            };
            beat.leaving = false;
            match self.client.group.heartbeat(beat.clone()).to(broker).await {
                Ok(_) => done.push(shard.clone()),
                Err(error @ CallError::App(_)) => return Err(AdminError::of(shard, error)),
                Err(error) => {
                    failed.push((shard.clone(), words(&error)));
                    continue;
                }
            }
            beat.leaving = true;
            // If this call fails, the member, which reads nothing, ends with its session.
            drop(self.client.group.heartbeat(beat.clone()).to(broker).await);
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(AdminError::Partial { done, failed })
        }
    }

    /// Deals the additional queues round robin over the brokers that answer.
    async fn add_queues(&self, topic: &mut Topic, queues: u32, brokers: &Brokers) -> Result<(), AdminError> {
        let known = topic.queues.len();
        if (queues as usize) < known {
            return Err(AdminError::FewerQueues {
                topic: topic.name.clone(),
                queues,
                known,
            });
        }
        let more = queues - u32::try_from(known).unwrap_or(queues);
        if more == 0 {
            return Ok(());
        }
        let able: BTreeSet<ShardName> = self
            .deal(u32::try_from(brokers.len()).unwrap_or(u32::MAX), brokers)
            .await?
            .into_iter()
            .map(|home| home.shard)
            .collect();
        topic.queues.extend(dealt(&topic.queues, &able, more));
        Ok(())
    }
}

/// Homes for `more` queues after the known ones: each goes to the shard that has the fewest queues so far.
fn dealt(known: &[QueueHome], able: &BTreeSet<ShardName>, more: u32) -> Vec<QueueHome> {
    let count = |shard: &ShardName| known.iter().filter(|home| home.shard == *shard).count();
    let mut fewest: BTreeSet<(usize, &ShardName)> = able.iter().map(|shard| (count(shard), shard)).collect();
    let first = u32::try_from(known.len()).unwrap_or(u32::MAX);
    let mut homes = Vec::new();
    for number in first..first.saturating_add(more) {
        let Some((count, shard)) = fewest.pop_first() else {
            break;
        };
        homes.push(QueueHome {
            queue: QueueNumber(number),
            shard: shard.clone(),
        });
        fewest.insert((count + 1, shard));
    }
    homes
}

fn authority(homes: &[QueueHome]) -> Result<&ShardName, AdminError> {
    let first = homes.first().map(|home| &home.shard);
    first.ok_or(AdminError::Route(RouteError::NoBrokers))
}

const fn in_range(queues: u32) -> Result<(), AdminError> {
    if queues == 0 || queues > TOPIC_QUEUES_MAX {
        return Err(AdminError::Queues {
            queues,
            limit: TOPIC_QUEUES_MAX,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(names: &[&str]) -> BTreeSet<ShardName> {
        names.iter().map(|name| ShardName::new(*name).unwrap()).collect()
    }

    #[test]
    fn more_queues_go_to_the_brokers_that_have_the_fewest() {
        let known: Vec<QueueHome> = (0..)
            .zip(["a", "b", "a"])
            .map(|(queue, shard)| QueueHome {
                queue: QueueNumber(queue),
                shard: ShardName::new(shard).unwrap(),
            })
            .collect();
        let homes = dealt(&known, &shards(&["a", "b", "c"]), 4);
        let homes: Vec<_> = homes
            .iter()
            .map(|home| (home.queue.0, home.shard.as_str()))
            .collect();
        assert_eq!(homes, [(3, "c"), (4, "b"), (5, "c"), (6, "a")]);
    }
}
