//! Topics: declared at their authority, adopted by the other shards, deleted as a version. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mq_common::ids::{QueueNumber, ShardName, TopicId, TopicName, TransactionNumber};

use super::declaration::Declaration;
use super::effects::{Effects, Outcome, Refusal};
use super::{Moment, State};
use crate::ids::QueueKey;

/// A topic that this shard has, or the tombstone of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// As declared.
    pub declaration: Declaration,
    /// Its queues on this shard, in order of their numbers.
    pub here: Vec<(QueueNumber, QueueKey)>,
    /// Its name, shared with its queues.
    pub(super) name: Arc<TopicName>,
}

impl Topic {
    /// The key of one of its queues; `None` if it lies on another shard or there is none.
    #[must_use]
    pub fn key(&self, number: QueueNumber) -> Option<QueueKey> {
        let at = self
            .here
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        Some(self.here[at].1)
    }
}

/// Limits of what a peer may declare: far above any value that is reached, and far below the end of the
/// numbers.
const VERSION_MAX: u64 = 1 << 48;
const ID_MAX: u64 = 1 << 62;

/// All topics by name, and which of them changed.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) by_name: BTreeMap<TopicName, Topic>,
    pub(super) dirty: BTreeSet<TopicName>,
}

impl State {
    /// At the authority. If a topic with the same properties exists (number of queues, durability, settings),
    /// it is the result, so that an interrupted creation can be repeated.
    pub(super) fn create_topic(&mut self, mut wanted: Declaration, effects: &mut Effects) -> Outcome {
        if let Some(known) = self.topics.by_name.get(&wanted.name) {
            let known = &known.declaration;
            if !known.deleted {
                if known.durability != wanted.durability || known.homes.len() != wanted.homes.len() {
                    return Outcome::Refused(exists(known));
                }
                if known.settings != wanted.settings {
                    return Outcome::Refused(Refusal::OtherSettings(wanted.name));
                }
                return Outcome::Topic(known.to_topic());
            }
            wanted.version = known.version + 1;
            wanted.id = wanted.id.max(TopicId(known.id.0 + 1));
        } else {
            wanted.version = 1;
        }
        if let Err(refusal) = self.check_authority(&wanted) {
            return Outcome::Refused(refusal);
        }
        wanted.deleted = false;
        self.declare(wanted, effects)
    }

    /// At the other shards, also at one that was unreachable for a while.
    pub(super) fn adopt_topic(
        &mut self,
        at: &Moment,
        given: Declaration,
        drop_transactions: bool,
        effects: &mut Effects,
    ) -> Outcome {
        if given.version == 0 || given.version > VERSION_MAX || given.id.0 > ID_MAX {
            return Outcome::Refused(Refusal::Invalid(
                "an adopted topic has a version from 1 and an id below 2^62",
            ));
        }
        if !given.shards.contains(&self.shard) {
            return Outcome::Refused(Refusal::Invalid(
                "the topic's declared queue list does not name this shard",
            ));
        }
        let Some(known) = self
            .topics
            .by_name
            .get(&given.name)
            .map(|topic| &topic.declaration)
        else {
            return self.declare(given, effects);
        };
        if known.id == given.id {
            if given.version <= known.version {
                return Outcome::Topic(known.to_topic());
            }
            if given.deleted {
                return self.bury(at, given, drop_transactions, effects);
            }
            if known.deleted {
                return Outcome::Refused(Refusal::Invalid(
                    "a deleted topic stays deleted; a new one has a new id",
                ));
            }
            if !given.extends(known) {
                return Outcome::Refused(Refusal::Invalid(
                    "a later version of a topic keeps every queue on its shard",
                ));
            }
            return self.declare(given, effects);
        }
        if given.id < known.id {
            return Outcome::Refused(if known.deleted {
                Refusal::Outdated {
                    name: given.name,
                    version: given.version,
                }
            } else {
                exists(known)
            });
        }
        if known.deleted {
            return self.declare(given, effects);
        }
        // The authority refuses a second topic of a name. So if the same authority declared both, the one
        // known here was deleted while this shard was unreachable. With two authorities the names clash, and
        // an operator has to delete one of the topics: adopting it here would drop messages that nobody
        // decided to delete.
        if known.authority() != given.authority() {
            return Outcome::Refused(exists(known));
        }
        let tombstone = Declaration {
            version: known.version + 1,
            deleted: true,
            ..known.clone()
        };
        self.bury(at, tombstone, drop_transactions, effects);
        self.declare(given, effects)
    }

    /// At the authority. `wanted` has the id and version of the declaration that it changes. If the version
    /// here is another one, a different change came first, unless it is the result of this very change.
    pub(super) fn alter_topic(&mut self, mut wanted: Declaration, effects: &mut Effects) -> Outcome {
        let Some(known) = self.topic(&wanted.name).map(|topic| &topic.declaration) else {
            return Outcome::Refused(Refusal::UnknownTopic(wanted.name));
        };
        if let Err(refusal) = self.check_authority(known) {
            return Outcome::Refused(refusal);
        }
        let same = Declaration {
            version: known.version,
            ..wanted.clone()
        } == *known;
        let repeated = known.version.checked_sub(1) == Some(wanted.version);
        if same && (wanted.version == known.version || repeated) {
            return Outcome::Topic(known.to_topic());
        }
        if wanted.id != known.id || wanted.version != known.version || known.version >= VERSION_MAX {
            return Outcome::Refused(Refusal::Outdated {
                name: wanted.name,
                version: wanted.version,
            });
        }
        if wanted.deleted || !wanted.extends(known) {
            return Outcome::Refused(Refusal::Invalid(
                "queues cannot be removed or moved: a topic can only get more of them",
            ));
        }
        wanted.version = known.version + 1;
        self.declare(wanted, effects)
    }

