//! What a broker must hold, kept as plainly as possible: a list of batches for each queue, and who read how
//! far. Each change is applied when the core has answered it, and the answer is checked against it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mq_broker::ids::{GroupKey, QueueKey};
use mq_broker::log::Command;
use mq_broker::state::command::{Ack, CreateGroup, Part, SendHalf, checksum_of};
use mq_broker::state::{self, Declaration, Outcome};
use mq_common::api::TopicSettings;
use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::group::GroupMode;
use mq_common::api::transaction::{Decision, TransactionState};
use mq_common::batch::Batch;
use mq_common::ids::{Durability, GroupName, Offset, QueueNumber, ShardName, TopicId, TransactionNumber};

use super::topic;

/// One change, as a client asks for it.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Append {
        queue: u32,
        batch: Batch,
    },
    Half {
        parts: Vec<(u32, Batch)>,
    },
    End {
        number: u64,
        commit: bool,
    },
    CreateTopic {
        name: String,
        queues: u32,
        compacts: bool,
    },
    /// Gives it more queues; `known` = its id and version.
    AlterTopic {
        name: String,
        known: (u64, u64),
        queues: u32,
        compacts: bool,
    },
    DeleteTopic {
        name: String,
    },
    CreateGroup {
        topic: String,
    },
    Ack {
        group: u32,
        queue: u32,
        next: u64,
    },
    Trim {
        queue: u32,
        start: u64,
    },
}

/// One queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// First offset and bytes of each batch from the start on; the first one may begin before it.
    pub(crate) batches: Vec<(u64, Bytes)>,
}

/// Everything that can be seen of a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Queues of each topic.
    pub(crate) topics: BTreeMap<String, Vec<u32>>,
    /// Id and version of each.
    pub(crate) declared: BTreeMap<String, (u64, u64)>,
    pub(crate) queues: BTreeMap<u32, Queue>,
    /// Those of topics that compact: a core may show less of them, see `compacted`.
    pub(crate) compacting: BTreeSet<u32>,
    /// Of (group, queue).
    pub(crate) cursors: BTreeMap<(u32, u32), u64>,
    /// Of (group, queue), if there are any: messages that were trimmed before the group had acknowledged
    /// them.
    pub(crate) lost: BTreeMap<(u32, u32), u64>,
    /// Of undecided transactions, the batches and where they are to go.
    pub(crate) open: BTreeMap<u64, Vec<(u32, Bytes)>>,
    /// Of decided ones: committed or not.
    pub(crate) verdicts: BTreeMap<u64, bool>,
    pub(crate) next_queue: u32,
    pub(crate) next_group: u32,
}

pub(crate) fn shard() -> ShardName {
    ShardName::new("here").unwrap()
}

fn part(queue: u32, batch: &Batch) -> Part {
    Part {
        queue: QueueKey(queue),
        records: batch.record_count(),
        bytes: u32::try_from(batch.len()).unwrap(),
    }
}

fn declaration(name: &str, (id, version): (u64, u64), queues: u32, compacts: bool) -> Declaration {
    let homes = (0..queues).map(|number| QueueHome {
        queue: QueueNumber(number),
        shard: shard(),
    });
    let declared = Topic {
        name: topic(name),
        id: TopicId(id),
        version,
        durability: Durability::Fsynced,
        queues: homes.collect(),
        deleted: false,
        settings: TopicSettings {
            compact: compacts,
            ..TopicSettings::default()
        },
    };
    Declaration::new(&declared).unwrap()
}

impl Change {
    /// As it goes to the log. `serial` differs from change to change.
    pub(crate) fn command(&self, serial: u64) -> Command {
        let (meta, batches) = match self {
            Self::Append { queue, batch } => {
                (state::Command::Append(part(*queue, batch)), vec![batch.clone()])
            }
            Self::Half { parts } => {
                let sums = parts
                    .iter()
                    .map(|(_, batch)| (batch.checksum(), u32::try_from(batch.len()).unwrap()));
                let half = SendHalf {
                    producer_group: GroupName::new("producers").unwrap(),
                    key: Some(serial.to_string()),
                    check_after_ms: 6000,
                    checksum: checksum_of(sums),
                    parts: parts.iter().map(|(queue, batch)| part(*queue, batch)).collect(),
                };
                let batches = parts.iter().map(|(_, batch)| batch.clone()).collect();
                return Command::new(state::Command::SendHalf(half).encode(), batches).with_own_lsn();
            }
            Self::End { number, commit } => {
                let (number, decision) = (TransactionNumber(*number), decision(*commit));
                (state::Command::EndTransaction { number, decision }, vec![])
            }
            Self::CreateTopic {
                name,
                queues,
                compacts,
            } => {
                let declaration = declaration(name, (serial + 1, 0), *queues, *compacts);
                (state::Command::CreateTopic(declaration), vec![])
            }
            Self::AlterTopic {
                name,
                known,
                queues,
                compacts,
            } => {
                let declaration = declaration(name, *known, *queues, *compacts);
                (state::Command::AlterTopic(declaration), vec![])
            }
            Self::DeleteTopic { name } => {
                let (name, drop_transactions) = (topic(name), true);
                let command = state::Command::DeleteTopic {
                    name,
                    drop_transactions,
                };
                (command, vec![])
            }
            Self::CreateGroup { topic: of } => {
                let group = CreateGroup {
                    name: GroupName::new(format!("g{serial}").as_str()).unwrap(),
                    topic: topic(of),
                    mode: GroupMode::Stream,
                    cursors: vec![],
                };
                (state::Command::CreateGroup(group), vec![])
            }
            Self::Ack { group, queue, next } => {
                let ack = Ack {
                    group: GroupKey(*group),
                    queue: QueueKey(*queue),
                    next: Offset(*next),
                };
                (state::Command::Progress { acks: vec![ack] }, vec![])
            }
            Self::Trim { queue, start } => {
                let starts = vec![(QueueKey(*queue), Offset(*start))];
                (state::Command::Trim { starts }, vec![])
            }
        };
        Command::new(meta.encode(), batches)
    }
}

