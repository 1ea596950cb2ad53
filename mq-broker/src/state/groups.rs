//! Consumer groups: one topic, one mode, one cursor for each queue. Pure.
//!
//! The members and which of them owns which queue are not here: that is volatile (`crate::volatile`).

use std::collections::{BTreeMap, BTreeSet};

use mq_common::api::group::GroupMode;
use mq_common::ids::{GroupName, Offset, Timestamp, TopicName};

use super::command::{Ack, CreateGroup};
use super::effects::{Effects, GroupChange, Outcome, Refusal};
use super::queues::Queues;
use super::rows::{CursorRow, GroupRow};
use super::{Moment, State};
use crate::ids::{GroupKey, QueueKey};

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its topic.
    pub topic: TopicName,
    /// Its mode.
    pub mode: GroupMode,
    /// When it was created.
    pub since: Timestamp,
    /// For each queue of its topic on this shard, in order of the keys, the first offset not acked.
    pub cursors: Vec<(QueueKey, Offset)>,
    /// Messages that were deleted before the group acknowledged them, by queue; no entry = none.
    pub lost: BTreeMap<QueueKey, u64>,
}

impl Group {
    /// Messages of a queue that were deleted before the group acknowledged them.
    #[must_use]
    pub fn lost(&self, queue: QueueKey) -> u64 {
        self.lost.get(&queue).copied().unwrap_or(0)
    }

    /// Moves a cursor that is below the queue's new `start` up to it, and counts the messages passed over.
    /// Returns where the cursor was; `None` if it did not move.
    pub(super) fn pass_over(&mut self, queue: QueueKey, start: Offset) -> Option<Offset> {
        let at = self
            .cursors
            .binary_search_by_key(&queue, |(queue, _)| *queue)
            .ok()?;
        let cursor = &mut self.cursors[at].1;
        if *cursor >= start {
            return None;
        }
        let from = std::mem::replace(cursor, start);
        *self.lost.entry(queue).or_default() += start.0 - from.0;
        Some(from)
    }

    /// First offset of a queue that is not acked.
    #[must_use]
    pub fn cursor(&self, queue: QueueKey) -> Option<Offset> {
        let at = self
            .cursors
            .binary_search_by_key(&queue, |(queue, _)| *queue)
            .ok()?;
        Some(self.cursors[at].1)
    }
}

/// The most groups that a shard creates in its life.
pub(super) const GROUP_KEYS_MAX: u32 = 1 << 30;

/// All groups, and which of them changed.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) by_key: BTreeMap<GroupKey, Group>,
    pub(super) by_name: BTreeMap<GroupName, GroupKey>,
    pub(super) next: GroupKey,
    dirty: BTreeSet<GroupKey>,
    pub(super) dirty_cursors: BTreeSet<(GroupKey, QueueKey)>,
    gone: Vec<GroupKey>,
}

impl State {
    /// If the same group exists, it is the result; a member with another topic or mode is refused.
    pub(super) fn create_group(
        &mut self,
        at: &Moment,
        wanted: CreateGroup,
        effects: &mut Effects,
    ) -> Outcome {
        if let Some((key, known)) = self.group_by_name(&wanted.name) {
            return if known.topic == wanted.topic && known.mode == wanted.mode {
                Outcome::Group(key)
            } else {
                Outcome::Refused(Refusal::SubscriptionMismatch {
                    topic: known.topic.clone(),
                    mode: known.mode,
                })
            };
        }
        let Some(topic) = self.topic(&wanted.topic) else {
            return Outcome::Refused(Refusal::UnknownTopic(wanted.topic));
        };
        if self.groups.next >= GroupKey(GROUP_KEYS_MAX) {
            return Outcome::Refused(Refusal::Invalid(
                "this broker has created as many groups as it can in its life; start it with an empty data folder",
            ));
        }
        let start: BTreeMap<QueueKey, Offset> = wanted.cursors.into_iter().collect();
        let mut cursors = Vec::with_capacity(topic.here.len());
        for (_, key) in &topic.here {
            let Some(queue) = self.queues.get(*key) else {
                continue;
            };
            let cursor = start.get(key).copied().unwrap_or(queue.start);
            cursors.push((*key, cursor.max(queue.start).min(queue.end)));
        }
        cursors.sort_unstable();
        for (queue, _) in &cursors {
            self.queues.touch(*queue);
        }
        let group = Group {
            name: wanted.name,
            topic: wanted.topic,
            mode: wanted.mode,
            since: at.time,
            cursors,
            lost: BTreeMap::new(),
        };
        let key = self.groups.insert(group);
        effects.groups.push(GroupChange::Created(key));
        Outcome::Group(key)
    }
}

