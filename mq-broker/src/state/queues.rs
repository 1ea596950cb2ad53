//! The queues of this shard: where each starts and ends. Pure, about 48 bytes a queue.

use std::sync::Arc;

use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};

use super::rows::QueueRow;
use crate::ids::QueueKey;

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its topic.
    pub topic: Arc<TopicName>,
    /// Its number in the topic.
    pub number: QueueNumber,
    /// First offset there is.
    pub start: Offset,
    /// First offset that is not assigned yet.
    pub end: Offset,
    /// Bytes of all batches appended since its creation.
    pub bytes: u64,
    /// Least durability of a send.
    pub floor: Durability,
    /// Changed since the last checkpoint.
    dirty: bool,
}

/// All queues, by their keys. The slot of a dropped queue stays empty for good: keys are never used again.
#[derive(Debug, Default)]
pub(super) struct Queues {
    slots: Vec<Option<Queue>>,
    live: u32,
    dirty: Vec<QueueKey>,
    gone: Vec<QueueKey>,
}

impl Queues {
    pub(super) fn get(&self, key: QueueKey) -> Option<&Queue> {
        self.slots.get(index(key))?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (QueueKey, &Queue)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(key, slot)| Some((QueueKey(key), slot.as_ref()?)))
    }

    pub(super) const fn live(&self) -> u32 {
        self.live
    }

    pub(super) fn next_key(&self) -> QueueKey {
        QueueKey(u32::try_from(self.slots.len()).expect("a shard makes fewer than 2^32 queues in its life"))
    }

    pub(super) fn create(
        &mut self,
        topic: &Arc<TopicName>,
        number: QueueNumber,
        floor: Durability,
    ) -> QueueKey {
        let key = self.next_key();
        self.slots.push(Some(Queue {
            topic: Arc::clone(topic),
            number,
            start: Offset(0),
            end: Offset(0),
            bytes: 0,
            floor,
            dirty: true,
        }));
        self.live += 1;
        self.dirty.push(key);
        key
    }

    pub(super) fn drop_queue(&mut self, key: QueueKey) {
        let slot = self.slots.get_mut(index(key)).and_then(Option::take);
        if slot.is_some() {
            self.live -= 1;
            self.gone.push(key);
        }
    }

    pub(super) fn set_floor(&mut self, key: QueueKey, floor: Durability) {
        if let Some(queue) = self.slots.get_mut(index(key)).and_then(Option::as_mut) {
            queue.floor = floor;
        }
    }

    /// Gives `records` records their offsets, and answers with the first.
    pub(super) fn append(&mut self, key: QueueKey, records: u32, bytes: u32) -> Option<Offset> {
        let queue = self.slots.get_mut(index(key))?.as_mut()?;
        let base = queue.end;
        queue.end = Offset(base.0 + u64::from(records));
        queue.bytes += u64::from(bytes);
        if !queue.dirty {
            queue.dirty = true;
            self.dirty.push(key);
        }
        Some(base)
    }

    /// The rows that changed since the last call, and the keys of the queues that are gone.
    pub(super) fn take_dirty(&mut self) -> (Vec<QueueRow>, Vec<QueueKey>) {
        let mut rows = Vec::with_capacity(self.dirty.len());
        for key in std::mem::take(&mut self.dirty) {
            if let Some(queue) = self.slots.get_mut(index(key)).and_then(Option::as_mut) {
                queue.dirty = false;
                rows.push(row(key, queue));
            }
        }
        (rows, std::mem::take(&mut self.gone))
    }

    pub(super) fn rows(&self) -> Vec<QueueRow> {
        self.iter().map(|(key, queue)| row(key, queue)).collect()
    }

    /// Puts a saved queue into its slot; the rest is empty up to `next`.
    pub(super) fn load(next: QueueKey) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(index(next), || None);
        Self {
            slots,
            ..Self::default()
        }
    }

    /// `false` if the slot is taken or beyond the next key.
    pub(super) fn load_queue(&mut self, row: &QueueRow, topic: &Arc<TopicName>, floor: Durability) -> bool {
        let Some(slot @ None) = self.slots.get_mut(index(row.key)) else {
            return false;
        };
        *slot = Some(Queue {
            topic: Arc::clone(topic),
            number: row.number,
            start: row.start,
            end: row.end,
            bytes: row.bytes,
            floor,
            dirty: false,
        });
        self.live += 1;
        true
    }
}

fn row(key: QueueKey, queue: &Queue) -> QueueRow {
    QueueRow {
        key,
        topic: TopicName::clone(&queue.topic),
        number: queue.number,
        start: queue.start,
        end: queue.end,
        bytes: queue.bytes,
    }
}

const fn index(key: QueueKey) -> usize {
    key.0 as usize
}
