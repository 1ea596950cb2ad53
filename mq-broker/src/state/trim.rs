//! Trimming: the start of a queue moves forward, and messages below it are no longer valid. In a topic that
//! exists, nothing else ends the validity of a message. Pure.
//!
//! The one invariant: a start never moves back and never passes the end, and no cursor is below it. A group
//! whose cursor was below it has lost the messages that it had not acknowledged: they are counted and
//! reported as an effect, never dropped silently.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ids::{Offset, TopicName};

use super::State;
use super::effects::{Effects, GroupChange, Outcome};
use crate::ids::QueueKey;

impl State {
    /// Moves starts forward. A queue that is deleted, or already starts there or later, is skipped: the
    /// proposal was made from a slightly older state.
    pub(super) fn trim(&mut self, starts: &[(QueueKey, Offset)], effects: &mut Effects) -> Outcome {
        let mut moved: BTreeMap<Arc<TopicName>, Vec<(QueueKey, Offset)>> = BTreeMap::new();
        for (key, wanted) in starts {
            let Some(trimmed) = self.queues.trim(*key, *wanted) else {
                continue;
            };
            effects.trimmed.push(trimmed);
            if let Some(queue) = self.queues.get(*key) {
                let moved = moved.entry(Arc::clone(&queue.topic)).or_default();
                moved.push((*key, trimmed.to));
            }
        }
        for (group, known) in &mut self.groups.by_key {
            for (queue, to) in moved.get(&known.topic).into_iter().flatten() {
                if let Some(from) = known.pass_over(*queue, *to) {
                    self.groups.dirty_cursors.insert((*group, *queue));
                    effects.groups.push(GroupChange::Lost {
                        group: *group,
                        queue: *queue,
                        from,
                        to: *to,
                    });
                }
            }
        }
        Outcome::Done
    }
}