    /// At the authority. Repeating a deletion returns the tombstone.
    pub(super) fn delete_topic(
        &mut self,
        at: &Moment,
        name: TopicName,
        drop_transactions: bool,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(known) = self.topics.by_name.get(&name) else {
            return Outcome::Refused(Refusal::UnknownTopic(name));
        };
        if known.declaration.deleted {
            return Outcome::Topic(known.declaration.to_topic());
        }
        if let Err(refusal) = self.check_authority(&known.declaration) {
            return Outcome::Refused(refusal);
        }
        let open = self.open_transactions_of(&name).len();
        if open > 0 && !drop_transactions {
            return Outcome::Refused(Refusal::OpenTransactions { name, open });
        }
        let tombstone = Declaration {
            version: known.declaration.version + 1,
            deleted: true,
            ..known.declaration.clone()
        };
        self.bury(at, tombstone, drop_transactions, effects)
    }

    fn check_authority(&self, declaration: &Declaration) -> Result<(), Refusal> {
        match declaration.authority() {
            Some(authority) if *authority == self.shard => Ok(()),
            Some(authority) => Err(Refusal::NotAuthority {
                name: declaration.name.clone(),
                authority: authority.clone(),
                here: self.shard.clone(),
            }),
            None => Err(Refusal::Invalid("a topic needs at least one queue")),
        }
    }

    /// Puts a declaration into effect: creates the queues that are new on this shard, and adds them to its
    /// groups.
    fn declare(&mut self, declaration: Declaration, effects: &mut Effects) -> Outcome {
        let known = self.topic(&declaration.name).map_or(0, |topic| topic.here.len());
        let wanted = if declaration.deleted {
            0
        } else {
            declaration.queues_on(&self.shard).count()
        };
        if !self.queues.have_room(wanted.saturating_sub(known)) {
            return Outcome::Refused(Refusal::Invalid(
                "this broker has created as many queues as it can in its life; start it with an empty data folder",
            ));
        }
        let earlier = self.topics.by_name.remove(&declaration.name);
        let (name, mut here) = match earlier {
            Some(topic) if !topic.declaration.deleted => (topic.name, topic.here),
            _ => (Arc::new(declaration.name.clone()), Vec::new()),
        };
        let mut added = Vec::new();
        if !declaration.deleted {
            for (_, key) in &here {
                self.queues.set_floor(*key, declaration.durability);
            }
            let known = here.len();
            for number in declaration.queues_on(&self.shard).skip(known) {
                let key = self.queues.create(&name, number, declaration.durability);
                here.push((number, key));
                added.push(key);
            }
        }
        self.groups.add_queues(&declaration.name, &added, effects);
        effects.queues_created.extend(added);
        effects.topics.push(declaration.name.clone());
        self.topics.dirty.insert(declaration.name.clone());
        let answer = declaration.to_topic();
        self.topics.by_name.insert(
            declaration.name.clone(),
            Topic {
                declaration,
                here,
                name,
            },
        );
        Outcome::Topic(answer)
    }

    /// Replaces a topic with a tombstone: deletes its queues and groups, and rolls back its transactions if
    /// asked to.
    fn bury(
        &mut self,
        at: &Moment,
        tombstone: Declaration,
        drop_transactions: bool,
        effects: &mut Effects,
    ) -> Outcome {
        debug_assert!(tombstone.deleted, "only a tombstone buries a topic");
        let name = tombstone.name.clone();
        if drop_transactions {
            for number in self.open_transactions_of(&name) {
                self.transactions.roll_back(at, number, effects);
            }
        }
        self.groups.delete_of_topic(&name, effects);
        if let Some(topic) = self.topics.by_name.get(&name) {
            for (_, key) in &topic.here {
                self.queues.drop_queue(*key);
                effects.queues_dropped.push(*key);
            }
        }
        let answer = tombstone.to_topic();
        let shared = Arc::new(name.clone());
        self.topics.by_name.insert(
            name.clone(),
            Topic {
                declaration: tombstone,
                here: Vec::new(),
                name: shared,
            },
        );
        self.topics.dirty.insert(name.clone());
        effects.topics.push(name);
        Outcome::Topic(answer)
    }

    /// Undecided transactions that would append to this topic.
    fn open_transactions_of(&self, name: &TopicName) -> Vec<TransactionNumber> {
        let Some(topic) = self.topics.by_name.get(name) else {
            return Vec::new();
        };
        let keys: BTreeSet<QueueKey> = topic.here.iter().map(|(_, key)| *key).collect();
        self.transactions
            .open
            .values()
            .filter(|transaction| transaction.parts.iter().any(|part| keys.contains(&part.queue)))
            .map(|transaction| transaction.number)
            .collect()
    }

    /// This shard's name.
    #[must_use]
    pub const fn shard(&self) -> &ShardName {
        &self.shard
    }
}

fn exists(known: &Declaration) -> Refusal {
    Refusal::TopicExists {
        name: known.name.clone(),
        queues: known.homes.len(),
        durability: known.durability,
    }
}