const fn decision(commit: bool) -> Decision {
    if commit {
        Decision::Commit
    } else {
        Decision::Rollback
    }
}

impl View {
    /// The change was made. `outcome` = what the core answered; `None` = no answer came, and then only
    /// changes whose outcome is certain may be given.
    pub(crate) fn apply(&mut self, change: &Change, outcome: Option<&Outcome>) {
        match change {
            Change::Append { queue, batch } => {
                let base = self.place(
                    *queue,
                    Bytes::copy_from_slice(batch.bytes()),
                    batch.record_count(),
                );
                let base_offset = Offset(base);
                assert!(outcome.is_none_or(|outcome| *outcome == Outcome::Appended { base_offset }));
            }
            Change::Half { parts } => {
                let Some(Outcome::Half { number, state }) = outcome else {
                    panic!("{outcome:?}");
                };
                assert_eq!(*state, TransactionState::Open);
                let parts = parts
                    .iter()
                    .map(|(queue, batch)| (*queue, Bytes::copy_from_slice(batch.bytes())));
                assert_eq!(self.open.insert(number.0, parts.collect()), None);
            }
            Change::End { number, commit } => self.end(*number, *commit, outcome),
            Change::CreateTopic {
                name,
                queues,
                compacts,
            } => {
                assert_eq!(self.topics.insert(name.clone(), Vec::new()), None);
                self.declare(name, *queues, *compacts, outcome);
            }
            Change::AlterTopic {
                name,
                known,
                queues,
                compacts,
            } => {
                self.declare(name, *queues, *compacts, outcome);
                assert_eq!(self.declared[name], (known.0, known.1 + 1));
            }
            Change::DeleteTopic { name } => {
                assert!(matches!(outcome, Some(Outcome::Topic(gone)) if gone.deleted));
                self.delete(name);
            }
            Change::CreateGroup { topic } => {
                assert_eq!(outcome, Some(&Outcome::Group(GroupKey(self.next_group))));
                for queue in &self.topics[topic] {
                    let start = self.queues[queue].start;
                    self.cursors.insert((self.next_group, *queue), start);
                }
                self.next_group += 1;
            }
            Change::Ack { group, queue, next } => {
                assert_eq!(outcome, Some(&Outcome::Done));
                let cursor = self.cursors.get_mut(&(*group, *queue)).unwrap();
                *cursor = (*cursor).max(*next);
            }
            Change::Trim { queue, start } => {
                assert_eq!(outcome, Some(&Outcome::Done));
                self.trim(*queue, *start);
            }
        }
    }

    /// The topic now has this many queues; the new ones are new for its groups too.
    fn declare(&mut self, name: &str, queues: u32, compacts: bool, outcome: Option<&Outcome>) {
        let Some(Outcome::Topic(made)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(made.queues.len(), queues as usize);
        self.declared.insert(name.to_owned(), (made.id.0, made.version));
        let keys = self.topics.get_mut(name).unwrap();
        let of_it = |queue: &u32| keys.contains(queue);
        let groups: BTreeSet<u32> = self
            .cursors
            .keys()
            .filter(|(_, queue)| of_it(queue))
            .map(|(group, _)| *group)
            .collect();
        for _ in keys.len()..queues as usize {
            let key = self.next_queue;
            self.next_queue += 1;
            self.queues.insert(key, Queue::default());
            self.compacting.extend(compacts.then_some(key));
            self.cursors.extend(groups.iter().map(|group| ((*group, key), 0)));
            keys.push(key);
        }
    }

    fn trim(&mut self, key: u32, start: u64) {
        let queue = self.queues.get_mut(&key).unwrap();
        queue.start = queue.start.max(start);
        queue.batches.retain(|(base, region)| {
            let records = Batch::parse_trusted(region.clone()).unwrap().record_count();
            base + u64::from(records) > start
        });
        for ((group, of), cursor) in &mut self.cursors {
            if *of == key && *cursor < start {
                *self.lost.entry((*group, key)).or_default() += start - *cursor;
                *cursor = start;
            }
        }
    }

    fn place(&mut self, queue: u32, region: Bytes, records: u32) -> u64 {
        let queue = self.queues.get_mut(&queue).unwrap();
        let base = queue.end;
        queue.batches.push((base, region));
        queue.end += u64::from(records);
        base
    }

    fn end(&mut self, number: u64, commit: bool, outcome: Option<&Outcome>) {
        let parts = self.open.remove(&number).unwrap();
        self.verdicts.insert(number, commit);
        let mut placed = Vec::new();
        for (queue, region) in parts.into_iter().filter(|_| commit) {
            let records = Batch::parse_trusted(region.clone()).unwrap().record_count();
            placed.push((QueueKey(queue), Offset(self.place(queue, region, records))));
        }
        let Some(Outcome::Ended(ended)) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(!ended.already);
        assert_eq!(ended.placed, placed);
    }

    fn delete(&mut self, name: &str) {
        let keys = self.topics.remove(name).unwrap();
        self.declared.remove(name);
        let gone = |queue: &u32| keys.contains(queue);
        self.queues.retain(|queue, _| !gone(queue));
        self.compacting.retain(|queue| !gone(queue));
        self.cursors.retain(|(_, queue), _| !gone(queue));
        self.lost.retain(|(_, queue), _| !gone(queue));
        let numbers: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, parts)| parts.iter().any(|(queue, _)| gone(queue)))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.open.remove(&number);
            self.verdicts.insert(number, false);
        }
    }
}
