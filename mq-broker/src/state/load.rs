//! Rebuilds the state from the rows of a checkpoint. Rows that no state can have written are refused. Pure.

use std::sync::Arc;

use mq_common::ids::{ShardName, TopicName};

use super::groups::GROUP_KEYS_MAX;
use super::pauses::Pauses;
use super::queues::{OFFSET_MAX, QUEUE_KEYS_MAX, Queues};
use super::rows::{CursorRow, LoadError, QueueRow, Rows};
use super::topics::Topic;
use super::{Limits, Moment, State};
use crate::ids::{GroupKey, QueueKey};

impl State {
    /// The state as it was saved.
    ///
    /// # Errors
    /// [`LoadError`] when the rows contradict each other, which no state can have written.
    pub fn load(shard: ShardName, limits: Limits, rows: Rows) -> Result<Self, LoadError> {
        let counters = rows.counters;
        let mut state = Self::new(shard, limits);
        state.at = Moment {
            lsn: counters.lsn,
            term: counters.term,
            time: counters.time,
        };
        let pauses = Pauses::load(rows.pauses);
        state.pauses = pauses.ok_or_else(|| error("pauses", &0, "cannot have been in one journal"))?;
        for declaration in rows.topics {
            let name = Arc::new(declaration.name.clone());
            let topic = Topic {
                declaration,
                here: Vec::new(),
                name: Arc::clone(&name),
            };
            state.topics.by_name.insert(TopicName::clone(&name), topic);
        }
        if counters.next_queue > QueueKey(QUEUE_KEYS_MAX) || counters.next_group > GroupKey(GROUP_KEYS_MAX) {
            return Err(error("meta", &0, "has keys that no shard can reach"));
        }
        state.queues = Queues::load(counters.next_queue);
        for row in &rows.queues {
            state.load_queue(row)?;
        }
        state.groups.next = counters.next_group;
        for row in rows.groups {
            if row.key >= counters.next_group || state.topic(&row.topic).is_none() {
                return Err(error(
                    "groups",
                    &row.name,
                    "has a key that was never assigned, or an unknown topic",
                ));
            }
            state.groups.load_group(row);
        }
        for row in &rows.cursors {
            state.load_cursor(row)?;
        }
        for group in state.groups.by_key.values_mut() {
            group.cursors.sort_unstable();
        }
        state.transactions.last = counters.last_transaction;
        for row in rows.transactions {
            if row.number > counters.last_transaction || row.parts.is_empty() {
                return Err(error(
                    "transactions",
                    &row.number,
                    "has a number that was never assigned, or no batch",
                ));
            }
            state.transactions.load(row);
        }
        state.transactions.decisions.next_order = counters.decisions;
        for row in rows.decisions {
            if row.order >= counters.decisions || state.transactions.open.contains_key(&row.number) {
                return Err(error(
                    "decisions",
                    &row.number,
                    "was never taken, or the transaction is open",
                ));
            }
            state.transactions.load_decision(row);
        }
        Ok(state)
    }

    fn load_cursor(&mut self, row: &CursorRow) -> Result<(), LoadError> {
        let wrong = |reason| Err(error("cursors", &row.group.0, reason));
        let (Some(queue), Some(group)) = (self.queues.get(row.queue), self.groups.by_key.get_mut(&row.group))
        else {
            return wrong("names a group or queue that does not exist");
        };
        if row.next > queue.end {
            return wrong("is beyond the end of its queue");
        }
        if row.next < queue.start {
            return wrong("is below the start of its queue");
        }
        group.cursors.push((row.queue, row.next));
        if row.lost > 0 {
            group.lost.insert(row.queue, row.lost);
        }
        Ok(())
    }

    fn load_queue(&mut self, row: &QueueRow) -> Result<(), LoadError> {
        let wrong = |reason| Err(error("queues", &row.key.0, reason));
        let Some(topic) = self.topics.by_name.get_mut(&row.topic) else {
            return wrong("belongs to a topic that does not exist");
        };
        if topic.declaration.deleted {
            return wrong("belongs to a deleted topic");
        }
        if topic.declaration.home(row.number) != Some(&self.shard) {
            return wrong("is not on this shard according to its topic's list");
        }
        if row.start > row.end {
            return wrong("starts after its end");
        }
        if row.end > OFFSET_MAX {
            return wrong("ends after the highest offset that a queue can have");
        }
        if !self
            .queues
            .load_queue(row, &topic.name, topic.declaration.durability)
        {
            return wrong("has a key that is in use or was never assigned");
        }
        match topic
            .here
            .binary_search_by_key(&row.number, |(number, _)| *number)
        {
            Ok(_) => return wrong("is listed twice"),
            Err(place) => topic.here.insert(place, (row.number, row.key)),
        }
        Ok(())
    }
}

fn error(table: &'static str, row: &impl ToString, reason: &'static str) -> LoadError {
    LoadError {
        table,
        row: row.to_string(),
        reason,
    }
}