impl Groups {
    fn insert(&mut self, group: Group) -> GroupKey {
        let key = self.next;
        self.next = GroupKey(key.0 + 1);
        self.dirty.insert(key);
        self.dirty_cursors
            .extend(group.cursors.iter().map(|(queue, _)| (key, *queue)));
        self.by_name.insert(group.name.clone(), key);
        self.by_key.insert(key, group);
        key
    }

    /// Moves cursors forward. An ack is ignored if it names a deleted group or queue, moves back, or passes
    /// the queue's end: the service refuses such acks, so here it can only come from a race with a deletion
    /// or from a merge of old and new acks.
    pub(super) fn progress(&mut self, acks: &[Ack], queues: &mut Queues, effects: &mut Effects) -> Outcome {
        for ack in acks {
            let Some(group) = self.by_key.get_mut(&ack.group) else {
                continue;
            };
            let Ok(at) = group
                .cursors
                .binary_search_by_key(&ack.queue, |(queue, _)| *queue)
            else {
                continue;
            };
            let Some(queue) = queues.get(ack.queue) else {
                continue;
            };
            let cursor = &mut group.cursors[at].1;
            if ack.next > *cursor && ack.next <= queue.end {
                *cursor = ack.next;
                queues.touch(ack.queue);
                self.dirty_cursors.insert((ack.group, ack.queue));
                effects
                    .groups
                    .push(GroupChange::Progress(ack.group, ack.queue, ack.next));
            }
        }
        Outcome::Done
    }

    /// New queues of a topic are read from their first message by every group: nothing in them is older than
    /// the group.
    pub(super) fn add_queues(&mut self, topic: &TopicName, queues: &[QueueKey], effects: &mut Effects) {
        if queues.is_empty() {
            return;
        }
        for (key, group) in &mut self.by_key {
            if group.topic == *topic {
                // Keys only rise, so the cursors stay in order.
                group
                    .cursors
                    .extend(queues.iter().map(|queue| (*queue, Offset(0))));
                self.dirty_cursors
                    .extend(queues.iter().map(|queue| (*key, *queue)));
                effects.groups.push(GroupChange::Queues(*key));
            }
        }
    }

    pub(super) fn delete_of_topic(&mut self, topic: &TopicName, effects: &mut Effects) {
        let keys: Vec<GroupKey> = self
            .by_key
            .iter()
            .filter(|(_, group)| group.topic == *topic)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if let Some(group) = self.by_key.remove(&key) {
                self.by_name.remove(&group.name);
            }
            self.gone.push(key);
            effects.groups.push(GroupChange::Deleted(key));
        }
    }

    pub(super) fn take_dirty(&mut self) -> (Vec<GroupRow>, Vec<CursorRow>, Vec<GroupKey>) {
        let rows = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|key| Some(row(key, self.by_key.get(&key)?)))
            .collect();
        let cursors = std::mem::take(&mut self.dirty_cursors)
            .into_iter()
            .filter_map(|(group, queue)| {
                let known = self.by_key.get(&group)?;
                Some(CursorRow {
                    group,
                    queue,
                    next: known.cursor(queue)?,
                    lost: known.lost(queue),
                })
            })
            .collect();
        (rows, cursors, std::mem::take(&mut self.gone))
    }

    pub(super) fn rows(&self) -> (Vec<GroupRow>, Vec<CursorRow>) {
        let rows = self.by_key.iter().map(|(key, group)| row(*key, group)).collect();
        let cursors = self.by_key.iter().flat_map(|(key, group)| {
            group.cursors.iter().map(|(queue, next)| CursorRow {
                group: *key,
                queue: *queue,
                next: *next,
                lost: group.lost(*queue),
            })
        });
        (rows, cursors.collect())
    }

    pub(super) fn load_group(&mut self, row: GroupRow) {
        self.by_name.insert(row.name.clone(), row.key);
        let group = Group {
            name: row.name,
            topic: row.topic,
            mode: row.mode,
            since: row.since,
            cursors: Vec::new(),
            lost: BTreeMap::new(),
        };
        self.by_key.insert(row.key, group);
    }
}

fn row(key: GroupKey, group: &Group) -> GroupRow {
    GroupRow {
        key,
        name: group.name.clone(),
        topic: group.topic.clone(),
        mode: group.mode,
        since: group.since,
    }
}
