//! The queues of this shard: where each starts and ends. Pure, about 48 bytes a queue.

use std::collections::VecDeque;
use std::sync::Arc;

use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};

use super::effects::Trimmed;
use super::rows::QueueRow;
use super::slots::Slots;
use crate::ids::QueueKey;

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its topic.
    pub topic: Arc<TopicName>,
    /// Its number in the topic.
    pub number: QueueNumber,
    /// First valid offset.
    pub start: Offset,
    /// First offset that is not assigned yet.
    pub end: Offset,
    /// Bytes of all batches appended since its creation.
    pub bytes: u64,
    /// Least durability of a send.
    pub floor: Durability,
    /// Changed since the last checkpoint.
    dirty: bool,
    /// [`super::State::take_touched`] will return it.
    touched: bool,
}

/// The most queues that a shard creates in its life.
pub(super) const QUEUE_KEYS_MAX: u32 = 1 << 30;

/// The highest offset of a queue: the largest that the checkpoint and the catalog can hold.
pub(super) const OFFSET_MAX: Offset = Offset(u64::MAX >> 1);

/// All queues by their keys, which are never reused.
#[derive(Debug, Default)]
pub(super) struct Queues {
    slots: Slots<Queue>,
    live: u32,
    dirty: Vec<QueueKey>,
    gone: Vec<QueueKey>,
    touched: VecDeque<QueueKey>,
}

impl Queues {
    pub(super) fn get(&self, key: QueueKey) -> Option<&Queue> {
        self.slots.get(key.0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (QueueKey, &Queue)> {
        self.slots.iter().map(|(key, queue)| (QueueKey(key), queue))
    }

    pub(super) const fn live(&self) -> u32 {
        self.live
    }

    pub(super) const fn next_key(&self) -> QueueKey {
        QueueKey(self.slots.next())
    }

    /// Whether this many more can be created.
    pub(super) fn have_room(&self, queues: usize) -> bool {
        queues <= (QUEUE_KEYS_MAX - self.slots.next()) as usize
    }

    /// Creates one; check [`Queues::have_room`] first.
    pub(super) fn create(
        &mut self,
        topic: &Arc<TopicName>,
        number: QueueNumber,
        floor: Durability,
    ) -> QueueKey {
        let key = QueueKey(self.slots.push(Queue {
            topic: Arc::clone(topic),
            number,
            start: Offset(0),
            end: Offset(0),
            bytes: 0,
            floor,
            dirty: true,
            touched: false,
        }));
        self.live += 1;
        self.dirty.push(key);
        key
    }

    pub(super) fn drop_queue(&mut self, key: QueueKey) {
        if let Some(queue) = self.slots.take(key.0) {
            self.live -= 1;
            self.gone.push(key);
            if !queue.touched {
                self.touched.push_back(key);
            }
        }
    }

    /// Its topic was declared again.
    pub(super) fn set_floor(&mut self, key: QueueKey, floor: Durability) {
        if let Some(queue) = self.slots.get_mut(key.0) {
            queue.floor = floor;
            touch(queue, key, &mut self.touched);
        }
    }

    /// Something about it changed that is not stored here: which groups read it, and how far.
    pub(super) fn touch(&mut self, key: QueueKey) {
        if let Some(queue) = self.slots.get_mut(key.0) {
            touch(queue, key, &mut self.touched);
        }
    }

    /// Takes up to `max` of those that changed, earliest change first.
    pub(super) fn take_touched(&mut self, max: usize) -> Vec<QueueKey> {
        let taken: Vec<QueueKey> = self.touched.drain(..max.min(self.touched.len())).collect();
        for key in &taken {
            if let Some(queue) = self.slots.get_mut(key.0) {
                queue.touched = false;
            }
        }
        if self.touched.is_empty() {
            // After a start there were as many as there are queues.
            self.touched = VecDeque::new();
        }
        taken
    }

    /// As after a start, when nobody knows anything of them.
    pub(super) fn touch_filled(&mut self) {
        for key in (0..self.slots.next()).map(QueueKey) {
            if let Some(queue) = self.slots.get_mut(key.0)
                && queue.start < queue.end
            {
                touch(queue, key, &mut self.touched);
            }
        }
    }

    pub(super) fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Whether a queue has this many offsets left.
    pub(super) fn have_offsets(&self, key: QueueKey, records: u64) -> bool {
        let queue = self.slots.get(key.0);
        queue.is_some_and(|queue| records <= OFFSET_MAX.0.saturating_sub(queue.end.0))
    }

    /// Assigns offsets to `records` records and returns the first; check [`Queues::have_offsets`] first.
    pub(super) fn append(&mut self, key: QueueKey, records: u32, bytes: u32) -> Option<Offset> {
        let queue = self.slots.get_mut(key.0)?;
        let base = queue.end;
        queue.end = Offset(base.0 + u64::from(records));
        queue.bytes += u64::from(bytes);
        touch(queue, key, &mut self.touched);
        if !queue.dirty {
            queue.dirty = true;
            self.dirty.push(key);
        }
        Some(base)
    }

    /// Moves a queue's start forward, not beyond its end; `None` if that changes nothing.
    pub(super) fn trim(&mut self, key: QueueKey, start: Offset) -> Option<Trimmed> {
        let queue = self.slots.get_mut(key.0)?;
        let start = start.min(queue.end);
        if start <= queue.start {
            return None;
        }
        let from = std::mem::replace(&mut queue.start, start);
        touch(queue, key, &mut self.touched);
        if !queue.dirty {
            queue.dirty = true;
            self.dirty.push(key);
        }
        Some(Trimmed {
            queue: key,
            from,
            to: start,
        })
    }

    /// The rows that changed since the last call, and the keys of the queues that are gone.
    pub(super) fn take_dirty(&mut self) -> (Vec<QueueRow>, Vec<QueueKey>) {
        let mut rows = Vec::with_capacity(self.dirty.len());
        for key in std::mem::take(&mut self.dirty) {
            if let Some(queue) = self.slots.get_mut(key.0) {
                queue.dirty = false;
                rows.push(row(key, queue));
            }
        }
        (rows, std::mem::take(&mut self.gone))
    }

    pub(super) fn rows(&self) -> Vec<QueueRow> {
        self.iter().map(|(key, queue)| row(key, queue)).collect()
    }

    /// No queues yet; the keys below `next` were already assigned.
    pub(super) fn load(next: QueueKey) -> Self {
        Self {
            slots: Slots::from(next.0),
            ..Self::default()
        }
    }

    /// Puts a saved queue back; `false` if its key is in use or was never assigned.
    pub(super) fn load_queue(&mut self, row: &QueueRow, topic: &Arc<TopicName>, floor: Durability) -> bool {
        let queue = Queue {
            topic: Arc::clone(topic),
            number: row.number,
            start: row.start,
            end: row.end,
            bytes: row.bytes,
            floor,
            dirty: false,
            touched: false,
        };
        let is_put = self.slots.put(row.key.0, queue);
        self.live += u32::from(is_put);
        if is_put && row.start < row.end {
            // Nothing is known of its messages yet.
            self.touch(row.key);
        }
        is_put
    }
}

fn touch(queue: &mut Queue, key: QueueKey, touched: &mut VecDeque<QueueKey>) {
    if !queue.touched {
        queue.touched = true;
        touched.push_back(key);
    }
}

fn row(key: QueueKey, queue: &Queue) -> QueueRow {
    QueueRow {
        key,
        topic: Arc::clone(&queue.topic),
        number: queue.number,
        start: queue.start,
        end: queue.end,
        bytes: queue.bytes,
    }
}
