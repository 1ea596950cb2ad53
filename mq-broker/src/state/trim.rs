//! Trimming: queues start later, and what lies below is no more. The only way in which a message of a topic that lives
//! ends. Pure.
//!
//! The one invariant: a start never goes back and never passes the end, and no cursor lies below it. A group whose cursor
//! did has lost what it had not acknowledged; that is counted, and told as an effect, never silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ids::{Offset, TopicName};

use super::State;
use super::effects::{Effects, GroupChange, Outcome};
use crate::ids::QueueKey;

impl State {
    /// Moves starts forward. A queue that is gone, or starts there or later already, is passed over: the worker that
    /// proposed it looked a moment earlier.
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
