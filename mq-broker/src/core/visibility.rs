//! When a placed batch becomes visible: as soon as the log has reached the durability its topic asks for, and
//! never before the batches before it in its queue. Pure.

use std::collections::{BTreeMap, VecDeque};

use mq_common::ids::{Durability, Lsn, Offset};

use crate::ids::QueueKey;

#[derive(Debug, Clone, Copy)]
struct Held {
    lsn: Lsn,
    end: Offset,
    visible_at: Durability,
}

/// Batches that are flushed but not visible yet, by queue.
#[derive(Debug, Default)]
pub(super) struct Visibility {
    held: BTreeMap<QueueKey, VecDeque<Held>>,
}

impl Visibility {
    /// A batch of a flushed entry was placed. Returns the queue's new end if the batch is visible at once.
    pub(super) fn placed(
        &mut self,
        queue: QueueKey,
        end: Offset,
        visible_at: Durability,
        lsn: Lsn,
    ) -> Option<Offset> {
        if visible_at == Durability::Memory && !self.held.contains_key(&queue) {
            return Some(end);
        }
        let held = Held { lsn, end, visible_at };
        self.held.entry(queue).or_default().push_back(held);
        None
    }

    /// The log is synced up to and including `synced`: the new ends.
    pub(super) fn synced(&mut self, synced: Lsn) -> Vec<(QueueKey, Offset)> {
        let mut ends = Vec::new();
        self.held.retain(|queue, held| {
            let mut end = None;
            while let Some(first) = held.front()
                && (first.lsn <= synced || first.visible_at == Durability::Memory)
            {
                end = Some(first.end);
                held.pop_front();
            }
            ends.extend(end.map(|end| (*queue, end)));
            !held.is_empty()
        });
        ends
    }

    /// The queue was deleted.
    pub(super) fn remove(&mut self, queue: QueueKey) {
        self.held.remove(&queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: QueueKey = QueueKey(1);

    #[test]
    fn memory_floor_is_visible_at_once_and_fsynced_after_the_sync() {
        let mut visibility = Visibility::default();
        assert_eq!(
            visibility.placed(Q, Offset(1), Durability::Memory, Lsn(1)),
            Some(Offset(1))
        );
        assert_eq!(
            visibility.placed(QueueKey(2), Offset(7), Durability::Fsynced, Lsn(2)),
            None
        );
        assert!(visibility.synced(Lsn(1)).is_empty());
        assert_eq!(visibility.synced(Lsn(2)), [(QueueKey(2), Offset(7))]);
    }

    #[test]
    fn batch_behind_an_unsynced_one_waits_for_it() {
        let mut visibility = Visibility::default();
        assert_eq!(visibility.placed(Q, Offset(1), Durability::Fsynced, Lsn(5)), None);
        assert_eq!(visibility.placed(Q, Offset(2), Durability::Memory, Lsn(6)), None);
        assert_eq!(visibility.synced(Lsn(5)), [(Q, Offset(2))]);
        assert_eq!(
            visibility.placed(Q, Offset(3), Durability::Memory, Lsn(7)),
            Some(Offset(3))
        );
    }
}
