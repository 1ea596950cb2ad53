//! The visible range of each queue, published under one short lock so that a fetch never waits for the core,
//! and the long polls that wait for more messages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mq_common::ids::Offset;
use tokio::sync::Notify;

use crate::ids::QueueKey;
use crate::state::effects::Trimmed;

/// The visible offsets of a queue: `start..end`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VisibleRange {
    /// The first offset.
    pub start: Offset,
    /// The first offset that is not visible yet.
    pub end: Offset,
}

#[derive(Debug, Default)]
struct Inner {
    queues: HashMap<QueueKey, VisibleRange>,
    waiters: HashMap<QueueKey, Vec<Arc<Notify>>>,
}

/// The visible ranges of all queues.
#[derive(Debug, Default)]
pub struct VisibleRanges {
    inner: Mutex<Inner>,
}

/// A long poll's entry in the waiting lists, removed when dropped.
#[derive(Debug)]
pub struct Waiter<'a> {
    ranges: &'a VisibleRanges,
    queues: Vec<QueueKey>,
    wake: Arc<Notify>,
}

impl VisibleRanges {
    /// Adds a new queue, or one found at start.
    pub(super) fn create(&self, queue: QueueKey, ends: VisibleRange) {
        self.lock().queues.insert(queue, ends);
    }

    /// Removes a deleted queue; polls that wait for it check again.
    pub(super) fn remove(&self, queue: QueueKey) {
        let mut inner = self.lock();
        inner.queues.remove(&queue);
        wake(inner.waiters.get(&queue));
    }

    /// Sets new ends; an end never moves back.
    pub(super) fn publish(&self, ends: impl IntoIterator<Item = (QueueKey, Offset)>) {
        let mut inner = self.lock();
        for (queue, end) in ends {
            if let Some(ends) = inner.queues.get_mut(&queue)
                && ends.end < end
            {
                ends.end = end;
                wake(inner.waiters.get(&queue));
            }
        }
    }

    /// Sets new starts of queues; polls that wait for one check again and learn it.
    pub(super) fn trim(&self, trimmed: &[Trimmed]) {
        if trimmed.is_empty() {
            return;
        }
        let mut inner = self.lock();
        for Trimmed { queue, to, .. } in trimmed {
            if let Some(ends) = inner.queues.get_mut(queue)
                && ends.start < *to
            {
                ends.start = *to;
                wake(inner.waiters.get(queue));
            }
        }
    }

    /// The visible range of a queue; `None` if there is no such queue.
    #[must_use]
    pub fn range(&self, queue: QueueKey) -> Option<VisibleRange> {
        self.lock().queues.get(&queue).copied()
    }

    /// The visible ranges of several queues at one moment.
    #[must_use]
    pub fn all(&self, queues: impl IntoIterator<Item = QueueKey>) -> Vec<Option<VisibleRange>> {
        let inner = self.lock();
        let ends = queues.into_iter().map(|queue| inner.queues.get(&queue).copied());
        ends.collect()
    }

    /// Joins the waiting lists of these queues. Check the ranges only afterwards, so that no change is
    /// missed.
    #[must_use]
    pub fn waiter(&self, queues: Vec<QueueKey>) -> Waiter<'_> {
        let wake = Arc::new(Notify::new());
        let mut inner = self.lock();
        for queue in &queues {
            inner.waiters.entry(*queue).or_default().push(Arc::clone(&wake));
        }
        drop(inner);
        Waiter {
            ranges: self,
            queues,
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waiters: Option<&Vec<Arc<Notify>>>) {
    for waiter in waiters.into_iter().flatten() {
        waiter.notify_one();
    }
}

impl Waiter<'_> {
    /// Waits until one of the queues has changed since the last call (or since the waiter joined).
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut inner = self.ranges.lock();
        for queue in &self.queues {
            if let Some(waiters) = inner.waiters.get_mut(queue) {
                waiters.retain(|waiter| !Arc::ptr_eq(waiter, &self.wake));
                if waiters.is_empty() {
                    inner.waiters.remove(queue);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn end_published_after_joining_wakes() {
        let ranges = VisibleRanges::default();
        ranges.create(QueueKey(3), VisibleRange::default());
        let waiter = ranges.waiter(vec![QueueKey(3), QueueKey(9)]);
        ranges.publish([(QueueKey(3), Offset(5))]);
        waiter.changed().await;
        assert_eq!(ranges.range(QueueKey(3)).unwrap().end, Offset(5));
        drop(waiter);
        assert!(ranges.lock().waiters.is_empty());
    }

    #[tokio::test]
    async fn start_moved_after_joining_wakes_and_never_goes_back() {
        let ranges = VisibleRanges::default();
        ranges.create(QueueKey(3), VisibleRange::default());
        ranges.publish([(QueueKey(3), Offset(5))]);
        let waiter = ranges.waiter(vec![QueueKey(3)]);
        let trimmed = |queue, to| Trimmed {
            queue: QueueKey(queue),
            from: Offset(0),
            to: Offset(to),
        };
        ranges.trim(&[trimmed(3, 4), trimmed(8, 1)]);
        waiter.changed().await;
        ranges.trim(&[trimmed(3, 2)]);
        let expected = VisibleRange {
            start: Offset(4),
            end: Offset(5),
        };
        assert_eq!(ranges.range(QueueKey(3)), Some(expected));
    }

    #[test]
    fn end_never_goes_back_and_unknown_queues_are_none() {
        let ranges = VisibleRanges::default();
        ranges.create(QueueKey(1), VisibleRange::default());
        ranges.publish([
            (QueueKey(1), Offset(5)),
            (QueueKey(1), Offset(4)),
            (QueueKey(7), Offset(1)),
        ]);
        assert_eq!(ranges.range(QueueKey(1)).unwrap().end, Offset(5));
        assert_eq!(ranges.range(QueueKey(0)), None);
        ranges.remove(QueueKey(1));
        assert_eq!(ranges.all([QueueKey(1), QueueKey(7)]), [None, None]);
    }
}
