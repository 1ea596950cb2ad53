//! A topic as it was declared: the list of all its queues with their shards. Pure.
//!
//! The list is kept small (two bytes a queue), because every shard keeps the lists of all its topics.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::{InvalidSettings, TopicSettings};
use mq_common::ids::{Durability, QueueNumber, ShardName, TopicId, TopicName};
use mq_common::limits::{TOPIC_QUEUES_MAX, TOPIC_SHARDS_MAX};

/// A declared topic. Of two declarations of one name, the one with the higher `(id, version)` wins: ids rise
/// with time, versions with every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// Its name.
    pub name: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// Rises with every change. 0 = not numbered by the authority yet.
    pub version: u64,
    /// Least durability of a send.
    pub durability: Durability,
    /// This is the tombstone of a deleted topic.
    pub deleted: bool,
    /// How long it keeps messages, and which it accepts.
    pub settings: TopicSettings,
    /// The shards that have queues of it; the first is the authority.
    pub shards: Vec<ShardName>,
    /// For each queue, in order of the numbers from 0, the index of its shard in `shards`.
    pub homes: Vec<u16>,
}

/// Why a topic cannot be declared like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDeclaration {
    /// No queue at all.
    #[error("a topic needs at least one queue")]
    NoQueues,
    /// More queues than a topic may have.
    #[error("{0} queues are too many; a topic has at most {TOPIC_QUEUES_MAX}")]
    TooManyQueues(usize),
    /// Queue numbers with a gap, a repetition or in another order.
    #[error("the queues must be numbered 0, 1, 2 and so on without a gap, in this order")]
    Numbers,
    /// More shards than a topic may have.
    #[error("a topic is on at most {TOPIC_SHARDS_MAX} shards")]
    TooManyShards,
    /// Settings that make no sense.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
}

impl Declaration {
    /// Reads a declaration from its form on the wire.
    ///
    /// # Errors
    /// [`InvalidDeclaration`] when the list of queues is not one of this form.
    pub fn new(topic: &Topic) -> Result<Self, InvalidDeclaration> {
        if topic.queues.is_empty() {
            return Err(InvalidDeclaration::NoQueues);
        }
        topic.settings.check()?;
        if topic.queues.len() > TOPIC_QUEUES_MAX as usize {
            return Err(InvalidDeclaration::TooManyQueues(topic.queues.len()));
        }
        let mut shards: Vec<ShardName> = Vec::new();
        // The list comes from a peer and may be long: do not search all shards for each queue.
        let mut places: BTreeMap<&ShardName, u16> = BTreeMap::new();
        let mut homes = Vec::with_capacity(topic.queues.len());
        for (number, home) in (0..).zip(&topic.queues) {
            if home.queue != QueueNumber(number) {
                return Err(InvalidDeclaration::Numbers);
            }
            let next = places.len();
            let place = match places.entry(&home.shard) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(_) if next >= TOPIC_SHARDS_MAX as usize => {
                    return Err(InvalidDeclaration::TooManyShards);
                }
                Entry::Vacant(new) => {
                    shards.push(home.shard.clone());
                    *new.insert(u16::try_from(next).expect("fewer than the limit"))
                }
            };
            homes.push(place);
        }
        Ok(Self {
            name: topic.name.clone(),
            id: topic.id,
            version: topic.version,
            durability: topic.durability,
            deleted: topic.deleted,
            settings: topic.settings,
            shards,
            homes,
        })
    }

    /// Its form on the wire.
    #[must_use]
    pub fn to_topic(&self) -> Topic {
        let queues = (0..).zip(&self.homes).map(|(number, home)| QueueHome {
            queue: QueueNumber(number),
            shard: self.shards[usize::from(*home)].clone(),
        });
        Topic {
            name: self.name.clone(),
            id: self.id,
            version: self.version,
            durability: self.durability,
            queues: queues.collect(),
            deleted: self.deleted,
            settings: self.settings,
        }
    }

    /// The shard that numbers versions and refuses a second topic of the name.
    #[must_use]
    pub fn authority(&self) -> Option<&ShardName> {
        self.shards.first()
    }

    /// The shard of a queue.
    #[must_use]
    pub fn home(&self, queue: QueueNumber) -> Option<&ShardName> {
        let home = self.homes.get(usize::try_from(queue.0).ok()?)?;
        self.shards.get(usize::from(*home))
    }

    /// The queues on this shard, in order of their numbers.
    pub fn queues_on<'a>(&'a self, shard: &ShardName) -> impl Iterator<Item = QueueNumber> + 'a {
        let index = self.shards.iter().position(|each| each == shard);
        (0..)
            .zip(&self.homes)
            .filter(move |(_, home)| Some(usize::from(**home)) == index)
            .map(|(number, _)| QueueNumber(number))
    }

    /// How many queues are on the shards that come before this one in the list.
    #[must_use]
    pub fn queues_before(&self, shard: &ShardName) -> usize {
        let index = self
            .shards
            .iter()
            .position(|each| each == shard)
            .unwrap_or(self.shards.len());
        self.homes
            .iter()
            .filter(|home| usize::from(**home) < index)
            .count()
    }

    /// Whether it keeps every queue of `earlier` where it was: a topic only grows.
    #[must_use]
    pub fn extends(&self, earlier: &Self) -> bool {
        self.homes.len() >= earlier.homes.len()
            && self
                .homes
                .iter()
                .zip(&earlier.homes)
                .all(|(new, old)| self.shards.get(usize::from(*new)) == earlier.shards.get(usize::from(*old)))
    }
}
