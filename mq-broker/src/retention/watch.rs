//! What is known about the queues that may have something to delete, and when each of them has to be checked
//! again. Pure.
//!
//! A queue is checked when it changed (the state reports which ones did), and when time alone may have made
//! something due. So the cost of a round follows what happened since the last one, not the number of queues.

use std::collections::{BTreeSet, HashMap};

use mq_common::ids::{Offset, Timestamp};

use crate::ids::QueueKey;
use crate::state::Pauses;

/// What the last check of a queue found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its start then.
    pub(super) start: Offset,
    /// When its first batch was appended.
    pub(super) oldest: Option<Timestamp>,
    /// Its size.
    pub(super) measured: Option<Measured>,
    /// When it has to be checked even if nothing about it changes.
    pub(super) due: Option<Timestamp>,
}

/// The result of measuring a queue against its limit of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    /// The limit.
    pub(super) limit: u64,
    /// Bytes appended to it by then.
    pub(super) bytes: u64,
    /// First offset within the limit then.
    pub(super) near: Offset,
}

/// What is known about all queues, and when they are due.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: HashMap<QueueKey, Seen>,
    by_time: BTreeSet<(Timestamp, QueueKey)>,
    /// To be checked in the next round, whatever happens.
    again: BTreeSet<QueueKey>,
    pauses: Pauses,
}

impl Watch {
    /// The queues to check now, in addition to those that changed.
    pub(super) fn take_due(&mut self, now: Timestamp, pauses: &Pauses) -> Vec<QueueKey> {
        if self.pauses != *pauses {
            // A forgotten pause counts in full now, so what was due later may be due already.
            self.pauses = pauses.clone();
            self.again.extend(self.by_time.iter().map(|(_, queue)| *queue));
        }
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now);
        self.again.extend(due.map(|(_, queue)| *queue));
        std::mem::take(&mut self.again).into_iter().collect()
    }

    /// Takes what is known about a queue; after the check, [`put`](Self::put) the new knowledge back.
    pub(super) fn take(&mut self, queue: QueueKey) -> Seen {
        let Some(mut seen) = self.seen.remove(&queue) else {
            return Seen::default();
        };
        if let Some(at) = seen.due.take() {
            self.by_time.remove(&(at, queue));
        }
        seen
    }

    /// Stores what is known about a queue now.
    pub(super) fn put(&mut self, queue: QueueKey, seen: Seen) {
        if let Some(at) = seen.due {
            self.by_time.insert((at, queue));
        }
        if seen.oldest.is_some() || seen.measured.is_some() || seen.due.is_some() {
            self.seen.insert(queue, seen);
        }
    }

    /// Has these checked again in the next round.
    pub(super) fn again(&mut self, queues: impl IntoIterator<Item = QueueKey>) {
        self.again.extend(queues);
    }
}
