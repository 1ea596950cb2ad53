//! What is known of the queues that may have something to let go, and when each of them has to be looked at again. Pure.
//!
//! A queue is looked at when something of it changed (the state says which did), and when time alone can have made
//! something due. So what a round costs follows what happened since the last one, not how many queues there are.

use std::collections::{BTreeSet, HashMap};

use mq_common::ids::{Offset, Timestamp};

use crate::ids::QueueKey;
use crate::state::Pauses;

/// What was found of a queue the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its start then.
    pub(super) start: Offset,
    /// When its first batch was appended.
    pub(super) oldest: Option<Timestamp>,
    /// Its size.
    pub(super) measured: Option<Measured>,
    /// When it has to be looked at even if nothing of it changes.
    pub(super) due: Option<Timestamp>,
}

/// Where a queue's limit of bytes lay when it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    /// The limit.
    pub(super) limit: u64,
    /// Bytes appended to it by then.
    pub(super) bytes: u64,
    /// First offset that was not behind so many bytes.
    pub(super) near: Offset,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: HashMap<QueueKey, Seen>,
    by_time: BTreeSet<(Timestamp, QueueKey)>,
    /// To be looked at in the next round, whatever happens.
    again: BTreeSet<QueueKey>,
    pauses: Pauses,
}

impl Watch {
    /// The queues to look at now, beside those that changed.
    pub(super) fn take_due(&mut self, now: Timestamp, pauses: &Pauses) -> Vec<QueueKey> {
        if self.pauses != *pauses {
            // One that was forgotten counts in full now, and what was due later may be due.
            self.pauses = pauses.clone();
            self.again.extend(self.by_time.iter().map(|(_, queue)| *queue));
        }
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now);
        self.again.extend(due.map(|(_, queue)| *queue));
        std::mem::take(&mut self.again).into_iter().collect()
    }

    /// What is known of a queue: for whoever looks at it and then says what is known.
    pub(super) fn take(&mut self, queue: QueueKey) -> Seen {
        let Some(mut seen) = self.seen.remove(&queue) else {
            return Seen::default();
        };
        if let Some(at) = seen.due.take() {
            self.by_time.remove(&(at, queue));
        }
        seen
    }

    /// What is known of a queue now.
    pub(super) fn put(&mut self, queue: QueueKey, seen: Seen) {
        if let Some(at) = seen.due {
            self.by_time.insert((at, queue));
        }
        if seen.oldest.is_some() || seen.measured.is_some() || seen.due.is_some() {
            self.seen.insert(queue, seen);
        }
    }

    /// These are looked at again in the next round.
    pub(super) fn again(&mut self, queues: impl IntoIterator<Item = QueueKey>) {
        self.again.extend(queues);
    }
}
